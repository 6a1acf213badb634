//! Recovery of the log from damaged segments: it refuses, or gives a state that the log once had;
//! and doing it again gives the same.
//!
//! An input damages one of a few logs that were really written; or is a segment by itself; or says
//! what records there are, whose checksums are then right though they make no sense.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use openraft::EntryPayload;
use openraft::storage::{IOFlushed, RaftLogReader as _, RaftLogStorage as _};
use openraft::type_config::TypeConfigExt as _;
use tokio::runtime::{Builder, Runtime};
use wal_tests::files::FaultyFiles;
use wallaby::raft::codec;
use wallaby::raft::log::{Files as _, Log, LogError, LogIdentity, LogOptions};
use wallaby::raft::{Entry, LeaderId, LogId, Payload, TypeConfig, Vote, position_of};
use wallaby::wal::ClusterId;

use crate::memory::{Bound, bounded};
use crate::script::Script;
use crate::{Reached, Sample};

const IDENTITY: LogIdentity = LogIdentity {
    cluster: ClusterId(0xc1),
    node: 7,
};

/// Segments so small that a short log has several.
const SMALL: LogOptions = LogOptions {
    segment_bytes: 1536,
    batch_bytes_max: 1024,
    cache_bytes_max: 300,
};

/// Segments are read whole, and what is not durable for certain is written again, which the disk
/// in memory keeps three times until it is synced. An entry takes a place in the table.
const BOUND: Bound = Bound {
    per_byte: 8,
    constant: 128 << 10,
};

/// What a log says that it holds.
#[derive(Clone, Debug, PartialEq)]
struct State {
    /// `None` if one of them makes no sense, which only reading it shows.
    entries: Option<Vec<Entry>>,
    vote: Option<Vote>,
    purged: Option<u64>,
    committed: Option<u64>,
}

/// A log that was written, and each state that it was in.
struct Written {
    files: BTreeMap<String, Vec<u8>>,
    states: Vec<State>,
    /// The last segment, and where its last batch begins.
    last_batch: (String, usize),
}

/// See the module.
///
/// # Panics
/// If recovery invents something, loses something durable, or changes its mind.
pub fn log(data: &[u8]) -> Reached {
    let mut script = Script::new(data);
    let choice = usize::from(script.byte()) % (written().len() + 2);
    let Some(written) = written().get(choice) else {
        let segment = if choice == written().len() {
            script.rest().to_vec()
        } else {
            records(&mut script)
        };
        let files = BTreeMap::from([(FIRST.to_owned(), segment)]);
        return Reached::accepted(recover(&files).is_ok());
    };
    let mut files = written.files.clone();
    let is_early = damage(&mut script, &mut files, &written.last_batch);
    let Ok(state) = recover(&files) else {
        return Reached::Refused;
    };
    assert!(state.entries.is_some(), "an entry that cannot be read");
    let found = written.states.iter().rposition(|known| *known == state);
    let found = found.unwrap_or_else(|| panic!("a state that the log never had: {state:?}"));
    // A batch says what was durable before it. If the last one is whole, all before it was.
    let is_last = found + 1 == written.states.len();
    assert!(
        is_last || !is_early,
        "what was durable is lost without a word"
    );
    Reached::Accepted
}

/// Recovers twice.
fn recover(files: &BTreeMap<String, Vec<u8>>) -> Result<State, LogError> {
    let disk = FaultyFiles::new();
    for (name, bytes) in files {
        let file = disk.create(name).expect("a disk that works");
        file.write_all_at(bytes, 0).expect("a disk that works");
        file.sync_data().expect("a disk that works");
    }
    disk.sync_dir().expect("a disk that works");
    let total = files.values().map(Vec::len).sum::<usize>() + SEGMENT_BYTES;
    let open = || Log::open(Arc::new(disk.clone()), IDENTITY, SMALL);
    let log = bounded(BOUND, total, open)?;
    let state = state(&log, &runtime());
    log.close();
    drop(log);
    let again = open().expect("what was recovered can be recovered again");
    assert_eq!(self::state(&again, &runtime()), state, "recovered again");
    again.close();
    Ok(state)
}

fn state(log: &Log, runtime: &Runtime) -> State {
    let entries = log.read_blocking(0, u64::MAX, usize::MAX);
    let mut reader = log.clone();
    State {
        entries: entries.ok(),
        vote: runtime.block_on(reader.read_vote()).expect("an open log"),
        purged: log.purged().map(|purged| purged.index),
        committed: log.committed().map(|committed| committed.index),
    }
}

/// Whether all of the damage lies before the last batch.
fn damage(
    script: &mut Script<'_>,
    files: &mut BTreeMap<String, Vec<u8>>,
    last_batch: &(String, usize),
) -> bool {
    let mut is_early = true;
    for _ in 0..DAMAGES_MAX {
        if script.is_empty() {
            break;
        }
        let at = script.below(files.len());
        let (name, bytes) = files.iter_mut().nth(at).expect("below their number");
        let kind = script.byte();
        let offset = usize::from(script.short()) % bytes.len().max(1);
        let mut end = bytes.len();
        match kind % 8 {
            0 => bytes.truncate(offset),
            1 | 2 => {
                end = bytes.len().min(offset + 8 * usize::from(script.byte()));
                bytes[offset..end].fill(0);
            }
            3 => {
                // An older piece of the same file where a newer one should be.
                let from = usize::from(script.short()) % bytes.len().max(1);
                let piece = bytes[from..].to_vec();
                let length = piece.len().min(bytes.len() - offset).min(64);
                bytes[offset..offset + length].copy_from_slice(&piece[..length]);
                end = offset + length;
            }
            _ => {
                if let Some(byte) = bytes.get_mut(offset) {
                    *byte ^= script.byte();
                    end = offset + 1;
                }
            }
        }
        let is_other = *name != last_batch.0;
        is_early &= is_other || end <= last_batch.1;
    }
    is_early
}

/// A segment of batches whose checksums are right, of any records.
fn records(script: &mut Script<'_>) -> Vec<u8> {
    let mut segment = written()[0].files[FIRST][..HEADER_BYTES].to_vec();
    let mut chain = [0; 4];
    chain.copy_from_slice(&segment[HEADER_BYTES - 4..]);
    for _ in 0..BATCHES_MAX {
        if script.is_empty() {
            break;
        }
        let (mut bytes, mut count) = (Vec::new(), 0_u32);
        for _ in 0..=script.byte() % 3 {
            let (kind, body) = record(script);
            let mut head = [0; 16];
            let length = u32::try_from(body.len()).expect("short");
            head[..4].copy_from_slice(&length.to_le_bytes());
            head[8] = kind;
            let number = 1_u64.to_le_bytes();
            chain = checksum(&[&chain, &number, &head[..4], &head[8..], &body]);
            head[4..8].copy_from_slice(&chain);
            bytes.extend_from_slice(&head);
            bytes.extend_from_slice(&body);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            count += 1;
        }
        let place = (segment.len() as u64).to_le_bytes();
        let mut head = [0; 32];
        head[..4].copy_from_slice(BATCH_MAGIC);
        let length = u32::try_from(bytes.len()).expect("short");
        head[4..8].copy_from_slice(&length.to_le_bytes());
        head[8..12].copy_from_slice(&count.to_le_bytes());
        head[16] = 1;
        head[24..].copy_from_slice(&place);
        let (cluster, node) = (
            IDENTITY.cluster.0.to_le_bytes(),
            IDENTITY.node.to_le_bytes(),
        );
        let number = 1_u64.to_le_bytes();
        let sealed = [&head[..12], &head[16..], &number, &place, &cluster, &node];
        let sealed = checksum(&sealed);
        head[12..16].copy_from_slice(&sealed);
        segment.extend_from_slice(&head);
        segment.extend_from_slice(&bytes);
    }
    segment
}

/// The kind and the body of a record, mostly of the length that goes with the kind.
fn record(script: &mut Script<'_>) -> (u8, Vec<u8>) {
    let kind = script.byte() % 7;
    let mut id = |is_small: bool| {
        let index = if is_small {
            script.byte().into()
        } else {
            script.long()
        };
        let mut out = Vec::new();
        let log_id = LogId {
            leader_id: leader(1),
            index,
        };
        codec::encode_log_id(&log_id, &mut out);
        out
    };
    let body = match kind {
        1 => {
            let mut entry = id(true);
            let choice = script.byte();
            let payload = script.bytes(usize::from(choice % 16));
            // Of any kind, and now and then with another length than it has.
            let length = payload.len().wrapping_add(usize::from(choice / 240));
            entry.extend_from_slice(&[choice / 16 % 4, 0, 0, 0]);
            let length = u32::try_from(length).expect("short");
            entry.extend_from_slice(&length.to_le_bytes());
            entry.extend_from_slice(payload);
            entry
        }
        // A vote: term, node, and whether a quorum has granted it.
        2 => [vec![3; 16], vec![script.byte() % 3, 0, 0, 0, 0, 0, 0, 0]].concat(),
        3 => [vec![1, 0, 0, 0, 0, 0, 0, 0], id(true)].concat(),
        4 | 5 => id(true),
        6 => id(false),
        _ => script.bytes(24).to_vec(),
    };
    let kind = if kind == 6 {
        3 + script.byte() % 3
    } else {
        kind
    };
    (kind, body)
}

fn checksum(parts: &[&[u8]]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().to_le_bytes()
}

/// The logs that are damaged, written once.
fn written() -> &'static [Written] {
    static WRITTEN: OnceLock<Vec<Written>> = OnceLock::new();
    WRITTEN.get_or_init(|| {
        vec![
            write(&[Step::Append(1, 30)]),
            write(&[
                Step::Vote(1),
                Step::Append(1, 100),
                Step::Append(1, 10),
                Step::Committed(0),
                Step::Append(2, 0),
            ]),
            write(&[
                Step::Vote(1),
                Step::Append(1, 300),
                Step::Append(1, 300),
                Step::Append(1, 300),
                Step::TruncateAfter(0),
                Step::Vote(2),
                Step::Append(2, 500),
                Step::Committed(1),
                Step::Append(2, 400),
                Step::Append(2, 20),
            ]),
            write(&[
                Step::Append(1, 500),
                Step::Append(1, 500),
                Step::Append(1, 500),
                Step::Append(1, 500),
                Step::Committed(3),
                Step::Purge(2),
                Step::Append(1, 500),
                Step::Append(1, 1),
            ]),
        ]
    })
}

/// A call, as Raft makes it.
enum Step {
    /// The next entry: term and bytes.
    Append(u64, usize),
    Committed(u64),
    Purge(u64),
    TruncateAfter(u64),
    Vote(u64),
}

/// Makes the calls, each durable before the next.
fn write(steps: &[Step]) -> Written {
    let disk = FaultyFiles::new();
    let runtime = runtime();
    let mut log = Log::open(Arc::new(disk.clone()), IDENTITY, SMALL).expect("an empty disk");
    let mut states = vec![state(&log, &runtime)];
    let mut ids: BTreeMap<u64, LogId> = BTreeMap::new();
    let append = |log: &mut Log, entries: Vec<Entry>| {
        let (flushed, wait) = TypeConfig::oneshot();
        let queued = log.append(entries, IOFlushed::signal(flushed));
        runtime.block_on(queued).expect("a disk that works");
        let flushed = runtime.block_on(wait).expect("the writer lives");
        flushed.expect("a disk that works");
    };
    for step in steps {
        match step {
            Step::Append(term, bytes) => {
                let index = ids.last_key_value().map_or(0, |(last, _)| last + 1);
                let entry = entry(*term, index, *bytes);
                ids.insert(index, entry.log_id);
                append(&mut log, vec![entry]);
            }
            Step::Vote(term) => {
                let vote = Vote {
                    leader_id: leader(*term),
                    committed: false,
                };
                let saved = runtime.block_on(log.save_vote(&vote));
                saved.expect("a disk that works");
            }
            Step::TruncateAfter(kept) => {
                ids.split_off(&(kept + 1));
                let cut = log.truncate_after(Some(ids[kept]));
                runtime.block_on(cut).expect("a disk that works");
                append(&mut log, Vec::new());
            }
            Step::Purge(upto) => {
                let purge = log.purge(ids[upto]);
                runtime.block_on(purge).expect("a disk that works");
                append(&mut log, Vec::new());
            }
            Step::Committed(upto) => {
                let kept = log.persist_committed_blocking(position_of(&ids[upto]));
                kept.expect("a disk that works");
            }
        }
        states.push(state(&log, &runtime));
    }
    let files = disk.image();
    let files: BTreeMap<_, _> = files
        .into_iter()
        .filter(|(name, _)| name.ends_with(SUFFIX))
        .collect();
    let (name, bytes) = files.last_key_value().expect("a log has a segment");
    let mut places = (0..bytes.len()).step_by(8).rev();
    let last = places.find(|at| bytes[*at..].starts_with(BATCH_MAGIC));
    let last_batch = (name.clone(), last.unwrap_or(0));
    Written {
        files,
        states,
        last_batch,
    }
}

fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let fill = u8::try_from(index * 7 + term).expect("short logs");
    Entry {
        log_id: LogId {
            leader_id: leader(term),
            index,
        },
        payload: EntryPayload::Normal(Payload(vec![fill; bytes].into())),
    }
}

const fn leader(term: u64) -> LeaderId {
    LeaderId { term, node_id: 2 }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().build().expect("a runtime")
}

pub(crate) fn samples() -> Vec<Sample> {
    let mut samples = Vec::new();
    for (number, written) in (0_u8..).zip(written()) {
        samples.push(Sample::new(format!("whole-{number}"), vec![number]));
        let (_, last) = &written.last_batch;
        let last = u16::try_from(*last).expect("small segments").to_le_bytes();
        let file = u8::try_from(written.files.len() - 1).expect("few segments");
        let torn = [number, file, 4, last[0] + 1, last[1], 0xff];
        samples.push(Sample::new(format!("torn-{number}"), torn.to_vec()));
        let early = [number, 0, 4, 100, 2, 1];
        samples.push(Sample::new(format!("early-{number}"), early.to_vec()));
        let cut = [number, 0, 0, 88, 2];
        samples.push(Sample::new(format!("cut-{number}"), cut.to_vec()));
    }
    let raw = u8::try_from(written().len()).expect("few");
    let segment = &written()[1].files[FIRST];
    let used = segment.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
    let bytes = [&[raw], &segment[..used]].concat();
    samples.push(Sample::new("segment", bytes));
    // Entries 0 to 2, a vote, what is committed, a purge, a truncation, and one that does not follow.
    let sensible = [
        2, 1, 0, 19, 7, 7, 7, 1, 1, 16, 2, 1, 1, 1, 2, 2, 0, 0, 5, 1, 0, 4, 0, 0, 3, 1,
    ];
    let records = [&[raw + 1], &sensible[..]].concat();
    samples.push(Sample::new("records", records.clone()));
    let senseless = [&records[..], &[0, 1, 9, 0]].concat();
    samples.push(Sample::new("records-with-a-gap", senseless));
    samples
}

/// As in `raft::log::format` and `segment`.
const BATCH_MAGIC: &[u8] = b"\x9cBT\n";
const SUFFIX: &str = ".log";
const FIRST: &str = "0000000000000001-0000000000000000.log";
/// What a log begins if it finds none.
const SEGMENT_BYTES: usize = 1536;
const HEADER_BYTES: usize = 512;
const DAMAGES_MAX: usize = 12;
const BATCHES_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_logs_are_recovered_and_what_was_durable_is_not_cut() {
        for sample in samples() {
            let (kind, number) = sample.name.split_once('-').unwrap_or((&sample.name, ""));
            let Some(written) = number.parse().ok().and_then(|at: usize| written().get(at)) else {
                let expected = Reached::accepted(kind != "records" || number.is_empty());
                assert_eq!(log(&sample.bytes), expected, "{}", sample.name);
                continue;
            };
            // What a file has lost at its end nobody misses, unless another file goes on there.
            let is_missed = match kind {
                "early" => written.last_batch.1 > 700 || written.files.len() > 1,
                "cut" => written.files.len() > 1,
                _ => false,
            };
            let expected = Reached::accepted(!is_missed);
            assert_eq!(log(&sample.bytes), expected, "{}", sample.name);
        }
    }

    #[test]
    fn the_logs_have_several_segments_between_them() {
        assert!(written().iter().any(|written| written.files.len() > 2));
        assert!(written().iter().all(|written| written.last_batch.1 > 0));
    }
}
