//! The first 100 bytes of a database ("The Database Header").

use wallaby::sqlite::MAGIC;
use wallaby::wal::{PageCount, PageNumber, PageSize};

use super::{u16_at, u32_at};

/// How texts are stored.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Encoding {
    /// UTF-16, big-endian.
    Utf16Be,
    /// UTF-16, little-endian.
    Utf16Le,
    /// UTF-8.
    #[default]
    Utf8,
}

/// What a database says about itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DatabaseHeader {
    /// The size of a page.
    pub page_size: PageSize,
    /// 1 = rollback journal, 2 = WAL: what a writer must know.
    pub write_version: u8,
    /// The same for a reader.
    pub read_version: u8,
    /// Bytes at the end of each page that SQLite does not use.
    pub reserved: u8,
    /// Counts transactions; in WAL mode it does not.
    pub change_counter: u32,
    /// How many pages the database has.
    pub page_count: PageCount,
    /// The first trunk page of the freelist.
    pub freelist: Option<PageNumber>,
    /// How many pages the freelist has, trunks included.
    pub free_pages: u32,
    /// Changes with the schema.
    pub schema_cookie: u32,
    /// 4 today.
    pub schema_format: u32,
    /// The largest root page; not zero: there are pointer-map pages (auto-vacuum).
    pub largest_root: u32,
    /// How texts are stored; `None`: a number that is not known, or no schema yet.
    pub encoding: Option<Encoding>,
    /// `PRAGMA user_version`.
    pub user_version: u32,
    /// `PRAGMA application_id`.
    pub application_id: u32,
    /// The change counter for which `page_count` is right.
    pub valid_for: u32,
    /// The version of the SQLite that wrote last.
    pub sqlite_version: u32,
}

impl DatabaseHeader {
    /// Reads the beginning of page 1.
    ///
    /// # Errors
    ///
    /// What makes it no header that the rest could be read with.
    pub fn parse(page: &[u8]) -> Result<Self, &'static str> {
        let Some(head) = page.first_chunk::<HEADER_BYTES>() else {
            return Err("fewer than the 100 bytes of a database header");
        };
        if !head.starts_with(MAGIC) {
            return Err("it does not begin like a SQLite database");
        }
        let word = |offset| u32_at(head, offset).unwrap_or_default();
        let stored = u16_at(head, 16).unwrap_or_default();
        let page_bytes = if stored == 1 {
            65536
        } else {
            u32::from(stored)
        };
        let page_size = PageSize::new(page_bytes).ok_or("an impossible page size at offset 16")?;
        let reserved = head[20];
        if page_size.len() - usize::from(reserved) < USABLE_MIN {
            return Err("too many reserved bytes at offset 20");
        }
        Ok(Self {
            page_size,
            write_version: head[18],
            read_version: head[19],
            reserved,
            change_counter: word(24),
            page_count: PageCount(word(28)),
            freelist: PageNumber::new(word(32)),
            free_pages: word(36),
            schema_cookie: word(40),
            schema_format: word(44),
            largest_root: word(52),
            encoding: match word(56) {
                1 => Some(Encoding::Utf8),
                2 => Some(Encoding::Utf16Le),
                3 => Some(Encoding::Utf16Be),
                _ => None,
            },
            user_version: word(60),
            application_id: word(68),
            valid_for: word(92),
            sqlite_version: word(96),
        })
    }

    /// How many bytes of each page SQLite uses.
    #[must_use]
    pub fn usable(&self) -> usize {
        super::usable(self.page_size, self.reserved)
    }

    /// Whether a page holds pointers back to parents: those come at regular distances, if at all.
    #[must_use]
    pub fn is_pointer_map(&self, page: PageNumber) -> bool {
        if self.largest_root == 0 || page.number() < 2 {
            return false;
        }
        let stride = u32::try_from(self.usable() / 5).unwrap_or(u32::MAX) + 1;
        let first = (page.number() - 2) / stride * stride + 2;
        let lock = self.page_size.lock_byte_page().number();
        // The one that would be the lock-byte page is one further.
        page.number() == if first == lock { first + 1 } else { first }
    }
}

/// The size of the header in bytes.
pub(super) const HEADER_BYTES: usize = 100;
/// SQLite refuses a page with fewer usable bytes.
const USABLE_MIN: usize = 480;
