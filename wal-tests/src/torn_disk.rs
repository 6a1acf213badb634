//! What a disk may hold after a crash, from the trace of what was done to it.
//!
//! The rules are POSIX's, not those of one file system: bytes are durable by a sync of their file,
//! names by a sync of their directory, and nothing else is ordered. A failed sync leaves the bytes
//! where readers see them, and counts them as clean, as Linux does: no later sync makes them
//! durable.
//!
//! What it does not model: disks that lose or reorder what was synced, and damage to it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;

use crate::seed::Random;
use crate::trace::Event;

const SECTOR_BYTES: usize = 512;

/// What of the bytes and names that were not synced a crash tears off, and what outlives it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tear {
    /// All of it: only the process died, or everything was on its way to the disk.
    Nothing,
    /// None of it.
    Everything,
    /// What was done before some moment, in order, the last write only in part.
    Suffix,
    /// The last write of all, in any sectors of it; all else is there.
    LastWrite,
    /// Any sectors, any lengths and any names, in no order.
    Sectors,
    /// The bytes, but not the names.
    Names,
    /// The names, but not the bytes.
    Bytes,
    /// The names and the lengths of files, but not the bytes: zeros where nothing was synced.
    Zeros,
}

impl Tear {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Nothing,
        Self::Everything,
        Self::Suffix,
        Self::LastWrite,
        Self::Sectors,
        Self::Names,
        Self::Bytes,
        Self::Zeros,
    ];
}

/// The files of a directory, by their paths, and its subdirectories.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DiskImage {
    /// Subdirectories, parents first.
    pub dirs: Vec<String>,
    /// Files with their bytes.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl DiskImage {
    /// Writes it into a directory, which is made and must not exist.
    ///
    /// # Errors
    ///
    /// Whatever the operating system says.
    pub fn write_to(&self, directory: &Path) -> io::Result<()> {
        std::fs::create_dir(directory)?;
        for dir in &self.dirs {
            std::fs::create_dir(directory.join(dir))?;
        }
        for (path, bytes) in &self.files {
            write_sparsely(&directory.join(path), bytes)?;
        }
        Ok(())
    }
}

/// Most of a log's segment is zeros.
fn write_sparsely(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;

    const RUN_BYTES: usize = 4096;
    const ZEROS: [u8; RUN_BYTES] = [0; RUN_BYTES];
    let file = std::fs::File::create_new(path)?;
    file.set_len(bytes.len() as u64)?;
    for (index, run) in bytes.chunks(RUN_BYTES).enumerate() {
        if *run != ZEROS[..run.len()] {
            file.write_all_at(run, (index * RUN_BYTES) as u64)?;
        }
    }
    Ok(())
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Resize { length: usize },
}

/// A file, with or without a name.
#[derive(Clone, Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Since the last sync, each with its place among all changes.
    changes: Vec<(u64, Change)>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Entry {
    Dir,
    File(usize),
}

#[derive(Clone)]
enum NameChange {
    Add {
        path: String,
        entry: Entry,
    },
    Rename {
        from: String,
        to: String,
        entry: Entry,
    },
    Remove {
        path: String,
    },
}

/// The disk as it is after a part of a trace.
#[derive(Clone, Default)]
pub struct TornDisk {
    inodes: Vec<Inode>,
    numbers: HashMap<u64, usize>,
    names: BTreeMap<String, Entry>,
    durable_names: BTreeMap<String, Entry>,
    name_changes: Vec<(u64, NameChange)>,
    /// Counts changes of any kind.
    time: u64,
}

impl TornDisk {
    /// A disk on which this and nothing else is durable.
    #[must_use]
    pub fn new(image: &DiskImage) -> Self {
        let mut disk = Self::default();
        for dir in &image.dirs {
            disk.names.insert(dir.clone(), Entry::Dir);
        }
        for (path, bytes) in &image.files {
            disk.inodes.push(Inode {
                live: bytes.clone(),
                durable: bytes.clone(),
                changes: Vec::new(),
            });
            let entry = Entry::File(disk.inodes.len() - 1);
            disk.names.insert(path.clone(), entry);
        }
        disk.durable_names = disk.names.clone();
        disk
    }

    /// Does what the event says.
    ///
    /// # Panics
    ///
    /// When the trace contradicts itself.
    pub fn apply(&mut self, event: &Event) {
        self.time += 1;
        let time = self.time;
        match event {
            Event::Fault { .. } => {}
            Event::Known { path, inode } => match self.names.get(path) {
                Some(Entry::File(index)) => {
                    self.numbers.insert(*inode, *index);
                }
                other => panic!("{path} was opened, and is {other:?}"),
            },
            Event::Create { path, inode } => {
                self.inodes.push(Inode::default());
                let index = self.inodes.len() - 1;
                self.numbers.insert(*inode, index);
                self.change_names(NameChange::Add {
                    path: path.clone(),
                    entry: Entry::File(index),
                });
            }
            Event::MakeDir { path } => self.change_names(NameChange::Add {
                path: path.clone(),
                entry: Entry::Dir,
            }),
            Event::Rename { from, to } => {
                let entry = *self.names.get(from).expect("what is renamed is there");
                assert!(entry != Entry::Dir, "directories are not renamed: {from}");
                self.change_names(NameChange::Rename {
                    from: from.clone(),
                    to: to.clone(),
                    entry,
                });
            }
            Event::Remove { path } => self.change_names(NameChange::Remove { path: path.clone() }),
            Event::Write {
                inode,
                offset,
                bytes,
            } => {
                let offset = place(*offset);
                let bytes = bytes.clone();
                self.inode(*inode)
                    .change(time, Change::Write { offset, bytes });
            }
            Event::Resize { inode, length } => {
                let length = place(*length);
                self.inode(*inode).change(time, Change::Resize { length });
            }
            Event::Sync { inode, failed } => {
                let inode = self.inode(*inode);
                for (_, change) in std::mem::take(&mut inode.changes) {
                    if !failed {
                        change.apply(&mut inode.durable);
                    }
                }
            }
            Event::SyncDir { path, failed } => self.sync_dir(path, *failed),
        }
    }

    fn inode(&mut self, number: u64) -> &mut Inode {
        let index = self.numbers.get(&number);
        let index = *index.unwrap_or_else(|| panic!("inode {number} was never opened"));
        &mut self.inodes[index]
    }

    fn change_names(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.name_changes.push((self.time, change));
    }

    fn sync_dir(&mut self, dir: &str, failed: bool) {
        let changes = std::mem::take(&mut self.name_changes);
        let (synced, others) = changes
            .into_iter()
            .partition(|(_, change)| parent(change.path()) == dir);
        self.name_changes = others;
        if !failed {
            for (_, change) in synced {
                change.apply(&mut self.durable_names);
            }
        }
    }

    /// Everything as a reader sees it.
    #[must_use]
    pub fn live(&self) -> DiskImage {
        assemble(&self.names, |index| self.inodes[index].live.clone())
    }

    /// Whether all of it is durable, so that a crash tears nothing.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let mut named = self.names.values();
        self.name_changes.is_empty()
            && named.all(|entry| match entry {
                Entry::Dir => true,
                Entry::File(index) => self.inodes[*index].changes.is_empty(),
            })
    }

    /// What a crash now leaves.
    #[must_use]
    pub fn crash(&self, tear: Tear, random: &mut Random) -> DiskImage {
        let changes = self.inodes.iter().flat_map(|inode| &inode.changes);
        let times = changes.map(|(time, _)| *time);
        let mut times: Vec<u64> = times
            .chain(self.name_changes.iter().map(|(time, _)| *time))
            .collect();
        times.sort_unstable();
        let last = times.last().copied().unwrap_or(0);
        let cut = match tear {
            Tear::Suffix if !times.is_empty() => times[random.below(times.len())],
            _ => last,
        };
        let mut dice = Dice {
            percent: 10 + random.number_below(81),
            random,
        };
        let names = self.names_after(tear, cut, &mut dice);
        assemble(&names, |index| {
            let inode = &self.inodes[index];
            inode.after(tear, cut, last, &mut dice)
        })
    }

    fn names_after(&self, tear: Tear, cut: u64, dice: &mut Dice<'_>) -> BTreeMap<String, Entry> {
        if matches!(
            tear,
            Tear::Nothing | Tear::LastWrite | Tear::Bytes | Tear::Zeros
        ) {
            return self.names.clone();
        }
        let mut names = self.durable_names.clone();
        for (time, change) in &self.name_changes {
            let kept = match tear {
                Tear::Suffix => *time <= cut,
                Tear::Sectors => dice.keeps(),
                _ => false,
            };
            if kept {
                change.apply(&mut names);
            }
        }
        names
    }
}

/// Decides what is kept.
struct Dice<'a> {
    percent: u64,
    random: &'a mut Random,
}

impl Dice<'_> {
    fn keeps(&mut self) -> bool {
        self.random.chance(self.percent)
    }
}

impl Inode {
    fn change(&mut self, time: u64, change: Change) {
        change.apply(&mut self.live);
        self.changes.push((time, change));
    }

    fn after(&self, tear: Tear, cut: u64, last: u64, dice: &mut Dice<'_>) -> Vec<u8> {
        match tear {
            Tear::Nothing | Tear::Names => return self.live.clone(),
            Tear::Everything | Tear::Bytes => return self.durable.clone(),
            Tear::Zeros => {
                let mut bytes = self.durable.clone();
                resize(&mut bytes, self.live.len());
                return bytes;
            }
            Tear::Suffix | Tear::LastWrite | Tear::Sectors => {}
        }
        let mut bytes = self.durable.clone();
        for (time, change) in &self.changes {
            match (tear, change) {
                (Tear::Suffix, _) if *time > cut => break,
                (Tear::Suffix, Change::Write { offset, bytes: new }) if *time == cut => {
                    let kept = dice.random.below(new.len() / SECTOR_BYTES + 1) * SECTOR_BYTES;
                    write_at(&mut bytes, *offset, &new[..kept.min(new.len())]);
                }
                (Tear::LastWrite, _) if *time != last => change.apply(&mut bytes),
                (Tear::Suffix, _) | (_, Change::Resize { .. }) => {
                    if tear == Tear::Suffix || dice.keeps() {
                        change.apply(&mut bytes);
                    }
                }
                (_, Change::Write { offset, bytes: new }) => {
                    write_sectors(&mut bytes, *offset, new, dice);
                }
            }
        }
        bytes
    }
}

/// Each sector that the write touches is written or not.
fn write_sectors(bytes: &mut Vec<u8>, offset: usize, new: &[u8], dice: &mut Dice<'_>) {
    let mut at = 0;
    while at < new.len() {
        let place = offset + at;
        let end = (at + SECTOR_BYTES - place % SECTOR_BYTES).min(new.len());
        if dice.keeps() {
            write_at(bytes, place, &new[at..end]);
        }
        at = end;
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes: new } => write_at(bytes, *offset, new),
            Self::Resize { length } => resize(bytes, *length),
        }
    }
}

/// As `Vec::resize` with zeros, which goes byte by byte in a debug build.
fn resize(bytes: &mut Vec<u8>, length: usize) {
    let more = length.saturating_sub(bytes.len());
    bytes.extend_from_slice(&vec![0; more]);
    bytes.truncate(length);
}

fn write_at(bytes: &mut Vec<u8>, offset: usize, new: &[u8]) {
    if new.is_empty() {
        return;
    }
    let end = offset + new.len();
    if bytes.len() < end {
        resize(bytes, end);
    }
    bytes[offset..end].copy_from_slice(new);
}

impl NameChange {
    fn path(&self) -> &str {
        match self {
            Self::Add { path, .. } | Self::Remove { path } => path,
            Self::Rename { to, .. } => to,
        }
    }

    fn apply(&self, names: &mut BTreeMap<String, Entry>) {
        match self {
            Self::Add { path, entry } => {
                names.insert(path.clone(), *entry);
            }
            Self::Rename { from, to, entry } => {
                names.remove(from);
                names.insert(to.clone(), *entry);
            }
            Self::Remove { path } => {
                names.remove(path);
            }
        }
    }
}

fn assemble(names: &BTreeMap<String, Entry>, mut bytes: impl FnMut(usize) -> Vec<u8>) -> DiskImage {
    let mut image = DiskImage::default();
    // In order of their names, so a directory comes before what is in it.
    for (path, entry) in names {
        let parent = parent(path);
        // Without its directory a file cannot be reached.
        if !parent.is_empty() && names.get(parent) != Some(&Entry::Dir) {
            continue;
        }
        match entry {
            Entry::Dir => image.dirs.push(path.clone()),
            Entry::File(index) => {
                image.files.insert(path.clone(), bytes(*index));
            }
        }
    }
    image
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("a file that fits into memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(events: &[Event]) -> TornDisk {
        let mut disk = TornDisk::default();
        for event in events {
            disk.apply(event);
        }
        disk
    }

    fn text(text: &str) -> String {
        text.to_owned()
    }

    fn create(path: &str, inode: u64) -> Event {
        let path = text(path);
        Event::Create { path, inode }
    }

    fn write(inode: u64, offset: u64, byte: u8, count: usize) -> Event {
        let bytes = vec![byte; count];
        Event::Write {
            inode,
            offset,
            bytes,
        }
    }

    fn sync(inode: u64, failed: bool) -> Event {
        Event::Sync { inode, failed }
    }

    fn sync_dir(path: &str) -> Event {
        Event::SyncDir {
            path: text(path),
            failed: false,
        }
    }

    fn after(disk: &TornDisk, tear: Tear) -> DiskImage {
        disk.crash(tear, &mut Random::new(1))
    }

    #[test]
    fn bytes_need_a_sync_of_the_file_and_names_one_of_the_directory() {
        let mut events = vec![create("a", 1), write(1, 0, 7, 600)];
        let nothing = DiskImage::default();
        assert_eq!(after(&disk(&events), Tear::Everything), nothing);
        events.push(sync(1, false));
        assert_eq!(after(&disk(&events), Tear::Everything), nothing);
        assert!(!disk(&events).is_clean());
        events.push(sync_dir(""));
        let synced = disk(&events);
        assert!(synced.is_clean());
        for tear in Tear::ALL {
            assert_eq!(after(&synced, tear), synced.live(), "{tear:?}");
        }
        events.push(write(1, 512, 9, 512));
        let torn = disk(&events);
        assert_eq!(after(&torn, Tear::Everything).files["a"], [7; 600]);
        assert_eq!(after(&torn, Tear::Bytes).files["a"], [7; 600]);
        assert_eq!(after(&torn, Tear::Nothing).files["a"][512], 9);
        let zeros = &after(&torn, Tear::Zeros).files["a"];
        assert_eq!((zeros.len(), zeros[599], zeros[600]), (1024, 7, 0));
    }

    #[test]
    fn what_a_failed_sync_has_lost_no_later_one_makes_durable() {
        let events = [
            create("a", 1),
            sync_dir(""),
            write(1, 0, 7, 512),
            sync(1, true),
            sync(1, false),
        ];
        let lost = disk(&events);
        assert!(after(&lost, Tear::Everything).files["a"].is_empty());
        assert_eq!(lost.live().files["a"], [7; 512]);
    }

    #[test]
    fn files_are_found_only_through_their_directories() {
        let make = Event::MakeDir { path: text("log") };
        let events = [make, create("log/1", 1), sync(1, false), sync_dir("log")];
        let image = after(&disk(&events), Tear::Everything);
        assert_eq!(image, DiskImage::default());
        let image = after(&disk(&[&events[..], &[sync_dir("")]].concat()), Tear::Bytes);
        assert_eq!(image.dirs, ["log"]);
        assert!(image.files.contains_key("log/1"));
    }

    #[test]
    fn a_torn_write_is_torn_at_sectors_and_every_way_of_it_is_seen() {
        let events = [
            create("a", 1),
            sync_dir(""),
            write(1, 0, 1, 2048),
            sync(1, false),
            write(1, 0, 2, 2048),
        ];
        let disk = disk(&events);
        for tear in [Tear::Sectors, Tear::LastWrite, Tear::Suffix] {
            let mut seen = std::collections::BTreeSet::new();
            for seed in 0..300 {
                let image = disk.crash(tear, &mut Random::new(seed));
                let bytes = &image.files["a"];
                assert_eq!(bytes.len(), 2048);
                let sectors = bytes.chunks(512).map(|sector| {
                    assert!(sector.iter().all(|byte| *byte == sector[0]));
                    sector[0]
                });
                seen.insert(sectors.collect::<Vec<_>>());
            }
            // A prefix of four sectors, or any of them.
            let ways = if tear == Tear::Suffix { 5 } else { 16 };
            assert_eq!(seen.len(), ways, "{tear:?}");
        }
    }
}
