//! Redo: the entries of the log after the record, one after the other.

use openraft::EntryPayload;

use super::error::{Error, REBUILD};
use super::fence::Verdict;
use super::frontier::State;
use super::options::NodeOptions;
use super::parts::{StagedParts, all_pages, first_hash};
use crate::raft::log::Log;
use crate::raft::{StoredMembership, position_of};
use crate::sqlite::{Change, Redo};
use crate::wal::{Delta, Position};

/// A walk over the entries after the record.
pub(super) struct Replay {
    /// The state of the log that is reached.
    pub(super) state: State,
    pub(super) parts: Option<StagedParts>,
    /// The index of the last entry that the main file has already.
    pub(super) covered: u64,
}

impl Replay {
    /// Redoes every entry after the record, up to the durable `committed`.
    pub(super) fn run(
        &mut self,
        log: &Log,
        redo: &mut Redo,
        options: &NodeOptions,
    ) -> Result<(), Error> {
        // What was published is committed, whether or not that was noted before the end.
        let committed = log.committed().map_or(0, |committed| committed.index);
        let upto = committed.max(self.covered);
        let applied = self.state.fence.last_applied;
        let mut next = applied.map_or(0, |applied| applied.index + 1);
        let mut redone = 0_u64;
        while next <= upto {
            let entries = log.read_blocking(next, upto, READ_BYTES)?;
            if entries.first().map(|entry| entry.log_id.index) != Some(next) {
                return Err(Error::Corrupt {
                    what: format!("entry {next} is committed, but not in the log"),
                    file: options.data_dir.join("log"),
                    advice: REBUILD,
                });
            }
            for entry in entries {
                next = entry.log_id.index + 1;
                redone += 1;
                let position = position_of(&entry.log_id);
                match entry.payload {
                    EntryPayload::Membership(membership) => {
                        let stored = StoredMembership::new(Some(entry.log_id), membership);
                        self.state.change(|state| {
                            state.fence.pass(position);
                            state.membership = stored;
                        });
                    }
                    EntryPayload::Normal(payload) if !payload.0.is_empty() => {
                        let delta = Delta::decode(payload.0).map_err(|error| Error::Corrupt {
                            what: format!("entry {position}: {error}"),
                            file: options.data_dir.join("log"),
                            advice: REBUILD,
                        })?;
                        self.redo(delta, position, redo, options)?;
                    }
                    EntryPayload::Blank | EntryPayload::Normal(_) => {
                        self.state.change(|state| state.fence.pass(position));
                    }
                }
            }
        }
        if redone > 0 {
            tracing::info!(entries = redone, upto, "redone from the log");
        }
        Ok(())
    }

    fn redo(
        &mut self,
        delta: Delta,
        position: Position,
        redo: &mut Redo,
        options: &NodeOptions,
    ) -> Result<(), Error> {
        let spooling = Error::io("spool the parts of a transaction");
        let verdict = self
            .state
            .change(|state| state.fence.judge(delta.header(), position));
        match verdict {
            Verdict::Reject => self.parts = None,
            Verdict::Stage => {
                if delta.header().part.is_first() {
                    let dir = options.data_dir.clone();
                    self.parts = Some(StagedParts::new(dir, options.spool_bytes_max));
                }
                let parts = self.parts.as_mut().expect("the fence stages part 1 first");
                parts.push(delta).map_err(spooling)?;
            }
            Verdict::Accept if position.index <= self.covered => self.parts = None,
            Verdict::Accept => {
                let earlier = self
                    .parts
                    .take()
                    .filter(|_| !delta.header().part.is_first());
                let hash_before = first_hash(earlier.as_ref(), &delta)?;
                // Patches would make anything out of the pages of another state.
                redo.expect(hash_before)?;
                let old = |page, image: &mut [u8]| redo.read_sound(page, image);
                let mut pages = all_pages(earlier.as_ref(), &delta, old)?;
                redo.apply(Change {
                    page_count: delta.header().page_count,
                    hash_before,
                    hash_after: delta.header().hash_after,
                    pages: &mut pages,
                })?;
            }
        }
        Ok(())
    }
}

/// Entries are read in runs of this size.
pub(super) const READ_BYTES: usize = 8 << 20;
