//! A bound on the memory that SQLite takes, for the whole process: SQLite knows no other.
//!
//! A statement that needs more fails with "out of memory". What the cluster has decided must not:
//! publishing it, injecting it and moving it into the main file go on without the bound, so no
//! client can bring a node down by filling it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::raw;

/// The bound, and how many are exempt from it right now.
struct Heap {
    bytes_max: i64,
    exempt: usize,
}

static HEAP: Mutex<Heap> = Mutex::new(Heap {
    bytes_max: 0,
    exempt: 0,
});

/// Bounds SQLite's memory in this process; 0: no bound.
pub fn limit_heap(bytes_max: u64) {
    let mut heap = lock();
    heap.bytes_max = i64::try_from(bytes_max).unwrap_or(i64::MAX);
    if heap.exempt == 0 {
        raw::set_heap_limit(heap.bytes_max);
    }
}

/// While one of these exists there is no bound. For the work of microseconds, or of the owner.
#[derive(Debug)]
pub(crate) struct Exempt(());

impl Exempt {
    pub(crate) fn new() -> Self {
        let mut heap = lock();
        heap.exempt += 1;
        if heap.exempt == 1 && heap.bytes_max > 0 {
            raw::set_heap_limit(0);
        }
        Self(())
    }
}

impl Drop for Exempt {
    fn drop(&mut self) {
        let mut heap = lock();
        heap.exempt -= 1;
        if heap.exempt == 0 && heap.bytes_max > 0 {
            raw::set_heap_limit(heap.bytes_max);
        }
    }
}

/// Nothing panics under this lock; a poisoned one still holds a good value.
fn lock() -> MutexGuard<'static, Heap> {
    HEAP.lock().unwrap_or_else(PoisonError::into_inner)
}
