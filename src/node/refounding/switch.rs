//! Changing over to the cluster that was founded anew, at one moment.
//!
//! The log of the new cluster is written beside the old one, `log.new`. Then the file `refounding`
//! appears by a rename, and with it everything is decided: before it a start removes `log.new` and
//! goes on as ever, after it a start carries out the steps that are left, each of which may have
//! been done already or in part. The last step renames the file to `refounded`.
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `8E 57 4C 42 52 46 0A 1A` |
//! | 8 | 4 | version | 1 |
//! | 12 | 4 | membership length | bytes, at most 1 MiB |
//! | 16 | 16 | from | the cluster before |
//! | 32 | 16 | to | the cluster after |
//! | 48 | n | membership | the new one; its log id is that of the last entry of the log |
//! | 48+n | 4 | CRC-32 | of everything before it |
//!
//! Integers are little-endian.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use openraft::storage::{IOFlushed, RaftLogStorage as _};
use openraft::{EntryPayload, RaftLogReader as _};

use super::super::error::{Error, REBUILD};
use super::super::identity::{Identity, write_durably};
use super::super::options::NodeOptions;
use super::super::recovery::Recovered;
use super::super::replay::READ_BYTES;
use super::blocking;
use crate::raft::codec::{decode_membership, encode_membership};
use crate::raft::log::{Log, LogIdentity, LogOptions, RealFiles};
use crate::raft::{Entry, Membership, Payload, StoredMembership, log_id_of, position_of};
use crate::sqlite::{Record, StartLock};
use crate::wal::{ClusterId, Delta, Position};

/// A change from one cluster to the next.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Switch {
    pub(super) from: ClusterId,
    pub(super) to: ClusterId,
    /// The last entry of the log at that time.
    pub(super) last: Option<Position>,
    pub(super) membership: Membership,
}

/// Where a step works.
struct Place<'a> {
    dir: &'a Path,
    lock: &'a StartLock,
}

type Step = fn(&Switch, &Place<'_>) -> Result<(), Error>;

/// What follows the decision. Each step may find itself done, or done in part.
const STEPS: [Step; 4] = [change_record, change_identity, change_logs, note];

/// Carries out what was decided before a crash, or removes what was not.
pub(super) fn finish_interrupted(
    options: &NodeOptions,
    identity: Identity,
) -> Result<Identity, Error> {
    let dir = &options.data_dir;
    match Switch::read(dir, DECIDED)? {
        Some(switch) => {
            tracing::info!(to = %switch.to, "finishing to found the cluster anew");
            let lock = StartLock::acquire(dir, options.open_wait)?;
            switch.follow(dir, &lock, identity)
        }
        None => {
            remove_dir(&dir.join(LOG_NEW))?;
            Ok(identity)
        }
    }
}

/// Whether this cluster was founded anew by the node of this directory, among others: then nodes
/// that were given up may still be where they were.
pub(crate) fn is_refounded(dir: &Path, cluster: ClusterId) -> Result<bool, Error> {
    Ok(Switch::read(dir, DONE)?.is_some_and(|done| done.to == cluster))
}

/// The cluster from which this one was founded anew, as long as nothing has happened in it.
pub(super) fn cluster_before(
    dir: &Path,
    membership: Option<&Membership>,
    last: Option<Position>,
) -> Result<Option<ClusterId>, Error> {
    let done = Switch::read(dir, DONE)?;
    let unused = done.filter(|done| {
        done.membership.get_joint_config().len() > 1
            && membership == Some(&done.membership)
            && last == done.last
    });
    Ok(unused.map(|done| done.from))
}

impl Switch {
    /// Writes the log of the new cluster beside the old one.
    pub(super) async fn prepare(
        &self,
        options: &NodeOptions,
        raft_id: u64,
        recovered: &Recovered,
    ) -> Result<(), Error> {
        let dir = options.data_dir.join(LOG_NEW);
        remove_dir(&dir)?;
        let identity = LogIdentity {
            cluster: self.to,
            node: raft_id,
        };
        let sizes = LogOptions {
            segment_bytes: options.log_segment_bytes,
            ..LogOptions::default()
        };
        let new = blocking(move || {
            fs::create_dir_all(&dir).map_err(Error::io(format!("create {}", dir.display())))?;
            let files = RealFiles::open(&dir);
            let files = files.map_err(Error::io(format!("open {}", dir.display())))?;
            Ok(Log::open(Arc::new(files), identity, sizes)?)
        })
        .await?;
        let copied = self
            .copy(&recovered.log, recovered.fence.last_applied, new.clone())
            .await;
        blocking(move || {
            new.close();
            Ok(())
        })
        .await?;
        copied
    }

    /// Everything behind the checkpoint, and what Raft must not forget.
    async fn copy(&self, old: &Log, applied: Option<Position>, mut new: Log) -> Result<(), Error> {
        let writing = "write the log of the cluster founded anew";
        if let Some(applied) = applied {
            new.purge(log_id_of(applied))
                .await
                .map_err(Error::io(writing))?;
        }
        let vote = old.clone().read_vote().await.map_err(Error::io(writing))?;
        if let Some(vote) = vote {
            new.save_vote(&vote).await.map_err(Error::io(writing))?;
        }
        let mut next = applied.map_or(0, |applied| applied.index + 1);
        loop {
            let from = old.clone();
            let read = move || Ok(from.read_blocking(next, u64::MAX, READ_BYTES)?);
            let entries = blocking(read).await?;
            let Some(last) = entries.last().map(|entry| position_of(&entry.log_id)) else {
                break;
            };
            next = last.index + 1;
            let entries = entries.into_iter().map(|entry| self.renewed(entry));
            let entries = entries.collect::<Result<Vec<_>, _>>()?;
            let appended = new.append(entries, IOFlushed::noop()).await;
            appended.map_err(Error::io(writing))?;
            new.wait_durable(last).await?;
        }
        if let Some(committed) = old.committed() {
            let new = new.clone();
            blocking(move || Ok(new.persist_committed_blocking(committed)?)).await?;
        }
        match new.failure() {
            Some(why) => Err(Error::io(writing)(io::Error::other(why))),
            None => Ok(()),
        }
    }

    /// The entry as it stands in the new cluster.
    fn renewed(&self, entry: Entry) -> Result<Entry, Error> {
        let payload = match entry.payload {
            EntryPayload::Membership(_) => EntryPayload::Membership(self.membership.clone()),
            EntryPayload::Normal(payload) if !payload.is_mark() => {
                let delta = Delta::decode(payload.0).map_err(|error| {
                    let what = format!("entry {}: {error}", position_of(&entry.log_id));
                    Error::io("read the log")(io::Error::other(what))
                })?;
                EntryPayload::Normal(Payload(delta.in_cluster(self.to).bytes().clone()))
            }
            other => other,
        };
        Ok(Entry { payload, ..entry })
    }

    /// Decides, and follows the decision.
    pub(super) fn carry_out(
        &self,
        dir: &Path,
        lock: &StartLock,
        identity: Identity,
    ) -> Result<Identity, Error> {
        write_durably(dir, DECIDED, &self.encode())?;
        self.follow(dir, lock, identity)
    }

    fn follow(&self, dir: &Path, lock: &StartLock, identity: Identity) -> Result<Identity, Error> {
        let place = Place { dir, lock };
        for step in STEPS {
            step(self, &place)?;
        }
        Ok(Identity {
            cluster: Some(self.to),
            ..identity
        })
    }

    fn encode(&self) -> Vec<u8> {
        let stored = StoredMembership::new(self.last.map(log_id_of), self.membership.clone());
        let membership = encode_membership(&stored);
        let mut bytes = Vec::with_capacity(HEAD_BYTES + membership.len() + 4);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let length = u32::try_from(membership.len()).expect("memberships are small");
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&self.from.0.to_le_bytes());
        bytes.extend_from_slice(&self.to.0.to_le_bytes());
        bytes.extend_from_slice(&membership);
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn read(dir: &Path, name: &str) -> Result<Option<Self>, Error> {
        let path = dir.join(name);
        let length = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("look at {}", path.display()))(error)),
        };
        let corrupt = |what: String| Error::Corrupt {
            what,
            file: path.clone(),
            advice: REBUILD,
        };
        if length > BYTES_MAX {
            return Err(corrupt("too large".to_owned()));
        }
        let bytes = fs::read(&path).map_err(Error::io(format!("read {}", path.display())))?;
        Self::decode(&bytes).map(Some).map_err(corrupt)
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < HEAD_BYTES + 4 || bytes[..8] != MAGIC {
            return Err("not a change of clusters".to_owned());
        }
        let version = u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes"));
        if version != VERSION {
            return Err(format!("version {version}, this program knows {VERSION}"));
        }
        let (body, crc) = bytes.split_at(bytes.len() - 4);
        if crc32fast::hash(body).to_le_bytes() != crc {
            return Err("wrong checksum".to_owned());
        }
        let length = u32::from_le_bytes(bytes[12..16].try_into().expect("4 bytes"));
        let membership = &body[HEAD_BYTES..];
        if membership.len() as u64 != u64::from(length) {
            return Err("wrong length of the membership".to_owned());
        }
        let stored = decode_membership(membership).map_err(|error| error.to_string())?;
        let cluster = |at: usize| {
            let id: [u8; 16] = bytes[at..at + 16].try_into().expect("16 bytes");
            ClusterId(u128::from_le_bytes(id))
        };
        Ok(Self {
            from: cluster(16),
            to: cluster(32),
            last: stored.log_id().as_ref().map(position_of),
            membership: stored.membership().clone(),
        })
    }
}

/// The checkpoint record keeps everything but the members.
fn change_record(switch: &Switch, place: &Place<'_>) -> Result<(), Error> {
    let mut unreadable = None;
    Record::change_membership(place.lock, |old| match decode_membership(old) {
        Ok(old) => {
            let new = StoredMembership::new(*old.log_id(), switch.membership.clone());
            encode_membership(&new)
        }
        Err(error) => {
            unreadable = Some(error);
            old.to_vec()
        }
    })?;
    match unreadable {
        None => Ok(()),
        Some(error) => Err(Error::Corrupt {
            what: error.to_string(),
            file: place.dir.join(Record::FILE_NAME),
            advice: REBUILD,
        }),
    }
}

fn change_identity(switch: &Switch, place: &Place<'_>) -> Result<(), Error> {
    let mut identity = Identity::load_or_create(place.dir, None, "")?;
    identity.cluster = Some(switch.to);
    identity.save(place.dir)
}

/// `log` steps aside for `log.new`, and is removed.
fn change_logs(_switch: &Switch, place: &Place<'_>) -> Result<(), Error> {
    let [log, new, old] = ["log", LOG_NEW, LOG_OLD].map(|name| place.dir.join(name));
    let change = || {
        if new.exists() {
            if log.exists() {
                fs::rename(&log, &old)?;
            }
            fs::rename(&new, &log)?;
            File::open(place.dir)?.sync_all()?;
        }
        Ok(())
    };
    change().map_err(Error::io("put the new log into the old one's place"))?;
    remove_dir(&old)
}

fn note(_switch: &Switch, place: &Place<'_>) -> Result<(), Error> {
    let rename = || {
        fs::rename(place.dir.join(DECIDED), place.dir.join(DONE))?;
        File::open(place.dir)?.sync_all()
    };
    rename().map_err(Error::io("note that the cluster is founded anew"))
}

fn remove_dir(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", dir.display()))(error))
        }
        _ => Ok(()),
    }
}

const LOG_NEW: &str = "log.new";
const LOG_OLD: &str = "log.old";
const DECIDED: &str = "refounding";
const DONE: &str = "refounded";
const MAGIC: [u8; 8] = [0x8e, b'W', b'L', b'B', b'R', b'F', b'\n', 0x1a];
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 48;
const BYTES_MAX: u64 = (1 << 20) + 52;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::PathBuf;
    use std::time::Duration;

    use super::super::super::identity::random_u64;
    use super::*;
    use crate::raft::{Member, Role};

    fn example() -> Switch {
        let member = Member {
            name: "n1".to_owned(),
            raft_addr: "h:1".to_owned(),
            http_addr: "h:2".to_owned(),
            role: Role::Voter,
        };
        let nodes = BTreeMap::from([(5, member)]);
        Switch {
            from: ClusterId(1),
            to: ClusterId(2),
            last: Some(Position {
                term: 3,
                node: 5,
                index: 9,
            }),
            membership: Membership::new(vec![BTreeSet::from([5])], nodes).unwrap(),
        }
    }

    #[test]
    fn a_switch_reads_as_it_was_written_and_no_damaged_one_does() {
        let bytes = example().encode();
        assert_eq!(Switch::decode(&bytes), Ok(example()));
        for length in 0..bytes.len() {
            assert!(Switch::decode(&bytes[..length]).is_err());
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Switch::decode(&damaged).is_err(), "bit {bit}");
        }
    }

    /// A directory that is removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn content(dir: &Path) -> String {
        fs::read_to_string(dir.join("log").join("file")).unwrap()
    }

    /// A directory in which the decision has been made and the first `done` steps were done.
    fn interrupted(done: usize) -> (Scratch, NodeOptions, Identity) {
        let name = format!("wallaby-switch-{}", random_u64().unwrap());
        let dir = Scratch(std::env::temp_dir().join(name));
        fs::create_dir(dir.path()).unwrap();
        let options = NodeOptions::new(dir.path().to_owned(), "h:1".into(), "h:2".into());
        let mut identity = Identity::load_or_create(dir.path(), Some("n1"), "").unwrap();
        identity.cluster = Some(ClusterId(1));
        identity.save(dir.path()).unwrap();
        for (name, text) in [("log", "old"), (LOG_NEW, "new")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("file"), text).unwrap();
        }
        write_durably(dir.path(), DECIDED, &example().encode()).unwrap();
        let lock = StartLock::acquire(dir.path(), Duration::ZERO).unwrap();
        let place = Place {
            dir: dir.path(),
            lock: &lock,
        };
        for step in &STEPS[..done] {
            step(&example(), &place).unwrap();
        }
        (dir, options, identity)
    }

    #[test]
    fn a_crash_after_any_step_is_finished_by_the_next_start() {
        for done in 0..=STEPS.len() {
            let (dir, options, identity) = interrupted(done);
            finish_interrupted(&options, identity).unwrap();
            let now = Identity::load_or_create(dir.path(), None, "").unwrap();
            assert_eq!(now.cluster, Some(ClusterId(2)), "after {done} steps");
            assert_eq!(content(dir.path()), "new", "after {done} steps");
            assert!(!dir.path().join(LOG_OLD).exists() && !dir.path().join(LOG_NEW).exists());
            assert_eq!(Switch::read(dir.path(), DONE).unwrap(), Some(example()));
        }
    }

    #[test]
    fn a_crash_between_the_renames_of_the_logs_is_finished_too() {
        let (dir, options, identity) = interrupted(2);
        fs::rename(dir.path().join("log"), dir.path().join(LOG_OLD)).unwrap();
        finish_interrupted(&options, identity).unwrap();
        assert_eq!(content(dir.path()), "new");
        let (dir, options, identity) = interrupted(2);
        fs::rename(dir.path().join("log"), dir.path().join(LOG_OLD)).unwrap();
        fs::rename(dir.path().join(LOG_NEW), dir.path().join("log")).unwrap();
        finish_interrupted(&options, identity).unwrap();
        assert_eq!(content(dir.path()), "new");
        assert!(!dir.path().join(LOG_OLD).exists());
    }

    #[test]
    fn a_crash_before_the_decision_changes_nothing() {
        let (dir, options, identity) = interrupted(0);
        fs::remove_file(dir.path().join(DECIDED)).unwrap();
        let after = finish_interrupted(&options, identity.clone()).unwrap();
        assert_eq!(after, identity);
        assert_eq!(content(dir.path()), "old");
        assert!(!dir.path().join(LOG_NEW).exists());
    }
}
