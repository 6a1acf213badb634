//! Pieces of random sizes between random transactions, with SQLite itself as the judge: what readers
//! of every age see, what it recovers from the files, and what redo makes of them. `WAL_SEEDS=n`
//! runs more.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::types::Value;
use wal_tests::replica::{Replica, data_dir, position, reader, redo};
use wal_tests::seed::{Random, seed};
use wal_tests::sql_workload::{Step, Workload};
use wallaby::sqlite::{AutoVacuum, Checkpoint, DatabaseOptions, Error, Record, RecordDraft};
use wallaby::wal::{Delta, PageSize};

const STEPS: usize = 60;
const SEEDS: u64 = 4;

/// All rows of all tables, read anew: a page in SQLite's cache would hide what lies in the files.
fn rows(connection: &Connection) -> Vec<Vec<Value>> {
    connection.execute_batch("PRAGMA shrink_memory").unwrap();
    let mut names = connection
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        .unwrap();
    let names = names.query_map((), |row| row.get(0)).unwrap();
    let names: Vec<String> = names.map(Result::unwrap).collect();
    let mut rows = Vec::new();
    for name in names {
        let sql = format!("SELECT * FROM \"{name}\" NOT INDEXED");
        let Ok(mut all) = connection.prepare(&sql) else {
            // A shadow table of a virtual one may have no rowid to go by.
            continue;
        };
        let columns = all.column_count();
        let row = |row: &rusqlite::Row<'_>| (0..columns).map(|at| row.get(at)).collect();
        rows.extend(all.query_map((), row).unwrap().map(Result::unwrap));
    }
    rows
}

/// A read transaction that goes on, and what it has to see.
struct Reader {
    connection: Connection,
    expected: Vec<Vec<Value>>,
}

impl Reader {
    fn begin(path: &Path) -> Self {
        let connection = reader(path);
        connection
            .execute_batch("PRAGMA cache_size = 1; BEGIN; SELECT * FROM sqlite_schema")
            .unwrap();
        let expected = rows(&connection);
        Self {
            connection,
            expected,
        }
    }

    fn check(&self, seed: u64) {
        assert!(rows(&self.connection) == self.expected, "seed {seed}");
    }
}

/// One database, all its deltas since the record, and those who read it.
struct Scene {
    seed: u64,
    random: Random,
    node: Replica,
    deltas: Vec<Delta>,
    /// A record that is not durable yet, and how many of the deltas it covers.
    draft: Option<(RecordDraft, usize)>,
    readers: Vec<Reader>,
    pieces: u32,
    held_back: u32,
    most_pieces: u32,
    recorded: u64,
}

impl Scene {
    fn run_step(&mut self, step: Step) {
        let sql = self.node.sql();
        match step {
            Step::Alone(statement) => drop(sql.execute_batch(&statement)),
            Step::Group(statements, commit) => {
                sql.execute_batch("BEGIN").unwrap();
                for statement in statements {
                    drop(sql.execute_batch(&statement));
                }
                let end = if commit { "COMMIT" } else { "ROLLBACK" };
                sql.execute_batch(end).unwrap();
            }
        }
        let released = self.node.decisions.take().into_iter();
        self.deltas
            .extend(released.map(|bytes| Delta::decode(bytes).unwrap()));
    }

    fn move_piece(&mut self) {
        let before = self.node.database.backfilled().unwrap();
        let frames = self.random.pick(&[1, 2, 7, 40, 300]);
        let upto = self.random.pick(&[before.wal_frames / 2, u32::MAX]);
        let after = self.node.database.backfill(upto, frames).unwrap();
        assert_eq!(after.wal_frames, before.wal_frames);
        let moved = after.backfilled - before.backfilled;
        assert!(moved <= frames && (moved == 0 || after.backfilled <= upto));
        assert!(moved == 0 || !after.complete, "the last frame is left");
        let reach = self.node.database.reach().unwrap();
        assert!(moved == 0 || after.backfilled <= reach);
        let could = upto.min(before.wal_frames.saturating_sub(1)).min(reach);
        assert!(
            after.is_held_back || after.backfilled >= could.min(before.backfilled + frames),
            "seed {}: {before:?} {after:?}",
            self.seed
        );
        assert!(!after.is_held_back || !self.readers.is_empty());
        self.pieces += u32::from(moved > 0);
        self.held_back += u32::from(after.is_held_back);
    }

    fn finish(&mut self) {
        let wait = Duration::ZERO;
        let kind = self.random.pick(&[
            Checkpoint::Passive,
            Checkpoint::Restart { wait },
            Checkpoint::Truncate { wait },
        ]);
        let now = self.node.database.backfilled().unwrap();
        if self.node.database.reach().unwrap() < now.wal_frames && !now.complete {
            let refused = self.node.database.checkpoint(kind);
            assert!(matches!(refused, Err(Error::NotRecorded)), "{refused:?}");
            self.draft = None;
            self.count_on_wal();
            let (draft, covered) = self.draft.take().unwrap();
            draft.save().unwrap();
            self.deltas.drain(..covered);
        }
        let backfill = self.node.database.checkpoint(kind).unwrap();
        if !backfill.complete {
            return;
        }
        self.most_pieces = self.most_pieces.max(std::mem::take(&mut self.pieces));
        if self.draft.is_none() {
            self.recorded += 1;
            let at = position(self.recorded);
            let draft = self.node.database.draft_record(at, Some(at), b"");
            self.draft = Some((draft.unwrap(), self.deltas.len()));
        }
    }

    /// Begins a record that counts on the WAL as it is.
    fn count_on_wal(&mut self) {
        if self.draft.is_none() {
            self.recorded += 1;
            let at = position(self.recorded);
            let draft = self.node.database.draft_overlay(at, Some(at), b"");
            self.draft = Some((draft.unwrap(), self.deltas.len()));
        }
    }

    /// Makes a record durable, long after the state that it is of. Some are never saved: the next
    /// one has all that they had.
    fn save(&mut self) {
        if let Some((draft, covered)) = self.draft.take()
            && self.random.chance(70)
        {
            draft.save().unwrap();
            self.deltas.drain(..covered);
        }
    }

    /// The files as kill -9 leaves them, for SQLite alone, and for a start of ours.
    fn crash(&mut self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        for file in ["db.sqlite", "db.sqlite-wal", "checkpoint", "pages.hash"] {
            // Not in this process: closing the file would drop SQLite's locks.
            let from = self.node.path().with_file_name(file);
            let copied = Command::new("cp").arg(from).arg(dir.join(file)).status();
            assert!(copied.unwrap().success());
        }
        let expected = self.node.pages();
        let size = expected[0].len();
        let plain = dir.join("plain");
        for suffix in ["", "-wal"] {
            let name = |base: &str| format!("{base}{suffix}");
            std::fs::copy(dir.join(name("db.sqlite")), dir.join(name("plain"))).unwrap();
        }
        let connection = Connection::open(&plain).unwrap();
        connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()))
            .unwrap();
        drop(connection);
        let found = std::fs::read(&plain).unwrap();
        assert!(found.chunks(size).eq(&expected), "seed {}", self.seed);
        let (lock, hashes) = redo(dir, &self.deltas).unwrap();
        assert_eq!(hashes.sum(), self.node.database.hash());
        drop(lock);
        let found = std::fs::read(dir.join("db.sqlite")).unwrap();
        assert!(found.chunks(size).eq(&expected), "seed {}", self.seed);
    }
}

fn run(seed: u64) -> (u32, u32) {
    let dir = data_dir();
    let mut random = Random::new(seed);
    let size = PageSize::new(random.pick(&[512, 512, 1024, 4096, 65536])).unwrap();
    let vacuum = random.pick(&[AutoVacuum::None, AutoVacuum::Incremental]);
    let mut workload = Workload::new(seed, vacuum != AutoVacuum::None);
    let node = Replica::create(dir.path(), size, vacuum, DatabaseOptions::default());
    let mut scene = Scene {
        seed,
        random,
        node,
        deltas: Vec::new(),
        draft: None,
        readers: Vec::new(),
        pieces: 0,
        held_back: 0,
        most_pieces: 0,
        recorded: 1,
    };
    scene.run_step(workload.first());
    for step in 0..STEPS {
        scene.run_step(workload.step());
        if scene.random.chance(15) && scene.readers.len() < 7 {
            scene.readers.push(Reader::begin(scene.node.path()));
        }
        for _ in 0..scene.random.below(4) {
            scene.move_piece();
        }
        // A reader that begins between two pieces sees what the writer sees.
        let (young, writer) = (Reader::begin(scene.node.path()), rows(scene.node.sql()));
        assert!(young.expected == writer, "seed {seed}");
        drop(young);
        if let Some(at) = scene.readers.len().checked_sub(1) {
            let at = scene.random.below(at + 1);
            scene.readers[at].check(seed);
            if scene.random.chance(20) {
                drop(scene.readers.swap_remove(at));
            }
        }
        if scene.random.chance(8) {
            scene.finish();
        }
        if scene.random.chance(25) {
            scene.count_on_wal();
        }
        if scene.random.chance(40) {
            scene.save();
        }
        if scene.random.chance(5) {
            scene.crash(&dir.path().join(format!("crash{step}")));
        }
    }
    for reader in &scene.readers {
        reader.check(seed);
    }
    assert_eq!(scene.node.database.witness().found(), 0);
    let last = Record::load(dir.path()).unwrap().unwrap();
    assert!(last.applied.index <= scene.recorded);
    (scene.most_pieces, scene.held_back)
}

#[test]
fn readers_recovery_and_redo_are_right_between_any_two_pieces() {
    let first = seed("checkpoints");
    let seeds = std::env::var("WAL_SEEDS").map_or(SEEDS, |seeds| seeds.parse().unwrap());
    let (mut most, mut held_back) = (0, 0);
    for seed in (0..seeds).map(|number| first.wrapping_add(number)) {
        let (pieces, waits) = run(seed);
        most = most.max(pieces);
        held_back += waits;
    }
    println!("up to {most} pieces in one checkpoint; {held_back} held back by readers");
    assert!(most > 3 && held_back > 0, "{most} {held_back}");
}

/// Pieces write a page that later frames have too only once: with the last of them.
#[test]
fn a_page_that_is_written_again_and_again_is_moved_once() {
    let dir = data_dir();
    let size = PageSize::DEFAULT;
    let options = DatabaseOptions::default();
    let mut node = Replica::create(dir.path(), size, AutoVacuum::None, options);
    node.sql()
        .execute_batch("CREATE TABLE t(v); INSERT INTO t VALUES(0)")
        .unwrap();
    let wait = Duration::ZERO;
    let all = node.checkpoint(Checkpoint::Restart { wait });
    assert!(all.unwrap().complete);
    for _ in 0..500 {
        node.sql().execute_batch("UPDATE t SET v = v + 1").unwrap();
    }
    let before = std::fs::metadata(node.path()).unwrap();
    let all = node.database.backfilled().unwrap();
    assert_eq!(all.left(), 500, "{all:?}");
    node.count_on_wal(2);
    while node.database.backfill(u32::MAX, 64).unwrap().left() > 1 {}
    let after = std::fs::metadata(node.path()).unwrap();
    // Nothing but the last frame of the page is ever written, and that one is left.
    assert_eq!(after.modified().unwrap(), before.modified().unwrap());
    assert_eq!(after.len(), before.len());
    let last = node.checkpoint(Checkpoint::Passive).unwrap();
    assert!(last.complete);
    let counted: i64 = node
        .reader()
        .query_row("SELECT v FROM t", (), |row| row.get(0))
        .unwrap();
    assert_eq!(counted, 500);
}
