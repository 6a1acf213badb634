//! A database as SQL, in rqlite's form: tables by name, each with its rows, then indexes, triggers
//! and views in the order in which they were made (a trigger may belong to a view).
//!
//! Tables of SQLite's own come after all others: rows put into a table move its counter in
//! `sqlite_sequence`, which does not exist before the first such table does.
//!
//! A virtual table keeps its content in shadow tables that only its module may write, so what is
//! written is its rows, and for a full-text index over other tables the command to build it anew.

use std::ffi::CString;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::error::Error;
use super::extensions::Extensions;
use super::private::{self, Origin};
use super::raw::{Failure, Prepared};
use super::tokens::{Token, Tokens};
use super::values::Value;

/// The reader sets the pace, and no SQL of the database runs.
const TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a dump ended early.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The database could not be opened.
    #[error(transparent)]
    Database(#[from] Error),
    /// It could not be read.
    #[error("SQLite: {0}")]
    Sqlite(String),
    /// Nobody took what was written.
    #[error(transparent)]
    Write(#[from] io::Error),
}

impl From<Failure> for DumpError {
    fn from(failure: Failure) -> Self {
        Self::Sqlite(failure.message)
    }
}

/// Writes a database in rollback mode that nobody else uses as SQL; of these tables, if there are
/// any. Blocks as long as `out` does. Memory is bounded by the longest row.
///
/// # Errors
///
/// See [`DumpError`]. What was written by then is no whole dump: it lacks its COMMIT.
pub fn dump(
    path: &Path,
    tables: &[String],
    extensions: &Extensions,
    out: &mut dyn Write,
) -> Result<(), DumpError> {
    let connection = private::open(path, Origin::Copied, extensions, TIME_MAX)?;
    let wanted =
        |name: &[u8]| tables.is_empty() || tables.iter().any(|table| table.as_bytes() == name);
    let objects = Object::all(&connection)?;
    out.write_all(b"PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\n")?;
    let mut dump = Dump {
        connection: &connection,
        out,
        quoted_real: Quoted::new(&connection)?,
        indexes_to_build: Vec::new(),
    };
    let mut by_name: Vec<_> = objects.iter().filter(|it| it.kind == b"table").collect();
    by_name.sort_by(|a, b| a.name.cmp(&b.name));
    let (own, others): (Vec<_>, Vec<_>) = by_name.into_iter().partition(|it| it.is_sqlites());
    for table in others.into_iter().filter(|it| wanted(&it.name)) {
        dump.table(table, &objects)?;
    }
    for table in own.into_iter().filter(|it| wanted(&it.name)) {
        dump.sqlites_table(table)?;
    }
    for name in std::mem::take(&mut dump.indexes_to_build) {
        let name = quoted(&name);
        dump.line(&[b"INSERT INTO ", &name, b"(", &name, b") VALUES('rebuild');"])?;
    }
    let rest = objects.iter().filter(|it| it.kind != b"table");
    for object in rest.filter(|it| wanted(&it.table)) {
        dump.line(&[&object.sql, b";"])?;
    }
    dump.line(&[b"COMMIT;"])
}

/// A row of the schema.
struct Object {
    kind: Vec<u8>,
    name: Vec<u8>,
    table: Vec<u8>,
    sql: Vec<u8>,
    /// What `PRAGMA table_list` says: `table`, `virtual`, `shadow` or `view`.
    form: Vec<u8>,
}

impl Object {
    fn all(connection: &Connection) -> Result<Vec<Self>, Failure> {
        let sql = b"SELECT type, name, tbl_name, sql, \
             (SELECT l.type FROM pragma_table_list AS l \
              WHERE l.schema = 'main' AND l.name = s.name) \
             FROM main.sqlite_schema AS s WHERE sql NOT NULL ORDER BY rowid";
        let mut objects = Vec::new();
        each_row(connection, sql, |row| {
            let mut columns = (0..5).map(|column| bytes(row.value(column)));
            let mut next = || columns.next().unwrap_or_default();
            objects.push(Self {
                kind: next(),
                name: next(),
                table: next(),
                sql: next(),
                form: next(),
            });
            Ok::<(), Failure>(())
        })?;
        Ok(objects)
    }

    fn is_sqlites(&self) -> bool {
        let prefix = self.name.get(..7).unwrap_or_default();
        prefix.eq_ignore_ascii_case(b"sqlite_")
    }

    /// The module of a virtual table, in lower case.
    fn module(&self) -> String {
        let sql = String::from_utf8_lossy(&self.sql);
        let mut tokens = Tokens::new(&sql);
        let is_using = |token: &Token<'_>| match token {
            Token::Word(word) => word.eq_ignore_ascii_case("using"),
            _ => false,
        };
        // The name of the table comes before, and may be the word itself, but quoted.
        let _ = tokens.by_ref().find(is_using);
        match tokens.next() {
            Some(Token::Word(name) | Token::Quoted(name)) => name.to_ascii_lowercase(),
            _ => String::new(),
        }
    }
}

/// How the content of a virtual table is written.
enum Content {
    /// As rows, with their rowids.
    Documents,
    /// By building it anew from another table.
    Elsewhere,
    /// Not at all: nothing that could be read would bring it back.
    Lost,
    /// As rows.
    Rows,
}

struct Dump<'a> {
    connection: &'a Connection,
    out: &'a mut dyn Write,
    quoted_real: Quoted,
    indexes_to_build: Vec<Vec<u8>>,
}

impl Dump<'_> {
    fn line(&mut self, pieces: &[&[u8]]) -> Result<(), DumpError> {
        for piece in pieces {
            self.out.write_all(piece)?;
        }
        Ok(self.out.write_all(b"\n")?)
    }

    fn table(&mut self, table: &Object, objects: &[Object]) -> Result<(), DumpError> {
        if table.form == b"shadow" {
            return Ok(());
        }
        self.line(&[&table.sql, b";"])?;
        if table.form != b"virtual" {
            return self.rows(&table.name, false);
        }
        match content(table, objects) {
            Content::Documents => self.rows(&table.name, true),
            Content::Elsewhere => {
                self.indexes_to_build.push(table.name.clone());
                Ok(())
            }
            Content::Lost => Ok(()),
            Content::Rows => self.rows(&table.name, false),
        }
    }

    /// Of SQLite's own tables two have content that counts, and all are made by SQLite itself.
    fn sqlites_table(&mut self, table: &Object) -> Result<(), DumpError> {
        let make: &[u8] = match table.name.as_slice() {
            b"sqlite_sequence" => b"DELETE FROM \"sqlite_sequence\";",
            b"sqlite_stat1" => b"ANALYZE \"sqlite_master\";",
            _ => return Ok(()),
        };
        self.line(&[make])?;
        self.rows(&table.name, false)
    }

    /// The rows of a table, as far as they can be inserted again: without generated columns and
    /// the hidden ones of virtual tables.
    fn rows(&mut self, table: &[u8], with_rowids: bool) -> Result<(), DumpError> {
        let name = quoted(table);
        let mut columns = Vec::new();
        let list = [b"PRAGMA main.table_info(", name.as_slice(), b")"].concat();
        each_row(self.connection, &list, |row| {
            columns.push(quoted(&bytes(row.value(1))));
            Ok::<(), Failure>(())
        })?;
        if columns.is_empty() {
            return Ok(());
        }
        if with_rowids {
            columns.insert(0, b"rowid".to_vec());
        }
        let columns = columns.join(&b","[..]);
        let mut head = [b"INSERT INTO ", name.as_slice()].concat();
        if with_rowids {
            head = [&head, &b"("[..], &columns, b")"].concat();
        }
        head.extend_from_slice(b" VALUES(");
        let select = [b"SELECT ", columns.as_slice(), b" FROM main.", &name].concat();
        let (out, real) = (&mut self.out, &mut self.quoted_real);
        let mut line = Vec::new();
        each_row(self.connection, &select, |row| {
            line.clear();
            line.extend_from_slice(&head);
            for column in 0..row.column_count() {
                if column > 0 {
                    line.push(b',');
                }
                literal(&mut line, row.value(column), real)?;
            }
            line.extend_from_slice(b");\n");
            out.write_all(&line).map_err(DumpError::from)
        })
    }
}

/// Full-text tables hold their documents in a shadow table, or index those of another table, or
/// keep no document at all.
fn content(table: &Object, objects: &[Object]) -> Content {
    match table.module().as_str() {
        "fts3" | "fts4" | "fts5" => {
            let documents = [&table.name, &b"_content"[..]].concat();
            let is_documents = |it: &Object| it.form == b"shadow" && it.name == documents;
            if objects.iter().any(is_documents) {
                Content::Documents
            } else if is_contentless(&String::from_utf8_lossy(&table.sql)) {
                Content::Lost
            } else {
                Content::Elsewhere
            }
        }
        "geopoly" | "rtree" | "rtree_i32" => Content::Rows,
        _ => Content::Lost,
    }
}

/// Whether a full-text table was made with `content=''`.
fn is_contentless(sql: &str) -> bool {
    let tokens: Vec<_> = Tokens::new(sql).collect();
    tokens.windows(3).any(|three| {
        matches!(three, [Token::Word(name), Token::Symbol(b'='), Token::Quoted("")]
            if name.eq_ignore_ascii_case("content"))
    })
}

/// Asks SQLite for the text of a number that reads as exactly that number again.
struct Quoted(Prepared);

impl Quoted {
    fn new(connection: &Connection) -> Result<Self, Failure> {
        Ok(Self(prepare(connection, b"SELECT quote(?1)")?))
    }

    fn text(&mut self, value: f64) -> Result<Vec<u8>, Failure> {
        self.0.bind(1, &Value::Real(value))?;
        self.0.step()?;
        let text = bytes(self.0.value(0));
        self.0.reset();
        Ok(text)
    }
}

fn literal(out: &mut Vec<u8>, value: Value, real: &mut Quoted) -> Result<(), Failure> {
    match value {
        Value::Null => out.extend_from_slice(b"NULL"),
        Value::Integer(value) => out.extend_from_slice(value.to_string().as_bytes()),
        Value::Real(value) => out.extend_from_slice(&real.text(value)?),
        Value::Blob(value) => hexadecimal(out, &value),
        // SQL ends at a NUL, and has to be UTF-8.
        Value::Text(text) if text.contains(&0) || std::str::from_utf8(&text).is_err() => {
            out.extend_from_slice(b"CAST(");
            hexadecimal(out, &text);
            out.extend_from_slice(b" AS TEXT)");
        }
        Value::Text(text) => enclose(out, &text, b'\''),
    }
    Ok(())
}

fn hexadecimal(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.extend_from_slice(b"X'");
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
    out.push(b'\'');
}

/// A name in double quotes.
fn quoted(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + 2);
    enclose(&mut out, name, b'"');
    out
}

fn enclose(out: &mut Vec<u8>, text: &[u8], quote: u8) {
    out.push(quote);
    for &byte in text {
        if byte == quote {
            out.push(quote);
        }
        out.push(byte);
    }
    out.push(quote);
}

fn bytes(value: Value) -> Vec<u8> {
    match value {
        Value::Blob(bytes) | Value::Text(bytes) => bytes,
        _ => Vec::new(),
    }
}

fn prepare(connection: &Connection, sql: &[u8]) -> Result<Prepared, Failure> {
    let empty = || Failure::new(rusqlite::ffi::SQLITE_ERROR, "a name with a NUL in it");
    let sql = CString::new(sql).map_err(|_| empty())?;
    let (prepared, _) = Prepared::new(connection, &sql, 0)?;
    prepared.ok_or_else(empty)
}

fn each_row<E: From<Failure>>(
    connection: &Connection,
    sql: &[u8],
    mut row: impl FnMut(&Prepared) -> Result<(), E>,
) -> Result<(), E> {
    let mut prepared = prepare(connection, sql)?;
    while prepared.step()? {
        row(&prepared)?;
    }
    Ok(())
}
