//! Threads that run one at a time, on a clock that stands still while any of them does.
//!
//! A simulated thread is a real thread that runs only when it is its turn. It gives the turn away
//! where it would block: `system` brings it here instead. Then one of those that
//! could go on is drawn; if there is none, the clock goes to the moment for which the next one
//! waits. So the order of everything, and every time, follows from the seed.
//!
//! ```text
//!            turn                    waits (futex, epoll, sleep, join)
//!   Ready ----------> Running -------------------------------------> Waiting
//!     ^                                                                 |
//!     +---------------------- woken, or the time has come --------------+
//! ```
//!
//! Threads belong to groups: a node's life is a group, and whatever a thread starts is in its
//! group. A group can be *frozen*: none of its threads ever runs again, as after `kill -9`; or
//! *paused* until it is resumed, as by SIGSTOP.
//!
//! Nobody may block in a way that does not lead here while others are to run; a lock inside C
//! code, held by a thread that waits, would be one. Such a run hangs and is ended from outside.

use std::cell::{Cell, UnsafeCell};
use std::collections::BTreeSet;
use std::ffi::c_int;
use std::process::ExitCode;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::system;
use crate::seed::Random;

/// A simulated thread. Never freed: a frozen one may be looked at for ever.
pub(super) struct Thread {
    number: u32,
    pub(super) handle: Cell<libc::pthread_t>,
    group: Cell<u32>,
    state: Cell<State>,
    /// Whether its last wait ended by the clock.
    timed_out: Cell<bool>,
    /// 1: it is its turn, and it has not noticed yet.
    turn: AtomicU32,
}

// SAFETY: all cells are touched only by the thread whose turn it is; turns are handed over through
// `turn`, with release and acquire.
#[allow(unsafe_code)]
unsafe impl Sync for Thread {}

#[derive(Clone, Copy, Debug)]
enum State {
    Ready,
    Running,
    Waiting { on: On, until: u64, number: u64 },
}

/// What a thread waits for besides the clock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum On {
    /// Somebody wakes this futex.
    Address(usize),
    /// This epoll descriptor has something.
    Descriptor(c_int),
    /// This thread has ended.
    End(u32),
    /// Nothing else.
    Clock,
}

/// Everything but the threads' own; touched only by the one whose turn it is.
struct World {
    threads: Vec<&'static Thread>,
    ready: Vec<&'static Thread>,
    /// Nanoseconds since the beginning.
    now: u64,
    /// Draws who goes on, and how long things take.
    random: Random,
    /// What the operating system gives as random bytes.
    entropy: Random,
    started: u32,
    waits: u64,
    paused: BTreeSet<u32>,
    aborted: Vec<u32>,
    /// Groups whose disks are slow.
    slow: BTreeSet<u32>,
}

struct Place(UnsafeCell<Option<World>>);

// SAFETY: written once before the first turn, and from then on touched only by the thread whose
// turn it is.
#[allow(unsafe_code)]
unsafe impl Sync for Place {}

static WORLD: Place = Place(UnsafeCell::new(None));

thread_local! {
    static CURRENT: Cell<*const Thread> = const { Cell::new(ptr::null()) };
}

/// The calling thread, if it is simulated. Then it is its turn.
pub(super) fn current() -> Option<&'static Thread> {
    let current = CURRENT.get();
    // SAFETY: threads are never freed.
    #[allow(unsafe_code)]
    unsafe {
        current.as_ref()
    }
}

/// `look` must not block, nor call anything that does.
fn world<T>(look: impl FnOnce(&mut World) -> T) -> T {
    // SAFETY: only simulated threads come here, it is their turn, and `look` does not come back.
    #[allow(unsafe_code)]
    let world = unsafe { &mut *WORLD.0.get() };
    look(world.as_mut().expect("there is a world before its threads"))
}

/// Runs `root` as the first simulated thread, in group 0, and ends the process with its code.
pub fn run(seed: u64, root: impl FnOnce() -> ExitCode + Send + 'static) -> ! {
    let first = std::thread::Builder::new().name("world".to_owned());
    let first = first.spawn(move || {
        begin(seed);
        let code = root();
        // The other threads end where they are.
        std::process::exit(i32::from(code != ExitCode::SUCCESS));
    });
    let joined = first.expect("a thread can be started").join();
    unreachable!("the first thread ends the process: {joined:?}");
}

fn begin(seed: u64) {
    let mut random = Random::new(seed);
    let entropy = random.fork();
    // SAFETY: no other thread is simulated yet.
    #[allow(unsafe_code)]
    unsafe {
        *WORLD.0.get() = Some(World {
            threads: Vec::new(),
            ready: Vec::new(),
            now: 0,
            random,
            entropy,
            started: 0,
            waits: 0,
            paused: BTreeSet::new(),
            aborted: Vec::new(),
            slow: BTreeSet::new(),
        });
    }
    system::prepare();
    let first = world(|world| world.add(0));
    world(|world| world.ready.clear());
    first.state.set(State::Running);
    CURRENT.set(first);
}

impl World {
    fn add(&mut self, group: u32) -> &'static Thread {
        self.started += 1;
        let thread: &'static Thread = Box::leak(Box::new(Thread {
            number: self.started,
            handle: Cell::new(0),
            group: Cell::new(group),
            state: Cell::new(State::Ready),
            timed_out: Cell::new(false),
            turn: AtomicU32::new(0),
        }));
        self.threads.push(thread);
        self.ready.push(thread);
        thread
    }

    fn remove(&mut self, gone: impl Fn(&Thread) -> bool) {
        self.threads.retain(|thread| !gone(thread));
        self.ready.retain(|thread| !gone(thread));
    }

    fn wake(&mut self, thread: &'static Thread, timed_out: bool) {
        thread.timed_out.set(timed_out);
        thread.state.set(State::Ready);
        self.ready.push(thread);
    }

    fn may_run(&self, thread: &Thread) -> bool {
        self.paused.is_empty() || !self.paused.contains(&thread.group.get())
    }

    /// Draws who goes on. `None`: nobody ever will.
    fn next(&mut self) -> Option<&'static Thread> {
        loop {
            let can: Vec<usize> = (0..self.ready.len())
                .filter(|&index| self.may_run(self.ready[index]))
                .collect();
            if !can.is_empty() {
                let drawn = can[self.random.below(can.len())];
                // Nothing takes no time at all.
                self.now += TURN_NANOS;
                return Some(self.ready.remove(drawn));
            }
            if !self.wake_descriptors() && !self.advance() {
                return None;
            }
        }
    }

    /// Wakes those whose descriptors have something.
    fn wake_descriptors(&mut self) -> bool {
        let mut waiting = Vec::new();
        let mut descriptors = Vec::new();
        for &thread in &self.threads {
            if let State::Waiting { on, .. } = thread.state.get()
                && let On::Descriptor(fd) = on
                && self.may_run(thread)
            {
                waiting.push(thread);
                descriptors.push(fd);
            }
        }
        let has_something = system::look_at(&descriptors);
        let mut any = false;
        for (thread, has_something) in waiting.into_iter().zip(has_something) {
            if has_something {
                self.wake(thread, false);
                any = true;
            }
        }
        any
    }

    /// Moves the clock to the next moment for which somebody waits.
    fn advance(&mut self) -> bool {
        let moment = |world: &Self, thread: &Thread| match thread.state.get() {
            State::Waiting { until, number, .. } if until < u64::MAX && world.may_run(thread) => {
                Some((until, number))
            }
            _ => None,
        };
        let moments = self.threads.iter();
        let Some((next, _)) = moments.filter_map(|thread| moment(self, thread)).min() else {
            return false;
        };
        self.now = self.now.max(next);
        let mut due: Vec<_> = self
            .threads
            .iter()
            .filter_map(|&thread| moment(self, thread).map(|moment| (moment, thread)))
            .filter(|((until, _), _)| *until <= self.now)
            .collect();
        due.sort_by_key(|(moment, _)| *moment);
        for (_, thread) in due {
            self.wake(thread, true);
        }
        true
    }
}

/// Gives the turn to the next one. With `me`, returns when it is its turn again.
fn pass(me: Option<&'static Thread>) {
    let Some(next) = world(World::next) else {
        stuck();
    };
    next.state.set(State::Running);
    if me.is_some_and(|me| ptr::eq(me, next)) {
        return;
    }
    next.turn.store(1, Ordering::Release);
    system::wake_for_turn(&next.turn);
    if let Some(me) = me {
        me.take_turn();
    }
}

/// Waits for something, or until a moment. Returns whether it was the moment that came.
pub(super) fn wait(on: On, until: u64) -> bool {
    let me = current().expect("only simulated threads wait here");
    world(|world| {
        world.waits += 1;
        let number = world.waits;
        me.state.set(State::Waiting { on, until, number });
    });
    pass(Some(me));
    me.timed_out.get()
}

/// Lets others go first.
pub(super) fn give_way() {
    let me = current().expect("only simulated threads give way");
    world(|world| world.wake(me, false));
    pass(Some(me));
}

/// Wakes up to `count` of those who wait on a futex, the longest waiting first.
pub(super) fn wake(address: usize, count: usize) -> usize {
    world(|world| {
        let mut waiting: Vec<_> = world
            .threads
            .iter()
            .filter_map(|&thread| match thread.state.get() {
                State::Waiting { on, number, .. } if on == On::Address(address) => {
                    Some((number, thread))
                }
                _ => None,
            })
            .collect();
        waiting.sort_by_key(|(number, _)| *number);
        waiting.truncate(count);
        for (_, thread) in &waiting {
            world.wake(thread, false);
        }
        waiting.len()
    })
}

/// A thread that the calling one is about to start.
pub(super) fn add() -> &'static Thread {
    let group = current().map_or(0, |me| me.group.get());
    world(|world| world.add(group))
}

/// The thread could not be started.
pub(super) fn forget(thread: &'static Thread) {
    world(|world| world.remove(|other| ptr::eq(other, thread)));
}

impl Thread {
    /// What a thread does first.
    pub(super) fn start(&'static self) {
        self.take_turn();
        CURRENT.set(self);
    }

    /// What a thread does last.
    pub(super) fn end(&'static self) {
        world(|world| {
            world.remove(|other| ptr::eq(other, self));
            let end = On::End(self.number);
            for thread in world.threads.clone() {
                if matches!(thread.state.get(), State::Waiting { on, .. } if on == end) {
                    world.wake(thread, false);
                }
            }
        });
        pass_for_good();
    }

    fn take_turn(&self) {
        while self.turn.swap(0, Ordering::Acquire) == 0 {
            system::sleep_until_turn(&self.turn);
        }
    }
}

/// Gives the turn away and never wants it back.
fn pass_for_good() {
    let Some(next) = world(World::next) else {
        stuck();
    };
    next.state.set(State::Running);
    CURRENT.set(ptr::null());
    next.turn.store(1, Ordering::Release);
    system::wake_for_turn(&next.turn);
}

/// Waits for the end of another thread, if it is a simulated one that goes on.
pub(super) fn wait_for_end(handle: libc::pthread_t) {
    let number = world(|world| {
        let found = world.threads.iter();
        let mut found = found.filter(|thread| thread.handle.get() == handle);
        found.next().map(|thread| thread.number)
    });
    if let Some(number) = number {
        wait(On::End(number), u64::MAX);
    }
}

/// Nanoseconds since the beginning. Asking takes some.
pub(super) fn now() -> u64 {
    world(|world| {
        world.now += ASKING_NANOS;
        world.now
    })
}

/// Random bytes.
pub(super) fn fill(bytes: &mut [u8]) {
    world(|world| {
        for chunk in bytes.chunks_mut(8) {
            let drawn = world.entropy.bits().to_le_bytes();
            chunk.copy_from_slice(&drawn[..chunk.len()]);
        }
    });
}

/// What a sync of a file costs: most take a fraction of a millisecond, some take long, and on a
/// slow disk all do.
pub(super) fn sync() {
    let me = current().expect("only simulated threads sync here");
    let until = world(|world| {
        let micros = match world.random.number_below(100) {
            _ if world.slow.contains(&me.group.get()) => 5_000 + world.random.number_below(50_000),
            0 => 2_000 + world.random.number_below(20_000),
            _ => 50 + world.random.number_below(500),
        };
        world.now + micros * 1000
    });
    wait(On::Clock, until);
}

/// The calling thread's group ends here, as a process does that aborts.
pub(super) fn abort() {
    let me = current().expect("only simulated threads abort here");
    let group = me.group.get();
    if group == 0 {
        return;
    }
    world(|world| {
        world.aborted.push(group);
        world.remove(|thread| thread.group.get() == group);
    });
    pass_for_good();
    loop {
        me.take_turn();
    }
}

/// Moves the calling thread to another group.
pub fn enter(group: u32) {
    let me = current().expect("only simulated threads have a group");
    me.group.set(group);
}

/// No thread of the group runs ever again.
pub fn freeze(group: u32) {
    world(|world| {
        world.remove(|thread| thread.group.get() == group);
        world.paused.remove(&group);
    });
}

/// Stops all threads of the group until [`resume`].
pub fn pause(group: u32) {
    world(|world| world.paused.insert(group));
}

/// Lets them run again.
pub fn resume(group: u32) {
    world(|world| world.paused.remove(&group));
}

/// Makes the disk of a group slow, or quick again.
pub fn slow_down(group: u32, is_slow: bool) {
    world(|world| {
        if is_slow {
            world.slow.insert(group);
        } else {
            world.slow.remove(&group);
        }
    });
}

/// Whether the group ended itself.
#[must_use]
pub fn has_aborted(group: u32) -> bool {
    world(|world| world.aborted.contains(&group))
}

/// Time since the beginning.
#[must_use]
pub fn elapsed() -> Duration {
    world(|world| Duration::from_nanos(world.now))
}

/// How often a thread has waited.
#[must_use]
pub fn waits() -> u64 {
    world(|world| world.waits)
}

/// Everybody waits for somebody, and nobody for the clock.
fn stuck() -> ! {
    world(|world| {
        eprintln!(
            "nobody can go on, at {:?}:",
            Duration::from_nanos(world.now)
        );
        for thread in &world.threads {
            let (group, state) = (thread.group.get(), thread.state.get());
            eprintln!("thread {} of group {group}: {state:?}", thread.number);
        }
    });
    std::process::exit(3);
}

/// What a turn costs at least.
const TURN_NANOS: u64 = 1000;
/// What looking at the clock costs, so that whoever does nothing else is late some day.
const ASKING_NANOS: u64 = 40;
