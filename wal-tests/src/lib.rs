//! Tests of Wallaby from outside: what they share.
//!
//! Every random test prints its seed first; `WAL_SEED=n cargo test -p wal-tests --test x` plays it
//! again. Tests of whole clusters start real `wallaby` processes on loopback; `WAL_KEEP=1` keeps
//! their directories and logs even when a test passes.

pub mod blunt;
pub mod certificates;
pub mod checker;
pub mod client;
pub mod cluster;
pub mod counter;
pub mod damage;
pub mod faulty_cluster;
pub mod faulty_vfs;
pub mod files;
pub mod halt;
pub mod history;
pub mod linked;
pub mod links;
pub mod marked;
pub mod network;
pub mod partition;
pub mod ports;
pub mod power_disk;
pub mod process;
pub mod raw;
pub mod recorder;
pub mod replica;
pub mod seed;
pub mod simulation;
pub mod sql_workload;
pub mod tap;
pub mod torn_disk;
pub mod torture;
pub mod trace;
pub mod workload;
