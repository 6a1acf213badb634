//! Tests of Wallaby from outside: what they share.
//!
//! Every random test prints its seed first; `WAL_SEED=n cargo test -p wal-tests --test x` plays it
//! again. Tests of whole clusters start real `wallaby` processes on loopback; `WAL_KEEP=1` keeps
//! their directories and logs even when a test passes.

pub mod blunt;
pub mod checker;
pub mod client;
pub mod cluster;
pub mod counter;
pub mod faulty_cluster;
pub mod faulty_vfs;
pub mod files;
pub mod history;
pub mod linked;
pub mod links;
pub mod marked;
pub mod network;
pub mod partition;
pub mod ports;
pub mod process;
pub mod raw;
pub mod replica;
pub mod seed;
pub mod sql_workload;
pub mod torture;
pub mod workload;
