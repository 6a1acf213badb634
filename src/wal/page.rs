//! The three page quantities that must never be mixed up: a number, a count and a size.

use std::fmt;

/// The number of a page, counted from 1 as SQLite does.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PageNumber(u32);

impl PageNumber {
    /// Page 1: the database header and the schema's root.
    pub const FIRST: Self = Self(1);

    /// A page number; `None` for 0, which SQLite uses for "no page".
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        if number == 0 {
            None
        } else {
            Some(Self(number))
        }
    }

    /// The number, at least 1.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Where the page begins in the main file, in bytes.
    #[must_use]
    pub const fn offset(self, size: PageSize) -> u64 {
        (self.0 as u64 - 1) * size.0 as u64
    }
}

impl fmt::Display for PageNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many pages a database has.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PageCount(pub u32);

impl PageCount {
    /// Whether the page lies within a database of this many pages.
    #[must_use]
    pub const fn contains(self, page: PageNumber) -> bool {
        page.0 <= self.0
    }

    /// The size of the main file, in bytes.
    #[must_use]
    pub const fn file_bytes(self, size: PageSize) -> u64 {
        self.0 as u64 * size.0 as u64
    }
}

impl fmt::Display for PageCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The size of a page in bytes: a power of two from 512 to 65536.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PageSize(u32);

impl PageSize {
    /// What a new database gets, as in SQLite.
    pub const DEFAULT: Self = Self(4096);

    /// A page size; `None` if SQLite could not use it.
    #[must_use]
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 512 && bytes <= 65536 {
            Some(Self(bytes))
        } else {
            None
        }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// The size as a length in memory.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0 as usize
    }

    /// Never true; a page has at least 512 bytes.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        false
    }

    /// The page that holds SQLite's lock bytes (offset 1 GiB). SQLite never writes it, so it is
    /// neither captured nor hashed ("The Lock-Byte Page" in the database file format).
    #[must_use]
    pub const fn lock_byte_page(self) -> PageNumber {
        PageNumber(0x4000_0000 / self.0 + 1)
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
