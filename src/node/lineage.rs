//! What the log says the database hash is after each data entry.
//!
//! A delta names its base and the hash that the database had before it; the log has the hash after
//! that base. If the two differ, whoever executed the delta did it on another database than the one
//! that the log leads to, whatever its own files say. That can be seen from the log alone, before
//! the entry is committed:
//!
//! * The leader looks before it proposes. If its own database is not the one that its own log leads
//!   to, it proposes nothing, and stops.
//! * A leader that has purged its log cannot see it, the others can: a node does not append such an
//!   entry as long as it is not committed, and *objects*. When a majority of the voters objects,
//!   the entry can never be committed, and it is the leader that is the odd one: it stops, its next
//!   start rebuilds it, and the others elect another one and go on. Nothing that was acknowledged
//!   is lost, because nothing of it was.
//! * An entry that is committed all the same has a majority for it: then it is the node that
//!   objected which is the odd one. It takes the entry, cannot apply it, and is rebuilt as ever.
//! * With two voters, or as many for as against, nobody can tell who is right. Writes wait and end
//!   as unknown, both sides say why, and no file is touched: the operator decides.
//!
//! Log ids are unique, so what was learned of one stays true.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use openraft::EntryPayload;
use openraft::raft::AppendEntriesRequest;

use super::Raft;
use super::admission::membership;
use super::health::Health;
use super::rebuild;
use crate::raft::{TypeConfig, position_of};
use crate::wal::{DatabaseHash, DeltaHeader, Position};

/// What was learned, by index.
#[derive(Default)]
struct Known(BTreeMap<u64, (Position, DatabaseHash)>);

impl Known {
    fn note(&mut self, entry: Position, after: DatabaseHash) {
        if self.0.len() >= KNOWN_MAX {
            self.0.pop_first();
        }
        self.0.insert(entry.index, (entry, after));
    }

    /// What the log has after the base, if that is known and another hash.
    fn contradicts(&self, base: Position, before: DatabaseHash) -> Option<DatabaseHash> {
        let (entry, after) = *self.0.get(&base.index)?;
        (entry == base && after != before).then_some(after)
    }
}

/// The hashes of this node's log, and who objects to what it proposes.
pub(crate) struct Lineage {
    known: Mutex<Known>,
    objected: Mutex<BTreeMap<u64, Objection>>,
    /// The last entry that this node has objected to, which was logged.
    said: Mutex<Option<Objection>>,
    dir: PathBuf,
    health: Arc<Health>,
    raft: Arc<OnceLock<Raft>>,
}

/// An entry whose hash before is not the hash after its base.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Objection {
    /// The entry.
    pub(crate) entry: Position,
    /// The base that it names.
    pub(crate) base: Position,
}

impl Lineage {
    pub(crate) fn new(dir: &Path, health: &Arc<Health>, raft: &Arc<OnceLock<Raft>>) -> Arc<Self> {
        Arc::new(Self {
            known: Mutex::default(),
            objected: Mutex::default(),
            said: Mutex::default(),
            dir: dir.to_owned(),
            health: Arc::clone(health),
            raft: Arc::clone(raft),
        })
    }

    /// Learns the hash after a data entry.
    pub(crate) fn note(&self, entry: Position, after: DatabaseHash) {
        lock(&self.known).note(entry, after);
    }

    /// Looks, on the leader, whether what is about to be proposed was executed on the database that
    /// the log leads to.
    ///
    /// # Errors
    ///
    /// Why not. Then this node stops; its next start finds out whether only its memory was wrong.
    pub(crate) fn check_own(
        &self,
        base: Option<Position>,
        before: DatabaseHash,
    ) -> Result<(), String> {
        let Some(base) = base else { return Ok(()) };
        let Some(after) = lock(&self.known).contradicts(base, before) else {
            return Ok(());
        };
        let why = format!(
            "this node's database is not the one that its log leads to: after entry {base} it has \
             the hash {before}, and the log {after}"
        );
        self.health.fail(format!("{why}; start this node again"));
        Err(why)
    }

    /// Looks at what a leader sends, and learns from it: the first entry that must not be appended.
    pub(crate) fn objection(
        &self,
        request: &AppendEntriesRequest<TypeConfig>,
    ) -> Option<Objection> {
        let committed = request.leader_commit.map_or(0, |id| id.index);
        for entry in &request.entries {
            let EntryPayload::Normal(payload) = &entry.payload else {
                continue;
            };
            // What cannot be read is refused elsewhere.
            let Some(header) = DeltaHeader::peek(&payload.0) else {
                continue;
            };
            let position = position_of(&entry.log_id);
            if position.index > committed
                && let Some(base) = header.base.filter(|_| header.part.is_first())
                && let Some(after) = lock(&self.known).contradicts(base, header.hash_before)
            {
                let objection = Objection {
                    entry: position,
                    base,
                };
                self.say(objection, after, header.hash_before);
                return Some(objection);
            }
            if header.part.is_last() {
                self.note(position, header.hash_after);
            }
        }
        None
    }

    /// Once for each entry; it is sent again and again.
    fn say(&self, objection: Objection, after: DatabaseHash, before: DatabaseHash) {
        let mut said = lock(&self.said);
        if said.replace(objection) == Some(objection) {
            return;
        }
        let Objection { entry, base } = objection;
        tracing::error!(
            %entry,
            "the leader's transaction was executed on another database: after entry {base} this \
             node has the hash {after}, and the leader {before}. It is not appended here unless a \
             majority does. If a majority objects as well, the leader stops and is rebuilt; {TIE}"
        );
    }

    /// Notes that a peer objects to an entry that this node has sent as the leader. Stops this node
    /// if there is a majority against it.
    pub(crate) fn objected(&self, peer: u64, objection: Objection) {
        let Some(raft) = self.raft.get() else { return };
        let config = membership(raft);
        let voters: Vec<u64> = config.voter_ids().collect();
        let count = {
            let mut objected = lock(&self.objected);
            if objected.insert(peer, objection) != Some(objection) {
                tracing::error!(
                    peer,
                    entry = %objection.entry,
                    "a peer does not append what this node proposes: after entry {} it has \
                     another database hash. If a majority objects, this node stops and is rebuilt; \
                     if a majority appends it, that peer is; {TIE}",
                    objection.base
                );
            }
            let against = |voter: &&u64| {
                let one = objected.get(*voter);
                one.is_some_and(|one| one.entry == objection.entry)
            };
            voters.iter().filter(against).count()
        };
        if count > voters.len() / 2 {
            let base = objection.base;
            self.give_up(&format!(
                "this node's database is not the one that the others have after entry {base}: \
                 {count} of {} voters say so",
                voters.len()
            ));
        }
    }

    /// Ends this node, and has its next start rebuild it.
    pub(crate) fn give_up(&self, why: &str) {
        if self.health.failure().is_some() {
            return;
        }
        if let Err(error) = rebuild::order(&self.dir, why) {
            tracing::error!(%error, "this node cannot be rebuilt");
        }
        self.health.fail(format!("{why}; {RESTART}"));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is to be done where nobody can tell who is right.
const TIE: &str = "if there is no majority for either, no write is committed: choose the copy to \
     keep, stop the other node, have the one that is kept go on alone by raft/peers.json, and \
     start the other one with an empty data directory";
/// What the operator of a node does that has to be rebuilt.
pub(crate) const RESTART: &str = "start this node again, and it is rebuilt from its peers";

/// Far more than are under way at a time; what is older is not asked for any more.
const KNOWN_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(term: u64, index: u64) -> Position {
        Position {
            term,
            node: 1,
            index,
        }
    }

    #[test]
    fn only_another_hash_after_the_same_entry_is_a_contradiction() {
        let mut known = Known::default();
        known.note(at(1, 5), DatabaseHash(7));
        assert_eq!(known.contradicts(at(1, 5), DatabaseHash(7)), None);
        let found = known.contradicts(at(1, 5), DatabaseHash(8));
        assert_eq!(found, Some(DatabaseHash(7)));
        // Of another leader's entry, and of those around it, nothing is known.
        for base in [at(2, 5), at(1, 4), at(1, 6)] {
            assert_eq!(known.contradicts(base, DatabaseHash(8)), None);
        }
        known.note(at(2, 5), DatabaseHash(9));
        assert_eq!(known.contradicts(at(1, 5), DatabaseHash(8)), None);
        assert_eq!(known.contradicts(at(2, 5), DatabaseHash(9)), None);
    }

    #[test]
    fn what_is_known_does_not_grow_without_bound() {
        let mut known = Known::default();
        for index in 0..3 * KNOWN_MAX as u64 {
            known.note(at(1, index), DatabaseHash(u128::from(index)));
            assert!(known.0.len() <= KNOWN_MAX);
        }
        let last = at(1, 3 * KNOWN_MAX as u64 - 1);
        assert!(known.contradicts(last, DatabaseHash(0)).is_some());
    }
}
