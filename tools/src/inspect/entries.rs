//! The log shown: segments, records, entries.

use bytes::Bytes;
use wallaby::node::files::Verdict as Effect;
use wallaby::raft::Vote;
use wallaby::raft::log::{Finding, LogIdentity, LogRecord, Soundness, Verdict};
use wallaby::wal::{Delta, PageHash, PageNumber};

use super::Shown;
use super::directory::Directory;
use super::history::{self, Images};
use super::log::{Content, Log, LogEntry, Segment, header_fault_text, verdict_text};
use super::output::{Printer, Row, Tone, hex, hex128};
use super::page;
use super::small::{delta_pages, delta_row, members, position};
use super::source::Failure;

pub(super) fn summary(printer: &mut Printer<'_>, log: &Log) -> Shown<()> {
    let run = log.run();
    let deltas = log.entries.values().filter(|entry| entry.delta().is_some());
    let bytes: u64 = log
        .entries
        .values()
        .map(|entry| entry.payload_bytes() as u64)
        .sum();
    let last = log.entries.last_key_value();
    printer.facts(
        &Row::new("log")
            .with("segments", log.segments.len())
            .with("first_entry", run.map(|run| run.0))
            .with("last_entry", position(last.map(|last| last.1.position)))
            .with("deltas", deltas.count())
            .with("payload_bytes", bytes)
            .with("replaced_entries", log.replaced.len())
            .with("purged", position(log.purged))
            .with("committed", position(log.committed))
            .with("vote", log.vote.map(vote_text)),
    )?;
    for note in &log.notes {
        printer.note(note)?;
    }
    for damage in &log.damage {
        printer.damage(damage)?;
    }
    Ok(())
}

/// Every entry that can be read, also those purged and replaced.
pub(super) fn list(printer: &mut Printer<'_>, log: &Log) -> Shown<()> {
    for entry in log.entries.values() {
        let state = if Some(entry.position.index) <= log.purged.map(|purged| purged.index) {
            "purged"
        } else if Some(entry.position.index) <= log.committed.map(|committed| committed.index) {
            "committed"
        } else {
            "appended"
        };
        printer.row(entry_row(log, entry, state))?;
    }
    for entry in &log.replaced {
        printer.row(entry_row(log, entry, "replaced").toned(Tone::Faint))?;
    }
    for damage in &log.damage {
        printer.damage(damage)?;
    }
    Ok(())
}

fn entry_row(log: &Log, entry: &LogEntry, state: &str) -> Row {
    let (what, tone) = match &entry.content {
        Content::Blank => ("blank", Tone::Faint),
        Content::Delta(_) => ("delta", Tone::Plain),
        Content::Mark => ("mark", Tone::Faint),
        Content::Membership => ("membership", Tone::Plain),
        Content::Unreadable(_) => ("unreadable", Tone::Bad),
    };
    let delta = entry.delta().map(|delta| delta.header);
    let part = delta.map(|header| format!("{}/{}", header.part.number, header.part.of));
    let segment = log
        .segments
        .get(entry.segment)
        .and_then(|segment| segment.name);
    Row::new("entry")
        .with("index", entry.position.index)
        .with("term", entry.position.term)
        .with("leader", format!("{:x}", entry.position.node))
        .with("content", what)
        .with("state", state)
        .with("effect", effect_text(entry))
        .with("pages", entry.delta().map(|delta| delta.pages.len()))
        .with(
            "bytes",
            (entry.payload_bytes() > 0).then_some(entry.payload_bytes()),
        )
        .with("part", part)
        .with(
            "base",
            delta.and_then(|header| header.base).map(|base| base.index),
        )
        .with("database_pages", delta.map(|header| header.page_count.0))
        .with(
            "hash_after",
            delta
                .filter(|header| header.part.is_last())
                .map(|header| hex128(header.hash_after.0)),
        )
        .with("segment", segment.map(|name| name.number))
        .with("offset", entry.offset)
        .toned(tone)
}

fn effect_text(entry: &LogEntry) -> Option<&'static str> {
    entry.effect.map(|effect| match effect {
        Effect::Accept => "applied",
        Effect::Reject => "rejected",
        Effect::Stage => "staged",
    })
}

/// One entry with its pages, or with one of them; what pages are of which it tells what changed in
/// them, only a data directory knows.
pub(super) fn show(
    printer: &mut Printer<'_>,
    (log, directory): (&Log, Option<&Directory>),
    index: u64,
    page: Option<PageNumber>,
) -> Shown<()> {
    let Some(entry) = log.entries.get(&index) else {
        let there = log.run().map_or_else(
            || "there are none".to_owned(),
            |(first, last)| format!("the log here has {first} to {last}"),
        );
        return Err(Failure::new(format!("there is no entry {index}: {there}")).into());
    };
    let segment = log.segments.get(entry.segment).map(Segment::label);
    let same = |replaced: &&LogEntry| replaced.position.index == index;
    printer.facts(
        &Row::new("entry")
            .with("position", position(Some(entry.position)))
            .with("segment", segment)
            .with("offset", entry.offset)
            .with("effect", effect_text(entry))
            .with("replaced_before", log.replaced.iter().filter(same).count()),
    )?;
    match &entry.content {
        Content::Blank => printer.note("a blank entry: a new leader appends one"),
        Content::Mark => printer.note("a mark: a strong read appends one"),
        Content::Membership => membership(printer, log, entry),
        Content::Unreadable(error) => printer.damage(error.to_string()),
        Content::Delta(_) => {
            let delta = Delta::decode(log.payload(entry)?);
            let delta = delta.map_err(|error| Failure::new(error.to_string()))?;
            let images = directory.map(|directory| history::images_of(directory, index));
            let images = images.transpose()?.unwrap_or_default();
            match page {
                None => {
                    printer.facts(&delta_row(&delta))?;
                    delta_pages(printer, &delta, &images)
                }
                Some(page) => one_page(printer, &delta, &images, page),
            }
        }
    }
}

fn one_page(
    printer: &mut Printer<'_>,
    delta: &Delta,
    images: &Images,
    page: PageNumber,
) -> Shown<()> {
    if let Some(image) = images.get(&page) {
        return page::show(printer, page, image, None);
    }
    for found in delta.whole_pages() {
        match found {
            Ok((number, image)) if number == page => {
                return page::show(printer, page, &image, None);
            }
            Ok(_) => {}
            Err(error) => printer.damage(error.to_string())?,
        }
    }
    if delta.page_numbers().any(|number| number == page) {
        let text = format!(
            "the entry tells what changed in page {page}, not what the page is; that is known only \
             if a data directory is given that has what the page was before"
        );
        return Err(Failure::new(text).into());
    }
    Err(Failure::new(format!("the entry has no page {page}")).into())
}

fn membership(printer: &mut Printer<'_>, log: &Log, entry: &LogEntry) -> Shown<()> {
    let Some(segment) = log.segments.get(entry.segment) else {
        return Ok(());
    };
    let identity = segment.facts.as_ref().ok().map(|facts| facts.identity);
    for finding in segment.survey(identity, None)?.into_iter().flatten() {
        if let Finding::Record {
            offset,
            record: Ok(LogRecord::Membership(_, stored)),
            ..
        } = finding
            && offset == entry.offset
        {
            members(printer, &stored)?;
        }
    }
    Ok(())
}

/// What the header of a segment says.
pub(super) fn segment_summary(
    printer: &mut Printer<'_>,
    segment: &Segment,
    whose: Option<LogIdentity>,
) -> Shown<()> {
    let (mut batches, mut records, mut entries) = (0_u64, 0_u64, 0_u64);
    let mut ends = None;
    for finding in segment.survey(whose, None)?.into_iter().flatten() {
        match finding {
            Finding::Batch { .. } => batches += 1,
            Finding::Record { record, .. } => {
                records += 1;
                entries += u64::from(matches!(
                    record,
                    Ok(LogRecord::Blank(_) | LogRecord::Membership(..) | LogRecord::Payload(..))
                ));
            }
            Finding::Blank { offset, .. } | Finding::Damage { offset, .. } => ends = Some(offset),
        }
    }
    let facts = segment.facts.as_ref().ok();
    printer.facts(
        &Row::new("segment")
            .with("file", segment.source.path().display().to_string())
            .with("bytes", segment.source.bytes()?)
            .with("number", facts.map(|facts| facts.number))
            .with(
                "cluster",
                facts.map(|facts| facts.identity.cluster.to_string()),
            )
            .with(
                "node",
                facts.map(|facts| format!("{:x}", facts.identity.node)),
            )
            .with("first_index", facts.map(|facts| facts.first_index))
            .with("last_before", facts.and_then(|facts| position(facts.last)))
            .with(
                "vote_before",
                facts.and_then(|facts| facts.vote.map(vote_text)),
            )
            .with(
                "purged_before",
                facts.and_then(|facts| position(facts.purged)),
            )
            .with(
                "committed_before",
                facts.and_then(|facts| position(facts.committed)),
            )
            .with("batches", batches)
            .with("records", records)
            .with("entries", entries)
            .with("ends_at", ends),
    )?;
    faults(printer, segment, whose)
}

/// What is wrong with a segment, by itself.
fn faults(printer: &mut Printer<'_>, segment: &Segment, whose: Option<LogIdentity>) -> Shown<()> {
    if let Err(fault) = &segment.facts {
        printer.damage(header_fault_text(*fault))?;
    }
    for finding in segment.survey(whose, None)?.into_iter().flatten() {
        match finding {
            Finding::Batch {
                offset, verdict, ..
            }
            | Finding::Damage {
                offset, verdict, ..
            }
            | Finding::Blank {
                offset, verdict, ..
            } => {
                let what = format!("offset {offset}: {}", verdict_text(verdict));
                match verdict {
                    Verdict::Take | Verdict::End => {}
                    Verdict::Cut => printer.note(what)?,
                    Verdict::Refuse => printer.damage(what)?,
                }
            }
            Finding::Record {
                offset,
                record: Err(error),
                ..
            } => {
                printer.damage(format!("the record at offset {offset}: {error}"))?;
            }
            Finding::Record { .. } => {}
        }
    }
    Ok(())
}

/// Everything in a segment, in order.
pub(super) fn segment_list(
    printer: &mut Printer<'_>,
    segment: &Segment,
    whose: Option<LogIdentity>,
) -> Shown<()> {
    for finding in segment.survey(whose, None)?.into_iter().flatten() {
        printer.row(finding_row(&finding))?;
    }
    faults(printer, segment, whose)
}

fn finding_row(finding: &Finding) -> Row {
    let row = |offset: u64, bytes: u64, what: &str, says: String, state: &str| {
        Row::new("record")
            .with("offset", offset)
            .with("bytes", bytes)
            .with("what", what)
            .with("says", says)
            .with("state", state)
    };
    match finding {
        Finding::Batch {
            offset,
            bytes,
            records,
            verdict,
        } => row(
            *offset,
            *bytes,
            "batch",
            format!("{records} records"),
            verdict_text(*verdict),
        )
        .toned(if *verdict == Verdict::Take {
            Tone::Faint
        } else {
            Tone::Bad
        }),
        Finding::Record {
            offset,
            bytes,
            soundness,
            record,
        } => {
            let (state, tone) = match soundness {
                Soundness::Sound => ("sound", Tone::Plain),
                Soundness::Damaged => ("wrong checksum", Tone::Bad),
                Soundness::Unverified => ("not verified", Tone::Plain),
            };
            let (what, says) = match record {
                Ok(record) => record_text(record),
                Err(error) => ("unreadable", error.to_string()),
            };
            row(*offset, *bytes, what, says, state).toned(tone)
        }
        Finding::Damage {
            offset,
            bytes,
            verdict,
        } => row(
            *offset,
            *bytes,
            "damage",
            String::new(),
            verdict_text(*verdict),
        )
        .toned(Tone::Bad),
        Finding::Blank {
            offset,
            bytes,
            verdict,
        } => row(
            *offset,
            *bytes,
            "blank",
            String::new(),
            verdict_text(*verdict),
        )
        .toned(Tone::Faint),
    }
}

fn record_text(record: &LogRecord) -> (&'static str, String) {
    match record {
        LogRecord::Blank(position) => ("blank", position.to_string()),
        LogRecord::Membership(position, stored) => {
            let names = stored.nodes().map(|(_, member)| member.name.clone());
            let names: Vec<String> = names.collect();
            ("membership", format!("{position}: {}", names.join(", ")))
        }
        LogRecord::Payload(position, payload) if payload.is_empty() => {
            ("mark", position.to_string())
        }
        LogRecord::Payload(position, payload) => {
            ("delta", format!("{position}: {}", delta_text(payload)))
        }
        LogRecord::Vote(vote) => ("vote", vote_text(*vote)),
        LogRecord::TruncateAfter(None) => ("truncate", "everything".to_owned()),
        LogRecord::TruncateAfter(Some(kept)) => ("truncate", format!("after {kept}")),
        LogRecord::Purge(position) => ("purge", format!("up to {position}")),
        LogRecord::Committed(position) => ("committed", format!("up to {position}")),
    }
}

fn delta_text(payload: &Bytes) -> String {
    match Delta::decode(payload.clone()) {
        Ok(delta) => format!("{} pages, {} bytes", delta.len(), payload.len()),
        Err(error) => error.to_string(),
    }
}

/// The record at an offset of a segment.
pub(super) fn show_record(
    printer: &mut Printer<'_>,
    segment: &Segment,
    whose: Option<LogIdentity>,
    wanted: u64,
) -> Shown<()> {
    for finding in segment.survey(whose, None)?.into_iter().flatten() {
        let (Finding::Batch { offset, .. }
        | Finding::Record { offset, .. }
        | Finding::Damage { offset, .. }
        | Finding::Blank { offset, .. }) = finding;
        if offset != wanted {
            continue;
        }
        printer.facts(&finding_row(&finding))?;
        let bytes = segment.source.read(offset, RECORD_BYTES_SHOWN)?;
        printer.facts(
            &Row::new("bytes")
                .with("offset", offset)
                .with("first", hex(&bytes)),
        )?;
        match finding {
            Finding::Record {
                record: Ok(LogRecord::Membership(_, stored)),
                ..
            } => {
                members(printer, &stored)?;
            }
            Finding::Record {
                record: Ok(LogRecord::Payload(_, payload)),
                ..
            } if !payload.is_empty() => match Delta::decode(payload) {
                Ok(delta) => {
                    printer.facts(&delta_row(&delta))?;
                    delta_pages(printer, &delta, &Images::new())?;
                }
                Err(error) => printer.damage(error.to_string())?,
            },
            Finding::Record {
                soundness: Soundness::Damaged,
                ..
            } => {
                printer.damage(format!("the record at offset {offset}: wrong checksum"))?;
            }
            _ => {}
        }
        return Ok(());
    }
    let text = format!("nothing begins at offset {wanted}; `list` says what is where");
    Err(Failure::new(text).into())
}

pub(super) fn vote_text(vote: Vote) -> String {
    let granted = if vote.committed {
        "granted by a quorum"
    } else {
        "asked for"
    };
    let leader = vote.leader_id;
    format!("term {}, node {:x}, {granted}", leader.term, leader.node_id)
}

/// Which entry an image of a page is from, among those given.
pub(super) fn writer_of(images: &[(u64, PageHash)], hash: PageHash) -> Option<u64> {
    let mut same = images.iter().rev().filter(|image| image.1 == hash);
    same.next().map(|image| image.0)
}

const RECORD_BYTES_SHOWN: usize = 64;
