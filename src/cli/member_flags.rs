//! The flags about being a member of a cluster: as what, for how long, and how a node ceases to be
//! one. Names and defaults are rqlited's.

use std::time::Duration;

use wallaby::node::NodeOptions;

use crate::cli::flags::{span, switch};

/// As what and for how long a node is a member.
#[derive(clap::Args)]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct MemberFlags {
    /// Join as a read replica: a full copy that never votes. Counts when the node first joins.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = switch, value_name = "BOOL")]
    pub(crate) raft_non_voter: bool,
    /// Stop this node's Raft when it finds that the cluster has removed it.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = switch, value_name = "BOOL")]
    pub(crate) raft_remove_shutdown: bool,
    /// Have the cluster remove this node before it shuts down.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = switch, value_name = "BOOL")]
    pub(crate) raft_cluster_remove_shutdown: bool,
    /// How long a voting node may be silent before the leader removes it; 0: for ever.
    #[arg(long, value_name = "DURATION", default_value = "0h", value_parser = patience)]
    pub(crate) raft_reap_node_timeout: Duration,
    /// The same for a read replica.
    #[arg(long, value_name = "DURATION", default_value = "0h", value_parser = patience)]
    pub(crate) raft_reap_read_only_node_timeout: Duration,
}

impl MemberFlags {
    /// Tells the node.
    pub(crate) fn apply(&self, node: &mut NodeOptions) {
        node.replica = self.raft_non_voter;
        node.stops_when_removed = self.raft_remove_shutdown;
        node.leaves = self.raft_cluster_remove_shutdown;
        node.reap_voters = self.raft_reap_node_timeout;
        node.reap_replicas = self.raft_reap_read_only_node_timeout;
    }
}

fn patience(text: &str) -> Result<Duration, String> {
    if text.starts_with('-') {
        return Err("must be greater than 0 if given".to_owned());
    }
    span(text)
}
