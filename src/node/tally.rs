//! Counters: how often something has happened since the process started.
//!
//! What is counted is an enum made by `counted!`, one line for each: its name in the code, and
//! where `/debug/vars` shows it, in rqlite's words where rqlite counts the same.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

/// An enum of things that are counted; made by `counted!`.
pub trait Counted: Copy + 'static {
    /// The map and the name under which each is shown, in the order of the places.
    const NAMES: &'static [(&'static str, &'static str)];

    /// Its place in [`Counted::NAMES`].
    fn place(self) -> usize;
}

/// The counters of one enum; shared by reference.
#[derive(Debug)]
pub struct Tally<C> {
    counts: Box<[AtomicU64]>,
    of: PhantomData<fn(C)>,
}

/// One counter as it is shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Count {
    /// The map that it is in.
    pub map: &'static str,
    /// Its name there.
    pub name: &'static str,
    /// How often it has happened.
    pub value: u64,
}

impl<C: Counted> Tally<C> {
    /// Counts one.
    pub fn count(&self, what: C) {
        self.add(what, 1);
    }

    /// Counts several.
    pub fn add(&self, what: C, times: u64) {
        // Counters order nothing.
        self.counts[what.place()].fetch_add(times, Ordering::Relaxed);
    }

    /// All counters as they are now.
    #[must_use]
    pub fn all(&self) -> Vec<Count> {
        let named = C::NAMES.iter().zip(&self.counts);
        named
            .map(|(&(map, name), value)| Count {
                map,
                name,
                value: value.load(Ordering::Relaxed),
            })
            .collect()
    }
}

impl<C: Counted> Default for Tally<C> {
    fn default() -> Self {
        Self {
            counts: C::NAMES.iter().map(|_| AtomicU64::new(0)).collect(),
            of: PhantomData,
        }
    }
}

/// Declares an enum of things that are counted: `Variant = ("map", "name")`, each documented.
macro_rules! counted {
    (
        $(#[$about:meta])* $vis:vis enum $name:ident {
            $($(#[$meaning:meta])* $variant:ident = ($map:literal, $shown:literal),)*
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        $vis enum $name {
            $($(#[$meaning])* $variant,)*
        }

        impl $crate::node::Counted for $name {
            const NAMES: &'static [(&'static str, &'static str)] = &[$(($map, $shown),)*];

            fn place(self) -> usize {
                self as usize
            }
        }
    };
}
pub(crate) use counted;

counted! {
    /// What a node counts.
    pub enum NodeCounter {
        /// Statements that `-auto-optimize-int` had this node run.
        AutoOptimizes = ("store", "num_auto_optimizes"),
        /// Of those, the failed ones.
        AutoOptimizesFailed = ("store", "num_auto_optimizes_failed"),
        /// Rounds in which this node asked a quorum whether it leads.
        Confirmations = ("store", "read_index_rounds"),
        /// Questions to the leader what a read has to see; many reads share one.
        ReadIndexQuestions = ("store", "read_index_questions"),
        /// Statements that `-auto-vacuum-int` had this node run.
        AutoVacuums = ("store", "num_auto_vacuums"),
        /// Of those, the failed ones.
        AutoVacuumsFailed = ("store", "num_auto_vacuums_failed"),
        /// Times that SQLite's WAL went into the main file, all of it.
        Checkpoints = ("db", "checkpoints"),
        /// Pieces of it that went before the rest.
        CheckpointPieces = ("db", "checkpoint_pieces"),
        /// Times that a reader or a transfer was in the way of that.
        CheckpointsIncomplete = ("db", "checkpoints_incomplete"),
        /// Changes of the leader, or of its term, as this node saw them.
        LeaderChanges = ("store", "leader_changes_observed"),
        /// Databases received from the leader because this node was too far behind.
        ImagesInstalled = ("store", "num_restores"),
        /// Checkpoint records made durable: what rqlite's snapshots are for.
        Records = ("store", "num_snapshots"),
        /// Nodes that this one, as leader, took into the cluster.
        Joins = ("store", "num_joins"),
        /// Requests to join by nodes that were members already.
        JoinsIgnored = ("store", "num_ignored_joins"),
        /// Members that a node of the same name replaced because it came back without its data, or
        /// that came back at another address.
        RemovedBeforeJoins = ("store", "num_removed_before_joins"),
        /// Members that this node, as leader, removed because they were silent for too long.
        Reaped = ("store", "nodes_reaped_ok"),
        /// Attempts at that which failed.
        ReapsFailed = ("store", "nodes_reaped_failed"),
        /// Requests of other nodes to run statements that may write.
        ExecutesReceived = ("cluster", "num_execute_req"),
        /// Requests of other nodes to run queries.
        QueriesReceived = ("cluster", "num_query_req"),
        /// Requests of other nodes to run a mix of both.
        RequestsReceived = ("cluster", "num_request_req"),
        /// Requests of other nodes to join.
        JoinsReceived = ("cluster", "num_join_req"),
        /// Questions of other nodes who this one is.
        GreetingsReceived = ("cluster", "num_get_node_api_req"),
        /// Changes to the database that this node has seen committed: each is the work of a group
        /// of requests, or a part of it.
        Deltas = ("replication", "deltas"),
        /// Pages that they change.
        DeltaPages = ("replication", "pages"),
        /// What these pages have.
        DeltaImageBytes = ("replication", "page_bytes"),
        /// What is stored of these pages: what changed in them, or all of it compressed.
        DeltaStoredBytes = ("replication", "stored_bytes"),
        /// The same with the headers of the changes and their tables of pages.
        DeltaBytes = ("replication", "delta_bytes"),
        /// What entries took on their way to other nodes, before encryption.
        AppendBytesSent = ("replication", "bytes_sent"),
        /// Pages sent to nodes that were behind the log.
        PagesSent = ("snapshots", "pages_sent"),
        /// Pages that such nodes had already.
        PagesSkipped = ("snapshots", "pages_skipped"),
        /// Pages received from the leader.
        PagesReceived = ("snapshots", "pages_received"),
        /// What the pages sent took on the way, compressed.
        SnapshotBytesSent = ("snapshots", "bytes_sent"),
        /// What the pages received took on the way, compressed.
        SnapshotBytesReceived = ("snapshots", "bytes_received"),
        /// Transfers, sent or received, that went on with pages in the receiver's spool: of one
        /// that was cut off, or of a database that was set aside.
        TransfersResumed = ("snapshots", "transfers_resumed"),
        /// Writes handed to the leader.
        RemoteExecutions = ("proxy", "remote_executions"),
        /// Of those, the ones that did not come back with results.
        RemoteExecutionsFailed = ("proxy", "remote_executions_failed"),
        /// Queries handed to the leader.
        RemoteQueries = ("proxy", "remote_queries"),
        /// Of those, the ones that did not come back with results.
        RemoteQueriesFailed = ("proxy", "remote_queries_failed"),
        /// Mixes of both handed to the leader.
        RemoteRequests = ("proxy", "remote_requests"),
        /// Of those, the ones that did not come back with results.
        RemoteRequestsFailed = ("proxy", "remote_requests_failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_counts_under_its_own_name() {
        let tally = Tally::<NodeCounter>::default();
        tally.count(NodeCounter::Joins);
        tally.add(NodeCounter::RemoteRequestsFailed, 3);
        for count in tally.all() {
            let expected = match (count.map, count.name) {
                ("store", "num_joins") => 1,
                ("proxy", "remote_requests_failed") => 3,
                _ => 0,
            };
            assert_eq!(count.value, expected, "{count:?}");
        }
    }

    #[test]
    fn no_two_counters_are_shown_under_one_name() {
        let mut names = NodeCounter::NAMES.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NodeCounter::NAMES.len());
    }
}
