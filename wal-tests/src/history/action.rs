//! The actions that requests consist of, and what they are answered.

/// One action. Keys of different tables have nothing to do with each other.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Action {
    /// Adds to a counter.
    Add {
        /// Which counter.
        key: u64,
        /// How much.
        amount: i64,
    },
    /// Puts a number at the end of a list.
    Append {
        /// Which list.
        key: u64,
        /// What; no two are equal.
        value: i64,
    },
    /// Changes a register if it holds what is expected.
    Cas {
        /// Which register.
        key: u64,
        /// What it must hold.
        from: i64,
        /// What it then holds.
        to: i64,
    },
    /// Makes a table with an index and some rows.
    Create {
        /// Which table; each is made once at most.
        key: u64,
    },
    /// Deletes what [`Action::Fill`] has put in.
    Clear {
        /// Which one.
        key: u64,
    },
    /// Drops a table.
    Drop {
        /// Which table.
        key: u64,
    },
    /// Writes many large rows.
    Fill {
        /// Under which key.
        key: u64,
        /// How many.
        rows: i64,
        /// Bytes of each.
        bytes: i64,
    },
    /// Puts a number into a set.
    Insert {
        /// Which set.
        key: u64,
        /// What; no two are equal.
        value: i64,
    },
    /// Adds a column to a table.
    Widen {
        /// Which table.
        key: u64,
    },
    /// All balances, by account.
    ReadAccounts,
    /// A counter.
    ReadCounter(u64),
    /// Rows and bytes that [`Action::Fill`] has put in.
    ReadFilled(u64),
    /// A list, in its order.
    ReadList(u64),
    /// A register; empty if it was never set.
    ReadRegister(u64),
    /// A set, in ascending order.
    ReadSet(u64),
    /// The numbers of the tables made by [`Action::Create`], in ascending order.
    ReadTables,
    /// Sets a register.
    Set {
        /// Which register.
        key: u64,
        /// What it then holds.
        value: i64,
    },
    /// Moves money from one account to another, if there is enough.
    Transfer {
        /// From which account.
        from: u64,
        /// To which.
        to: u64,
        /// How much.
        amount: i64,
    },
}

/// What an action was answered.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Answer {
    /// So many rows were changed.
    Changed(i64),
    /// Done; the number of rows says nothing.
    Done,
    /// These numbers were read.
    Numbers(Vec<i64>),
}

impl Action {
    /// What it reads or writes.
    #[must_use]
    pub fn thing(&self) -> Thing {
        match *self {
            Self::ReadAccounts | Self::Transfer { .. } => Thing::Accounts,
            Self::Add { key, .. } | Self::ReadCounter(key) => Thing::Counter(key),
            Self::Clear { key } | Self::Fill { key, .. } | Self::ReadFilled(key) => {
                Thing::Filled(key)
            }
            Self::Append { key, .. } | Self::ReadList(key) => Thing::List(key),
            Self::Cas { key, .. } | Self::Set { key, .. } | Self::ReadRegister(key) => {
                Thing::Register(key)
            }
            Self::Insert { key, .. } | Self::ReadSet(key) => Thing::Set(key),
            Self::Create { .. } | Self::Drop { .. } | Self::Widen { .. } | Self::ReadTables => {
                Thing::Tables
            }
        }
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_read(&self) -> bool {
        matches!(
            self,
            Self::ReadAccounts
                | Self::ReadCounter(_)
                | Self::ReadFilled(_)
                | Self::ReadList(_)
                | Self::ReadRegister(_)
                | Self::ReadSet(_)
                | Self::ReadTables
        )
    }
}

/// Something that actions read and write.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Thing {
    /// All accounts.
    Accounts,
    /// A counter.
    Counter(u64),
    /// The large rows of a key.
    Filled(u64),
    /// A list.
    List(u64),
    /// A register.
    Register(u64),
    /// A set.
    Set(u64),
    /// All tables that come and go.
    Tables,
}

/// Accounts of the bank.
pub const ACCOUNTS: u64 = 8;

/// What each of them holds at first.
pub const BALANCE: i64 = 100;
