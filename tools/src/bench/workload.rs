//! What is sent: statements, and the tables that they need.

use std::fmt::Write as _;

use bytes::Bytes;
use wal_tests::seed::Random;

use super::connection::{Call, Connection};
use super::transaction::Transaction;

/// A kind of request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Workload {
    /// One row, with a parameter.
    Insert,
    /// One transaction of 100 such statements.
    Batch,
    /// Sets the column of a random row that has no index.
    Update,
    /// Sets the column of a random row that has an index.
    UpdateIndexed,
    /// Reads a random row by its key.
    Read(Level),
    /// Nine reads with level `weak` for each update.
    Mixed,
    /// One row of 64 KiB.
    Large,
    /// Written out as SQL.
    Sql(Transaction),
}

/// What a read is to guarantee.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Level {
    /// Whatever this node has.
    None,
    /// What this node has if it believes that it leads.
    Weak,
    /// What was committed before.
    Linearizable,
    /// As a write, through the log.
    Strong,
}

impl Workload {
    /// All of them, by name.
    pub const ALL: [(Self, &'static str); 16] = [
        (Self::Insert, "insert"),
        (Self::Batch, "batch"),
        (Self::Update, "update"),
        (Self::UpdateIndexed, "update-indexed"),
        (Self::Read(Level::None), "read-none"),
        (Self::Read(Level::Weak), "read-weak"),
        (Self::Read(Level::Linearizable), "read-linearizable"),
        (Self::Read(Level::Strong), "read-strong"),
        (Self::Mixed, "mixed"),
        (Self::Large, "large"),
        sql(0),
        sql(1),
        sql(2),
        sql(3),
        sql(4),
        sql(5),
    ];

    /// The one of this name.
    ///
    /// # Errors
    ///
    /// Which names there are.
    pub fn named(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(_, known)| *known == name);
        found.map(|(workload, _)| *workload).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|(_, name)| *name).collect();
            format!("no workload {name:?}; there are {}", names.join(", "))
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(workload, _)| *workload == self);
        found.expect("the table has every workload").1
    }

    /// Rows that one request writes or reads.
    #[must_use]
    pub fn rows(self) -> u64 {
        if self == Self::Batch { BATCH_ROWS } else { 1 }
    }

    /// Creates its table if it is not there, and fills it.
    ///
    /// # Errors
    ///
    /// What was answered.
    pub async fn prepare(self, connection: &mut Connection, rows: u64) -> Result<(), String> {
        let sql = match self {
            Self::Insert | Self::Batch => {
                "CREATE TABLE IF NOT EXISTS bench_log(id INTEGER PRIMARY KEY, name TEXT, n INTEGER)"
            }
            Self::Large => {
                "CREATE TABLE IF NOT EXISTS bench_large(id INTEGER PRIMARY KEY, name TEXT)"
            }
            Self::Sql(_) => return prepare_accounts(connection, rows).await,
            _ => return prepare_rows(connection, rows).await,
        };
        execute(connection, sql).await
    }

    /// The next request.
    #[must_use]
    pub fn next(self, random: &mut Random, rows: u64) -> Call {
        let row = 1 + random.number_below(rows.max(1));
        let value = random.number_below(1_000_000);
        let (path, body) = match self {
            Self::Insert => (EXECUTE, format!("[{}]", insertion(value))),
            Self::Batch => {
                let mut body = String::with_capacity(8 << 10);
                for place in 0..BATCH_ROWS {
                    let start = if place == 0 { '[' } else { ',' };
                    body.push(start);
                    body.push_str(&insertion(value + place));
                }
                body.push(']');
                (EXECUTE_TRANSACTION, body)
            }
            Self::Sql(transaction) => {
                let statements = transaction.statements(random, rows);
                let path = if statements.len() == 1 {
                    EXECUTE
                } else {
                    EXECUTE_TRANSACTION
                };
                (path, serde_json::json!(statements).to_string())
            }
            Self::Update => (EXECUTE, update("n", row, value)),
            Self::UpdateIndexed => (EXECUTE, update("k", row, value)),
            Self::Read(level) => (level.path(), selection(row)),
            Self::Mixed if value.is_multiple_of(10) => (EXECUTE, update("n", row, value)),
            Self::Mixed => (Level::Weak.path(), selection(row)),
            Self::Large => {
                let mut text = String::with_capacity(LARGE_BYTES + 16);
                while text.len() < LARGE_BYTES {
                    write!(text, "{:016x}", random.bits()).expect("a string takes all");
                }
                let body = format!(r#"[["INSERT INTO bench_large(name) VALUES(?)","{text}"]]"#);
                (EXECUTE, body)
            }
        };
        Call {
            path,
            body: Bytes::from(body),
        }
    }
}

const fn sql(place: usize) -> (Workload, &'static str) {
    let (transaction, name, _) = Transaction::ALL[place];
    (Workload::Sql(transaction), name)
}

impl Level {
    fn path(self) -> &'static str {
        match self {
            Self::None => "/db/query?level=none",
            Self::Weak => "/db/query?level=weak",
            Self::Linearizable => "/db/query?level=linearizable",
            Self::Strong => "/db/query?level=strong",
        }
    }
}

fn insertion(value: u64) -> String {
    format!(r#"["INSERT INTO bench_log(name, n) VALUES(?, ?)","customer number {value}",{value}]"#)
}

fn update(column: &str, row: u64, value: u64) -> String {
    format!(r#"[["UPDATE bench_rows SET {column} = ? WHERE id = ?",{value},{row}]]"#)
}

fn selection(row: u64) -> String {
    format!(r#"[["SELECT n, name FROM bench_rows WHERE id = ?",{row}]]"#)
}

async fn prepare_rows(connection: &mut Connection, rows: u64) -> Result<(), String> {
    let table = "CREATE TABLE IF NOT EXISTS bench_rows(id INTEGER PRIMARY KEY, n INTEGER, \
         k INTEGER, name TEXT)";
    execute(connection, table).await?;
    let mut have = count(connection, "bench_rows").await?;
    if have < rows {
        // An index that is there already would be filled in random order.
        execute(connection, "DROP INDEX IF EXISTS bench_rows_k").await?;
    }
    while have < rows {
        let upto = rows.min(have + CHUNK_ROWS);
        let sql = format!(
            "INSERT INTO bench_rows WITH RECURSIVE s(i) AS (SELECT {first} UNION ALL \
             SELECT i + 1 FROM s WHERE i < {upto}) \
             SELECT i, i, (i * 7919) % 1000003, 'customer number ' || i FROM s",
            first = have + 1,
        );
        execute(connection, &sql).await?;
        have = upto;
    }
    let index = "CREATE INDEX IF NOT EXISTS bench_rows_k ON bench_rows(k)";
    execute(connection, index).await
}

async fn prepare_accounts(connection: &mut Connection, rows: u64) -> Result<(), String> {
    for sql in Transaction::schema() {
        execute(connection, sql).await?;
    }
    let mut have = count(connection, "bench_accounts").await?;
    while have < rows {
        let upto = rows.min(have + CHUNK_ROWS);
        for sql in Transaction::filling(have + 1, upto) {
            execute(connection, &sql).await?;
        }
        have = upto;
    }
    Ok(())
}

async fn execute(connection: &mut Connection, sql: &str) -> Result<(), String> {
    let body = Bytes::from(serde_json::json!([sql]).to_string());
    let path = "/db/execute?timeout=120s";
    connection.call(Call { path, body }).await.map(drop)
}

/// Rows of the table, which are numbered from 1 without gaps.
async fn count(connection: &mut Connection, table: &str) -> Result<u64, String> {
    let sql = format!("SELECT coalesce(max(id), 0) FROM {table}");
    let call = Call {
        path: "/db/query?level=strong&timeout=120s",
        body: Bytes::from(serde_json::json!([sql]).to_string()),
    };
    let answer = connection.call(call).await?;
    let parsed: serde_json::Value =
        serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
    let rows = parsed["results"][0]["values"][0][0].as_u64();
    rows.ok_or_else(|| format!("not a number of rows: {parsed}"))
}

const EXECUTE: &str = "/db/execute";
const EXECUTE_TRANSACTION: &str = "/db/execute?transaction";
const BATCH_ROWS: u64 = 100;
const LARGE_BYTES: usize = 64 << 10;
/// Rows that are written by one statement while a table is filled.
const CHUNK_ROWS: u64 = 50_000;
