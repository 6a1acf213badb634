//! One page of a b-tree and its cells ("B-tree Pages").
//!
//! Page header, at offset 0, or 100 on page 1:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 1 | kind | 2 index interior, 5 table interior, 10 index leaf, 13 table leaf |
//! | 1 | 2 | first freeblock | 0 = none |
//! | 3 | 2 | cells | how many |
//! | 5 | 2 | content | where the cells' area begins; 0 stands for 65536 |
//! | 7 | 1 | fragments | free bytes in pieces of less than 4 |
//! | 8 | 4 | right child | interior pages only |
//!
//! Then the cell pointers, 2 bytes each, in the order of the keys. A cell, in this order: left child
//! (4 bytes, interior), payload size (varint, all but table interior), rowid (varint, tables),
//! the local part of the payload, first overflow page (4 bytes, if not all is local).

use std::fmt;
use std::ops::Range;

use wallaby::wal::PageNumber;

use super::header::HEADER_BYTES;
use super::{u16_at, u32_at, varint};

/// What a page of a b-tree is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BtreeKind {
    /// Keys of an index, and children between them.
    IndexInterior,
    /// Keys of an index.
    IndexLeaf,
    /// Rowids, and children between them.
    TableInterior,
    /// Rows.
    TableLeaf,
}

impl BtreeKind {
    /// The kind that the first byte of a page names.
    #[must_use]
    pub const fn of(byte: u8) -> Option<Self> {
        match byte {
            2 => Some(Self::IndexInterior),
            5 => Some(Self::TableInterior),
            10 => Some(Self::IndexLeaf),
            13 => Some(Self::TableLeaf),
            _ => None,
        }
    }

    /// Whether it has children.
    #[must_use]
    pub const fn is_interior(self) -> bool {
        matches!(self, Self::IndexInterior | Self::TableInterior)
    }

    /// Whether it belongs to a table, whose keys are rowids.
    #[must_use]
    pub const fn is_table(self) -> bool {
        matches!(self, Self::TableInterior | Self::TableLeaf)
    }
}

impl fmt::Display for BtreeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IndexInterior => "index interior",
            Self::IndexLeaf => "index leaf",
            Self::TableInterior => "table interior",
            Self::TableLeaf => "table leaf",
        })
    }
}

/// What is wrong with a page, and where.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PageFault {
    /// What.
    pub what: &'static str,
    /// In bytes from the beginning of the page.
    pub offset: usize,
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}", self.what, self.offset)
    }
}

/// A page of a b-tree with its header read.
#[derive(Clone, Copy, Debug)]
pub struct BtreePage<'a> {
    /// What it is for.
    pub kind: BtreeKind,
    /// How many cells it says it has.
    pub cells: u16,
    /// Where the area of the cells begins.
    pub content: u32,
    /// Free bytes in pieces too small to be chained.
    pub fragments: u8,
    /// The child behind the last cell.
    pub right_child: Option<PageNumber>,
    first_freeblock: u16,
    /// Where the cell pointers begin.
    pointers: usize,
    bytes: &'a [u8],
    usable: usize,
}

/// A cell.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cell {
    /// Its place among the cells of the page, from 0.
    pub index: u16,
    /// Where it begins in the page, in bytes.
    pub offset: usize,
    /// How many bytes of the page it takes.
    pub bytes: usize,
    /// The child with the smaller keys.
    pub left_child: Option<u32>,
    /// The key of a table.
    pub rowid: Option<i64>,
    /// The size of the payload, overflow included.
    pub payload_bytes: Option<u64>,
    /// Where in the page its local part is.
    pub local: Range<usize>,
    /// Where the rest of it begins.
    pub overflow: Option<PageNumber>,
}

impl<'a> BtreePage<'a> {
    /// Reads the header of a page. `bytes` is the whole page, of which SQLite uses `usable`.
    ///
    /// # Errors
    ///
    /// Why it is no page of a b-tree.
    pub fn parse(page: PageNumber, bytes: &'a [u8], usable: usize) -> Result<Self, PageFault> {
        let start = if page == PageNumber::FIRST {
            HEADER_BYTES
        } else {
            0
        };
        let usable = usable.min(bytes.len());
        let fault = |what, offset| PageFault {
            what,
            offset: start + offset,
        };
        let short = || fault("the page is too short", 0);
        let head = bytes.get(start..usable).ok_or_else(short)?;
        let byte = *head.first().ok_or_else(short)?;
        let kind = BtreeKind::of(byte).ok_or_else(|| fault("no kind of b-tree page", 0))?;
        let half = |offset| u16_at(head, offset).ok_or_else(short);
        let right_child = if kind.is_interior() {
            PageNumber::new(u32_at(head, 8).ok_or_else(short)?)
        } else {
            None
        };
        let content = match half(5)? {
            0 => 65536,
            content => u32::from(content),
        };
        Ok(Self {
            kind,
            cells: half(3)?,
            content,
            fragments: *head.get(7).ok_or_else(short)?,
            right_child,
            first_freeblock: half(1)?,
            pointers: start + if kind.is_interior() { 12 } else { 8 },
            bytes,
            usable,
        })
    }

    /// Its cells in the order of their keys, as many as it says it has.
    pub fn cells(&self) -> impl Iterator<Item = Result<Cell, PageFault>> + '_ {
        (0..self.cells).map(|index| self.cell(index))
    }

    fn cell(&self, index: u16) -> Result<Cell, PageFault> {
        let pointer = self.pointers + 2 * usize::from(index);
        let fault = |what, offset| PageFault { what, offset };
        let used = self.bytes.get(..self.usable).unwrap_or(self.bytes);
        let offset = u16_at(used, pointer)
            .map(usize::from)
            .ok_or_else(|| fault("a cell pointer outside of the page", pointer))?;
        if offset < self.pointers + 2 * usize::from(self.cells) {
            return Err(fault("a cell pointer into the header", pointer));
        }
        let outside = || fault("a cell that does not end within the page", offset);
        let mut at = offset;
        let mut left_child = None;
        if self.kind.is_interior() {
            left_child = Some(u32_at(used, at).ok_or_else(outside)?);
            at += 4;
        }
        let mut number = || {
            let (value, bytes) = varint(used.get(at..)?)?;
            at += bytes;
            Some(value)
        };
        let payload_bytes = match self.kind {
            BtreeKind::TableInterior => None,
            _ => Some(number().ok_or_else(outside)?),
        };
        let rowid = match self.kind.is_table() {
            true => Some(number().ok_or_else(outside)?.cast_signed()),
            false => None,
        };
        let local_bytes = payload_bytes.map_or(0, |bytes| self.local_bytes(bytes));
        let local = at..at + local_bytes;
        if local.end > used.len() {
            return Err(outside());
        }
        let mut end = local.end;
        let mut overflow = None;
        if payload_bytes.is_some_and(|bytes| bytes > local_bytes as u64) {
            overflow = PageNumber::new(u32_at(used, end).ok_or_else(outside)?);
            end += 4;
        }
        Ok(Cell {
            index,
            offset,
            // A cell takes at least 4 bytes, so that it can become a freeblock.
            bytes: (end - offset).max(4),
            left_child,
            rowid,
            payload_bytes,
            local,
            overflow,
        })
    }

    /// How many bytes of a payload are in the page: all, or as many as make the last overflow page
    /// full, if that is not too many; or as few as there may be.
    fn local_bytes(&self, payload_bytes: u64) -> usize {
        let usable = self.usable;
        let most = match self.kind {
            BtreeKind::TableLeaf | BtreeKind::TableInterior => usable.saturating_sub(35),
            BtreeKind::IndexInterior | BtreeKind::IndexLeaf => {
                (usable.saturating_sub(12) * 64 / 255).saturating_sub(23)
            }
        };
        let least = (usable.saturating_sub(12) * 32 / 255).saturating_sub(23);
        let Some(bytes) = usize::try_from(payload_bytes)
            .ok()
            .filter(|bytes| *bytes > most)
        else {
            // What fits into `most` fits into memory.
            return usize::try_from(payload_bytes).unwrap_or(least).min(most);
        };
        let full = least + (bytes - least) % usable.saturating_sub(4).max(1);
        if full <= most { full } else { least }
    }

    /// The free blocks between the cells: offset and bytes. Ends at the first that cannot be.
    pub fn freeblocks(&self) -> impl Iterator<Item = Result<(usize, usize), PageFault>> + '_ {
        let mut next = usize::from(self.first_freeblock);
        let mut least = 0;
        std::iter::from_fn(move || {
            if next == 0 {
                return None;
            }
            let at = next;
            next = 0;
            let fault = |what| Some(Err(PageFault { what, offset: at }));
            // They are chained in ascending order, so a circle cannot be.
            if at < least {
                return fault("a freeblock that does not come after the one before");
            }
            let (Some(following), Some(bytes)) =
                (u16_at(self.bytes, at), u16_at(self.bytes, at + 2))
            else {
                return fault("a freeblock outside of the page");
            };
            let bytes = usize::from(bytes);
            if bytes < 4 || at + bytes > self.usable {
                return fault("a freeblock of an impossible size");
            }
            least = at + bytes;
            next = usize::from(following);
            Some(Ok((at, bytes)))
        })
    }

    /// How many bytes hold nothing: the gap, the freeblocks and the fragments.
    ///
    /// # Errors
    ///
    /// What is wrong with the freeblocks, or the beginning of the cells' area.
    pub fn free_bytes(&self) -> Result<usize, PageFault> {
        let begin = self.pointers + 2 * usize::from(self.cells);
        let content = self.content as usize;
        if content < begin || content > self.usable {
            return Err(PageFault {
                what: "the cells' area begins outside of the page",
                offset: self.pointers,
            });
        }
        let mut free = content - begin + usize::from(self.fragments);
        for block in self.freeblocks() {
            free += block?.1;
        }
        Ok(free)
    }

    /// The bytes of a cell's local payload.
    #[must_use]
    pub fn local(&self, cell: &Cell) -> &'a [u8] {
        self.bytes.get(cell.local.clone()).unwrap_or_default()
    }
}
