//! Changes injected in any order, right ones and wrong ones, with checkpoints and readers between
//! them: the database has what a plain map of pages has, for the owner, for SQLite and in the WAL.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use rusqlite::Connection;
use wal_tests::replica::Replica;
use wallaby::sqlite::{AutoVacuum, Change, Checkpoint, DatabaseOptions, Error, genesis_page};
use wallaby::wal::{DatabaseHash, PageCount, PageHash, PageNumber, PageSize, Transactions};

use crate::script::Script;
use crate::{Reached, Sample, place};

const SIZE: usize = 512;

/// What the database should hold.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    pages: BTreeMap<u32, Vec<u8>>,
}

impl Model {
    fn count(&self) -> u32 {
        u32::try_from(self.pages.len()).expect("few pages")
    }

    fn hash(&self) -> DatabaseHash {
        let pages = self.pages.iter();
        pages.fold(DatabaseHash::default(), |sum, (number, image)| {
            sum.with(PageHash::of(page(*number), image))
        })
    }

    fn bytes(&self) -> Vec<u8> {
        self.pages.values().flatten().copied().collect()
    }

    /// As after these pages, with so many in all; `None` if some are missing.
    fn changed(&self, count: u32, pages: &BTreeMap<u32, Vec<u8>>) -> Option<Self> {
        let mut changed = self.clone();
        changed.pages.extend(pages.clone());
        changed.pages.retain(|number, _| *number <= count);
        (changed.count() == count).then_some(changed)
    }
}

fn page_size() -> PageSize {
    PageSize::new(512).expect("a power of two")
}

fn page(number: u32) -> PageNumber {
    PageNumber::new(number).expect("pages are counted from 1")
}

/// See the module.
///
/// # Panics
/// If the database is not what the map is.
pub fn inject(data: &[u8]) -> Reached {
    let dir = place::empty_directory("inject");
    let options = DatabaseOptions::default();
    let mut replica = Replica::create(&dir, page_size(), AutoVacuum::None, options);
    let genesis = genesis_page(page_size(), AutoVacuum::None);
    let mut model = Model {
        pages: BTreeMap::from([(1, genesis)]),
    };
    // Read transactions that began at an earlier state.
    let mut readers: Vec<(Connection, Vec<u8>)> = Vec::new();
    let mut script = Script::new(data);
    let mut injected = 0;
    for _ in 0..CALLS_MAX {
        if script.is_empty() {
            break;
        }
        match script.byte() {
            0..=15 => checkpoint(&mut replica, Checkpoint::Passive),
            16..=31 => {
                let wait = Duration::ZERO;
                checkpoint(&mut replica, Checkpoint::Restart { wait });
            }
            32..=47 if readers.len() < READERS_MAX => {
                let reader = replica.reader();
                reader
                    .execute_batch("BEGIN; PRAGMA page_count;")
                    .expect("a reader");
                readers.push((reader, model.bytes()));
            }
            48..=63 => readers.truncate(script.below(READERS_MAX + 1)),
            64..=79 => agree(&mut replica, &model, &mut readers),
            choice => {
                injected += u32::from(change(&mut replica, &mut model, &mut script, choice));
            }
        }
    }
    agree(&mut replica, &model, &mut readers);
    drop(readers);
    let path = replica.path().to_owned();
    // The order matters: while it is open, opening the file by other means would drop its locks.
    drop(replica);
    let main = fs::read(&path).expect("the main file");
    let wal = fs::read(path.with_file_name("db.sqlite-wal")).unwrap_or_default();
    assert!(overlaid(main, &wal, &model) == model.bytes(), "on disk");
    Reached::accepted(injected > 0)
}

fn checkpoint(replica: &mut Replica, kind: Checkpoint) {
    replica.checkpoint(kind).expect("a checkpoint");
}

/// A change that is offered to the database.
struct Attempt {
    /// What it makes of the database if it is right.
    right: Model,
    pages: Vec<(PageNumber, Vec<u8>)>,
    count: PageCount,
    before: DatabaseHash,
    after: DatabaseHash,
    is_wrong: bool,
}

impl Attempt {
    fn new(model: &Model, script: &mut Script<'_>, choice: u8) -> Self {
        let old = model.count();
        let step = u32::from(script.byte());
        let count = match choice % 8 {
            0 => old.saturating_sub(step % 9).max(1),
            1..=3 => (old + step % 20).min(PAGES_MAX),
            _ => old,
        };
        let mut pages: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        for _ in 0..script.below(6) {
            let number = 1 + u32::from(script.byte()) % count;
            pages.insert(number, vec![script.byte(); SIZE]);
        }
        for number in old + 1..=count {
            pages
                .entry(number)
                .or_insert_with(|| vec![script.byte(); SIZE]);
        }
        // What SQLite reads first must be a database, of the size that the WAL says.
        let mut first = genesis_page(page_size(), AutoVacuum::None);
        first[28..32].copy_from_slice(&count.to_be_bytes());
        first[60..64].copy_from_slice(&script.word().to_be_bytes());
        pages.insert(1, first);
        let right = model.changed(count, &pages);
        let right = right.expect("all new pages are there");
        let mut attempt = Self {
            pages: pages
                .into_iter()
                .map(|(number, image)| (page(number), image))
                .collect(),
            count: PageCount(count),
            before: model.hash(),
            after: right.hash(),
            is_wrong: false,
            right,
        };
        attempt.is_wrong = attempt.spoil(script.byte());
        attempt
    }

    /// Makes it wrong in one of some ways, or leaves it as it is.
    fn spoil(&mut self, way: u8) -> bool {
        match way {
            0 => self.before.0 ^= 1,
            1 => self.after.0 ^= 1,
            2 => drop(self.pages.pop()),
            3 => {
                self.pages.reverse();
                return self.pages.len() > 1;
            }
            4 => self.count.0 += 1,
            5 => {
                let last = self.pages.last_mut().expect("page 1 is always there");
                last.1.pop();
            }
            6 => self.pages.push((page(self.count.0 + 1), vec![1; SIZE])),
            _ => return false,
        }
        true
    }

    /// The model after it, if it is one.
    fn made(&self, model: &Model) -> Option<Model> {
        let pages = self.pages.iter();
        let pages = pages.map(|(page, image)| (page.number(), image.clone()));
        model.changed(self.count.0, &pages.collect())
    }
}

/// Tries one change, which may be wrong in some way; whether it was made.
fn change(replica: &mut Replica, model: &mut Model, script: &mut Script<'_>, choice: u8) -> bool {
    let attempt = Attempt::new(model, script, choice);
    let given = attempt.pages.iter();
    let mut given = given.map(|(page, image)| Ok((*page, Cow::Borrowed(&image[..]))));
    let result = replica.database.inject(Change {
        page_count: attempt.count,
        hash_before: attempt.before,
        hash_after: attempt.after,
        pages: &mut given,
    });
    match result {
        Ok(()) => {
            // A page may have been left out that was as before: that is no fault.
            let made = attempt.made(model);
            assert!(made.as_ref() == Some(&attempt.right), "a wrong change");
            *model = attempt.right;
            true
        }
        Err(error) => {
            assert!(attempt.is_wrong, "a right change was refused: {error}");
            let known = matches!(error, Error::HashMismatch { .. } | Error::Change { .. });
            assert!(known, "a wrong change, refused for another reason: {error}");
            false
        }
    }
}

/// Everybody who looks sees what the map has, or had when they began to look.
fn agree(replica: &mut Replica, model: &Model, readers: &mut [(Connection, Vec<u8>)]) {
    assert_eq!(replica.database.hash(), model.hash());
    assert_eq!(replica.database.page_count().0, model.count());
    assert!(replica.pages().concat() == model.bytes(), "the owner");
    let mut fresh = replica.reader();
    assert!(read(&mut fresh) == model.bytes(), "a reader of SQLite's");
    for (reader, expected) in readers {
        assert!(
            read(reader) == *expected,
            "a read transaction saw two states"
        );
    }
    // SQLite takes no locks on the WAL, so it may be opened here.
    let wal = fs::read(replica.path().with_file_name("db.sqlite-wal")).expect("a WAL");
    let published = replica.database.wal_bytes().expect("an open database");
    let mut last: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    if published > 0
        && let Ok(transactions) = Transactions::of(&wal)
    {
        for transaction in transactions {
            for frame in transaction.frames {
                let at = usize::try_from(frame.offset).expect("short") + 24;
                last.insert(frame.page.number(), wal[at..at + SIZE].to_vec());
            }
        }
    }
    for (number, image) in last {
        let expected = model.pages.get(&number);
        assert!(
            expected.is_none_or(|expected| *expected == image),
            "in the WAL"
        );
    }
}

/// All pages as SQLite reads them.
fn read(reader: &mut Connection) -> Vec<u8> {
    reader.serialize("main").expect("pages").to_vec()
}

/// The main file with its WAL over it, as recovery would find it.
fn overlaid(main: Vec<u8>, wal: &[u8], model: &Model) -> Vec<u8> {
    let mut bytes = main;
    if let Ok(transactions) = Transactions::of(wal) {
        for transaction in transactions {
            bytes.resize(transaction.page_count.0 as usize * SIZE, 0);
            for frame in transaction.frames {
                let from = usize::try_from(frame.offset).expect("short") + 24;
                let to = (frame.page.number() as usize - 1) * SIZE;
                if to < bytes.len() {
                    bytes[to..to + SIZE].copy_from_slice(&wal[from..from + SIZE]);
                }
            }
        }
    }
    // Checkpointed by readers or not, a file longer than the database is no fault.
    bytes.truncate(model.pages.len() * SIZE);
    bytes
}

pub(crate) fn samples() -> Vec<Sample> {
    // Grow, checkpoint, look, change, shrink, look; 255 is a right change.
    let grow = [
        81, 12, 2, 3, 9, 4, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 1, 255,
    ];
    let change = [84, 3, 2, 40, 5, 41, 7, 42, 0, 0, 0, 2, 255];
    let shrink = [80, 7, 1, 0, 9, 0, 0, 0, 3, 255];
    let wrong: Vec<u8> = (0..7)
        .flat_map(|kind| [84, 2, 1, 4, 2, 6, 0, 0, 0, 9, kind])
        .collect();
    vec![
        Sample::new("grow", grow.to_vec()),
        Sample::new(
            "grow-and-shrink",
            [&grow[..], &change, &shrink, &[64]].concat(),
        ),
        Sample::new("wrong", [&grow[..], &wrong, &[64]].concat()),
        Sample::new(
            "restart",
            [
                &grow[..],
                &[0],
                &change,
                &[16, 64],
                &change,
                &[16],
                &grow,
                &[64],
            ]
            .concat(),
        ),
        Sample::new(
            "readers",
            [
                &grow[..],
                &[32],
                &change,
                &[32, 16],
                &shrink,
                &[64, 48, 1],
                &change,
                &[16],
            ]
            .concat(),
        ),
        Sample::new("nothing", vec![]),
    ]
}

const CALLS_MAX: usize = 60;
const READERS_MAX: usize = 3;
const PAGES_MAX: u32 = 200;
