//! The scrub: reads the whole main file, slowly, so that damage to pages that nobody reads is found
//! while other nodes still have good copies of them.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::repair::ScrubState;
use super::running::Inner;
use crate::sqlite::{Scrubbed, Witness};

/// Goes through the main file again and again. The first time at once after the node did not stop
/// in order: who knows what the disk has lost.
pub(crate) async fn run(inner: Arc<Inner>, was_closed: bool) {
    let (rate, interval) = (inner.options.scrub_rate, inner.options.scrub_interval);
    if rate == 0 {
        return;
    }
    if was_closed {
        tokio::time::sleep(interval.min(FIRST_AFTER)).await;
    }
    // The database may not exist yet.
    let mut reached = inner.frontier.watch();
    if reached
        .wait_for(|reached| reached.data.is_some())
        .await
        .is_err()
    {
        return;
    }
    loop {
        let begun = Instant::now();
        if let Some(witness) = inner.repairs.witness() {
            pass(&inner, witness, rate).await;
        }
        tokio::time::sleep(interval.saturating_sub(begun.elapsed()).max(PAUSE_MIN)).await;
    }
}

async fn pass(inner: &Inner, witness: &Arc<Witness>, rate: u64) {
    let (before, begun) = (witness.found(), Instant::now());
    let slice = u32::try_from(SLICE_BYTES / witness.page_size().len()).expect("few pages");
    let slice_time = Duration::from_secs_f64(SLICE_BYTES as f64 / rate as f64);
    let mut state = ScrubState {
        at: Scrubbed { next: 1, pages: 0 },
        completed: inner.repairs.scrub_state().completed,
    };
    loop {
        let (eye, from, started) = (Arc::clone(witness), state.at.next, Instant::now());
        let looked = tokio::task::spawn_blocking(move || eye.scrub(from, slice)).await;
        let Ok(at) = looked else { return };
        state.at = at;
        if at.next > at.pages {
            state.completed = Some(SystemTime::now());
        }
        inner.repairs.set_scrub_state(state);
        if at.next > at.pages {
            break;
        }
        tokio::time::sleep(slice_time.saturating_sub(started.elapsed())).await;
    }
    let damaged = witness.found() - before;
    tracing::debug!(
        pages = state.at.pages,
        damaged,
        elapsed = ?begun.elapsed(),
        "the database file was read and compared"
    );
}

/// Read at once; a reader waits no longer for the disk than for this.
const SLICE_BYTES: usize = 256 << 10;
/// A node that was closed in order does not begin in the middle of its start.
const FIRST_AFTER: Duration = Duration::from_secs(600);
const PAUSE_MIN: Duration = Duration::from_millis(10);
