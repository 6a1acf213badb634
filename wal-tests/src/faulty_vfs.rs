//! A VFS that fails on demand: SQLite's default one, except that one chosen call goes wrong.
//!
//! [`register`] makes it the default, so whatever is opened or built over the default VFS
//! afterwards goes through it. One fault can be armed at a time; it strikes once. The state is
//! global because methods that others inherit from this VFS are called with a VFS object of theirs.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::fmt;
use std::mem::offset_of;
use std::ptr;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use libsqlite3_sys as sqlite;

/// The calls that can be made to fail.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Call {
    /// xWrite of a WAL: what is committed by the cluster goes to the file.
    WalWrite,
    /// xTruncate of a WAL.
    WalTruncate,
    /// xShmMap of a region of the WAL-index that this process has not mapped yet.
    ShmExtend,
    /// xShmMap by who writes, of any region but the first.
    ShmMap,
    /// xWrite of a main file: a checkpoint.
    MainWrite,
    /// xTruncate of a main file.
    MainTruncate,
}

/// What goes wrong at the call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// An I/O error, and nothing was done.
    Io,
    /// No space, and nothing was done.
    Full,
    /// No space, after half of the bytes.
    Short,
    /// The process is killed (SIGKILL) in the middle of the call.
    Kill,
}

/// A fault: which call fails, and how.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fault {
    /// The kind of call.
    pub call: Call,
    /// The how-manyth from now on, from 1.
    pub number: u32,
    /// How it fails.
    pub failure: Failure,
    /// Whether calls count only once a WAL was written: after the cluster's commit.
    pub after_release: bool,
}

impl Call {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::WalWrite,
        Self::WalTruncate,
        Self::ShmExtend,
        Self::ShmMap,
        Self::MainWrite,
        Self::MainTruncate,
    ];
}

impl Failure {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Io, Self::Full, Self::Short, Self::Kill];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            call,
            number,
            failure,
            after_release,
        } = self;
        write!(f, "{call:?} {number} {failure:?} {after_release}")
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("{text:?} is not a fault");
        let words: Vec<&str> = text.split_whitespace().collect();
        let [call, number, failure, after_release] = words[..] else {
            return Err(malformed());
        };
        let call = Call::ALL.into_iter().find(|it| format!("{it:?}") == call);
        let failure = Failure::ALL
            .into_iter()
            .find(|it| format!("{it:?}") == failure);
        Ok(Self {
            call: call.ok_or_else(malformed)?,
            number: number.parse().map_err(|_| malformed())?,
            failure: failure.ok_or_else(malformed)?,
            after_release: after_release.parse().map_err(|_| malformed())?,
        })
    }
}

#[derive(Default)]
struct State {
    armed: Option<Fault>,
    /// A WAL was written since the fault was armed.
    released: bool,
    regions_mapped: c_int,
}

static STATE: Mutex<State> = Mutex::new(State {
    armed: None,
    released: false,
    regions_mapped: 0,
});

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Arms a fault, in place of the one before.
pub fn arm(fault: Fault) {
    let mut state = state();
    state.armed = Some(fault);
    state.released = false;
}

/// Disarms; whether there was a fault that has not struck.
pub fn disarm() -> bool {
    state().armed.take().is_some()
}

/// Whether there is a fault that has not struck.
#[must_use]
pub fn is_armed() -> bool {
    state().armed.is_some()
}

/// Counts a call; the failure if it is the one.
fn strikes(call: Call) -> Option<Failure> {
    let mut state = state();
    let released = state.released;
    state.released |= call == Call::WalWrite;
    let fault = state.armed.as_mut()?;
    if fault.call != call || (fault.after_release && !released) {
        return None;
    }
    fault.number = fault.number.saturating_sub(1);
    if fault.number > 0 {
        return None;
    }
    let fault = state.armed.take()?;
    announce(fault);
    if fault.failure == Failure::Kill {
        let this = rustix::process::getpid();
        rustix::process::kill_process(this, rustix::process::Signal::KILL)
            .expect("a process may kill itself");
    }
    Some(fault.failure)
}

fn announce(fault: Fault) {
    use std::io::Write as _;
    // Only for whoever reads the log of a failed test.
    let _ = writeln!(std::io::stderr(), "the fault strikes: {fault}");
}

/// What SQLite allocates for each file; the file of the VFS underneath follows it.
#[repr(C)]
struct FaultyFile {
    base: sqlite::sqlite3_file,
    is_wal: u64,
}

const _: () = assert!(size_of::<FaultyFile>().is_multiple_of(8));
const _: () = assert!(offset_of!(FaultyFile, base) == 0);

static METHODS: sqlite::sqlite3_io_methods = sqlite::sqlite3_io_methods {
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

struct Under(*mut sqlite::sqlite3_vfs);

// SAFETY: a registered VFS may be used from every thread; that is SQLite's contract for it.
unsafe impl Send for Under {}
// SAFETY: as above.
unsafe impl Sync for Under {}

static UNDER: OnceLock<Under> = OnceLock::new();

/// Makes the faulty VFS the default. Once, and before anything else uses SQLite.
///
/// # Panics
///
/// When SQLite has no default VFS, or when it is called twice.
pub fn register() {
    // SAFETY: no arguments; the default VFS is never unregistered.
    let under = unsafe { sqlite::sqlite3_vfs_find(ptr::null()) };
    assert!(!under.is_null(), "SQLite has a default VFS");
    // SAFETY: a registered VFS is a valid object.
    let mut ours = unsafe { *under };
    ours.szOsFile += c_int::try_from(size_of::<FaultyFile>()).expect("a small struct");
    ours.pNext = ptr::null_mut();
    ours.zName = c"faulty".as_ptr();
    ours.xOpen = Some(open);
    assert!(UNDER.set(Under(under)).is_ok(), "registered once");
    // SAFETY: the object lives for ever, as a registered VFS must.
    let code = unsafe { sqlite::sqlite3_vfs_register(Box::leak(Box::new(ours)), 1) };
    assert_eq!(code, sqlite::SQLITE_OK, "registering the VFS");
}

/// The file underneath one of ours, and its methods.
///
/// # Safety
///
/// The file was opened by this VFS and is open.
unsafe fn real(
    file: *mut sqlite::sqlite3_file,
) -> (
    *mut sqlite::sqlite3_file,
    &'static sqlite::sqlite3_io_methods,
) {
    let real = file.wrapping_byte_add(size_of::<FaultyFile>());
    // SAFETY: `open` has opened it; its methods are a static table of the VFS underneath.
    (real, unsafe { &*(*real).pMethods })
}

/// Whether one of our files is a WAL.
///
/// # Safety
///
/// The file was opened by this VFS and is open.
unsafe fn is_wal(file: *mut sqlite::sqlite3_file) -> bool {
    // SAFETY: the caller promises a FaultyFile.
    unsafe { (*file.cast::<FaultyFile>()).is_wal == 1 }
}

unsafe extern "C" fn open(
    _vfs: *mut sqlite::sqlite3_vfs,
    name: sqlite::sqlite3_filename,
    file: *mut sqlite::sqlite3_file,
    flags: c_int,
    flags_out: *mut c_int,
) -> c_int {
    let Some(Under(under)) = UNDER.get() else {
        return sqlite::SQLITE_CANTOPEN;
    };
    let is_wal = flags & sqlite::SQLITE_OPEN_WAL != 0;
    let is_ours = is_wal || flags & sqlite::SQLITE_OPEN_MAIN_DB != 0;
    let real = if is_ours {
        file.wrapping_byte_add(size_of::<FaultyFile>())
    } else {
        file
    };
    // SAFETY: `file` has room for both (szOsFile is the sum); the arguments are handed on.
    unsafe {
        (*file).pMethods = ptr::null();
        let Some(open) = (**under).xOpen else {
            return sqlite::SQLITE_CANTOPEN;
        };
        let code = open(*under, name, real, flags, flags_out);
        if code == sqlite::SQLITE_OK && is_ours {
            file.cast::<FaultyFile>().write(FaultyFile {
                base: sqlite::sqlite3_file {
                    pMethods: &raw const METHODS,
                },
                is_wal: is_wal.into(),
            });
        }
        code
    }
}

unsafe extern "C" fn write(
    file: *mut sqlite::sqlite3_file,
    bytes: *const c_void,
    count: c_int,
    offset: i64,
) -> c_int {
    // SAFETY: SQLite calls the methods with one of our open files.
    let ((real, methods), is_wal) = unsafe { (real(file), is_wal(file)) };
    let write = methods.xWrite.expect("every VFS writes");
    let call = if is_wal {
        Call::WalWrite
    } else {
        Call::MainWrite
    };
    match strikes(call) {
        // SAFETY: the arguments are SQLite's, for the same file underneath.
        None => unsafe { write(real, bytes, count, offset) },
        Some(Failure::Short) => {
            // SAFETY: as above, with fewer bytes of the same buffer.
            let _ = unsafe { write(real, bytes, count / 2, offset) };
            sqlite::SQLITE_FULL
        }
        Some(Failure::Full) => sqlite::SQLITE_FULL,
        Some(_) => sqlite::SQLITE_IOERR_WRITE,
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite::sqlite3_file, size: i64) -> c_int {
    // SAFETY: SQLite calls the methods with one of our open files.
    let ((real, methods), is_wal) = unsafe { (real(file), is_wal(file)) };
    let call = if is_wal {
        Call::WalTruncate
    } else {
        Call::MainTruncate
    };
    match strikes(call) {
        // SAFETY: the arguments are SQLite's, for the same file underneath.
        None => unsafe { methods.xTruncate.expect("every VFS truncates")(real, size) },
        Some(_) => sqlite::SQLITE_IOERR_TRUNCATE,
    }
}

unsafe extern "C" fn shm_map(
    file: *mut sqlite::sqlite3_file,
    region: c_int,
    bytes: c_int,
    extend: c_int,
    address: *mut *mut c_void,
) -> c_int {
    // SAFETY: SQLite calls the methods with one of our open files.
    let (real, methods) = unsafe { real(file) };
    let map = methods.xShmMap.expect("the Unix VFS has shared memory");
    if extend != 0 {
        let is_new = region >= state().regions_mapped;
        let struck = if is_new {
            strikes(Call::ShmExtend)
        } else {
            None
        };
        let struck = struck.or_else(|| {
            let counts = region > 0;
            counts.then(|| strikes(Call::ShmMap)).flatten()
        });
        match struck {
            None => {}
            Some(Failure::Io) => return sqlite::SQLITE_IOERR_SHMMAP,
            Some(_) => return sqlite::SQLITE_IOERR_SHMSIZE,
        }
    }
    // SAFETY: the arguments are SQLite's, for the same file underneath.
    let code = unsafe { map(real, region, bytes, extend, address) };
    if code == sqlite::SQLITE_OK && extend != 0 {
        let mut state = state();
        state.regions_mapped = state.regions_mapped.max(region + 1);
    }
    code
}

/// Methods that only hand their call on.
macro_rules! handed_on {
    ($($name:ident => $method:ident($($argument:ident: $kind:ty),*) -> $result:ty;)*) => {$(
        unsafe extern "C" fn $name(
            file: *mut sqlite::sqlite3_file, $($argument: $kind),*
        ) -> $result {
            // SAFETY: SQLite calls the methods with one of our open files, and the arguments are
            // its own.
            unsafe {
                let (real, methods) = real(file);
                methods.$method.expect("the Unix VFS has all methods")(real, $($argument),*)
            }
        }
    )*};
}

handed_on! {
    close => xClose() -> c_int;
    read => xRead(bytes: *mut c_void, count: c_int, offset: i64) -> c_int;
    sync => xSync(flags: c_int) -> c_int;
    file_size => xFileSize(size: *mut i64) -> c_int;
    lock => xLock(level: c_int) -> c_int;
    unlock => xUnlock(level: c_int) -> c_int;
    check_reserved_lock => xCheckReservedLock(reserved: *mut c_int) -> c_int;
    file_control => xFileControl(operation: c_int, argument: *mut c_void) -> c_int;
    sector_size => xSectorSize() -> c_int;
    device_characteristics => xDeviceCharacteristics() -> c_int;
    shm_lock => xShmLock(first: c_int, count: c_int, flags: c_int) -> c_int;
    shm_barrier => xShmBarrier() -> ();
    shm_unmap => xShmUnmap(delete: c_int) -> c_int;
}
