//! What the operating system does for simulated threads: time, randomness, waiting, threads.
//!
//! A program that says [`take_over!`](crate::take_over) has these functions instead of those of the
//! C library, in Rust code and in C code alike. Called by a thread that is not simulated they do
//! what the C library does.

#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc)]
#![allow(missing_docs)]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

pub use libc::{
    clockid_t, epoll_event, mode_t, pid_t, pthread_attr_t, pthread_t, size_t, ssize_t, time_t,
    timespec, timeval, useconds_t,
};

use super::threads::{self, On, Thread};

/// What a thread begins with.
pub type Start = extern "C" fn(*mut c_void) -> *mut c_void;

/// The C library's own function of this name.
macro_rules! real {
    ($name:literal as $type:ty) => {{
        static FOUND: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
        let found = find(&FOUND, $name);
        #[allow(unused_unsafe)]
        // SAFETY: the C library's function of this name has this type.
        let found = unsafe { std::mem::transmute::<*mut c_void, $type>(found) };
        found
    }};
}

fn find(known: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let mut found = known.load(Ordering::Relaxed);
    if found.is_null() {
        // SAFETY: the name ends with a zero.
        found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
        assert!(!found.is_null(), "the C library has all of these");
        known.store(found, Ordering::Relaxed);
    }
    found
}

/// Called by the first thread before any other is simulated.
pub(super) fn prepare() {
    KEY.get_or_init(|| {
        let mut key = 0;
        // SAFETY: `key` is written.
        let made = unsafe { libc::pthread_key_create(&raw mut key, Some(ended)) };
        assert_eq!(made, 0, "a key can be made");
        key
    });
    // Turns are handed over fastest where nothing has to be moved. Allowed to fail.
    // SAFETY: a set of processors is plain data.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let here = libc::sched_getcpu();
        if let Ok(here) = usize::try_from(here) {
            libc::CPU_SET(here, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
        }
    }
}

static KEY: OnceLock<libc::pthread_key_t> = OnceLock::new();

/// Runs after everything else that a thread does at its end.
extern "C" fn ended(thread: *mut c_void) {
    // SAFETY: the value of the key is a thread, which is never freed.
    let thread = unsafe { &*thread.cast::<Thread>() };
    thread.end();
}

/// Which of these epoll descriptors have something.
pub(super) fn look_at(descriptors: &[c_int]) -> Vec<bool> {
    let mut polled: Vec<libc::pollfd> = descriptors
        .iter()
        .map(|&fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    if !polled.is_empty() {
        // SAFETY: the pointer and the length are those of the vector.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, 0) };
    }
    polled.iter().map(|polled| polled.revents != 0).collect()
}

pub(super) fn wake_for_turn(turn: &AtomicU32) {
    let address = turn.as_ptr() as c_long;
    let operation = c_long::from(libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG);
    // SAFETY: a futex that lives for ever.
    unsafe { real_syscall(libc::SYS_futex, address, operation, 1, 0, 0, 0) };
}

pub(super) fn sleep_until_turn(turn: &AtomicU32) {
    let address = turn.as_ptr() as c_long;
    let operation = c_long::from(libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG);
    // SAFETY: a futex that lives for ever.
    unsafe { real_syscall(libc::SYS_futex, address, operation, 0, 0, 0, 0) };
}

type Syscall = unsafe extern "C" fn(c_long, ...) -> c_long;

unsafe fn real_syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    let real = real!(c"syscall" as Syscall);
    // SAFETY: passed on as it came.
    unsafe { real(number, a, b, c, d, e, f) }
}

fn fail(why: c_int) -> c_long {
    // SAFETY: every thread has its own.
    unsafe { *libc::__errno_location() = why };
    -1
}

pub unsafe fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    if threads::current().is_none() {
        // SAFETY: passed on as it came.
        return unsafe { real_syscall(number, a, b, c, d, e, f) };
    }
    match number {
        // SAFETY: the arguments of this call.
        libc::SYS_futex => unsafe { futex(a, b, c, d, e, f) },
        libc::SYS_getrandom => {
            let length = usize::try_from(b).unwrap_or(0);
            // SAFETY: the caller's buffer.
            threads::fill(unsafe { std::slice::from_raw_parts_mut(a as *mut u8, length) });
            b
        }
        // SAFETY: passed on as it came.
        _ => unsafe { real_syscall(number, a, b, c, d, e, f) },
    }
}

unsafe fn futex(a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long {
    let operation = c_int::try_from(b).unwrap_or(0);
    let command = operation & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    let address = usize::try_from(a).expect("an address");
    match command {
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => {
            // SAFETY: the caller's futex.
            let value = unsafe { &*(a as *const AtomicU32) }.load(Ordering::SeqCst);
            if c_long::from(value) != c & 0xffff_ffff {
                return fail(libc::EAGAIN);
            }
            let until = match d as *const timespec {
                time if time.is_null() => u64::MAX,
                // SAFETY: the caller's time.
                time => match nanos(unsafe { &*time }) {
                    nanos if command == libc::FUTEX_WAIT => threads::now() + nanos,
                    nanos if operation & libc::FUTEX_CLOCK_REALTIME != 0 => {
                        nanos.saturating_sub(REAL_NANOS)
                    }
                    nanos => nanos.saturating_sub(MONOTONIC_NANOS),
                },
            };
            if threads::wait(On::Address(address), until) {
                fail(libc::ETIMEDOUT)
            } else {
                0
            }
        }
        libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET => {
            let count = usize::try_from(c).unwrap_or(0);
            let woken = threads::wake(address, count);
            if woken < count {
                // A thread that is not simulated may wait there as well.
                // SAFETY: passed on as it came.
                unsafe { real_syscall(libc::SYS_futex, a, b, c, d, e, f) };
            }
            c_long::try_from(woken).unwrap_or(c_long::MAX)
        }
        // SAFETY: passed on as it came.
        _ => unsafe { real_syscall(libc::SYS_futex, a, b, c, d, e, f) },
    }
}

pub unsafe fn getrandom(buffer: *mut c_void, length: size_t, flags: c_uint) -> ssize_t {
    if threads::current().is_none() {
        type Real = unsafe extern "C" fn(*mut c_void, size_t, c_uint) -> ssize_t;
        // SAFETY: passed on as it came.
        return unsafe { real!(c"getrandom" as Real)(buffer, length, flags) };
    }
    // SAFETY: the caller's buffer.
    threads::fill(unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) });
    ssize_t::try_from(length).unwrap_or(ssize_t::MAX)
}

fn nanos(time: &timespec) -> u64 {
    let part = |part: c_long| u64::try_from(part).unwrap_or(0);
    part(time.tv_sec)
        .saturating_mul(SECOND)
        .saturating_add(part(time.tv_nsec))
}

fn moment(clock: clockid_t) -> Option<u64> {
    threads::current()?;
    match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => Some(REAL_NANOS + threads::now()),
        libc::CLOCK_MONOTONIC
        | libc::CLOCK_MONOTONIC_COARSE
        | libc::CLOCK_MONOTONIC_RAW
        | libc::CLOCK_BOOTTIME => Some(MONOTONIC_NANOS + threads::now()),
        _ => None,
    }
}

fn seconds(nanos: u64) -> time_t {
    time_t::try_from(nanos / SECOND).expect("some thousand years")
}

fn rest(nanos: u64) -> c_long {
    c_long::try_from(nanos % SECOND).expect("below a second")
}

pub unsafe fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    let Some(now) = moment(clock) else {
        type Real = unsafe extern "C" fn(clockid_t, *mut timespec) -> c_int;
        // SAFETY: passed on as it came.
        return unsafe { real!(c"clock_gettime" as Real)(clock, time) };
    };
    // SAFETY: the caller's.
    unsafe {
        (*time).tv_sec = seconds(now);
        (*time).tv_nsec = rest(now);
    }
    0
}

pub unsafe fn gettimeofday(time: *mut timeval, zone: *mut c_void) -> c_int {
    let Some(now) = moment(libc::CLOCK_REALTIME) else {
        type Real = unsafe extern "C" fn(*mut timeval, *mut c_void) -> c_int;
        // SAFETY: passed on as it came.
        return unsafe { real!(c"gettimeofday" as Real)(time, zone) };
    };
    // SAFETY: the caller's.
    unsafe {
        (*time).tv_sec = seconds(now);
        (*time).tv_usec = rest(now) / 1000;
    }
    0
}

pub unsafe fn time(time: *mut time_t) -> time_t {
    let Some(now) = moment(libc::CLOCK_REALTIME) else {
        type Real = unsafe extern "C" fn(*mut time_t) -> time_t;
        // SAFETY: passed on as it came.
        return unsafe { real!(c"time" as Real)(time) };
    };
    let now = seconds(now);
    if !time.is_null() {
        // SAFETY: the caller's.
        unsafe { *time = now };
    }
    now
}

pub unsafe fn nanosleep(asked: *const timespec, left: *mut timespec) -> c_int {
    if threads::current().is_none() {
        type Real = unsafe extern "C" fn(*const timespec, *mut timespec) -> c_int;
        // SAFETY: passed on as it came.
        return unsafe { real!(c"nanosleep" as Real)(asked, left) };
    }
    // SAFETY: the caller's.
    let until = threads::now() + nanos(unsafe { &*asked });
    threads::wait(On::Clock, until);
    0
}

pub unsafe fn clock_nanosleep(
    clock: clockid_t,
    flags: c_int,
    asked: *const timespec,
    left: *mut timespec,
) -> c_int {
    let Some(now) = moment(clock) else {
        type Real = unsafe extern "C" fn(clockid_t, c_int, *const timespec, *mut timespec) -> c_int;
        // SAFETY: passed on as it came.
        return unsafe { real!(c"clock_nanosleep" as Real)(clock, flags, asked, left) };
    };
    // SAFETY: the caller's.
    let asked = nanos(unsafe { &*asked });
    let span = if flags & libc::TIMER_ABSTIME == 0 {
        asked
    } else {
        asked.saturating_sub(now)
    };
    threads::wait(On::Clock, threads::now() + span);
    0
}

pub unsafe fn usleep(micros: useconds_t) -> c_int {
    if threads::current().is_none() {
        type Real = unsafe extern "C" fn(useconds_t) -> c_int;
        // SAFETY: passed on as it came.
        return unsafe { real!(c"usleep" as Real)(micros) };
    }
    threads::wait(On::Clock, threads::now() + u64::from(micros) * 1000);
    0
}

pub unsafe fn sched_yield() -> c_int {
    if threads::current().is_none() {
        type Real = unsafe extern "C" fn() -> c_int;
        // SAFETY: passed on as it came.
        return unsafe { real!(c"sched_yield" as Real)() };
    }
    threads::give_way();
    0
}

/// A simulated process does not lose power unless its disk says so, so its syncs only take time.
pub unsafe fn fsync(fd: c_int) -> c_int {
    if threads::current().is_none() {
        type Real = unsafe extern "C" fn(c_int) -> c_int;
        // SAFETY: passed on as it came.
        return unsafe { real!(c"fsync" as Real)(fd) };
    }
    threads::sync();
    0
}

pub unsafe fn fdatasync(fd: c_int) -> c_int {
    if threads::current().is_none() {
        type Real = unsafe extern "C" fn(c_int) -> c_int;
        // SAFETY: passed on as it came.
        return unsafe { real!(c"fdatasync" as Real)(fd) };
    }
    threads::sync();
    0
}

/// SQLite's randomness has no other source, then.
pub unsafe fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's.
    if threads::current().is_some() && unsafe { CStr::from_ptr(path) } == c"/dev/urandom" {
        fail(libc::ENOENT);
        return -1;
    }
    type Real = unsafe extern "C" fn(*const c_char, c_int, ...) -> c_int;
    // SAFETY: passed on as it came.
    unsafe { real!(c"open64" as Real)(path, flags, mode) }
}

/// Processes are not told apart by their numbers.
pub unsafe fn getpid() -> pid_t {
    if threads::current().is_none() {
        type Real = unsafe extern "C" fn() -> pid_t;
        // SAFETY: passed on as it came.
        return unsafe { real!(c"getpid" as Real)() };
    }
    4000
}

pub unsafe fn abort() -> ! {
    if threads::current().is_some() {
        threads::abort();
    }
    type Real = unsafe extern "C" fn() -> !;
    // SAFETY: passed on as it came.
    unsafe { real!(c"abort" as Real)() }
}

type EpollWait = unsafe extern "C" fn(c_int, *mut epoll_event, c_int, c_int) -> c_int;

pub unsafe fn epoll_wait(
    fd: c_int,
    events: *mut epoll_event,
    events_max: c_int,
    millis: c_int,
) -> c_int {
    let real = real!(c"epoll_wait" as EpollWait);
    if threads::current().is_none() {
        // SAFETY: passed on as it came.
        return unsafe { real(fd, events, events_max, millis) };
    }
    let until = match u64::try_from(millis) {
        Ok(millis) => threads::now() + millis * 1_000_000,
        Err(_) => u64::MAX,
    };
    let mut timed_out = millis == 0;
    loop {
        // SAFETY: passed on as it came, but for the time.
        let found = unsafe { real(fd, events, events_max, 0) };
        if found != 0 || timed_out {
            return found;
        }
        timed_out = threads::wait(On::Descriptor(fd), until);
    }
}

struct Begun {
    thread: &'static Thread,
    start: Start,
    argument: *mut c_void,
}

type PthreadCreate =
    unsafe extern "C" fn(*mut pthread_t, *const pthread_attr_t, Start, *mut c_void) -> c_int;

pub unsafe fn pthread_create(
    handle: *mut pthread_t,
    attributes: *const pthread_attr_t,
    start: Start,
    argument: *mut c_void,
) -> c_int {
    let real = real!(c"pthread_create" as PthreadCreate);
    if threads::current().is_none() {
        // SAFETY: passed on as it came.
        return unsafe { real(handle, attributes, start, argument) };
    }
    let thread = threads::add();
    let begun = Box::into_raw(Box::new(Begun {
        thread,
        start,
        argument,
    }));
    // SAFETY: passed on as it came, with ours before the caller's start.
    let result = unsafe { real(handle, attributes, begin, begun.cast()) };
    if result == 0 {
        // SAFETY: written by the call.
        thread.handle.set(unsafe { *handle });
    } else {
        threads::forget(thread);
    }
    result
}

extern "C" fn begin(begun: *mut c_void) -> *mut c_void {
    let begun = begun.cast::<Begun>();
    // SAFETY: made by `pthread_create`, for this thread alone.
    let thread = unsafe { (*begun).thread };
    thread.start();
    // SAFETY: as above.
    let begun = unsafe { Box::from_raw(begun) };
    let key = KEY.get().expect("made before the first thread");
    // SAFETY: the key exists.
    unsafe { libc::pthread_setspecific(*key, ptr::from_ref(thread).cast()) };
    (begun.start)(begun.argument)
}

pub unsafe fn pthread_join(handle: pthread_t, result: *mut *mut c_void) -> c_int {
    if threads::current().is_some() {
        threads::wait_for_end(handle);
    }
    type Real = unsafe extern "C" fn(pthread_t, *mut *mut c_void) -> c_int;
    // SAFETY: passed on as it came.
    unsafe { real!(c"pthread_join" as Real)(handle, result) }
}

const SECOND: u64 = 1_000_000_000;
/// What the monotonic clock shows in the beginning: something has been going on before.
const MONOTONIC_NANOS: u64 = 100_000 * SECOND;
/// What the other clock shows: some day in 2027.
const REAL_NANOS: u64 = 1_800_000_000 * SECOND;

/// Puts the simulated operating system under a program. To be said once, in its main file.
#[macro_export]
macro_rules! take_over {
    () => {
        #[allow(unsafe_code, clippy::missing_safety_doc)]
        mod taken_over {
            use std::ffi::{c_char, c_int, c_long, c_uint, c_void};
            use $crate::simulation::system::{self as to, *};

            $crate::take_over! { @each
                fn abort() -> !;
                fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int;
                fn clock_nanosleep(
                    clock: clockid_t, flags: c_int, asked: *const timespec, left: *mut timespec,
                ) -> c_int;
                fn epoll_wait(
                    fd: c_int, events: *mut epoll_event, events_max: c_int, millis: c_int,
                ) -> c_int;
                fn fdatasync(fd: c_int) -> c_int;
                fn fsync(fd: c_int) -> c_int;
                fn getpid() -> pid_t;
                fn getrandom(buffer: *mut c_void, length: size_t, flags: c_uint) -> ssize_t;
                fn gettimeofday(time: *mut timeval, zone: *mut c_void) -> c_int;
                fn nanosleep(asked: *const timespec, left: *mut timespec) -> c_int;
                fn pthread_create(
                    handle: *mut pthread_t, attributes: *const pthread_attr_t, start: Start,
                    argument: *mut c_void,
                ) -> c_int;
                fn pthread_join(handle: pthread_t, result: *mut *mut c_void) -> c_int;
                fn sched_yield() -> c_int;
                fn syscall(
                    number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long,
                    f: c_long,
                ) -> c_long;
                fn time(time: *mut time_t) -> time_t;
                fn usleep(micros: useconds_t) -> c_int;
            }

            #[unsafe(no_mangle)]
            unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
                unsafe { to::open(path, flags, mode) }
            }

            #[unsafe(no_mangle)]
            unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
                unsafe { to::open(path, flags, mode) }
            }
        }
    };
    (@each $(fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $result:ty;)*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($argument: $type),*) -> $result {
                unsafe { to::$name($($argument),*) }
            }
        )*
    };
}
