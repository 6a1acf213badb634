//! Files and shared memory of the VFS underneath SQLite, with lengths and errors that Rust checks.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use libsqlite3_sys as sqlite;
use rusqlite::Connection;

use crate::wal::index;

/// A result code of SQLite other than `SQLITE_OK`, extended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct ResultCode(pub(super) c_int);

impl ResultCode {
    pub(super) const BUSY: Self = Self(sqlite::SQLITE_BUSY);
    pub(super) const FULL: Self = Self(sqlite::SQLITE_FULL);
    pub(super) const INTERRUPT: Self = Self(sqlite::SQLITE_INTERRUPT);
    pub(super) const IOERR_FSYNC: Self = Self(sqlite::SQLITE_IOERR_FSYNC);
    pub(super) const IOERR_READ: Self = Self(sqlite::SQLITE_IOERR_READ);
    pub(super) const IOERR_SHM_MAP: Self = Self(sqlite::SQLITE_IOERR_SHMMAP);
    pub(super) const IOERR_WRITE: Self = Self(sqlite::SQLITE_IOERR_WRITE);
    pub(super) const READONLY: Self = Self(sqlite::SQLITE_READONLY);

    /// `Err` unless the code is `SQLITE_OK`.
    pub(super) const fn check(code: c_int) -> Result<(), Self> {
        if code == sqlite::SQLITE_OK {
            Ok(())
        } else {
            Err(Self(code))
        }
    }

    /// The code of a result.
    pub(super) const fn of(result: Result<(), Self>) -> c_int {
        match result {
            Ok(()) => sqlite::SQLITE_OK,
            Err(code) => code.0,
        }
    }
}

/// How a lock on the WAL-index is taken or given back ("xShmLock" in the VFS documentation).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Lock {
    Exclusive,
    ReleaseExclusive,
}

/// An open file of the VFS underneath.
#[derive(Clone, Copy, Debug)]
pub(super) struct File(NonNull<sqlite::sqlite3_file>);

/// SQLite's Unix VFS masks the length of a single transfer with 0x1ffff and then reports a short
/// write as "disk full".
const TRANSFER_BYTES_MAX: usize = 64 * 1024;

impl File {
    /// Wraps an open file.
    ///
    /// # Safety
    ///
    /// The file is open, has methods of version 2 or later if it is a main file, and stays open for
    /// as long as any copy of the result is used. All uses are on one thread at a time.
    pub(super) unsafe fn new(file: *mut sqlite::sqlite3_file) -> Option<Self> {
        NonNull::new(file).map(Self)
    }

    /// The pointer that the methods take.
    pub(super) const fn as_ptr(self) -> *mut sqlite::sqlite3_file {
        self.0.as_ptr()
    }

    /// The methods of the VFS underneath.
    pub(super) fn methods(self) -> &'static sqlite::sqlite3_io_methods {
        // SAFETY: `new` promises an open file; its methods are a static table of the VFS.
        unsafe { &*self.0.as_ref().pMethods }
    }

    /// Reads at an offset. What lies beyond the end of the file is an error.
    pub(super) fn read(self, bytes: &mut [u8], offset: u64) -> Result<(), ResultCode> {
        let read = self.methods().xRead.ok_or(ResultCode::IOERR_READ)?;
        let mut offset = position(offset, ResultCode::IOERR_READ)?;
        for part in bytes.chunks_mut(TRANSFER_BYTES_MAX) {
            let length = length(part.len());
            // SAFETY: the file is open (`new`), and the buffer has `length` bytes.
            let code = unsafe { read(self.as_ptr(), part.as_mut_ptr().cast(), length, offset) };
            ResultCode::check(code)?;
            offset += i64::from(length);
        }
        Ok(())
    }

    /// Writes at an offset, in parts that the VFS can take.
    pub(super) fn write(self, bytes: &[u8], offset: u64) -> Result<(), ResultCode> {
        let write = self.methods().xWrite.ok_or(ResultCode::IOERR_WRITE)?;
        let mut offset = position(offset, ResultCode::IOERR_WRITE)?;
        for part in bytes.chunks(TRANSFER_BYTES_MAX) {
            let length = length(part.len());
            // SAFETY: the file is open (`new`), and the buffer has `length` bytes.
            let code = unsafe { write(self.as_ptr(), part.as_ptr().cast(), length, offset) };
            ResultCode::check(code)?;
            offset += i64::from(length);
        }
        Ok(())
    }

    /// The size of the file in bytes.
    pub(super) fn size(self) -> Result<u64, ResultCode> {
        let size = self.methods().xFileSize.ok_or(ResultCode::IOERR_READ)?;
        let mut bytes = 0;
        // SAFETY: the file is open (`new`), and `bytes` is a place for the answer.
        ResultCode::check(unsafe { size(self.as_ptr(), &raw mut bytes) })?;
        u64::try_from(bytes).map_err(|_| ResultCode::IOERR_READ)
    }

    /// Maps a region of the WAL-index, and makes it if it does not exist yet.
    pub(super) fn region(self, number: u32) -> Result<Region, ResultCode> {
        let map = self.methods().xShmMap.ok_or(ResultCode::IOERR_SHM_MAP)?;
        let number = c_int::try_from(number).map_err(|_| ResultCode::IOERR_SHM_MAP)?;
        let bytes = length(index::REGION_BYTES);
        let mut region = ptr::null_mut::<c_void>();
        // SAFETY: the file is an open main file (`new`), and `region` is a place for the answer.
        let code = unsafe { map(self.as_ptr(), number, bytes, 1, &raw mut region) };
        ResultCode::check(code)?;
        NonNull::new(region)
            .map(|region| Region(region.cast()))
            .ok_or(ResultCode::IOERR_SHM_MAP)
    }

    /// Takes or gives back `count` locks of the WAL-index from `first` on.
    pub(super) fn lock(self, first: u8, count: u8, lock: Lock) -> Result<(), ResultCode> {
        let method = self.methods().xShmLock.ok_or(ResultCode::BUSY)?;
        let flags = sqlite::SQLITE_SHM_EXCLUSIVE
            | match lock {
                Lock::Exclusive => sqlite::SQLITE_SHM_LOCK,
                Lock::ReleaseExclusive => sqlite::SQLITE_SHM_UNLOCK,
            };
        // SAFETY: the file is an open main file (`new`), and the lock range is within the eight.
        ResultCode::check(unsafe { method(self.as_ptr(), first.into(), count.into(), flags) })
    }

    /// What is written to the WAL-index before is seen before what is written after.
    pub(super) fn barrier(self) {
        if let Some(barrier) = self.methods().xShmBarrier {
            // SAFETY: the file is an open main file (`new`).
            unsafe { barrier(self.as_ptr()) };
        }
    }
}

/// One mapped region of the WAL-index, shared with the readers of all processes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region(NonNull<AtomicU32>);

const WORD_BYTES: usize = 4;
const WORDS: usize = index::REGION_BYTES / WORD_BYTES;

impl Region {
    fn words(&self) -> &[AtomicU32] {
        // SAFETY: xShmMap maps REGION_BYTES bytes at a page boundary and keeps them mapped for as
        // long as the main file is open, which outlives every use (`File::new`). Everybody writes
        // them with single stores of aligned words or parts of words.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), WORDS) }
    }

    /// Copies bytes out. The offset is a multiple of four.
    pub(super) fn read(self, offset: usize, bytes: &mut [u8]) {
        let words = &self.words()[offset / WORD_BYTES..];
        for (part, word) in bytes.chunks_mut(WORD_BYTES).zip(words) {
            part.copy_from_slice(&word.load(Ordering::Acquire).to_le_bytes()[..part.len()]);
        }
    }

    /// Copies bytes in, word by word and only the words that differ. The offset and the length are
    /// multiples of four.
    ///
    /// Words that readers are looking at must not change, even for an instant; the hash table is
    /// full of them.
    pub(super) fn write(self, offset: usize, bytes: &[u8]) {
        let words = &self.words()[offset / WORD_BYTES..];
        for (part, word) in bytes.as_chunks::<WORD_BYTES>().0.iter().zip(words) {
            let value = u32::from_le_bytes(*part);
            if word.load(Ordering::Relaxed) != value {
                word.store(value, Ordering::Release);
            }
        }
    }

    /// One word. The offset is a multiple of four.
    pub(super) fn word(self, offset: usize) -> u32 {
        self.words()[offset / WORD_BYTES].load(Ordering::Acquire)
    }

    /// Replaces one word. The offset is a multiple of four.
    pub(super) fn set_word(self, offset: usize, value: u32) {
        self.words()[offset / WORD_BYTES].store(value, Ordering::Release);
    }
}

/// The file that SQLite has open as the main file of a connection.
pub(super) fn main_file(
    connection: &Connection,
) -> Result<NonNull<sqlite::sqlite3_file>, ResultCode> {
    let mut file = ptr::null_mut::<sqlite::sqlite3_file>();
    // SAFETY: the handle is that of an open connection, used on its own thread, and this opcode
    // stores one pointer at the place given.
    let code = unsafe {
        sqlite::sqlite3_file_control(
            connection.handle(),
            c"main".as_ptr(),
            sqlite::SQLITE_FCNTL_FILE_POINTER,
            (&raw mut file).cast(),
        )
    };
    ResultCode::check(code)?;
    NonNull::new(file).ok_or(ResultCode(sqlite::SQLITE_CANTOPEN))
}

/// Runs a checkpoint (`sqlite3_wal_checkpoint_v2`).
pub(super) fn checkpoint(connection: &Connection, mode: c_int) -> Result<(), ResultCode> {
    // SAFETY: the handle is that of an open connection, used on its own thread; SQLite accepts null
    // for the counts, which would be those of this call only.
    ResultCode::check(unsafe {
        sqlite::sqlite3_wal_checkpoint_v2(
            connection.handle(),
            c"main".as_ptr(),
            mode,
            ptr::null_mut(),
            ptr::null_mut(),
        )
    })
}

/// Random bytes from SQLite's generator, which it seeds from the operating system.
pub(super) fn randomness<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // SAFETY: the buffer has as many bytes as are asked for.
    unsafe { sqlite::sqlite3_randomness(length(N), bytes.as_mut_ptr().cast()) };
    bytes
}

fn length(bytes: usize) -> c_int {
    c_int::try_from(bytes).expect("transfers and regions have at most 64 KiB")
}

fn position(offset: u64, code: ResultCode) -> Result<i64, ResultCode> {
    i64::try_from(offset).map_err(|_| code)
}
