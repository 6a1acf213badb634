//! A transaction as what it changed in its pages, for a delta.

use std::io;

use bytes::Bytes;

use super::capture::Captured;
use crate::wal::patch::{self, PAGES_MAX};
use crate::wal::{DeltaHeader, DeltaWriter, Encoding, PageNumber};

impl Captured<'_> {
    /// The delta of all of it, in patches. A page whose version before is damaged here is stored
    /// whole: so the damage goes no further, and ends here.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    ///
    /// # Panics
    ///
    /// If the header is not that of a delta which is a whole group.
    pub fn patches(&self, header: DeltaHeader) -> io::Result<Bytes> {
        let before = self.before().map_err(io::Error::other)?;
        let size = self.page_size().len();
        let mut writer = DeltaWriter::new(header, Encoding::Zstd);
        let (mut small, mut large) = (Block::default(), Block::default());
        for (index, page) in self.page_numbers().iter().enumerate() {
            let (mut old, mut new) = (vec![0; size], vec![0; size]);
            self.read(index, &mut new)?;
            let block = match before.read(*page, &mut old) {
                Ok(()) if patch::is_small(&old, &new) => &mut small,
                Ok(()) => &mut large,
                Err(error) => {
                    tracing::warn!(%error, "it is stored whole");
                    writer.push(*page, &new);
                    continue;
                }
            };
            block.0.push((*page, old, new));
        }
        small.write(&mut writer);
        large.write(&mut writer);
        Ok(writer.finish())
    }
}

/// Pages with the version before and the one after.
#[derive(Default)]
struct Block(Vec<(PageNumber, Vec<u8>, Vec<u8>)>);

impl Block {
    fn write(&self, writer: &mut DeltaWriter) {
        for pages in self.0.chunks(PAGES_MAX) {
            let versions = pages
                .iter()
                .map(|(page, old, new)| (*page, &old[..], &new[..]));
            writer.push_patches(&versions.collect::<Vec<_>>());
        }
    }
}
