//! Groups whose commit is refused, or whose disk fails: on a VFS that fails where it is told to.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::OnceLock;

use rusqlite::ffi::{self, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs};
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;
use wallaby::sqlite::{Answer, Reply, Request, Shape, SqlCommit, Statement, Writer, WriterOptions};

thread_local! {
    /// The syncs of a WAL that still succeed; below zero: all of them.
    static SYNCS_LEFT: Cell<i64> = const { Cell::new(-1) };
    /// Writes to a WAL at or beyond this offset fail with the code.
    static WRITE_FAILURE: Cell<(i64, c_int)> = const { Cell::new((i64::MAX, 0)) };
}

static ORIGINAL: OnceLock<sqlite3_io_methods> = OnceLock::new();

unsafe extern "C" fn open(
    _vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite's own arguments go to SQLite's own VFS; the method table is copied, and the
    // copy lives for ever.
    unsafe {
        let unix = ffi::sqlite3_vfs_find(std::ptr::null());
        let code = (*unix).xOpen.unwrap()(unix, name, file, flags, out_flags);
        if code == ffi::SQLITE_OK && flags & ffi::SQLITE_OPEN_WAL != 0 {
            let original = ORIGINAL.get_or_init(|| *(*file).pMethods);
            let faulty = sqlite3_io_methods {
                xSync: Some(sync),
                xWrite: Some(write),
                ..*original
            };
            (*file).pMethods = Box::leak(Box::new(faulty));
        }
        code
    }
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, flags: c_int) -> c_int {
    match SYNCS_LEFT.get() {
        0 => ffi::SQLITE_IOERR_FSYNC,
        left => {
            SYNCS_LEFT.set(left - 1);
            // SAFETY: SQLite's own arguments.
            unsafe { ORIGINAL.get().unwrap().xSync.unwrap()(file, flags) }
        }
    }
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    bytes: *const c_void,
    length: c_int,
    offset: sqlite3_int64,
) -> c_int {
    let (from, code) = WRITE_FAILURE.get();
    if offset >= from {
        return code;
    }
    // SAFETY: SQLite's own arguments.
    unsafe { ORIGINAL.get().unwrap().xWrite.unwrap()(file, bytes, length, offset) }
}

fn register() {
    static REGISTERED: OnceLock<()> = OnceLock::new();
    REGISTERED.get_or_init(|| {
        // SAFETY: the copy of the default VFS and its name live for ever.
        unsafe {
            let unix = ffi::sqlite3_vfs_find(std::ptr::null());
            let name = CString::new("faulty").unwrap().into_raw();
            let vfs = sqlite3_vfs {
                zName: name,
                xOpen: Some(open),
                pNext: std::ptr::null_mut(),
                ..*unix
            };
            assert_eq!(
                ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 0),
                ffi::SQLITE_OK
            );
        }
    });
}

struct Fixture {
    writer: Writer,
    connection: Connection,
    _directory: TempDir,
}

fn fixture() -> Fixture {
    register();
    let directory = tempfile::tempdir().unwrap();
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let connection =
        Connection::open_with_flags_and_vfs(directory.path().join("db"), flags, "faulty").unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA cache_size=10; PRAGMA synchronous=FULL;
             CREATE TABLE t (id INTEGER PRIMARY KEY, data);",
        )
        .unwrap();
    let writer = Writer::new(&connection, &WriterOptions::default()).unwrap();
    Fixture {
        writer,
        connection,
        _directory: directory,
    }
}

impl Fixture {
    fn run(&mut self, group: &[Request]) -> (Vec<Reply>, SqlCommit) {
        let end = self.writer.run(&self.connection, group);
        assert!(self.connection.is_autocommit());
        (end.replies, end.sql_commit)
    }

    fn ids(&self) -> Vec<i64> {
        let mut statement = self
            .connection
            .prepare("SELECT id FROM t ORDER BY id")
            .unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    }
}

fn execute(texts: &[&str]) -> Request {
    Request {
        statements: texts
            .iter()
            .map(|sql| Statement {
                sql: (*sql).to_owned(),
                parameters: Vec::new(),
            })
            .collect(),
        transaction: false,
        shape: Shape::Execute,
        statement_time_max: None,
        qualify_columns: false,
    }
}

fn answers(reply: &Reply) -> Vec<Answer> {
    assert_eq!(reply.error, None);
    reply
        .outcomes
        .iter()
        .map(|outcome| outcome.answer.clone())
        .collect()
}

fn written(last_insert_id: i64, rows_affected: i64) -> Answer {
    Answer::Written {
        last_insert_id,
        rows_affected,
    }
}

#[test]
fn a_refused_commit_leaves_no_row_and_no_counter_behind() {
    let mut fixture = fixture();
    fixture.run(&[execute(&["INSERT INTO t VALUES (5, 'a'), (6, 'b')"])]);
    SYNCS_LEFT.set(0);
    let group = [
        execute(&["INSERT INTO t VALUES (70, 'c')"]),
        execute(&["CREATE TABLE more (x)"]),
    ];
    let (replies, sql_commit) = fixture.run(&group);
    assert_eq!(sql_commit, SqlCommit::Refused { partial: false });
    assert_eq!(replies.len(), 2, "both were in the transaction");
    assert_eq!(fixture.ids(), [5, 6]);
    SYNCS_LEFT.set(-1);
    let (replies, sql_commit) = fixture.run(&[group[1].clone(), group[0].clone()]);
    assert_eq!(sql_commit, SqlCommit::Done);
    assert_eq!(
        answers(&replies[0]),
        [written(6, 2)],
        "the echo of what is committed"
    );
    assert_eq!(answers(&replies[1]), [written(70, 1)]);
}

#[test]
fn a_refused_vacuum_says_whether_something_before_it_was_committed() {
    let mut fixture = fixture();
    SYNCS_LEFT.set(0);
    let (_, sql_commit) = fixture.run(&[execute(&["VACUUM", "INSERT INTO t VALUES (1, 'a')"])]);
    assert_eq!(sql_commit, SqlCommit::Refused { partial: false });
    SYNCS_LEFT.set(1);
    let (_, sql_commit) = fixture.run(&[
        execute(&["INSERT INTO t VALUES (2, 'b')", "VACUUM"]),
        execute(&["SELECT"]),
    ]);
    assert_eq!(sql_commit, SqlCommit::Refused { partial: true });
    SYNCS_LEFT.set(1);
    let (_, sql_commit) = fixture.run(&[execute(&["VACUUM", "INSERT INTO t VALUES (3, 'c')"])]);
    assert_eq!(sql_commit, SqlCommit::Refused { partial: true });
    SYNCS_LEFT.set(1);
    let (_, sql_commit) = fixture.run(&[execute(&["DELETE FROM t; VACUUM"])]);
    assert_eq!(sql_commit, SqlCommit::Refused { partial: true });
    SYNCS_LEFT.set(-1);
    assert_eq!(fixture.ids(), [0; 0]);
}

/// Enough to spill from the cache into the WAL before COMMIT.
const LARGE: &str = "INSERT INTO t WITH RECURSIVE c(x) AS (SELECT 100 UNION ALL SELECT x + 1 \
     FROM c WHERE x < 400) SELECT x, zeroblob(3000) FROM c";

#[test]
fn a_write_error_in_the_middle_of_a_group_costs_only_the_statement_that_met_it() {
    for (code, message) in [
        (ffi::SQLITE_FULL, "database or disk is full"),
        (ffi::SQLITE_IOERR_WRITE, "disk I/O error"),
    ] {
        let mut fixture = fixture();
        WRITE_FAILURE.set((200_000, code));
        let (replies, sql_commit) = fixture.run(&[
            execute(&["INSERT INTO t VALUES (1, 'a')"]),
            execute(&[LARGE]),
            execute(&["INSERT INTO t VALUES (2, 'b')"]),
        ]);
        WRITE_FAILURE.set((i64::MAX, 0));
        assert_eq!(sql_commit, SqlCommit::Done);
        assert_eq!(answers(&replies[0]), [written(1, 1)]);
        assert_eq!(answers(&replies[1]), [Answer::Failed(message.to_owned())]);
        assert_eq!(answers(&replies[2]), [written(2, 1)]);
        assert_eq!(fixture.ids(), [1, 2]);
    }
}

#[test]
fn a_group_too_large_for_one_commit_is_run_request_by_request() {
    let mut fixture = fixture();
    fixture
        .connection
        .execute_batch("PRAGMA cache_size=10000")
        .unwrap();
    WRITE_FAILURE.set((200_000, ffi::SQLITE_FULL));
    let group = [
        execute(&["INSERT INTO t VALUES (1, 'a')"]),
        execute(&[LARGE]),
        execute(&["INSERT INTO t VALUES (2, 'b')"]),
    ];
    let mut replies = Vec::new();
    while replies.len() < group.len() {
        let (more, sql_commit) = fixture.run(&group[replies.len()..]);
        assert_eq!(sql_commit, SqlCommit::Done);
        replies.extend(more);
    }
    WRITE_FAILURE.set((i64::MAX, 0));
    assert_eq!(answers(&replies[0]), [written(1, 1)]);
    let error = Some("database or disk is full".to_owned());
    assert_eq!(
        replies[1],
        Reply {
            outcomes: Vec::new(),
            error
        }
    );
    assert_eq!(answers(&replies[2]), [written(2, 1)]);
    assert_eq!(fixture.ids(), [1, 2]);
}
