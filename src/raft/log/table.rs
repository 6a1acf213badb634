//! Which entries the log has, where each stands on disk, and the recent ones themselves.
//!
//! The table is ahead of the disk: it shows what was submitted. Each row knows the number of its
//! submission, and what is flushed is one number, so "is this entry durable?" has an exact answer
//! also while a truncation is under way.

use std::collections::VecDeque;
use std::sync::Arc;

use super::LogError;
use super::format::Frontier;
use super::segment::SegmentFile;
use crate::raft::{Entry, LeaderId, LogId, position_of};
use crate::wal::Position;

/// Where an entry's record stands.
#[derive(Clone)]
pub(super) struct Location {
    pub(super) segment: Arc<SegmentFile>,
    pub(super) offset: u64,
    /// The CRC that its record is chained to.
    pub(super) chain: u32,
}

/// One entry.
struct Row {
    leader_id: LeaderId,
    /// Number of the submission that brought it; 0 = recovered.
    sequence: u64,
    /// Bytes of the encoded entry.
    bytes: u32,
    /// `None` until it is flushed; it is in the cache until then.
    location: Option<Location>,
}

/// The entries of the log.
pub(super) struct Table {
    /// What was submitted, entries apart.
    pub(super) frontier: Frontier,
    /// Index of the first row.
    base: u64,
    rows: VecDeque<Row>,
    /// The last entries; the newest belongs to the last row.
    cached: VecDeque<Entry>,
    cached_bytes: usize,
    cache_bytes_max: usize,
    /// Every submission up to this number is flushed.
    flushed: u64,
}

impl Table {
    pub(super) fn new(frontier: Frontier, cache_bytes_max: usize) -> Self {
        Self {
            frontier,
            base: frontier.next_index(),
            rows: VecDeque::new(),
            cached: VecDeque::new(),
            cached_bytes: 0,
            cache_bytes_max,
            flushed: 0,
        }
    }

    /// Index of the first entry there is; `None` = there is none.
    pub(super) fn first_index(&self) -> Option<u64> {
        (!self.rows.is_empty()).then_some(self.base)
    }

    /// Adds an entry found on disk. Whether it continues the log has been asked before.
    pub(super) fn recover(&mut self, log_id: LogId, bytes: u32, location: Location) {
        self.push(
            log_id,
            Row {
                leader_id: log_id.leader_id,
                sequence: 0,
                bytes,
                location: Some(location),
            },
        );
    }

    /// Adds a submitted entry. Whether it continues the log has been asked before.
    pub(super) fn append(&mut self, entry: Entry, bytes: u32, sequence: u64) {
        let log_id = entry.log_id;
        self.push(
            log_id,
            Row {
                leader_id: log_id.leader_id,
                sequence,
                bytes,
                location: None,
            },
        );
        self.cached_bytes += bytes as usize;
        self.cached.push_back(entry);
    }

    fn push(&mut self, log_id: LogId, row: Row) {
        if self.rows.is_empty() {
            self.base = log_id.index;
        }
        self.rows.push_back(row);
        self.frontier.append(log_id);
    }

    pub(super) fn truncate_after(&mut self, kept: Option<LogId>) {
        let end = kept.map_or(0, |log_id| log_id.index.saturating_add(1));
        while self.base + self.rows.len() as u64 > end {
            let Some(row) = self.rows.pop_back() else {
                break;
            };
            if self.cached.pop_back().is_some() {
                self.cached_bytes -= row.bytes as usize;
            }
        }
        self.frontier.truncate_after(kept);
    }

    pub(super) fn purge(&mut self, log_id: LogId) {
        while !self.rows.is_empty() && self.base <= log_id.index {
            if self.cached.len() == self.rows.len() {
                self.evict_one();
            }
            self.rows.pop_front();
            self.base += 1;
        }
        self.frontier.purge(log_id);
    }

    /// A batch is on disk: notes where one of its entries stands, unless that entry has been
    /// truncated or purged meanwhile.
    pub(super) fn place(&mut self, log_id: LogId, sequence: u64, location: Location) {
        if let Some(row) = self.row_index(log_id.index)
            && self.rows[row].sequence == sequence
        {
            self.rows[row].location = Some(location);
        }
    }

    /// Every submission up to `sequence` is durable. Flushed entries may now leave the cache.
    pub(super) fn flush(&mut self, sequence: u64) {
        self.flushed = sequence;
        while self.cached_bytes > self.cache_bytes_max && !self.cached.is_empty() {
            let oldest = &self.rows[self.rows.len() - self.cached.len()];
            if oldest.sequence > self.flushed || oldest.location.is_none() {
                break;
            }
            self.evict_one();
        }
    }

    fn evict_one(&mut self) {
        let oldest = self.rows.len() - self.cached.len();
        if self.cached.pop_front().is_some() {
            self.cached_bytes -= self.rows[oldest].bytes as usize;
        }
    }

    fn row_index(&self, index: u64) -> Option<usize> {
        let row = usize::try_from(index.checked_sub(self.base)?).ok()?;
        (row < self.rows.len()).then_some(row)
    }

    /// The id of the entry at an index.
    fn log_id(&self, index: u64) -> Option<LogId> {
        let row = &self.rows[self.row_index(index)?];
        Some(LogId {
            leader_id: row.leader_id,
            index,
        })
    }

    /// Whether the entry is durable; `None` = the log does not contain it. A purged entry was.
    pub(super) fn is_durable(&self, position: Position) -> Option<bool> {
        if self
            .frontier
            .purged
            .is_some_and(|purged| purged.index >= position.index)
        {
            return Some(true);
        }
        let row = &self.rows[self.row_index(position.index)?];
        let same = row.leader_id.term == position.term && row.leader_id.node_id == position.node;
        same.then_some(row.sequence <= self.flushed)
    }

    /// The last entry that is flushed and still there, or the last purged one.
    pub(super) fn durable_last(&self) -> Option<Position> {
        // Submission numbers never fall along the table: later rows were submitted later.
        let flushed = self
            .rows
            .partition_point(|row| row.sequence <= self.flushed);
        let Some(last) = flushed.checked_sub(1) else {
            return self.frontier.purged.as_ref().map(position_of);
        };
        let log_id = LogId {
            leader_id: self.rows[last].leader_id,
            index: self.base + last as u64,
        };
        Some(position_of(&log_id))
    }

    /// Bytes of the entries after one index up to another, as far as they are here.
    pub(super) fn bytes_between(&self, after: u64, to: u64) -> u64 {
        let place = |index: u64| usize::try_from(index.saturating_sub(self.base)).unwrap_or(0);
        let end = place(to.saturating_add(1)).min(self.rows.len());
        let begin = place(after.saturating_add(1)).min(end);
        self.rows
            .range(begin..end)
            .map(|row| u64::from(row.bytes))
            .sum()
    }

    /// The last entry of each leader between two indices, both inclusive. (openraft's interface
    /// speaks of the first ones; its own implementation, and its use of them, mean the last.)
    pub(super) fn index_of_tail(&self, bytes: u64) -> u64 {
        let mut left = bytes;
        let mut index = self.base + self.rows.len() as u64;
        for row in self.rows.iter().rev() {
            let Some(rest) = left.checked_sub(u64::from(row.bytes)) else {
                break;
            };
            left = rest;
            index -= 1;
        }
        index
    }

    pub(super) fn key_log_ids(&self, first: u64, last: u64) -> Vec<LogId> {
        let mut keys: Vec<LogId> = Vec::new();
        for log_id in (first..=last).map_while(|index| self.log_id(index)) {
            match keys.last_mut() {
                Some(key) if key.leader_id == log_id.leader_id => *key = log_id,
                _ => keys.push(log_id),
            }
        }
        keys
    }

    /// What to read for the entries from `start` to `end` (exclusive): at most `bytes_max` bytes,
    /// but never less than one entry. What is cached is taken now, the rest is read without lock.
    pub(super) fn plan(&self, start: u64, end: u64, bytes_max: usize) -> Plan {
        let mut plan = Plan {
            reads: Vec::new(),
            from_disk: false,
        };
        let uncached = self.rows.len() - self.cached.len();
        let mut bytes = 0_usize;
        for index in start.max(self.base)..end {
            let Some(row_index) = self.row_index(index) else {
                break;
            };
            let row = &self.rows[row_index];
            bytes = bytes.saturating_add(row.bytes as usize);
            if bytes > bytes_max && !plan.reads.is_empty() {
                break;
            }
            let cached = row_index
                .checked_sub(uncached)
                .map(|place| &self.cached[place]);
            plan.reads.push(match (cached, &row.location) {
                (Some(entry), _) => Read::Cached(entry.clone()),
                (None, Some(location)) => {
                    plan.from_disk = true;
                    let log_id = LogId {
                        leader_id: row.leader_id,
                        index,
                    };
                    Read::Disk {
                        location: location.clone(),
                        bytes: row.bytes,
                        log_id,
                    }
                }
                (None, None) => unreachable!("an entry leaves the cache only once it is placed"),
            });
        }
        plan
    }
}

/// One entry to read.
enum Read {
    Cached(Entry),
    Disk {
        location: Location,
        bytes: u32,
        log_id: LogId,
    },
}

/// Entries to read, as the table was at one moment.
pub(super) struct Plan {
    reads: Vec<Read>,
    /// Whether [`read`](Self::read) will wait for a disk.
    pub(super) from_disk: bool,
}

impl Plan {
    pub(super) fn read(self) -> Result<Vec<Entry>, LogError> {
        let mut entries = Vec::with_capacity(self.reads.len());
        for read in self.reads {
            entries.push(match read {
                Read::Cached(entry) => entry,
                Read::Disk {
                    location,
                    bytes,
                    log_id,
                } => location
                    .segment
                    .read_entry(location.offset, bytes, location.chain, log_id)?,
            });
        }
        Ok(entries)
    }
}
