//! The frames of the WAL that belong to the state of a checkpoint record.
//!
//! A checkpoint changes the main file page by page, and a crash in the middle of it leaves a main
//! file that is no state at all. As long as the WAL is there that harms nobody: each page that a
//! frame has is taken from there. So before the first page is moved a record is made durable that
//! counts on the WAL, whose frames are synced before: main file and frames together are the state
//! that the record names. No later frame is moved before a later record says so, and the WAL does
//! not start afresh before a plain one does.
//!
//! After a crash the frames are moved once more, all of them, and then the main file is exactly
//! what the record says. Redo relies on that: a log entry may say of a page only what has changed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use super::error::Error;
use super::record::Record;
use super::start_lock::StartLock;
use crate::planted::{self, Bug};
use crate::wal::format::{FRAME_HEADER_BYTES, WAL_HEADER_BYTES, frame_bytes};
use crate::wal::index::IndexHeader;
use crate::wal::{Checksum, PageNumber, Salts, Stop, WalHeader, Walker};

/// The first frames of a WAL, up to the end of a transaction.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Overlay {
    /// Those of the WAL.
    pub salts: Salts,
    /// How many frames.
    pub frames: u32,
    /// The running checksum up to and including the last of them.
    pub checksum: Checksum,
}

impl Overlay {
    /// All frames that are published.
    pub(super) const fn of(header: &IndexHeader) -> Self {
        Self {
            salts: header.salts,
            frames: header.frame_max,
            checksum: header.frame_checksum,
        }
    }
}

/// What the durable record counts on; the record is saved on another thread than the one that asks.
#[derive(Debug, Default)]
pub(super) struct Standing(Mutex<Option<Overlay>>);

impl Standing {
    pub(super) fn set(&self, overlay: Option<Overlay>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = overlay;
    }

    /// Whether the record counts on the WAL: then it must not start afresh.
    pub(super) fn needs_wal(&self) -> bool {
        let is_needed = self.get().is_some();
        is_needed && !planted::is(Bug::RestartBeforeRecord)
    }

    /// Up to which frame of the WAL with this header pages may be moved.
    pub(super) fn reach(&self, header: &IndexHeader) -> u32 {
        if planted::is(Bug::PagesBeforeRecord) {
            return header.frame_max;
        }
        match self.get() {
            Some(overlay) if overlay.salts == header.salts => overlay.frames,
            _ => 0,
        }
    }

    fn get(&self) -> Option<Overlay> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moves the frames on which a record counts into the main file, and records that durably. Does
/// nothing with a plain record.
///
/// Whoever opens the database when this was interrupted finds the WAL as well, and nothing amiss.
pub(super) fn absorb(lock: &StartLock, record: &Record) -> Result<(), Error> {
    let Some(overlay) = record.overlay else {
        return Ok(());
    };
    let path = lock.wal_path();
    let gone = |what: String| Error::WalGone {
        file: path.clone(),
        what,
    };
    let wal = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(gone("it is not there".to_owned()));
        }
        opened => opened.map_err(|e| Error::io("open", &path, e))?,
    };
    let found = last_frames(&wal, record, overlay).map_err(|e| Error::io("read", &path, e))?;
    let pages = found.map_err(gone)?;
    let mut image = vec![0; record.page_size.len()];
    let main = lock.file();
    for (page, offset) in pages {
        if !record.page_count.contains(page) {
            continue;
        }
        wal.read_exact_at(&mut image, offset + FRAME_HEADER_BYTES as u64)
            .map_err(|e| Error::io("read", &path, e))?;
        main.write_all_at(&image, page.offset(record.page_size))
            .map_err(|e| Error::io("write", lock.path(), e))?;
    }
    let bytes = record.page_count.file_bytes(record.page_size);
    main.set_len(bytes)
        .and_then(|()| main.sync_all())
        .map_err(|e| Error::io("sync", lock.path(), e))?;
    record.save_without_overlay(lock)
}

/// Where the last frame of each page begins in the WAL; or why these frames are not all there.
fn last_frames(
    wal: &File,
    record: &Record,
    overlay: Overlay,
) -> io::Result<Result<BTreeMap<PageNumber, u64>, String>> {
    let mut reader = BufReader::with_capacity(READ_BYTES, wal);
    let mut head = [0; WAL_HEADER_BYTES];
    match reader.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Ok(Err("it has no header".to_owned()));
        }
        read => read?,
    }
    let header = match WalHeader::parse(&head) {
        Ok(header) if header.salts == overlay.salts && header.page_size == record.page_size => {
            header
        }
        Ok(_) => return Ok(Err("it was started afresh".to_owned())),
        Err(error) => return Ok(Err(error.to_string())),
    };
    let mut walker = Walker::new(header);
    let mut pages = BTreeMap::new();
    let bytes = usize::try_from(frame_bytes(record.page_size)).expect("a frame is small");
    let mut frame = vec![0; bytes];
    while walker.frame_next() <= overlay.frames {
        match reader.read_exact(&mut frame) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(Err(format!("it ends before frame {}", walker.frame_next())));
            }
            read => read?,
        }
        match walker.push(&frame) {
            Ok(None) => {}
            Ok(Some(transaction)) => {
                let frames = transaction.frames.into_iter();
                pages.extend(frames.map(|frame| (frame.page, frame.offset)));
            }
            Err(stop) => {
                return Ok(Err(format!("frame {}: {stop:?}", walker.frame_next())));
            }
        }
    }
    let end = walker.end(Stop::EndOfBytes);
    if end.frame_committed == overlay.frames && end.checksum == overlay.checksum {
        Ok(Ok(pages))
    } else {
        let what = format!("frame {} is another one", overlay.frames);
        Ok(Err(what))
    }
}

const READ_BYTES: usize = 1 << 20;
