//! How a node looks for its cluster: at addresses it was given, and wherever else somebody knows.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::caller::Credentials;
use super::options::NodeOptions;

/// Something that knows where nodes of the cluster may be, besides [`NodeOptions::join`]: a
/// directory of names, a store of keys.
pub trait Discovery: fmt::Debug + Send + Sync {
    /// Looks once. Asked in every round of the search, since nodes appear later than others, and
    /// never once the node belongs to a cluster and is a member of it. Only where `may_found`, the
    /// answer may be [`Found::Alone`], and is taken for a promise then.
    fn look(&self, may_found: bool) -> Pin<Box<dyn Future<Output = Found> + Send + '_>>;
}

/// What [`Discovery::look`] has found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Found {
    /// There is no other node, and whoever asks later is told of this one: it starts the cluster.
    Alone,
    /// Raft addresses of nodes that may belong to the cluster, or want to start it too.
    Nodes(Vec<String>),
    /// Nobody could say. The time for the search does not run while this is so.
    Silence,
}

/// How a node looks for its cluster.
pub(crate) struct Search {
    /// How long it looks before it gives up.
    pub(crate) time_max: Duration,
    /// Raft addresses to ask.
    pub(crate) join: Vec<String>,
    /// Who knows of further ones.
    discovery: Option<Arc<dyn Discovery>>,
    /// How many nodes start a cluster together; 0: none.
    pub(crate) bootstrap_expect: u64,
    /// How often it asks to become a member before it gives up; and the time in between.
    pub(crate) attempts: u32,
    pub(crate) interval: Duration,
    /// On whose behalf it asks, where the others have an authority.
    pub(crate) caller: Option<Credentials>,
}

impl Search {
    /// What the options say about it.
    pub(crate) fn of(options: &NodeOptions) -> Self {
        Self {
            time_max: options.settle_time_max,
            join: options.join.clone(),
            discovery: options.discovery.clone(),
            bootstrap_expect: options.bootstrap_expect,
            attempts: options.join_attempts,
            interval: options.join_interval,
            caller: options.join_as.clone(),
        }
    }

    /// Whether there is nowhere to look.
    pub(crate) fn is_idle(&self) -> bool {
        self.join.is_empty() && self.discovery.is_none()
    }

    /// Whether a node at this address waits for nobody to start a cluster.
    pub(crate) fn is_alone(&self, raft_addr: &str) -> bool {
        let others = self.join.iter().any(|addr| addr != raft_addr);
        self.bootstrap_expect <= 1 && !others && self.discovery.is_none()
    }

    /// Looks once.
    pub(crate) async fn look(&self, may_found: bool) -> Found {
        match &self.discovery {
            None => Found::Nodes(self.join.clone()),
            Some(discovery) => match discovery.look(may_found).await {
                Found::Nodes(found) => {
                    Found::Nodes([self.join.as_slice(), found.as_slice()].concat())
                }
                other => other,
            },
        }
    }
}
