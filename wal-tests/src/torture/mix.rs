//! What a client asks for next: a little of everything, on keys that many clients share for a
//! while.

use std::collections::HashMap;

use crate::history::{ACCOUNTS, Action, Answer, Level, Operation, Reach};
use crate::seed::Random;

/// What one client remembers.
pub(super) struct Mix {
    client: u64,
    /// What it saw last in registers.
    registers: HashMap<u64, i64>,
    /// Its own tables, and whether each was widened.
    tables: Vec<(u64, bool)>,
    /// Keys under which it has large rows.
    filled: Vec<u64>,
}

/// A request to be made.
pub(super) enum Asked {
    /// A row by way of the queue.
    Queued {
        /// Whether to wait until it was sent.
        wait: bool,
    },
    /// Anything else.
    Actions {
        /// For the table of the report.
        kind: &'static str,
        actions: Vec<Action>,
        reach: Reach,
    },
}

const JOURNALLED: Reach = Reach::Write { journalled: true };
const BARE: Reach = Reach::Write { journalled: false };

impl Mix {
    pub(super) fn new(client: u32) -> Self {
        Self {
            client: u64::from(client),
            registers: HashMap::new(),
            tables: Vec::new(),
            filled: Vec::new(),
        }
    }

    /// The next request. `id` is its number: values made from it are like no others.
    pub(super) fn next(&mut self, id: u64, random: &mut Random) -> Asked {
        let value = i64::try_from(id).expect("there are not so many operations");
        let (kind, actions, reach) = match random.below(100) {
            0..26 => self.register(id, value, random),
            26..46 => list(id, value, random),
            46..58 => bank(random),
            58..72 => set(id, value, random),
            72..80 => counter(id, random),
            80..89 => snapshot(id, random),
            89..92 => self.schema(id, random),
            92..94 => self.large(id, random),
            _ => {
                let wait = random.chance(50);
                return Asked::Queued { wait };
            }
        };
        Asked::Actions {
            kind,
            actions,
            reach,
        }
    }

    /// Takes note of an answer.
    pub(super) fn learn(&mut self, operation: &Operation) {
        for (action, answer) in operation.actions.iter().zip(&operation.answers) {
            match (action, answer) {
                (Action::ReadRegister(key), Answer::Numbers(seen)) => {
                    if let Some(&value) = seen.first() {
                        self.registers.insert(*key, value);
                    }
                }
                (Action::Set { key, value }, _) => {
                    self.registers.insert(*key, *value);
                }
                (Action::Cas { key, to, .. }, Answer::Changed(1)) => {
                    self.registers.insert(*key, *to);
                }
                (Action::Create { key }, _) => self.tables.push((*key, false)),
                (Action::Fill { key, .. }, _) => self.filled.push(*key),
                _ => {}
            }
        }
        if self.registers.len() > 200 {
            self.registers.clear();
        }
    }

    fn register(
        &self,
        id: u64,
        value: i64,
        random: &mut Random,
    ) -> (&'static str, Vec<Action>, Reach) {
        let bare = random.chance(40);
        let key = key(id, 8, random) + if bare { BARE_KEYS } else { 0 };
        let write = if bare { BARE } else { JOURNALLED };
        let known = self.registers.get(&key).copied();
        match (random.below(10), known) {
            (0..4, _) => {
                let reach = Reach::Read(current(random));
                ("register read", vec![Action::ReadRegister(key)], reach)
            }
            (4..8, Some(from)) => {
                let to = value;
                let cas = Action::Cas { key, from, to };
                ("register compare and set", vec![cas], write)
            }
            _ => ("register set", vec![Action::Set { key, value }], write),
        }
    }

    /// Its own tables only: what another client drops meanwhile would be an error, which proves
    /// nothing.
    fn schema(&mut self, id: u64, random: &mut Random) -> (&'static str, Vec<Action>, Reach) {
        if random.chance(25) {
            let reach = Reach::Read(level(random));
            return ("schema read", vec![Action::ReadTables], reach);
        }
        let action = if self.tables.len() < 3 {
            Action::Create { key: id }
        } else if self.tables[0].1 || random.chance(30) {
            // Whether that works or not, it is forgotten.
            let (key, _) = self.tables.remove(0);
            Action::Drop { key }
        } else {
            self.tables[0].1 = true;
            Action::Widen {
                key: self.tables[0].0,
            }
        };
        ("schema change", vec![action], JOURNALLED)
    }

    fn large(&mut self, id: u64, random: &mut Random) -> (&'static str, Vec<Action>, Reach) {
        if self.filled.len() >= 2 {
            let key = self.filled.remove(0);
            return ("large delete", vec![Action::Clear { key }], JOURNALLED);
        }
        if random.chance(30)
            && let Some(&key) = self.filled.first()
        {
            let reach = Reach::Read(level(random));
            return ("large read", vec![Action::ReadFilled(key)], reach);
        }
        // Up to half a megabyte, which is several entries of the log.
        let rows = 10 + i64::try_from(random.below(120)).unwrap_or(0);
        let key = id * 1000 + self.client;
        let fill = Action::Fill {
            key,
            rows,
            bytes: 4000,
        };
        ("large write", vec![fill], JOURNALLED)
    }
}

fn list(id: u64, value: i64, random: &mut Random) -> (&'static str, Vec<Action>, Reach) {
    let bare = random.chance(30);
    let mut any_key = || key(id, 6, random) + if bare { BARE_KEYS } else { 0 };
    let keys = [any_key(), any_key(), any_key()];
    if random.chance(40) {
        let count = 1 + random.below(3);
        let actions = keys[..count].iter().map(|&key| Action::ReadList(key));
        return ("list read", actions.collect(), Reach::Read(current(random)));
    }
    let write = if bare { BARE } else { JOURNALLED };
    let mut actions = Vec::new();
    let count = 1 + random.below(3);
    // Four values at most belong to one operation.
    for (part, &key) in (0..).zip(&keys[..count]) {
        actions.push(match random.below(3) {
            0 if part > 0 => Action::ReadList(key),
            _ => Action::Append {
                key,
                value: value * 4 + part,
            },
        });
    }
    ("list append", actions, write)
}

fn bank(random: &mut Random) -> (&'static str, Vec<Action>, Reach) {
    if random.chance(40) {
        let reach = Reach::Read(level(random));
        return ("bank read", vec![Action::ReadAccounts], reach);
    }
    let from = random.number_below(ACCOUNTS);
    let to = (from + 1 + random.number_below(ACCOUNTS - 1)) % ACCOUNTS;
    let amount = 1 + i64::try_from(random.below(40)).unwrap_or(0);
    let transfer = Action::Transfer { from, to, amount };
    ("bank transfer", vec![transfer], JOURNALLED)
}

/// Many small sets: reads of two that each lack what the other has would be a long fork.
fn set(id: u64, value: i64, random: &mut Random) -> (&'static str, Vec<Action>, Reach) {
    let key = key(id, 6, random);
    if random.chance(50) {
        let reach = Reach::Read(level(random));
        ("set read", vec![Action::ReadSet(key)], reach)
    } else {
        (
            "set insert",
            vec![Action::Insert { key, value }],
            JOURNALLED,
        )
    }
}

fn counter(id: u64, random: &mut Random) -> (&'static str, Vec<Action>, Reach) {
    let key = key(id, 2, random);
    if random.chance(40) {
        let reach = Reach::Read(level(random));
        return ("counter read", vec![Action::ReadCounter(key)], reach);
    }
    let amount = i64::try_from(random.below(9)).unwrap_or(0) - 4;
    ("counter add", vec![Action::Add { key, amount }], JOURNALLED)
}

/// Something of everything, in one state.
fn snapshot(id: u64, random: &mut Random) -> (&'static str, Vec<Action>, Reach) {
    let actions = vec![
        Action::ReadRegister(key(id, 8, random)),
        Action::ReadSet(key(id, 6, random)),
        Action::ReadAccounts,
        Action::ReadCounter(key(id, 2, random)),
    ];
    ("snapshot read", actions, Reach::Read(level(random)))
}

/// One of a few keys that are in use at the time.
fn key(id: u64, count: u64, random: &mut Random) -> u64 {
    let era = (id / ERA).saturating_sub(u64::from(random.chance(15)));
    era * 10 + random.number_below(count)
}

fn level(random: &mut Random) -> Level {
    match random.below(10) {
        0..3 => Level::None,
        3..5 => Level::Weak,
        5..9 => Level::Linearizable,
        _ => Level::Strong,
    }
}

/// A level that promises the newest.
fn current(random: &mut Random) -> Level {
    match random.below(10) {
        0..8 => Level::Linearizable,
        _ => Level::Strong,
    }
}

/// Operations after which other keys are used: lists stay short, and the search for an order of one
/// register small.
const ERA: u64 = 1500;

/// Keys that only requests without a row in the journal use.
const BARE_KEYS: u64 = 1 << 40;
