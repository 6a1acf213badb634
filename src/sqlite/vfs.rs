//! The VFS named `wallaby`: SQLite's default VFS with our [`Shim`] around the main file and the
//! WAL.
//!
//! The writing connection uses it, and the readers, whose pages are compared with what a
//! [`Witness`] knows; a shim that owns nothing refuses all writes. All other files (temporary ones,
//! and whatever a rollback journal would be) go to the VFS underneath untouched. What is decided at
//! each call is in `shim`; this file only translates ("The OS Backend (VFS) To SQLite",
//! sqlite3_io_methods).

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::slice;
use std::sync::{Arc, OnceLock};

use libsqlite3_sys as sqlite;
use rusqlite::Connection;

use super::error::Error;
use super::ffi::{self, ResultCode};
use super::shim::Shim;
use super::witness::{Damage, Witness};
use crate::wal::index;

/// The name under which connections ask for it.
pub(super) const NAME: &str = "wallaby";

/// What SQLite allocates for each file; the file of the VFS underneath follows it.
#[repr(C)]
struct ShimFile {
    base: sqlite::sqlite3_file,
    kind: Kind,
    shim: MaybeUninit<Rc<Shim>>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Main,
    Wal,
}

const _: () = assert!(align_of::<ShimFile>() <= 8 && size_of::<ShimFile>().is_multiple_of(8));

static METHODS: sqlite::sqlite3_io_methods = sqlite::sqlite3_io_methods {
    // Version 2: shared memory, but no memory-mapped pages, which would bypass xRead.
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// Registers the VFS over the one that is the default now, once per process.
pub(super) fn register() -> Result<(), Error> {
    static REGISTERED: OnceLock<c_int> = OnceLock::new();
    ResultCode::check(*REGISTERED.get_or_init(register_once)).map_err(|code| Error::Vfs {
        what: "register the VFS",
        code: code.0,
    })
}

fn register_once() -> c_int {
    // SAFETY: no arguments; the default VFS is never unregistered while connections may use it.
    let Some(under) = NonNull::new(unsafe { sqlite::sqlite3_vfs_find(ptr::null()) }) else {
        return sqlite::SQLITE_ERROR;
    };
    // SAFETY: a registered VFS is a valid object.
    let mut ours = unsafe { *under.as_ref() };
    let Ok(own_bytes) = c_int::try_from(size_of::<ShimFile>()) else {
        return sqlite::SQLITE_ERROR;
    };
    ours.szOsFile += own_bytes;
    ours.pNext = ptr::null_mut();
    ours.zName = c"wallaby".as_ptr();
    // The methods other than xOpen are inherited: they get our object in place of theirs, which for
    // the Unix VFS differs in nothing they look at but pAppData, and that is copied.
    ours.xOpen = Some(open);
    UNDER.get_or_init(|| Under(under));
    // SAFETY: the object lives for ever, as a registered VFS must.
    unsafe { sqlite::sqlite3_vfs_register(Box::leak(Box::new(ours)), 0) }
}

struct Under(NonNull<sqlite::sqlite3_vfs>);

// SAFETY: a registered VFS may be used from every thread; that is SQLite's contract for it.
unsafe impl Send for Under {}
// SAFETY: as above.
unsafe impl Sync for Under {}

static UNDER: OnceLock<Under> = OnceLock::new();

/// The shim of a connection that was opened on this VFS, while the connection is open.
pub(super) struct Handle(Rc<Shim>);

// SAFETY: the other counted references are in the files of the connection, which moves together
// with the handle (both are fields of `Database`), so the count is only touched by one thread at a
// time.
unsafe impl Send for Handle {}

impl std::ops::Deref for Handle {
    type Target = Shim;

    fn deref(&self) -> &Shim {
        &self.0
    }
}

/// Finds the shim of a connection. The result must not be used once the connection is closed.
pub(super) fn shim_of(connection: &Connection) -> Result<Handle, Error> {
    let fail = |code: ResultCode| Error::Vfs {
        what: "find the shim of the connection",
        code: code.0,
    };
    let file = ffi::main_file(connection).map_err(fail)?;
    // SAFETY: the connection is open, so its main file is.
    let ours = unsafe { is_ours(file.as_ptr()) };
    if !ours {
        return Err(fail(ResultCode(sqlite::SQLITE_MISUSE)));
    }
    // SAFETY: `is_ours` has checked that it is a ShimFile.
    let (_, shim, _) = unsafe { parts(file.as_ptr()) };
    Ok(Handle(Rc::clone(shim)))
}

/// Has every page that a connection reads from now on compared with what the witness knows.
pub(super) fn trust_only(connection: &Connection, witness: &Arc<Witness>) -> Result<(), Error> {
    shim_of(connection)?.trust_only(witness);
    Ok(())
}

/// The damage that a connection met first since this was asked last.
pub(super) fn take_damage(connection: &Connection) -> Option<Damage> {
    shim_of(connection).ok()?.take_damage()
}

/// Why a connection got its last `SQLITE_FULL`, once; `None` if not from this VFS.
pub(super) fn take_refusal(connection: &Connection) -> Option<String> {
    shim_of(connection).ok()?.take_refusal()
}

/// Whether a file was opened by this VFS.
///
/// # Safety
///
/// The file is null or open.
unsafe fn is_ours(file: *mut sqlite::sqlite3_file) -> bool {
    // SAFETY: the caller promises an open file.
    !file.is_null() && ptr::eq(unsafe { (*file).pMethods }, &raw const METHODS)
}

/// The parts of one of our files: its kind, its shim, and the file underneath.
///
/// # Safety
///
/// The file was opened by this VFS and is open.
unsafe fn parts<'a>(file: *mut sqlite::sqlite3_file) -> (Kind, &'a Rc<Shim>, ffi::File) {
    // SAFETY: the caller promises a ShimFile; `open` has filled it before it set the methods.
    let ours = unsafe { &*file.cast::<ShimFile>() };
    // SAFETY: initialised together with the methods.
    let shim = unsafe { ours.shim.assume_init_ref() };
    // SAFETY: `open` has opened the file underneath, and it stays open until `close`.
    let real = unsafe { ffi::File::new(under(file)) }.expect("an address within an allocation");
    (ours.kind, shim, real)
}

/// Where the file of the VFS underneath stands.
fn under(file: *mut sqlite::sqlite3_file) -> *mut sqlite::sqlite3_file {
    file.wrapping_byte_add(size_of::<ShimFile>())
}

unsafe extern "C" fn open(
    _vfs: *mut sqlite::sqlite3_vfs,
    name: sqlite::sqlite3_filename,
    file: *mut sqlite::sqlite3_file,
    flags: c_int,
    flags_out: *mut c_int,
) -> c_int {
    let Some(Under(vfs)) = UNDER.get() else {
        return sqlite::SQLITE_CANTOPEN;
    };
    let kind = if flags & sqlite::SQLITE_OPEN_MAIN_DB != 0 {
        Some(Kind::Main)
    } else if flags & sqlite::SQLITE_OPEN_WAL != 0 {
        Some(Kind::Wal)
    } else {
        None
    };
    let real = if kind.is_some() { under(file) } else { file };
    // SAFETY: the VFS underneath is registered; `file` has room for ours and, behind it, for its
    // own (szOsFile is the sum), and the other arguments are handed on as they came. Methods must
    // be null if opening fails.
    let code = unsafe {
        (*file).pMethods = ptr::null();
        match vfs.as_ref().xOpen {
            Some(open) => open(vfs.as_ptr(), name, real, flags, flags_out),
            None => sqlite::SQLITE_CANTOPEN,
        }
    };
    let (Some(kind), sqlite::SQLITE_OK) = (kind, code) else {
        return code;
    };
    // SAFETY: just opened; it stays open until `close`, and SQLite uses a connection's files on one
    // thread at a time.
    let real = unsafe { ffi::File::new(real) }.expect("an address within an allocation");
    let shim = match kind {
        Kind::Main => Rc::new(Shim::new(real)),
        // SAFETY: SQLite passes the name of a WAL of an open main file.
        Kind::Wal => match unsafe { shim_of_wal(name) } {
            Some(shim) => {
                shim.wal.set(Some(real));
                shim
            }
            None => return close_real(real, sqlite::SQLITE_CANTOPEN),
        },
    };
    // SAFETY: `file` has room for a ShimFile, and nobody else knows it yet.
    unsafe {
        file.cast::<ShimFile>().write(ShimFile {
            base: sqlite::sqlite3_file {
                pMethods: &raw const METHODS,
            },
            kind,
            shim: MaybeUninit::new(shim),
        });
    }
    sqlite::SQLITE_OK
}

/// The shim of the main file to which a WAL belongs.
///
/// # Safety
///
/// The name is one that SQLite has passed to xOpen for a WAL.
unsafe fn shim_of_wal(name: sqlite::sqlite3_filename) -> Option<Rc<Shim>> {
    // SAFETY: that is what the function is for, says the caller's promise.
    let main = unsafe { sqlite::sqlite3_database_file_object(name) };
    // SAFETY: SQLite opens the main file first and closes it last.
    if !unsafe { is_ours(main) } {
        return None;
    }
    // SAFETY: just checked.
    let (_, shim, _) = unsafe { parts(main) };
    Some(Rc::clone(shim))
}

fn close_real(real: ffi::File, code: c_int) -> c_int {
    if let Some(close) = real.methods().xClose {
        // SAFETY: the file is open and not used afterwards.
        unsafe { close(real.as_ptr()) };
    }
    code
}

unsafe extern "C" fn close(file: *mut sqlite::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls the methods with one of our open files.
    let (kind, shim, real) = unsafe { parts(file) };
    if kind == Kind::Wal {
        shim.wal.set(None);
    }
    let code = match real.methods().xClose {
        // SAFETY: the file is open; its last use is this one.
        Some(close) => unsafe { close(real.as_ptr()) },
        None => sqlite::SQLITE_OK,
    };
    // SAFETY: SQLite does not use the file again, so the counted reference is dropped once.
    unsafe {
        (*file.cast::<ShimFile>()).shim.assume_init_drop();
        (*file).pMethods = ptr::null();
    }
    code
}

unsafe extern "C" fn read(
    file: *mut sqlite::sqlite3_file,
    bytes: *mut c_void,
    count: c_int,
    offset: i64,
) -> c_int {
    // SAFETY: SQLite calls the methods with one of our open files.
    let (kind, shim, real) = unsafe { parts(file) };
    let is_wal = kind == Kind::Wal;
    if let (Ok(length), Ok(position)) = (usize::try_from(count), u64::try_from(offset)) {
        let place = shim.place(is_wal, position, length);
        if is_wal || place.is_some() {
            // SAFETY: SQLite gives a buffer of `count` bytes; zeros are written before it is
            // borrowed, as it may be uninitialised.
            let buffer = unsafe {
                ptr::write_bytes(bytes.cast::<u8>(), 0, length);
                slice::from_raw_parts_mut(bytes.cast::<u8>(), length)
            };
            if is_wal && let Some(result) = shim.read_wal(buffer, position) {
                return ResultCode::of(result);
            }
            if let Some(place) = place {
                return ResultCode::of(shim.read_sound(real, place, position, buffer));
            }
        }
    }
    match real.methods().xRead {
        // SAFETY: the arguments are SQLite's, for the same file underneath.
        Some(read) => unsafe { read(real.as_ptr(), bytes, count, offset) },
        None => sqlite::SQLITE_IOERR_READ,
    }
}

unsafe extern "C" fn write(
    file: *mut sqlite::sqlite3_file,
    bytes: *const c_void,
    count: c_int,
    offset: i64,
) -> c_int {
    // SAFETY: SQLite calls the methods with one of our open files.
    let (kind, shim, _) = unsafe { parts(file) };
    let (Ok(length), Ok(position)) = (usize::try_from(count), u64::try_from(offset)) else {
        return sqlite::SQLITE_IOERR_WRITE;
    };
    // SAFETY: SQLite gives `count` bytes.
    let buffer = unsafe { slice::from_raw_parts(bytes.cast::<u8>(), length) };
    ResultCode::of(match kind {
        Kind::Main => shim.write_main(buffer, position),
        Kind::Wal => shim.write_wal(buffer, position),
    })
}

unsafe extern "C" fn truncate(file: *mut sqlite::sqlite3_file, size: i64) -> c_int {
    // SAFETY: SQLite calls the methods with one of our open files.
    let (kind, shim, real) = unsafe { parts(file) };
    let bytes = u64::try_from(size).unwrap_or(0);
    match kind {
        Kind::Main => shim.main_truncated(bytes),
        Kind::Wal => shim.wal_truncated(bytes),
    }
    match real.methods().xTruncate {
        // SAFETY: the arguments are SQLite's, for the same file underneath.
        Some(truncate) => unsafe { truncate(real.as_ptr(), size) },
        None => sqlite::SQLITE_IOERR_TRUNCATE,
    }
}

/// Of the main file nothing: a checkpoint counts from its record on, and who writes that syncs the
/// file before, on a descriptor of its own. The writing connection must not wait for the disk.
unsafe extern "C" fn sync(file: *mut sqlite::sqlite3_file, _flags: c_int) -> c_int {
    // SAFETY: SQLite calls the methods with one of our open files.
    let (kind, shim, _) = unsafe { parts(file) };
    ResultCode::of(match kind {
        Kind::Main => Ok(()),
        Kind::Wal => shim.sync_wal(),
    })
}

unsafe extern "C" fn file_size(file: *mut sqlite::sqlite3_file, size: *mut i64) -> c_int {
    // SAFETY: SQLite calls the methods with one of our open files.
    let (kind, shim, real) = unsafe { parts(file) };
    let bytes = match real.size() {
        Ok(bytes) if kind == Kind::Wal => shim.wal_size(bytes),
        Ok(bytes) => bytes,
        Err(code) => return code.0,
    };
    // SAFETY: SQLite gives a place for the answer.
    unsafe { *size = i64::try_from(bytes).unwrap_or(i64::MAX) };
    sqlite::SQLITE_OK
}

/// Above SHARED the connection would leave WAL mode, or checkpoint and delete the WAL on close.
unsafe extern "C" fn lock(file: *mut sqlite::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite calls the methods with one of our open files.
    let (kind, _, real) = unsafe { parts(file) };
    if kind == Kind::Main && level > sqlite::SQLITE_LOCK_SHARED {
        return sqlite::SQLITE_BUSY;
    }
    match real.methods().xLock {
        // SAFETY: the arguments are SQLite's, for the same file underneath.
        Some(lock) => unsafe { lock(real.as_ptr(), level) },
        None => sqlite::SQLITE_IOERR_LOCK,
    }
}

unsafe extern "C" fn unlock(file: *mut sqlite::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite calls the methods with one of our open files.
    let (_, _, real) = unsafe { parts(file) };
    match real.methods().xUnlock {
        // SAFETY: the arguments are SQLite's, for the same file underneath.
        Some(unlock) => unsafe { unlock(real.as_ptr(), level) },
        None => sqlite::SQLITE_IOERR_UNLOCK,
    }
}

unsafe extern "C" fn check_reserved_lock(
    file: *mut sqlite::sqlite3_file,
    reserved: *mut c_int,
) -> c_int {
    // SAFETY: SQLite calls the methods with one of our open files.
    let (_, _, real) = unsafe { parts(file) };
    match real.methods().xCheckReservedLock {
        // SAFETY: the arguments are SQLite's, for the same file underneath.
        Some(check) => unsafe { check(real.as_ptr(), reserved) },
        None => sqlite::SQLITE_IOERR_CHECKRESERVEDLOCK,
    }
}

unsafe extern "C" fn file_control(
    file: *mut sqlite::sqlite3_file,
    operation: c_int,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: SQLite calls the methods with one of our open files.
    let (_, _, real) = unsafe { parts(file) };
    match real.methods().xFileControl {
        // SAFETY: the arguments are SQLite's, for the same file underneath.
        Some(control) => unsafe { control(real.as_ptr(), operation, argument) },
        None => sqlite::SQLITE_NOTFOUND,
    }
}

unsafe extern "C" fn sector_size(file: *mut sqlite::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls the methods with one of our open files.
    let (_, _, real) = unsafe { parts(file) };
    match real.methods().xSectorSize {
        // SAFETY: the file underneath is open.
        Some(size) => unsafe { size(real.as_ptr()) },
        None => 0,
    }
}

/// Without POWERSAFE_OVERWRITE SQLite repeats the commit frame up to the end of a sector and syncs
/// in the middle of a frame; without SEQUENTIAL it syncs the WAL header alone. Neither matters to
/// us, because nothing is recovered from a WAL.
unsafe extern "C" fn device_characteristics(file: *mut sqlite::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls the methods with one of our open files.
    let (_, _, real) = unsafe { parts(file) };
    let under = match real.methods().xDeviceCharacteristics {
        // SAFETY: the file underneath is open.
        Some(characteristics) => unsafe { characteristics(real.as_ptr()) },
        None => 0,
    };
    under | sqlite::SQLITE_IOCAP_POWERSAFE_OVERWRITE | sqlite::SQLITE_IOCAP_SEQUENTIAL
}

unsafe extern "C" fn shm_map(
    file: *mut sqlite::sqlite3_file,
    region: c_int,
    bytes: c_int,
    extend: c_int,
    address: *mut *mut c_void,
) -> c_int {
    // SAFETY: SQLite calls the methods with one of our open files.
    let (_, _, real) = unsafe { parts(file) };
    match real.methods().xShmMap {
        // SAFETY: the arguments are SQLite's, for the same file underneath.
        Some(map) => unsafe { map(real.as_ptr(), region, bytes, extend, address) },
        None => sqlite::SQLITE_IOERR_SHMMAP,
    }
}

/// WRITE and CHECKPOINT are held for the life of the connection, so taking and giving them back is
/// nothing; a range of locks is cut down to the others.
unsafe extern "C" fn shm_lock(
    file: *mut sqlite::sqlite3_file,
    first: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: SQLite calls the methods with one of our open files.
    let (_, shim, real) = unsafe { parts(file) };
    let (mut first, mut count) = (first, count);
    if shim.is_owned() {
        if first <= c_int::from(index::LOCK_WRITE) {
            shim.write_lock_changed();
        }
        let held = (c_int::from(index::LOCK_CHECKPOINT) + 1 - first).clamp(0, count);
        first += held;
        count -= held;
    }
    // Whoever locks out all readers of the WAL is about to start it afresh (`walRestartLog`), and
    // goes on with it as it is if he cannot.
    let is_exclusive = flags == sqlite::SQLITE_SHM_LOCK | sqlite::SQLITE_SHM_EXCLUSIVE;
    let is_restart = first == c_int::from(index::LOCK_READ_0) + 1 && count == 4;
    if is_exclusive && is_restart && shim.needs_wal() {
        return sqlite::SQLITE_BUSY;
    }
    if count == 0 {
        return sqlite::SQLITE_OK;
    }
    match real.methods().xShmLock {
        // SAFETY: the range is SQLite's or a part of it, for the same file underneath.
        Some(lock) => unsafe { lock(real.as_ptr(), first, count, flags) },
        None => sqlite::SQLITE_IOERR_SHMLOCK,
    }
}

unsafe extern "C" fn shm_barrier(file: *mut sqlite::sqlite3_file) {
    // SAFETY: SQLite calls the methods with one of our open files.
    let (_, shim, real) = unsafe { parts(file) };
    shim.barrier();
    real.barrier();
}

/// The WAL-index is never deleted with the connection: the WAL stays behind too.
unsafe extern "C" fn shm_unmap(file: *mut sqlite::sqlite3_file, _delete: c_int) -> c_int {
    // SAFETY: SQLite calls the methods with one of our open files.
    let (_, _, real) = unsafe { parts(file) };
    match real.methods().xShmUnmap {
        // SAFETY: the file underneath is open.
        Some(unmap) => unsafe { unmap(real.as_ptr(), 0) },
        None => sqlite::SQLITE_OK,
    }
}
