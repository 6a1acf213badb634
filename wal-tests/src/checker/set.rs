//! The checker of sets that only grow, and of sums that stay. It does not look at indexes or places
//! that the server gave.
//!
//! Verified, of reads at every level: of any two reads of a set, one saw all that the other saw (a
//! long fork would be two reads each of which lacks what the other has); no element is one that was
//! refused or that nobody inserted; the balances of all accounts are what they were together, and
//! none is below zero.
//!
//! Not verified: how old what was read is, and whether anything is lost: that is up to the checkers
//! that know of time.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::history::{ACCOUNTS, Action, Answer, BALANCE, Fate, Operation};

/// A contradiction. Operations are named by their numbers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Anomaly {
    /// This read saw an element that was refused or that nobody inserted.
    AbortedRead(u64, i64),
    /// Each of these two reads lacks what the other one saw.
    LongFork(u64, u64),
    /// This read saw money that was made or lost.
    WrongSum(u64),
}

/// All anomalies; none is what one wants to see. And how many reads were looked at.
#[must_use]
pub fn check(operations: &[Operation]) -> (Vec<Anomaly>, usize) {
    let mut inserted: HashMap<(u64, i64), Fate> = HashMap::new();
    for operation in operations {
        for action in &operation.actions {
            if let Action::Insert { key, value } = action {
                inserted.insert((*key, *value), operation.fate);
            }
        }
    }
    let mut anomalies = Vec::new();
    let mut reads: BTreeMap<u64, Vec<(u64, BTreeSet<i64>)>> = BTreeMap::new();
    let mut count = 0;
    for operation in operations
        .iter()
        .filter(|operation| operation.is_acknowledged())
    {
        for (action, answer) in operation.actions.iter().zip(&operation.answers) {
            match (action, answer) {
                (Action::ReadSet(key), Answer::Numbers(seen)) => {
                    let bad = seen.iter().filter(|&&value| {
                        inserted
                            .get(&(*key, value))
                            .is_none_or(|&it| it == Fate::Refused)
                    });
                    anomalies.extend(bad.map(|&it| Anomaly::AbortedRead(operation.id, it)));
                    let seen = seen.iter().copied().collect();
                    reads.entry(*key).or_default().push((operation.id, seen));
                    count += 1;
                }
                (Action::ReadAccounts, Answer::Numbers(balances)) => {
                    let sum: i64 = balances.iter().sum();
                    let is_right = balances.len() as u64 == ACCOUNTS
                        && sum == BALANCE * balances.len() as i64
                        && balances.iter().all(|&balance| balance >= 0);
                    if !is_right {
                        anomalies.push(Anomaly::WrongSum(operation.id));
                    }
                    count += 1;
                }
                _ => {}
            }
        }
    }
    for mut reads in reads.into_values() {
        reads.sort_by_key(|(_, seen)| seen.len());
        for pair in reads.windows(2) {
            if !pair[0].1.is_subset(&pair[1].1) {
                anomalies.push(Anomaly::LongFork(pair[0].0, pair[1].0));
            }
        }
    }
    (anomalies, count)
}
