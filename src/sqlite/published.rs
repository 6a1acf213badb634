//! Pages as they are published now: what a transaction that is not published yet was made from.

use super::backfill::last_frame_of;
use super::error::Error;
use super::ffi;
use super::inject::{failed, read_header};
use super::shim::Shim;
use crate::wal::format::{FRAME_HEADER_BYTES, frame_offset};
use crate::wal::index::{IndexHeader, region_of_frame};
use crate::wal::{PageCount, PageNumber, PageSize};

/// Reads pages of the last published commit, on the thread that owns the database, until it
/// publishes the next one. A page that is not as it was written is an error.
pub struct Published<'a> {
    shim: &'a Shim,
    page_size: PageSize,
    page_count: PageCount,
    header: IndexHeader,
    regions: Vec<(u32, ffi::Region)>,
}

impl<'a> Published<'a> {
    pub(super) fn now(
        shim: &'a Shim,
        page_size: PageSize,
        page_count: PageCount,
    ) -> Result<Self, Error> {
        let header = read_header(shim.main)?;
        let mut regions = Vec::new();
        if header.frame_max > 0 {
            for number in 0..=region_of_frame(header.frame_max).region {
                let region = shim.main.region(number);
                regions.push((number, region.map_err(failed("map the WAL-index"))?));
            }
        }
        Ok(Self {
            shim,
            page_size,
            page_count,
            header,
            regions,
        })
    }

    /// Reads a page; one that the commit does not have is all zeros.
    ///
    /// # Errors
    ///
    /// `Damaged`, `Vfs`.
    pub fn read(&self, page: PageNumber, image: &mut [u8]) -> Result<(), Error> {
        if !self.page_count.contains(page) {
            image.fill(0);
            return Ok(());
        }
        let frame = last_frame_of(&self.regions, page, self.header.frame_max)?;
        let (is_wal, file, offset) = match (frame, self.shim.wal.get()) {
            (Some(frame), Some(wal)) => {
                let offset = frame_offset(frame, self.page_size) + FRAME_HEADER_BYTES as u64;
                (true, wal, offset)
            }
            _ => (false, self.shim.main, page.offset(self.page_size)),
        };
        let unread = failed("read the version of a page before");
        let Some(place) = self.shim.known_place(is_wal, offset, image.len()) else {
            return file.read(image, offset).map_err(unread);
        };
        let read = self.shim.read_sound(file, place, offset, image);
        // Whoever reads knows of the damage now; the commit that is being made does not need it.
        read.map_err(|code| match self.shim.take_damage() {
            Some(damage) => Error::Damaged(damage),
            None => unread(code),
        })
    }
}
