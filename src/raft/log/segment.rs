//! One segment file: its name, its creation, appending to it, reading a record back.
//!
//! A segment is created under a temporary name and gets its own name only when its header is
//! durable, so a file with a segment's name always has a header, or is damaged. It is zero-written
//! ahead of the batches, a slice at a time: a sync that changes no length and allocates no block
//! costs about half.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::files::{File, Files};
use super::format::{HEADER_BYTES, Place, RECORD_HEAD_BYTES, RawRecord, SegmentHeader};
use super::{LogError, LogIdentity};
use crate::planted::{self, Bug};
use crate::raft::codec::decode_entry;
use crate::raft::{Entry, LogId};

/// Zeros are written ahead in pieces of this size. Small enough that the extra sync is hardly
/// noticed, large enough that it comes once in hundreds of batches.
const SLICE_BYTES: u64 = 1 << 20;
/// A segment under creation. Whoever finds one at start-up removes it.
pub(super) const TEMPORARY_NAME: &str = "segment.new";
const SUFFIX: &str = ".log";

/// A segment's name: `<number>-<first index>.log`, both in 16 hexadecimal digits, so that names
/// sort as the log runs.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct SegmentName {
    pub(super) number: u64,
    pub(super) first_index: u64,
}

impl SegmentName {
    pub(super) fn text(self) -> String {
        format!("{:016x}-{:016x}{SUFFIX}", self.number, self.first_index)
    }

    /// Reads a name; `None` = this file is no segment.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (number, first_index) = text.strip_suffix(SUFFIX)?.split_once('-')?;
        let name = Self {
            number: u64::from_str_radix(number, 16).ok()?,
            first_index: u64::from_str_radix(first_index, 16).ok()?,
        };
        // One segment, one name: no upper case, no missing zeros, no sign. And one can follow.
        (name.text() == text && name.number < u64::MAX).then_some(name)
    }
}

/// What a reader needs of a segment. It outlives the file's name: a purge does not disturb a read.
pub(super) struct SegmentFile {
    pub(super) place: Place,
    pub(super) name: String,
    pub(super) file: Arc<dyn File>,
    files: Arc<dyn Files>,
}

impl SegmentFile {
    pub(super) fn new(
        files: Arc<dyn Files>,
        file: Arc<dyn File>,
        name: String,
        place: Place,
    ) -> Self {
        Self {
            place,
            name,
            file,
            files,
        }
    }

    /// Reads the entry whose record stands at `offset`, chained to `chain`, with a body of
    /// `body_bytes`. The CRC is checked: disks forget.
    pub(super) fn read_entry(
        &self,
        offset: u64,
        body_bytes: u32,
        chain: u32,
        log_id: LogId,
    ) -> Result<Entry, LogError> {
        let mut bytes = vec![0; (RECORD_HEAD_BYTES + body_bytes as usize).next_multiple_of(8)];
        let read = self.file.read_exact_at(&mut bytes, offset);
        read.map_err(|source| self.io("read", source))?;
        let bytes = Bytes::from(bytes);
        let record = RawRecord::decode(&bytes, self.place, chain);
        let Some(body) = record.and_then(|record| record.entry()) else {
            return Err(self.corrupt("an entry whose checksum was right before", offset));
        };
        match decode_entry(bytes.slice_ref(body)) {
            Ok(entry) if entry.log_id == log_id => Ok(entry),
            _ => Err(self.corrupt("an entry that is not the one expected", offset)),
        }
    }

    pub(super) fn io(&self, action: &'static str, source: io::Error) -> LogError {
        LogError::Io {
            action,
            file: self.files.path(&self.name),
            source,
        }
    }

    pub(super) fn corrupt(&self, what: &'static str, offset: u64) -> LogError {
        LogError::Corrupt {
            what,
            file: self.files.path(&self.name),
            offset,
        }
    }
}

/// A segment as the writer sees it.
pub(super) struct Segment {
    pub(super) shared: Arc<SegmentFile>,
    /// Where the next batch goes.
    pub(super) end: u64,
    /// CRC of the last record, or of the header.
    pub(super) chain: u32,
    /// Bytes of the file; zeros from `end` on.
    pub(super) length: u64,
    /// How far the segment may grow.
    pub(super) capacity: u64,
    /// The highest index ever written to it, truncated entries included. Once that is purged, the
    /// segment can go.
    pub(super) highest_index: Option<u64>,
    /// Whether all of it is said to be durable, by a batch without records or by its own header.
    pub(super) claimed: bool,
}

impl Segment {
    /// Creates a segment: durable header, durable zeros, durable name.
    pub(super) fn create(
        files: &Arc<dyn Files>,
        header: &SegmentHeader,
        capacity: u64,
    ) -> Result<Self, LogError> {
        let name = SegmentName {
            number: header.number,
            first_index: header.first_index,
        };
        let io = |action, source| LogError::Io {
            action,
            file: files.path(&name.text()),
            source,
        };
        let (head, chain) = header.encode();
        let file = files
            .create(TEMPORARY_NAME)
            .map_err(|source| io("create", source))?;
        let length = SLICE_BYTES.min(capacity).max(HEADER_BYTES as u64);
        let mut bytes = head;
        bytes.resize(
            usize::try_from(length).expect("a slice fits into memory"),
            0,
        );
        file.write_all_at(&bytes, 0)
            .map_err(|source| io("write", source))?;
        file.sync_data().map_err(|source| io("sync", source))?;
        files
            .rename(TEMPORARY_NAME, &name.text())
            .map_err(|source| io("create", source))?;
        if !planted::is(Bug::DirectoryNotSynced) {
            files
                .sync_dir()
                .map_err(|source| io("sync the directory of", source))?;
        }
        let place = Place {
            identity: header.identity,
            number: header.number,
        };
        let shared = SegmentFile::new(Arc::clone(files), file, name.text(), place);
        let (shared, end) = (Arc::new(shared), HEADER_BYTES as u64);
        Ok(Self {
            shared,
            end,
            chain,
            length,
            capacity,
            highest_index: None,
            claimed: true,
        })
    }

    pub(super) fn number(&self) -> u64 {
        self.shared.place.number
    }

    pub(super) fn identity(&self) -> LogIdentity {
        self.shared.place.identity
    }

    /// Whether a batch of `bytes` still goes into this segment.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.end.saturating_add(bytes as u64) <= self.capacity
    }

    /// Writes a batch and syncs it.
    pub(super) fn append(&mut self, batch: &[u8], chain: u32) -> Result<(), LogError> {
        let file = &self.shared.file;
        file.write_all_at(batch, self.end)
            .map_err(|source| self.shared.io("write", source))?;
        if !planted::is(Bug::AckBeforeSync) {
            file.sync_data()
                .map_err(|source| self.shared.io("sync", source))?;
        }
        self.end += batch.len() as u64;
        self.length = self.length.max(self.end);
        self.chain = chain;
        Ok(())
    }

    /// Writes zeros ahead when few are left. Called after the acknowledgements, so that nobody
    /// waits for it.
    pub(super) fn grow(&mut self) -> Result<(), LogError> {
        let left = self.length - self.end;
        if left >= SLICE_BYTES / 2 || self.length >= self.capacity {
            return Ok(());
        }
        let more = SLICE_BYTES.min(self.capacity - self.length);
        let zeros = vec![0; usize::try_from(more).expect("a slice fits into memory")];
        let file = &self.shared.file;
        let written = file.write_all_at(&zeros, self.length);
        written.map_err(|source| self.shared.io("write", source))?;
        file.sync_data()
            .map_err(|source| self.shared.io("sync", source))?;
        self.length += more;
        Ok(())
    }
}

/// Removes segments, oldest first, while nothing in them is needed: every entry purged, and a
/// later segment there whose header carries vote, purge and committed. One name at a time: were
/// two removals to become durable in the other order, a gap would be found at the next start.
pub(super) fn remove_purged(
    files: &dyn Files,
    segments: &mut std::collections::VecDeque<Segment>,
    purged: Option<LogId>,
) -> Result<(), LogError> {
    let purged = purged.map(|log_id| log_id.index);
    while segments.len() > 1
        && segments
            .front()
            .is_some_and(|first| first.highest_index <= purged)
    {
        if let Some(first) = segments.pop_front() {
            let removed = files.remove(&first.shared.name);
            removed.map_err(|source| first.shared.io("remove", source))?;
            let synced = files.sync_dir();
            synced.map_err(|source| first.shared.io("sync the directory of", source))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::SegmentName;

    #[test]
    fn a_segment_name_is_read_back_and_nothing_else_is_taken_for_one() {
        let name = SegmentName {
            number: 0x1f,
            first_index: 7,
        };
        assert_eq!(name.text(), "000000000000001f-0000000000000007.log");
        assert_eq!(SegmentName::parse(&name.text()), Some(name));
        for other in [
            "lock",
            "segment.new",
            "1f-7.log",
            "000000000000001F-0000000000000007.log",
            "+00000000000001f-0000000000000007.log",
            "000000000000001f-0000000000000007.log~",
            "ffffffffffffffff-0000000000000007.log",
        ] {
            assert_eq!(SegmentName::parse(other), None, "{other}");
        }
    }
}
