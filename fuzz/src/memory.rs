//! Counts what a thread allocates, so that a decoder can be held to a bound.
//!
//! Counted is what goes through Rust's allocator. SQLite and zstd have their own memory: SQLite's
//! is bounded by its limits, zstd's by the size of its output, which decoders give it beforehand.

#![expect(unsafe_code, reason = "an allocator is unsafe by its interface")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// Bytes that this thread has allocated, less those it gave back; others may give back too.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    /// The most that `LIVE` was since it was asked to look.
    static PEAK: Cell<isize> = const { Cell::new(0) };
    /// The most that any bounded piece of work took since this was asked last.
    static HIGHEST: Cell<usize> = const { Cell::new(0) };
}

/// At the end of a thread there is nothing to count with any more.
fn count(bytes: isize) {
    let _ = LIVE.try_with(|live| {
        live.set(live.get().wrapping_add(bytes));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

// SAFETY: every call is passed on unchanged, and counting neither allocates nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // While bytes are moved both places may exist.
        count(signed(size));
        count(-signed(layout.size()));
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// How much a decoder may have allocated at any moment, for so many bytes of input.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// Times the length of the input.
    pub per_byte: usize,
    /// And so many bytes more.
    pub constant: usize,
}

impl Bound {
    /// What a decoder needs that copies its input once and has a few buffers.
    pub const PLAIN: Self = Self {
        per_byte: 2,
        constant: 64 << 10,
    };

    /// Nothing at all.
    pub const NOTHING: Self = Self {
        per_byte: 0,
        constant: 0,
    };

    /// The same with so many bytes more.
    #[must_use]
    pub const fn and(self, bytes: usize) -> Self {
        Self {
            constant: self.constant + bytes,
            ..self
        }
    }
}

/// Does a piece of work on an input of so many bytes.
///
/// # Panics
/// If the work took more memory than the bound allows.
pub fn bounded<T>(bound: Bound, input_bytes: usize, work: impl FnOnce() -> T) -> T {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    let taken = usize::try_from(PEAK.get().wrapping_sub(before)).unwrap_or(0);
    HIGHEST.set(HIGHEST.get().max(taken));
    let allowed = bound.per_byte * input_bytes + bound.constant;
    assert!(
        taken <= allowed,
        "{taken} bytes were allocated for an input of {input_bytes}; {bound:?} allows {allowed}"
    );
    result
}

/// The most that a bounded piece of work of this thread took since this was asked last, in bytes.
pub fn take_highest() -> usize {
    HIGHEST.replace(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_within_the_bound_passes_and_is_measured() {
        let length = bounded(Bound::PLAIN, 1000, || vec![0_u8; 50_000].len());
        assert_eq!(length, 50_000);
        assert!((50_000..51_000).contains(&take_highest()));
        assert_eq!(take_highest(), 0);
    }

    #[test]
    #[should_panic(expected = "bytes were allocated for an input of 1000")]
    fn work_beyond_the_bound_panics_even_if_it_gave_all_back() {
        bounded(Bound::PLAIN, 1000, || drop(vec![0_u8; 70_000]));
    }
}
