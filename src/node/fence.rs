//! The fence: which deltas take effect. Every node decides alike, from the log alone.
//!
//! A delta names its `base`, the data entry whose database it was executed on. If that is not the
//! last data entry that was accepted, the delta's pages belong to another history: the leader may
//! have executed it before a predecessor was refused. Writing them would corrupt the database, so
//! the entry becomes a no-op on every node. This file has no I/O; redo and apply both use it.

use crate::planted::{self, Bug};
use crate::wal::{DeltaHeader, Position};

/// What is to be done with a delta.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// Publish its pages, together with those of the stage if it is a last part.
    Accept,
    /// Nothing: it was executed on another database state, or parts of it are missing.
    Reject,
    /// Keep its pages until the last part arrives.
    Stage,
}

/// The parts of a large transaction that have arrived so far.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stage {
    origin: u64,
    epoch: u64,
    sequence: u64,
    of: u32,
    next: u32,
    term: u64,
    /// The entry before the first part; nothing durable may pass it while the stage is open.
    pub(crate) floor: Option<Position>,
}

/// The state of the fence after some prefix of the log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Fence {
    /// The last entry of any kind.
    pub(crate) last_applied: Option<Position>,
    /// The last data entry that was accepted.
    pub(crate) last_data: Option<Position>,
    /// The open stage.
    pub(crate) stage: Option<Stage>,
}

impl Fence {
    /// The state that a checkpoint record or a snapshot carries; no stage is open there.
    pub(crate) const fn at(applied: Option<Position>, data: Option<Position>) -> Self {
        Self {
            last_applied: applied,
            last_data: data,
            stage: None,
        }
    }

    /// Up to where everything is in the database: the last applied entry, or the one before the
    /// first part of an open stage.
    pub(crate) fn settled(&self) -> Option<Position> {
        self.stage.map_or(self.last_applied, |stage| stage.floor)
    }

    /// Takes note of an entry that carries no delta.
    pub(crate) fn pass(&mut self, position: Position) {
        self.drop_stage_before(position.term);
        self.last_applied = Some(position);
    }

    /// What to do with a delta; [`Fence::pass`] or [`Fence::judge`] is called once for each entry,
    /// in log order.
    pub(crate) fn judge(&mut self, header: &DeltaHeader, position: Position) -> Verdict {
        self.drop_stage_before(position.term);
        let continued = self.stage.filter(|stage| {
            (stage.origin, stage.epoch, stage.sequence)
                == (header.origin, header.epoch, header.sequence)
        });
        let floor = continued.map_or(self.last_applied, |stage| stage.floor);
        self.stage = None;
        let part = header.part;
        let in_order = match continued {
            Some(stage) => part.number == stage.next && part.of == stage.of,
            None => part.number == 1,
        };
        let based = header.base == self.last_data || planted::is(Bug::FenceIgnored);
        let verdict = if !based || !in_order {
            Verdict::Reject
        } else if part.number == part.of {
            self.last_data = Some(position);
            Verdict::Accept
        } else {
            self.stage = Some(Stage {
                origin: header.origin,
                epoch: header.epoch,
                sequence: header.sequence,
                of: part.of,
                next: part.number + 1,
                term: position.term,
                floor,
            });
            Verdict::Stage
        };
        self.last_applied = Some(position);
        verdict
    }

    /// A stage of an earlier term can never be completed: its leader is gone.
    fn drop_stage_before(&mut self, term: u64) {
        if self.stage.is_some_and(|stage| stage.term < term) {
            self.stage = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{ClusterId, DatabaseHash, PageCount, PageSize, Part};

    fn at(term: u64, index: u64) -> Position {
        Position {
            term,
            node: 1,
            index,
        }
    }

    fn delta(sequence: u64, base: Option<Position>, number: u32, of: u32) -> DeltaHeader {
        DeltaHeader {
            cluster: ClusterId(1),
            origin: 1,
            epoch: 9,
            sequence,
            base,
            page_size: PageSize::DEFAULT,
            page_count: PageCount(1),
            hash_before: DatabaseHash(0),
            hash_after: DatabaseHash(0),
            part: Part { number, of },
        }
    }

    #[test]
    fn a_delta_on_the_last_data_entry_is_accepted_whatever_lies_between() {
        let mut fence = Fence::default();
        assert_eq!(
            fence.judge(&delta(1, None, 1, 1), at(1, 2)),
            Verdict::Accept
        );
        fence.pass(at(2, 3));
        fence.pass(at(2, 4));
        assert_eq!(
            fence.judge(&delta(7, None, 1, 1), at(2, 5)),
            Verdict::Reject
        );
        assert_eq!(fence.last_data, Some(at(1, 2)));
        assert_eq!(
            fence.judge(&delta(2, Some(at(1, 2)), 1, 1), at(2, 6)),
            Verdict::Accept
        );
        assert_eq!(fence, Fence::at(Some(at(2, 6)), Some(at(2, 6))));
    }

    #[test]
    fn a_restarted_fence_decides_like_one_that_ran_on() {
        let mut fence = Fence::default();
        assert_eq!(
            fence.judge(&delta(1, None, 1, 1), at(1, 1)),
            Verdict::Accept
        );
        assert_eq!(
            fence.judge(&delta(5, None, 1, 1), at(1, 2)),
            Verdict::Reject
        );
        let mut restarted = Fence::at(fence.last_applied, fence.last_data);
        let next = delta(2, Some(at(1, 1)), 1, 1);
        assert_eq!(
            restarted.judge(&next, at(1, 3)),
            fence.judge(&next, at(1, 3))
        );
        assert_eq!(restarted, fence);
    }

    #[test]
    fn parts_are_accepted_only_complete_and_in_order() {
        let mut fence = Fence::at(Some(at(1, 4)), Some(at(1, 3)));
        let base = Some(at(1, 3));
        assert_eq!(fence.judge(&delta(2, base, 1, 3), at(1, 5)), Verdict::Stage);
        assert_eq!(fence.settled(), Some(at(1, 4)));
        fence.pass(at(1, 6));
        assert_eq!(fence.settled(), Some(at(1, 4)));
        assert_eq!(fence.judge(&delta(2, base, 2, 3), at(1, 7)), Verdict::Stage);
        assert_eq!(
            fence.judge(&delta(2, base, 3, 3), at(1, 8)),
            Verdict::Accept
        );
        assert_eq!(fence.settled(), Some(at(1, 8)));
        assert_eq!(
            fence.judge(&delta(3, Some(at(1, 8)), 2, 2), at(1, 9)),
            Verdict::Reject
        );
    }

    #[test]
    fn a_missing_part_rejects_the_last_one() {
        let mut fence = Fence::default();
        assert_eq!(fence.judge(&delta(1, None, 1, 3), at(1, 1)), Verdict::Stage);
        assert_eq!(
            fence.judge(&delta(1, None, 3, 3), at(1, 2)),
            Verdict::Reject
        );
        assert_eq!(fence.settled(), Some(at(1, 2)));
    }

    #[test]
    fn a_stage_is_dropped_by_another_sequence_or_a_higher_term() {
        let mut fence = Fence::default();
        assert_eq!(fence.judge(&delta(1, None, 1, 2), at(1, 1)), Verdict::Stage);
        assert_eq!(
            fence.judge(&delta(2, None, 1, 1), at(1, 2)),
            Verdict::Accept
        );
        assert_eq!(
            fence.judge(&delta(1, None, 2, 2), at(1, 3)),
            Verdict::Reject
        );
        let base = Some(at(1, 2));
        assert_eq!(fence.judge(&delta(3, base, 1, 2), at(1, 4)), Verdict::Stage);
        fence.pass(at(2, 5));
        assert_eq!(fence.settled(), Some(at(2, 5)));
        assert_eq!(
            fence.judge(&delta(3, base, 2, 2), at(2, 6)),
            Verdict::Reject
        );
    }
}
