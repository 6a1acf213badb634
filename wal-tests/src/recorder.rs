//! Records what this process does to the files of chosen directories, and lets one of its calls
//! fail.
//!
//! The program that uses it defines the C library's functions for files itself
//! (`interposed.rs`), so that everything passes here: Rust's standard library and SQLite alike,
//! whatever layer of the program calls them. Nothing can be forgotten, and the program under test
//! has no seam for it.
//!
//! Each function gets the real call as a closure, which returns what the kernel does: a number, or
//! the error number. What is not seen: `fallocate` that keeps the size, and memory that is mapped,
//! which is only SQLite's WAL-index; the next start deletes it unread.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::fs::{FileType, fstat, stat};
use rustix::io::Errno;

use crate::trace::Event;

/// What a call of the kernel gives.
pub type Called = Result<usize, Errno>;

/// How a call goes wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mishap {
    /// `EIO`. A write has written half; a sync has lost what it should have written.
    Io,
    /// `ENOSPC`, where space is needed; a write has written half. Other calls succeed.
    Full,
    /// A write writes half and says so. Other calls succeed.
    Short,
}

impl Mishap {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Io, Self::Full, Self::Short];

    const fn errno(self) -> Option<Errno> {
        match self {
            Self::Io => Some(Errno::IO),
            Self::Full => Some(Errno::NOSPC),
            Self::Short => None,
        }
    }
}

/// Which call fails: the how-manyth, from 1, of all that change something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fault {
    /// Its number.
    pub call: u64,
    /// How.
    pub mishap: Mishap,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("{text:?} is no fault");
        let (call, mishap) = text.split_once(' ').ok_or_else(malformed)?;
        let known = Mishap::ALL.into_iter();
        Ok(Self {
            call: call.parse().map_err(|_| malformed())?,
            mishap: known
                .into_iter()
                .find(|known| format!("{known:?}") == mishap)
                .ok_or_else(malformed)?,
        })
    }
}

/// Where events go.
enum Sink {
    Memory(Vec<u8>),
    File(std::fs::File),
}

struct State {
    sink: Sink,
    calls: u64,
    fault: Option<Fault>,
}

/// A directory that is watched.
struct Watched {
    prefix: PathBuf,
    state: Mutex<State>,
}

/// Whose file an open descriptor is.
#[derive(Clone)]
enum Target {
    File(Arc<Watched>, u64),
    Directory(Arc<Watched>, String),
}

#[derive(Default)]
struct Registry {
    watched: Vec<Arc<Watched>>,
    targets: HashMap<(u64, u64), Target>,
}

/// Whether anything is watched: most of the time nothing is, and calls are only handed on.
static ACTIVE: AtomicBool = AtomicBool::new(false);
static REGISTRY: RwLock<Option<Registry>> = RwLock::new(None);

/// Ends the watching when dropped.
pub struct Recording(Arc<Watched>);

/// Watches a directory from now on, and keeps the trace in memory.
#[must_use]
pub fn watch(directory: &Path, fault: Option<Fault>) -> Recording {
    Recording(start(directory, Sink::Memory(Vec::new()), fault))
}

/// Watches a directory for as long as the process lives, appending the trace to a file.
pub fn watch_into(directory: &Path, trace: std::fs::File, fault: Option<Fault>) {
    let _ = start(directory, Sink::File(trace), fault);
}

fn start(directory: &Path, sink: Sink, fault: Option<Fault>) -> Arc<Watched> {
    let watched = Arc::new(Watched {
        prefix: directory.to_owned(),
        state: Mutex::new(State {
            sink,
            calls: 0,
            fault,
        }),
    });
    let mut registry = REGISTRY.write().unwrap_or_else(PoisonError::into_inner);
    let registry = registry.get_or_insert_default();
    registry.watched.push(Arc::clone(&watched));
    ACTIVE.store(true, Ordering::Release);
    watched
}

impl Recording {
    /// Ends the watching and gives the trace.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        let mut state = self.0.lock();
        match &mut state.sink {
            Sink::Memory(bytes) => std::mem::take(bytes),
            Sink::File(_) => unreachable!("a recording is in memory"),
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let mut registry = REGISTRY.write().unwrap_or_else(PoisonError::into_inner);
        let registry = registry.get_or_insert_default();
        registry.watched.retain(|it| !Arc::ptr_eq(it, &self.0));
        registry.targets.retain(|_, target| match target {
            Target::File(it, _) | Target::Directory(it, _) => !Arc::ptr_eq(it, &self.0),
        });
        ACTIVE.store(!registry.watched.is_empty(), Ordering::Release);
    }
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn relative(&self, path: &Path) -> Option<String> {
        let rest = path.strip_prefix(&self.prefix).ok()?;
        Some(rest.to_str()?.trim_end_matches('/').to_owned())
    }
}

impl State {
    /// Counts a call; how it must fail, if it must.
    fn count(&mut self, what: &str) -> Option<Mishap> {
        self.calls += 1;
        let fault = self.fault.filter(|fault| fault.call == self.calls)?;
        self.note(&Event::Fault {
            call: format!("{what}, call {}, {:?}", self.calls, fault.mishap),
        });
        Some(fault.mishap)
    }

    fn note(&mut self, event: &Event) {
        match &mut self.sink {
            Sink::Memory(bytes) => event.encode(bytes),
            Sink::File(file) => {
                let mut bytes = Vec::new();
                event.encode(&mut bytes);
                let mut rest = bytes.as_slice();
                // Straight to the kernel: the library's function would come back here.
                while !rest.is_empty() {
                    match rustix::io::write(&*file, rest) {
                        Ok(count) => rest = &rest[count..],
                        Err(Errno::INTR) => {}
                        // A trace with a hole would convict the innocent.
                        Err(_) => std::process::abort(),
                    }
                }
            }
        }
    }
}

fn is_active() -> bool {
    ACTIVE.load(Ordering::Acquire)
}

fn watched(path: &Path) -> Option<(Arc<Watched>, String)> {
    let registry = REGISTRY.read().unwrap_or_else(PoisonError::into_inner);
    let mut all = registry.as_ref()?.watched.iter();
    all.find_map(|watched| Some((Arc::clone(watched), watched.relative(path)?)))
}

fn target(fd: BorrowedFd<'_>) -> Option<Target> {
    let found = fstat(fd).ok()?;
    let registry = REGISTRY.read().unwrap_or_else(PoisonError::into_inner);
    let targets = &registry.as_ref()?.targets;
    targets.get(&(found.st_dev, found.st_ino)).cloned()
}

/// Whether this is an open file of a watched directory.
#[must_use]
pub fn is_watched(fd: BorrowedFd<'_>) -> bool {
    is_active() && matches!(target(fd), Some(Target::File(..)))
}

/// `open`: the descriptor, and that it is one of a watched directory from now on.
pub fn open(path: &Path, creates: bool, truncates: bool, call: impl FnOnce() -> Called) -> Called {
    let found = is_active().then(|| watched(path)).flatten();
    let Some((watched, relative)) = found else {
        return call();
    };
    let mut state = watched.lock();
    let existed = stat(path).is_ok();
    if (creates && !existed) || (truncates && existed) {
        let mishap = state.count("open");
        if let Some(errno) = mishap.and_then(Mishap::errno) {
            return Err(errno);
        }
    }
    let fd = call()?;
    let Ok(found) = stat(path) else {
        return Ok(fd);
    };
    let inode = found.st_ino;
    let is_file = match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => true,
        FileType::Directory => false,
        _ => return Ok(fd),
    };
    let target = if is_file {
        Target::File(Arc::clone(&watched), inode)
    } else {
        Target::Directory(Arc::clone(&watched), relative.clone())
    };
    let mut registry = REGISTRY.write().unwrap_or_else(PoisonError::into_inner);
    let targets = &mut registry.get_or_insert_default().targets;
    let known = targets.insert((found.st_dev, inode), target).is_some();
    drop(registry);
    let path = relative;
    if is_file && !existed {
        state.note(&Event::Create { path, inode });
    } else if is_file {
        if !known {
            state.note(&Event::Known { path, inode });
        }
        if truncates {
            state.note(&Event::Resize { inode, length: 0 });
        }
    }
    Ok(fd)
}

/// `write` and `pwrite`. Without an offset the file's own position counts.
pub fn write(
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    offset: Option<u64>,
    call: impl FnOnce(&[u8]) -> Called,
) -> Called {
    let found = is_active().then(|| target(fd)).flatten();
    let Some(Target::File(watched, inode)) = found else {
        return call(bytes);
    };
    let mut state = watched.lock();
    let mishap = state.count("write");
    let part = match mishap {
        Some(_) => &bytes[..bytes.len().div_ceil(2)],
        None => bytes,
    };
    let written = call(part)?;
    let offset = match offset {
        Some(offset) => offset,
        None => rustix::fs::tell(fd)?.saturating_sub(written as u64),
    };
    if written > 0 {
        state.note(&Event::Write {
            inode,
            offset,
            bytes: part[..written].to_vec(),
        });
    }
    match mishap.and_then(Mishap::errno) {
        Some(errno) => Err(errno),
        None => Ok(written),
    }
}

/// `ftruncate`.
pub fn resize(fd: BorrowedFd<'_>, length: u64, call: impl FnOnce() -> Called) -> Called {
    let found = is_active().then(|| target(fd)).flatten();
    let Some(Target::File(watched, inode)) = found else {
        return call();
    };
    let mut state = watched.lock();
    if let Some(errno) = state.count("ftruncate").and_then(Mishap::errno) {
        return Err(errno);
    }
    let done = call()?;
    state.note(&Event::Resize { inode, length });
    Ok(done)
}

/// `fsync` and `fdatasync`.
pub fn sync(fd: BorrowedFd<'_>, call: impl FnOnce() -> Called) -> Called {
    let Some(target) = is_active().then(|| target(fd)).flatten() else {
        return call();
    };
    let (Target::File(watched, _) | Target::Directory(watched, _)) = &target;
    let mut state = watched.lock();
    let result = match state.count("fsync").and_then(Mishap::errno) {
        Some(errno) => Err(errno),
        None => call(),
    };
    let failed = result.is_err();
    state.note(&match &target {
        Target::File(_, inode) => Event::Sync {
            inode: *inode,
            failed,
        },
        Target::Directory(_, path) => Event::SyncDir {
            path: path.clone(),
            failed,
        },
    });
    result
}

/// `rename`.
pub fn rename(from: &Path, to: &Path, call: impl FnOnce() -> Called) -> Called {
    let found = is_active().then(|| watched(from)).flatten();
    let Some((watched, from)) = found else {
        return call();
    };
    let Some(to) = watched.relative(to) else {
        return call();
    };
    let mut state = watched.lock();
    if state.count("rename") == Some(Mishap::Io) {
        return Err(Errno::IO);
    }
    let done = call()?;
    state.note(&Event::Rename { from, to });
    Ok(done)
}

/// `unlink` and `rmdir`.
pub fn remove(path: &Path, call: impl FnOnce() -> Called) -> Called {
    let found = is_active().then(|| watched(path)).flatten();
    let Some((watched, path)) = found else {
        return call();
    };
    let mut state = watched.lock();
    if state.count("unlink") == Some(Mishap::Io) {
        return Err(Errno::IO);
    }
    let done = call()?;
    state.note(&Event::Remove { path });
    Ok(done)
}

/// `mkdir`.
pub fn make_dir(path: &Path, call: impl FnOnce() -> Called) -> Called {
    let found = is_active().then(|| watched(path)).flatten();
    // The directory itself is there, or is of no interest.
    let Some((watched, relative)) = found.filter(|(_, relative)| !relative.is_empty()) else {
        return call();
    };
    let mut state = watched.lock();
    if stat(path).is_err()
        && let Some(errno) = state.count("mkdir").and_then(Mishap::errno)
    {
        return Err(errno);
    }
    let done = call()?;
    state.note(&Event::MakeDir { path: relative });
    Ok(done)
}
