//! The log as a node uses it: restarts, a seeded model, and damage done to files at rest. Power cuts and failing disks are in `log_crash.rs`.

// A test that cannot unwrap, or count in bytes, says less.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod log_model;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use futures_util::TryStreamExt;
use log_model::{IDENTITY, Model, Op, SMALL, Session, entry, log_id, script, vote};
use openraft::RaftLogReader;
use openraft::storage::RaftLogStorage;
use tempfile::TempDir;
use wal_tests::files::{FaultyFiles, Keep};
use wal_tests::seed::{Random, seed};
use wallaby::raft::log::{Files as _, Log, LogError, LogIdentity, LogOptions, RealFiles};
use wallaby::raft::{LogId, position_of};
use wallaby::wal::ClusterId;

const TEST: &str = "log";

#[test]
fn a_closed_log_is_found_as_it_was_left_on_a_real_disk() {
    let directory = TempDir::new().unwrap();
    let open = || {
        let files = Arc::new(RealFiles::open(directory.path()).unwrap());
        Session::on(files, LogOptions::default()).unwrap()
    };
    let mut model = Model::default();
    let ops = [
        Op::Vote(vote(3)),
        Op::Append(entry(3, 0, 10)),
        Op::Append(entry(3, 1, 5000)),
        Op::Append(entry(3, 2, 0)),
        Op::Truncate(Some(log_id(3, 1))),
        Op::Append(entry(4, 2, 77)),
        Op::Committed(log_id(3, 1)),
        Op::Purge(log_id(3, 0)),
    ];
    for op in ops {
        let mut session = open();
        assert_eq!(session.observe(), model, "before {op:?}");
        session.perform(&op).unwrap();
        model.apply(&op);
        assert_eq!(session.observe(), model, "after {op:?}");
        session.log.close();
    }
    let session = open();
    assert_eq!(session.observe(), model);
    assert_eq!(session.log.committed(), Some(position_of(&log_id(3, 1))));
    assert_eq!(session.log.last(), Some(position_of(&log_id(4, 2))));
    assert_eq!(session.log.purged(), Some(position_of(&log_id(3, 0))));
    assert!(session.log.bytes() > 0);
}

#[test]
fn a_log_in_use_is_not_opened_twice() {
    let directory = TempDir::new().unwrap();
    let first = RealFiles::open(directory.path()).unwrap();
    let second = RealFiles::open(directory.path())
        .err()
        .map(|error| error.kind());
    assert_eq!(second, Some(io::ErrorKind::WouldBlock));
    drop(first);
    RealFiles::open(directory.path()).unwrap();
}

#[test]
fn a_log_does_what_the_model_does_whatever_the_order_of_calls() {
    let seed = seed(TEST);
    let mut random = Random::new(seed);
    for round in 0..8 {
        let options = LogOptions {
            cache_bytes_max: 500 * random.below(5),
            ..SMALL
        };
        let (files, mut model) = (FaultyFiles::new(), Model::default());
        let mut files = files;
        let mut session = Session::open(&files, options).unwrap();
        for (place, op) in script(&mut random, 150, 6000).iter().enumerate() {
            session.submit(op).unwrap();
            model.apply(op);
            let story = format!("round {round}, call {place}");
            match random.below(8) {
                0 => session.wait().unwrap(),
                1 => check_reads(&session, &model, &mut random, &story),
                2 => {
                    session.wait().unwrap();
                    if random.below(2) == 0 {
                        session.log.close();
                    }
                    files = files.restart(Keep::Nothing, 0);
                    session = Session::open(&files, options).unwrap();
                }
                _ => {}
            }
            assert_eq!(session.observe(), model, "{story}: {op:?}");
        }
    }
}

/// Ranges, limits, streams and key ids against the model.
fn check_reads(session: &Session, model: &Model, random: &mut Random, story: &str) {
    let end = model.next_index() + 2;
    let from = random.below(usize::try_from(end).unwrap()) as u64;
    let to = from + random.below(12) as u64;
    let expected: Vec<_> = model
        .entries
        .range(from..to)
        .map(|(_, entry)| entry.clone())
        .collect();
    let mut log = session.log.clone();
    session.block_on(async {
        assert_eq!(
            log.try_get_log_entries(from..to).await.unwrap(),
            expected,
            "{story}"
        );
        let limited = log.limited_get_log_entries(from, to).await.unwrap();
        assert_eq!(limited, expected, "{story}: nothing here reaches the limit");
        let stream = log.entries_stream(from..to).await;
        let streamed: Vec<_> = stream.try_collect().await.unwrap();
        assert_eq!(streamed, expected, "{story}");
        if let (Some(first), Some(last)) = (expected.first(), expected.last()) {
            let keys = log
                .get_key_log_ids(first.log_id..=last.log_id)
                .await
                .unwrap();
            let ids: Vec<LogId> = expected.iter().map(|entry| entry.log_id).collect();
            let lasts = ids.chunk_by(|a, b| a.leader_id == b.leader_id);
            let lasts: Vec<LogId> = lasts.map(|run| run[run.len() - 1]).collect();
            assert_eq!(keys, lasts, "{story}: the last entry of each leader");
        }
    });
    let one = session.log.read_blocking(from, to, 0).unwrap();
    let nearest = model
        .entries
        .range(from..=to)
        .next()
        .map(|(_, entry)| entry.clone());
    let first = model
        .entries
        .keys()
        .next()
        .is_some_and(|first| from >= *first);
    if first {
        assert_eq!(
            one,
            Vec::from_iter(nearest),
            "{story}: a limit of nothing still gives one"
        );
    }
}

#[test]
fn a_purge_deletes_segments_and_forgets_neither_vote_nor_committed() {
    let mut files = FaultyFiles::new();
    let mut session = Session::open(&files, SMALL).unwrap();
    session.perform(&Op::Vote(vote(8))).unwrap();
    for index in 0..60 {
        session.perform(&Op::Append(entry(8, index, 800))).unwrap();
    }
    session.perform(&Op::Committed(log_id(8, 58))).unwrap();
    let before = (session.log.bytes(), files.image().len());
    session.perform(&Op::Purge(log_id(8, 57))).unwrap();
    // The purge is acknowledged before the files go: the next call comes after that.
    session.perform(&Op::Append(entry(8, 60, 800))).unwrap();
    session.perform(&Op::Append(entry(8, 61, 800))).unwrap();
    assert!(
        session.log.bytes() < before.0 / 4,
        "{} of {}",
        session.log.bytes(),
        before.0
    );
    assert!(files.image().len() < before.1 / 4);
    let model = session.observe();
    assert_eq!(model.vote, Some(vote(8)));
    assert_eq!(model.committed, Some(log_id(8, 58)));
    assert_eq!(
        model.entries.keys().copied().collect::<Vec<_>>(),
        [58, 59, 60, 61]
    );
    files = files.restart(Keep::Nothing, 0);
    assert_eq!(Session::open(&files, SMALL).unwrap().observe(), model);
}

#[test]
fn a_log_of_another_cluster_or_node_is_refused_and_the_error_says_whose_it_is() {
    let files = FaultyFiles::new();
    Session::open(&files, SMALL).unwrap().log.close();
    for other in [
        LogIdentity {
            cluster: ClusterId(0xc2),
            ..IDENTITY
        },
        LogIdentity {
            node: 8,
            ..IDENTITY
        },
    ] {
        let error = Log::open(Arc::new(files.clone()), other, SMALL)
            .err()
            .unwrap();
        assert!(
            matches!(error, LogError::Foreign { found, .. } if found == IDENTITY),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .contains("node 7 of cluster 000000000000000000000000000000c1")
        );
    }
}

/// A closed log of several segments, and what it contains.
fn closed_log(random: &mut Random) -> (FaultyFiles, Model) {
    let files = FaultyFiles::new();
    let mut session = Session::open(&files, SMALL).unwrap();
    for op in script(random, 40, 5000) {
        session.perform(&op).unwrap();
    }
    let model = session.observe();
    session.log.close();
    (files, model)
}

#[test]
fn a_flipped_bit_anywhere_in_a_closed_log_is_refused_or_harmless() {
    let mut random = Random::new(seed(TEST));
    let (mut refused, mut harmless) = (0, 0);
    // Some logs have hardly a byte that is blank.
    while refused <= 30 || harmless <= 10 {
        flip_bits(&mut random, &mut refused, &mut harmless);
    }
}

fn flip_bits(random: &mut Random, refused: &mut u32, harmless: &mut u32) {
    let (files, model) = closed_log(random);
    for (name, bytes) in files.image() {
        for _ in 0..120 {
            let bit = random.below(bytes.len() * 8);
            let damaged = files.restart(Keep::Process, 0);
            damaged.damage(&name, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
            let story = format!("bit {bit} of {name}");
            match Session::open(&damaged, SMALL) {
                Ok(session) => {
                    *harmless += 1;
                    assert_eq!(session.observe(), model, "{story}: lost in silence");
                }
                Err(LogError::Corrupt { file, offset, .. }) => {
                    *refused += 1;
                    assert!(
                        file.ends_with(&name),
                        "{story}: the error names {}",
                        file.display()
                    );
                    assert!(
                        offset <= bit as u64 / 8,
                        "{story}: the error names offset {offset}"
                    );
                }
                // The version stands for itself, before the checksum.
                Err(LogError::Unsupported { file, .. }) => {
                    assert!(file.ends_with(&name) && (64..96).contains(&bit), "{story}");
                }
                Err(error) => panic!("{story}: {error}"),
            }
        }
    }
}

#[test]
fn a_damaged_interior_is_refused_with_the_way_out() {
    let files = FaultyFiles::new();
    let mut session = Session::open(&files, LogOptions::default()).unwrap();
    for index in 0..3 {
        session.perform(&Op::Append(entry(1, index, 100))).unwrap();
    }
    let files = files.restart(Keep::Nothing, 0);
    let name = files.image().into_keys().next().unwrap();
    // The second batch: the header of the segment is 512 bytes, the first batch 32 + 16 + 136.
    files.damage(&name, |bytes| bytes[512 + 184 + 60] ^= 1);
    let error = Session::open(&files, LogOptions::default()).err().unwrap();
    assert!(
        matches!(error, LogError::Corrupt { offset: 696, .. }),
        "{error}"
    );
    let text = error.to_string();
    for part in [
        name.as_str(),
        "offset 696",
        "-join",
        "move the data directory away",
    ] {
        assert!(text.contains(part), "{part:?} is missing: {text}");
    }
}

#[test]
fn a_torn_tail_is_cut_and_the_log_goes_on_behind_what_was_whole() {
    let files = FaultyFiles::new();
    let mut session = Session::open(&files, LogOptions::default()).unwrap();
    for index in 0..3 {
        session.perform(&Op::Append(entry(1, index, 100))).unwrap();
    }
    let files = files.restart(Keep::Nothing, 0);
    let name = files.image().into_keys().next().unwrap();
    files.damage(&name, |bytes| bytes[512 + 2 * 184 + 60] ^= 1);
    let mut session = Session::open(&files, LogOptions::default()).unwrap();
    assert_eq!(session.observe().entries.len(), 2);
    session.perform(&Op::Append(entry(2, 2, 100))).unwrap();
    let files = files.restart(Keep::Nothing, 0);
    let model = Session::open(&files, LogOptions::default())
        .unwrap()
        .observe();
    assert_eq!(model.last(), Some(log_id(2, 2)));
}

#[test]
fn a_missing_segment_is_refused_unless_nothing_in_it_was_needed() {
    let mut random = Random::new(seed(TEST));
    for _ in 0..5 {
        let (files, model) = closed_log(&mut random);
        let names: Vec<String> = files.image().into_keys().collect();
        // The last one cannot be missed: nothing comes after it.
        for (place, name) in names[..names.len() - 1].iter().enumerate() {
            let damaged = files.restart(Keep::Process, 0);
            damaged.lose(name);
            match Session::open(&damaged, SMALL) {
                Err(error) => assert!(matches!(error, LogError::Corrupt { .. }), "{name}: {error}"),
                // The oldest one may hold nothing but what was truncated or purged since.
                Ok(session) => assert!(place == 0 && session.observe() == model, "{name}"),
            }
        }
    }
}

#[test]
fn the_oldest_segment_is_missed_when_its_entries_were_not_purged() {
    let files = FaultyFiles::new();
    let mut session = Session::open(&files, SMALL).unwrap();
    for index in 0..30 {
        session.perform(&Op::Append(entry(1, index, 500))).unwrap();
    }
    session.log.close();
    let name = files.image().into_keys().next().unwrap();
    files.lose(&name);
    let error = Session::open(&files.restart(Keep::Process, 0), SMALL)
        .err()
        .unwrap();
    assert!(
        matches!(error, LogError::Corrupt { offset: 0, .. }),
        "{error}"
    );
}

#[test]
fn a_segment_under_a_wrong_name_is_refused() {
    let mut random = Random::new(seed(TEST));
    let (files, _) = closed_log(&mut random);
    let names: Vec<String> = files.image().into_keys().collect();
    let last = names.last().unwrap();
    // Its number is right; the index at which it begins is not.
    let other = last
        .replace(".log", "")
        .split('-')
        .next()
        .unwrap()
        .to_owned();
    let other = format!("{other}-00000000deadbeef.log");
    files.rename(last, &other).unwrap();
    let error = Session::open(&files, SMALL).err().unwrap();
    assert!(
        matches!(error, LogError::Corrupt { offset: 40, .. }),
        "{error}"
    );
}

#[test]
fn a_newer_version_is_refused_by_name() {
    let files = FaultyFiles::new();
    Session::open(&files, SMALL).unwrap().log.close();
    let name = files.image().into_keys().next().unwrap();
    files.damage(&name, |bytes| bytes[8] = 2);
    let error = Session::open(&files, SMALL).err().unwrap();
    assert!(
        matches!(error, LogError::Unsupported { version: 2, .. }),
        "{error}"
    );
}

#[test]
fn an_entry_larger_than_a_segment_gets_one_of_its_own_size() {
    let files = FaultyFiles::new();
    let mut session = Session::open(&files, SMALL).unwrap();
    let mut model = Model::default();
    for (index, bytes) in [10, 100_000, 10, 4096, 10].into_iter().enumerate() {
        let op = Op::Append(entry(1, index as u64, bytes));
        session.perform(&op).unwrap();
        model.apply(&op);
    }
    let files = files.restart(Keep::Nothing, 0);
    let session = Session::open(&files, SMALL).unwrap();
    assert_eq!(session.observe(), model);
    let limited = session.log.read_blocking(0, 4, 1000).unwrap();
    assert_eq!(limited.len(), 1, "the second entry exceeds the limit");
    let limited = session.log.read_blocking(1, 4, 1000).unwrap();
    assert_eq!(limited.len(), 1, "at least one entry, however large");
}

#[test]
fn the_durable_mark_steps_back_with_a_truncation_and_waits_are_exact() {
    let files = FaultyFiles::new();
    let mut session = Session::open(&files, SMALL).unwrap();
    for index in 0..5 {
        session.perform(&Op::Append(entry(5, index, 10))).unwrap();
    }
    let durable = session.log.durable();
    let last = |term, index| Some(position_of(&log_id(term, index)));
    assert_eq!(durable.borrow().last, last(5, 4));
    session.perform(&Op::Truncate(Some(log_id(5, 1)))).unwrap();
    assert_eq!(durable.borrow().last, last(5, 1));
    // The new entry is of a lower term than the one it replaces: comparing positions would call
    // it durable at once.
    session.submit(&Op::Append(entry(2, 2, 10))).unwrap();
    session
        .block_on(session.log.wait_durable(position_of(&log_id(2, 2))))
        .unwrap();
    let image = files.restart(Keep::Nothing, 0);
    let replaced = session.block_on(session.log.wait_durable(position_of(&log_id(5, 2))));
    assert!(
        matches!(replaced, Err(LogError::Missing { .. })),
        "{replaced:?}"
    );
    let model = Session::open(&image, SMALL).unwrap().observe();
    assert_eq!(model.last(), Some(log_id(2, 2)));
}

#[test]
fn a_committed_position_is_durable_when_persisting_it_returns() {
    let files = FaultyFiles::new();
    let mut session = Session::open(&files, SMALL).unwrap();
    for index in 0..4 {
        session.perform(&Op::Append(entry(1, index, 10))).unwrap();
    }
    // On its own the position waits for the next batch ...
    let mut log = session.log.clone();
    session
        .block_on(log.save_committed(Some(log_id(1, 1))))
        .unwrap();
    assert_eq!(session.log.committed(), None);
    session.perform(&Op::Append(entry(1, 4, 10))).unwrap();
    assert_eq!(session.log.committed(), Some(position_of(&log_id(1, 1))));
    // ... and asked for, it does not.
    let position = position_of(&log_id(1, 3));
    session.log.persist_committed_blocking(position).unwrap();
    assert_eq!(session.log.committed(), Some(position));
    assert_eq!(session.log.durable().borrow().committed, Some(position));
    let found = Session::open(&files.restart(Keep::Nothing, 0), SMALL).unwrap();
    assert_eq!(found.log.committed(), Some(position));
}

#[test]
fn entries_that_leave_a_gap_are_refused_whole() {
    let mut session = Session::open(&FaultyFiles::new(), SMALL).unwrap();
    session.perform(&Op::Append(entry(1, 0, 10))).unwrap();
    let before = session.observe();
    let run = vec![entry(1, 1, 10), entry(1, 3, 10)];
    assert!(session.append(run).is_err());
    assert_eq!(session.observe(), before);
    assert_eq!(
        session.log.failure(),
        None,
        "a refused call is not a failed disk"
    );
    session.perform(&Op::Append(entry(1, 1, 10))).unwrap();
}

#[test]
fn a_closed_log_takes_no_calls_and_closing_twice_adds_nothing() {
    let files = FaultyFiles::new();
    let mut session = Session::open(&files, SMALL).unwrap();
    session.perform(&Op::Append(entry(1, 0, 10))).unwrap();
    session.log.close();
    session.log.close();
    assert!(session.perform(&Op::Append(entry(1, 1, 10))).is_err());
    let image = files.image();
    let again = files.restart(Keep::Process, 0);
    Session::open(&again, SMALL).unwrap().log.close();
    assert!(
        again.image() == image,
        "opening and closing changed the files"
    );
}

#[test]
fn a_full_disk_latches_the_log_with_a_clear_error_and_loses_nothing() {
    let files = FaultyFiles::new();
    let mut session = Session::open(&files, SMALL).unwrap();
    let mut model = Model::default();
    for index in 0..20 {
        let op = Op::Append(entry(1, index, 300));
        session.perform(&op).unwrap();
        model.apply(&op);
    }
    let _ = files.clone().with_fault(1, wal_tests::files::Fault::Full);
    let refused = session.perform(&Op::Append(entry(1, 20, 300))).unwrap_err();
    let failure = session.log.failed().borrow().clone().unwrap();
    assert!(failure.contains("no storage space"), "{failure}");
    assert!(refused.to_string().contains(&failure), "{refused}");
    let names: BTreeSet<String> = files.image().into_keys().collect();
    assert!(
        names.iter().any(|name| failure.contains(name.as_str())),
        "{failure}"
    );
    let waited = session.block_on(session.log.wait_durable(position_of(&log_id(1, 20))));
    assert!(matches!(waited, Err(LogError::Failed { .. })), "{waited:?}");
    let persisted = session
        .log
        .persist_committed_blocking(position_of(&log_id(1, 3)));
    assert!(
        matches!(persisted, Err(LogError::Failed { .. })),
        "{persisted:?}"
    );
    session
        .block_on(session.log.wait_durable(position_of(&log_id(1, 19))))
        .unwrap();
    let found = Session::open(&files.restart(Keep::Nothing, 0), SMALL).unwrap();
    assert_eq!(found.observe(), model);
}
