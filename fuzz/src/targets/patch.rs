//! Patches: whatever is accepted makes pages that can be stored as patches again.
//!
//! An input is how many pages there are, then the patches; what the pages were before is made up.

use wallaby::wal::patch;

use crate::memory::{Bound, bounded};
use crate::{Reached, Sample};

/// The smallest that SQLite knows.
const PAGE_BYTES: usize = 512;
/// Old pages in a row, and the patches, which are at most twice as long.
const BYTES_MAX: usize = 4 * patch::PAGES_MAX * PAGE_BYTES;

/// See the module.
///
/// # Panics
/// If what was accepted cannot be stored again.
pub fn patch(data: &[u8]) -> Reached {
    let (count, stored) = data.split_first().unwrap_or((&0, &[]));
    let olds = olds(usize::from(*count) % patch::PAGES_MAX + 1);
    let mut news = olds.clone();
    let bound = Bound::PLAIN.and(BYTES_MAX);
    if bounded(bound, data.len(), || patch::apply(&mut news, stored)).is_err() {
        return Reached::Refused;
    }
    assert!(news.iter().all(|page| page.len() == PAGE_BYTES));
    let mut again = olds.clone();
    patch::apply(&mut again, &encoded(&olds, &news)).expect("our own");
    assert_eq!(again, news);
    Reached::Accepted
}

fn encoded(olds: &[Vec<u8>], news: &[Vec<u8>]) -> Vec<u8> {
    let pages = olds.iter().zip(news);
    let pages: Vec<(&[u8], &[u8])> = pages.map(|(old, new)| (&old[..], &new[..])).collect();
    patch::encode(&pages)
}

/// Pages like those of a table: some bytes repeat, and some do not.
fn olds(count: usize) -> Vec<Vec<u8>> {
    let byte = |at: usize| u8::try_from(at * at % 251).expect("less than 251");
    let page = |number| (0..PAGE_BYTES).map(move |at| byte(number * PAGE_BYTES + at));
    (0..count).map(|number| page(number).collect()).collect()
}

pub(crate) fn samples() -> Vec<Sample> {
    let mut samples = Vec::new();
    for (name, count, length) in [("small", 1, 3), ("moved", 2, 300), ("many", 16, 40)] {
        let olds = olds(count);
        let mut news = olds.clone();
        for page in &mut news {
            page.copy_within(100..100 + length, 102);
            page[7] ^= 1;
        }
        let stored = encoded(&olds, &news);
        let count = u8::try_from(count - 1).expect("at most 16");
        let sample = [&[count], &stored[..]].concat();
        samples.push(Sample::new(
            format!("{name}-cut"),
            sample[..sample.len() / 2].to_vec(),
        ));
        samples.push(Sample::new(name, sample));
    }
    samples
}
