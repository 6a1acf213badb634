//! Whether the next group of writes is held for clients that are about to come back.
//!
//! Clients that write again as soon as they are answered fall into two halves that take turns:
//! while the group of one is in flight the other gathers, and everybody waits for two flights
//! instead of one. Held until the answered ones are back, a group has them all. Nobody knows who
//! comes back and when, so it is tried, and done again where it pays: a moment of holding costs
//! each write that waits already that moment, and saves each that arrives meanwhile the flight
//! which it would have waited for. Where it does not pay, as with clients that are far away or
//! write at times of their own, it is tried ever more rarely.

use std::time::Duration;

/// What the last groups have taught.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    /// Writes that were answered or waited when the last group ended: if all clients write again,
    /// as many come together.
    expected: usize,
    /// How long the last group took, from its beginning to its answers.
    flight: Duration,
    /// How many writes the next group is held for; 0: it is not.
    awaited: usize,
    /// Groups that are not held before it is tried again.
    rest: u32,
    /// The length of the last such rest.
    rest_last: u32,
}

impl Gathering {
    /// A group has ended after `flight`: its writes and those that wait are `expected`.
    pub(super) fn group_ended(&mut self, expected: usize, flight: Duration) {
        self.expected = expected;
        self.flight = flight;
    }

    /// How long at most the next group is held, of which so many writes are `waiting`. Called once
    /// for each group; `ended` must follow if it is held.
    pub(super) fn begin(&mut self, waiting: usize) -> Option<Duration> {
        if waiting >= self.expected {
            return None;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return None;
        }
        self.awaited = self.expected;
        Some(self.flight.min(HELD_MAX))
    }

    /// Whether a group is held, and for more than so many writes that are `waiting`.
    pub(super) fn misses(&self, waiting: usize) -> bool {
        waiting < self.awaited
    }

    /// Whether a group is held, and has what it is held for.
    pub(super) fn is_complete(&self, waiting: usize) -> bool {
        self.awaited > 0 && waiting >= self.awaited
    }

    /// The group was held for a time: `waiting` writes paid for it, `arrived` ones gained.
    pub(super) fn ended(&mut self, waiting: usize, arrived: usize, held: Duration) {
        self.awaited = 0;
        let total = |each: Duration, count: usize| each.as_nanos() * count as u128;
        if total(self.flight, arrived) >= total(held, waiting) {
            self.rest_last = 0;
        } else {
            self.rest_last = (self.rest_last * 2).clamp(1, REST_MAX);
        }
        self.rest = self.rest_last;
    }
}

/// A group may take seconds; the next one is not held for longer than clients take that are near.
const HELD_MAX: Duration = Duration::from_millis(2);
/// Groups between two attempts where they do not pay: they cost a hundredth then.
const REST_MAX: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const FLIGHT: Duration = Duration::from_millis(1);
    const SOON: Duration = Duration::from_micros(200);

    /// After a group of which so many writes were answered while others wait.
    fn after(answered: usize, waiting: usize) -> Gathering {
        let mut gathering = Gathering::default();
        gathering.group_ended(answered + waiting, FLIGHT);
        gathering
    }

    #[test]
    fn a_client_that_is_alone_is_never_held() {
        let mut gathering = Gathering::default();
        assert_eq!(gathering.begin(1), None, "the first group of all");
        gathering.group_ended(1, FLIGHT);
        assert_eq!(gathering.begin(1), None);
    }

    #[test]
    fn a_group_is_held_until_all_are_back() {
        let mut gathering = after(32, 32);
        assert!(
            !gathering.misses(32) && !gathering.is_complete(64),
            "not yet"
        );
        assert_eq!(gathering.begin(32), Some(FLIGHT));
        assert!(gathering.misses(63) && !gathering.is_complete(63));
        assert!(!gathering.misses(64) && gathering.is_complete(64));
        gathering.ended(32, 32, SOON);
        assert!(
            !gathering.misses(0) && !gathering.is_complete(64),
            "no more"
        );
        gathering.group_ended(64, FLIGHT);
        assert_eq!(gathering.begin(1), Some(FLIGHT), "it paid");
        assert_eq!(gathering.begin(64), None, "all are there");
    }

    #[test]
    fn where_nobody_comes_back_it_is_tried_ever_more_rarely() {
        let mut gathering = after(5, 5);
        let mut rests = Vec::new();
        for _ in 0..9 {
            rests.push((0..).take_while(|_| gathering.begin(5).is_none()).count());
            gathering.ended(5, 4, FLIGHT);
        }
        assert_eq!(rests, [0, 1, 2, 4, 8, 16, 32, 64, 64]);
        let again = (0..).find(|_| gathering.begin(5).is_some());
        assert_eq!(again, Some(64));
        gathering.ended(5, 5, FLIGHT);
        assert!(
            gathering.begin(5).is_some(),
            "once it paid, it is done again"
        );
    }

    #[test]
    fn a_group_that_took_seconds_does_not_hold_the_next_one_for_seconds() {
        let mut gathering = Gathering::default();
        gathering.group_ended(2, Duration::from_secs(20));
        assert_eq!(gathering.begin(1), Some(HELD_MAX));
    }
}
