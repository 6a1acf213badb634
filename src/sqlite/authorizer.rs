//! What a client's statement may do, and for how long. One guard per connection, installed once
//! (setting an authorizer expires every prepared statement); its mode is switched by a flag.
//!
//! Statements are compiled again after a change of the schema and come past the authorizer again,
//! so the mode has to be right when a statement *runs*, not only when it is prepared. That
//! holds for our own control statements too.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::ffi;

use super::client_transaction::SPANNING;
use super::interest::Interest;

/// The answer to a write on a connection that only reads, in rqlite's words.
pub(crate) const WRITE_IN_QUERY: &str = "attempt to change database via query operation";

/// On whose behalf the connection is working.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum Mode {
    /// Our own statements: everything is allowed.
    Server = 0,
    /// A client's VACUUM, which attaches a nameless database to copy into.
    Vacuum = 1,
    /// A client that may write.
    Write = 2,
    /// A client that may only read.
    Read = 3,
}

/// One thing that a statement wants to do, as SQLite asks about it (`sqlite3_set_authorizer`).
pub(crate) struct Action<'a> {
    /// The action code.
    pub(crate) code: c_int,
    /// The first argument; its meaning depends on the code.
    pub(crate) first: Option<&'a [u8]>,
    /// The second argument.
    pub(crate) second: Option<&'a [u8]>,
    /// The schema: `main`, `temp`, ...
    pub(crate) database: Option<&'a [u8]>,
}

/// What the authorizer answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// The statement may do it.
    Allow,
    /// The statement does not compile.
    Deny,
    /// The statement compiles, and leaves this out.
    Ignore,
}

/// What SAVEPOINT, RELEASE and ROLLBACK TO are about, with the name of the savepoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum SavepointAction {
    /// SAVEPOINT.
    Open(String),
    /// RELEASE.
    Release(String),
    /// ROLLBACK TO.
    RollBackTo(String),
}

/// The times of the statement that runs.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    started: Option<Instant>,
    deadline: Option<Instant>,
}

/// Judges every action of a connection, and ends statements that run too long.
#[derive(Debug)]
pub(crate) struct Guard {
    mode: AtomicU8,
    foreign_keys: bool,
    refusal: Mutex<Option<String>>,
    savepoint: Mutex<Option<SavepointAction>>,
    foreign_keys_asked: Mutex<Option<bool>>,
    clock: Mutex<Clock>,
    expired: AtomicBool,
    cancelled: Arc<AtomicBool>,
    /// Of the request that runs; without one, somebody always waits.
    interest: Mutex<Option<Interest>>,
    /// After this time a statement lowers the priority of its thread.
    give_way_after: Mutex<Option<Duration>>,
    has_given_way: AtomicBool,
    /// From then on statements are given up.
    give_up_at: Mutex<Option<Instant>>,
    has_given_up: AtomicBool,
}

impl Guard {
    /// `foreign_keys`: whether the node enforces them. Setting `cancelled` ends whatever runs.
    pub(crate) fn new(foreign_keys: bool, cancelled: Arc<AtomicBool>) -> Arc<Self> {
        Arc::new(Self {
            mode: AtomicU8::new(Mode::Server as u8),
            foreign_keys,
            refusal: Mutex::new(None),
            savepoint: Mutex::new(None),
            foreign_keys_asked: Mutex::new(None),
            clock: Mutex::default(),
            expired: AtomicBool::new(false),
            cancelled,
            interest: Mutex::new(None),
            give_way_after: Mutex::new(None),
            has_given_way: AtomicBool::new(false),
            give_up_at: Mutex::new(None),
            has_given_up: AtomicBool::new(false),
        })
    }

    /// Sets on whose behalf the next statements are prepared and run.
    pub(crate) fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Relaxed) {
            0 => Mode::Server,
            1 => Mode::Vacuum,
            2 => Mode::Write,
            _ => Mode::Read,
        }
    }

    /// Sets whose interest keeps the next statements running; `None`: they run whoever waits.
    pub(crate) fn watch(&self, interest: Option<&Interest>) {
        *lock(&self.interest) = interest.cloned();
    }

    /// Whether nobody waits any more for the request that runs.
    pub(crate) fn is_abandoned(&self) -> bool {
        lock(&self.interest).as_ref().is_some_and(Interest::is_lost)
    }

    /// Starts the clock for one statement and forgets what was refused before.
    pub(crate) fn start(&self, time_max: Option<Duration>) {
        let now = Instant::now();
        *lock(&self.clock) = Clock {
            started: Some(now),
            deadline: time_max.and_then(|time_max| now.checked_add(time_max)),
        };
        self.expired.store(false, Ordering::Relaxed);
        *lock(&self.refusal) = None;
        *lock(&self.foreign_keys_asked) = None;
    }

    /// Stops the clock, so that our own statements are not interrupted.
    pub(crate) fn stop(&self) {
        *lock(&self.clock) = Clock::default();
    }

    /// Whether the clock ran out since [`Self::start`].
    pub(crate) fn has_expired(&self) -> bool {
        self.expired.load(Ordering::Relaxed)
    }

    /// Why something was refused since [`Self::start`], if it was.
    pub(crate) fn take_refusal(&self) -> Option<String> {
        lock(&self.refusal).take()
    }

    /// Which savepoint the statement is about that was compiled last, if it is about one.
    pub(crate) fn take_savepoint(&self) -> Option<SavepointAction> {
        lock(&self.savepoint).take()
    }

    /// What the statement that was compiled last sets `PRAGMA foreign_keys` to, if it does.
    pub(crate) fn take_foreign_keys_asked(&self) -> Option<bool> {
        lock(&self.foreign_keys_asked).take()
    }

    /// The progress handler: whether to end the running statement.
    pub(crate) fn interrupts(&self) -> bool {
        let mode = self.mode();
        if mode == Mode::Server {
            return false;
        }
        let clock = *lock(&self.clock);
        let now = Instant::now();
        self.give_way_if_slow(clock.started, now);
        if lock(&self.give_up_at).is_some_and(|at| now >= at) {
            self.has_given_up.store(true, Ordering::Relaxed);
        }
        let expired = clock.deadline.is_some_and(|deadline| now >= deadline);
        if expired {
            self.expired.store(true, Ordering::Relaxed);
        }
        expired
            || self.has_given_up.load(Ordering::Relaxed)
            || self.cancelled.load(Ordering::Relaxed)
            || self.is_abandoned()
    }

    /// Has statements given up that run at this time or later; says whether one was, of those
    /// before this call.
    pub(crate) fn give_up_at(&self, time: Option<Instant>) -> bool {
        *lock(&self.give_up_at) = time;
        self.has_given_up.swap(false, Ordering::Relaxed)
    }

    /// Has a statement that runs for longer than this lower the priority of its thread.
    pub(crate) fn give_way_after(&self, time: Duration) {
        *lock(&self.give_way_after) = Some(time);
    }

    /// Whether one did. The thread then should not go on to other statements.
    pub(crate) fn has_given_way(&self) -> bool {
        self.has_given_way.load(Ordering::Relaxed)
    }

    fn give_way_if_slow(&self, started: Option<Instant>, now: Instant) {
        if self.has_given_way() {
            return;
        }
        let (Some(after), Some(started)) = (*lock(&self.give_way_after), started) else {
            return;
        };
        if now.duration_since(started) >= after {
            self.has_given_way.store(true, Ordering::Relaxed);
            // On Linux this is about the calling thread. If it is refused, nothing is lost but
            // a courtesy.
            let _ = rustix::process::setpriority_process(None, SLOW_PRIORITY);
        }
    }

    /// The authorizer: whether the action is allowed. A refusal's reason is kept.
    pub(crate) fn verdict(&self, action: &Action<'_>) -> Verdict {
        if action.code == ffi::SQLITE_SAVEPOINT {
            *lock(&self.savepoint) = savepoint_action(action);
        }
        match self.judge(action) {
            Ok(()) if self.mode() != Mode::Server && is_left_out(action) => Verdict::Ignore,
            Ok(()) => Verdict::Allow,
            Err(reason) => {
                lock(&self.refusal).get_or_insert(reason);
                Verdict::Deny
            }
        }
    }

    fn judge(&self, action: &Action<'_>) -> Result<(), String> {
        let mode = self.mode();
        match mode {
            Mode::Server => return Ok(()),
            Mode::Vacuum if action.code != ffi::SQLITE_ATTACH => return Ok(()),
            Mode::Vacuum => {
                let is_nameless = action.first.is_none_or(<[u8]>::is_empty);
                return refuse_unless(is_nameless, "VACUUM INTO would write a file on the server");
            }
            Mode::Write | Mode::Read => {}
        }
        match action.code {
            ffi::SQLITE_ATTACH | ffi::SQLITE_DETACH => refuse_unless(
                false,
                "a cluster keeps one database; ATTACH and DETACH are not served",
            ),
            ffi::SQLITE_TRANSACTION | ffi::SQLITE_SAVEPOINT => Err(SPANNING.to_owned()),
            ffi::SQLITE_FUNCTION if is(action.second, "load_extension") => {
                // SQLite's own words when extensions are switched off.
                Err("not authorized".to_owned())
            }
            ffi::SQLITE_PRAGMA => self.judge_pragma(mode, action),
            ffi::SQLITE_READ | ffi::SQLITE_SELECT | ffi::SQLITE_RECURSIVE => Ok(()),
            // ALTER TABLE looks for references in the temporary schema as well. A client cannot
            // update a schema table by itself.
            ffi::SQLITE_UPDATE if is_schema_table(action.first) => Ok(()),
            code => refuse_unless(
                !is(action.database, "temp") && !TEMPORARY.contains(&code),
                "temporary objects would be shared by all clients of this node, \
                 and are not replicated",
            ),
        }
    }

    fn judge_pragma(&self, mode: Mode, action: &Action<'_>) -> Result<(), String> {
        let name = text(action.first).to_ascii_lowercase();
        let value = action.second.map(|value| text(Some(value)));
        let name = name.as_str();
        let allowed = match (&value, mode) {
            (None, Mode::Read) => READABLE.contains(&name) || WITH_ARGUMENT.contains(&name),
            (None, _) => {
                READABLE.contains(&name) || WITH_ARGUMENT.contains(&name) || WRITING.contains(&name)
            }
            (Some(_), _) if WITH_ARGUMENT.contains(&name) => true,
            (Some(value), _) if name == "foreign_keys" => {
                return self.judge_foreign_keys(as_boolean(value));
            }
            (Some(_), _) if TUNING.contains(&name) => true,
            (Some(_), Mode::Read) if WRITING.contains(&name) || STORED.contains(&name) => {
                return Err(WRITE_IN_QUERY.to_owned());
            }
            (Some(_), _) => WRITING.contains(&name) || STORED.contains(&name),
        };
        if allowed {
            return Ok(());
        }
        if mode == Mode::Read && WRITING.contains(&name) {
            return Err(WRITE_IN_QUERY.to_owned());
        }
        let assignment = value.map(|value| format!("={value}")).unwrap_or_default();
        Err(format!("not authorized: PRAGMA {name}{assignment}"))
    }

    /// ON is a promise about later requests, which only the node can keep. OFF is what every dump
    /// begins with; it holds for the rest of the request.
    fn judge_foreign_keys(&self, value: Option<bool>) -> Result<(), String> {
        *lock(&self.foreign_keys_asked) = value;
        refuse_unless(
            value == Some(false) || value == Some(self.foreign_keys),
            "foreign keys are enforced by all connections or by none: start the nodes with -fk",
        )
    }
}

/// Pragmas that only answer, when they are not given a value. (They come from FTS and R-Tree, too.)
const READABLE: [&str; 38] = [
    "analysis_limit",
    "application_id",
    "auto_vacuum",
    "automatic_index",
    "busy_timeout",
    "cache_size",
    "cache_spill",
    "cell_size_check",
    "checkpoint_fullfsync",
    "collation_list",
    "compile_options",
    "data_version",
    "database_list",
    "defer_foreign_keys",
    "encoding",
    "foreign_keys",
    "freelist_count",
    "fullfsync",
    "function_list",
    "ignore_check_constraints",
    "journal_mode",
    "journal_size_limit",
    "legacy_alter_table",
    "locking_mode",
    "max_page_count",
    "mmap_size",
    "module_list",
    "page_count",
    "page_size",
    "pragma_list",
    "query_only",
    "read_uncommitted",
    "recursive_triggers",
    "schema_version",
    "secure_delete",
    "synchronous",
    "user_version",
    "wal_autocheckpoint",
];

/// Pragmas that only answer, with or without an argument.
const WITH_ARGUMENT: [&str; 10] = [
    "foreign_key_check",
    "foreign_key_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "quick_check",
    "table_info",
    "table_list",
    "table_xinfo",
];

/// Pragmas whose value only tunes a connection, with no effect on any result: setting them is
/// accepted, because drivers do so for every connection, and left out.
const TUNING: [&str; 9] = [
    "analysis_limit",
    "automatic_index",
    "busy_timeout",
    "cache_size",
    "cache_spill",
    "journal_size_limit",
    "mmap_size",
    "temp_store",
    "threads",
];

/// Pragmas that change the database, with or without an argument.
const WRITING: [&str; 2] = ["incremental_vacuum", "optimize"];

/// Pragmas whose value is stored in the database file, and replicated with it.
const STORED: [&str; 2] = ["application_id", "user_version"];

/// The actions on temporary objects that have codes of their own.
const TEMPORARY: [c_int; 8] = [
    ffi::SQLITE_CREATE_TEMP_INDEX,
    ffi::SQLITE_CREATE_TEMP_TABLE,
    ffi::SQLITE_CREATE_TEMP_TRIGGER,
    ffi::SQLITE_CREATE_TEMP_VIEW,
    ffi::SQLITE_DROP_TEMP_INDEX,
    ffi::SQLITE_DROP_TEMP_TABLE,
    ffi::SQLITE_DROP_TEMP_TRIGGER,
    ffi::SQLITE_DROP_TEMP_VIEW,
];

/// Settings of the connection, which all clients share. `foreign_keys` is not left to SQLite, as
/// that would not undo it at the end of the request.
fn is_left_out(action: &Action<'_>) -> bool {
    let is_setting = action.code == ffi::SQLITE_PRAGMA && action.second.is_some();
    is_setting
        && (is(action.first, "foreign_keys") || TUNING.iter().any(|name| is(action.first, name)))
}

fn savepoint_action(action: &Action<'_>) -> Option<SavepointAction> {
    let name = text(action.second);
    match action.first? {
        b"BEGIN" => Some(SavepointAction::Open(name)),
        b"RELEASE" => Some(SavepointAction::Release(name)),
        b"ROLLBACK" => Some(SavepointAction::RollBackTo(name)),
        _ => None,
    }
}
/// The nice value of a thread with a slow query: about a tenth of the usual share.
const SLOW_PRIORITY: i32 = 10;

fn refuse_unless(allowed: bool, reason: &str) -> Result<(), String> {
    if allowed {
        Ok(())
    } else {
        Err(format!("not authorized: {reason}"))
    }
}

fn is(name: Option<&[u8]>, expected: &str) -> bool {
    name.is_some_and(|name| name.eq_ignore_ascii_case(expected.as_bytes()))
}

fn is_schema_table(name: Option<&[u8]>) -> bool {
    is(name, "sqlite_master") || is(name, "sqlite_temp_master")
}

fn text(name: Option<&[u8]>) -> String {
    String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
}

/// The words that SQLite takes for a boolean (pragma.c).
fn as_boolean(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "on" | "yes" | "true" => Some(true),
        "0" | "off" | "no" | "false" => Some(false),
        _ => None,
    }
}

/// A panic while one of these is held is impossible; a poisoned lock still holds a good value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
