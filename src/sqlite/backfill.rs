//! Moves a piece of the WAL into the main file, so that no checkpoint keeps its thread for long.
//!
//! What SQLite does in `walCheckpoint` when it is PASSIVE, on the same open files and under the
//! same locks, but for some frames only. SQLite's own sorts all frames of the WAL each time: made
//! to stop early, a piece would still cost as much as the WAL is long.
//!
//! That a piece may end in the middle of a transaction harms nobody:
//!
//! * A reader that begins later sees a commit that is beyond the piece. A page that any frame
//!   behind the piece has, it finds there; all other pages are complete in the main file.
//! * A reader from before sees a commit that is not before the end of the piece: its mark, under
//!   which it holds a lock, says so. It looks into the WAL from where the main file ended when it
//!   began, so it finds there every page that the piece overwrites. One under mark 0 looks into the
//!   main file only; its lock keeps pieces away altogether.
//! * After a crash the durable record counts. It relies on the frames that are moved, which are in
//!   the WAL, synced, and are moved once more ([`overlay`](super::overlay)). So no frame is moved
//!   that it does not rely on, and nothing is synced here.

use super::checkpoint::Backfill;
use super::error::Error;
use super::ffi::{self, Lock, ResultCode};
use super::inject::{failed, read_header};
use super::shim::Shim;
use crate::wal::format::{FRAME_HEADER_BYTES, frame_offset};
use crate::wal::index::{self, IndexHeader, region_of_frame};
use crate::wal::{PageNumber, PageSize};

/// Pages that follow each other are written with one call, up to so many bytes.
const RUN_BYTES: usize = 64 * 1024;

/// Moves at most `frames_max` frames, up to frame `upto`. The last frame of the WAL stays for
/// SQLite's own checkpoint, which also cuts the main file to its size.
pub(super) fn run(
    shim: &Shim,
    page_size: PageSize,
    upto: u32,
    frames_max: u32,
) -> Result<Backfill, Error> {
    let main = shim.main;
    let header = read_header(main)?;
    let region = main.region(0).map_err(failed("map the WAL-index"))?;
    let moved = region.word(index::BACKFILL_OFFSET);
    let wanted = upto
        .min(header.frame_max.saturating_sub(1))
        .min(moved.saturating_add(frames_max));
    if wanted <= moved {
        return Backfill::now(main);
    }
    let last = limit_to_readers(main, region, &header, wanted)?;
    let mut is_held_back = last < wanted;
    if last > moved {
        match main.lock(index::LOCK_READ_0, 1, Lock::Exclusive) {
            Ok(()) => {
                region.set_word(index::BACKFILL_ATTEMPTED_OFFSET, last);
                let ended = move_frames(shim, page_size, &header, (moved + 1, last));
                if ended.is_ok() {
                    // From here on readers take these pages from the main file.
                    region.set_word(index::BACKFILL_OFFSET, last);
                }
                main.lock(index::LOCK_READ_0, 1, Lock::ReleaseExclusive)
                    .map_err(failed("let the readers of the main file in again"))?;
                ended?;
            }
            Err(ResultCode::BUSY) => is_held_back = true,
            Err(code) => return Err(failed("lock out the readers of the main file")(code)),
        }
    }
    Ok(Backfill {
        is_held_back,
        ..Backfill::now(main)?
    })
}

/// The last frame that every reader sees, up to `wanted`. Marks that nobody uses are raised out of
/// the way, as SQLite does.
fn limit_to_readers(
    main: ffi::File,
    region: ffi::Region,
    header: &IndexHeader,
    wanted: u32,
) -> Result<u32, Error> {
    let mut last = wanted;
    for (mark, lock) in (1..index::READ_MARKS).zip(index::LOCK_READ_0 + 1..) {
        let offset = index::READ_MARKS_OFFSET + mark * 4;
        let sees = region.word(offset);
        if sees >= last {
            continue;
        }
        match main.lock(lock, 1, Lock::Exclusive) {
            Ok(()) => {
                let unused = if mark == 1 {
                    header.frame_max
                } else {
                    index::READ_MARK_UNUSED
                };
                region.set_word(offset, unused);
                main.lock(lock, 1, Lock::ReleaseExclusive)
                    .map_err(failed("let readers have a mark again"))?;
            }
            Err(ResultCode::BUSY) => last = sees,
            Err(code) => return Err(failed("look for readers under a mark")(code)),
        }
    }
    Ok(last)
}

/// Writes the pages of these frames to the main file, in the order in which they lie there.
fn move_frames(
    shim: &Shim,
    page_size: PageSize,
    header: &IndexHeader,
    frames: (u32, u32),
) -> Result<(), Error> {
    let wal = shim.wal.get().ok_or(Error::Vfs {
        what: "find the WAL",
        code: libsqlite3_sys::SQLITE_CANTOPEN,
    })?;
    let size = page_size.len();
    let mut run: Vec<u8> = Vec::with_capacity(RUN_BYTES.max(size));
    let mut first: Option<PageNumber> = None;
    for (page, frame) in pages_of(shim.main, header, frames)? {
        let after = first.map(|first| u64::from(first.number()) + (run.len() / size) as u64);
        let follows = after == Some(u64::from(page.number())) && run.len() < RUN_BYTES;
        if let Some(begin) = first.filter(|_| !follows) {
            write(shim, page_size, begin, &run)?;
            run.clear();
        }
        if !follows {
            first = Some(page);
        }
        let begin = run.len();
        run.resize(begin + size, 0);
        read(shim, wal, page_size, frame, &mut run[begin..])?;
    }
    first.map_or(Ok(()), |first| write(shim, page_size, first, &run))
}

/// The image in a frame, if it is what was written there.
fn read(
    shim: &Shim,
    wal: ffi::File,
    page_size: PageSize,
    frame: u32,
    image: &mut [u8],
) -> Result<(), Error> {
    let offset = frame_offset(frame, page_size) + FRAME_HEADER_BYTES as u64;
    match shim.place(true, offset, image.len()) {
        Some(place) => shim.read_sound(wal, place, offset, image),
        None => wal.read(image, offset),
    }
    .map_err(failed("read a frame of the WAL"))
}

fn write(shim: &Shim, page_size: PageSize, first: PageNumber, images: &[u8]) -> Result<(), Error> {
    shim.write_main(images, first.offset(page_size))
        .map_err(failed("write the main file"))
}

/// The pages that these frames bring to the main file, ascending, with their frames: not those that
/// the database does not have any more, nor those that a later frame has, wherever that is. Whoever
/// reads the page before that later frame is moved finds it there.
fn pages_of(
    main: ffi::File,
    header: &IndexHeader,
    (first, last): (u32, u32),
) -> Result<Vec<(PageNumber, u32)>, Error> {
    let begin = region_of_frame(first).region;
    let mut regions = Vec::new();
    for number in begin..=region_of_frame(header.frame_max).region {
        let region = main.region(number).map_err(failed("map the WAL-index"))?;
        regions.push((number, region));
    }
    let mut pages = Vec::new();
    for frame in first..=last {
        let place = region_of_frame(frame);
        let here = &regions[(place.region - begin) as usize..];
        let page = here
            .first()
            .map(|(_, region)| region.word(place.page_offset()));
        let page = page.and_then(PageNumber::new).ok_or_else(damaged)?;
        if header.page_count.contains(page)
            && last_frame_of(here, page, header.frame_max)? == Some(frame)
        {
            pages.push((page, frame));
        }
    }
    pages.sort_unstable();
    Ok(pages)
}

/// The last frame of a page that is entered in these regions.
pub(super) fn last_frame_of(
    regions: &[(u32, ffi::Region)],
    page: PageNumber,
    frame_max: u32,
) -> Result<Option<u32>, Error> {
    for &(number, region) in regions.iter().rev() {
        let found = index::lookup_words(|offset| region.word(offset), number, page, frame_max);
        if let Some(frame) = found.map_err(|_| damaged())? {
            return Ok(Some(frame));
        }
    }
    Ok(None)
}

fn damaged() -> Error {
    tracing::error!("the WAL-index is damaged");
    Error::Vfs {
        what: "find a frame in the WAL-index",
        code: libsqlite3_sys::SQLITE_CORRUPT,
    }
}
