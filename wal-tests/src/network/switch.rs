//! The switch: a thread that reads what one network card sends and hands it to the one that it is
//! for, in the way that the link between the two prescribes.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tappers::Tap;

use super::conduct::Conduct;
use super::frame;
use crate::seed::Random;

/// A running switch. It ends with the value.
pub(super) struct Switch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What became of the frames.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Carried from one place to another, each as often as it arrived.
    pub carried: usize,
    /// Lost to a cut, to chance, or to a full queue.
    pub lost: usize,
    /// Arrived twice.
    pub duplicated: usize,
    /// Kept back, for others to overtake them.
    pub reordered: usize,
    /// Had a bit flipped.
    pub corrupted: usize,
}

struct Shared {
    state: Mutex<State>,
    stop: AtomicBool,
}

struct State {
    /// By the place that sends, then by the one that receives.
    conducts: Vec<Vec<Conduct>>,
    counts: Counts,
}

/// What only the thread knows.
struct Wires {
    shared: Arc<Shared>,
    devices: Vec<Tap>,
    subnet: u8,
    random: Random,
    /// By when they are due; of those due at once, the earlier one first.
    waiting: BinaryHeap<Reverse<Frame>>,
    held: Vec<Vec<VecDeque<Vec<u8>>>>,
    /// When the link has carried what it was given.
    busy_until: Vec<Vec<Instant>>,
    frames: u64,
}

#[derive(Eq, Ord, PartialEq, PartialOrd)]
struct Frame {
    due: Instant,
    number: u64,
    to: usize,
    bytes: Vec<u8>,
}

impl Switch {
    /// A switch between these network cards, with all links open.
    pub(super) fn start(devices: Vec<Tap>, subnet: u8, seed: u64) -> Self {
        let places = devices.len();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                conducts: vec![vec![Conduct::OPEN; places]; places],
                counts: Counts::default(),
            }),
            stop: AtomicBool::new(false),
        });
        let wires = Wires {
            shared: Arc::clone(&shared),
            devices,
            subnet,
            random: Random::new(seed),
            waiting: BinaryHeap::new(),
            held: vec![vec![VecDeque::new(); places]; places],
            busy_until: vec![vec![Instant::now(); places]; places],
            frames: 0,
        };
        let thread = std::thread::Builder::new().name("switch".to_owned());
        let thread = thread
            .spawn(move || wires.run())
            .expect("a thread can be started");
        Self {
            shared,
            thread: Some(thread),
        }
    }

    pub(super) fn set(&self, from: usize, to: usize, conduct: Conduct) {
        self.shared.lock().conducts[from][to] = conduct;
    }

    pub(super) fn counts(&self) -> Counts {
        self.shared.lock().counts
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has said why, and a second panic would hide it.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wires {
    fn run(mut self) {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.wait();
            for from in 0..self.devices.len() {
                // A bounded number of each, so that none is kept waiting by another.
                for _ in 0..BATCH {
                    // Nothing there, or a card that is gone with its namespace.
                    let Ok(length) = self.devices[from].recv(&mut buffer) else {
                        break;
                    };
                    if let Some(to) = frame::destination(&buffer[..length], self.subnet)
                        && to < self.devices.len()
                    {
                        self.take(from, to, buffer[..length].to_vec());
                    }
                }
            }
            self.release_held();
            self.deliver_due();
        }
    }

    /// Waits until there is something to read, or something is due.
    fn wait(&self) {
        let due = self.waiting.peek().map(|Reverse(frame)| frame.due);
        let now = Instant::now();
        let pause = due.map_or(PAUSE_MAX, |due| due.saturating_duration_since(now));
        let pause = Timespec::try_from(pause.min(PAUSE_MAX)).expect("it is short");
        let mut cards: Vec<_> = self
            .devices
            .iter()
            .map(|device| PollFd::new(device, PollFlags::IN))
            .collect();
        // Interrupted, or a card is gone: the loop finds out.
        let _ = poll(&mut cards, Some(&pause));
    }

    /// Decides what becomes of a frame.
    fn take(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let conduct = state.conducts[from][to];
        if conduct == Conduct::OPEN && self.held[from][to].is_empty() {
            // The usual case, and the only one in which nothing has to be kept.
            let sent = self.devices[to].send(&bytes).is_ok();
            state.counts.carried += usize::from(sent);
            state.counts.lost += usize::from(!sent);
            return;
        }
        if conduct.cut || self.chance(conduct.loss) {
            state.counts.lost += 1;
        } else if conduct.hold {
            let held = &mut self.held[from][to];
            held.push_back(bytes);
            if held.len() > HELD_MAX {
                held.pop_front();
                state.counts.lost += 1;
            }
        } else {
            self.send_late(from, to, conduct, bytes, &mut state.counts);
        }
    }

    /// Puts a frame among those that are due later.
    fn send_late(
        &mut self,
        from: usize,
        to: usize,
        conduct: Conduct,
        mut bytes: Vec<u8>,
        counts: &mut Counts,
    ) {
        let now = Instant::now();
        let mut due = now + conduct.delay;
        if !conduct.jitter.is_zero() {
            let share = u32::try_from(self.random.below(1000)).expect("it is below 1000");
            due += conduct.jitter * share / 1000;
        }
        if let Some(rate) = conduct.bytes_per_second {
            let begin = self.busy_until[from][to].max(now);
            if begin > now + QUEUE_TIME_MAX {
                counts.lost += 1;
                return;
            }
            let nanos = bytes.len() as u64 * 1_000_000_000 / u64::from(rate.max(1));
            let end = begin + Duration::from_nanos(nanos);
            self.busy_until[from][to] = end;
            due += end - now;
        }
        if self.chance(conduct.reorder) {
            counts.reordered += 1;
            due += OVERTAKEN_BY;
        }
        if self.chance(conduct.corrupt) {
            counts.corrupted += 1;
            frame::corrupt(&mut bytes, &mut self.random);
        }
        if self.chance(conduct.duplicate) {
            counts.duplicated += 1;
            self.push(due, to, bytes.clone());
        }
        self.push(due, to, bytes);
    }

    fn push(&mut self, due: Instant, to: usize, bytes: Vec<u8>) {
        self.frames += 1;
        self.waiting.push(Reverse(Frame {
            due,
            number: self.frames,
            to,
            bytes,
        }));
    }

    /// Sends on what was held by links that hold no more; what a cut link held is lost.
    fn release_held(&mut self) {
        for from in 0..self.devices.len() {
            for to in 0..self.devices.len() {
                if self.held[from][to].is_empty() {
                    continue;
                }
                let conduct = self.shared.lock().conducts[from][to];
                if !conduct.hold || conduct.cut {
                    for bytes in std::mem::take(&mut self.held[from][to]) {
                        self.take(from, to, bytes);
                    }
                }
            }
        }
    }

    fn deliver_due(&mut self) {
        let now = Instant::now();
        while let Some(Reverse(frame)) = self.waiting.peek()
            && frame.due <= now
        {
            let Some(Reverse(frame)) = self.waiting.pop() else {
                break;
            };
            let sent = self.devices[frame.to].send(&frame.bytes).is_ok();
            let mut state = self.shared.lock();
            state.counts.carried += usize::from(sent);
            state.counts.lost += usize::from(!sent);
        }
    }

    fn chance(&mut self, percent: u8) -> bool {
        percent > 0 && self.random.chance(u64::from(percent))
    }
}

/// More than the largest frame of a card that nobody has told to send larger ones (1514).
const FRAME_BYTES_MAX: usize = 2048;

/// Frames that are read from one card before the next one's turn.
const BATCH: usize = 64;

/// How long at most until the thread sees that a rule has changed.
const PAUSE_MAX: Duration = Duration::from_millis(5);

/// How much later a frame arrives that is to be overtaken.
const OVERTAKEN_BY: Duration = Duration::from_millis(10);

/// What a link of limited rate keeps for later.
const QUEUE_TIME_MAX: Duration = Duration::from_millis(500);

/// Frames that a held link keeps.
const HELD_MAX: usize = 4096;
