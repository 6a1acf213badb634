//! Transactions of six kinds, written out as SQL: what the bytes that they cost are compared with.

use std::fmt::Write as _;

use wal_tests::seed::Random;

/// A kind of transaction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transaction {
    /// A row behind the last one.
    Append,
    /// A number in a random row, without an index.
    Integer,
    /// A text in a random row, without an index.
    Text,
    /// A number in a random row, with an index.
    Indexed,
    /// A row under a random UUID.
    Uuid,
    /// An order: three items, and what they and the customer are left with.
    Order,
}

impl Transaction {
    /// All of them, each with the name of its workload and what it does.
    pub const ALL: [(Self, &'static str, &'static str); 6] = [
        (Self::Append, "sql-append", "sequential insert"),
        (Self::Integer, "sql-integer", "random integer update"),
        (Self::Text, "sql-text", "random text update"),
        (Self::Indexed, "sql-indexed", "random indexed update"),
        (Self::Uuid, "sql-uuid", "insert under a UUID"),
        (Self::Order, "sql-order", "order, 7 statements"),
    ];

    /// The tables that they need.
    #[must_use]
    pub fn schema() -> &'static [&'static str] {
        &[
            "CREATE TABLE IF NOT EXISTS bench_events(id INTEGER PRIMARY KEY, kind TEXT, \
             device TEXT, message TEXT)",
            "CREATE TABLE IF NOT EXISTS bench_accounts(id INTEGER PRIMARY KEY, balance INTEGER, \
             score INTEGER, owner TEXT)",
            "CREATE TABLE IF NOT EXISTS bench_documents(id TEXT PRIMARY KEY, title TEXT) \
             WITHOUT ROWID",
            "CREATE TABLE IF NOT EXISTS bench_orders(id INTEGER PRIMARY KEY, customer INTEGER, \
             total INTEGER)",
            "CREATE TABLE IF NOT EXISTS bench_items(id INTEGER PRIMARY KEY, product INTEGER, \
             quantity INTEGER)",
            // Filled in random order, as indexes are that have been in use for a while.
            "CREATE INDEX IF NOT EXISTS bench_accounts_score ON bench_accounts(score)",
        ]
    }

    /// Fills these tables with the rows from one number to another.
    #[must_use]
    pub fn filling(first: u64, last: u64) -> [String; 2] {
        let numbers = format!(
            "WITH RECURSIVE s(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM s WHERE i < {last})"
        );
        let uuid = "hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || \
             substr(hex(randomblob(2)), 2) || '-8' || substr(hex(randomblob(2)), 2) || '-' || \
             hex(randomblob(6))";
        [
            format!(
                "INSERT INTO bench_accounts {numbers} SELECT i, (i * 7907) % 1000003, \
                 (i * 7919) % 1000003, lower(hex(randomblob(16))) FROM s"
            ),
            format!(
                "INSERT INTO bench_documents {numbers} SELECT lower({uuid}), \
                 'a document with number ' || i FROM s WHERE i % 10 = 0"
            ),
        ]
    }

    /// Its statements. Rows from 1 to `rows` are there.
    #[must_use]
    pub fn statements(self, random: &mut Random, rows: u64) -> Vec<String> {
        let row = 1 + random.number_below(rows.max(1));
        let value = random.number_below(1_000_000);
        let one = match self {
            Self::Append => format!(
                "INSERT INTO bench_events(kind, device, message) VALUES('measured', \
                 'device-{value:06}', 'temperature {} degrees, battery {} %')",
                row % 40,
                value % 100
            ),
            Self::Integer => {
                format!("UPDATE bench_accounts SET balance = {value} WHERE id = {row}")
            }
            Self::Text => format!(
                "UPDATE bench_accounts SET owner = '{:016x}{:016x}' WHERE id = {row}",
                random.bits(),
                random.bits()
            ),
            Self::Indexed => format!("UPDATE bench_accounts SET score = {value} WHERE id = {row}"),
            Self::Uuid => format!(
                "INSERT INTO bench_documents(id, title) VALUES('{}', 'a document with number \
                 {value}')",
                uuid(random)
            ),
            Self::Order => return order(random, row, value),
        };
        vec![one]
    }
}

fn uuid(random: &mut Random) -> String {
    let (high, low) = (random.bits(), random.bits());
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        low >> 52,
        low & 0xffff_ffff_ffff
    )
}

fn order(random: &mut Random, row: u64, value: u64) -> Vec<String> {
    let mut items = Vec::new();
    let mut taken = String::new();
    for place in 0..3 {
        let product = 1 + random.number_below(1000);
        items.push(format!(
            "INSERT INTO bench_items(product, quantity) VALUES({product}, {})",
            1 + value % 9
        ));
        let comma = if place == 0 { "" } else { ", " };
        write!(taken, "{comma}{product}").expect("a string takes all");
    }
    let mut statements = vec![format!(
        "INSERT INTO bench_orders(customer, total) VALUES({row}, {value})"
    )];
    statements.extend(items);
    statements.push(format!(
        "UPDATE bench_accounts SET balance = balance - 1 WHERE id IN ({taken})"
    ));
    statements.push(format!(
        "UPDATE bench_accounts SET balance = balance + {value} WHERE id = {row}"
    ));
    let last = "SELECT max(id) FROM bench_orders";
    statements.push(format!(
        "UPDATE bench_orders SET total = total + 5 WHERE id = ({last})"
    ));
    statements
}
