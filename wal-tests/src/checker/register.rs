//! The register checker: is there an order of the operations on each register, within real time,
//! in which every answer is right? The search of Wing and Gong with Lowe's cache of states. It does
//! not look at indexes or places that the server gave.
//!
//! Verified, of operations on single registers (set, compare and set, read at a level that promises
//! the newest), register by register: linearizability.
//!
//! Not verified: what holds between registers; requests with more than one action; reads at the
//! levels none and weak. A set or compare-and-set of unknown fate may have been done at any moment
//! after it began, or never. A register for which the search would take too long is reported as
//! undecided, never as right.

use std::collections::{BTreeMap, HashSet};

use crate::history::{Action, Answer, Fate, Operation};

/// What was found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Verdict {
    /// Registers for whose operations there is no order.
    pub wrong: Vec<u64>,
    /// Registers for which none was found in the time there is, though there may be one.
    pub undecided: Vec<u64>,
    /// Registers for which there is one.
    pub right: usize,
    /// Operations on all of them.
    pub operations: usize,
}

/// Checks all registers.
#[must_use]
pub fn check(operations: &[Operation]) -> Verdict {
    let mut by_key: BTreeMap<u64, Vec<Call>> = BTreeMap::new();
    for operation in operations {
        if let Some((key, call)) = call(operation) {
            by_key.entry(key).or_default().push(call);
        }
    }
    let mut verdict = Verdict::default();
    for (key, calls) in by_key {
        verdict.operations += calls.len();
        match Search::new(&calls).run(STEPS_MAX) {
            Some(true) => verdict.right += 1,
            Some(false) => verdict.wrong.push(key),
            None => verdict.undecided.push(key),
        }
    }
    verdict
}

/// An operation on one register.
struct Call {
    begun: u64,
    /// `u64::MAX` if it need not have been done.
    ended: u64,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Read(Option<i64>),
    Set(i64),
    /// From, to, and whether it was done, if that is known.
    Cas(i64, i64, Option<bool>),
}

impl Kind {
    /// The state after it; `None` if it cannot have happened in this one.
    fn step(self, state: Option<i64>) -> Option<Option<i64>> {
        match self {
            Self::Read(seen) => (seen == state).then_some(state),
            Self::Set(value) => Some(Some(value)),
            Self::Cas(from, to, done) => {
                let fits = state == Some(from);
                // Of unknown fate: one that did nothing may as well never have been.
                let happened = done.unwrap_or(true) == fits;
                happened.then_some(if fits { Some(to) } else { state })
            }
        }
    }
}

/// An operation as a call, if it is one on a single register that may have been done.
fn call(operation: &Operation) -> Option<(u64, Call)> {
    let [action] = operation.actions.as_slice() else {
        return None;
    };
    let known = operation.is_acknowledged();
    if operation.fate == Fate::Refused || !operation.is_current() {
        return None;
    }
    let (key, kind) = match (action, operation.answers.first()) {
        (Action::ReadRegister(key), Some(Answer::Numbers(seen))) => {
            (*key, Kind::Read(seen.first().copied()))
        }
        (Action::Set { key, value }, _) => (*key, Kind::Set(*value)),
        (Action::Cas { key, from, to }, answer) => {
            let done = known.then(|| answer == Some(&Answer::Changed(1)));
            (*key, Kind::Cas(*from, *to, done))
        }
        _ => return None,
    };
    let call = Call {
        begun: operation.begun,
        ended: operation.end(),
        kind,
    };
    Some((key, call))
}

/// The search for an order. Begins and ends are a list in the order of time, from which operations
/// are lifted as they get their place.
struct Search<'a> {
    calls: &'a [Call],
    /// By time: an operation, and whether this is its end.
    events: Vec<(usize, bool)>,
    /// The event after each one; the last place is the head of the list.
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Where the end of each operation is.
    end_of: Vec<usize>,
    begin_of: Vec<usize>,
    done: Vec<u64>,
    state: Option<i64>,
    /// Operations in the order found so far, each with the state before it.
    order: Vec<(usize, Option<i64>)>,
    known: HashSet<(Vec<u64>, Option<i64>)>,
}

impl<'a> Search<'a> {
    fn new(calls: &'a [Call]) -> Self {
        let mut moments: Vec<(u64, bool, usize)> = Vec::new();
        for (at, call) in calls.iter().enumerate() {
            // At one moment, what begins is not after what ends.
            moments.push((call.begun, false, at));
            moments.push((call.ended, true, at));
        }
        moments.sort_unstable();
        let events: Vec<(usize, bool)> = moments.iter().map(|&(_, end, at)| (at, end)).collect();
        let head = events.len();
        let (mut begin_of, mut end_of) = (vec![0; calls.len()], vec![0; calls.len()]);
        for (place, &(at, is_end)) in events.iter().enumerate() {
            if is_end {
                end_of[at] = place;
            } else {
                begin_of[at] = place;
            }
        }
        Self {
            calls,
            next: (1..=head).chain([0]).collect(),
            previous: [head].into_iter().chain(0..head).collect(),
            events,
            end_of,
            begin_of,
            done: vec![0; calls.len().div_ceil(64)],
            state: None,
            order: Vec::new(),
            known: HashSet::new(),
        }
    }

    /// Whether there is an order; `None` after so many steps.
    fn run(mut self, steps_max: usize) -> Option<bool> {
        let head = self.events.len();
        let mut at = self.next[head];
        for _ in 0..steps_max {
            if at == head {
                return Some(true);
            }
            let (call, is_end) = self.events[at];
            if !is_end {
                at = match self.try_next(call) {
                    true => self.next[head],
                    false => self.next[at],
                };
            } else if self.calls[call].ended == u64::MAX {
                // All that is left need not have been done.
                return Some(true);
            } else {
                // It is over and has no place yet: an earlier decision was wrong.
                let Some((last, before)) = self.order.pop() else {
                    return Some(false);
                };
                self.state = before;
                self.done[last / 64] &= !(1 << (last % 64));
                self.put_back(self.end_of[last]);
                self.put_back(self.begin_of[last]);
                at = self.next[self.begin_of[last]];
            }
        }
        None
    }

    /// Gives an operation the next place, unless it cannot have it or that was tried.
    fn try_next(&mut self, call: usize) -> bool {
        let kind = self.calls[call].kind;
        let Some(state) = kind.step(self.state) else {
            return false;
        };
        // What need not have been done has a place only right before what cannot be without it:
        // from any other place it can move there, or away.
        if let Some(&(last, before)) = self.order.last()
            && self.calls[last].ended == u64::MAX
            && kind.step(before).is_some()
        {
            return false;
        }
        self.done[call / 64] |= 1 << (call % 64);
        if !self.known.insert((self.done.clone(), state)) {
            self.done[call / 64] &= !(1 << (call % 64));
            return false;
        }
        self.order.push((call, self.state));
        self.state = state;
        self.lift(self.begin_of[call]);
        self.lift(self.end_of[call]);
        true
    }

    fn lift(&mut self, at: usize) {
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    /// Undoes [`Self::lift`], last lifted first.
    fn put_back(&mut self, at: usize) {
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous] = at;
        self.previous[next] = at;
    }
}

/// A few seconds for one register.
const STEPS_MAX: usize = 5_000_000;
