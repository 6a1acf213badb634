//! Patches: the pages of a transaction as what changed in them since the version before.
//!
//! Most transactions change a few bytes of a page. A patch says which, and so costs about as much
//! as the SQL that made it; but it only fits on the one version that it was made from, where a
//! whole page fits on anything. Whoever applies patches must therefore have exactly that version,
//! and prove by a hash that the result is right.
//!
//! Redo therefore starts from exactly the state that a record names, whatever a crash has
//! interrupted: see `sqlite::overlay`.
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
//! | length | and twice its own length, which is not zero; plus one if it was moved |
//! | bytes | the new bytes, if it was not moved |
//! | distance | if it was moved, twice how far it lay behind in the old page, or before plus one |

use zstd::zstd_safe::{CCtx, CParameter, DCtx};

use super::leb128;

/// How many pages are stored together at most.
pub const PAGES_MAX: usize = 64;

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
    assert!((1..=PAGES_MAX).contains(&pages.len()), "1 to 64 pages");
    let plain = patches(pages);
    if plain.len() <= pages.len() * SMALL_BYTES_MAX {
        return plain;
    }
    let olds = prefix(pages.iter().map(|(old, _)| *old));
    match compress(&plain, &olds) {
        Some(compressed) if compressed.len() < plain.len() => compressed,
        _ => plain,
    }
}

/// Whether so little has changed that compression is not worth its time. Such pages should be
/// stored apart from others: those often have cells that one of them has got from another.
///
/// # Panics
///
/// If the sizes differ.
#[must_use]
pub fn is_small(old: &[u8], new: &[u8]) -> bool {
    assert_eq!(old.len(), new.len(), "pages of one size");
    let mut patches = Vec::with_capacity(SMALL_BYTES_MAX);
    encode_page(old, new, &mut patches);
    patches.len() < SMALL_BYTES_MAX
}

/// In the plain form.
fn patches(pages: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut patches = vec![FORM_PLAIN];
    for (old, new) in pages {
        assert_eq!(old.len(), new.len(), "pages of one size");
        encode_page(old, new, &mut patches);
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

/// Bytes that are new, or were elsewhere in the old page.
struct Run {
    begin: usize,
    end: usize,
    /// How far it lay behind; negative if it lay before. Zero if it is new.
    distance: isize,
}

fn encode_page(old: &[u8], new: &[u8], patches: &mut Vec<u8>) {
    let runs = runs(old, new);
    put(patches, runs.len());
    let mut at = 0;
    for Run {
        begin,
        end,
        distance,
    } in runs
    {
        let length = (end - begin) * 2;
        put(patches, begin - at);
        if distance == 0 {
            put(patches, length);
            patches.extend_from_slice(&new[begin..end]);
        } else {
            put(patches, length + 1);
            put(
                patches,
                distance.unsigned_abs() * 2 + usize::from(distance < 0),
            );
        }
        at = end;
    }
}

/// Where two versions differ. Runs of new bytes that few equal bytes part are one: a run costs
/// bytes, too.
fn runs(old: &[u8], new: &[u8]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let is_blank = old.iter().all(|byte| *byte == 0);
    let mut at = 0;
    while let Some(begin) = difference(old, new, at) {
        if !is_blank && let Some((distance, end)) = moved(old, new, begin) {
            runs.push(Run {
                begin,
                end,
                distance,
            });
            at = end;
            continue;
        }
        at = begin + 1;
        match runs.last_mut() {
            Some(last) if last.distance == 0 && begin - last.end < GAP_MIN => last.end = at,
            _ => runs.push(Run {
                begin,
                end: at,
                distance: 0,
            }),
        }
    }
    runs
}

/// The first byte from here on that is another one.
fn difference(old: &[u8], new: &[u8], from: usize) -> Option<usize> {
    let (old, new) = (&old[from..], &new[from..]);
    let (old_words, old_rest) = old.as_chunks::<8>();
    let (new_words, _) = new.as_chunks::<8>();
    let mut words = old_words.iter().zip(new_words);
    let equal = match words.position(|(old, new)| old != new) {
        Some(word) => word * 8,
        None => old.len() - old_rest.len(),
    };
    let mut rest = old[equal..].iter().zip(&new[equal..]);
    rest.position(|(old, new)| old != new)
        .map(|byte| from + equal + byte)
}

/// What begins here and lay elsewhere in the old page: the pointers to cells that follow one that
/// was inserted or deleted, by two bytes for each (SQLite's file format, section 1.6).
fn moved(old: &[u8], new: &[u8], begin: usize) -> Option<(isize, usize)> {
    let first = new.get(begin..begin + MOVE_MIN)?;
    for distance in MOVES {
        let Some(from) = begin.checked_add_signed(distance) else {
            continue;
        };
        if old.get(from..from + MOVE_MIN) == Some(first) {
            let pairs = old[from..].iter().zip(&new[begin..]);
            let length = pairs.take_while(|(old, new)| old == new).count();
            return Some((distance, begin + length));
        }
    }
    None
}

fn apply_page(page: &mut [u8], patches: &mut &[u8]) -> Result<(), PatchError> {
    let count = take(patches)?;
    let old = if count > 0 { page.to_vec() } else { Vec::new() };
    let mut at = 0;
    for _ in 0..count {
        let begin = take(patches)?.saturating_add(at);
        let twice = take(patches)?;
        let length = twice / 2;
        let place = page.get_mut(begin..begin.saturating_add(length));
        let place = place.filter(|place| !place.is_empty());
        let place = place.ok_or(error("a run outside the page"))?;
        if twice % 2 == 0 {
            let (bytes, rest) = patches
                .split_at_checked(length)
                .ok_or(error("a run is cut short"))?;
            place.copy_from_slice(bytes);
            *patches = rest;
        } else {
            let distance = take(patches)?;
            let from = if distance % 2 == 0 {
                begin.checked_add(distance / 2)
            } else {
                begin.checked_sub(distance / 2)
            };
            let moved = from.and_then(|from| old.get(from..from.saturating_add(length)));
            place.copy_from_slice(moved.ok_or(error("moved from outside the page"))?);
        }
        at = begin + length;
    }
    Ok(())
}

fn put(bytes: &mut Vec<u8>, number: usize) {
    leb128::put(
        bytes,
        u32::try_from(number).expect("at most the size of a page"),
    );
}

/// Nothing in a page needs more than three bytes.
fn take(bytes: &mut &[u8]) -> Result<usize, PatchError> {
    let number = leb128::take(bytes, 3).map_err(error)?;
    Ok(number as usize)
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
/// What has so little for each page hardly becomes smaller still, and is encoded twenty times as
/// fast without compression.
const SMALL_BYTES_MAX: usize = 128;
/// Equal bytes between two runs; fewer are cheaper to repeat.
const GAP_MIN: usize = 3;
/// What is shorter costs about as much as its bytes.
const MOVE_MIN: usize = 8;
/// How far pointers to cells are moved, the likely ones first.
const MOVES: [isize; 8] = [-2, 2, -4, 4, -6, 6, -8, 8];
const LEVEL: i32 = 1;
