//! The log of a node: its segments, the entries in them, and what each entry did to the database.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use wallaby::node::files::{Fence, Verdict as Effect};
use wallaby::raft::Vote;
use wallaby::raft::log::{
    Finding, HeaderFault, LogIdentity, LogRecord, SegmentFacts, SegmentName, Soundness, Survey,
    Verdict,
};
use wallaby::sqlite::Record;
use wallaby::wal::{DatabaseHash, Delta, DeltaError, DeltaHeader, PageCount, PageNumber, Position};

use super::source::{Failure, Source};

/// A segment file.
pub(super) struct Segment {
    pub(super) source: Source,
    pub(super) name: Option<SegmentName>,
    /// What its header says; why it cannot be read.
    pub(super) facts: Result<SegmentFacts, HeaderFault>,
}

/// What an entry carries.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Blank,
    Delta(Box<DeltaFacts>),
    Mark,
    Membership,
    /// A payload that is no delta that could be applied.
    Unreadable(DeltaError),
}

/// A delta without its pages.
#[derive(Clone, Debug)]
pub(super) struct DeltaFacts {
    pub(super) header: DeltaHeader,
    pub(super) pages: Vec<PageNumber>,
}

/// An entry, and where it is.
#[derive(Clone, Debug)]
pub(super) struct LogEntry {
    pub(super) position: Position,
    pub(super) segment: usize,
    /// Where its record begins in the segment, in bytes.
    pub(super) offset: u64,
    /// Where its payload is.
    payload: (u64, usize),
    pub(super) content: Content,
    /// What it did to the database; `None` if that cannot be told.
    pub(super) effect: Option<Effect>,
}

/// A transaction that took effect: the entries with its parts, in order.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) entries: Vec<u64>,
    pub(super) page_count: PageCount,
    pub(super) before: DatabaseHash,
    pub(super) after: DatabaseHash,
}

impl Change {
    /// The index from which on the database has it.
    pub(super) fn index(&self) -> u64 {
        self.entries.last().copied().unwrap_or_default()
    }
}

/// Everything that was found in the log.
pub(super) struct Log {
    pub(super) segments: Vec<Segment>,
    /// Those that are part of the log, or were purged and are still there.
    pub(super) entries: BTreeMap<u64, LogEntry>,
    /// Those that a later leader replaced.
    pub(super) replaced: Vec<LogEntry>,
    /// The transactions that took effect, in order.
    pub(super) changes: Vec<Change>,
    /// The first entry whose effect can be told.
    pub(super) told_from: u64,
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<Position>,
    pub(super) committed: Option<Position>,
    /// What is damaged.
    pub(super) damage: Vec<String>,
    /// What is only remarkable.
    pub(super) notes: Vec<String>,
}

impl Segment {
    pub(super) fn open(source: Source) -> Result<Self, Failure> {
        let head = source.read(0, SEGMENT_HEAD_BYTES)?;
        let name = source.path().file_name().and_then(|name| name.to_str());
        Ok(Self {
            name: name.and_then(SegmentName::parse),
            facts: SegmentFacts::read(&head),
            source,
        })
    }

    /// Everything in it. `identity` is whose it is, should its header not say; `next` the segment
    /// that follows. `None`: there is no telling.
    pub(super) fn survey(
        &self,
        identity: Option<LogIdentity>,
        next: Option<&Self>,
    ) -> Result<Option<Survey>, Failure> {
        let bytes = Bytes::from(self.source.read_all()?);
        let next = next
            .map(|next| next.source.read(0, SEGMENT_HEAD_BYTES))
            .transpose()?;
        let survey = match Survey::of(bytes.clone(), next.as_deref()) {
            Ok(survey) => Some(survey),
            Err(_) => identity.zip(self.name).map(|(identity, name)| {
                Survey::without_header(bytes, identity, name.number, next.as_deref())
            }),
        };
        Ok(survey)
    }

    pub(super) fn label(&self) -> String {
        let name = self.source.path().file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }
}

impl Log {
    /// Reads all segments in a directory. `identity` is whose log it is, should a header not say.
    pub(super) fn open(dir: &Path, identity: Option<LogIdentity>) -> Result<Self, Failure> {
        let mut names: Vec<(SegmentName, PathBuf)> = Vec::new();
        let failed = |error| Failure::new(format!("cannot list {}: {error}", dir.display()));
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if let Some(name) = name.to_str().and_then(SegmentName::parse) {
                names.push((name, entry.path()));
            }
        }
        names.sort();
        let mut segments = Vec::new();
        for (_, path) in names {
            // Purged between listing and opening.
            if let Some(source) = Source::find(&path)? {
                segments.push(Segment::open(source)?);
            }
        }
        let of_header = |segment: &Segment| segment.facts.as_ref().ok().map(|facts| facts.identity);
        let identity = segments.iter().find_map(of_header).or(identity);
        Self::read(segments, identity)
    }

    /// Reads these segments, which follow one another.
    pub(super) fn read(
        segments: Vec<Segment>,
        identity: Option<LogIdentity>,
    ) -> Result<Self, Failure> {
        let mut log = Self {
            segments: Vec::new(),
            entries: BTreeMap::new(),
            replaced: Vec::new(),
            changes: Vec::new(),
            told_from: 0,
            vote: None,
            purged: None,
            committed: None,
            damage: Vec::new(),
            notes: Vec::new(),
        };
        if let Some(facts) = segments.first().and_then(|first| first.facts.as_ref().ok()) {
            (log.vote, log.purged, log.committed) = (facts.vote, facts.purged, facts.committed);
        }
        for pair in segments.windows(2) {
            if let (Some(before), Some(after)) = (pair[0].name, pair[1].name)
                && before.number + 1 != after.number
            {
                log.damage.push(format!(
                    "segment {} is missing between {} and {}",
                    before.number + 1,
                    pair[0].label(),
                    pair[1].label()
                ));
            }
        }
        for (number, segment) in segments.iter().enumerate() {
            log.segment(number, segment, identity, segments.get(number + 1))?;
        }
        log.segments = segments;
        Ok(log)
    }

    fn segment(
        &mut self,
        number: usize,
        segment: &Segment,
        identity: Option<LogIdentity>,
        next: Option<&Segment>,
    ) -> Result<(), Failure> {
        let label = segment.label();
        if let Err(fault) = &segment.facts {
            self.damage
                .push(format!("{label}: {}", header_fault_text(*fault)));
        }
        let Some(survey) = segment.survey(identity, next)? else {
            self.damage.push(format!(
                "{label}: without its header nothing in it can be checked"
            ));
            return Ok(());
        };
        let beginning = survey.segment();
        for finding in survey {
            match finding {
                Finding::Record {
                    offset,
                    soundness,
                    record,
                    ..
                } => {
                    if soundness == Soundness::Damaged {
                        self.damage.push(format!(
                            "{label}: the record at offset {offset}: wrong checksum"
                        ));
                    }
                    match record {
                        // What it says is not to be believed.
                        Ok(_) if soundness == Soundness::Damaged => {}
                        Ok(record) => self.record(number, offset, &beginning, record),
                        Err(error) => self
                            .damage
                            .push(format!("{label}: the record at offset {offset}: {error}")),
                    }
                }
                Finding::Batch {
                    offset, verdict, ..
                }
                | Finding::Damage {
                    offset, verdict, ..
                }
                | Finding::Blank {
                    offset, verdict, ..
                } => {
                    let what = format!("{label}, offset {offset}: {}", verdict_text(verdict));
                    match verdict {
                        Verdict::Take | Verdict::End => {}
                        Verdict::Cut => self.notes.push(what),
                        Verdict::Refuse => self.damage.push(what),
                    }
                }
            }
        }
        Ok(())
    }

    fn record(&mut self, segment: usize, offset: u64, beginning: &Bytes, record: LogRecord) {
        let mut add = |position: Position, payload: (u64, usize), content| {
            let entry = LogEntry {
                position,
                segment,
                offset,
                payload,
                content,
                effect: None,
            };
            let replaced = self.entries.insert(position.index, entry);
            self.replaced.extend(replaced);
        };
        match record {
            LogRecord::Blank(position) => add(position, (0, 0), Content::Blank),
            LogRecord::Membership(position, _) => add(position, (0, 0), Content::Membership),
            LogRecord::Payload(position, payload) => {
                let begin = payload.as_ptr().addr() - beginning.as_ptr().addr();
                let place = (begin as u64, payload.len());
                add(position, place, content(payload));
            }
            LogRecord::Vote(vote) => self.vote = Some(vote),
            LogRecord::TruncateAfter(kept) => {
                let from = kept.map_or(0, |kept| kept.index.saturating_add(1));
                let dropped = self.entries.split_off(&from);
                self.replaced.extend(dropped.into_values());
            }
            LogRecord::Purge(position) => self.purged = self.purged.max(Some(position)),
            LogRecord::Committed(position) => self.committed = Some(position),
        }
    }

    /// The last run of entries without a gap: first and last index.
    pub(super) fn run(&self) -> Option<(u64, u64)> {
        let (&last, _) = self.entries.last_key_value()?;
        let mut first = last;
        for (&index, _) in self.entries.iter().rev().skip(1) {
            if index.checked_add(1) != Some(first) {
                break;
            }
            first = index;
        }
        Some((first, last))
    }

    /// Whether all entries are there that lead to the state at an index.
    pub(super) fn covers(&self, index: u64) -> bool {
        self.run()
            .is_some_and(|(_, last)| (self.told_from.saturating_sub(1)..=last).contains(&index))
    }

    /// Finds out what each entry of the last run did, from what a checkpoint record says about the
    /// state at some place; without one, on the assumption that the first delta took effect.
    pub(super) fn replay(&mut self, at: Option<(Position, Option<Position>)>) {
        let Some((first, last)) = self.run() else {
            return;
        };
        let (mut fence, begin) = self.seed(first, last, at);
        self.told_from = begin;
        let mut open: Vec<u64> = Vec::new();
        for (&index, entry) in self.entries.range_mut(begin..=last) {
            let Content::Delta(delta) = &entry.content else {
                fence.pass(entry.position);
                if fence.stage.is_none() {
                    open.clear();
                }
                continue;
            };
            let effect = fence.judge(&delta.header, entry.position);
            entry.effect = Some(effect);
            if delta.header.part.is_first() {
                open.clear();
            }
            match effect {
                Effect::Reject => open.clear(),
                Effect::Stage => open.push(index),
                Effect::Accept => {
                    let mut entries = std::mem::take(&mut open);
                    entries.push(index);
                    self.changes.push(Change {
                        entries,
                        page_count: delta.header.page_count,
                        before: delta.header.hash_before,
                        after: delta.header.hash_after,
                    });
                }
            }
        }
        let before: Vec<Option<DatabaseHash>> = self
            .changes
            .iter()
            .map(|change| {
                let first = change.entries.first().and_then(|index| self.delta(*index));
                first.map(|delta| delta.header.hash_before)
            })
            .collect();
        for (change, before) in self.changes.iter_mut().zip(before) {
            change.before = before.unwrap_or_default();
        }
    }

    /// A fence for the first entry whose effect can be told. The data entries that took effect are a
    /// chain, each naming the one before: followed back from the one that the record names, it leads
    /// to the state at the beginning of the log.
    fn seed(
        &self,
        first: u64,
        last: u64,
        at: Option<(Position, Option<Position>)>,
    ) -> (Fence, u64) {
        // A state before or behind the run says nothing about it.
        let touches = |(applied, data): &(Position, Option<Position>)| {
            applied.index.saturating_add(1) >= first && data.is_none_or(|data| data.index <= last)
        };
        let Some((_, data)) = at.filter(touches) else {
            let mut deltas = self
                .entries
                .range(first..=last)
                .filter_map(|(_, entry)| entry.delta());
            let whole = deltas.find(|delta| delta.header.part.is_first());
            let base = whole.and_then(|delta| delta.header.base);
            return (Fence::at(None, base), first);
        };
        let mut base = data;
        while let Some(position) = base {
            let entry = self.entries.get(&position.index);
            let Some(entry) = entry.filter(|entry| {
                entry.position == position && (first..=last).contains(&position.index)
            }) else {
                break;
            };
            let Some(delta) = entry.delta() else {
                break;
            };
            // It names itself, or a later one: no delta of ours does.
            let goes_back = delta
                .header
                .base
                .is_none_or(|base| base.index < position.index);
            if !goes_back || !self.has_parts(first, position.index, &delta.header) {
                let next = position.index.saturating_add(1);
                return (Fence::at(Some(position), Some(position)), next);
            }
            base = delta.header.base;
        }
        (Fence::at(None, base), first)
    }

    /// Whether the earlier parts of a transaction are in the log too.
    fn has_parts(&self, first: u64, index: u64, last: &DeltaHeader) -> bool {
        let same = |header: &DeltaHeader| {
            (header.origin, header.epoch, header.sequence)
                == (last.origin, last.epoch, last.sequence)
        };
        let mut wanted = last.part.number - 1;
        for (_, entry) in self.entries.range(first..index).rev() {
            if wanted == 0 {
                break;
            }
            let found = entry
                .delta()
                .is_some_and(|delta| same(&delta.header) && delta.header.part.number == wanted);
            wanted -= u32::from(found);
        }
        wanted == 0
    }

    pub(super) fn delta(&self, index: u64) -> Option<&DeltaFacts> {
        self.entries.get(&index)?.delta()
    }

    /// The bytes of an entry's payload, read again.
    pub(super) fn payload(&self, entry: &LogEntry) -> Result<Bytes, Failure> {
        let (offset, length) = entry.payload;
        let segment = self.segments.get(entry.segment);
        let segment = segment.ok_or_else(|| Failure::new("the segment is gone"))?;
        Ok(Bytes::from(segment.source.read(offset, length)?))
    }

    /// Reads all that an entry says of its pages; how many there are.
    pub(super) fn read_pages(&self, entry: &LogEntry) -> Result<usize, Failure> {
        let failed = |error: DeltaError| Failure::new(format!("entry {}: {error}", entry.position));
        let delta = Delta::decode(self.payload(entry)?).map_err(failed)?;
        for page in delta.whole_pages() {
            page.map_err(failed)?;
        }
        Ok(delta.len())
    }

    /// The last transaction that took effect up to an index.
    pub(super) fn change_at(&self, index: u64) -> Option<&Change> {
        let after = self
            .changes
            .partition_point(|change| change.index() <= index);
        self.changes.get(after.checked_sub(1)?)
    }
}

impl LogEntry {
    pub(super) fn delta(&self) -> Option<&DeltaFacts> {
        match &self.content {
            Content::Delta(delta) => Some(delta),
            _ => None,
        }
    }

    /// Bytes of its payload.
    pub(super) const fn payload_bytes(&self) -> usize {
        self.payload.1
    }
}

/// Where a record says the state of the log was: at its last entry, and the last data entry.
pub(super) fn state_of(record: &Record) -> (Position, Option<Position>) {
    (record.applied, record.data)
}

fn content(payload: Bytes) -> Content {
    if payload.is_empty() {
        return Content::Mark;
    }
    match Delta::decode(payload) {
        Ok(delta) => Content::Delta(Box::new(DeltaFacts {
            header: *delta.header(),
            pages: {
                let mut pages: Vec<PageNumber> = delta.page_numbers().collect();
                pages.sort_unstable();
                pages
            },
        })),
        Err(error) => Content::Unreadable(error),
    }
}

pub(super) fn header_fault_text(fault: HeaderFault) -> String {
    match fault {
        HeaderFault::Damaged { offset } => {
            format!("the segment header is damaged at offset {offset}")
        }
        HeaderFault::Unsupported { version } => {
            format!("the segment has format version {version}, which this program does not know")
        }
    }
}

/// What recovery would do.
pub(super) const fn verdict_text(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Cut => "not written to its end and never acknowledged: recovery cuts it off",
        Verdict::End => "the end",
        Verdict::Refuse => "something durable is damaged or gone: recovery refuses",
        Verdict::Take => "sound",
    }
}

/// The header of a segment, with room.
const SEGMENT_HEAD_BYTES: usize = 4096;
