//! Mistakes that can be put back, to see which test convicts them.
//!
//! A test proves something only if it fails when the thing it guards is broken. Each [`Bug`] is a
//! mistake that this program, or one like it, could really have: `planted::is(Bug::...)` stands in
//! the code where it would be made. Without the feature `planted-bugs` that is the constant `false`
//! and nothing of it is left in the program; with it, the environment variable `WAL_PLANTED` names
//! the one that is made. `cargo run -p tools --bin planted` tries them all.
//!
//! Not planted are three whose tests did not convict them, as other guards stand behind: an entry
//! that takes effect before this node's log has it (checkpoints wait for the log), a leader that
//! executes before it has applied what came before it (the fence, the lease), and a received
//! database that is not compared with the announced hash (its pages are). That these guards
//! suffice is argued, not shown.

/// A mistake that can be planted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Bug {
    /// The log acknowledges what it has written and not synced.
    AckBeforeSync,
    /// The log acknowledges what it has queued and not written.
    AckBeforeWrite,
    /// A vote is given before it is durable.
    VoteNotSynced,
    /// The name of a new segment of the log is not made durable.
    DirectoryNotSynced,
    /// A damaged record in the middle of the log is taken for its torn end.
    CutAtFirstDamage,
    /// The name of a segment is believed, whatever its header says.
    SegmentNameTrusted,
    /// After a failed write the log goes on.
    FailureForgotten,
    /// The checkpoint record says that the main file has what is still to be moved.
    RecordBeforePages,
    /// Pages reach the main file on which the durable record does not count.
    PagesBeforeRecord,
    /// The WAL starts afresh while the durable record counts on it.
    RestartBeforeRecord,
    /// The log is purged up to what is applied, and not to what the checkpoint record covers.
    PurgedBeforeRecord,
    /// Other processes may run checkpoints.
    CheckpointerNotExcluded,
    /// Frames go to the WAL file as SQLite writes them, before their commit.
    CaptureAtWrite,
    /// Frames of an earlier life of the WAL are taken for valid.
    SaltIgnored,
    /// The page with the lock bytes is replicated.
    LockBytePageTaken,
    /// A follower's database does not shrink.
    NotShrunk,
    /// Frames behind the commit frame, rolled back with their savepoint, are captured.
    RolledBackCaptured,
    /// SQLite publishes a transaction that the cluster has refused.
    RefusedPublished,
    /// The page hashes of a refused transaction stay.
    DiscardedHashesLeft,
    /// A delta that was executed on another state takes effect.
    FenceIgnored,
    /// A follower takes its own progress for the leader's read index.
    ReadIndexOfOneself,
    /// A leader answers for the read index without asking a quorum.
    ReadIndexUnconfirmed,
    /// A linearizable read does not wait until the index is applied.
    ReadIndexNotAwaited,
    /// A leader that was cut off believes in its lease for ever.
    LeaseForEver,
    /// A node that lost its disk comes back under its old Raft id.
    RaftIdReused,
    /// The database hash is an XOR of checksums.
    HashOfChecksums,
    /// A write whose outcome is unknown is reported as not committed.
    UnknownReportedAsRefused,
    /// Groups that wrote nothing are answered without asking whether this node still leads.
    UnwrittenAnsweredAtOnce,
    /// The checksum of a frame between nodes is not compared.
    FrameChecksumIgnored,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 29] = [
        Self::AckBeforeSync,
        Self::AckBeforeWrite,
        Self::VoteNotSynced,
        Self::DirectoryNotSynced,
        Self::CutAtFirstDamage,
        Self::SegmentNameTrusted,
        Self::FailureForgotten,
        Self::RecordBeforePages,
        Self::PagesBeforeRecord,
        Self::RestartBeforeRecord,
        Self::PurgedBeforeRecord,
        Self::CheckpointerNotExcluded,
        Self::CaptureAtWrite,
        Self::SaltIgnored,
        Self::LockBytePageTaken,
        Self::NotShrunk,
        Self::RolledBackCaptured,
        Self::RefusedPublished,
        Self::DiscardedHashesLeft,
        Self::FenceIgnored,
        Self::ReadIndexOfOneself,
        Self::ReadIndexUnconfirmed,
        Self::ReadIndexNotAwaited,
        Self::LeaseForEver,
        Self::RaftIdReused,
        Self::HashOfChecksums,
        Self::UnknownReportedAsRefused,
        Self::UnwrittenAnsweredAtOnce,
        Self::FrameChecksumIgnored,
    ];

    /// What `WAL_PLANTED` calls it.
    #[must_use]
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// Whether this mistake is to be made.
#[cfg(feature = "planted-bugs")]
pub(crate) fn is(bug: Bug) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<Bug>> = std::sync::OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let name = std::env::var("WAL_PLANTED")
            .ok()
            .filter(|name| !name.is_empty())?;
        let bug = Bug::ALL.into_iter().find(|bug| bug.name() == name);
        Some(bug.expect("WAL_PLANTED names a bug that can be planted"))
    });
    *chosen == Some(bug)
}

/// No mistake is made on purpose.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) const fn is(_: Bug) -> bool {
    false
}

#[cfg(all(feature = "planted-bugs", not(debug_assertions)))]
compile_error!("planted-bugs is for tests; a release must not have it");
