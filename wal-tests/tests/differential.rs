//! A leader executes random SQL, a follower gets the captured pages, plain SQLite runs the same
//! statements. After every commit leader and follower must be equal byte for byte; in the end plain
//! SQLite must have the same rows.
//!
//! `WAL_SEEDS=5000` runs more seeds, `WAL_SEED=n` replays one.

#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::types::Value;
use wal_tests::replica::{Replica, data_dir};
use wal_tests::seed::Random;
use wal_tests::sql_workload::{Step, Workload};
use wallaby::sqlite::{AutoVacuum, Checkpoint, DatabaseOptions};
use wallaby::wal::{Delta, PageSize};

const STEPS: usize = 30;

#[test]
fn a_follower_of_pages_equals_its_leader_after_every_commit() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().unwrap());
    if let Some(seed) = number("WAL_SEED") {
        run(seed);
        return;
    }
    let seeds = number("WAL_SEEDS").unwrap_or(200);
    let next = AtomicU64::new(0);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(seed))) {
                        eprintln!("WAL_SEED={seed} cargo test -p wal-tests --test differential");
                        std::panic::resume_unwind(panic);
                    }
                }
            });
        }
    });
}

struct Trio {
    leader: Replica,
    follower: Replica,
    plain: Connection,
}

fn run(seed: u64) {
    let dir = data_dir();
    let mut random = Random::new(seed ^ 0x5eed);
    let page_size = random.pick(&[512, 512, 1024, 4096, 4096, 8192, 65536]);
    let (auto_vacuum, pragma) = random.pick(&[
        (AutoVacuum::None, 0),
        (AutoVacuum::Full, 1),
        (AutoVacuum::Incremental, 2),
    ]);
    let options = DatabaseOptions {
        spool_bytes_max: random.pick(&[0, 20_000, 64 << 20]),
        ..DatabaseOptions::default()
    };
    let mut trio = Trio {
        leader: replica(&dir.path().join("leader"), page_size, auto_vacuum, options),
        follower: replica(
            &dir.path().join("follower"),
            page_size,
            auto_vacuum,
            options,
        ),
        plain: Connection::open(dir.path().join("plain")).unwrap(),
    };
    trio.plain
        .execute_batch(&format!(
            "PRAGMA page_size = {page_size}; PRAGMA auto_vacuum = {pragma}; \
             PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;"
        ))
        .unwrap();
    let cache_pages = random.pick(&[5, 10, 2000]);
    let secure_delete = random.pick(&["ON", "OFF", "FAST"]);
    trio.leader
        .sql()
        .execute_batch(&format!(
            "PRAGMA cache_size = {cache_pages}; PRAGMA secure_delete = {secure_delete};"
        ))
        .unwrap();
    trio.leader.decisions.patches(random.chance(70));
    let mut workload = Workload::new(seed, auto_vacuum != AutoVacuum::None);
    let first = workload.first();
    trio.step(&first, false);
    for _ in 0..STEPS {
        let step = workload.step();
        trio.step(&step, random.chance(10));
        if random.chance(15) {
            checkpoint(&mut trio.leader, &mut random);
        }
        if random.chance(15) {
            checkpoint(&mut trio.follower, &mut random);
        }
    }
    let expected = rows(&trio.plain);
    for replica in [&trio.leader, &trio.follower] {
        let fresh = replica.reader();
        integrity_check(&fresh);
        assert_eq!(rows(&fresh), expected, "seed {seed}");
    }
}

fn replica(
    dir: &Path,
    page_size: u32,
    auto_vacuum: AutoVacuum,
    options: DatabaseOptions,
) -> Replica {
    std::fs::create_dir(dir).unwrap();
    Replica::create(dir, PageSize::new(page_size).unwrap(), auto_vacuum, options)
}

fn checkpoint(replica: &mut Replica, random: &mut Random) {
    let wait = Duration::from_millis(1);
    let kind = random.pick(&[
        Checkpoint::Passive,
        Checkpoint::Restart { wait },
        Checkpoint::Truncate { wait },
    ]);
    let backfill = replica.checkpoint(kind).unwrap();
    assert!(backfill.complete, "nobody is in the way");
}

impl Trio {
    fn step(&mut self, step: &Step, discard: bool) {
        let before = self.leader.decisions.asked();
        self.leader.decisions.discard(discard);
        let committed = match step {
            Step::Alone(statement) => self.alone(statement, discard),
            Step::Group(statements, commit) => self.group(statements, *commit, discard),
        };
        assert!(self.leader.sql().is_autocommit());
        let asked = self.leader.decisions.asked() - before;
        assert!(asked <= 1, "one transaction is one question");
        let released = self.leader.decisions.take();
        assert_eq!(
            released.len(),
            if committed { asked } else { 0 },
            "{step:?}"
        );
        for bytes in released {
            let delta = Delta::decode(bytes).unwrap();
            self.follower.inject(&delta).unwrap();
        }
        self.compare();
    }

    /// Runs a statement by itself. Returns whether it was committed.
    fn alone(&self, statement: &str, discard: bool) -> bool {
        let asked = self.leader.decisions.asked();
        let leader = run_to_end(self.leader.sql(), statement);
        if discard && self.leader.decisions.asked() > asked {
            assert!(leader.is_err(), "{statement}");
            return false;
        }
        let plain = run_to_end(&self.plain, statement);
        assert_eq!(
            leader.is_ok(),
            plain.is_ok(),
            "{statement}: {leader:?} {plain:?}"
        );
        // OR FAIL keeps the rows before the one that failed, and commits them.
        true
    }

    /// Runs a group. Returns whether it was committed.
    fn group(&self, statements: &[String], commit: bool, discard: bool) -> bool {
        for connection in [self.leader.sql(), &self.plain] {
            connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        }
        for statement in statements {
            let leader = run_to_end(self.leader.sql(), statement);
            let plain = run_to_end(&self.plain, statement);
            assert_eq!(
                leader.is_ok(),
                plain.is_ok(),
                "{statement}: {leader:?} {plain:?}"
            );
        }
        if !commit {
            self.leader.sql().execute_batch("ROLLBACK").unwrap();
            self.plain.execute_batch("ROLLBACK").unwrap();
            return false;
        }
        let asked = self.leader.decisions.asked();
        let ended = self.leader.sql().execute_batch("COMMIT");
        // Without changes there is nothing to ask, and nothing to discard.
        let discarded = discard && self.leader.decisions.asked() > asked;
        assert_eq!(ended.is_ok(), !discarded, "{ended:?}");
        let plain = if discarded { "ROLLBACK" } else { "COMMIT" };
        self.plain.execute_batch(plain).unwrap();
        !discarded
    }

    fn compare(&mut self) {
        let (leader, follower) = (&mut self.leader, &mut self.follower);
        assert_eq!(leader.database.hash(), follower.database.hash());
        let (ours, theirs) = (leader.pages(), follower.pages());
        assert_eq!(ours.len(), theirs.len());
        for (number, (a, b)) in (1..).zip(ours.iter().zip(&theirs)) {
            assert!(a == b, "page {number} differs");
        }
    }
}

/// Steps a statement through all its rows: `PRAGMA incremental_vacuum` works while it is stepped.
fn run_to_end(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query(())?;
    while rows.next()?.is_some() {}
    Ok(())
}

fn integrity_check(connection: &Connection) {
    let answer: String = connection
        .query_row("PRAGMA integrity_check", (), |row| row.get(0))
        .unwrap();
    assert_eq!(answer, "ok");
}

/// The schema and all rows of all tables.
fn rows(connection: &Connection) -> Vec<Vec<Value>> {
    let schema = query(
        connection,
        "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name",
    );
    let mut all = Vec::new();
    for entry in &schema {
        if let [Value::Text(kind), Value::Text(name), ..] = entry.as_slice()
            && kind == "table"
            && !name.starts_with("words_")
        {
            all.extend(query(
                connection,
                &format!("SELECT rowid, * FROM {name} ORDER BY rowid"),
            ));
        }
    }
    all.extend(schema);
    all
}

fn query(connection: &Connection, sql: &str) -> Vec<Vec<Value>> {
    let mut statement = connection.prepare(sql).unwrap();
    let columns = statement.column_count();
    let mut rows = statement.query(()).unwrap();
    let mut all = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        all.push(
            (0..columns)
                .map(|column| row.get(column).unwrap())
                .collect(),
        );
    }
    all
}
