//! The smaller files of a node: identity, checkpoint record, page hashes, received pages, deltas.

use std::borrow::Cow;
use std::path::Path;

use bytes::Bytes;
use wallaby::node::files::{Identity, Incoming, Manifest};
use wallaby::raft::StoredMembership;
use wallaby::raft::codec::decode_membership;
use wallaby::sqlite::{PageHashes, Record};
use wallaby::wal::{Delta, PageHash, PageNumber, Position, Stored};

use super::Shown;
use super::directory::read_hashes;
use super::history::Images;
use super::kind::Kind;
use super::output::{Printer, Row, Value, hex128};
use super::page;
use super::source::Failure;

/// All that such a file says about itself; its pages too if `all`.
pub(super) fn show(
    printer: &mut Printer<'_>,
    kind: Kind,
    path: &Path,
    bytes: &[u8],
    all: bool,
) -> Shown<()> {
    match kind {
        Kind::Checkpoint => match Record::decode(bytes, path) {
            Ok(record) => record_facts(printer, &record),
            Err(error) => printer.damage(error.to_string()),
        },
        Kind::Identity => match Identity::decode(bytes, path) {
            Ok(identity) => printer.facts(&identity_row(&identity)),
            Err(error) => printer.damage(error.to_string()),
        },
        Kind::Manifest => match Manifest::decode(bytes) {
            Ok(manifest) => manifest_facts(printer, &manifest),
            Err(error) => printer.damage(format!("{}: {error}", path.display())),
        },
        Kind::PageHashes => match read_hashes(path, None) {
            Some(Ok(hashes)) => hashes_facts(printer, &hashes, all),
            Some(Err(error)) => printer.damage(error),
            None => Err(Failure::new(format!("{} is gone", path.display())).into()),
        },
        Kind::Spool => spool(printer, path, all),
        _ => match Delta::decode(Bytes::copy_from_slice(bytes)) {
            Ok(delta) => {
                printer.facts(&delta_row(&delta))?;
                if all {
                    delta_pages(printer, &delta, &Images::new())
                } else {
                    Ok(())
                }
            }
            Err(error) => printer.damage(format!("{}: {error}", path.display())),
        },
    }
}

pub(super) fn identity_row(identity: &Identity) -> Row {
    Row::new("identity")
        .with("node", identity.name.clone())
        .with("raft_id", format!("{:x}", identity.raft_id))
        .with(
            "cluster",
            identity.cluster.map(|cluster| cluster.to_string()),
        )
        .with("drew_the_cluster_id", identity.founder)
}

pub(super) fn record_facts(printer: &mut Printer<'_>, record: &Record) -> Shown<()> {
    printer.facts(
        &Row::new("checkpoint")
            .with("applied", position(Some(record.applied)))
            .with("last_change", position(record.data))
            .with("page_size", record.page_size.bytes())
            .with("pages", record.page_count.0)
            .with("database_hash", hex128(record.hash.0))
            .with("file_bytes", record.stamp.bytes)
            .with(
                "file_modified",
                format!("{}.{:09}", record.stamp.modified.0, record.stamp.modified.1),
            )
            .with("file_inode", record.stamp.inode)
            .with("closed_in_order", record.is_closed)
            .with("wal_frames", record.overlay.map(|overlay| overlay.frames)),
    )?;
    match decode_membership(&record.membership) {
        Ok(membership) => members(printer, &membership),
        Err(error) => printer.damage(format!("the checkpoint record: {error}")),
    }
}

/// The members, a row each.
pub(super) fn members(printer: &mut Printer<'_>, membership: &StoredMembership) -> Shown<()> {
    let sets = membership.get_joint_config();
    for (id, member) in membership.nodes() {
        let votes = sets.iter().filter(|set| set.contains(id)).count();
        let vote = match votes {
            0 => "none",
            all if all == sets.len() => "yes",
            _ => "changing",
        };
        printer.row(
            Row::new("member")
                .with("raft_id", format!("{id:x}"))
                .with("name", member.name.clone())
                .with("role", format!("{:?}", member.role).to_lowercase())
                .with("vote", vote)
                .with("raft_address", member.raft_addr.clone())
                .with("http_address", member.http_addr.clone()),
        )?;
    }
    Ok(())
}

fn manifest_facts(printer: &mut Printer<'_>, manifest: &Manifest) -> Shown<()> {
    printer.facts(
        &Row::new("manifest")
            .with("applied", position(Some(manifest.applied)))
            .with("last_change", position(manifest.data))
            .with("page_size", manifest.page_size.bytes())
            .with("pages", manifest.page_count.0)
            .with("database_hash", hex128(manifest.hash.0)),
    )?;
    members(printer, &manifest.membership)
}

pub(super) fn hashes_facts(printer: &mut Printer<'_>, hashes: &PageHashes, all: bool) -> Shown<()> {
    printer.facts(
        &Row::new("page_hashes")
            .with("page_size", hashes.page_size().bytes())
            .with("pages", hashes.page_count().0)
            .with("sum", hex128(hashes.sum().0)),
    )?;
    if all {
        for page in (1..=hashes.page_count().0).filter_map(PageNumber::new) {
            let hash = hashes.get(page).unwrap_or_default();
            printer.row(
                Row::new("page_hash")
                    .with("page", page.number())
                    .with("hash", hex128(hash.0)),
            )?;
        }
    }
    Ok(())
}

/// Received pages.
pub(super) fn spool(printer: &mut Printer<'_>, path: &Path, all: bool) -> Shown<()> {
    let pages = match Incoming::read_only(path) {
        Ok(pages) => pages,
        Err(error) => return printer.damage(error.to_string()),
    };
    printer.facts(
        &Row::new("spool")
            .with("file", path.display().to_string())
            .with("page_size", pages.page_size().bytes())
            .with("pages_received", pages.contents().count()),
    )?;
    match pages.trailer() {
        Ok(manifest) => manifest_facts(printer, &manifest)?,
        Err(why) => printer.note(format!("it is not complete: {why}"))?,
    }
    if all {
        for (page, offset, hash) in pages.contents() {
            printer.row(
                Row::new("received")
                    .with("page", page.number())
                    .with("offset", offset)
                    .with("hash", hex128(hash.0)),
            )?;
        }
    }
    Ok(())
}

pub(super) fn delta_row(delta: &Delta) -> Row {
    let header = delta.header();
    Row::new("delta")
        .with("cluster", header.cluster.to_string())
        .with("origin", format!("{:x}", header.origin))
        .with("epoch", format!("{:x}", header.epoch))
        .with("sequence", header.sequence)
        .with("base", position(header.base))
        .with(
            "part",
            format!("{} of {}", header.part.number, header.part.of),
        )
        .with("page_size", header.page_size.bytes())
        .with("database_pages", header.page_count.0)
        .with(
            "hash_before",
            header.part.is_first().then(|| hex128(header.hash_before.0)),
        )
        .with(
            "hash_after",
            header.part.is_last().then(|| hex128(header.hash_after.0)),
        )
        .with("pages", delta.len())
        .with("bytes", delta.bytes().len())
}

/// What an entry says of its pages. What changed in a page is no image of it; perhaps that is among
/// those given.
pub(super) fn delta_pages(printer: &mut Printer<'_>, delta: &Delta, images: &Images) -> Shown<()> {
    let mut whole = delta.whole_pages();
    let mut numbers = delta.page_numbers();
    for entry in delta.page_table() {
        let encoding = match entry.stored {
            Stored::Raw => "raw",
            Stored::Zstd => "zstd",
            Stored::Patch => "patch",
        };
        for place in 0..entry.pages {
            let number = numbers.next().map_or(0, PageNumber::number);
            let page = if entry.stored == Stored::Patch {
                let page = PageNumber::new(number);
                page.and_then(|page| Some(Ok((page, Cow::Borrowed(&images.get(&page)?[..])))))
            } else {
                whole.next()
            };
            let (hash, holds) = match &page {
                Some(Ok((number, image))) => {
                    let hash = PageHash::of(*number, image);
                    (Value::from(hex128(hash.0)), page::glance(*number, image))
                }
                _ => (Value::Absent, None),
            };
            printer.row(
                Row::new("delta_page")
                    .with("page", number)
                    // Those of a block are stored together.
                    .with("stored_bytes", (place == 0).then_some(entry.bytes))
                    .with("encoding", encoding)
                    .with("hash", hash)
                    .with("holds", holds),
            )?;
            if let Some(Err(error)) = page {
                printer.damage(format!("page {number}: {error}"))?;
            }
        }
    }
    Ok(())
}

/// A place in the log: term, node and index.
pub(super) fn position(position: Option<Position>) -> Option<String> {
    position.map(|position| position.to_string())
}
