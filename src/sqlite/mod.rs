//! Layer 1: the only place that knows SQLite.
//!
//! What it owns: the database file, its WAL and WAL-index, the checkpoint record and the page
//! hashes.
//!
//! * A [`Database`] is open for writing, by SQL and by injected changes, and belongs to one thread.
//! * Nothing that a transaction wrote leaves memory before its [`Gate`] has released it; afterwards
//!   nothing may fail, or the process aborts.
//! * What an injected [`Change`] claims is checked before anybody can see it.
//! * Nothing reaches the main file on which the durable [`Record`] does not count: a start finds
//!   exactly the state that the record names.
//! * Before there is a [`Database`] there is a [`StartLock`]; [`Redo`], [`Installation`] or
//!   [`create`] puts the files in order under it.
//!
//! What it must never do: decide whether a transaction is committed, or read the log.
//!
//! Assumptions about the outside: Linux file locks, a little-endian machine, and that nobody writes
//! to the file past SQLite while it is open.

mod authorizer;
mod client_transaction;
mod control;
mod counters;
mod dump;
mod extensions;
mod functions;
mod heap;
mod interest;
mod limits;
mod load;
mod parameters;
mod private;
mod prompt;
mod raw;
mod reader;
mod readers;
mod result_rows;
mod statement;
mod statement_cache;
mod syntax;
mod temporary;
mod tokens;
mod values;
mod vet;
mod writer;

pub use dump::{DumpError, dump};
pub use extensions::{ExtensionError, Extensions};
pub use heap::limit_heap;
pub use interest::{Interest, Waiting};
pub use limits::Limits;
pub use private::{JournalMode, compact, set_journal_mode};
pub use readers::{Done, Full, Readers, ReadersOptions, STACK_BYTES, Unread};
mod backfill;
mod capture;
mod checkpoint;
mod database;
mod draft;
mod error;
mod facts;
mod ffi;
mod genesis;
mod hash_table;
mod image;
mod inject;
mod install;
mod overlay;
mod page_hashes;
mod patched;
mod published;
mod record;
mod redo;
mod shim;
mod start_lock;
mod vfs;
mod witness;
pub use capture::Captured;
pub use checkpoint::{Backfill, Checkpoint};
pub use database::{Database, DatabaseOptions, assert_version};
pub use draft::{Flusher, RecordDraft};
pub use error::Error;
pub use facts::{PRAGMAS_SHOWN, library_version};
pub use genesis::{AutoVacuum, create, genesis_page};
pub use image::Image;
pub use inject::{Change, Pages};
pub use install::Installation;
pub use overlay::Overlay;
pub use page_hashes::PageHashes;
pub use published::Published;
pub use record::{Record, Stamp};
pub use redo::Redo;
pub use shim::{Gate, Verdict};
pub use start_lock::StartLock;
pub use syntax::Syntax;
pub use temporary::keep_temporary_files_in;
pub use values::{Answer, Outcome, Parameter, Reply, Request, Rows, Shape, Statement, Value};
pub use vet::{Fit, MAGIC, Unfit, vet};
pub use witness::{Damage, Notice, Outlook, Place, Scrubbed, Witness, damaged_text};
pub use writer::{GroupEnd, SetupError, SqlCommit, Writer, WriterOptions};
