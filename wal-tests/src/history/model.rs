//! What the tables hold after a row of requests, by a model that shares nothing with SQLite.

use std::collections::{BTreeSet, HashMap};

use super::action::{ACCOUNTS, Action, Answer, BALANCE};

/// The state of all tables.
#[derive(Clone, Debug)]
pub struct Model {
    accounts: Vec<i64>,
    counters: HashMap<u64, i64>,
    filled: HashMap<u64, (i64, i64)>,
    lists: HashMap<u64, Vec<i64>>,
    registers: HashMap<u64, i64>,
    sets: HashMap<u64, BTreeSet<i64>>,
    tables: BTreeSet<u64>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            accounts: (0..ACCOUNTS).map(|_| BALANCE).collect(),
            counters: HashMap::new(),
            filled: HashMap::new(),
            lists: HashMap::new(),
            registers: HashMap::new(),
            sets: HashMap::new(),
            tables: BTreeSet::new(),
        }
    }
}

impl Model {
    /// Does what the action says. `None` if it cannot be done in this state: then the whole request
    /// must have failed.
    pub fn apply(&mut self, action: &Action) -> Option<Answer> {
        let answer = match *action {
            Action::Add { key, amount } => {
                *self.counters.entry(key).or_default() += amount;
                Answer::Changed(1)
            }
            Action::Append { key, value } => {
                self.lists.entry(key).or_default().push(value);
                Answer::Changed(1)
            }
            Action::Cas { key, from, to } => {
                let fits = self.registers.get(&key) == Some(&from);
                if fits {
                    self.registers.insert(key, to);
                }
                Answer::Changed(i64::from(fits))
            }
            Action::Create { key } => self.tables.insert(key).then_some(Answer::Done)?,
            Action::Clear { key } => {
                Answer::Changed(self.filled.remove(&key).map_or(0, |(rows, _)| rows))
            }
            Action::Drop { key } => self.tables.remove(&key).then_some(Answer::Done)?,
            Action::Fill { key, rows, bytes } => {
                let filled = self.filled.entry(key).or_default();
                *filled = (filled.0 + rows, filled.1 + rows * bytes);
                Answer::Changed(rows)
            }
            Action::Insert { key, value } => {
                let is_new = self.sets.entry(key).or_default().insert(value);
                is_new.then_some(Answer::Changed(1))?
            }
            Action::Widen { key } => self.tables.contains(&key).then_some(Answer::Done)?,
            Action::Set { key, value } => {
                self.registers.insert(key, value);
                Answer::Changed(1)
            }
            Action::Transfer { from, to, amount } => {
                let [from, to] = [from, to].map(|account| usize::try_from(account).ok());
                let (from, to) = (from?, to?);
                let has_enough = *self.accounts.get(from)? >= amount;
                if has_enough {
                    self.accounts[from] -= amount;
                    *self.accounts.get_mut(to)? += amount;
                }
                Answer::Changed(if has_enough { 2 } else { 0 })
            }
            _ => Answer::Numbers(self.read(action)),
        };
        Some(answer)
    }

    fn read(&self, action: &Action) -> Vec<i64> {
        match action {
            Action::ReadAccounts => self.accounts.clone(),
            Action::ReadCounter(key) => self.counters.get(key).copied().into_iter().collect(),
            Action::ReadFilled(key) => {
                let (rows, bytes) = self.filled.get(key).copied().unwrap_or_default();
                vec![rows, bytes]
            }
            Action::ReadList(key) => self.lists.get(key).cloned().unwrap_or_default(),
            Action::ReadRegister(key) => self.registers.get(key).copied().into_iter().collect(),
            Action::ReadSet(key) => {
                let set = self.sets.get(key);
                set.into_iter().flatten().copied().collect()
            }
            Action::ReadTables => {
                let numbers = self.tables.iter();
                numbers
                    .map(|&key| i64::try_from(key).unwrap_or(-1))
                    .collect()
            }
            _ => Vec::new(),
        }
    }
}
