//! A segment read for its own sake: all that is in it, in order, and past damage where the bytes
//! allow it. For tools. Nothing is written and nothing decided here; of damage it says what
//! recovery would do about it, from the same table ([`Verdict`]).

use bytes::Bytes;
use openraft::EntryPayload;

use super::LogIdentity;
use super::format::{
    BATCH_HEAD_BYTES, BatchHead, HEADER_BYTES, HeaderFault, Place, RawRecord, SegmentHeader, Step,
};
use super::recover::{Here, Later, Next, Verdict, verdict};
use super::walk::{next_of, read_batch};
use crate::raft::codec::{CodecError, decode_entry};
use crate::raft::{StoredMembership, Vote, position_of};
use crate::wal::Position;

/// What a segment's header says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SegmentFacts {
    /// Whose log it is.
    pub identity: LogIdentity,
    /// The segment's number, from 1.
    pub number: u64,
    /// The index of the entry that is next when the segment begins.
    pub first_index: u64,
    /// Where the batches of the segment before end, in bytes; 0 = there was none.
    pub previous_end: u64,
    /// The checksum of its last record, or of its header if it has none.
    pub previous_chain: u32,
    /// The last entry before, or the last purged one.
    pub last: Option<Position>,
    /// The vote.
    pub vote: Option<Vote>,
    /// The last purged entry.
    pub purged: Option<Position>,
    /// Up to where entries are known to be committed.
    pub committed: Option<Position>,
}

impl SegmentFacts {
    /// Reads the header at the beginning of a segment.
    ///
    /// # Errors
    ///
    /// Why it cannot be read.
    pub fn read(segment: &[u8]) -> Result<Self, HeaderFault> {
        SegmentHeader::decode(segment).map(|(header, _)| Self::of(&header))
    }

    fn of(header: &SegmentHeader) -> Self {
        let frontier = &header.frontier;
        Self {
            identity: header.identity,
            number: header.number,
            first_index: header.first_index,
            previous_end: header.previous_end,
            previous_chain: header.previous_chain,
            last: frontier.last.as_ref().map(position_of),
            vote: frontier.vote,
            purged: frontier.purged.as_ref().map(position_of),
            committed: frontier.committed.as_ref().map(position_of),
        }
    }
}

/// A record's meaning.
#[derive(Clone, Debug, PartialEq)]
pub enum LogRecord {
    /// An entry without effect, as a new leader appends it.
    Blank(Position),
    /// An entry with a payload: an encoded delta, or nothing (a mark).
    Payload(Position, Bytes),
    /// An entry that changes the membership.
    Membership(Position, StoredMembership),
    /// The vote from here on.
    Vote(Vote),
    /// The entries after this one are no longer part of the log; `None`: no entry is.
    TruncateAfter(Option<Position>),
    /// The entries up to this one are no longer needed.
    Purge(Position),
    /// The entries up to this one are committed by a quorum.
    Committed(Position),
}

/// How far a record can be trusted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Soundness {
    /// Its checksum is wrong.
    Damaged,
    /// Its checksum is right.
    Sound,
    /// Its checksum continues that of a record that cannot be read.
    Unverified,
}

/// One thing in a segment.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// The head of a batch. Its records follow.
    Batch {
        /// Where it begins, in bytes from the start of the segment.
        offset: u64,
        /// Bytes of its records.
        bytes: u64,
        /// How many records it says it has.
        records: u32,
        /// What recovery does here: `Take`, unless a record of it is damaged.
        verdict: Verdict,
    },
    /// A record of the batch before.
    Record {
        /// Where it begins, in bytes from the start of the segment.
        offset: u64,
        /// Its bytes, with its head and padding.
        bytes: u64,
        /// Whether its checksum is right.
        soundness: Soundness,
        /// What it says, or why that makes no sense.
        record: Result<LogRecord, CodecError>,
    },
    /// Bytes that are neither a batch nor blank, up to the next batch if there is one.
    Damage {
        /// Where it begins, in bytes from the start of the segment.
        offset: u64,
        /// How many bytes.
        bytes: u64,
        /// What recovery does about it.
        verdict: Verdict,
    },
    /// Zeros up to the end of the file.
    Blank {
        /// Where they begin, in bytes from the start of the segment.
        offset: u64,
        /// How many bytes; may be none.
        bytes: u64,
        /// What recovery does: `End`, unless more was said to be durable.
        verdict: Verdict,
    },
}

/// The checksum that the next record continues.
#[derive(Clone, Copy, Debug)]
enum Chain {
    Known(u32),
    /// From a record that is itself damaged: right, unless the checksum is what was damaged.
    Doubtful(u32),
    Lost,
}

impl Chain {
    const fn value(self) -> u32 {
        match self {
            Self::Known(chain) | Self::Doubtful(chain) => chain,
            Self::Lost => 0,
        }
    }
}

/// Walks a segment in memory. Each step takes at least one byte, so it always comes to an end.
#[derive(Clone, Debug)]
pub struct Survey {
    segment: Bytes,
    place: Place,
    next: Option<SegmentHeader>,
    chain: Chain,
    at: usize,
    batch_end: usize,
    is_done: bool,
}

impl Survey {
    /// A walk through `segment`, a whole file. `next` is the beginning of the segment that follows,
    /// which knows where this one ends.
    ///
    /// # Errors
    ///
    /// The header cannot be read; see [`Self::without_header`].
    pub fn of(segment: Bytes, next: Option<&[u8]>) -> Result<Self, HeaderFault> {
        let (header, chain) = SegmentHeader::decode(&segment)?;
        let mut survey = Self::without_header(segment, header.identity, header.number, next);
        survey.chain = Chain::Known(chain);
        Ok(survey)
    }

    /// The same for a segment whose header cannot be read, but of which it is known whose it is and
    /// which.
    #[must_use]
    pub fn without_header(
        segment: Bytes,
        identity: LogIdentity,
        number: u64,
        next: Option<&[u8]>,
    ) -> Self {
        Self {
            segment,
            place: Place { identity, number },
            next: next.and_then(|next| Some(SegmentHeader::decode(next).ok()?.0)),
            chain: Chain::Lost,
            at: HEADER_BYTES,
            batch_end: 0,
            is_done: false,
        }
    }

    /// The bytes that it walks through: payloads that it yields are slices of them.
    #[must_use]
    pub fn segment(&self) -> Bytes {
        self.segment.clone()
    }

    fn record(&mut self) -> Option<Finding> {
        let rest = self.segment.get(self.at..self.batch_end)?;
        let (raw, is_sound) = RawRecord::read(rest, self.place, self.chain.value())?;
        let soundness = match self.chain {
            Chain::Known(_) | Chain::Doubtful(_) if is_sound => Soundness::Sound,
            Chain::Known(_) => Soundness::Damaged,
            Chain::Doubtful(_) | Chain::Lost => Soundness::Unverified,
        };
        self.chain = if soundness == Soundness::Damaged {
            Chain::Doubtful(raw.chain)
        } else {
            Chain::Known(raw.chain)
        };
        let record = meaning(&raw, &self.segment);
        let (offset, bytes) = (self.at as u64, raw.bytes as u64);
        self.at += raw.bytes;
        Some(Finding::Record {
            offset,
            bytes,
            soundness,
            record,
        })
    }

    fn batch(&mut self) -> Option<Finding> {
        let head = BatchHead::decode(&self.segment, self.at, self.place)?;
        let whole = read_batch(&self.segment, self.at, self.place, self.chain.value());
        let here = match whole {
            Some(_) => Here::Batch,
            None => Here::Damage,
        };
        let offset = self.at as u64;
        self.at += BATCH_HEAD_BYTES;
        self.batch_end = self.at.saturating_add(head.bytes).min(self.segment.len());
        let later = match here {
            Here::Damage if self.next_batch(self.batch_end).is_some() => Later::Claims,
            _ => Later::Silent,
        };
        Some(Finding::Batch {
            offset,
            bytes: head.bytes as u64,
            records: head.records,
            verdict: self.verdict(here, later, offset),
        })
    }

    /// What stands where a batch or a record should.
    fn damage(&mut self) -> Finding {
        let (offset, end) = (self.at as u64, self.segment.len());
        let rest = self.segment.get(self.at..).unwrap_or_default();
        let in_batch = self.at < self.batch_end;
        let blank = !in_batch && rest.iter().all(|byte| *byte == 0);
        let next = self.next_batch(self.at);
        let later = if next.is_some() {
            Later::Claims
        } else {
            Later::Silent
        };
        let here = if blank { Here::Blank } else { Here::Damage };
        let verdict = self.verdict(here, later, offset);
        self.chain = Chain::Lost;
        self.at = next.unwrap_or(end);
        self.batch_end = 0;
        self.is_done = next.is_none();
        let bytes = (self.at as u64).saturating_sub(offset);
        if blank {
            Finding::Blank {
                offset,
                bytes,
                verdict,
            }
        } else {
            Finding::Damage {
                offset,
                bytes,
                verdict,
            }
        }
    }

    /// Where the next head of a batch stands, from `from` on. It says itself that everything before
    /// it was durable.
    fn next_batch(&self, from: usize) -> Option<usize> {
        let mut offsets = (from.next_multiple_of(8)..self.segment.len()).step_by(8);
        offsets.find(|&offset| BatchHead::decode(&self.segment, offset, self.place).is_some())
    }

    fn verdict(&self, here: Here, later: Later, offset: u64) -> Verdict {
        let next = match (&self.next, self.chain) {
            // Without a chain there is no telling by it.
            (Some(next), Chain::Lost) if next.previous_end == offset => Next::EndsHere,
            (next, chain) => match usize::try_from(offset) {
                Ok(end) => next_of(next.as_ref(), end, chain.value()),
                Err(_) => Next::Absent,
            },
        };
        verdict(here, later, next)
    }
}

impl Iterator for Survey {
    type Item = Finding;

    fn next(&mut self) -> Option<Finding> {
        if self.is_done {
            return None;
        }
        if self.at < self.batch_end
            && let Some(record) = self.record()
        {
            return Some(record);
        }
        if self.at >= self.batch_end
            && let Some(batch) = self.batch()
        {
            return Some(batch);
        }
        Some(self.damage())
    }
}

fn meaning(raw: &RawRecord<'_>, segment: &Bytes) -> Result<LogRecord, CodecError> {
    Ok(match raw.step()? {
        Step::Entry(log_id) => {
            let position = position_of(&log_id);
            match decode_entry(segment.slice_ref(raw.body))?.payload {
                EntryPayload::Blank => LogRecord::Blank(position),
                EntryPayload::Normal(payload) => LogRecord::Payload(position, payload.0),
                EntryPayload::Membership(membership) => {
                    let stored = StoredMembership::new(Some(log_id), membership);
                    LogRecord::Membership(position, stored)
                }
            }
        }
        Step::Vote(vote) => LogRecord::Vote(vote),
        Step::TruncateAfter(kept) => LogRecord::TruncateAfter(kept.as_ref().map(position_of)),
        Step::Purge(log_id) => LogRecord::Purge(position_of(&log_id)),
        Step::Committed(log_id) => LogRecord::Committed(position_of(&log_id)),
    })
}

#[cfg(test)]
mod tests {
    use super::super::format::{BatchWriter, Frontier, RECORD_HEAD_BYTES, Record};
    use super::*;
    use crate::raft::{LeaderId, LogId};
    use crate::wal::ClusterId;

    fn identity() -> LogIdentity {
        LogIdentity {
            cluster: ClusterId(7),
            node: 9,
        }
    }

    fn committed(index: u64) -> LogId {
        LogId {
            leader_id: LeaderId {
                term: 1,
                node_id: 9,
            },
            index,
        }
    }

    /// A segment with two batches of two records each, and room.
    fn segment() -> Vec<u8> {
        let header = SegmentHeader {
            identity: identity(),
            number: 1,
            first_index: 0,
            previous_end: 0,
            previous_chain: 0,
            frontier: Frontier::default(),
        };
        let (mut bytes, mut chain) = header.encode();
        let place = Place {
            identity: identity(),
            number: 1,
        };
        for first in [1, 3] {
            let mut writer = BatchWriter::new(Vec::new(), place, chain);
            for index in [first, first + 1] {
                writer.push(&Record::Committed(committed(index)));
            }
            let (batch, last) = writer.finish(bytes.len() as u64);
            bytes.extend_from_slice(&batch);
            chain = last;
        }
        bytes.resize(bytes.len() + 64, 0);
        bytes
    }

    /// The indexes of the records and how sound they are, and the verdicts on everything else.
    fn summary(survey: Survey) -> (Vec<(u64, Soundness)>, Vec<Verdict>) {
        let (mut records, mut verdicts) = (Vec::new(), Vec::new());
        for finding in survey {
            match finding {
                Finding::Record {
                    soundness,
                    record: Ok(LogRecord::Committed(position)),
                    ..
                } => records.push((position.index, soundness)),
                Finding::Record { .. } => {}
                Finding::Batch { verdict, .. }
                | Finding::Damage { verdict, .. }
                | Finding::Blank { verdict, .. } => verdicts.push(verdict),
            }
        }
        (records, verdicts)
    }

    fn of(bytes: Vec<u8>) -> (Vec<(u64, Soundness)>, Vec<Verdict>) {
        summary(Survey::of(Bytes::from(bytes), None).unwrap())
    }

    #[test]
    fn a_sound_segment_is_read_to_its_end() {
        let (records, verdicts) = of(segment());
        let sound = (1..=4).map(|index| (index, Soundness::Sound));
        assert_eq!(records, sound.collect::<Vec<_>>());
        assert_eq!(verdicts, [Verdict::Take, Verdict::Take, Verdict::End]);
    }

    #[test]
    fn what_follows_a_damaged_record_is_still_read_and_recovery_would_refuse() {
        use Soundness::{Damaged, Sound, Unverified};
        let first = HEADER_BYTES + BATCH_HEAD_BYTES;
        // In the body of the first record, and in its checksum.
        for (byte, second) in [(first + RECORD_HEAD_BYTES, Sound), (first + 4, Unverified)] {
            let mut bytes = segment();
            bytes[byte] ^= 2;
            let (records, verdicts) = of(bytes);
            let soundness: Vec<Soundness> = records.iter().map(|record| record.1).collect();
            assert_eq!(soundness, [Damaged, second, Sound, Sound], "byte {byte}");
            assert_eq!(verdicts[0], Verdict::Refuse);
        }
    }

    #[test]
    fn a_record_without_an_end_is_skipped_up_to_the_next_batch() {
        let mut bytes = segment();
        bytes[HEADER_BYTES + BATCH_HEAD_BYTES + 3] = 0x7f;
        let (records, verdicts) = of(bytes);
        let found: Vec<u64> = records.iter().map(|record| record.0).collect();
        assert_eq!(found, [3, 4]);
        assert_eq!(verdicts[..2], [Verdict::Refuse, Verdict::Refuse]);
    }

    #[test]
    fn a_torn_batch_at_the_end_would_be_cut() {
        let mut bytes = segment();
        let (_, whole) = of(bytes.clone());
        assert_eq!(whole[1], Verdict::Take);
        let second = HEADER_BYTES + BATCH_HEAD_BYTES + 2 * (RECORD_HEAD_BYTES + 24);
        bytes[second + BATCH_HEAD_BYTES + RECORD_HEAD_BYTES + 24..].fill(0);
        let (records, verdicts) = of(bytes);
        assert_eq!(records.len(), 3);
        assert_eq!(verdicts[..2], [Verdict::Take, Verdict::Cut]);
    }

    #[test]
    fn without_a_header_the_batches_are_found_all_the_same() {
        let mut bytes = segment();
        bytes[0] = 0;
        assert!(Survey::of(Bytes::from(bytes.clone()), None).is_err());
        let survey = Survey::without_header(Bytes::from(bytes), identity(), 1, None);
        let (records, _) = summary(survey);
        let found: Vec<u64> = records.iter().map(|record| record.0).collect();
        assert_eq!(found, [1, 2, 3, 4]);
        assert_eq!(records[0].1, Soundness::Unverified);
        assert_eq!(records[1].1, Soundness::Sound);
    }
}
