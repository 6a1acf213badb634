//! The list-append checker, after Elle: finds out from the lists that were read in which order
//! transactions wrote, derives what depends on what, and looks for circles. It does not look at
//! indexes or places that the server gave.
//!
//! Verified, of all transactions that append to lists or read them at a level that promises the
//! newest, together: strict serializability, as far as lists show it. Each circle is named:
//!
//! | Name | The circle has |
//! |---|---|
//! | G0 | only writes over writes |
//! | G1c | also reads of what was written |
//! | G-single | one write over what was read (a lost update, a stale or a skewed read) |
//! | G2 | more than one (write skew, a long fork) |
//! | ... in real time | also something that was over before something else began |
//!
//! And without circles: reads of what was refused (G1a), of what was not yet all of it (G1b), of
//! what nobody wrote, of something twice, of lists that contradict each other, and of less than the
//! transaction itself had written.
//!
//! Not verified: keys that nobody read; transactions that read nothing and write what nobody reads;
//! reads at the levels none and weak; operations on other tables. A transaction of unknown fate
//! counts as soon as somebody saw a part of it, and never earlier.

use std::collections::{HashMap, HashSet};

use super::order::{Graph, Reason};
use crate::history::{Action, Answer, Fate, Operation};

/// A contradiction. Operations are named by their numbers.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Anomaly {
    /// G1a: this operation read what that one was refused.
    AbortedRead(u64, u64),
    /// Operations each of which must be before the next, and the last before the first.
    Circle(&'static str, Vec<(u64, Reason)>),
    /// This operation read a list that does not begin as, or is not the beginning of, another one.
    ContradictingLists(u64),
    /// This operation read an element twice.
    Duplicate(u64),
    /// G1b: this operation read a part of what that one wrote.
    IntermediateRead(u64, u64),
    /// This operation did not read what it wrote itself.
    Internal(u64),
    /// This operation read an element that nobody wrote.
    Invented(u64, i64),
}

/// All anomalies; none is what one wants to see.
#[must_use]
pub fn check(operations: &[Operation]) -> Vec<Anomaly> {
    let transactions: Vec<&Operation> = operations.iter().filter(|it| takes_part(it)).collect();
    let mut found = Vec::new();
    let lists = Lists::of(&transactions, &mut found);
    let mut graph = Graph::new(transactions.len());
    lists.add_edges(&transactions, &mut graph);
    add_real_time(&transactions, &mut graph);
    found.extend(name_circles(&transactions, &graph));
    found.sort();
    found.dedup();
    found
}

fn takes_part(operation: &Operation) -> bool {
    let lists = |action: &Action| matches!(action, Action::Append { .. } | Action::ReadList(_));
    operation.is_current() && operation.actions.iter().any(lists)
}

/// What the lists that were read tell.
struct Lists {
    /// Who appended what, and whether it was the last that it appended there.
    writers: HashMap<(u64, i64), (usize, bool)>,
    /// The longest list that was read of each key.
    orders: HashMap<u64, Vec<i64>>,
    /// What each transaction read of a key before it wrote to it: transaction, key, elements.
    reads: Vec<(usize, u64, usize)>,
}

impl Lists {
    fn of(transactions: &[&Operation], found: &mut Vec<Anomaly>) -> Self {
        let mut lists = Self {
            writers: writers(transactions),
            orders: HashMap::new(),
            reads: Vec::new(),
        };
        for transaction in transactions {
            for (key, list) in lists_read(transaction) {
                let order = lists.orders.entry(key).or_default();
                if order.len() < list.len() {
                    list.clone_into(order);
                }
            }
        }
        for (at, transaction) in transactions.iter().enumerate() {
            lists.judge(at, transaction, transactions, found);
        }
        lists
    }

    /// Looks at what one transaction read.
    fn judge(
        &mut self,
        at: usize,
        transaction: &Operation,
        transactions: &[&Operation],
        found: &mut Vec<Anomaly>,
    ) {
        let id = transaction.id;
        for (key, list) in lists_read(transaction) {
            if !self.orders[&key].starts_with(list) {
                found.push(Anomaly::ContradictingLists(id));
            }
            let distinct: HashSet<_> = list.iter().collect();
            if distinct.len() < list.len() {
                found.push(Anomaly::Duplicate(id));
            }
        }
        let mut own: HashMap<u64, Vec<i64>> = HashMap::new();
        let mut seen: HashMap<u64, Vec<i64>> = HashMap::new();
        for (action, answer) in transaction.actions.iter().zip(&transaction.answers) {
            match (action, answer) {
                (Action::Append { key, value }, _) => own.entry(*key).or_default().push(*value),
                (Action::ReadList(key), Answer::Numbers(list)) => {
                    let own = own.get(key).map_or(&[][..], Vec::as_slice);
                    let Some(foreign) = list.strip_suffix(own) else {
                        found.push(Anomaly::Internal(id));
                        continue;
                    };
                    if seen.get(key).is_some_and(|before| before != foreign) {
                        found.push(Anomaly::Internal(id));
                    }
                    seen.insert(*key, foreign.to_vec());
                    self.reads.push((at, *key, foreign.len()));
                }
                _ => {}
            }
        }
        for (key, list) in seen {
            self.judge_elements(at, transactions, key, &list, found);
        }
    }

    /// Looks at where the elements of a list come from that others wrote.
    fn judge_elements(
        &self,
        at: usize,
        transactions: &[&Operation],
        key: u64,
        list: &[i64],
        found: &mut Vec<Anomaly>,
    ) {
        let id = transactions[at].id;
        let mut last = None;
        for &value in list {
            last = self.writers.get(&(key, value)).copied();
            match last {
                None => found.push(Anomaly::Invented(id, value)),
                Some((writer, _)) if transactions[writer].fate == Fate::Refused => {
                    found.push(Anomaly::AbortedRead(id, transactions[writer].id));
                }
                Some(_) => {}
            }
        }
        if let Some((writer, is_last)) = last
            && !is_last
            && writer != at
        {
            found.push(Anomaly::IntermediateRead(id, transactions[writer].id));
        }
    }

    fn add_edges(&self, transactions: &[&Operation], graph: &mut Graph) {
        let writer = |key: u64, value: i64| self.writers.get(&(key, value)).map(|found| found.0);
        // Whatever was appended and is not in the longest list that was read came after it.
        let mut unseen: HashMap<u64, Vec<usize>> = HashMap::new();
        for (&(key, value), &(at, _)) in &self.writers {
            let acknowledged = transactions[at].is_acknowledged();
            let order = self.orders.get(&key);
            if acknowledged && order.is_some_and(|order| !order.contains(&value)) {
                unseen.entry(key).or_default().push(at);
            }
        }
        for (&key, order) in &self.orders {
            for pair in order.windows(2) {
                if let (Some(one), Some(next)) = (writer(key, pair[0]), writer(key, pair[1])) {
                    graph.add(one, next, Reason::WriteWrite);
                }
            }
            if let Some(last) = order.last().and_then(|&value| writer(key, value)) {
                for &later in unseen.get(&key).into_iter().flatten() {
                    graph.add(last, later, Reason::WriteWrite);
                }
            }
        }
        for &(reader, key, length) in &self.reads {
            let order = &self.orders[&key];
            if let Some(&value) = length.checked_sub(1).and_then(|last| order.get(last))
                && let Some(writer) = writer(key, value)
            {
                graph.add(writer, reader, Reason::WriteRead);
            }
            match order.get(length) {
                Some(&next) => {
                    if let Some(writer) = writer(key, next) {
                        graph.add(reader, writer, Reason::ReadWrite);
                    }
                }
                None => {
                    for &later in unseen.get(&key).into_iter().flatten() {
                        graph.add(reader, later, Reason::ReadWrite);
                    }
                }
            }
        }
    }
}

/// The lists that a transaction read, whole.
fn lists_read(transaction: &Operation) -> impl Iterator<Item = (u64, &[i64])> {
    let answered = transaction.actions.iter().zip(&transaction.answers);
    answered.filter_map(|(action, answer)| match (action, answer) {
        (Action::ReadList(key), Answer::Numbers(list)) => Some((*key, list.as_slice())),
        _ => None,
    })
}

fn writers(transactions: &[&Operation]) -> HashMap<(u64, i64), (usize, bool)> {
    let mut writers = HashMap::new();
    for (at, transaction) in transactions.iter().enumerate() {
        let mut last: HashMap<u64, i64> = HashMap::new();
        for action in &transaction.actions {
            if let Action::Append { key, value } = action {
                if let Some(before) = last.insert(*key, *value) {
                    writers.insert((*key, before), (at, false));
                }
                writers.insert((*key, *value), (at, true));
            }
        }
    }
    writers
}

/// What was over before something else began. A moment after each end carries that on, so that
/// there are as many edges as operations and not their square.
fn add_real_time(transactions: &[&Operation], graph: &mut Graph) {
    let mut ends: Vec<(u64, usize)> = Vec::new();
    for (at, transaction) in transactions.iter().enumerate() {
        if transaction.is_acknowledged() {
            ends.push((transaction.ended, at));
        }
    }
    ends.sort_unstable();
    let mut begins: Vec<(u64, usize)> = Vec::new();
    for (at, transaction) in transactions.iter().enumerate() {
        if transaction.fate != Fate::Refused {
            begins.push((transaction.begun, at));
        }
    }
    begins.sort_unstable();
    let mut ended = ends.into_iter().peekable();
    let mut moment = None;
    for (begun, at) in begins {
        while let Some((_, before)) = ended.next_if(|(end, _)| *end < begun) {
            let next = graph.add_node();
            graph.add(before, next, Reason::RealTime);
            if let Some(earlier) = moment {
                graph.add(earlier, next, Reason::RealTime);
            }
            moment = Some(next);
        }
        if let Some(moment) = moment {
            graph.add(moment, at, Reason::RealTime);
        }
    }
}

fn name_circles(transactions: &[&Operation], graph: &Graph) -> Vec<Anomaly> {
    use Reason::{ReadWrite, RealTime, WriteRead, WriteWrite};
    let kinds: [(&str, &[Reason], &[Reason]); 8] = [
        ("G0", &[WriteWrite], &[WriteWrite]),
        ("G1c", &[WriteRead], &[WriteWrite, WriteRead]),
        ("G-single", &[ReadWrite], &[WriteWrite, WriteRead]),
        ("G2", &[ReadWrite], &[WriteWrite, WriteRead, ReadWrite]),
        ("G0 in real time", &[WriteWrite], &[WriteWrite, RealTime]),
        (
            "G1c in real time",
            &[WriteRead],
            &[WriteWrite, WriteRead, RealTime],
        ),
        (
            "G-single in real time",
            &[ReadWrite],
            &[WriteWrite, WriteRead, RealTime],
        ),
        (
            "G2 in real time",
            &[ReadWrite],
            &[WriteWrite, WriteRead, ReadWrite, RealTime],
        ),
    ];
    let mut known: HashSet<usize> = HashSet::new();
    let mut found = Vec::new();
    for (name, one, rest) in kinds {
        for circle in graph.circles(one, rest) {
            // Moments are of no interest.
            let named: Vec<(usize, Reason)> = circle
                .into_iter()
                .filter(|(at, _)| *at < transactions.len())
                .collect();
            // One that is a worse kind already.
            if named.iter().all(|(at, _)| known.contains(at)) {
                continue;
            }
            known.extend(named.iter().map(|(at, _)| *at));
            let named = named
                .into_iter()
                .map(|(at, reason)| (transactions[at].id, reason));
            found.push(Anomaly::Circle(name, named.collect()));
        }
    }
    found
}
