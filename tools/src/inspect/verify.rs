//! Checks everything that can be checked: each file by itself, and each against the others.

use std::collections::{BTreeMap, BTreeSet};

use wallaby::raft::codec::decode_membership;
use wallaby::sqlite::PageHashes;
use wallaby::wal::{PageHash, PageNumber};

use super::Shown;
use super::diff::entry_of;
use super::directory::Directory;
use super::entries::writer_of;
use super::history::{walk, written};
use super::image::Image;
use super::log::{Change, Content, Log};
use super::output::{Printer, Row, hex128};
use super::source::{Failure, Source};
use super::wal_file::WalFile;
use super::wal_index::WalIndex;
use crate::pages::{Pages as _, Problem, map};

/// What one check came to; `detail` is what it looked at.
fn passed(printer: &mut Printer<'_>, what: &str, detail: String) -> Shown<()> {
    printer.row(Row::new("check").with("what", what).with("detail", detail))
}

pub(super) fn directory(printer: &mut Printer<'_>, directory: &Directory) -> Shown<()> {
    small_files(printer, directory)?;
    if let Some(log) = &directory.log {
        self::log(printer, log)?;
    }
    let expected = hashes(printer, directory)?;
    let wal = match Source::find(&directory.wal())? {
        Some(source) => Some(WalFile::open(source)?),
        None => None,
    };
    if let Some(wal) = &wal
        && wal.source.bytes()? > 0
    {
        self::wal(printer, wal)?;
    }
    if let Some(source) = Source::find(&directory.wal_index())? {
        WalIndex::open(source)?.verify(printer, wal.as_ref())?;
        passed(printer, "WAL-index", "compared with the WAL".to_owned())?;
    }
    if !directory.main().exists() {
        return printer.note("there is no database yet");
    }
    let image = directory.image()?;
    pages(printer, directory, &image, expected.as_ref())?;
    if image
        .overlay
        .as_ref()
        .is_some_and(|overlay| overlay.transactions > 0)
    {
        // What the WAL hides now, the next start reads.
        let suspects = suspects(directory, &directory.main_image()?, expected.as_ref())?;
        report(printer, "the database file", &suspects)?;
        passed(printer, "database file", "without the WAL".to_owned())?;
    }
    database(printer, || directory.image())
}

fn small_files(printer: &mut Printer<'_>, directory: &Directory) -> Shown<()> {
    match &directory.identity {
        None => printer.note("there is no identity file: this node was never started")?,
        Some(Ok(identity)) => passed(printer, "identity", format!("{:x}", identity.raft_id))?,
        Some(Err(error)) => printer.damage(error)?,
    }
    match &directory.record {
        None => printer.note("there is no checkpoint record yet")?,
        Some(Ok(record)) => match decode_membership(&record.membership) {
            Ok(_) => passed(printer, "checkpoint record", record.applied.to_string())?,
            Err(error) => printer.damage(format!("the checkpoint record: {error}"))?,
        },
        Some(Err(error)) => printer.damage(error)?,
    }
    match &directory.installing {
        None => Ok(()),
        Some(Ok(installing)) => {
            let pages = installing.pages.contents().count();
            passed(
                printer,
                "received image",
                format!("{pages} pages, not installed yet"),
            )
        }
        Some(Err(error)) => printer.damage(error),
    }
}

/// The segments, and that each transaction leads on from the one before.
pub(super) fn log(printer: &mut Printer<'_>, log: &Log) -> Shown<()> {
    for damage in &log.damage {
        printer.damage(damage)?;
    }
    for note in &log.notes {
        printer.note(note)?;
    }
    let (mut deltas, mut pages) = (0_u64, 0_u64);
    for entry in log.entries.values() {
        match &entry.content {
            Content::Unreadable(error) => {
                printer.damage(format!("entry {}: {error}", entry.position))?;
            }
            Content::Delta(_) => {
                deltas += 1;
                match log.read_pages(entry) {
                    Ok(count) => pages += count as u64,
                    Err(error) => printer.damage(error.to_string())?,
                }
            }
            Content::Blank | Content::Mark | Content::Membership => {}
        }
    }
    for pair in log.changes.windows(2) {
        if pair[0].after != pair[1].before {
            printer.damage(format!(
                "entry {} does not lead on from entry {}: it names another hash before it",
                pair[1].index(),
                pair[0].index()
            ))?;
        }
    }
    let run = log.run();
    let gaps = run.map_or(0, |(first, _)| log.entries.range(..first).count());
    if gaps > 0 {
        printer.damage(format!(
            "{gaps} entries are cut off from the others by a gap"
        ))?;
    }
    let detail = format!(
        "{} segments, {} entries, {deltas} deltas with {pages} pages",
        log.segments.len(),
        log.entries.len()
    );
    passed(printer, "log", detail)
}

/// The table of page hashes as a start-up would make it: that of the record, with the pages of all
/// later transactions. Its sum must be the hash after the last of them.
fn hashes(printer: &mut Printer<'_>, directory: &Directory) -> Shown<Option<PageHashes>> {
    let (mut table, record) = match (directory.hashes(), directory.record()) {
        (Some(Ok(table)), Some(record)) => (table, record),
        (Some(Err(error)), _) => {
            printer.damage(error)?;
            return Ok(None);
        }
        (None, Some(_)) => {
            printer.damage("the table of page hashes is missing")?;
            return Ok(None);
        }
        _ => return Ok(None),
    };
    table.resize(record.page_count);
    let mut expected = record.hash;
    if let Some(log) = &directory.log {
        let changes = log.changes.iter();
        let changes = changes.filter(|change| change.index() > record.applied.index);
        let changes: BTreeMap<u64, &Change> = changes
            .flat_map(|change| change.entries.iter().map(move |index| (*index, change)))
            .collect();
        let walked = walk(directory, u64::MAX, |index, page, image| {
            if let Some(change) = changes.get(&index) {
                table.resize(change.page_count);
                // Without the image the sum will tell.
                if let Some(image) = image {
                    table.replace(page, PageHash::of(page, image));
                }
                expected = change.after;
            }
            Ok(())
        });
        if let Err(error) = walked {
            printer.damage(error.to_string())?;
        }
    }
    table.recompute_sum();
    if table.sum() == expected {
        passed(printer, "page hashes", format!("add up to {expected}"))?;
        return Ok(Some(table));
    }
    if directory.holder.is_some() {
        printer
            .note("the page hashes do not add up: a checkpoint was at work, or they are damaged")?;
    } else {
        printer.damage(format!(
            "the page hashes add up to {}, not to {expected}",
            table.sum()
        ))?;
    }
    Ok(None)
}

/// The pages of the database, and what they are altogether.
fn pages(
    printer: &mut Printer<'_>,
    directory: &Directory,
    image: &Image,
    expected: Option<&PageHashes>,
) -> Shown<()> {
    let suspects = suspects(directory, image, expected)?;
    report(printer, "the database", &suspects)?;
    let sum = image.hash();
    let entry = entry_of(directory, sum);
    let detail = match entry {
        Some(entry) => format!("{} pages, those of entry {entry}", image.page_count()),
        None => format!("{} pages, hash {}", image.page_count(), hex128(sum.0)),
    };
    passed(printer, "database pages", detail)?;
    if entry.is_none() && suspects.is_empty() && directory.record().is_some() {
        printer.note(
            "the database is that of no single entry: it is being written, or a crash has left \
             pages of several, which a start-up puts right from the log",
        )?;
    }
    Ok(())
}

/// A page that is not as it was written, and the last entry that wrote it.
type Suspect = (PageNumber, Option<u64>);

fn report(printer: &mut Printer<'_>, of: &str, suspects: &[Suspect]) -> Shown<()> {
    for (page, entry) in suspects {
        let by = entry.map_or_else(
            || "before the log begins".to_owned(),
            |entry| format!("by entry {entry}"),
        );
        printer.damage(format!(
            "page {page} of {of} is not as it was written; it was written last {by}"
        ))?;
    }
    Ok(())
}

/// Each page against everything that was ever written there, as far as that is known. On a running
/// node a page may be newer than the log that was read, or caught half written: then both are read
/// again.
fn suspects(
    directory: &Directory,
    image: &Image,
    expected: Option<&PageHashes>,
) -> Result<Vec<Suspect>, Failure> {
    let table = directory.hashes().and_then(Result::ok);
    if table.is_none() && expected.is_none() {
        return Ok(Vec::new());
    }
    let is_known = |page: &PageNumber| {
        let hash = image.page_hash(*page);
        let in_table = |table: &PageHashes| table.get(*page) == hash;
        hash.is_some()
            && [expected, table.as_ref()]
                .into_iter()
                .flatten()
                .any(in_table)
    };
    let mut wanted: BTreeSet<PageNumber> = image.numbers().filter(|page| !is_known(page)).collect();
    let mut again = None;
    for attempt in 1.. {
        let directory = again.as_ref().unwrap_or(directory);
        let images = match &directory.log {
            Some(_) if !wanted.is_empty() => written(directory, |page| wanted.contains(&page))?,
            _ => BTreeMap::new(),
        };
        let of = |page: PageNumber| images.get(&page).map_or(&[][..], Vec::as_slice);
        wanted.retain(|page| {
            let hash = image.page_hash(*page);
            hash.is_none_or(|hash| writer_of(of(*page), hash).is_none())
        });
        if wanted.is_empty() || directory.holder.is_none() || attempt == ATTEMPTS {
            let last = |page: &PageNumber| of(*page).last().map(|image| image.0);
            return Ok(wanted.iter().map(|page| (*page, last(page))).collect());
        }
        again = Some(Directory::open(&directory.path)?);
    }
    Ok(Vec::new())
}

/// The WAL by itself.
pub(super) fn wal(printer: &mut Printer<'_>, wal: &WalFile) -> Shown<()> {
    wal.verify(printer)?;
    passed(printer, "WAL", wal.source.path().display().to_string())
}

/// That every page is used exactly once and every cell can be read. A database that is in use is
/// read again if it does not look like it: files are not read at one moment.
pub(super) fn database(
    printer: &mut Printer<'_>,
    open: impl Fn() -> Result<Image, Failure>,
) -> Shown<()> {
    let mut before = None;
    for attempt in 1.. {
        let image = open()?;
        if image.page_count().0 == 0 {
            break;
        }
        let found = map(&image).map(|map| {
            let detail = format!("{} trees over {} pages", map.trees.len(), map.roles.len());
            (map.problems, detail)
        });
        let (problems, detail) = match found {
            Ok((problems, detail)) => (problems, detail),
            Err(what) => (vec![Problem { page: 1, what }], String::new()),
        };
        if problems.is_empty() {
            return passed(printer, "b-trees", detail);
        }
        let is_same = before.as_ref() == Some(&problems);
        if image.holder().is_none() || is_same {
            return super::database::problems(printer, &problems);
        }
        if attempt == ATTEMPTS {
            return printer
                .note("the database changes while it is read; its b-trees were not checked");
        }
        before = Some(problems);
    }
    Ok(())
}

/// How often something that is being written is looked at.
const ATTEMPTS: u32 = 5;
