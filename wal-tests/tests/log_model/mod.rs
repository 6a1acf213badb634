//! What the log should contain, and a session that drives a real log beside it.

// Each test binary uses its own part of this; the numbers are small.
#![allow(dead_code, clippy::cast_possible_truncation)]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::OneshotReceiverOf;
use openraft::{EntryPayload, RaftLogReader};
use tokio::runtime::{Builder, Runtime};
use wal_tests::files::FaultyFiles;
use wal_tests::seed::Random;
use wallaby::raft::log::{Files, Log, LogError, LogIdentity, LogOptions};
use wallaby::raft::{
    Entry, LeaderId, LogId, Member, Membership, Payload, TypeConfig, Vote, position_of,
};
use wallaby::wal::ClusterId;

pub(crate) const IDENTITY: LogIdentity = LogIdentity {
    cluster: ClusterId(0xc1),
    node: 7,
};

/// Segments so small that a short script fills many, and hardly any cache.
pub(crate) const SMALL: LogOptions = LogOptions {
    segment_bytes: 4096,
    batch_bytes_max: 2048,
    cache_bytes_max: 1000,
};

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId {
        leader_id: LeaderId { term, node_id: 1 },
        index,
    }
}

pub(crate) fn vote(term: u64) -> Vote {
    Vote {
        leader_id: LeaderId { term, node_id: 2 },
        committed: term.is_multiple_of(2),
    }
}

/// An entry whose bytes follow from its place, so that a wrong one is noticed.
pub(crate) fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let byte = |place: usize| (place as u64 * 31 + index * 7 + term) as u8;
    let payload = Payload((0..bytes).map(byte).collect::<Vec<u8>>().into());
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Normal(payload),
    }
}

fn blank(term: u64, index: u64) -> Entry {
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Blank,
    }
}

fn membership(term: u64, index: u64) -> Entry {
    let member = Member {
        name: format!("n{index}"),
        ..Member::default()
    };
    let nodes = BTreeMap::from([(7, member)]);
    let membership = Membership::new(vec![[7].into()], nodes).unwrap();
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Membership(membership),
    }
}

/// One call on the log.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Append(Entry),
    Vote(Vote),
    Truncate(Option<LogId>),
    Purge(LogId),
    Committed(LogId),
}

/// The log as an observer sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Model {
    pub(crate) entries: BTreeMap<u64, Entry>,
    pub(crate) vote: Option<Vote>,
    pub(crate) purged: Option<LogId>,
    pub(crate) committed: Option<LogId>,
}

impl Model {
    pub(crate) fn last(&self) -> Option<LogId> {
        self.entries
            .last_key_value()
            .map(|(_, entry)| entry.log_id)
            .or(self.purged)
    }

    pub(crate) fn next_index(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }

    pub(crate) fn apply(&mut self, op: &Op) {
        match op {
            Op::Append(entry) => {
                self.entries.insert(entry.log_id.index, entry.clone());
            }
            Op::Vote(vote) => self.vote = Some(*vote),
            Op::Truncate(kept) => {
                self.entries
                    .retain(|index, _| kept.is_some_and(|kept| *index <= kept.index));
            }
            Op::Purge(upto) => {
                self.entries.retain(|index, _| *index > upto.index);
                self.purged = Some(*upto);
            }
            Op::Committed(upto) => self.committed = Some(*upto),
        }
    }

    fn log_id(&self, index: u64) -> LogId {
        self.entries[&index].log_id
    }
}

/// A sequence of calls as Raft would make them, drawn from a seed.
pub(crate) fn script(random: &mut Random, length: usize, entry_bytes_max: usize) -> Vec<Op> {
    let mut model = Model::default();
    let mut term = 1;
    let mut ops = Vec::new();
    while ops.len() < length {
        let next = model.next_index();
        let committed = model.committed.map_or(0, |committed| committed.index);
        let purged = model.purged.map_or(0, |purged| purged.index);
        let uncommitted = next.saturating_sub(committed + 1) as usize;
        let op = match random.below(20) {
            0 => Op::Append(blank(term, next)),
            1 => Op::Append(membership(term, next)),
            2 => Op::Append(entry(term, next, entry_bytes_max)),
            3 | 4 => {
                term += 1;
                Op::Vote(vote(term))
            }
            5 | 6 if uncommitted > 1 => {
                term += 1;
                let kept = committed + random.below(uncommitted) as u64;
                let known = model.entries.contains_key(&kept);
                let kept = if known {
                    Some(model.log_id(kept))
                } else {
                    model.purged
                };
                Op::Truncate(kept)
            }
            7 | 8 if committed > purged => {
                let upto = purged + 1 + random.below((committed - purged) as usize) as u64;
                Op::Purge(model.log_id(upto))
            }
            9..=11 if uncommitted > 0 => {
                let upto = committed + 1 + random.below(uncommitted) as u64;
                Op::Committed(model.log_id(upto))
            }
            12 if random.below(4) == 0 => {
                // A snapshot from the leader: the log restarts behind it.
                term += 1;
                let upto = log_id(term, next + 5);
                ops.push(Op::Purge(upto));
                model.apply(&Op::Purge(upto));
                Op::Committed(upto)
            }
            _ => Op::Append(entry(term, next, random.below(900))),
        };
        model.apply(&op);
        ops.push(op);
    }
    ops
}

/// `models[j]` = the log after the first `j` calls.
pub(crate) fn models(ops: &[Op]) -> Vec<Model> {
    let mut models = vec![Model::default()];
    for op in ops {
        let mut next = models[models.len() - 1].clone();
        next.apply(op);
        models.push(next);
    }
    models
}

type Ack = OneshotReceiverOf<TypeConfig, Result<(), io::Error>>;

/// A log, and how far its acknowledgements have come.
pub(crate) struct Session {
    pub(crate) log: Log,
    runtime: Runtime,
    /// Calls made.
    pub(crate) submitted: usize,
    /// Calls that are acknowledged, and all before them.
    pub(crate) acked: usize,
    waiting: Vec<(usize, Ack)>,
}

impl Session {
    pub(crate) fn open(files: &FaultyFiles, options: LogOptions) -> Result<Self, LogError> {
        Self::on(Arc::new(files.clone()), options)
    }

    pub(crate) fn on(files: Arc<dyn Files>, options: LogOptions) -> Result<Self, LogError> {
        let log = Log::open(files, IDENTITY, options)?;
        let runtime = Builder::new_current_thread().build().unwrap();
        Ok(Self {
            log,
            runtime,
            submitted: 0,
            acked: 0,
            waiting: Vec::new(),
        })
    }

    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Makes a call; does not wait unless the call does.
    pub(crate) fn submit(&mut self, op: &Op) -> io::Result<()> {
        self.submitted += 1;
        let mut log = self.log.clone();
        match op {
            Op::Append(entry) => self.append(vec![entry.clone()])?,
            Op::Vote(vote) => {
                self.runtime.block_on(log.save_vote(vote))?;
                self.acked = self.submitted;
            }
            Op::Truncate(kept) => {
                let end = |log: &Log| log.last().map_or(0, |last| last.index);
                let (last, cut_off) = (end(&log), log.cut_off());
                self.runtime.block_on(log.truncate_after(*kept))?;
                assert_eq!(log.cut_off() - cut_off, last - end(&log), "entries cut off");
                self.append(Vec::new())?;
            }
            Op::Purge(upto) => {
                self.runtime.block_on(log.purge(*upto))?;
                self.append(Vec::new())?;
            }
            Op::Committed(upto) => {
                let upto = position_of(upto);
                log.persist_committed_blocking(upto)
                    .map_err(io::Error::other)?;
                self.acked = self.submitted;
            }
        }
        Ok(())
    }

    /// Appends entries; without entries, a barrier for what was submitted before.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) -> io::Result<()> {
        let (sender, receiver) = TypeConfig::oneshot();
        let mut log = self.log.clone();
        self.runtime
            .block_on(log.append(entries, IOFlushed::signal(sender)))?;
        self.waiting.push((self.submitted, receiver));
        Ok(())
    }

    /// Waits for every acknowledgement that is still due. The first refusal ends it.
    pub(crate) fn wait(&mut self) -> io::Result<()> {
        for (submitted, ack) in std::mem::take(&mut self.waiting) {
            self.runtime.block_on(ack).map_err(io::Error::other)??;
            self.acked = self.acked.max(submitted);
        }
        Ok(())
    }

    /// Submits and waits.
    pub(crate) fn perform(&mut self, op: &Op) -> io::Result<()> {
        self.submit(op)?;
        self.wait()
    }

    /// What the log says it contains.
    pub(crate) fn observe(&self) -> Model {
        let mut log = self.log.clone();
        self.runtime.block_on(async {
            let entries = log.try_get_log_entries(..).await.unwrap();
            let state = log.get_log_state().await.unwrap();
            let model = Model {
                entries: entries
                    .into_iter()
                    .map(|entry| (entry.log_id.index, entry))
                    .collect(),
                vote: log.read_vote().await.unwrap(),
                purged: state.last_purged_log_id,
                committed: log.read_committed().await.unwrap(),
            };
            assert_eq!(
                state.last_log_id,
                model.last(),
                "get_log_state and the entries disagree"
            );
            model
        })
    }
}
