//! Differences: between two databases, two data directories, two other files of a kind, or two
//! indexes of one log; page by page, down to the cells.

use std::collections::{BTreeMap, BTreeSet};

use wallaby::wal::{DatabaseHash, PageHash, PageNumber, PageSize};

use super::Shown;
use super::directory::Directory;
use super::entries::writer_of;
use super::extract::Target;
use super::history;
use super::image::Image;
use super::log::Log;
use super::output::{Printer, Row, Tone, hex128};
use super::page::{self, Reading};
use super::source::Failure;
use crate::pages::{Map, Pages as _, map};

/// Two databases, with their WALs.
pub(super) fn databases(
    printer: &mut Printer<'_>,
    [left, right]: [&Image; 2],
    brief: bool,
) -> Shown<()> {
    for (side, image) in [("left", left), ("right", right)] {
        printer.row(
            Row::new("database")
                .with("side", side)
                .with("file", image.path().display().to_string())
                .with("pages", image.page_count().0)
                .with("page_size", image.page_size().bytes())
                .with("hash", hex128(image.hash().0)),
        )?;
    }
    if !same_size(printer, left, right)? {
        return Ok(());
    }
    let maps = [left, right].map(|image| map(image).ok());
    let differing = differing(left, right);
    for page in &differing {
        let sides = [left, right].map(|image| image.page(*page).ok());
        let hashes = sides.each_ref().map(|image| {
            image
                .as_ref()
                .map(|image| hex128(PageHash::of(*page, image).0))
        });
        let [before, after] = hashes;
        printer.row(
            page_row(*page, &maps)
                .with("left", before)
                .with("right", after),
        )?;
        if !brief {
            contents(printer, *page, &sides, left)?;
        }
    }
    conclude(printer, differing.len())
}

fn same_size(printer: &mut Printer<'_>, left: &Image, right: &Image) -> Shown<bool> {
    if left.page_size() == right.page_size() {
        return Ok(true);
    }
    printer.differ();
    printer.note("the page sizes differ: no page is like another")?;
    Ok(false)
}

fn differing(left: &Image, right: &Image) -> Vec<PageNumber> {
    let numbers: BTreeSet<PageNumber> = left.numbers().chain(right.numbers()).collect();
    let of = |image: &Image, page: PageNumber| {
        let there = image.page_count().contains(page);
        there.then(|| image.page_hash(page)).flatten()
    };
    let differs = |page: &PageNumber| of(left, *page) != of(right, *page);
    numbers.into_iter().filter(differs).collect()
}

fn page_row(page: PageNumber, maps: &[Option<Map>; 2]) -> Row {
    let map = maps
        .iter()
        .flatten()
        .find(|map| map.roles.contains_key(&page));
    Row::new("page_difference")
        .with("page", page.number())
        .with("use", map.map(|map| map.role_text(page)))
        .with("tree", map.and_then(|map| map.owner(page)))
}

fn contents(
    printer: &mut Printer<'_>,
    page: PageNumber,
    sides: &[Option<Vec<u8>>; 2],
    image: &Image,
) -> Shown<()> {
    let reading = Reading::of(image.header.as_ref().ok(), image.page_size().len());
    page::differ(
        printer,
        page,
        sides.each_ref().map(Option::as_deref),
        reading,
    )
}

fn conclude(printer: &mut Printer<'_>, differing: usize) -> Shown<()> {
    if differing == 0 {
        return printer.note("no page differs");
    }
    printer.differ();
    printer.facts(&Row::new("difference").with("pages", differing))
}

/// Two data directories: which pages differ, which entry wrote them, and which side has what was
/// written.
pub(super) fn directories(
    printer: &mut Printer<'_>,
    [left, right]: [&Directory; 2],
    brief: bool,
) -> Shown<()> {
    let images = [left.image()?, right.image()?];
    for ((side, directory), image) in [("left", left), ("right", right)].into_iter().zip(&images) {
        side_facts(printer, side, directory, image)?;
    }
    if !same_size(printer, &images[0], &images[1])? {
        return Ok(());
    }
    entries(printer, left, right)?;
    let differing = differing(&images[0], &images[1]);
    let wanted: BTreeSet<PageNumber> = differing.iter().copied().collect();
    let mut written = history::Written::new();
    for directory in [left, right] {
        let found = history::written(directory, |page| wanted.contains(&page))?;
        for (page, images) in found {
            let known = written.entry(page).or_default();
            known.extend(images);
            known.sort_by_key(|image| image.0);
            known.dedup();
        }
    }
    let tables = [left, right].map(|directory| directory.hashes().and_then(Result::ok));
    let maps = images.each_ref().map(|image| map(image).ok());
    let is_running = [left, right]
        .iter()
        .any(|directory| directory.holder.is_some());
    for page in &differing {
        let written = written.get(page).map_or(&[][..], Vec::as_slice);
        let origins = images.each_ref().map(|image| {
            if !image.page_count().contains(*page) {
                return "not there".to_owned();
            }
            let Some(hash) = image.page_hash(*page) else {
                return "unreadable".to_owned();
            };
            let in_table = || {
                tables
                    .iter()
                    .flatten()
                    .any(|table| table.get(*page) == Some(hash))
            };
            match writer_of(written, hash) {
                Some(entry) => format!("as entry {entry} wrote it"),
                None if in_table() => "as written before the log".to_owned(),
                None if is_running => "not as any entry wrote it that was read".to_owned(),
                None => "not as written: damaged".to_owned(),
            }
        });
        let bad = origins.iter().any(|origin| origin.ends_with("damaged"));
        let [of_left, of_right] = origins;
        printer.row(
            page_row(*page, &maps)
                .with("last_entry", written.last().map(|image| image.0))
                .with("left", of_left)
                .with("right", of_right)
                .toned(if bad { Tone::Bad } else { Tone::Plain }),
        )?;
        if !brief {
            let sides = images.each_ref().map(|image| image.page(*page).ok());
            contents(printer, *page, &sides, &images[0])?;
        }
    }
    conclude(printer, differing.len())
}

fn side_facts(
    printer: &mut Printer<'_>,
    side: &'static str,
    directory: &Directory,
    image: &Image,
) -> Shown<()> {
    let hash = image.hash();
    let last = directory
        .log
        .as_ref()
        .and_then(|log| log.entries.last_key_value());
    printer.row(
        Row::new("side")
            .with("side", side)
            .with("node", directory.name())
            .with(
                "checkpoint",
                directory.record().map(|record| record.applied.index),
            )
            .with("last_entry", last.map(|last| *last.0))
            .with("pages", image.page_count().0)
            .with("hash", hex128(hash.0))
            .with("is_that_of_entry", entry_of(directory, hash)),
    )
}

/// The entry after which the database has this hash.
pub(super) fn entry_of(directory: &Directory, hash: DatabaseHash) -> Option<u64> {
    let log = directory.log.as_ref();
    let change = log.and_then(|log| log.changes.iter().rev().find(|change| change.after == hash));
    let recorded = || {
        let record = directory.record().filter(|record| record.hash == hash)?;
        Some(record.data.unwrap_or(record.applied).index)
    };
    change.map(super::log::Change::index).or_else(recorded)
}

/// Entries that are not the same on both sides.
fn entries(printer: &mut Printer<'_>, left: &Directory, right: &Directory) -> Shown<()> {
    let (Some(left), Some(right)) = (&left.log, &right.log) else {
        return Ok(());
    };
    for (index, entry) in &left.entries {
        let Some(other) = right.entries.get(index) else {
            continue;
        };
        let is_same = entry.position == other.position
            && (entry.payload_bytes() == other.payload_bytes())
            && left.payload(entry)? == right.payload(other)?;
        if !is_same {
            printer.differ();
            let committed = |log: &Log| {
                log.committed
                    .is_some_and(|committed| committed.index >= *index)
            };
            printer.row(
                Row::new("entry_difference")
                    .with("index", *index)
                    .with("left", entry.position.to_string())
                    .with("left_committed", committed(left))
                    .with("right", other.position.to_string())
                    .with("right_committed", committed(right))
                    .toned(Tone::Bad),
            )?;
        }
    }
    Ok(())
}

/// What the entries after `from` up to `to` changed.
pub(super) fn indexes(
    printer: &mut Printer<'_>,
    directory: &Directory,
    from: u64,
    to: u64,
    brief: bool,
) -> Shown<()> {
    if from > to {
        return Err(Failure::new("--from is behind --to").into());
    }
    let (before, after) = (Target::at(directory, from), Target::at(directory, to)?);
    let log = directory
        .log
        .as_ref()
        .ok_or_else(|| Failure::new("there is no log"))?;
    let changes = log
        .changes
        .iter()
        .filter(|change| (from.saturating_add(1)..=to).contains(&change.index()));
    let mut changed: BTreeMap<PageNumber, u64> = BTreeMap::new();
    for index in changes.flat_map(|change| &change.entries) {
        for page in log.delta(*index).map_or(&[][..], |delta| &delta.pages) {
            changed.insert(*page, *index);
        }
    }
    let count = |target: &Result<Target, Failure>| target.as_ref().ok().map(|at| at.page_count.0);
    printer.facts(
        &Row::new("interval")
            .with("from", from)
            .with("to", to)
            .with("pages_changed", changed.len())
            .with("database_pages_before", count(&before))
            .with("database_pages_after", after.page_count.0)
            .with(
                "hash_before",
                before.as_ref().ok().map(|at| hex128(at.hash.0)),
            )
            .with("hash_after", hex128(after.hash.0)),
    )?;
    let chunk: Vec<(PageNumber, u64)> = changed.into_iter().collect();
    let header = Image::open(&directory.main(), Some(after.page_size), None);
    let header = header.ok().and_then(|image| image.header.ok());
    let reading = Reading::of(header.as_ref(), after.page_size.len());
    for pages in chunk.chunks(PAGES_HELD) {
        let wanted: Vec<PageNumber> = pages.iter().map(|page| page.0).collect();
        let old = images_at(directory, from, &wanted, after.page_size)?;
        let new = images_at(directory, to, &wanted, after.page_size)?;
        for (page, entry) in pages {
            // Beyond the end of the database there was nothing, whatever there had been.
            let was_there = before
                .as_ref()
                .is_ok_and(|at| at.page_count.contains(*page));
            let images = [
                old.get(page).filter(|_| was_there),
                new.get(page).filter(|_| after.page_count.contains(*page)),
            ];
            let is_lost = images[0].is_none() && (was_there || before.is_err());
            let reading = (!brief).then_some(reading);
            interval_page(printer, (*page, *entry), images, is_lost, reading)?;
        }
    }
    if !chunk.is_empty() {
        printer.differ();
    }
    Ok(())
}

fn interval_page(
    printer: &mut Printer<'_>,
    (page, entry): (PageNumber, u64),
    images: [Option<&Vec<u8>>; 2],
    is_lost: bool,
    reading: Option<Reading>,
) -> Shown<()> {
    let hashes = images.map(|image| image.map(|image| hex128(PageHash::of(page, image).0)));
    let [before, after] = hashes;
    let glance = images[1]
        .or(images[0])
        .and_then(|image| page::glance(page, image));
    printer.row(
        Row::new("page_difference")
            .with("page", page.number())
            .with("last_entry", entry)
            .with("holds", glance)
            .with("before", before)
            .with("after", after),
    )?;
    let Some(reading) = reading else {
        return Ok(());
    };
    if is_lost {
        return printer.note(format!("what page {page} was before is not known any more"));
    }
    page::differ(
        printer,
        page,
        images.map(|image| image.map(Vec::as_slice)),
        reading,
    )
}

/// The images of some pages as of an index: from the last entry up to there that has them, or from
/// the main file if that is not newer. A page that did not exist, or that cannot be had, is missing.
fn images_at(
    directory: &Directory,
    index: u64,
    wanted: &[PageNumber],
    size: PageSize,
) -> Result<BTreeMap<PageNumber, Vec<u8>>, Failure> {
    let mut found = BTreeMap::new();
    let Some(log) = &directory.log else {
        return Ok(found);
    };
    let mut from: BTreeMap<u64, Vec<PageNumber>> = BTreeMap::new();
    let main = Image::open(&directory.main(), Some(size), Some(0)).ok();
    let table = directory.hashes().and_then(Result::ok);
    let mut of_file: BTreeSet<PageNumber> = BTreeSet::new();
    for page in wanted {
        let changes = log
            .changes
            .iter()
            .take_while(|change| change.index() <= index);
        let writers = changes.flat_map(|change| &change.entries).filter(|index| {
            let delta = log.delta(**index);
            delta.is_some_and(|delta| delta.pages.binary_search(page).is_ok())
        });
        match writers.last() {
            Some(writer) => from.entry(*writer).or_default().push(*page),
            None => drop(of_file.insert(*page)),
        }
    }
    // What a later entry wrote is not what was there at the index.
    let later = history::written(directory, |page| of_file.contains(&page))?;
    for page in of_file {
        if let Some(Ok(bytes)) = main.as_ref().map(|main| main.main_page(page)) {
            let hash = PageHash::of(page, &bytes);
            let is_later = later
                .get(&page)
                .is_some_and(|images| writer_of(images, hash).is_some());
            if !is_later && table.as_ref().and_then(|table| table.get(page)) == Some(hash) {
                found.insert(page, bytes);
            }
        }
    }
    let wanted: BTreeSet<PageNumber> = from.into_values().flatten().collect();
    history::walk(directory, index, |_, page, image| {
        if wanted.contains(&page) {
            match image {
                Some(image) => drop(found.insert(page, image.to_vec())),
                None => drop(found.remove(&page)),
            }
        }
        Ok(())
    })?;
    Ok(found)
}

/// Two lists of rows, of files that are no databases: what only one of them has.
pub(super) fn rows(printer: &mut Printer<'_>, [left, right]: [Vec<Row>; 2]) -> Shown<()> {
    // The first field is where it stands, or which it is.
    let key = |row: &Row| {
        (
            row.kind,
            row.fields.first().map(|field| format!("{:?}", field.1)),
        )
    };
    let of = |rows: Vec<Row>| {
        let mut keyed: BTreeMap<_, Vec<Row>> = BTreeMap::new();
        let mut order = Vec::new();
        for row in rows {
            let key = key(&row);
            if !keyed.contains_key(&key) {
                order.push(key.clone());
            }
            keyed.entry(key).or_default().push(row);
        }
        (keyed, order)
    };
    let ((left, mut order), (right, others)) = (of(left), of(right));
    order.extend(others.into_iter().filter(|key| !left.contains_key(key)));
    let mut differing = 0_usize;
    for key in order {
        let sides =
            [left.get(&key), right.get(&key)].map(|rows| rows.map_or(&[][..], Vec::as_slice));
        if sides[0] == sides[1] {
            continue;
        }
        differing += 1;
        for ((side, tone), rows) in [("-", Tone::Removed), ("+", Tone::Added)]
            .into_iter()
            .zip(sides)
        {
            for row in rows {
                let mut shown = Row::new(row.kind).with("side", side);
                shown.fields.extend(row.fields.clone());
                printer.row(shown.toned(tone))?;
            }
        }
    }
    if differing == 0 {
        return printer.note("nothing differs");
    }
    printer.differ();
    Ok(())
}

/// Images of so many pages are in memory at a time.
const PAGES_HELD: usize = 1024;
