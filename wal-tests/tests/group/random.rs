//! Random requests in groups against the same requests one after the other on plain SQLite: same
//! answers, same content. Replay with `WAL_SEED=n cargo test -p wal-tests --test group`.
use rusqlite::Connection;
use rusqlite::types::ValueRef;
use wallaby::sqlite::{Answer, Request, Shape, SqlCommit, Statement, Value, Writer, WriterOptions};

const SCHEMA: &str = "
    CREATE TABLE t (id INTEGER PRIMARY KEY, u INTEGER UNIQUE, v TEXT CHECK (v <> 'bad'));
    CREATE TABLE log (id INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT);
    CREATE TABLE trap (x INTEGER);
    CREATE TRIGGER spring BEFORE INSERT ON trap WHEN new.x > 6
        BEGIN SELECT RAISE(ROLLBACK, 'sprung'); END;
    CREATE TRIGGER fails BEFORE INSERT ON trap WHEN new.x = 6
        BEGIN SELECT RAISE(FAIL, 'failed'); END;
    CREATE TRIGGER follow AFTER UPDATE ON t
        BEGIN INSERT INTO log(what) VALUES (old.v || new.v); END;
    CREATE TABLE parent (id INTEGER PRIMARY KEY);
    CREATE TABLE child (id INTEGER PRIMARY KEY,
        p INTEGER REFERENCES parent(id) DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE strict_child (id INTEGER PRIMARY KEY, p INTEGER REFERENCES parent(id));
    CREATE VIRTUAL TABLE words USING fts5(w);";

const TABLES: [&str; 7] = [
    "t",
    "log",
    "trap",
    "parent",
    "child",
    "strict_child",
    "words",
];

/// Steele, Lea and Flood's SplitMix64: small, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn is_one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

fn random_sql(random: &mut Random) -> String {
    let (a, b, c) = (random.below(12), random.below(12), random.below(8));
    let or = [
        "",
        "OR REPLACE",
        "OR IGNORE",
        "OR FAIL",
        "OR ROLLBACK",
        "OR ABORT",
    ][usize::try_from(random.below(6)).unwrap()];
    match random.below(20) {
        0..=2 => format!("INSERT {or} INTO t VALUES ({a}, {b}, 'v{c}')"),
        3 => format!("INSERT {or} INTO t(u, v) VALUES ({a}, 'x'), ({b}, 'y'), ({a}, 'z')"),
        4 => format!("INSERT INTO t(u, v) VALUES ({b}, 'bad')"),
        5 => format!("UPDATE {or} t SET u = u + {c}, v = v || '{a}' WHERE id > {b}"),
        6 => format!("DELETE FROM t WHERE id % 5 = {c} RETURNING id, u"),
        7 => format!("INSERT INTO t(u) VALUES ({a}), (NULL) RETURNING *"),
        8 => format!("INSERT INTO trap VALUES ({c})"),
        9 => format!("INSERT INTO trap VALUES (1), ({c})"),
        10 => format!("INSERT {or} INTO parent VALUES ({a})"),
        11 => format!("INSERT {or} INTO child VALUES (NULL, {b})"),
        12 => format!("INSERT INTO strict_child VALUES (NULL, {b})"),
        13 => format!("DELETE FROM parent WHERE id = {a}"),
        14 => format!("INSERT INTO words VALUES ('word{a} word{b}')"),
        15 => format!("SELECT * FROM t WHERE id >= {a} ORDER BY id"),
        16 => format!(
            "WITH n(x) AS (VALUES ({a}), ({b})) INSERT OR IGNORE INTO parent SELECT x FROM n"
        ),
        17 => {
            let ddl = [
                "CREATE INDEX i ON t(v)",
                "DROP INDEX i",
                "CREATE TABLE more (x)",
                "DROP TABLE more",
                "INSERT INTO more VALUES (1)",
                "SELECT * FROM more",
                "ALTER TABLE more ADD COLUMN y",
                "ALTER TABLE more RENAME TO renamed",
            ];
            ddl[usize::try_from(c).unwrap()].to_owned()
        }
        18 => "nonsense".to_owned(),
        _ => format!("DELETE FROM child WHERE id < {a}"),
    }
}

fn random_request(random: &mut Random) -> Request {
    let mut statements = Vec::new();
    for _ in 0..=random.below(4) {
        let mut sql = random_sql(random);
        if random.is_one_in(8) {
            sql = format!("{sql}; {};", random_sql(random));
        }
        statements.push(Statement {
            sql,
            parameters: Vec::new(),
        });
    }
    let transaction = random.is_one_in(3);
    if random.is_one_in(3) {
        add_transactions(random, &mut statements, transaction);
    }
    Request {
        statements,
        transaction,
        shape: if random.is_one_in(2) {
            Shape::Unified
        } else {
            Shape::Execute
        },
        statement_time_max: None,
        qualify_columns: false,
    }
}

/// Puts BEGIN, COMMIT, SAVEPOINT and so on between the statements, rarely so that they fit. One text
/// for each: a failed text takes back what it began itself, which plain SQLite does not.
fn add_transactions(random: &mut Random, statements: &mut Vec<Statement>, in_transaction: bool) {
    let words = [
        "SAVEPOINT s",
        "SAVEPOINT t",
        "ROLLBACK TO s",
        "RELEASE s",
        "RELEASE T",
        "BEGIN",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
    ];
    let words = if in_transaction { &words[..5] } else { &words };
    let mut put = |at: usize, word: &str| {
        let statement = Statement {
            sql: word.to_owned(),
            parameters: Vec::new(),
        };
        statements.insert(at.min(statements.len()), statement);
    };
    let mut at = 0;
    if !in_transaction && random.is_one_in(2) {
        put(0, "BEGIN");
    }
    for _ in 0..=random.below(5) {
        at += usize::try_from(random.below(3)).unwrap();
        let word = usize::try_from(random.below(words.len() as u64)).unwrap();
        put(at, words[word]);
    }
    if !in_transaction && random.is_one_in(2) {
        put(usize::MAX, "COMMIT");
    }
}

const SPANNING: &str = "explicit transactions cannot span requests: send BEGIN and COMMIT within \
     one request, or use the `transaction` parameter";

const LEFT_OPEN: &str = "rolled back, because the request left its transaction open: explicit \
     transactions cannot span requests; send BEGIN and COMMIT within one request, or use the \
     `transaction` parameter";

/// A reply without its times.
type Answers = (Vec<Answer>, Option<String>);

/// Plain SQLite with the counters of Wallaby's rules on top.
struct Oracle {
    connection: Connection,
    id: i64,
    changes: u64,
    /// The name of each open level (none for BEGIN), and the counters before it.
    levels: Vec<(Option<String>, (i64, u64))>,
}

impl Oracle {
    fn new(foreign_keys: bool) -> Self {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        connection
            .pragma_update(None, "foreign_keys", foreign_keys)
            .unwrap();
        Self {
            connection,
            id: 0,
            changes: 0,
            levels: Vec::new(),
        }
    }

    fn run(&mut self, request: &Request) -> Answers {
        let before = (self.id, self.changes);
        let mut answers = Vec::new();
        if request.transaction {
            self.connection.execute_batch("BEGIN").unwrap();
        }
        let mut first_open = 0;
        for statement in &request.statements {
            if self.levels.is_empty() {
                first_open = answers.len();
            }
            let mut result = self.run_text(&statement.sql, request.shape);
            self.follow(&statement.sql, &mut result);
            let is_failed = result.is_err();
            answers.push(result.unwrap_or_else(Answer::Failed));
            if is_failed && request.transaction {
                if !self.connection.is_autocommit() {
                    self.connection.execute_batch("ROLLBACK").unwrap();
                }
                (self.id, self.changes) = before;
                self.levels.clear();
                return (answers, None);
            }
        }
        if !request.transaction && !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK").unwrap();
            (self.id, self.changes) = self.levels[0].1;
            for answer in &mut answers[first_open..] {
                if !matches!(answer, Answer::Failed(_)) {
                    *answer = Answer::Failed(LEFT_OPEN.to_owned());
                }
            }
        }
        self.levels.clear();
        if request.transaction
            && let Err(error) = self.connection.execute_batch("COMMIT")
        {
            self.connection.execute_batch("ROLLBACK").unwrap();
            (self.id, self.changes) = before;
            return (Vec::new(), Some(message(&error)));
        }
        (answers, None)
    }

    /// Keeps account of what is open, and puts Wallaby's words and counters in place of SQLite's.
    fn follow(&mut self, sql: &str, result: &mut Result<Answer, String>) {
        if let Err(message) = result {
            if message.ends_with("no transaction is active") {
                SPANNING.clone_into(message);
            }
            if let Some((_, before)) = self.levels.first()
                && self.connection.is_autocommit()
            {
                (self.id, self.changes) = *before;
                self.levels.clear();
            }
            return;
        }
        let name = sql.rsplit(' ').next().unwrap().to_ascii_lowercase();
        let level = self
            .levels
            .iter()
            .rposition(|(level, _)| level.as_ref() == Some(&name));
        let now = (self.id, self.changes);
        match sql {
            "BEGIN" => self.levels.push((None, now)),
            "COMMIT" => self.levels.clear(),
            "ROLLBACK" => {
                (self.id, self.changes) = self.levels[0].1;
                self.levels.clear();
            }
            _ if sql.starts_with("SAVEPOINT ") => self.levels.push((Some(name), now)),
            _ if sql.starts_with("RELEASE ") => self.levels.truncate(level.unwrap()),
            _ if sql.starts_with("ROLLBACK TO ") => {
                (self.id, self.changes) = self.levels[level.unwrap()].1;
                self.levels.truncate(level.unwrap() + 1);
            }
            _ => return,
        }
        *result = Ok(Answer::Written {
            last_insert_id: self.id,
            rows_affected: i64::try_from(self.changes).unwrap(),
        });
    }

    fn run_text(&mut self, sql: &str, shape: Shape) -> Result<Answer, String> {
        let mut answer = None;
        let connection = &self.connection;
        for text in sql.trim_end_matches(';').split("; ") {
            let mut statement = connection.prepare(text).map_err(|error| message(&error))?;
            let is_change = ["INSERT", "UPDATE", "DELETE", "WITH"]
                .iter()
                .any(|word| text.starts_with(word));
            let wants_rows =
                statement.column_count() > 0 && (shape == Shape::Unified || !statement.readonly());
            // SAFETY: the connection is open and used by this thread alone.
            unsafe { rusqlite::ffi::sqlite3_set_last_insert_rowid(connection.handle(), self.id) };
            let mut values = Vec::new();
            let mut rows = statement.raw_query();
            let failure = loop {
                match rows.next() {
                    Ok(Some(row)) => values.push(
                        (0..row.as_ref().column_count())
                            .map(|column| value(row.get_ref(column).unwrap()))
                            .collect(),
                    ),
                    Ok(None) => break None,
                    Err(error) => break Some(message(&error)),
                }
            };
            drop(rows);
            if is_change {
                self.id = connection.last_insert_rowid();
                self.changes = connection.changes();
            }
            if let Some(failure) = failure {
                return Err(failure);
            }
            answer = Some(if wants_rows {
                let columns = statement.column_names().map(str::to_owned).collect();
                Answer::Rows(wallaby::sqlite::Rows {
                    columns,
                    types: Vec::new(),
                    declared: Vec::new(),
                    values,
                })
            } else {
                Answer::Written {
                    last_insert_id: self.id,
                    rows_affected: self.changes as i64,
                }
            });
        }
        Ok(answer.unwrap())
    }
}

fn message(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(_, Some(message))
        | rusqlite::Error::SqlInputError { msg: message, .. } => message.clone(),
        other => other.to_string(),
    }
}

fn value(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(value) => Value::Integer(value),
        ValueRef::Real(value) => Value::Real(value),
        ValueRef::Text(text) => Value::Text(text.to_vec()),
        ValueRef::Blob(blob) => Value::Blob(blob.to_vec()),
    }
}

fn content(connection: &Connection) -> Vec<Vec<Vec<Value>>> {
    let mut content = Vec::new();
    let schema = "SELECT name, sql FROM sqlite_schema ORDER BY name";
    let tables = TABLES
        .iter()
        .map(|table| format!("SELECT rowid, * FROM {table} ORDER BY rowid"));
    for sql in tables.chain([schema.to_owned()]) {
        let mut statement = connection.prepare(&sql).unwrap();
        let count = statement.column_count();
        let rows = statement
            .query_map([], |row| {
                Ok((0..count)
                    .map(|column| value(row.get_ref(column).unwrap()))
                    .collect())
            })
            .unwrap();
        content.push(rows.map(Result::unwrap).collect());
    }
    content
}

/// Counters that an oracle on plain SQLite cannot know (see `run_seed`) are not compared.
fn without_counters(answers: &mut Answers) {
    for answer in &mut answers.0 {
        if let Answer::Written {
            last_insert_id,
            rows_affected,
        } = answer
        {
            (*last_insert_id, *rows_affected) = (0, 0);
        }
    }
}

fn run_seed(seed: u64) -> u32 {
    let mut random = Random(seed);
    let foreign_keys = random.is_one_in(2);
    let directory = tempfile::tempdir().unwrap();
    let connection = Connection::open(directory.path().join("db")).unwrap();
    connection.execute_batch("PRAGMA journal_mode=WAL").unwrap();
    connection.execute_batch(SCHEMA).unwrap();
    let options = WriterOptions {
        foreign_keys,
        ..WriterOptions::default()
    };
    let mut writer = Writer::new(&connection, &options).unwrap();
    let mut oracle = Oracle::new(foreign_keys);
    let mut split_runs = 0;
    for number in 0..12 {
        let group: Vec<Request> = (0..=random.below(20))
            .map(|_| random_request(&mut random))
            .collect();
        let mut replies = Vec::new();
        while replies.len() < group.len() {
            let end = writer.run(&connection, &group[replies.len()..]);
            assert_eq!(end.sql_commit, SqlCommit::Done);
            split_runs += u32::from(end.replies.len() < group.len() - replies.len());
            replies.extend(end.replies);
        }
        for (request, reply) in group.iter().zip(replies) {
            let mut expected = oracle.run(request);
            let mut got: Answers = (
                reply
                    .outcomes
                    .into_iter()
                    .map(|outcome| outcome.answer)
                    .collect(),
                reply.error,
            );
            for answer in &mut got.0 {
                if let Answer::Rows(rows) = answer {
                    rows.types.clear();
                    rows.declared.clear();
                }
            }
            // A deferred foreign key that fails a single statement is a rollback to a savepoint for
            // Wallaby, which restores the counters, and none for plain SQLite.
            if foreign_keys {
                without_counters(&mut expected);
                without_counters(&mut got);
            }
            assert_eq!(got, expected, "seed {seed}, group {number}, {request:#?}");
        }
        let tables = content(&connection)
            .into_iter()
            .zip(content(&oracle.connection));
        for (number_of_table, (got, expected)) in tables.enumerate() {
            let table = TABLES.get(number_of_table).unwrap_or(&"sqlite_schema");
            assert_eq!(got, expected, "seed {seed}, group {number}, table {table}");
        }
    }
    let check: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok", "seed {seed}");
    split_runs
}

#[test]
fn random_groups_give_the_answers_and_the_content_of_single_requests_on_plain_sqlite() {
    if let Ok(seed) = std::env::var("WAL_SEED") {
        run_seed(seed.parse().expect("WAL_SEED is a number"));
        return;
    }
    let first = u64::from(getrandom::u32().unwrap());
    println!("seeds {first}..; replay one with WAL_SEED=n cargo test -p wal-tests --test group");
    let split_runs: u32 = (first..first + 60).map(run_seed).sum();
    assert!(
        split_runs > 0,
        "the seeds must have killed some groups twice"
    );
}
