//! The database as it was when an entry of the log had been applied: the main file, and the pages of
//! all transactions up to that entry over it, whatever the main file has in their place by now. The
//! hash that the log, or the checkpoint record, names for that state proves the result.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use wallaby::wal::{DatabaseHash, PageCount, PageHash, PageNumber, PageSize};

use super::Shown;
use super::directory::Directory;
use super::history::{State, walk};
use super::image::Image;
use super::log::Log;
use super::output::{Printer, Row, hex128};
use super::source::Failure;
use crate::pages::Pages as _;

/// A state of the database, and how to prove it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) index: u64,
    pub(super) page_size: PageSize,
    pub(super) page_count: PageCount,
    pub(super) hash: DatabaseHash,
    /// The entry that led to it, if that is in the log.
    pub(super) entry: Option<u64>,
}

impl Target {
    /// What the database was at an index.
    pub(super) fn at(directory: &Directory, index: u64) -> Result<Self, Failure> {
        let base = directory.base(index);
        let run = directory.log.as_ref().and_then(Log::run);
        let is_base = base.is_some_and(|base| base.applied.index == index);
        let is_in_log = directory.log.as_ref().is_some_and(|log| log.covers(index));
        if !is_in_log && !is_base {
            return Err(Failure::new(match (run, base) {
                (Some((first, last)), _) => format!(
                    "index {index} is not reachable: the log here has the entries {first} to {last}"
                ),
                (None, Some(base)) => format!(
                    "index {index} is not reachable: there are no log entries, and the database is \
                     that of entry {}",
                    base.applied.index
                ),
                (None, None) => format!(
                    "index {index} is not reachable: there are no log entries and no checkpoint \
                     record"
                ),
            }));
        }
        let log = directory.log.as_ref().filter(|_| is_in_log);
        if let Some((log, change)) = log.and_then(|log| Some((log, log.change_at(index)?))) {
            let delta = log.delta(change.index());
            return Ok(Self {
                index,
                page_size: delta.map_or(PageSize::DEFAULT, |delta| delta.header.page_size),
                page_count: change.page_count,
                hash: change.after,
                entry: Some(change.index()),
            });
        }
        // No transaction in the log up to there: it is the state of the record, if none is between.
        let next = log.and_then(|log| log.changes.first());
        match base {
            Some(base) if next.is_none_or(|next| base.applied.index < next.index()) => Ok(Self {
                index,
                page_size: base.page_size,
                page_count: base.page_count,
                hash: base.hash,
                entry: None,
            }),
            _ => Err(Failure::new(format!(
                "index {index} is not reachable: the database file has later transactions, and the \
                 log does not go back to the one before"
            ))),
        }
    }
}

/// Why a state cannot be had.
enum Miss {
    /// Pages of the main file are newer, and the log has no image of them that is old enough.
    Overwritten(Vec<(PageNumber, u64)>),
    /// Everything should be there, and is not what was written.
    Damaged(Vec<PageNumber>),
}

/// Writes the database as of an index to a new file.
pub(super) fn extract(
    printer: &mut Printer<'_>,
    path: &Path,
    index: u64,
    output: &Path,
) -> Shown<()> {
    let mut attempt = 1;
    loop {
        let directory = Directory::open(path)?;
        let target = Target::at(&directory, index)?;
        let (file, miss) = {
            let file = create(output)?;
            let result = build(&directory, &target, &file);
            let missed = match result {
                Ok(missed) => missed,
                Err(failure) => {
                    remove(output);
                    return Err(failure.into());
                }
            };
            (file, missed)
        };
        let Some(miss) = miss else {
            file.sync_all().map_err(|error| {
                Failure::new(format!("cannot write {}: {error}", output.display()))
            })?;
            return report(printer, &directory, &target, output);
        };
        remove(output);
        // A running node may have moved on between the log and the database file.
        if directory.holder.is_some() && attempt < ATTEMPTS {
            attempt += 1;
            continue;
        }
        return match miss {
            Miss::Overwritten(pages) => Err(unreachable_index(index, &pages).into()),
            Miss::Damaged(pages) => printer.damage(format!(
                "the database at index {index} should have the hash {}, and cannot be made \
                     from what is here: {}; nothing was written",
                target.hash,
                pages_text("page", "is not as it was written", &pages)
            )),
        };
    }
}

fn report(
    printer: &mut Printer<'_>,
    directory: &Directory,
    target: &Target,
    output: &Path,
) -> Shown<()> {
    printer.facts(
        &Row::new("extracted")
            .with("file", output.display().to_string())
            .with("index", target.index)
            .with("last_change", target.entry)
            .with("pages", target.page_count.0)
            .with("page_size", target.page_size.bytes())
            .with("database_hash", hex128(target.hash.0))
            .with("verified", true),
    )?;
    let committed = directory.log.as_ref().and_then(|log| log.committed);
    if committed.is_none_or(|committed| committed.index < target.index) {
        printer.note(format!(
            "entry {} is in this node's log, which does not say that it is committed: another \
             leader may have replaced it",
            target.index
        ))?;
    }
    Ok(())
}

/// Writes the database as SQLite sees it up to a frame of its WAL.
pub(super) fn extract_frame(
    printer: &mut Printer<'_>,
    path: &Path,
    frame: u32,
    output: &Path,
) -> Shown<()> {
    let image = Image::open(path, None, Some(frame))?;
    let file = create(output)?;
    let size = image.page_size();
    let write = || -> Result<(), Failure> {
        for number in 1..=image.page_count().0 {
            let page = PageNumber::new(number).expect("from 1 on");
            if page != size.lock_byte_page() {
                let bytes = image.page(page).map_err(Failure::new)?;
                put(&file, output, size, page, &bytes)?;
            }
        }
        set_count(&file, output, size, image.page_count())
    };
    if let Err(failure) = write() {
        remove(output);
        return Err(failure.into());
    }
    let transactions = image
        .overlay
        .as_ref()
        .map_or(0, |overlay| overlay.transactions);
    printer.facts(
        &Row::new("extracted")
            .with("file", output.display().to_string())
            .with("frame", frame)
            .with("transactions", transactions)
            .with("pages", image.page_count().0)
            .with("page_size", size.bytes())
            .with("database_hash", hex128(image.hash().0))
            .with("verified", false),
    )?;
    printer.note("a WAL says nothing about the database file under it: nothing proves this result")
}

/// Builds the state in `file`; `Some`: it is not that state.
fn build(directory: &Directory, target: &Target, file: &File) -> Result<Option<Miss>, Failure> {
    let output = Path::new("the output file");
    let size = target.page_size;
    let mut hashes = BTreeMap::new();
    let originals = Originals::of(directory, target);
    let mut place = |page: PageNumber, bytes: &[u8]| {
        hashes.insert(page, PageHash::of(page, bytes));
        put(file, output, size, page, bytes)
    };
    for page in numbers(target) {
        if let Some(bytes) = originals.page(page) {
            place(page, &bytes)?;
        }
    }
    let mut written = BTreeSet::new();
    let log = directory.log.as_ref();
    if log.is_some_and(|log| log.covers(target.index)) {
        walk(directory, target.index, |_, page, image| {
            if !target.page_count.contains(page) {
                return Ok(());
            }
            if let Some(image) = image.filter(|image| image.len() == size.len()) {
                written.insert(page);
                return place(page, image);
            }
            // Perhaps the files have it, if no entry has changed it since.
            written.remove(&page);
            originals
                .page(page)
                .map_or(Ok(()), |bytes| place(page, &bytes))
        })?;
    }
    set_count(file, output, size, target.page_count)?;
    let sum = hashes
        .values()
        .copied()
        .fold(DatabaseHash::default(), DatabaseHash::with);
    if sum == target.hash {
        return Ok(None);
    }
    let written = |page: PageNumber| written.contains(&page);
    Ok(Some(explain(directory, target, &hashes, written)))
}

/// The pages in the files of the directory.
struct Originals<'a> {
    state: Option<State<'a>>,
    size: PageSize,
    /// What entries have changed since the target in the state that the files are at. Perhaps the
    /// main file is not there yet.
    later: BTreeSet<PageNumber>,
}

impl<'a> Originals<'a> {
    fn of(directory: &'a Directory, target: &Target) -> Self {
        let base = directory.base(target.index);
        let mut later = BTreeSet::new();
        if let (Some(log), Some(base)) = (&directory.log, base) {
            let since = target.index.saturating_add(1)..=base.applied.index;
            let changes = log.changes.iter();
            let changes = changes.filter(|change| since.contains(&change.index()));
            for index in changes.flat_map(|change| &change.entries) {
                later.extend(log.delta(*index).map_or(&[][..], |delta| &delta.pages));
            }
        }
        Self {
            state: base.map(|base| State::of(directory, base)),
            size: target.page_size,
            later,
        }
    }

    fn page(&self, page: PageNumber) -> Option<Vec<u8>> {
        let state = self.state.as_ref()?;
        let bytes = if self.later.contains(&page) {
            state.main_page(page)
        } else {
            state.page(page)
        };
        bytes.filter(|bytes| bytes.len() == self.size.len())
    }
}

fn explain(
    directory: &Directory,
    target: &Target,
    hashes: &BTreeMap<PageNumber, PageHash>,
    written: impl Fn(PageNumber) -> bool,
) -> Miss {
    let mut overwritten = Vec::new();
    let mut later: BTreeMap<PageNumber, u64> = BTreeMap::new();
    if let Some(log) = &directory.log {
        let changes = log
            .changes
            .iter()
            .filter(|change| change.index() > target.index);
        for index in changes.flat_map(|change| &change.entries) {
            for page in log.delta(*index).map_or(&[][..], |delta| &delta.pages) {
                later.entry(*page).or_insert(*index);
            }
        }
    }
    let mut damaged = Vec::new();
    let table = directory.hashes().and_then(Result::ok);
    for page in numbers(target).filter(|page| !written(*page)) {
        if let Some(index) = later.get(&page) {
            overwritten.push((page, *index));
        } else if table.as_ref().and_then(|table| table.get(page)) != hashes.get(&page).copied() {
            damaged.push(page);
        }
    }
    if damaged.is_empty() && !overwritten.is_empty() {
        Miss::Overwritten(overwritten)
    } else {
        Miss::Damaged(damaged)
    }
}

fn unreachable_index(index: u64, pages: &[(PageNumber, u64)]) -> Failure {
    let shown = pages.iter().take(PAGES_SHOWN);
    let texts: Vec<String> = shown
        .map(|(page, entry)| format!("page {page} by entry {entry}"))
        .collect();
    let more = pages.len().saturating_sub(PAGES_SHOWN);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    Failure::new(format!(
        "index {index} is not reachable from what is here: the database file has later images of \
         pages that no entry up to there holds ({}{more}); nothing was written",
        texts.join(", ")
    ))
}

/// A list of pages as a sentence.
pub(super) fn pages_text(noun: &str, says: &str, pages: &[PageNumber]) -> String {
    if pages.is_empty() {
        return "which page is wrong cannot be told".to_owned();
    }
    let shown: Vec<String> = pages
        .iter()
        .take(PAGES_SHOWN)
        .map(|page| format!("{noun} {page} {says}"))
        .collect();
    match pages.len().saturating_sub(PAGES_SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn numbers(target: &Target) -> impl Iterator<Item = PageNumber> + use<> {
    let lock = target.page_size.lock_byte_page();
    (1..=target.page_count.0)
        .filter_map(PageNumber::new)
        .filter(move |page| *page != lock)
}

fn create(path: &Path) -> Result<File, Failure> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    options
        .open(path)
        .map_err(|error| Failure::new(format!("cannot create {}: {error}", path.display())))
}

/// Takes away what this process made.
fn remove(path: &Path) {
    // If it cannot be removed the message about the failure itself matters more.
    drop(fs::remove_file(path));
}

fn put(
    file: &File,
    path: &Path,
    size: PageSize,
    page: PageNumber,
    image: &[u8],
) -> Result<(), Failure> {
    file.write_all_at(image, page.offset(size))
        .map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))
}

fn set_count(file: &File, path: &Path, size: PageSize, count: PageCount) -> Result<(), Failure> {
    file.set_len(count.file_bytes(size))
        .map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))
}

const ATTEMPTS: u32 = 5;
const PAGES_SHOWN: usize = 10;
