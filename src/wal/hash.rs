//! The database hash: one 128-bit number that two databases share iff all their pages are equal.
//!
//! Every page is hashed together with its number by a non-linear function (xxh3-128), and the page
//! hashes are summed modulo 2^128. The sum can be kept up to date page by page. A sum of linear
//! checksums could not: with CRCs the same damage at the same offset of two pages cancels out.

use std::fmt;

use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::page::PageNumber;
use crate::planted::{self, Bug};

/// The hash of one page, its number included.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PageHash(pub u128);

impl PageHash {
    /// The hash of a page image.
    #[must_use]
    pub fn of(page: PageNumber, image: &[u8]) -> Self {
        if planted::is(Bug::HashOfChecksums) {
            return Self(crc32fast::hash(image).into());
        }
        Self(xxh3_128_with_seed(image, u64::from(page.number())))
    }
}

/// The sum of the hashes of all pages; zero for a database without pages.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DatabaseHash(pub u128);

impl DatabaseHash {
    /// This hash with a page added.
    #[must_use]
    pub fn with(self, page: PageHash) -> Self {
        if planted::is(Bug::HashOfChecksums) {
            return Self(self.0 ^ page.0);
        }
        Self(self.0.wrapping_add(page.0))
    }

    /// This hash with a page taken away.
    #[must_use]
    pub fn without(self, page: PageHash) -> Self {
        if planted::is(Bug::HashOfChecksums) {
            return Self(self.0 ^ page.0);
        }
        Self(self.0.wrapping_sub(page.0))
    }
}

impl fmt::Display for DatabaseHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
