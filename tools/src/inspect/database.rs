//! A SQLite database shown: what it says about itself, and what each page is used for.

use wallaby::wal::PageNumber;

use super::Shown;
use super::image::Image;
use super::output::{Printer, Row, Tone, hex128};
use super::page::{self, Surroundings};
use super::source::Failure;
use super::wal_file::stop_text;
use crate::pages::{BtreePage, DatabaseHeader, Map, Pages as _, Problem, Role, map};

/// Problems are listed up to here; there may be one for each page.
const PROBLEMS_SHOWN: usize = 100;

pub(super) fn summary(printer: &mut Printer<'_>, image: &Image) -> Shown<()> {
    let overlay = image.overlay.as_ref();
    printer.facts(
        &Row::new("database")
            .with("file", image.path().display().to_string())
            .with("page_size", image.page_size().bytes())
            .with("pages", image.page_count().0)
            .with(
                "wal_transactions",
                overlay.map(|overlay| overlay.transactions),
            )
            .with(
                "wal_frames",
                overlay.map(|overlay| overlay.end.frame_committed),
            )
            .with(
                "wal_ends_because",
                overlay.map(|overlay| stop_text(overlay.end.stop)),
            )
            .with("database_hash", hex128(image.hash().0)),
    )?;
    match &image.header {
        Ok(header) => printer.facts(&page::header_row(header))?,
        Err(_) if image.page_count().0 == 0 => {
            return printer.note("the database is empty: there is no page yet");
        }
        Err(error) => return printer.damage(format!("the database header: {error}")),
    }
    let Some(map) = mapped(printer, image)? else {
        return Ok(());
    };
    for (number, tree) in map.trees.iter().enumerate() {
        let count = |wanted: fn(&Role) -> bool| {
            let of_tree = |role: &&Role| match role {
                Role::Btree(tree, _) | Role::Overflow(tree, _) => *tree == number,
                _ => false,
            };
            map.roles
                .values()
                .filter(of_tree)
                .filter(|role| wanted(role))
                .count()
        };
        printer.row(
            Row::new("tree")
                .with("name", tree.name.clone())
                .with("table", tree.table.clone())
                .with("root", tree.root.number())
                .with(
                    "interior_pages",
                    count(|role| matches!(role, Role::Btree(_, kind) if kind.is_interior())),
                )
                .with(
                    "leaf_pages",
                    count(|role| matches!(role, Role::Btree(_, kind) if !kind.is_interior())),
                )
                .with(
                    "overflow_pages",
                    count(|role| matches!(role, Role::Overflow(..))),
                ),
        )?;
    }
    problems(printer, &map.problems)
}

/// What each page is used for; a note or damage if that cannot be found out.
pub(super) fn mapped(printer: &mut Printer<'_>, image: &Image) -> Shown<Option<Map>> {
    if image.page_count().0 == 0 {
        return Ok(None);
    }
    match map(image) {
        Ok(map) => Ok(Some(map)),
        Err(error) => {
            printer.damage(format!(
                "what the pages are used for cannot be found out: {error}"
            ))?;
            Ok(None)
        }
    }
}

pub(super) fn problems(printer: &mut Printer<'_>, problems: &[Problem]) -> Shown<()> {
    for problem in problems.iter().take(PROBLEMS_SHOWN) {
        printer.damage(problem.to_string())?;
    }
    match problems.len().saturating_sub(PROBLEMS_SHOWN) {
        0 => Ok(()),
        more => printer.damage(format!("and {more} more")),
    }
}

/// Every page.
pub(super) fn list(printer: &mut Printer<'_>, image: &Image) -> Shown<()> {
    let map = mapped(printer, image)?;
    let usable = image
        .header
        .as_ref()
        .map_or(image.page_size().len(), DatabaseHeader::usable);
    for number in (1..=image.page_count().0).filter_map(PageNumber::new) {
        let bytes = image.page(number);
        let role = map.as_ref().and_then(|map| map.roles.get(&number));
        let is_tree = role.is_none_or(|role| matches!(role, Role::Btree(..)));
        let parsed = bytes.as_ref().ok().filter(|_| is_tree);
        let parsed = parsed.and_then(|bytes| BtreePage::parse(number, bytes, usable).ok());
        let bad = bytes.is_err() || role.is_none() && map.is_some();
        printer.row(
            Row::new("page")
                .with("page", number.number())
                .with("use", map.as_ref().map(|map| map.role_text(number)))
                .with("tree", map.as_ref().and_then(|map| map.owner(number)))
                .with("cells", parsed.map(|parsed| parsed.cells))
                .with(
                    "free_bytes",
                    parsed.and_then(|parsed| parsed.free_bytes().ok()),
                )
                .with("frame", image.frame_of(number))
                .with("hash", image.page_hash(number).map(|hash| hex128(hash.0)))
                .toned(if bad { Tone::Bad } else { Tone::Plain }),
        )?;
    }
    map.map_or(Ok(()), |map| problems(printer, &map.problems))
}

/// One page.
pub(super) fn show(printer: &mut Printer<'_>, image: &Image, page: PageNumber) -> Shown<()> {
    let bytes = image.page(page).map_err(Failure::new)?;
    if !image.page_count().contains(page) {
        printer.note(format!(
            "the database has {} pages; this one is behind its end",
            image.page_count()
        ))?;
    }
    if let Some(frame) = image.frame_of(page) {
        printer.note(format!("page {page} is read from frame {frame} of the WAL"))?;
    }
    let map = mapped(printer, image)?;
    let around = map.as_ref().map(|map| Surroundings { pages: image, map });
    page::show(printer, page, &bytes, around)
}
