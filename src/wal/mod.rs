//! Layer 0: bytes. SQLite's WAL format, the WAL-index, and the delta that travels between nodes.
//!
//! What it owns: the layouts in [`mod@format`], [`index`] and [`delta`], each described in a table
//! in the file that implements it and nowhere else, and the quantities that all layers share (page
//! numbers, counts and sizes, hashes, positions).
//!
//! Invariants:
//! * Pure functions over bytes: no file, no socket, no clock, no randomness, no `unsafe`.
//! * Bytes that come from outside never panic and never make anything be allocated before their
//!   length is checked; they give a checked type or an error that says where.
//! * [`Delta`] is a checked type: there is no other way to one than [`Delta::decode`].
//! * A page is never the lock-byte page, and never page 0.
//!
//! What it must never do: decide. Whether a delta is applied is the fence's business in `node`,
//! when a frame may be written is the business of `sqlite`.
//!
//! Assumption about the outside: a little-endian machine, and SQLite's WAL format 3007000, the only
//! one since 3.7.0.

pub mod delta;
mod delta_pages;
mod delta_writer;
pub mod format;
mod hash;
pub mod index;
mod leb128;
mod page;
pub mod patch;
mod position;
mod walker;

pub use delta::{Delta, DeltaError, DeltaHeader, Encoding, Part};
pub use delta_pages::{Stored, TableEntry};
pub use delta_writer::DeltaWriter;
pub use format::{ByteOrder, Checksum, FrameHeader, Salts, WalError, WalHeader};
pub use hash::{DatabaseHash, PageHash};
pub use index::IndexHeader;
pub use page::{PageCount, PageNumber, PageSize};
pub use position::{ClusterId, Position};
pub use walker::{End, Stop, Transaction, TransactionFrame, Transactions, Walker};
