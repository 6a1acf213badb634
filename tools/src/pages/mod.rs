//! The inside of a SQLite database, read from its pages: header, b-trees, cells, records, freelist.
//!
//! Pure functions over bytes ("Database File Format", sections 1 and 2). Nothing read here panics,
//! makes more be allocated than there are bytes, or goes round in circles: damage gives an error
//! that says where, and the rest is still read.

mod btree;
mod header;
mod map;
mod payload;

use wallaby::wal::{PageCount, PageNumber, PageSize};

pub use btree::{BtreeKind, BtreePage, Cell, PageFault};
pub use header::{DatabaseHeader, Encoding};
pub use map::{Map, Problem, Role, Tree, map};
pub use payload::{Column, columns, whole_payload};

/// A database, page by page.
pub trait Pages {
    /// The size of each page.
    fn page_size(&self) -> PageSize;
    /// How many pages there are to be read.
    fn page_count(&self) -> PageCount;
    /// The image of a page, exactly one page long.
    ///
    /// # Errors
    ///
    /// A text that says why it cannot be had.
    fn page(&self, page: PageNumber) -> Result<Vec<u8>, String>;
}

/// How many bytes of each page SQLite uses; the rest is reserved for extensions.
#[must_use]
pub fn usable(page_size: PageSize, reserved: u8) -> usize {
    page_size.len() - usize::from(reserved)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u16::from_be_bytes(*field))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_be_bytes(*field))
}

/// A variable-length integer of SQLite at the beginning of `bytes`, and how many bytes it takes.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().take(8).enumerate() {
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    // The ninth byte has eight bits.
    let last = bytes.get(8)?;
    Some((value << 8 | u64::from(*last), 9))
}

#[cfg(test)]
mod tests {
    use super::varint;

    #[test]
    fn varints_are_read_as_the_file_format_says() {
        assert_eq!(varint(&[0x7f, 1]), Some((127, 1)));
        assert_eq!(varint(&[0x81, 0x00]), Some((128, 2)));
        assert_eq!(varint(&[0xff; 9]), Some((u64::MAX, 9)));
        assert_eq!(varint(&[0xff; 8]), None);
        assert_eq!(varint(&[]), None);
    }
}
