//! SQLite's WAL: header, frames, transactions, and where and why it ends.

use wallaby::wal::format::{FRAME_HEADER_BYTES, WAL_HEADER_BYTES, frame_bytes, frame_offset};
use wallaby::wal::{
    ByteOrder, Checksum, End, FrameHeader, PageHash, Salts, Stop, Transaction, WalError, WalHeader,
    Walker,
};

use super::Shown;
use super::output::{Printer, Row, Tone, hex, hex128};
use super::page;
use super::source::{Failure, Source};

/// A WAL that is open.
pub(super) struct WalFile {
    pub(super) source: Source,
    /// Its header; why SQLite would ignore the file.
    pub(super) header: Result<WalHeader, WalError>,
    /// What a damaged header says nevertheless.
    salvaged: Option<WalHeader>,
}

/// What a frame is to SQLite.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// Part of a whole transaction.
    Committed,
    /// Valid, but its transaction has no end.
    Open,
    /// Where SQLite stops, and why.
    Stopped(Stop),
    /// Behind that place, written in this generation.
    Beyond,
    /// Behind that place, left by an earlier generation.
    Old,
    /// Behind that place, never written.
    Blank,
    /// The file ends within it.
    Short,
}

impl State {
    const fn text(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Open => "no commit",
            Self::Stopped(stop) => stop_text(stop),
            Self::Beyond => "beyond the end",
            Self::Old => "old",
            Self::Blank => "blank",
            Self::Short => "cut short",
        }
    }
}

/// Why SQLite goes no further.
pub(super) const fn stop_text(stop: Stop) -> &'static str {
    match stop {
        Stop::ChecksumMismatch => "wrong checksum",
        Stop::EndOfBytes => "end of file",
        Stop::SaltMismatch => "other salts: written before the WAL was restarted",
        Stop::ShortFrame => "the file ends within the frame",
        Stop::ZeroPage => "page number 0: never written",
    }
}

impl WalFile {
    pub(super) fn open(source: Source) -> Result<Self, Failure> {
        let head = source.read(0, WAL_HEADER_BYTES)?;
        Ok(Self {
            source,
            header: WalHeader::parse(&head),
            salvaged: WalHeader::salvage(&head),
        })
    }

    /// Follows the frames as SQLite does, one at a time.
    pub(super) fn walk(
        &self,
        header: WalHeader,
        mut take: impl FnMut(Transaction),
    ) -> Result<End, Failure> {
        let mut walker = Walker::new(header);
        loop {
            let bytes = self.frame(&header, walker.frame_next())?;
            match walker.push(&bytes) {
                Ok(Some(transaction)) => take(transaction),
                Ok(None) => {}
                Err(stop) => return Ok(walker.end(stop)),
            }
        }
    }

    fn frame(&self, header: &WalHeader, frame: u32) -> Result<Vec<u8>, Failure> {
        let length = FRAME_HEADER_BYTES + header.page_size.len();
        self.source
            .read(frame_offset(frame, header.page_size), length)
    }

    /// How many frames there is room for, one that is cut short included.
    fn frames(&self, header: &WalHeader) -> Result<u32, Failure> {
        let bytes = self.source.bytes()?.saturating_sub(WAL_HEADER_BYTES as u64);
        let frames = bytes.div_ceil(frame_bytes(header.page_size));
        Ok(u32::try_from(frames).unwrap_or(u32::MAX))
    }

    /// The header by which the frames can be read, damaged or not.
    fn usable_header(&self, printer: &mut Printer<'_>) -> Shown<Option<WalHeader>> {
        if self.source.bytes()? == 0 {
            printer.note("the WAL is empty: everything is in the database file")?;
            return Ok(None);
        }
        match self.header {
            Ok(header) => Ok(Some(header)),
            Err(error) => {
                printer.damage(format!(
                    "{error}; SQLite ignores this WAL{}",
                    if self.salvaged.is_some() {
                        ". What follows is read by what the header says nevertheless"
                    } else {
                        ""
                    }
                ))?;
                Ok(self.salvaged)
            }
        }
    }

    pub(super) fn summary(&self, printer: &mut Printer<'_>) -> Shown<()> {
        let Some(header) = self.usable_header(printer)? else {
            return Ok(());
        };
        let (mut transactions, mut pages) = (0_u64, std::collections::BTreeSet::new());
        let end = self.walk(header, |transaction| {
            transactions += 1;
            pages.extend(transaction.frames.iter().map(|frame| frame.page));
        })?;
        let order = match header.order {
            ByteOrder::Big => "big-endian",
            ByteOrder::Little => "little-endian",
        };
        let frames = self.frames(&header)?;
        printer.facts(
            &Row::new("wal")
                .with("file", self.source.path().display().to_string())
                .with("bytes", self.source.bytes()?)
                .with("page_size", header.page_size.bytes())
                .with("checksums", order)
                .with("checkpoint_sequence", header.checkpoint_sequence)
                .with("salts", salts_text(header.salts))
                .with("header_checksum", checksum_text(header.checksum()))
                .with("frames", frames)
                .with("transactions", transactions)
                .with("frames_committed", end.frame_committed)
                .with("frames_without_commit", end.frames_open)
                .with(
                    "frames_behind",
                    frames - end.frame_committed - end.frames_open,
                )
                .with("pages", pages.len())
                .with("database_pages", end.page_count.map(|count| count.0))
                .with("ends_at_frame", end.frame_committed + end.frames_open + 1)
                .with("ends_because", stop_text(end.stop)),
        )?;
        self.judge(printer, &header, &end)
    }

    /// A torn end is how a WAL can end; a frame that is damaged in front of others that are not is
    /// something else.
    fn judge(&self, printer: &mut Printer<'_>, header: &WalHeader, end: &End) -> Shown<()> {
        let stopped = end.frame_committed + end.frames_open + 1;
        if end.frames_open > 0 {
            printer.note(format!(
                "frames without a commit after frame {}: {}; a transaction under way, or one that a \
                 crash cut; SQLite ignores them",
                end.frame_committed, end.frames_open
            ))?;
        }
        if !matches!(end.stop, Stop::ChecksumMismatch | Stop::ZeroPage) {
            return Ok(());
        }
        let mut later = 0_u32;
        for frame in stopped.saturating_add(1)..=self.frames(header)? {
            let offset = frame_offset(frame, header.page_size);
            let bytes = self.source.read(offset, FRAME_HEADER_BYTES)?;
            let same = FrameHeader::parse(&bytes).is_ok_and(|head| head.salts == header.salts);
            later += u32::from(same);
        }
        let what = format!("frame {stopped}: {}", stop_text(end.stop));
        if later > 0 {
            printer.damage(format!(
                "{what}; frames of the same generation behind it, lost to SQLite: {later}"
            ))
        } else if end.stop == Stop::ChecksumMismatch {
            printer.note(format!(
                "{what}: it is being written, or a crash has torn it"
            ))
        } else {
            Ok(())
        }
    }

    /// Only whether anything is wrong.
    pub(super) fn verify(&self, printer: &mut Printer<'_>) -> Shown<()> {
        let Some(header) = self.usable_header(printer)? else {
            return Ok(());
        };
        let end = self.walk(header, drop)?;
        self.judge(printer, &header, &end)
    }

    pub(super) fn list(&self, printer: &mut Printer<'_>) -> Shown<()> {
        let Some(header) = self.usable_header(printer)? else {
            return Ok(());
        };
        let mut ends = Vec::new();
        let end = self.walk(header, |transaction| {
            ends.push(transaction.frame_first as usize + transaction.frames.len() - 1);
        })?;
        for frame in 1..=self.frames(&header)? {
            let bytes = self.frame(&header, frame)?;
            let state = state(&header, &end, frame, &bytes);
            let head = FrameHeader::parse(&bytes).ok();
            let transaction = ends.partition_point(|last| *last < frame as usize) + 1;
            let is_committed = state == State::Committed;
            let tone = match state {
                State::Committed => Tone::Plain,
                State::Stopped(Stop::ChecksumMismatch | Stop::ShortFrame) => Tone::Bad,
                _ => Tone::Faint,
            };
            let commit = head.and_then(|head| head.commit);
            printer.row(
                Row::new("frame")
                    .with("frame", frame)
                    .with("offset", frame_offset(frame, header.page_size))
                    .with("transaction", is_committed.then_some(transaction))
                    .with("page", head.map(|head| head.page.number()))
                    .with("commit", commit.map(|count| count.0))
                    .with("salts", head.map(|head| salts_text(head.salts)))
                    .with("checksum", head.map(|head| checksum_text(head.checksum)))
                    .with("holds", holds(&header, head, &bytes))
                    .with("state", state.text())
                    .toned(tone),
            )?;
        }
        self.judge(printer, &header, &end)
    }

    pub(super) fn show(&self, printer: &mut Printer<'_>, frame: u32) -> Shown<()> {
        let Some(header) = self.usable_header(printer)? else {
            return Err(Failure::new("there are no frames").into());
        };
        let frames = self.frames(&header)?;
        if frame == 0 || frame > frames {
            return Err(Failure::new(format!("there are frames 1 to {frames}, no {frame}")).into());
        }
        let end = self.walk(header, drop)?;
        let bytes = self.frame(&header, frame)?;
        let state = state(&header, &end, frame, &bytes);
        let head = FrameHeader::parse(&bytes).ok();
        let image = bytes.get(FRAME_HEADER_BYTES..).unwrap_or_default();
        let hash = head.map(|head| hex128(PageHash::of(head.page, image).0));
        printer.facts(
            &Row::new("frame")
                .with("frame", frame)
                .with("offset", frame_offset(frame, header.page_size))
                .with(
                    "header",
                    hex(bytes.get(..FRAME_HEADER_BYTES).unwrap_or(&bytes)),
                )
                .with("page", head.map(|head| head.page.number()))
                .with(
                    "commit",
                    head.and_then(|head| head.commit).map(|count| count.0),
                )
                .with("salts", head.map(|head| salts_text(head.salts)))
                .with("checksum", head.map(|head| checksum_text(head.checksum)))
                .with("page_hash", hash)
                .with("state", state.text()),
        )?;
        if let State::Stopped(Stop::ChecksumMismatch | Stop::ShortFrame) = state {
            printer.damage(format!("frame {frame}: {}", state.text()))?;
        }
        match head {
            Some(head) if image.len() == header.page_size.len() => {
                page::show(printer, head.page, image, None)
            }
            _ => Ok(()),
        }
    }
}

fn state(header: &WalHeader, end: &End, frame: u32, bytes: &[u8]) -> State {
    let valid = end.frame_committed + end.frames_open;
    if frame <= end.frame_committed {
        return State::Committed;
    } else if frame <= valid {
        return State::Open;
    } else if frame == valid + 1 {
        return State::Stopped(end.stop);
    }
    if (bytes.len() as u64) < frame_bytes(header.page_size) {
        return State::Short;
    }
    match FrameHeader::parse(bytes) {
        Ok(head) if head.salts == header.salts => State::Beyond,
        Ok(_) => State::Old,
        Err(_) => State::Blank,
    }
}

fn holds(header: &WalHeader, head: Option<FrameHeader>, bytes: &[u8]) -> Option<String> {
    let image = bytes.get(FRAME_HEADER_BYTES..)?;
    (image.len() == header.page_size.len()).then(|| page::glance(head?.page, image))?
}

pub(super) fn salts_text(salts: Salts) -> String {
    hex(&salts.0)
}

pub(super) fn checksum_text(checksum: Checksum) -> String {
    format!("{:08x}{:08x}", checksum.s0, checksum.s1)
}
