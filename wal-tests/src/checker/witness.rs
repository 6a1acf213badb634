//! The index-witness checker: puts all operations into the order that the server says they have,
//! and looks whether that order can be true. Linear time, but for sorting.
//!
//! Verified, of operations with a row in the journal and of all reads:
//!
//! * An acknowledged write is in the journal, once, at the place that it was told; a refused one is
//!   not; one of unknown fate is there at most once; nothing else is there, and no place is empty.
//! * The index in the log that writes were told never falls from one place to the next.
//! * Everything replayed in this order on a model gives the answers that clients were given.
//! * Real time: what was over before something else began has an earlier place. That is asked of
//!   writes, and of reads at the levels linearizable and strong. No read of any level saw a write
//!   that began only after the read was over.
//! * A read that was asked with the index of an earlier write saw that write.
//! * On one node, from one start to the next, no later read of level none saw less.
//!
//! Not verified: writes without a row in the journal, and reads of what they write; answers of writes of unknown fate; how old
//! the data of levels none and weak is; when a refused write might have been done; whether an
//! answer came in reasonable time. The order is the server's: a lie about it is found only where
//! it contradicts results or real time, which is why the checkers in [`super::register`] and
//! [`super::append`] do without it. What was never acknowledged proves nothing: see the counts.

use std::collections::{HashMap, HashSet};

use crate::history::{Action, Answer, Fate, Level, Model, Operation, Reach, Thing};

/// A contradiction. Operations are named by their numbers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Violation {
    /// An operation is in the journal twice.
    Duplicate(u64),
    /// An operation saw a write that had not begun when it was over.
    FromTheFuture(u64),
    /// A row in the journal that nobody asked for.
    Invented(u64),
    /// The index of this write is smaller than that of the one before.
    IndexFell(u64),
    /// An acknowledged write is not in the journal.
    Lost(u64),
    /// An acknowledged write is at another place than it was told.
    Misplaced(u64),
    /// A place in the journal is empty.
    Missing(u64),
    /// A refused write is in the journal.
    Refused(u64),
    /// A later read on one node saw less.
    SawLess(u64),
    /// An operation is placed before one that was over when it began.
    Stale(u64),
    /// An operation was answered something else than the model says.
    WrongAnswer(u64, Option<Answer>),
}

/// What was checked, so that nobody takes nothing for a proof.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Checked {
    /// Acknowledged writes replayed.
    pub writes: usize,
    /// Writes of unknown fate that turned out to be done.
    pub unknown_done: usize,
    /// Reads at a level that promises the newest.
    pub current_reads: usize,
    /// Other reads.
    pub other_reads: usize,
}

/// All violations; none is what one wants to see. `journal` is what the database holds at the end:
/// number and operation, in ascending order.
#[must_use]
pub fn check(operations: &[Operation], journal: &[(u64, u64)]) -> (Vec<Violation>, Checked) {
    let mut violations = Vec::new();
    let places = places(operations, journal, &mut violations);
    let mut writes: Vec<(u64, &Operation)> = Vec::new();
    let mut reads: Vec<(u64, &Operation)> = Vec::new();
    for operation in operations {
        match operation.reach {
            Reach::Write { journalled: true } => {
                writes.extend(places.get(&operation.id).map(|&place| (place, operation)));
            }
            Reach::Read(_) if operation.is_acknowledged() => {
                reads.extend(operation.place.map(|place| (place, operation)));
            }
            Reach::Write { journalled: false } | Reach::Read(_) => {}
        }
    }
    writes.sort_by_key(|(place, _)| *place);
    reads.sort_by_key(|(place, _)| *place);
    let checked = Checked {
        writes: writes
            .iter()
            .filter(|(_, write)| write.is_acknowledged())
            .count(),
        unknown_done: writes
            .iter()
            .filter(|(_, write)| !write.is_acknowledged())
            .count(),
        current_reads: reads.iter().filter(|(_, read)| read.is_current()).count(),
        other_reads: reads.iter().filter(|(_, read)| !read.is_current()).count(),
    };
    check_indexes(&writes, &mut violations);
    replay(&writes, &reads, &unordered(operations), &mut violations);
    check_real_time(&writes, &reads, &mut violations);
    check_sessions(&reads, &mut violations);
    (violations, checked)
}

/// Where each operation is in the journal.
fn places(
    operations: &[Operation],
    journal: &[(u64, u64)],
    violations: &mut Vec<Violation>,
) -> HashMap<u64, u64> {
    let mut places = HashMap::new();
    for (expected, &(place, id)) in (1..).zip(journal) {
        if place != expected {
            violations.push(Violation::Missing(expected));
            break;
        }
        if places.insert(id, place).is_some() {
            violations.push(Violation::Duplicate(id));
        }
    }
    let mut known = 0;
    for operation in operations
        .iter()
        .filter(|operation| operation.is_journalled())
    {
        let found = places.get(&operation.id).copied();
        known += usize::from(found.is_some());
        match (operation.fate, found) {
            (Fate::Acknowledged, None) => violations.push(Violation::Lost(operation.id)),
            (Fate::Acknowledged, place) if place != operation.place => {
                violations.push(Violation::Misplaced(operation.id));
            }
            (Fate::Refused, Some(_)) => violations.push(Violation::Refused(operation.id)),
            _ => {}
        }
    }
    if known < places.len() {
        let asked: HashSet<u64> = operations.iter().map(|operation| operation.id).collect();
        let invented = places.keys().filter(|id| !asked.contains(id));
        violations.extend(invented.map(|&id| Violation::Invented(id)));
    }
    places
}

/// The index that writes were told must not fall from one place to the next. Writes of one group
/// have the same.
fn check_indexes(writes: &[(u64, &Operation)], violations: &mut Vec<Violation>) {
    let mut highest = 0;
    for (_, write) in writes.iter().filter(|(_, write)| write.is_acknowledged()) {
        let index = write.index.unwrap_or(0);
        if index < highest || index == 0 {
            violations.push(Violation::IndexFell(write.id));
        }
        highest = highest.max(index);
    }
}

/// What is written without rows in the journal: nobody knows when.
fn unordered(operations: &[Operation]) -> HashSet<Thing> {
    let bare = Reach::Write { journalled: false };
    let bare = operations
        .iter()
        .filter(|operation| operation.reach == bare);
    bare.flat_map(|operation| operation.actions.iter().map(Action::thing))
        .collect()
}

/// Does everything again, in the order of the places, and compares the answers.
fn replay(
    writes: &[(u64, &Operation)],
    reads: &[(u64, &Operation)],
    unordered: &HashSet<Thing>,
    violations: &mut Vec<Violation>,
) {
    let mut model = Model::default();
    let mut reads = reads.iter().peekable();
    let mut compare = |model: &mut Model, operation: &Operation| {
        for (at, action) in operation.actions.iter().enumerate() {
            if unordered.contains(&action.thing()) {
                continue;
            }
            let expected = model.apply(action);
            let answered = operation.answers.get(at);
            if operation.is_acknowledged() && (expected.is_none() || answered != expected.as_ref())
            {
                violations.push(Violation::WrongAnswer(operation.id, expected));
            }
        }
    };
    for (place, write) in writes {
        while let Some((_, read)) = reads.next_if(|(seen, _)| seen < place) {
            compare(&mut model, read);
        }
        compare(&mut model, write);
    }
    for (_, read) in reads {
        compare(&mut model, read);
    }
}

fn check_real_time(
    writes: &[(u64, &Operation)],
    reads: &[(u64, &Operation)],
    violations: &mut Vec<Violation>,
) {
    // The latest moment at which any write up to here began.
    let mut latest_begin = 0;
    let mut begins = Vec::with_capacity(writes.len());
    for (_, write) in writes {
        if write.end() < latest_begin {
            violations.push(Violation::Stale(write.id));
        }
        latest_begin = latest_begin.max(write.begun);
        begins.push(latest_begin);
    }
    // The earliest moment at which any write from here on was over.
    let mut ends = vec![u64::MAX; writes.len() + 1];
    for at in (0..writes.len()).rev() {
        ends[at] = ends[at + 1].min(writes[at].1.end());
    }
    for (seen, read) in reads {
        let after = writes.partition_point(|(place, _)| place <= seen);
        if after > 0 && begins[after - 1] > read.ended {
            violations.push(Violation::FromTheFuture(read.id));
        }
        if read.is_current() && ends[after] < read.begun {
            violations.push(Violation::Stale(read.id));
        }
    }
    let current = reads.iter().filter(|(_, read)| read.is_current());
    let fell = saw_less(current.copied().collect());
    violations.extend(fell.into_iter().map(Violation::Stale));
}

/// Reads that saw less than one that was over when they began.
fn saw_less(mut reads: Vec<(u64, &Operation)>) -> Vec<u64> {
    let mut by_end = reads.clone();
    by_end.sort_by_key(|(_, read)| read.ended);
    reads.sort_by_key(|(_, read)| read.begun);
    let mut ended = by_end.into_iter().peekable();
    let mut highest = 0;
    let mut found = Vec::new();
    for (seen, read) in reads {
        while let Some((before, _)) = ended.next_if(|(_, other)| other.ended < read.begun) {
            highest = highest.max(before);
        }
        if seen < highest {
            found.push(read.id);
        }
    }
    found
}

/// What was promised to those who ask for less than the newest.
fn check_sessions(reads: &[(u64, &Operation)], violations: &mut Vec<Violation>) {
    let mut by_node: HashMap<(u8, u32), Vec<(u64, &Operation)>> = HashMap::new();
    for &(seen, read) in reads {
        if seen < read.floor {
            violations.push(Violation::Stale(read.id));
        }
        if read.reach == Reach::Read(Level::None) {
            let on_node = by_node.entry((read.node, read.start)).or_default();
            on_node.push((seen, read));
        }
    }
    for reads in by_node.into_values() {
        violations.extend(saw_less(reads).into_iter().map(Violation::SawLess));
    }
}
