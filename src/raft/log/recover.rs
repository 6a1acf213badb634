//! Start-up: what is found in the log's directory, what it means, and what is done about it.
//!
//! A batch that was being written when the power went leaves anything behind: nothing, a part, some
//! sectors. It was never acknowledged and is cut off. The same bytes in the middle of the log mean
//! that something acknowledged is damaged, and cutting there would lose it. The two are told apart
//! by position alone, never by how the bytes look: each batch says what was durable before it, and
//! so does each segment header. [`TABLE`] is the whole decision.

use std::collections::VecDeque;
use std::sync::Arc;

use super::files::Files;
use super::format::{
    BATCH_HEAD_BYTES, BatchHead, Frontier, HEADER_BYTES, HeaderFault, Place, RawRecord,
    SegmentHeader, Step,
};
use super::segment::{Segment, SegmentFile, SegmentName, TEMPORARY_NAME, remove_purged};
use super::table::{Location, Table};
use super::{LogError, LogIdentity, LogOptions};

/// What stands where the next batch would begin.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Here {
    /// A batch, every record of it sound and chained to the ones before.
    Batch,
    /// Zeros up to the end of the file.
    Blank,
    /// Anything else.
    Damage,
}

/// Whether a batch header further on in this segment says that this place was durable.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Later {
    Silent,
    Claims,
}

/// What the header of the next segment says about the end of this one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Next {
    /// This is the last segment.
    Absent,
    /// It ends here, with this chain.
    EndsHere,
    /// It ends elsewhere, or with another chain.
    EndsElsewhere,
}

/// What is done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    /// Take the batch and look behind it.
    Take,
    /// The segment ends here.
    End,
    /// A batch that was never acknowledged: zeros over it, and the log ends here.
    Cut,
    /// Something acknowledged is damaged: refuse to start.
    Refuse,
}

/// The decision. `None` in the first three columns = whatever is there.
type Line = (Option<Here>, Option<Later>, Option<Next>, Verdict);
const TABLE: [Line; 8] = [
    // A segment goes on until the next one says it ended.
    (Some(Here::Batch), None, Some(Next::Absent), Verdict::Take),
    (
        Some(Here::Batch),
        None,
        Some(Next::EndsElsewhere),
        Verdict::Take,
    ),
    // A batch behind the end of a segment: two histories.
    (
        Some(Here::Batch),
        None,
        Some(Next::EndsHere),
        Verdict::Refuse,
    ),
    // The end of the log, clean or torn.
    (
        Some(Here::Blank),
        Some(Later::Silent),
        Some(Next::Absent),
        Verdict::End,
    ),
    (
        Some(Here::Damage),
        Some(Later::Silent),
        Some(Next::Absent),
        Verdict::Cut,
    ),
    // The end that the next segment knows: whatever lies behind it was never part of the log.
    (
        None,
        Some(Later::Silent),
        Some(Next::EndsHere),
        Verdict::End,
    ),
    // The next segment knows of more than can be read.
    (
        None,
        Some(Later::Silent),
        Some(Next::EndsElsewhere),
        Verdict::Refuse,
    ),
    // A later batch was written when this place was durable.
    (None, Some(Later::Claims), None, Verdict::Refuse),
];

/// The first line that applies. A batch is asked for first: its lines say nothing of later ones.
fn verdict(here: Here, later: Later, next: Next) -> Verdict {
    let applies = |line: &&Line| {
        line.0.is_none_or(|wanted| wanted == here)
            && line.1.is_none_or(|wanted| wanted == later)
            && line.2.is_none_or(|wanted| wanted == next)
    };
    TABLE
        .iter()
        .find(applies)
        .map_or(Verdict::Refuse, |line| line.3)
}

/// The log as recovered: ready to be read and appended to.
pub(super) struct Recovered {
    pub(super) table: Table,
    pub(super) segments: VecDeque<Segment>,
}

/// Opens the log in a directory, or creates it. Doing it twice is doing it once.
pub(super) fn recover(
    files: &Arc<dyn Files>,
    identity: LogIdentity,
    options: &LogOptions,
) -> Result<Recovered, LogError> {
    let names = list(files.as_ref())?;
    // A name that was seen may not be durable yet: the process may have died before its sync.
    let synced = files.sync_dir();
    synced.map_err(|source| directory("sync", files.as_ref(), source))?;
    let mut found = Vec::new();
    for name in names {
        found.push(Found::open(files, name, identity)?);
    }
    if found.is_empty() {
        return create(files, identity, options);
    }
    let frontier = found[0].header.frontier;
    let mut walk = Walk {
        table: Table::new(frontier, options.cache_bytes_max),
        segments: VecDeque::new(),
    };
    for position in 0..found.len() {
        let next = found.get(position + 1).map(|next| next.header.clone());
        walk.segment(&found[position], next.as_ref(), options)?;
    }
    walk.check_beginning(&found[0])?;
    let purged = walk.table.frontier.purged;
    remove_purged(files.as_ref(), &mut walk.segments, purged)?;
    Ok(Recovered {
        table: walk.table,
        segments: walk.segments,
    })
}

fn create(
    files: &Arc<dyn Files>,
    identity: LogIdentity,
    options: &LogOptions,
) -> Result<Recovered, LogError> {
    let frontier = Frontier::default();
    let header = SegmentHeader {
        identity,
        number: 1,
        first_index: 0,
        previous_end: 0,
        previous_chain: 0,
        frontier,
    };
    let first = Segment::create(files, &header, options.segment_bytes)?;
    let table = Table::new(frontier, options.cache_bytes_max);
    Ok(Recovered {
        table,
        segments: VecDeque::from([first]),
    })
}

/// The segments in order. A temporary file is removed: nothing in it was ever part of the log.
fn list(files: &dyn Files) -> Result<Vec<SegmentName>, LogError> {
    let all = files
        .list()
        .map_err(|source| directory("list", files, source))?;
    let mut names: Vec<SegmentName> = all.iter().filter_map(|n| SegmentName::parse(n)).collect();
    names.sort_unstable();
    if all.iter().any(|name| name == TEMPORARY_NAME) {
        let removed = files.remove(TEMPORARY_NAME);
        removed.map_err(|source| directory("remove a temporary file in", files, source))?;
    }
    for pair in names.windows(2) {
        // Names are given and taken away one at a time, each made durable before the next.
        if pair[0].number.checked_add(1) != Some(pair[1].number) {
            let file = files.path(&pair[1].text());
            let what = "the segment before it is missing, or there twice";
            return Err(LogError::Corrupt {
                what,
                file,
                offset: 0,
            });
        }
    }
    Ok(names)
}

fn directory(action: &'static str, files: &dyn Files, source: std::io::Error) -> LogError {
    LogError::Io {
        action,
        file: files.path(""),
        source,
    }
}

/// A segment file with its header checked.
struct Found {
    shared: Arc<SegmentFile>,
    header: SegmentHeader,
    /// CRC of the header.
    chain: u32,
    length: u64,
}

impl Found {
    fn open(
        files: &Arc<dyn Files>,
        name: SegmentName,
        identity: LogIdentity,
    ) -> Result<Self, LogError> {
        let text = name.text();
        let path = files.path(&text);
        let io = |action| {
            let file = path.clone();
            move |source| LogError::Io {
                action,
                file,
                source,
            }
        };
        let file = files.open(&text).map_err(io("open"))?;
        let length = file.length().map_err(io("measure"))?;
        let mut head = vec![0; HEADER_BYTES.min(usize::try_from(length).unwrap_or(usize::MAX))];
        file.read_exact_at(&mut head, 0).map_err(io("read"))?;
        let (header, chain) = match SegmentHeader::decode(&head) {
            Ok(decoded) => decoded,
            Err(HeaderFault::Damaged { offset }) => {
                let what = "a segment header cannot be read";
                return Err(LogError::Corrupt {
                    what,
                    file: path,
                    offset,
                });
            }
            Err(HeaderFault::Unsupported { version }) => {
                return Err(LogError::Unsupported {
                    file: path,
                    version,
                });
            }
        };
        if header.identity != identity {
            let (found, expected) = (header.identity, identity);
            return Err(LogError::Foreign {
                file: path,
                found,
                expected,
            });
        }
        if header.number != name.number || header.first_index != name.first_index {
            let what = "a segment whose header does not go with its name";
            return Err(LogError::Corrupt {
                what,
                file: path,
                offset: 40,
            });
        }
        let place = Place {
            identity,
            number: name.number,
        };
        let shared = Arc::new(SegmentFile::new(Arc::clone(files), file, text, place));
        Ok(Self {
            shared,
            header,
            chain,
            length,
        })
    }
}

/// The history so far, while the segments are walked.
struct Walk {
    table: Table,
    segments: VecDeque<Segment>,
}

impl Walk {
    fn segment(
        &mut self,
        found: &Found,
        next: Option<&SegmentHeader>,
        options: &LogOptions,
    ) -> Result<(), LogError> {
        let shared = &found.shared;
        if found.header.frontier != self.table.frontier {
            return Err(shared.corrupt("a segment header contradicts the records before it", 72));
        }
        let length = usize::try_from(found.length)
            .map_err(|_| shared.corrupt("a segment larger than memory", 0))?;
        let mut bytes = vec![0; length];
        let read = shared.file.read_exact_at(&mut bytes, 0);
        read.map_err(|source| shared.io("read", source))?;
        let mut segment = Segment {
            shared: Arc::clone(shared),
            end: HEADER_BYTES as u64,
            chain: found.chain,
            length: found.length,
            capacity: options.segment_bytes,
            highest_index: None,
            claimed: true,
        };
        let (mut end, mut last_batch, mut damaged) = (HEADER_BYTES, HEADER_BYTES, false);
        loop {
            let batch = read_batch(&bytes, end, shared.place, segment.chain);
            let blank = || {
                bytes
                    .get(end..)
                    .is_none_or(|rest| rest.iter().all(|byte| *byte == 0))
            };
            let here = match batch {
                Some(_) => Here::Batch,
                None if blank() => Here::Blank,
                None => Here::Damage,
            };
            let later = match here {
                Here::Damage if claimed_later(&bytes, end, shared.place) => Later::Claims,
                _ => Later::Silent,
            };
            match (
                verdict(here, later, next_of(next, end, segment.chain)),
                batch,
            ) {
                (Verdict::Take, Some(batch)) => {
                    self.batch(&mut segment, &bytes, end, batch)?;
                    segment.claimed = batch.records == 0;
                    (last_batch, end) = (end, end + BATCH_HEAD_BYTES + batch.bytes);
                }
                (Verdict::End, _) => break,
                (Verdict::Cut, _) => {
                    damaged = true;
                    break;
                }
                (Verdict::Take | Verdict::Refuse, _) => {
                    let what = "something durable is damaged or gone";
                    return Err(shared.corrupt(what, end as u64));
                }
            }
        }
        segment.end = end as u64;
        if next.is_none() {
            settle(shared, &mut bytes, last_batch, end, damaged)?;
        }
        self.segments.push_back(segment);
        Ok(())
    }

    /// Replays the records of a batch whose checksums are right. What they say must make sense: if
    /// not, it is no torn write but a defect, or damage that the checksums missed.
    fn batch(
        &mut self,
        segment: &mut Segment,
        bytes: &[u8],
        start: usize,
        batch: BatchHead,
    ) -> Result<(), LogError> {
        let shared = Arc::clone(&segment.shared);
        let end = start + BATCH_HEAD_BYTES + batch.bytes;
        let mut offset = start + BATCH_HEAD_BYTES;
        while offset < end {
            let senseless = |what| shared.corrupt(what, offset as u64);
            let record = RawRecord::decode(&bytes[offset..end], shared.place, segment.chain);
            let Some(record) = record else {
                return Err(senseless("a record changed while it was read"));
            };
            let Ok(step) = record.step() else {
                return Err(senseless(
                    "a record with a right checksum and an impossible body",
                ));
            };
            match step {
                Step::Entry(log_id) => {
                    if !self.table.frontier.admits(log_id.index) {
                        return Err(senseless("an entry that does not continue the log"));
                    }
                    let Ok(body_bytes) = u32::try_from(record.body.len()) else {
                        return Err(senseless("an entry larger than can be"));
                    };
                    let location = Location {
                        segment: Arc::clone(&shared),
                        offset: offset as u64,
                        chain: segment.chain,
                    };
                    self.table.recover(log_id, body_bytes, location);
                    segment.highest_index = segment.highest_index.max(Some(log_id.index));
                }
                Step::Vote(vote) => self.table.frontier.vote = Some(vote),
                Step::TruncateAfter(kept) => self.table.truncate_after(kept),
                Step::Purge(log_id) => self.table.purge(log_id),
                Step::Committed(log_id) => self.table.frontier.committed = Some(log_id),
            }
            segment.chain = record.chain;
            offset += record.bytes;
        }
        Ok(())
    }

    /// The oldest segments may only be missing if everything in them was purged.
    fn check_beginning(&self, first: &Found) -> Result<(), LogError> {
        let frontier = &self.table.frontier;
        let needed = frontier
            .purged
            .map_or(0, |purged| purged.index.saturating_add(1));
        let complete = match self.table.first_index() {
            Some(first_index) => first_index <= needed,
            None => frontier.last == frontier.purged,
        };
        if first.header.number > 1 && !complete {
            return Err(first
                .shared
                .corrupt("the segments before it are missing", 0));
        }
        Ok(())
    }
}

fn next_of(next: Option<&SegmentHeader>, end: usize, chain: u32) -> Next {
    match next {
        None => Next::Absent,
        Some(next) if next.previous_end == end as u64 && next.previous_chain == chain => {
            Next::EndsHere
        }
        Some(_) => Next::EndsElsewhere,
    }
}

/// The batch at `start`, if its header and every record of it are sound.
fn read_batch(bytes: &[u8], start: usize, place: Place, mut chain: u32) -> Option<BatchHead> {
    let head = BatchHead::decode(bytes, start, place)?;
    let mut offset = start.checked_add(BATCH_HEAD_BYTES)?;
    let end = offset.checked_add(head.bytes)?;
    if head.durable != (place.number, start as u64) || end > bytes.len() {
        return None;
    }
    for _ in 0..head.records {
        let record = RawRecord::decode(bytes.get(offset..end)?, place, chain)?;
        chain = record.chain;
        offset += record.bytes;
    }
    (offset == end).then_some(head)
}

/// Whether a batch header behind `end` says that more than `end` was durable.
fn claimed_later(bytes: &[u8], end: usize, place: Place) -> bool {
    (end..bytes.len()).step_by(8).skip(1).any(|offset| {
        BatchHead::decode(bytes, offset, place)
            .is_some_and(|head| head.durable > (place.number, end as u64))
    })
}

/// Makes what was found durable before anything is built on it.
///
/// The last batch may be in the kernel's cache only, if the process died between write and sync, or
/// after a sync that failed: then the kernel takes its pages for clean, and a further sync alone
/// would write nothing. So the batch is written again, and what follows it becomes zeros.
fn settle(
    shared: &SegmentFile,
    bytes: &mut [u8],
    last_batch: usize,
    end: usize,
    damaged: bool,
) -> Result<(), LogError> {
    let write = |bytes: &[u8], offset: usize| {
        let written = shared.file.write_all_at(bytes, offset as u64);
        written.map_err(|source| shared.io("write", source))
    };
    write(&bytes[last_batch..end], last_batch)?;
    if damaged {
        let tail = &mut bytes[end..];
        let dirty = tail
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        tail[..dirty].fill(0);
        write(&tail[..dirty], end)?;
        tracing::warn!(
            file = %shared.name, offset = end, bytes = dirty,
            "cut a batch that was being written when this node stopped; it was never acknowledged"
        );
    }
    shared
        .file
        .sync_data()
        .map_err(|source| shared.io("sync", source))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: [Here; 3] = [Here::Batch, Here::Blank, Here::Damage];
    const LATER: [Later; 2] = [Later::Silent, Later::Claims];
    const NEXT: [Next; 3] = [Next::Absent, Next::EndsHere, Next::EndsElsewhere];

    fn combinations() -> impl Iterator<Item = (Here, Later, Next)> {
        HERE.into_iter().flat_map(|here| {
            LATER
                .into_iter()
                .flat_map(move |later| NEXT.map(|next| (here, later, next)))
        })
    }

    /// Every combination, with the reason written as a rule that knows nothing of the table.
    #[test]
    fn every_combination_of_findings_has_its_verdict() {
        let mut seen = 0;
        for (here, later, next) in combinations() {
            let more_was_durable = match next {
                Next::Absent => later == Later::Claims,
                Next::EndsHere => later == Later::Claims,
                Next::EndsElsewhere => true,
            };
            let expected = match here {
                Here::Batch if next == Next::EndsHere => Verdict::Refuse,
                Here::Batch => Verdict::Take,
                _ if more_was_durable => Verdict::Refuse,
                Here::Blank => Verdict::End,
                Here::Damage if next == Next::EndsHere => Verdict::End,
                Here::Damage => Verdict::Cut,
            };
            assert_eq!(
                verdict(here, later, next),
                expected,
                "{here:?} {later:?} {next:?}"
            );
            seen += 1;
        }
        assert_eq!(seen, 18);
    }

    #[test]
    fn every_line_of_the_table_decides_something() {
        for (position, line) in TABLE.iter().enumerate() {
            let decides = combinations().any(|(here, later, next)| {
                let applies = |line: &Line| {
                    line.0.is_none_or(|wanted| wanted == here)
                        && line.1.is_none_or(|wanted| wanted == later)
                        && line.2.is_none_or(|wanted| wanted == next)
                };
                TABLE.iter().position(applies) == Some(position)
            });
            assert!(decides, "line {position} is dead: {line:?}");
        }
    }

    #[test]
    fn a_cut_happens_only_where_nothing_claims_more() {
        for (here, later, next) in combinations() {
            if verdict(here, later, next) == Verdict::Cut {
                assert_eq!(
                    (here, later, next),
                    (Here::Damage, Later::Silent, Next::Absent)
                );
            }
        }
    }
}
