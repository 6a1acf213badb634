//! Seeded random SQL that reaches every corner of the WAL: spills, savepoints, growth, shrink.
//!
//! Nothing in it depends on the connection that runs it, so two databases that ran the same
//! statements agree row by row.

use std::fmt::Write;

use crate::seed::Random;

/// What is run as one unit.
#[derive(Debug)]
pub enum Step {
    /// Statements between BEGIN and its end; true: COMMIT, false: ROLLBACK.
    Group(Vec<String>, bool),
    /// A statement that cannot run inside a transaction, or is one by itself.
    Alone(String),
}

/// An endless source of steps for a database that was empty at first.
pub struct Workload {
    random: Random,
    auto_vacuum: bool,
    names: u64,
}

const TABLES: [&str; 4] = ["t0", "t1", "t2", "t3"];

impl Workload {
    /// A workload; `auto_vacuum`: the database can be shrunk step by step.
    #[must_use]
    pub const fn new(seed: u64, auto_vacuum: bool) -> Self {
        Self {
            random: Random::new(seed),
            auto_vacuum,
            names: 0,
        }
    }

    /// What makes the first tables.
    #[must_use]
    pub fn first(&mut self) -> Step {
        let mut statements: Vec<String> = TABLES
            .iter()
            .map(|t| format!("CREATE TABLE {t}(id INTEGER PRIMARY KEY, n INT, body)"))
            .collect();
        statements.push("CREATE INDEX t0_n ON t0(n)".into());
        statements.push("CREATE VIRTUAL TABLE words USING fts5(text)".into());
        statements.push("CREATE TABLE unique_n(n INTEGER UNIQUE)".into());
        Step::Group(statements, true)
    }

    /// The next step.
    pub fn step(&mut self) -> Step {
        match self.random.number_below(100) {
            0..3 => Step::Alone("VACUUM".into()),
            3..6 if self.auto_vacuum => Step::Alone(format!(
                "PRAGMA incremental_vacuum({})",
                self.random.number_below(20)
            )),
            6..9 => Step::Alone(format!(
                "PRAGMA user_version = {}",
                self.random.number_below(1000)
            )),
            9..20 => Step::Alone(self.change()),
            _ => {
                let count = 1 + self.random.number_below(6);
                let mut statements = Vec::new();
                for _ in 0..count {
                    self.statements(&mut statements, 0);
                }
                Step::Group(statements, !self.random.chance(10))
            }
        }
    }

    fn statements(&mut self, into: &mut Vec<String>, depth: u64) {
        if depth < 3 && self.random.chance(20) {
            let name = format!("s{depth}");
            into.push(format!("SAVEPOINT {name}"));
            for _ in 0..=self.random.number_below(3) {
                self.statements(into, depth + 1);
            }
            if self.random.chance(50) {
                into.push(format!("ROLLBACK TO {name}"));
                if self.random.chance(50) {
                    self.statements(into, depth + 1);
                }
            }
            into.push(format!("RELEASE {name}"));
        } else if self.random.chance(8) {
            into.push(self.schema_change());
        } else {
            into.push(self.change());
        }
    }

    fn change(&mut self) -> String {
        let table = self.random.pick(&TABLES);
        let n = self.random.number_below(1000);
        let body = self.body();
        match self.random.number_below(16) {
            0..4 => format!("INSERT INTO {table}(n, body) VALUES ({n}, {body})"),
            4 | 5 => {
                let rows = 1 + self.random.number_below(120);
                format!(
                    "INSERT INTO {table}(n, body) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL \
                     SELECT i + 1 FROM c WHERE i < {rows}) SELECT i * {n} % 997, {body} FROM c"
                )
            }
            6 | 7 => format!("UPDATE {table} SET body = {body} WHERE n % 7 = {}", n % 7),
            8 => format!("UPDATE {table} SET n = n + 1 WHERE id % 5 = {}", n % 5),
            9 => format!("DELETE FROM {table} WHERE n % 5 = {}", n % 5),
            10 if self.random.chance(30) => format!("DELETE FROM {table}"),
            10 => format!("DELETE FROM {table} WHERE id = {n}"),
            11 | 12 => format!("INSERT INTO words(text) VALUES ('{}')", self.sentence()),
            13 => format!("DELETE FROM words WHERE rowid % 3 = {}", n % 3),
            // A constraint violation about every other time.
            14 => format!("INSERT INTO unique_n VALUES ({}), ({})", n % 20, n % 17),
            _ => format!(
                "INSERT OR FAIL INTO unique_n VALUES ({}), ({})",
                n % 50,
                n % 3
            ),
        }
    }

    fn schema_change(&mut self) -> String {
        self.names += 1;
        let (table, i) = (self.random.pick(&TABLES), self.names);
        match self.random.number_below(8) {
            0 => format!("CREATE INDEX i{i} ON {table}(n, body)"),
            1 => format!("DROP INDEX IF EXISTS i{}", self.random.number_below(i + 1)),
            2 => format!("ALTER TABLE {table} ADD COLUMN c{i} DEFAULT {i}"),
            3 => format!(
                "CREATE TRIGGER IF NOT EXISTS log_{table} AFTER INSERT ON {table} WHEN new.id % 2 \
                 BEGIN INSERT INTO unique_n SELECT max(n) + 1 FROM unique_n; END"
            ),
            4 => format!("DROP TRIGGER IF EXISTS log_{table}"),
            5 => format!("CREATE TABLE x{i} AS SELECT * FROM {table}"),
            6 => format!("DROP TABLE IF EXISTS x{}", self.random.number_below(i + 1)),
            _ => "INSERT INTO words(words) VALUES ('optimize')".into(),
        }
    }

    /// A value; now and then larger than any page.
    fn body(&mut self) -> String {
        let character = self.random.pick(&['a', 'k', 'x', '7']);
        match self.random.number_below(10) {
            0 => "NULL".into(),
            1 => format!("{}.5", self.random.number_below(100)),
            2 => format!("zeroblob({})", self.random.number_below(3000)),
            3 if self.random.chance(20) => {
                format!(
                    "printf('%.{}c', '{character}')",
                    self.random.number_below(150_000)
                )
            }
            _ => format!(
                "printf('%.{}c', '{character}')",
                self.random.number_below(900)
            ),
        }
    }

    fn sentence(&mut self) -> String {
        let mut sentence = String::new();
        for _ in 0..self.random.number_below(30) {
            let word = self.random.number_below(200);
            write!(sentence, "w{word} ").expect("writing to a string");
        }
        sentence
    }
}
