//! A disk in memory that knows what was synced, can lose power and can fail at any call.
//!
//! It keeps, of every file, the bytes a reader sees and the bytes that would survive a power cut,
//! and the same of the directory. What it models:
//!
//! * A write is visible at once and durable, sector by sector, only by a sync of its file.
//! * A name given or taken is durable only by a sync of the directory.
//! * A power cut keeps nothing, everything, a prefix, or a random choice of what was not synced.
//! * After a failed sync the unsynced bytes stay visible but count as clean: a later sync succeeds
//!   and makes nothing durable. This is what Linux does.
//!
//! What it does not model: reordering across a successful sync (disks that lie), and damage to
//! bytes that were synced, which tests do by hand with [`FaultyFiles::damage`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wallaby::raft::log::{File, Files};

use crate::seed::Random;

const SECTOR_BYTES: usize = 512;

/// What of the unsynced bytes and names outlives a crash.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Keep {
    /// The machine lost power and nothing unsynced had reached the disk.
    Nothing,
    /// The machine lost power just after everything had reached the disk.
    All,
    /// It got through a part of what was written, in order.
    Prefix,
    /// Any sectors and any names, in no order.
    Some,
    /// Only the process died: the kernel still has everything, durable or not.
    Process,
}

impl Keep {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Nothing,
        Self::All,
        Self::Prefix,
        Self::Some,
        Self::Process,
    ];
}

/// What goes wrong at a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// The power goes: this call has no durable effect, and every later one fails.
    Crash,
    /// `EIO`. A write has written a part; a sync has lost what it should have written.
    Io,
    /// `ENOSPC`, for calls that need space; others succeed.
    Full,
    /// A write writes less than it was asked to, and says so. Other calls succeed.
    Short,
}

#[derive(Clone, Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors of `live` that a sync would write.
    dirty: BTreeSet<usize>,
    /// The writes since the last sync, in order: offset and bytes.
    writes: Vec<(usize, Vec<u8>)>,
}

impl Inode {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        overwrite(&mut self.live, bytes, offset);
        if !bytes.is_empty() {
            let last = (offset + bytes.len() - 1) / SECTOR_BYTES;
            self.dirty.extend(offset / SECTOR_BYTES..=last);
            self.writes.push((offset, bytes.to_vec()));
        }
    }

    fn keep_sectors(&mut self, kept: &BTreeSet<usize>) {
        for sector in kept {
            let start = sector * SECTOR_BYTES;
            let end = (start + SECTOR_BYTES).min(self.live.len());
            overwrite(&mut self.durable, &self.live[start..end], start);
        }
    }

    fn sync(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        self.keep_sectors(&dirty);
        self.writes.clear();
    }

    fn fail_sync(&mut self) {
        self.dirty.clear();
        self.writes.clear();
    }

    fn crash(&mut self, keep: Keep, random: &mut Random) {
        match keep {
            Keep::Nothing => {}
            Keep::All => self.sync(),
            Keep::Prefix => {
                let total: usize = self.writes.iter().map(|(_, bytes)| bytes.len()).sum();
                let mut left = random.below(total + 1);
                for (offset, bytes) in std::mem::take(&mut self.writes) {
                    let kept = bytes.len().min(left);
                    overwrite(&mut self.durable, &bytes[..kept], offset);
                    left -= kept;
                }
            }
            Keep::Some => {
                let dirty = std::mem::take(&mut self.dirty);
                let kept = dirty.into_iter().filter(|_| random.below(2) == 0).collect();
                self.keep_sectors(&kept);
            }
            Keep::Process => return,
        }
        self.live = self.durable.clone();
        self.fail_sync();
    }
}

fn overwrite(file: &mut Vec<u8>, bytes: &[u8], offset: usize) {
    if bytes.is_empty() {
        return;
    }
    let end = offset + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset..end].copy_from_slice(bytes);
}

#[derive(Clone)]
enum NameChange {
    Create {
        name: String,
        inode: usize,
    },
    Rename {
        from: String,
        to: String,
        inode: usize,
    },
    Remove {
        name: String,
    },
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Create { name, inode } => {
                names.insert(name.clone(), *inode);
            }
            Self::Rename { from, to, inode } => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
            Self::Remove { name } => {
                names.remove(name);
            }
        }
    }
}

#[derive(Clone, Default)]
struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    name_changes: Vec<NameChange>,
    calls: u64,
    fault: Option<(u64, Fault)>,
    /// What was called, for messages.
    last_call: String,
    dead: bool,
}

/// The disk. Clones are the same disk.
#[derive(Clone, Default)]
pub struct FaultyFiles(Arc<Mutex<Disk>>);

impl FaultyFiles {
    /// An empty disk that works.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same disk, with a fault at the `call`-th call from now, counted from 1.
    #[must_use]
    pub fn with_fault(self, call: u64, fault: Fault) -> Self {
        {
            let mut disk = self.lock();
            disk.fault = Some((disk.calls + call, fault));
        }
        self
    }

    /// How many calls there have been.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// What the last call was.
    pub fn last_call(&self) -> String {
        self.lock().last_call.clone()
    }

    /// Whether the fault has happened.
    pub fn faulted(&self) -> bool {
        let disk = self.lock();
        disk.fault.is_some_and(|(call, _)| disk.calls >= call)
    }

    /// Cuts the power (or only kills the process) now, and gives the disk as it is found
    /// afterwards. Whoever still holds the old one finds every call failing.
    #[must_use]
    pub fn restart(&self, keep: Keep, seed: u64) -> Self {
        let mut disk = {
            let mut old = self.lock();
            old.dead = true;
            old.clone()
        };
        let mut random = Random::new(seed);
        for inode in &mut disk.inodes {
            inode.crash(keep, &mut random);
        }
        let changes = disk.name_changes.clone();
        let kept = match keep {
            Keep::Nothing => 0,
            Keep::Prefix => random.below(changes.len() + 1),
            Keep::All | Keep::Some | Keep::Process => changes.len(),
        };
        if keep != Keep::Process {
            for change in &changes[..kept] {
                if keep != Keep::Some || random.below(2) == 0 {
                    change.apply(&mut disk.durable_names);
                }
            }
            disk.names = disk.durable_names.clone();
            disk.name_changes.clear();
        }
        (disk.calls, disk.fault, disk.dead) = (0, None, false);
        Self(Arc::new(Mutex::new(disk)))
    }

    /// Every file with the bytes a reader sees.
    pub fn image(&self) -> BTreeMap<String, Vec<u8>> {
        let disk = self.lock();
        let files = disk.names.iter();
        files
            .map(|(name, inode)| (name.clone(), disk.inodes[*inode].live.clone()))
            .collect()
    }

    /// Every file with the bytes that would survive a power cut.
    pub fn durable_image(&self) -> BTreeMap<String, Vec<u8>> {
        let disk = self.lock();
        let files = disk.durable_names.iter();
        files
            .map(|(name, inode)| (name.clone(), disk.inodes[*inode].durable.clone()))
            .collect()
    }

    /// Changes bytes behind everybody's back, durably.
    pub fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.lock();
        let inode = disk.names[name];
        let inode = &mut disk.inodes[inode];
        change(&mut inode.live);
        inode.durable = inode.live.clone();
    }

    /// Takes a file away behind everybody's back, durably.
    pub fn lose(&self, name: &str) {
        let mut disk = self.lock();
        disk.names.remove(name);
        disk.durable_names.remove(name);
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call. The fault that it must suffer, if any; a dead disk fails every call.
    fn call(&self, what: &str) -> io::Result<(MutexGuard<'_, Disk>, Option<Fault>)> {
        let mut disk = self.lock();
        if disk.dead {
            return Err(power());
        }
        disk.calls += 1;
        what.clone_into(&mut disk.last_call);
        let fault = disk
            .fault
            .filter(|(call, _)| *call == disk.calls)
            .map(|(_, fault)| fault);
        if fault == Some(Fault::Crash) {
            disk.dead = true;
        }
        Ok((disk, fault))
    }

    /// A call that only asks, or changes names.
    fn plain(&self, what: &str, needs_space: bool) -> io::Result<MutexGuard<'_, Disk>> {
        let (disk, fault) = self.call(what)?;
        match fault {
            Some(Fault::Crash) => Err(power()),
            Some(Fault::Io) => Err(eio()),
            Some(Fault::Full) if needs_space => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(disk),
        }
    }

    fn handle(&self, inode: usize) -> Arc<dyn File> {
        Arc::new(FaultyFile {
            files: self.clone(),
            inode,
        })
    }
}

fn power() -> io::Error {
    io::Error::other("the power is off")
}

fn eio() -> io::Error {
    io::Error::other("injected EIO")
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("a file in memory is smaller than memory")
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Files for FaultyFiles {
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/faulty").join(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.plain("list", false)?.names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut disk = self.plain("create", true)?;
        let inode = disk.inodes.len();
        disk.inodes.push(Inode::default());
        let change = NameChange::Create {
            name: name.to_owned(),
            inode,
        };
        change.apply(&mut disk.names);
        disk.name_changes.push(change);
        Ok(self.handle(inode))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let disk = self.plain("open", false)?;
        let inode = *disk.names.get(name).ok_or_else(missing)?;
        Ok(self.handle(inode))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.plain("rename", true)?;
        let inode = *disk.names.get(from).ok_or_else(missing)?;
        let change = NameChange::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
            inode,
        };
        change.apply(&mut disk.names);
        disk.name_changes.push(change);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.plain("remove", false)?;
        let change = NameChange::Remove {
            name: name.to_owned(),
        };
        if !disk.names.contains_key(name) {
            return Err(missing());
        }
        change.apply(&mut disk.names);
        disk.name_changes.push(change);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut disk = self.plain("sync_dir", true)?;
        disk.name_changes.clear();
        disk.durable_names = disk.names.clone();
        Ok(())
    }
}

struct FaultyFile {
    files: FaultyFiles,
    inode: usize,
}

impl File for FaultyFile {
    fn length(&self) -> io::Result<u64> {
        let disk = self.files.plain("length", false)?;
        Ok(disk.inodes[self.inode].live.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let disk = self.files.plain("read_at", false)?;
        let live = &disk.inodes[self.inode].live;
        let rest = live.get(place(offset)..).unwrap_or(&[]);
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let (mut disk, fault) = self.files.call("write_at")?;
        let inode = &mut disk.inodes[self.inode];
        let offset = place(offset);
        let part = bytes.len().div_ceil(2);
        match fault {
            None => {
                inode.write(bytes, offset);
                Ok(bytes.len())
            }
            Some(Fault::Crash) => {
                inode.write(bytes, offset);
                Err(power())
            }
            Some(Fault::Io) => {
                inode.write(&bytes[..part], offset);
                Err(eio())
            }
            Some(Fault::Full) => {
                inode.write(&bytes[..part], offset);
                Err(io::ErrorKind::StorageFull.into())
            }
            Some(Fault::Short) => {
                inode.write(&bytes[..part], offset);
                Ok(part)
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let (mut disk, fault) = self.files.call("sync_data")?;
        let inode = &mut disk.inodes[self.inode];
        match fault {
            None | Some(Fault::Short) => {
                inode.sync();
                Ok(())
            }
            Some(Fault::Crash) => Err(power()),
            Some(Fault::Io) => {
                inode.fail_sync();
                Err(eio())
            }
            Some(Fault::Full) => {
                inode.fail_sync();
                Err(io::ErrorKind::StorageFull.into())
            }
        }
    }
}
