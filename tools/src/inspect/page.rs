//! One page of a database, in detail; and how two images of a page differ.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value as Json, json};
use wallaby::wal::{PageHash, PageNumber};

use super::Shown;
use super::output::{Printer, Row, Tone, Value, hex, hex128};
use crate::pages::{
    BtreeKind, BtreePage, Cell, Column, DatabaseHeader, Encoding, Map, Pages, Role, columns,
    whole_payload,
};

/// What is known about a page beyond its bytes.
#[derive(Clone, Copy)]
pub(super) struct Surroundings<'a> {
    /// All pages of the database.
    pub(super) pages: &'a dyn Pages,
    /// What they are used for.
    pub(super) map: &'a Map,
}

/// How the bytes of a page are to be read.
#[derive(Clone, Copy)]
pub(super) struct Reading {
    usable: usize,
    encoding: Encoding,
}

impl Reading {
    /// As the header of the database says; without one, as nearly all databases are.
    pub(super) fn of(header: Option<&DatabaseHeader>, page_bytes: usize) -> Self {
        Self {
            usable: header.map_or(page_bytes, DatabaseHeader::usable),
            encoding: header
                .and_then(|header| header.encoding)
                .unwrap_or_default(),
        }
    }
}

/// In a few words what a page is, if its bytes tell.
pub(super) fn glance(page: PageNumber, image: &[u8]) -> Option<String> {
    let parsed = BtreePage::parse(page, image, image.len()).ok()?;
    // Half of all bytes are the kind of some page; that the free space adds up is a better sign.
    parsed.free_bytes().ok()?;
    Some(format!("{}, {} cells", parsed.kind, parsed.cells))
}

/// A page with its cells.
pub(super) fn show(
    printer: &mut Printer<'_>,
    page: PageNumber,
    image: &[u8],
    around: Option<Surroundings<'_>>,
) -> Shown<()> {
    let own = DatabaseHeader::parse(image)
        .ok()
        .filter(|_| page == PageNumber::FIRST);
    let header = around.map(|around| around.map.header).or(own);
    if let Some(own) = own {
        printer.facts(&header_row(&own))?;
    }
    let reading = Reading::of(header.as_ref(), image.len());
    let role = around.and_then(|around| around.map.roles.get(&page));
    let parsed = match role {
        Some(Role::FreeLeaf | Role::FreeTrunk | Role::Overflow(..) | Role::PointerMap) => None,
        _ => BtreePage::parse(page, image, reading.usable).ok(),
    };
    let free = parsed.map(|parsed| parsed.free_bytes());
    let blocks = parsed.map(|parsed| parsed.freeblocks().filter(Result::is_ok).count());
    let right = parsed.and_then(|parsed| parsed.right_child);
    printer.facts(
        &Row::new("page")
            .with("page", page.number())
            .with("use", around.map(|around| around.map.role_text(page)))
            .with("tree", around.and_then(|around| around.map.owner(page)))
            .with("type", parsed.map(|parsed| parsed.kind.to_string()))
            .with("page_hash", hex128(PageHash::of(page, image).0))
            .with("cells", parsed.map(|parsed| parsed.cells))
            .with("content_begins", parsed.map(|parsed| parsed.content))
            .with("free_bytes", free.and_then(Result::ok))
            .with("freeblocks", blocks)
            .with(
                "fragments",
                parsed.map(|parsed| u64::from(parsed.fragments)),
            )
            .with("right_child", right.map(PageNumber::number))
            .with("first_bytes", hex(image.get(..16).unwrap_or(image))),
    )?;
    let Some(parsed) = parsed else {
        return Ok(());
    };
    if let Some(Err(fault)) = free {
        printer.damage(format!("page {page}: {fault}"))?;
    }
    for cell in parsed.cells() {
        match cell {
            Ok(cell) => printer.row(cell_row(&parsed, &cell, reading, around))?,
            Err(fault) => printer.damage(format!("page {page}: {fault}"))?,
        }
    }
    Ok(())
}

/// The header of a database.
pub(super) fn header_row(header: &DatabaseHeader) -> Row {
    let encoding = header.encoding.map(|encoding| match encoding {
        Encoding::Utf16Be => "UTF-16be",
        Encoding::Utf16Le => "UTF-16le",
        Encoding::Utf8 => "UTF-8",
    });
    let mode = match (header.write_version, header.read_version) {
        (1, 1) => "rollback journal".to_owned(),
        (2, 2) => "WAL".to_owned(),
        (write, read) => format!("write version {write}, read version {read}"),
    };
    Row::new("database_header")
        .with("page_size", header.page_size.bytes())
        .with("journal", mode)
        .with("reserved_bytes", u64::from(header.reserved))
        .with("pages", header.page_count.0)
        .with("change_counter", header.change_counter)
        .with("first_free_trunk", header.freelist.map(PageNumber::number))
        .with("free_pages", header.free_pages)
        .with("schema_cookie", header.schema_cookie)
        .with("schema_format", header.schema_format)
        .with("auto_vacuum", header.largest_root != 0)
        .with("encoding", encoding)
        .with("user_version", header.user_version)
        .with("application_id", header.application_id)
        .with("sqlite_version", header.sqlite_version)
}

fn cell_row(
    parsed: &BtreePage<'_>,
    cell: &Cell,
    reading: Reading,
    around: Option<Surroundings<'_>>,
) -> Row {
    let values = match (cell.payload_bytes, around) {
        (None, _) => Value::Absent,
        (Some(_), Some(around)) => {
            let whole = whole_payload(around.pages, reading.usable, parsed, cell, bounded(around));
            match whole {
                Ok(payload) => values(&payload, reading.encoding),
                Err(_) => values(parsed.local(cell), reading.encoding),
            }
        }
        (Some(_), None) => values(parsed.local(cell), reading.encoding),
    };
    Row::new("cell")
        .with("cell", cell.index)
        .with("offset", cell.offset)
        .with("bytes", cell.bytes)
        .with("left_child", cell.left_child)
        .with("rowid", cell.rowid)
        .with("payload", cell.payload_bytes)
        .with("local", cell.payload_bytes.map(|_| cell.local.len()))
        .with("overflow", cell.overflow.map(PageNumber::number))
        .with("values", values)
}

/// A chain that goes in a circle ends when it has as many pages as there are.
fn bounded(around: Surroundings<'_>) -> impl FnMut(PageNumber) -> Result<(), String> {
    let mut left = around.pages.page_count().0;
    move |_| {
        left = left
            .checked_sub(1)
            .ok_or("more overflow pages than pages")?;
        Ok(())
    }
}

fn values(payload: &[u8], encoding: Encoding) -> Value {
    match columns(payload, encoding) {
        Ok(columns) => {
            let texts: Vec<String> = columns.iter().map(Column::to_string).collect();
            let json = columns.iter().map(column_json).collect();
            Value::Rich(texts.join(", "), json)
        }
        Err(what) => Value::Rich(format!("({what})"), Json::Null),
    }
}

fn column_json(column: &Column) -> Json {
    match column {
        Column::Blob(bytes) => json!({ "blob": hex(bytes) }),
        Column::Elsewhere { is_text, bytes } => json!({ "elsewhere": bytes, "text": is_text }),
        Column::Integer(value) => json!(value),
        Column::Null => Json::Null,
        Column::Real(value) if value.is_finite() => json!(value),
        Column::Real(value) => json!({ "real": value.to_string() }),
        Column::Text(text) => json!(text),
    }
}

/// What identifies a cell among those of the other image.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Key {
    Rowid(i64),
    /// The beginning of the payload, and the child before it.
    Entry(Vec<u8>, Option<u32>),
}

/// A cell in a form that does not depend on where it lies in the page.
#[derive(Clone, Debug, PartialEq)]
struct Content {
    left_child: Option<u32>,
    rowid: Option<i64>,
    payload_bytes: Option<u64>,
    local: Vec<u8>,
    overflow: Option<u32>,
}

/// The cells of a page that can be read, and how many cannot.
fn contents(parsed: &BtreePage<'_>) -> (BTreeMap<Key, Content>, usize) {
    let (mut found, mut unreadable) = (BTreeMap::new(), 0);
    for cell in parsed.cells() {
        let Ok(cell) = cell else {
            unreadable += 1;
            continue;
        };
        let local = parsed.local(&cell).to_vec();
        let key = match cell.rowid {
            Some(rowid) => Key::Rowid(rowid),
            None => Key::Entry(local.clone(), cell.left_child),
        };
        let content = Content {
            left_child: cell.left_child,
            rowid: cell.rowid,
            payload_bytes: cell.payload_bytes,
            local,
            overflow: cell.overflow.map(PageNumber::number),
        };
        found.insert(key, content);
    }
    (found, unreadable)
}

/// How two images of a page differ: cell by cell where they are pages of a b-tree, else by bytes. Of
/// a page that is only on one side, every cell.
pub(super) fn differ(
    printer: &mut Printer<'_>,
    page: PageNumber,
    images: [Option<&[u8]>; 2],
    reading: Reading,
) -> Shown<()> {
    for row in difference(page, images, reading) {
        printer.row(row)?;
    }
    Ok(())
}

fn difference(page: PageNumber, images: [Option<&[u8]>; 2], reading: Reading) -> Vec<Row> {
    let parsed = images.map(|image| {
        let parsed = BtreePage::parse(page, image?, reading.usable).ok()?;
        parsed.free_bytes().is_ok().then_some(parsed)
    });
    let mut rows = cell_differences(page, parsed, reading);
    if let [Some(before), Some(after)] = parsed
        && before.right_child != after.right_child
    {
        let child = |parsed: BtreePage<'_>| parsed.right_child.map(PageNumber::number);
        rows.push(
            Row::new("right_child")
                .with("page", page.number())
                .with("before", child(before))
                .with("after", child(after)),
        );
    }
    // A page whose cells are the same may still differ: in its header, or where nothing is.
    match images {
        [Some(old), Some(new)] if rows.is_empty() || page == PageNumber::FIRST => {
            rows.extend(byte_differences(page, old, new));
        }
        _ => {}
    }
    rows
}

fn cell_differences(
    page: PageNumber,
    parsed: [Option<BtreePage<'_>>; 2],
    reading: Reading,
) -> Vec<Row> {
    let [(old, bad_old), (new, bad_new)] =
        parsed.map(|parsed| parsed.map_or_else(Default::default, |parsed| contents(&parsed)));
    let [kind_old, kind_new] = parsed.map(|parsed| parsed.map(|parsed| parsed.kind));
    let mut rows = Vec::new();
    let keys: BTreeSet<&Key> = old.keys().chain(new.keys()).collect();
    for key in keys {
        let sides = [
            ("-", kind_old, old.get(key), Tone::Removed),
            ("+", kind_new, new.get(key), Tone::Added),
        ];
        if kind_old == kind_new && old.get(key) == new.get(key) {
            continue;
        }
        for (side, kind, content, tone) in sides {
            if let (Some(kind), Some(content)) = (kind, content) {
                rows.push(change_row(page, side, kind, content, reading).toned(tone));
            }
        }
    }
    for (side, bad) in [("-", bad_old), ("+", bad_new)] {
        if bad > 0 {
            rows.push(
                Row::new("unreadable_cells")
                    .with("page", page.number())
                    .with("side", side)
                    .with("cells", bad)
                    .toned(Tone::Bad),
            );
        }
    }
    rows
}

fn change_row(
    page: PageNumber,
    side: &'static str,
    kind: BtreeKind,
    content: &Content,
    reading: Reading,
) -> Row {
    let shown = match kind {
        BtreeKind::TableInterior => Value::Absent,
        _ => values(&content.local, reading.encoding),
    };
    Row::new("cell_change")
        .with("page", page.number())
        .with("side", side)
        .with("left_child", content.left_child)
        .with("rowid", content.rowid)
        .with("payload", content.payload_bytes)
        .with("overflow", content.overflow)
        .with("values", shown)
}

/// Runs of bytes that differ; runs that nearly touch are one.
fn byte_differences(page: PageNumber, old: &[u8], new: &[u8]) -> Vec<Row> {
    let length = old.len().max(new.len());
    let differs = |at: usize| old.get(at) != new.get(at);
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for at in (0..length).filter(|&at| differs(at)) {
        match runs.last_mut() {
            Some((_, end)) if at < *end + RUN_GAP => *end = at + 1,
            _ => runs.push((at, at + 1)),
        }
    }
    let shown = |image: &[u8], (begin, end): (usize, usize)| {
        let bytes = image.get(begin..end.min(image.len())).unwrap_or_default();
        match bytes.get(..RUN_BYTES_SHOWN) {
            Some(head) if bytes.len() > RUN_BYTES_SHOWN => {
                Value::Rich(format!("{}...", hex(head)), json!(hex(bytes)))
            }
            _ => Value::from(hex(bytes)),
        }
    };
    let row = |run: (usize, usize)| {
        Row::new("bytes")
            .with("page", page.number())
            .with("offset", run.0)
            .with("length", run.1 - run.0)
            .with("before", shown(old, run))
            .with("after", shown(new, run))
    };
    runs.into_iter().map(row).collect()
}

const RUN_GAP: usize = 8;
const RUN_BYTES_SHOWN: usize = 16;
