//! Wallaby: a highly available SQLite.
//!
//! A small cluster keeps one SQLite database. The Raft leader executes SQL once, captures the WAL
//! frames that the transaction produced, and proposes them as one log entry; the other nodes write
//! the same pages into their own database and so stay equal byte for byte. Clients speak rqlite's
//! HTTP API.
//!
//! # The layers
//!
//! ```text
//!               http           rqlite's JSON
//!                |
//!               node           where the three meet: write path, reads, apply, membership
//!          /     |     \
//!     sqlite    raft    transport     SQLite; the durable log; QUIC
//!          \     |     /
//!               wal            bytes: SQLite's WAL, the delta, hashes
//! ```
//!
//! Beside `http`, and like it on the public interface of `node` only, stands `ops`: what is done
//! to a cluster from time to time.
//!
//! Dependencies go strictly downward and siblings do not know each other; the test `tidy` reads the
//! imports and fails on any other edge.
//!
//! # One write, in a straight line
//!
//! | # | file | what happens | durable? |
//! |---|---|---|---|
//! | 1 | `http/statements` | the body becomes a [`node::WriteRequest`] | no |
//! | 2 | `node/running` | routed to the leader, forwarded if that is another node | no |
//! | 3 | `node/write` | queued; the owner thread takes what is queued | no |
//! | 4 | `sqlite/writer` | one SQLite transaction on the owner thread | no |
//! | 5 | `sqlite/shim` | COMMIT: the frames stay in memory, xSync asks the gate | no |
//! | 6 | `node/gate` | what changed in their pages becomes one [`wal::Delta`], encoded once | no |
//! | 7 | `raft/log` | the leader appends and syncs, in parallel with 8 | leader |
//! | 8 | `node/network` | the same bytes go to every follower | no |
//! | 9 | follower `raft/log` | appends, syncs, acknowledges | **quorum** |
//! | 10 | `node/apply` | committed: xSync writes the WAL, SQLite publishes | again from the log |
//! | 11 | follower `sqlite/inject` | makes the same pages, publishes | again from the log |
//! | 12 | `http/response` | the answers of the group | |
//!
//! xSync is where a commit waits for the quorum. If the answer is no, SQLite itself rolls back.
//!
//! # Invariants
//!
//! * Acknowledged means: flushed on a majority, applied by the leader, committed by SQLite.
//! * No page of an undecided transaction is visible to a reader, to another process, or to recovery
//!   after a crash: the WAL file never holds one.
//! * At equal applied index the page images of all nodes are equal. Each delta carries the hash of
//!   the whole database before and after, checked by every node on every apply.
//! * A delta takes effect only on the database state that it was executed on: the fence.
//! * A refused commit is never guessed: committed, certainly not, or unknown, and unknown is said.
//! * The log is the only truth; the database is a view of it that can be made again. After a crash
//!   the files are exactly the state that the checkpoint record names: redo goes on from there.
//! * Every page that is read is compared with the hash of what was written. One that differs is
//!   never served, and is replaced by a copy with that hash.
//! * A node that may have lost what it has acknowledged never votes under its Raft id again.
//! * One owner of SQLite's WAL write and checkpoint locks for the life of the process.
//! * Nothing read from a peer, a client or a disk panics, or allocates before its length is
//!   checked.
//! * After a failed write or sync the log is latched; after a decision of the quorum any local
//!   failure ends the process.
//!
//! And what is absent on purpose: followers never execute SQL; `sqlite` never sees a term; nobody
//! retries an fsync; a node whose position in the log is unknown serves nothing.
//!
//! # Words
//!
//! | word | means |
//! |---|---|
//! | WAL, frame, checkpoint, salt | SQLite's |
//! | log, entry, record, segment | Raft's; a record is an entry on disk, a segment a file |
//! | delta | the pages a group changed, as one encoded value |
//! | part | one of several deltas of a transaction too large for one entry |
//! | capture, inject | take pages out on the leader, put them in on a follower |
//! | commit | Raft's decision; SQLite's is `sql_commit` |
//! | group, request, statement | one SQLite transaction, one HTTP call, one SQL text |
//! | flight, release, discard | a group that waits for the quorum, and its two ends |
//! | image | all pages of the database at one place in the log |
//! | position | term, leader and index of an entry |
//!
//! # Formats
//!
//! Each is described in one place, a table in the file that implements it: deltas ([`wal::delta`]),
//! SQLite's WAL and WAL-index ([`mod@wal::format`], [`wal::index`]), the log ([`raft::log`]), the
//! codecs ([`raft::codec`]), and the private ones: checkpoint record and page hashes
//! (`sqlite/record`, `sqlite/page_hashes`), snapshot manifest, spool and stream (`node/manifest`,
//! `node/spool`, `node/snapshot_frame`), identity (`node/identity`), what is left to do after
//! damage or for another cluster (`node/rebuild`, `node/refounding/switch`), append frames and
//! control messages (`node/append_frame`, `node/wire`), frames and hello (`transport/frame`,
//! `transport/hello`).
//!
//! Start reading at `node/write.rs`, `node/gate.rs` and `node/apply.rs`.

pub mod http;
pub mod node;
pub mod ops;
pub mod planted;
pub mod raft;
pub mod sqlite;
pub mod transport;
pub mod wal;
