//! The few calls of SQLite's C interface that rusqlite lacks: prepared statements whose names and
//! texts need not be UTF-8 (rusqlite panics on those, and a loaded database can hold them), one
//! authorizer shared between threads, extensions, and two counters of the connection.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rusqlite::{Connection, ffi};

use super::authorizer::{Action, Guard, Verdict};
use super::functions::Delegate;
use super::values::Value;

/// The progress handler is asked after about this many instructions of SQLite's virtual machine:
/// a fraction of a millisecond.
const PROGRESS_INSTRUCTIONS: c_int = 1000;

/// The key under which the connection keeps the guard alive.
const GUARD_KEY: &CStr = c"wallaby-guard";

/// An error of SQLite (or of a rule of ours, with the code that SQLite would have used).
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// The extended result code.
    pub(crate) code: c_int,
    /// SQLite's text, undecorated.
    pub(crate) message: String,
}

impl Failure {
    /// An error that SQLite did not report itself.
    pub(crate) fn new(code: c_int, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// Reads the error that the last call on `database` left behind.
    ///
    /// # Safety
    /// `database` is open, and no other thread is using it.
    unsafe fn last(database: *mut ffi::sqlite3, code: c_int) -> Self {
        // SAFETY: by the caller; the text is NUL-terminated and valid until the next call.
        let message = unsafe { CStr::from_ptr(ffi::sqlite3_errmsg(database)) };
        Self {
            code,
            message: message.to_string_lossy().into_owned(),
        }
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        match error {
            rusqlite::Error::SqliteFailure(error, Some(message)) => {
                Self::new(error.extended_code, message)
            }
            other => Self::new(ffi::SQLITE_ERROR, other.to_string()),
        }
    }
}

/// A compiled statement. SQLite refuses to close a connection that still has some, so whoever
/// keeps them drops them before the connection (otherwise its handle leaks, nothing worse).
#[derive(Debug)]
pub(crate) struct Prepared {
    statement: NonNull<ffi::sqlite3_stmt>,
}

// SAFETY: SQLite lets any thread use a statement as long as no other one uses it or its
// connection meanwhile (multi-thread mode). An executor keeps its statements beside their
// connection (`Reader`, the owner's `Open`), and whoever has the one has the other.
unsafe impl Send for Prepared {}

impl Prepared {
    /// Compiles the first statement of `sql` after `offset` bytes. Returns it, or `None` if there
    /// is only white space and comments, and the offset at which the next one begins.
    pub(crate) fn new(
        connection: &Connection,
        sql: &CStr,
        offset: usize,
    ) -> Result<(Option<Self>, usize), Failure> {
        let rest = sql.to_bytes_with_nul().get(offset..).unwrap_or(b"\0");
        let mut statement = ptr::null_mut();
        let mut tail = ptr::null();
        // SAFETY: `rest` ends with a NUL, so length -1 (which spares SQLite a copy of the whole
        // rest of a long script for each statement of it) reads nothing beyond it. A connection
        // that is borrowed here is used by this thread alone, since rusqlite's is not `Sync`.
        unsafe {
            let database = connection.handle();
            let code = ffi::sqlite3_prepare_v3(
                database,
                rest.as_ptr().cast(),
                -1,
                ffi::SQLITE_PREPARE_PERSISTENT,
                &raw mut statement,
                &raw mut tail,
            );
            if code != ffi::SQLITE_OK {
                return Err(Failure::last(database, code));
            }
        }
        let used = tail.addr().saturating_sub(rest.as_ptr().addr());
        Ok((
            NonNull::new(statement).map(|statement| Self { statement }),
            offset + used,
        ))
    }

    fn failure(&self, code: c_int) -> Failure {
        // SAFETY: the statement keeps its connection from being closed.
        unsafe { Failure::last(ffi::sqlite3_db_handle(self.statement.as_ptr()), code) }
    }

    /// The number of the highest parameter.
    pub(crate) fn parameter_count(&self) -> usize {
        // SAFETY: the statement is live.
        let count = unsafe { ffi::sqlite3_bind_parameter_count(self.statement.as_ptr()) };
        usize::try_from(count).unwrap_or(0)
    }

    /// The number of the parameter with this name, its prefix included.
    pub(crate) fn parameter_index(&self, name: &CStr) -> Option<usize> {
        // SAFETY: the statement is live and the name is NUL-terminated.
        let index =
            unsafe { ffi::sqlite3_bind_parameter_index(self.statement.as_ptr(), name.as_ptr()) };
        usize::try_from(index).ok().filter(|&index| index > 0)
    }

    /// Binds a copy of `value` to the parameter with this number, counted from 1.
    pub(crate) fn bind(&mut self, index: usize, value: &Value) -> Result<(), Failure> {
        let statement = self.statement.as_ptr();
        let index = c_int::try_from(index).unwrap_or(c_int::MAX);
        // SAFETY: the statement is live; pointer and length describe one buffer, which SQLite
        // copies before the call returns (TRANSIENT). A `Vec`'s pointer is never null, so an empty
        // one is bound as an empty value and not as NULL.
        let code = unsafe {
            match value {
                Value::Null => ffi::sqlite3_bind_null(statement, index),
                Value::Integer(value) => ffi::sqlite3_bind_int64(statement, index, *value),
                Value::Real(value) => ffi::sqlite3_bind_double(statement, index, *value),
                Value::Text(text) => ffi::sqlite3_bind_text64(
                    statement,
                    index,
                    text.as_ptr().cast(),
                    text.len() as u64,
                    ffi::SQLITE_TRANSIENT(),
                    UTF8,
                ),
                Value::Blob(blob) => ffi::sqlite3_bind_blob64(
                    statement,
                    index,
                    blob.as_ptr().cast(),
                    blob.len() as u64,
                    ffi::SQLITE_TRANSIENT(),
                ),
            }
        };
        if code == ffi::SQLITE_OK {
            Ok(())
        } else {
            Err(self.failure(code))
        }
    }

    /// Runs the statement to its next row: `true` if there is one, `false` at the end.
    pub(crate) fn step(&mut self) -> Result<bool, Failure> {
        // SAFETY: the statement is live.
        match unsafe { ffi::sqlite3_step(self.statement.as_ptr()) } {
            ffi::SQLITE_ROW => Ok(true),
            ffi::SQLITE_DONE => Ok(false),
            code => Err(self.failure(code)),
        }
    }

    /// Ends the execution and forgets the parameters; the statement can then run again.
    pub(crate) fn reset(&mut self) {
        // SAFETY: the statement is live. The code returned repeats that of the last step.
        unsafe {
            ffi::sqlite3_reset(self.statement.as_ptr());
            ffi::sqlite3_clear_bindings(self.statement.as_ptr());
        }
    }

    /// Whether running it leaves the database file as it is (`sqlite3_stmt_readonly`). An EXPLAIN
    /// is reported like the statement that it explains; see [`Self::is_explain`].
    pub(crate) fn is_read_only(&self) -> bool {
        // SAFETY: the statement is live.
        unsafe { ffi::sqlite3_stmt_readonly(self.statement.as_ptr()) != 0 }
    }

    /// Whether it is EXPLAIN or EXPLAIN QUERY PLAN.
    pub(crate) fn is_explain(&self) -> bool {
        // SAFETY: the statement is live.
        unsafe { ffi::sqlite3_stmt_isexplain(self.statement.as_ptr()) != 0 }
    }

    /// How many columns a row has. May change at the first step, where SQLite compiles a statement
    /// anew if the schema has changed.
    pub(crate) fn column_count(&self) -> usize {
        // SAFETY: the statement is live.
        let count = unsafe { ffi::sqlite3_column_count(self.statement.as_ptr()) };
        usize::try_from(count).unwrap_or(0)
    }

    /// The name of a column, counted from 0.
    pub(crate) fn column_name(&self, column: usize) -> String {
        // SAFETY: the statement is live; SQLite answers NULL for a column that does not exist.
        unsafe {
            text_of(ffi::sqlite3_column_name(
                self.statement.as_ptr(),
                index_of(column),
            ))
        }
        .unwrap_or_default()
    }

    /// The declared type of the table's column that a result column comes from, if any.
    pub(crate) fn column_declared_type(&self, column: usize) -> Option<String> {
        // SAFETY: as above.
        unsafe {
            text_of(ffi::sqlite3_column_decltype(
                self.statement.as_ptr(),
                index_of(column),
            ))
        }
    }

    /// The table and the column in it that a result column comes straight from, if it does: not
    /// through an expression. Behind a view it is the table's.
    pub(crate) fn column_origin(&self, column: usize) -> Option<(String, String)> {
        let (statement, column) = (self.statement.as_ptr(), index_of(column));
        // SAFETY: as above.
        unsafe {
            Some((
                text_of(ffi::sqlite3_column_table_name(statement, column))?,
                text_of(ffi::sqlite3_column_origin_name(statement, column))?,
            ))
        }
    }

    /// The size of a value of the current row in bytes, before anything is copied.
    pub(crate) fn value_bytes(&self, column: usize) -> usize {
        let (statement, column) = (self.statement.as_ptr(), index_of(column));
        // SAFETY: the statement is live; without a row SQLite answers as for NULL.
        let bytes = unsafe {
            match ffi::sqlite3_column_type(statement, column) {
                ffi::SQLITE_TEXT | ffi::SQLITE_BLOB => ffi::sqlite3_column_bytes(statement, column),
                _ => 8,
            }
        };
        usize::try_from(bytes).unwrap_or(0)
    }

    /// A value of the current row.
    pub(crate) fn value(&self, column: usize) -> Value {
        let (statement, column) = (self.statement.as_ptr(), index_of(column));
        // SAFETY: the statement is live; without a row SQLite answers as for NULL. The pointer is
        // asked for before the length, as SQLite demands, and both hold until the next call.
        unsafe {
            match ffi::sqlite3_column_type(statement, column) {
                ffi::SQLITE_INTEGER => Value::Integer(ffi::sqlite3_column_int64(statement, column)),
                ffi::SQLITE_FLOAT => Value::Real(ffi::sqlite3_column_double(statement, column)),
                ffi::SQLITE_TEXT => {
                    let start = ffi::sqlite3_column_text(statement, column);
                    Value::Text(bytes_of(
                        start,
                        ffi::sqlite3_column_bytes(statement, column),
                    ))
                }
                ffi::SQLITE_BLOB => {
                    let start = ffi::sqlite3_column_blob(statement, column).cast();
                    Value::Blob(bytes_of(
                        start,
                        ffi::sqlite3_column_bytes(statement, column),
                    ))
                }
                _ => Value::Null,
            }
        }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // SAFETY: the statement is live and nobody else has its pointer.
        unsafe { ffi::sqlite3_finalize(self.statement.as_ptr()) };
    }
}

/// `SQLITE_UTF8` in the type of `sqlite3_bind_text64`.
const UTF8: u8 = 1;

fn index_of(column: usize) -> c_int {
    c_int::try_from(column).unwrap_or(c_int::MAX)
}

/// # Safety
/// `text` is null or NUL-terminated.
unsafe fn text_of(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: by the caller.
    Some(
        unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned(),
    )
}

/// # Safety
/// `start` is null or points to `length` readable bytes.
unsafe fn bytes_of(start: *const u8, length: c_int) -> Vec<u8> {
    let length = usize::try_from(length).unwrap_or(0);
    if start.is_null() {
        return Vec::new();
    }
    // SAFETY: by the caller.
    unsafe { std::slice::from_raw_parts(start, length) }.to_vec()
}

/// Sets what `last_insert_rowid()` answers.
pub(crate) fn set_last_insert_id(connection: &Connection, id: i64) {
    // SAFETY: the connection is open and borrowed by this thread.
    unsafe { ffi::sqlite3_set_last_insert_rowid(connection.handle(), id) };
}

/// Loads an extension into a connection. SQL cannot do so before or after.
pub(crate) fn load_extension(connection: &Connection, path: &Path) -> Result<(), Failure> {
    let failed = |message: String| Failure::new(ffi::SQLITE_ERROR, message);
    let path = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| failed("its path has a NUL byte".to_owned()))?;
    let mut what = ptr::null_mut();
    // SAFETY: the connection is open and borrowed by this thread, the path outlives the call, and
    // the message, if there is one, was allocated by SQLite for us to free. What the extension
    // itself does is the operator's choice.
    unsafe {
        let database = connection.handle();
        let enable = ffi::SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION;
        let nowhere = ptr::null_mut::<c_int>();
        let code = ffi::sqlite3_db_config(database, enable, 1 as c_int, nowhere);
        if code != ffi::SQLITE_OK {
            return Err(Failure::last(database, code));
        }
        let loaded =
            ffi::sqlite3_load_extension(database, path.as_ptr(), ptr::null(), &raw mut what);
        let message = text_of(what);
        ffi::sqlite3_free(what.cast());
        let disabled = ffi::sqlite3_db_config(database, enable, 0 as c_int, nowhere);
        match (loaded, disabled) {
            (ffi::SQLITE_OK, ffi::SQLITE_OK) => Ok(()),
            (ffi::SQLITE_OK, code) => Err(Failure::last(database, code)),
            (code, _) => {
                let last = Failure::last(database, code);
                Err(message.map_or(last, failed))
            }
        }
    }
}

/// Whether the open transaction violates a deferred foreign key (`SQLITE_DBSTATUS_DEFERRED_FKS`).
/// RELEASE of an inner savepoint does not look; COMMIT would fail for everybody.
pub(crate) fn deferred_foreign_keys_open(connection: &Connection) -> bool {
    let (mut current, mut highest) = (0, 0);
    // SAFETY: the connection is open and borrowed by this thread; both results are ours.
    let code = unsafe {
        ffi::sqlite3_db_status(
            connection.handle(),
            ffi::SQLITE_DBSTATUS_DEFERRED_FKS,
            &raw mut current,
            &raw mut highest,
            0,
        )
    };
    code == ffi::SQLITE_OK && current != 0
}

/// Sets the most bytes that SQLite allocates in this process; 0: no limit.
pub(crate) fn set_heap_limit(bytes: i64) {
    // SAFETY: it takes a number and SQLite's own locks.
    unsafe { ffi::sqlite3_hard_heap_limit64(bytes) };
}

/// Replaces one of SQLite's functions on this connection. (rusqlite's way to define one panics
/// when SQLite is out of memory for an argument.)
pub(crate) fn install_function(
    connection: &Connection,
    delegate: Box<Delegate>,
) -> Result<(), Failure> {
    let (name, count) = (delegate.name(), c_int::from(delegate.argument_count()));
    let mut flags = ffi::SQLITE_UTF8 | ffi::SQLITE_DETERMINISTIC | ffi::SQLITE_INNOCUOUS;
    if delegate.is_json() {
        flags |= ffi::SQLITE_RESULT_SUBTYPE;
    }
    let context = Box::into_raw(delegate).cast::<c_void>();
    // SAFETY: the connection is open and borrowed by this thread. SQLite owns the box from here on,
    // and calls `release_delegate` when it is done with it, also if this call fails.
    unsafe {
        let database = connection.handle();
        let code = ffi::sqlite3_create_function_v2(
            database,
            name.as_ptr(),
            count,
            flags,
            context,
            Some(delegated),
            None,
            None,
            Some(release_delegate),
        );
        if code != ffi::SQLITE_OK {
            return Err(Failure::last(database, code));
        }
    }
    Ok(())
}

unsafe extern "C" fn release_delegate(context: *mut c_void) {
    // SAFETY: the pointer came from `Box::into_raw` above; SQLite calls this once.
    drop(unsafe { Box::from_raw(context.cast::<Delegate>()) });
}

unsafe extern "C" fn delegated(
    context: *mut ffi::sqlite3_context,
    count: c_int,
    arguments: *mut *mut ffi::sqlite3_value,
) {
    // SAFETY: SQLite passes the delegate that was registered, on the thread of its connection and
    // not again before this call has ended (its statement runs on another connection), and `count`
    // arguments.
    let (delegate, arguments) = unsafe {
        (
            &mut *ffi::sqlite3_user_data(context).cast::<Delegate>(),
            std::slice::from_raw_parts(arguments, usize::try_from(count).unwrap_or(0)),
        )
    };
    // SAFETY: the values are valid during this call. The length of a text or BLOB is there without
    // a conversion, which would change the value.
    let length = |number: usize| unsafe {
        let Some(&value) = arguments.get(number) else {
            return 0;
        };
        match ffi::sqlite3_value_type(value) {
            ffi::SQLITE_TEXT | ffi::SQLITE_BLOB => {
                u64::try_from(ffi::sqlite3_value_bytes(value)).unwrap_or(0)
            }
            _ => 0,
        }
    };
    let is_json = delegate.is_json();
    let result = match delegate.refuses(length(0), length(1)) {
        Some(reason) => Err(Failure::new(ffi::SQLITE_TOOBIG, reason)),
        None => delegate.statement().and_then(|prepared| {
            // SAFETY: as above; the statement is live.
            let result = unsafe { compute(context, prepared, arguments, is_json) };
            prepared.reset();
            result
        }),
    };
    if let Err(failure) = result {
        let length = c_int::try_from(failure.message.len()).unwrap_or(c_int::MAX);
        // SAFETY: SQLite copies the text.
        unsafe {
            ffi::sqlite3_result_error(context, failure.message.as_ptr().cast(), length);
            ffi::sqlite3_result_error_code(context, failure.code);
        }
    }
}

/// Hands the arguments to a statement, and its only value to the caller of a function.
///
/// # Safety
/// `context` and `arguments` are those of a function call that has not ended.
unsafe fn compute(
    context: *mut ffi::sqlite3_context,
    prepared: &mut Prepared,
    arguments: &[*mut ffi::sqlite3_value],
    is_json: bool,
) -> Result<(), Failure> {
    let statement = prepared.statement.as_ptr();
    for (number, &value) in (1..).zip(arguments) {
        // SAFETY: the statement is live; the value by the caller.
        let code = unsafe { ffi::sqlite3_bind_value(statement, number, value) };
        if code != ffi::SQLITE_OK {
            return Err(prepared.failure(code));
        }
    }
    if prepared.step()? {
        // SAFETY: the statement has a row with one value, which SQLite copies.
        unsafe {
            ffi::sqlite3_result_value(context, ffi::sqlite3_column_value(statement, 0));
            if is_json && ffi::sqlite3_column_type(statement, 0) == ffi::SQLITE_TEXT {
                ffi::sqlite3_result_subtype(context, JSON_SUBTYPE);
            }
        }
    }
    Ok(())
}

/// What SQLite marks texts with that are JSON.
const JSON_SUBTYPE: u32 = b'J' as u32;

/// Makes `guard` the connection's authorizer and progress handler. Once per connection: setting an
/// authorizer expires all prepared statements.
pub(crate) fn install(connection: &Connection, guard: &Arc<Guard>) -> Result<(), Failure> {
    let context = Arc::into_raw(Arc::clone(guard)).cast_mut().cast::<c_void>();
    // SAFETY: the connection is open and borrowed by this thread. It owns the reference count made
    // above until it is closed (SQLite calls `release` then, and also if storing it fails),
    // so both callbacks find a live guard for as long as they can be called.
    unsafe {
        let database = connection.handle();
        let code =
            ffi::sqlite3_set_clientdata(database, GUARD_KEY.as_ptr(), context, Some(release_guard));
        if code != ffi::SQLITE_OK {
            return Err(Failure::last(database, code));
        }
        ffi::sqlite3_set_authorizer(database, Some(authorize), context);
        ffi::sqlite3_progress_handler(database, PROGRESS_INSTRUCTIONS, Some(progress), context);
    }
    Ok(())
}

unsafe extern "C" fn release_guard(context: *mut c_void) {
    // SAFETY: the pointer came from `Arc::into_raw` in `install`; SQLite calls this once.
    drop(unsafe { Arc::from_raw(context.cast_const().cast::<Guard>()) });
}

unsafe extern "C" fn authorize(
    context: *mut c_void,
    code: c_int,
    first: *const c_char,
    second: *const c_char,
    database: *const c_char,
    _accessor: *const c_char,
) -> c_int {
    // SAFETY: the context is the guard that the connection keeps alive; the texts are null or
    // NUL-terminated and valid during this call.
    let (guard, first, second, database) = unsafe {
        (
            &*context.cast_const().cast::<Guard>(),
            name(first),
            name(second),
            name(database),
        )
    };
    match guard.verdict(&Action {
        code,
        first,
        second,
        database,
    }) {
        Verdict::Allow => ffi::SQLITE_OK,
        Verdict::Deny => ffi::SQLITE_DENY,
        Verdict::Ignore => ffi::SQLITE_IGNORE,
    }
}

/// # Safety
/// `text` is null or NUL-terminated and outlives the result.
unsafe fn name<'t>(text: *const c_char) -> Option<&'t [u8]> {
    if text.is_null() {
        return None;
    }
    // SAFETY: by the caller.
    Some(unsafe { CStr::from_ptr(text) }.to_bytes())
}

unsafe extern "C" fn progress(context: *mut c_void) -> c_int {
    // SAFETY: the context is the guard that the connection keeps alive.
    let guard = unsafe { &*context.cast_const().cast::<Guard>() };
    c_int::from(guard.interrupts())
}
