//! Start-up: what is found in the log's directory, what it means, and what is done about it.
//!
//! A batch that was being written when the power went leaves anything behind: nothing, a part, some
//! sectors. It was never acknowledged and is cut off. The same bytes in the middle of the log mean
//! that something acknowledged is damaged, and cutting there would lose it. The two are told apart
//! by position alone, never by how the bytes look: each batch says what was durable before it, and
//! so does each segment header. [`TABLE`] is the whole decision.

use std::collections::VecDeque;
use std::sync::Arc;

use super::files::Files;
use super::format::{Frontier, SegmentHeader};
use super::segment::{Segment, SegmentName, TEMPORARY_NAME, remove_purged};
use super::table::Table;
use super::walk::{Found, Walk};
use super::{LogError, LogIdentity, LogOptions};
use crate::planted::{self, Bug};

/// What stands where the next batch would begin.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Here {
    /// A batch, every record of it sound and chained to the ones before.
    Batch,
    /// Zeros up to the end of the file.
    Blank,
    /// Anything else.
    Damage,
}

/// Whether a batch header further on in this segment says that this place was durable.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Later {
    Silent,
    Claims,
}

/// What the header of the next segment says about the end of this one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Next {
    /// This is the last segment.
    Absent,
    /// It ends here, with this chain.
    EndsHere,
    /// It ends elsewhere, or with another chain.
    EndsElsewhere,
}

/// What is done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// Take the batch and look behind it.
    Take,
    /// The segment ends here.
    End,
    /// A batch that was never acknowledged: zeros over it, and the log ends here.
    Cut,
    /// Something acknowledged is damaged: refuse to start.
    Refuse,
}

/// The decision. `None` in the first three columns = whatever is there.
type Line = (Option<Here>, Option<Later>, Option<Next>, Verdict);
const TABLE: [Line; 8] = [
    // A segment goes on until the next one says it ended.
    (Some(Here::Batch), None, Some(Next::Absent), Verdict::Take),
    (
        Some(Here::Batch),
        None,
        Some(Next::EndsElsewhere),
        Verdict::Take,
    ),
    // A batch behind the end of a segment: two histories.
    (
        Some(Here::Batch),
        None,
        Some(Next::EndsHere),
        Verdict::Refuse,
    ),
    // The end of the log, clean or torn.
    (
        Some(Here::Blank),
        Some(Later::Silent),
        Some(Next::Absent),
        Verdict::End,
    ),
    (
        Some(Here::Damage),
        Some(Later::Silent),
        Some(Next::Absent),
        Verdict::Cut,
    ),
    // The end that the next segment knows: whatever lies behind it was never part of the log.
    (
        None,
        Some(Later::Silent),
        Some(Next::EndsHere),
        Verdict::End,
    ),
    // The next segment knows of more than can be read.
    (
        None,
        Some(Later::Silent),
        Some(Next::EndsElsewhere),
        Verdict::Refuse,
    ),
    // A later batch was written when this place was durable.
    (None, Some(Later::Claims), None, Verdict::Refuse),
];

/// The first line that applies. A batch is asked for first: its lines say nothing of later ones.
pub(super) fn verdict(here: Here, later: Later, next: Next) -> Verdict {
    if planted::is(Bug::CutAtFirstDamage) && here == Here::Damage {
        return Verdict::Cut;
    }
    let applies = |line: &&Line| {
        line.0.is_none_or(|wanted| wanted == here)
            && line.1.is_none_or(|wanted| wanted == later)
            && line.2.is_none_or(|wanted| wanted == next)
    };
    TABLE
        .iter()
        .find(applies)
        .map_or(Verdict::Refuse, |line| line.3)
}

/// The log as recovered: ready to be read and appended to.
pub(super) struct Recovered {
    pub(super) table: Table,
    pub(super) segments: VecDeque<Segment>,
}

/// Opens the log in a directory, or creates it. Doing it twice is doing it once.
pub(super) fn recover(
    files: &Arc<dyn Files>,
    identity: LogIdentity,
    options: &LogOptions,
) -> Result<Recovered, LogError> {
    let names = list(files.as_ref())?;
    // A name that was seen may not be durable yet: the process may have died before its sync.
    let synced = files.sync_dir();
    synced.map_err(|source| directory("sync", files.as_ref(), source))?;
    let mut found = Vec::new();
    for name in names {
        found.push(Found::open(files, name, identity)?);
    }
    if found.is_empty() {
        return create(files, identity, options);
    }
    let mut walk = Walk::new(&found[0], options);
    for position in 0..found.len() {
        let next = found.get(position + 1).map(|next| next.header.clone());
        walk.segment(&found[position], next.as_ref(), options)?;
    }
    walk.check_beginning(&found[0])?;
    let purged = walk.table.frontier.purged;
    remove_purged(files.as_ref(), &mut walk.segments, purged)?;
    Ok(Recovered {
        table: walk.table,
        segments: walk.segments,
    })
}

fn create(
    files: &Arc<dyn Files>,
    identity: LogIdentity,
    options: &LogOptions,
) -> Result<Recovered, LogError> {
    let frontier = Frontier::default();
    let header = SegmentHeader {
        identity,
        number: 1,
        first_index: 0,
        previous_end: 0,
        previous_chain: 0,
        frontier,
    };
    let first = Segment::create(files, &header, options.segment_bytes)?;
    let table = Table::new(frontier, options.cache_bytes_max);
    Ok(Recovered {
        table,
        segments: VecDeque::from([first]),
    })
}

/// The segments in order. A temporary file is removed: nothing in it was ever part of the log.
fn list(files: &dyn Files) -> Result<Vec<SegmentName>, LogError> {
    let all = files
        .list()
        .map_err(|source| directory("list", files, source))?;
    let mut names: Vec<SegmentName> = all.iter().filter_map(|n| SegmentName::parse(n)).collect();
    names.sort_unstable();
    if all.iter().any(|name| name == TEMPORARY_NAME) {
        let removed = files.remove(TEMPORARY_NAME);
        removed.map_err(|source| directory("remove a temporary file in", files, source))?;
    }
    for pair in names.windows(2) {
        // Names are given and taken away one at a time, each made durable before the next.
        if pair[0].number.checked_add(1) != Some(pair[1].number) {
            let file = files.path(&pair[1].text());
            let what = "the segment before it is missing, or there twice";
            return Err(LogError::Corrupt {
                what,
                file,
                offset: 0,
            });
        }
    }
    Ok(names)
}

fn directory(action: &'static str, files: &dyn Files, source: std::io::Error) -> LogError {
    LogError::Io {
        action,
        file: files.path(""),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: [Here; 3] = [Here::Batch, Here::Blank, Here::Damage];
    const LATER: [Later; 2] = [Later::Silent, Later::Claims];
    const NEXT: [Next; 3] = [Next::Absent, Next::EndsHere, Next::EndsElsewhere];

    fn combinations() -> impl Iterator<Item = (Here, Later, Next)> {
        HERE.into_iter().flat_map(|here| {
            LATER
                .into_iter()
                .flat_map(move |later| NEXT.map(|next| (here, later, next)))
        })
    }

    /// Every combination, with the reason written as a rule that knows nothing of the table.
    #[test]
    fn every_combination_of_findings_has_its_verdict() {
        let mut seen = 0;
        for (here, later, next) in combinations() {
            let more_was_durable = match next {
                Next::Absent | Next::EndsHere => later == Later::Claims,
                Next::EndsElsewhere => true,
            };
            let expected = match here {
                Here::Batch if next == Next::EndsHere => Verdict::Refuse,
                Here::Batch => Verdict::Take,
                _ if more_was_durable => Verdict::Refuse,
                Here::Blank => Verdict::End,
                Here::Damage if next == Next::EndsHere => Verdict::End,
                Here::Damage => Verdict::Cut,
            };
            assert_eq!(
                verdict(here, later, next),
                expected,
                "{here:?} {later:?} {next:?}"
            );
            seen += 1;
        }
        assert_eq!(seen, 18);
    }

    #[test]
    fn every_line_of_the_table_decides_something() {
        for (position, line) in TABLE.iter().enumerate() {
            let decides = combinations().any(|(here, later, next)| {
                let applies = |line: &Line| {
                    line.0.is_none_or(|wanted| wanted == here)
                        && line.1.is_none_or(|wanted| wanted == later)
                        && line.2.is_none_or(|wanted| wanted == next)
                };
                TABLE.iter().position(applies) == Some(position)
            });
            assert!(decides, "line {position} is dead: {line:?}");
        }
    }

    #[test]
    fn a_cut_happens_only_where_nothing_claims_more() {
        for (here, later, next) in combinations() {
            if verdict(here, later, next) == Verdict::Cut {
                assert_eq!(
                    (here, later, next),
                    (Here::Damage, Later::Silent, Next::Absent)
                );
            }
        }
    }
}
