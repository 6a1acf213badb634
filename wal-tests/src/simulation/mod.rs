//! Whole nodes in one process, on simulated time, threads, network and disks: everything that
//! happens follows from a seed, and can be played again.
//!
//! The nodes are those that ship: openraft, our log, QUIC, SQLite, their threads and runtimes. What
//! is replaced is what is under them:
//!
//! | | by |
//! |---|---|
//! | `threads` | threads that run one at a time, in an order drawn from the seed, on a virtual clock |
//! | `system` | the C library's functions for time, randomness, waiting and threads, made to use it |
//! | `network` | UDP: delays, loss, duplicates, cut and held links, each direction by itself |
//! | `disk` | the log's files: what was not synced is lost with the power |
//! | `cluster` | nodes and their lives |
//! | `clients` | clients and what they may expect |
//! | `faults` | what goes wrong |
//! | `trial` | one run and its verdict |
//! | `command` | many runs, each in a process of its own |
//!
//! Not covered: threads change only where one waits, so races between instructions are not found;
//! only the log loses what was not synced, all other files are found as they were written; HTTP is
//! left out, requests go to [`Node`](wallaby::node::Node) directly; and nothing takes processor
//! time.

pub mod clients;
pub mod cluster;
pub mod command;
pub mod disk;
pub mod events;
pub mod faults;
pub mod network;
pub mod system;
pub mod threads;
pub mod trial;
