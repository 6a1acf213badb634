//! Reading the segments of a log one after the other, as recovery does: what is there, checked
//! against what was said about it, and replayed.

use std::collections::VecDeque;
use std::sync::Arc;

use super::files::Files;
use super::format::{
    BATCH_HEAD_BYTES, BatchHead, HEADER_BYTES, HeaderFault, Place, RawRecord, SegmentHeader, Step,
};
use super::recover::{Here, Later, Next, Verdict, verdict};
use super::segment::{Segment, SegmentFile, SegmentName};
use super::table::{Location, Table};
use super::{LogError, LogIdentity, LogOptions};
use crate::planted::{self, Bug};

/// A segment file with its header checked.
pub(super) struct Found {
    shared: Arc<SegmentFile>,
    pub(super) header: SegmentHeader,
    /// CRC of the header.
    chain: u32,
    length: u64,
}

impl Found {
    pub(super) fn open(
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
        let belongs = header.number == name.number && header.first_index == name.first_index;
        if !belongs && !planted::is(Bug::SegmentNameTrusted) {
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
pub(super) struct Walk {
    pub(super) table: Table,
    pub(super) segments: VecDeque<Segment>,
}

impl Walk {
    pub(super) fn new(first: &Found, options: &LogOptions) -> Self {
        let table = Table::new(first.header.frontier, options.cache_bytes_max);
        Self {
            table,
            segments: VecDeque::new(),
        }
    }

    pub(super) fn segment(
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
    pub(super) fn check_beginning(&self, first: &Found) -> Result<(), LogError> {
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
