//! openraft's type configuration, and the names the rest of Wallaby uses for its parts.

use std::fmt;

use bytes::Bytes;

use super::Outcome;
use crate::wal::Position;

/// What openraft is instantiated with: `u64` node ids, opaque payloads, and leader ids of term and
/// node (`leader_id_adv`), so that a log id names its entry even if two leaders share a term.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct TypeConfig {}

// openraft's own macro takes every type but the responder.
impl openraft::RaftTypeConfig for TypeConfig {
    type D = Payload;
    type R = Applied;
    type NodeId = u64;
    type Node = Member;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Payload, u64, Member>;
    type Entry =
        openraft::Entry<<Self::LeaderId as openraft::vote::RaftLeaderId>::Committed, Self::Payload>;
    type Responder<T>
        = Outcome<T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type AsyncRuntime = openraft::impls::TokioRuntime;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// The id of a log entry: leader (term and node) and index.
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// A leader: term and node.
pub type LeaderId = openraft::alias::LeaderIdOf<TypeConfig>;
/// A vote: a leader, and whether a quorum has granted it.
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
/// A log entry.
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
/// The voter sets (two while a change is under way) and the nodes known.
pub type Membership = openraft::Membership<u64, Member>;
/// A membership and the id of the entry that brought it.
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// Up to where a snapshot goes, and the membership there.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
/// A snapshot with content of type `S`.
pub type Snapshot<S> = openraft::alias::SnapshotOf<TypeConfig, S>;

/// What the application puts into an entry: an encoded delta, or nothing.
///
/// Empty = a mark: an entry without effect, written by strong reads. The bytes are shared, never
/// copied, on their way through log, network and apply.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Payload(pub Bytes);

impl Payload {
    /// A payload without effect, for strong reads.
    pub fn mark() -> Self {
        Self(Bytes::new())
    }

    /// Whether this is a mark.
    pub fn is_mark(&self) -> bool {
        self.0.is_empty()
    }
}

// Page images are somebody's data: what gets into a log line is their length only.
impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What apply made of an entry; the answer that a proposer gets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Applied {
    /// The entry carries no data: blank, membership or mark.
    #[default]
    Nothing,
    /// Its pages are now in the database.
    Data,
    /// The fence voided it: it was executed on another base. Nothing changed; retry.
    Rejected,
    /// A part of a large transaction: kept aside until the last part arrives.
    Staged,
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Data => "data",
            Self::Rejected => "rejected",
            Self::Staged => "staged",
        })
    }
}

/// What the cluster knows of a node beside its Raft id.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Member {
    /// The name given with `-node-id`.
    pub name: String,
    /// Where the other nodes reach it, `host:port`.
    pub raft_addr: String,
    /// Where clients reach it, `host:port`.
    pub http_addr: String,
    /// What it is a member for.
    pub role: Role,
}

impl Member {
    /// Whether both are the same node at the same place, whatever its role.
    pub fn is_at_the_place_of(&self, other: &Self) -> bool {
        self.name == other.name
            && self.raft_addr == other.raft_addr
            && self.http_addr == other.http_addr
    }
}

/// What a member is one for. A voter that has no vote (yet) is on its way in, which is something
/// else than a replica: only the one is ever given a vote.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Role {
    /// It is being removed: it has no vote any more, and whoever leads removes it altogether.
    Leaving,
    /// It holds a copy, and never votes.
    Replica,
    /// It votes as soon as it has caught up.
    #[default]
    Voter,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.raft_addr)
    }
}

/// The position that a log id names.
pub fn position_of(log_id: &LogId) -> Position {
    Position {
        term: log_id.leader_id.term,
        node: log_id.leader_id.node_id,
        index: log_id.index,
    }
}

/// The log id that a position names.
pub fn log_id_of(position: Position) -> LogId {
    let leader_id = LeaderId {
        term: position.term,
        node_id: position.node,
    };
    LogId {
        leader_id,
        index: position.index,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_the_way_to_a_log_id_and_back() {
        let position = Position {
            term: 3,
            node: 77,
            index: 12,
        };
        assert_eq!(position_of(&log_id_of(position)), position);
    }

    #[test]
    fn a_payload_never_shows_its_bytes() {
        let payload = Payload(Bytes::from_static(b"secret"));
        assert_eq!(
            format!("{payload:?} {payload}"),
            "Payload(6 bytes) Payload(6 bytes)"
        );
    }
}
