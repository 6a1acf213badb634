//! How a delta stores its pages, and what they are; the layout stands in [`delta`](super::delta).

use std::borrow::Cow;
use std::iter;

use zstd::bulk::Decompressor;

use super::delta::{
    DeltaError, ENCODING_PATCH, ENCODING_RAW, ENCODING_ZSTD, ENTRY_BYTES, corrupt, u32_at,
};
use super::leb128;
use super::page::{PageNumber, PageSize};
use super::patch::{self, PAGES_MAX};

/// An entry of the page table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TableEntry {
    /// Its page, or the first of several.
    pub first: PageNumber,
    /// How many pages; more than one only as patches.
    pub pages: usize,
    /// What they have in the delta altogether.
    pub bytes: usize,
    /// What these bytes are.
    pub stored: Stored,
}

/// What the bytes of pages in a delta are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stored {
    /// The page.
    Raw,
    /// The page, compressed.
    Zstd,
    /// What changed since the versions before.
    Patch,
}

impl TableEntry {
    /// What is wrong if this is no entry.
    pub(super) fn parse(
        bytes: &[u8; ENTRY_BYTES],
        page_size: PageSize,
    ) -> Result<Self, &'static str> {
        let first = PageNumber::new(u32_at(bytes, 0)).ok_or("page number zero")?;
        let length = u32_at(bytes, 4) as usize;
        let stored = match bytes[8] {
            ENCODING_RAW => Stored::Raw,
            ENCODING_ZSTD => Stored::Zstd,
            ENCODING_PATCH => Stored::Patch,
            _ => return Err("unknown page encoding"),
        };
        let pages = usize::from(bytes[9]) + 1;
        let pages_max = if stored == Stored::Patch {
            PAGES_MAX
        } else {
            1
        };
        if pages > pages_max {
            return Err("too many pages in one entry");
        }
        if bytes[10..] != [0; 2] {
            return Err("reserved bytes in the page table");
        }
        let possible = match stored {
            Stored::Raw => length == page_size.len(),
            Stored::Zstd | Stored::Patch => (1..pages * page_size.len()).contains(&length),
        };
        if !possible {
            return Err("impossible page length");
        }
        Ok(Self {
            first,
            pages,
            bytes: length,
            stored,
        })
    }
}

/// The pages of one entry: their numbers, as an iterator, and what is stored for them.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    next: Option<PageNumber>,
    more: usize,
    distances: &'a [u8],
    content: &'a [u8],
}

impl<'a> Block<'a> {
    /// What is wrong if the distances are. They ascend then, but may lead beyond the database.
    pub(super) fn parse(entry: &TableEntry, stored: &'a [u8]) -> Result<Self, &'static str> {
        let (mut last, mut content) = (entry.first.number(), stored);
        for _ in 1..entry.pages {
            let distance = leb128::take(&mut content, leb128::BYTES_MAX)?;
            if distance == 0 {
                return Err("pages do not ascend");
            }
            last = last
                .checked_add(distance)
                .ok_or("page beyond the page count")?;
        }
        if content.is_empty() {
            return Err("a block without patches");
        }
        Ok(Self {
            next: Some(entry.first),
            more: entry.pages - 1,
            distances: stored,
            content,
        })
    }
}

impl Iterator for Block<'_> {
    type Item = PageNumber;

    fn next(&mut self) -> Option<PageNumber> {
        let page = self.next?;
        self.next = self.more.checked_sub(1).map(|more| {
            self.more = more;
            let distance = leb128::take(&mut self.distances, leb128::BYTES_MAX);
            let number = page.number() + distance.expect("parse has read it");
            PageNumber::new(number).expect("more than the one before")
        });
        Some(page)
    }
}

/// The pages of these entries, each of which is given with its place in the delta. Instead of pages
/// that cannot be made there is one error for the entry.
pub(super) fn images<'a, E: From<DeltaError>>(
    page_size: PageSize,
    mut blocks: impl Iterator<Item = (usize, TableEntry, Block<'a>)>,
    mut old: impl FnMut(PageNumber, &mut [u8]) -> Result<(), E>,
) -> impl Iterator<Item = Result<(PageNumber, Cow<'a, [u8]>), E>> {
    let mut decompressor = None;
    let mut patched = Vec::new().into_iter();
    iter::from_fn(move || {
        if let Some((page, image)) = patched.next() {
            return Some(Ok((page, Cow::Owned(image))));
        }
        let (offset, entry, block) = blocks.next()?;
        let image = match entry.stored {
            Stored::Raw => Ok(Cow::Borrowed(block.content)),
            Stored::Zstd => decompress(&mut decompressor, block.content, page_size)
                .map(Cow::Owned)
                .ok_or(corrupt(
                    "a compressed page does not have the page size",
                    offset,
                )),
            Stored::Patch => match patch(page_size, block, offset, &mut old) {
                Ok(pages) => {
                    patched = pages.into_iter();
                    let (page, image) = patched.next().expect("a block has a page");
                    return Some(Ok((page, Cow::Owned(image))));
                }
                Err(error) => return Some(Err(error)),
            },
        };
        Some(image.map(|image| (entry.first, image)).map_err(E::from))
    })
}

/// `None` if the frame is bad or does not give exactly one page. The output has the size of a page
/// and zstd does not write beyond it, whatever the frame claims.
fn decompress(
    decompressor: &mut Option<Decompressor<'static>>,
    stored: &[u8],
    page_size: PageSize,
) -> Option<Vec<u8>> {
    let decompressor = decompressor.get_or_insert_with(|| {
        Decompressor::new().expect("a decompressor needs nothing but memory")
    });
    let mut image = vec![0; page_size.len()];
    let length = decompressor
        .decompress_to_buffer(stored, &mut image[..])
        .ok()?;
    (length == image.len()).then_some(image)
}

fn patch<E: From<DeltaError>>(
    page_size: PageSize,
    block: Block<'_>,
    offset: usize,
    mut old: impl FnMut(PageNumber, &mut [u8]) -> Result<(), E>,
) -> Result<Vec<(PageNumber, Vec<u8>)>, E> {
    let mut images = Vec::new();
    for page in block {
        let mut image = vec![0; page_size.len()];
        old(page, &mut image)?;
        images.push(image);
    }
    patch::apply(&mut images, block.content)
        .map_err(|_| corrupt("patches do not fit on the versions before", offset))?;
    Ok(block.zip(images).collect())
}
