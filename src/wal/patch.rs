//! Patches: the pages of a transaction as what changed in them since the version before.
//!
//! Most transactions change a few bytes of a page. A patch says which, and so costs about as much
//! as the SQL that made it; but it only fits on the one version that it was made from, where a
//! whole page fits on anything. Whoever applies patches must therefore have exactly that version,
//! and prove by a hash that the result is right.
//!
//! Nothing in a log is stored like this yet: redo would have to start from exactly the state that a
//! record names, and a checkpoint that a crash interrupts leaves the main file between two states.
//!
//! Up to [`PAGES_MAX`] pages are stored together, so that compression finds in one what another
//! has, too: an index has the same keys as its table. More of them would be too much to search.
//!
//! | Bytes | Field | Meaning |
//! |---|---|---|
//! | 1 | form | 0: plain; 1: one Zstandard frame (RFC 8878) without its magic number, with |
//! | | | the old pages one after the other as its prefix |
//! | the rest | patches | of each page in turn, in this form |
//!
//! The patch of a page, all numbers as LEB128 (7 bits in a byte, the lowest first, and bit 7 set
//! where more follow), in the fewest bytes:
//!
//! | Field | Meaning |
//! |---|---|
//! | runs | how many runs follow |
//! | skip | for each run: bytes between the run before, or the start of the page, and this one |
//! | length | and its own length, not zero |
//! | bytes | and the new bytes |

use zstd::zstd_safe::{CCtx, CParameter, DCtx};

/// How many pages are stored together at most.
pub const PAGES_MAX: usize = 16;

/// Why stored patches cannot be applied.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("patches: {what}")]
pub struct PatchError {
    /// What is wrong.
    what: &'static str,
}

/// Stores pages as patches; each is given as it was before and as it is now.
///
/// # Panics
///
/// If there is no page, or more than [`PAGES_MAX`], or their sizes differ.
#[must_use]
pub fn encode(pages: &[(&[u8], &[u8])]) -> Vec<u8> {
    assert!((1..=PAGES_MAX).contains(&pages.len()), "1 to 16 pages");
    let plain = patches(pages, GAP_MIN);
    if plain.len() < COMPRESSED_FROM {
        return plain;
    }
    let olds = prefix(pages.iter().map(|(old, _)| *old));
    match compress(&patches(pages, GAP_COMPRESSED_MIN), &olds) {
        Some(compressed) if compressed.len() < plain.len() => compressed,
        _ => plain,
    }
}

/// In the plain form.
fn patches(pages: &[(&[u8], &[u8])], gap_min: usize) -> Vec<u8> {
    let mut patches = vec![FORM_PLAIN];
    for (old, new) in pages {
        assert_eq!(old.len(), new.len(), "pages of one size");
        encode_page(old, new, gap_min, &mut patches);
    }
    patches
}

/// Makes the new versions out of the old ones, in place. After an error the pages are good for
/// nothing.
///
/// # Errors
///
/// [`PatchError`], if the bytes are not the patches of as many pages of this size.
pub fn apply(pages: &mut [Vec<u8>], stored: &[u8]) -> Result<(), PatchError> {
    let (form, rest) = stored.split_first().ok_or(error("nothing there"))?;
    let decompressed;
    let mut patches = match *form {
        FORM_PLAIN => rest,
        FORM_ZSTD => {
            decompressed = decompress(rest, pages).ok_or(error("cannot be decompressed"))?;
            &decompressed[..]
        }
        _ => return Err(error("unknown form")),
    };
    for page in pages {
        apply_page(page, &mut patches)?;
    }
    if patches.is_empty() {
        Ok(())
    } else {
        Err(error("bytes behind the last patch"))
    }
}

fn encode_page(old: &[u8], new: &[u8], gap_min: usize, patches: &mut Vec<u8>) {
    let runs = runs(old, new, gap_min);
    put(patches, runs.len());
    let mut at = 0;
    for (begin, end) in runs {
        put(patches, begin - at);
        put(patches, end - begin);
        patches.extend_from_slice(&new[begin..end]);
        at = end;
    }
}

/// Where two versions differ. Runs that few equal bytes part are one: a run costs bytes, too.
fn runs(old: &[u8], new: &[u8], gap_min: usize) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let (old_words, old_rest) = old.as_chunks::<8>();
    let (new_words, _) = new.as_chunks::<8>();
    let mut differs = |at: usize| match runs.last_mut() {
        Some((_, end)) if at - *end < gap_min => *end = at + 1,
        _ => runs.push((at, at + 1)),
    };
    for (word, (before, after)) in old_words.iter().zip(new_words).enumerate() {
        if before != after {
            let pairs = before.iter().zip(after).enumerate();
            let different = pairs.filter(|(_, (before, after))| before != after);
            different.for_each(|(byte, _)| differs(word * 8 + byte));
        }
    }
    for at in old.len() - old_rest.len()..old.len() {
        if old[at] != new[at] {
            differs(at);
        }
    }
    runs
}

fn apply_page(page: &mut [u8], patches: &mut &[u8]) -> Result<(), PatchError> {
    let count = take(patches)?;
    let mut at = 0;
    for _ in 0..count {
        let begin = take(patches)?.saturating_add(at);
        let length = take(patches)?;
        let place = page.get_mut(begin..begin.saturating_add(length));
        let place = place.filter(|place| !place.is_empty());
        let place = place.ok_or(error("a run outside the page"))?;
        let (bytes, rest) = patches
            .split_at_checked(length)
            .ok_or(error("a run is cut short"))?;
        place.copy_from_slice(bytes);
        *patches = rest;
        at = begin + length;
    }
    Ok(())
}

fn put(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push(0x80 | low_bits(number));
        number >>= 7;
    }
    bytes.push(low_bits(number));
}

fn low_bits(number: usize) -> u8 {
    u8::try_from(number & 0x7f).expect("seven bits")
}

/// Nothing in a page needs more than three bytes, and one number has one form.
fn take(bytes: &mut &[u8]) -> Result<usize, PatchError> {
    let mut number = 0;
    for shift in [0, 7, 14] {
        let (first, rest) = bytes.split_first().ok_or(error("cut short"))?;
        *bytes = rest;
        number |= usize::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            let is_padded = *first == 0 && shift > 0;
            return if is_padded {
                Err(error("a number with more bytes than it needs"))
            } else {
                Ok(number)
            };
        }
    }
    Err(error("a number is too large"))
}

fn prefix<'a>(pages: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut prefix = Vec::new();
    pages.for_each(|page| prefix.extend_from_slice(page));
    prefix
}

/// Of the plain form; `None` if it is not smaller.
fn compress(plain: &[u8], olds: &[u8]) -> Option<Vec<u8>> {
    let patches = &plain[1..];
    let mut compressed = vec![0; patches.len() + MAGIC.len()];
    let mut context = CCtx::create();
    let level = CParameter::CompressionLevel(LEVEL);
    context.set_parameter(level).ok()?;
    context.ref_prefix(olds).ok()?;
    // Also where it does not become smaller: then it does not fit.
    let length = context.compress2(&mut compressed[..], patches).ok()?;
    compressed.truncate(length);
    compressed.drain(..MAGIC.len() - 1);
    compressed[0] = FORM_ZSTD;
    Some(compressed)
}

/// `None` for bad frames, and for those that give more than patches of these pages can have.
fn decompress(stored: &[u8], pages: &[Vec<u8>]) -> Option<Vec<u8>> {
    let olds = prefix(pages.iter().map(Vec::as_slice));
    let frame = [&MAGIC, stored].concat();
    let mut patches = vec![0; bytes_max(&olds, pages.len())];
    let mut context = DCtx::create();
    context.ref_prefix(&olds).ok()?;
    let length = context.decompress(&mut patches[..], &frame).ok()?;
    patches.truncate(length);
    Some(patches)
}

/// A run costs no more than six bytes, and all but the first come after bytes that are left out.
fn bytes_max(olds: &[u8], pages: usize) -> usize {
    olds.len() * 2 + pages * 16
}

const fn error(what: &'static str) -> PatchError {
    PatchError { what }
}

const FORM_PLAIN: u8 = 0;
const FORM_ZSTD: u8 = 1;
/// What a Zstandard frame begins with.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// What is smaller hardly becomes smaller still, and is encoded twenty times as fast without.
const COMPRESSED_FROM: usize = 128;
/// Equal bytes between two runs; fewer are cheaper to repeat.
const GAP_MIN: usize = 3;
/// The same where compression follows, which finds long runs in the old pages: pointers that have
/// moved up by one, with some equal bytes among them.
const GAP_COMPRESSED_MIN: usize = 16;
const LEVEL: i32 = 3;
