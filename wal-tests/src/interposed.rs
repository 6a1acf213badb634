//! The C library's functions that change files, in front of the real ones.
//!
//! A program that has this module (by `#[path]`: it is no part of the library, or every test would
//! have it) answers its own calls of `write`, `fsync` and so on, those of SQLite and of Rust's
//! standard library included, because the linker finds these definitions before the C library's.
//! They hand each call to `wal_tests::recorder`, with the system call itself to do the work.
//!
//! `open` is variadic in C. Its third argument arrives like any third argument on the 64-bit
//! systems that this runs on, and is noise when the caller gave none, which the kernel then ignores.

#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr, c_char, c_int, c_long, c_uint, c_void};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use libc::{iovec, mode_t, off_t, size_t, ssize_t};
use rustix::io::Errno;
use wal_tests::recorder::{self, Called};

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the calls below are those of 64-bit Linux");

/// A system call, in the form that the recorder works with.
macro_rules! system {
    ($number:ident $(, $argument:expr)*) => {{
        // SAFETY: the arguments are those of the caller of the library's function of this name,
        // which promises the same as the system call asks for.
        kernel(unsafe { libc::syscall(libc::$number $(, $argument)*) })
    }};
}

fn kernel(result: c_long) -> Called {
    usize::try_from(result).map_err(|_| {
        let error = std::io::Error::last_os_error().raw_os_error();
        Errno::from_raw_os_error(error.unwrap_or(libc::EIO))
    })
}

/// As the C library answers.
fn answer(called: Called) -> ssize_t {
    match called {
        Ok(count) => ssize_t::try_from(count).unwrap_or(ssize_t::MAX),
        Err(errno) => {
            // SAFETY: the address of this thread's own errno is always valid.
            unsafe { *libc::__errno_location() = errno.raw_os_error() };
            -1
        }
    }
}

fn small(called: Called) -> c_int {
    c_int::try_from(answer(called)).unwrap_or(c_int::MAX)
}

/// # Safety
///
/// `path` is a C string that lives for the call.
unsafe fn path<'a>(path: *const c_char) -> &'a Path {
    // SAFETY: as promised.
    Path::new(OsStr::from_bytes(
        unsafe { CStr::from_ptr(path) }.to_bytes(),
    ))
}

/// `None` for what cannot be a descriptor.
fn descriptor<'a>(fd: c_int) -> Option<BorrowedFd<'a>> {
    // SAFETY: it is borrowed for the call only, during which the caller keeps it open; a number
    // that is not open only makes calls fail.
    (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// # Safety
///
/// As `open(2)`.
unsafe fn open_any(dir: c_int, name: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    let call = || system!(SYS_openat, dir, name, flags, mode);
    // SAFETY: the caller of open promises a C string.
    let name = unsafe { path(name) };
    if !name.is_absolute() {
        return small(call());
    }
    let (creates, truncates) = (flags & libc::O_CREAT != 0, flags & libc::O_TRUNC != 0);
    small(recorder::open(name, creates, truncates, call))
}

/// # Safety
///
/// As `open(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn open(name: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { open_any(libc::AT_FDCWD, name, flags, mode) }
}

/// # Safety
///
/// As `open(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn open64(name: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { open_any(libc::AT_FDCWD, name, flags, mode) }
}

/// # Safety
///
/// As `openat(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn openat64(
    dir: c_int,
    name: *const c_char,
    flags: c_int,
    mode: c_uint,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { open_any(dir, name, flags, mode) }
}

/// # Safety
///
/// As `write(2)`.
unsafe fn write_any(
    fd: c_int,
    bytes: *const c_void,
    count: size_t,
    offset: Option<off_t>,
) -> ssize_t {
    let call = |part: &[u8]| {
        let (bytes, count) = (part.as_ptr(), part.len());
        match offset {
            Some(offset) => system!(SYS_pwrite64, fd, bytes, count, offset),
            None => system!(SYS_write, fd, bytes, count),
        }
    };
    let whole = if bytes.is_null() {
        &[]
    } else {
        // SAFETY: the caller of write promises so many readable bytes.
        unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), count) }
    };
    answer(match descriptor(fd) {
        Some(borrowed) => {
            let offset = offset.and_then(|offset| u64::try_from(offset).ok());
            recorder::write(borrowed, whole, offset, call)
        }
        None => call(whole),
    })
}

/// # Safety
///
/// As `write(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, count: size_t) -> ssize_t {
    // SAFETY: the caller's promise.
    unsafe { write_any(fd, bytes, count, None) }
}

/// # Safety
///
/// As `pwrite(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn pwrite(
    fd: c_int,
    bytes: *const c_void,
    count: size_t,
    offset: off_t,
) -> ssize_t {
    // SAFETY: the caller's promise.
    unsafe { write_any(fd, bytes, count, Some(offset)) }
}

/// # Safety
///
/// As `pwrite(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn pwrite64(
    fd: c_int,
    bytes: *const c_void,
    count: size_t,
    offset: off_t,
) -> ssize_t {
    // SAFETY: the caller's promise.
    unsafe { write_any(fd, bytes, count, Some(offset)) }
}

/// To a file it writes the first part only, as it may.
///
/// # Safety
///
/// As `writev(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    let is_file = descriptor(fd).is_some_and(recorder::is_watched);
    if !is_file || count < 1 {
        return answer(system!(SYS_writev, fd, parts, count));
    }
    // SAFETY: the caller promises so many parts, each with its bytes.
    unsafe {
        let parts = std::slice::from_raw_parts(parts, usize::try_from(count).unwrap_or(0));
        let first = parts.iter().find(|part| part.iov_len > 0);
        first.map_or(0, |part| write(fd, part.iov_base, part.iov_len))
    }
}

/// Nobody has it: whoever copies falls back to reading and writing.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn copy_file_range() -> ssize_t {
    answer(Err(Errno::NOSYS))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn ftruncate(fd: c_int, length: off_t) -> c_int {
    let call = || system!(SYS_ftruncate, fd, length);
    small(match (descriptor(fd), u64::try_from(length)) {
        (Some(fd), Ok(length)) => recorder::resize(fd, length, call),
        _ => call(),
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn ftruncate64(fd: c_int, length: off_t) -> c_int {
    ftruncate(fd, length)
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn fsync(fd: c_int) -> c_int {
    let call = || system!(SYS_fsync, fd);
    small(descriptor(fd).map_or_else(call, |fd| recorder::sync(fd, call)))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn fdatasync(fd: c_int) -> c_int {
    let call = || system!(SYS_fdatasync, fd);
    small(descriptor(fd).map_or_else(call, |fd| recorder::sync(fd, call)))
}

/// # Safety
///
/// As `rename(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    let here = libc::AT_FDCWD;
    let call = || system!(SYS_renameat2, here, from, here, to, 0);
    // SAFETY: the caller promises two C strings.
    small(unsafe { recorder::rename(path(from), path(to), call) })
}

/// # Safety
///
/// As `unlink(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn unlink(name: *const c_char) -> c_int {
    let call = || system!(SYS_unlinkat, libc::AT_FDCWD, name, 0);
    // SAFETY: the caller promises a C string.
    small(unsafe { recorder::remove(path(name), call) })
}

/// # Safety
///
/// As `rmdir(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn rmdir(name: *const c_char) -> c_int {
    let call = || system!(SYS_unlinkat, libc::AT_FDCWD, name, libc::AT_REMOVEDIR);
    // SAFETY: the caller promises a C string.
    small(unsafe { recorder::remove(path(name), call) })
}

/// # Safety
///
/// As `mkdir(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mkdir(name: *const c_char, mode: mode_t) -> c_int {
    let call = || system!(SYS_mkdirat, libc::AT_FDCWD, name, mode);
    // SAFETY: the caller promises a C string.
    small(unsafe { recorder::make_dir(path(name), call) })
}
