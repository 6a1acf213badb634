//! SQLite's WAL-index: its header, how far readers and checkpoints are, and which frame has which
//! page.

use wallaby::wal::index::{
    BACKFILL_ATTEMPTED_OFFSET, BACKFILL_OFFSET, INDEX_HEADER_BYTES, READ_MARK_UNUSED, READ_MARKS,
    READ_MARKS_OFFSET, REGION_BYTES, Region, lookup, region_of_frame,
};
use wallaby::wal::{IndexHeader, PageNumber, PageSize, WalHeader};

use super::Shown;
use super::output::{Printer, Row, Tone, Value};
use super::source::{Failure, Source};
use super::wal_file::{WalFile, checksum_text, salts_text};

/// A WAL-index in memory.
pub(super) struct WalIndex {
    source: Source,
    bytes: Vec<u8>,
}

impl WalIndex {
    pub(super) fn open(source: Source) -> Result<Self, Failure> {
        let bytes = source.read_all()?;
        Ok(Self { source, bytes })
    }

    pub(super) fn summary(&self, printer: &mut Printer<'_>) -> Shown<()> {
        let copies = [0, INDEX_HEADER_BYTES].map(|offset| {
            let copy = self.bytes.get(offset..).unwrap_or_default();
            IndexHeader::parse(copy)
        });
        let settled = IndexHeader::parse_copies(&self.bytes);
        let header = copies[0].or(copies[1]);
        let marks = (0..READ_MARKS).map(|mark| {
            let word = self.word(READ_MARKS_OFFSET + 4 * mark);
            word.filter(|mark| *mark != READ_MARK_UNUSED)
        });
        let marks: Vec<Value> = marks.map(Value::from).collect();
        let header = header.ok();
        printer.facts(
            &Row::new("wal_index")
                .with("file", self.source.path().display().to_string())
                .with("bytes", self.bytes.len())
                .with("regions", self.bytes.len() / REGION_BYTES)
                .with("transactions_counted", header.map(|header| header.change))
                .with(
                    "page_size",
                    header
                        .and_then(|header| header.page_size)
                        .map(PageSize::bytes),
                )
                .with("last_frame", header.map(|header| header.frame_max))
                .with("database_pages", header.map(|header| header.page_count.0))
                .with("salts", header.map(|header| salts_text(header.salts)))
                .with(
                    "frame_checksum",
                    header.map(|header| checksum_text(header.frame_checksum)),
                )
                .with("frames_in_database", self.word(BACKFILL_OFFSET))
                .with("frames_attempted", self.word(BACKFILL_ATTEMPTED_OFFSET))
                .with("read_marks", Value::List(marks)),
        )?;
        if self.bytes.is_empty() {
            return printer.note("the WAL-index is empty: nobody has opened the database since");
        }
        match settled {
            Ok(_) => Ok(()),
            Err(error) => printer.damage(format!(
                "{error} (copy 1: {}; copy 2: {}); SQLite builds it anew from the WAL",
                verdict(copies[0].err()),
                verdict(copies[1].err())
            )),
        }
    }

    /// Each frame with the page entered for it, and whether a search finds it.
    pub(super) fn list(&self, printer: &mut Printer<'_>) -> Shown<()> {
        let mut wrong = 0_u32;
        for frame in 1..=self.frames() {
            let Some((region, place)) = self.region(frame) else {
                printer.damage(format!("frame {frame} has no place: the file is too short"))?;
                break;
            };
            let page = self.entered(frame);
            let found = page.map(|page| lookup(region, place, page, frame));
            let is_found = found == Some(Ok(Some(frame)));
            wrong += u32::from(!is_found);
            printer.row(
                Row::new("entry")
                    .with("frame", frame)
                    .with("region", place)
                    .with("page", page.map(PageNumber::number))
                    .with("found", is_found)
                    .toned(if is_found { Tone::Plain } else { Tone::Bad }),
            )?;
        }
        if wrong > 0 {
            printer.damage(format!(
                "{wrong} frames are not found by a search for their page"
            ))?;
        }
        Ok(())
    }

    /// Whether it is whole, and says what the WAL beside it says.
    pub(super) fn verify(&self, printer: &mut Printer<'_>, wal: Option<&WalFile>) -> Shown<()> {
        let header = match IndexHeader::parse_copies(&self.bytes) {
            Ok(header) => header,
            Err(_) if self.bytes.is_empty() => return Ok(()),
            Err(error) => {
                return printer.damage(format!("{}: {error}", self.source.path().display()));
            }
        };
        let mut wrong = 0_u32;
        for frame in 1..=header.frame_max {
            let place = self.region(frame);
            let found = place.and_then(|(region, place)| {
                let page = self.entered(frame)?;
                lookup(region, place, page, frame).ok()?
            });
            if place.is_none() {
                printer.damage(format!("the WAL-index has no room for frame {frame}"))?;
                break;
            }
            wrong += u32::from(found != Some(frame));
        }
        if wrong > 0 {
            printer.damage(format!(
                "{wrong} frames of the WAL-index cannot be found in it"
            ))?;
        }
        let Some((wal, of_wal)) = wal.and_then(|wal| Some((wal, *wal.header.as_ref().ok()?)))
        else {
            return Ok(());
        };
        self.compare(printer, &header, wal, of_wal)
    }

    fn compare(
        &self,
        printer: &mut Printer<'_>,
        header: &IndexHeader,
        wal: &WalFile,
        of_wal: WalHeader,
    ) -> Shown<()> {
        if header.frame_max == 0 || header.salts != of_wal.salts {
            return printer.note(
                "the WAL-index is of another generation than the WAL: the WAL is about to be \
                 restarted, or was copied at another moment",
            );
        }
        let (mut frame, mut wrong) = (0_u32, None);
        let end = wal.walk(of_wal, |transaction| {
            for found in transaction.frames {
                frame += 1;
                if frame <= header.frame_max && self.entered(frame) != Some(found.page) {
                    wrong = wrong.or(Some(frame));
                }
            }
        })?;
        if let Some(wrong) = wrong {
            printer.damage(format!("frame {wrong} has another page in the WAL-index"))?;
        }
        if end.frame_committed < header.frame_max {
            printer.damage(format!(
                "the WAL-index names {} frames, the WAL has {}",
                header.frame_max, end.frame_committed
            ))?;
        }
        Ok(())
    }

    fn frames(&self) -> u32 {
        let header = IndexHeader::parse(&self.bytes).or_else(|_| {
            let second = self.bytes.get(INDEX_HEADER_BYTES..).unwrap_or_default();
            IndexHeader::parse(second)
        });
        header.map_or(0, |header| header.frame_max)
    }

    fn region(&self, frame: u32) -> Option<(&Region, u32)> {
        let region = region_of_frame(frame).region;
        let begin = (region as usize).checked_mul(REGION_BYTES)?;
        Some((self.bytes.get(begin..)?.first_chunk()?, region))
    }

    fn entered(&self, frame: u32) -> Option<PageNumber> {
        let (region, _) = self.region(frame)?;
        let bytes = region.get(region_of_frame(frame).page_offset()..)?;
        PageNumber::new(u32::from_le_bytes(*bytes.first_chunk()?))
    }

    fn word(&self, offset: usize) -> Option<u32> {
        let bytes = self.bytes.get(offset..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    }
}

fn verdict(error: Option<wallaby::wal::WalError>) -> String {
    error.map_or_else(|| "sound".to_owned(), |error| error.to_string())
}
