//! How nodes find each other without being told addresses: by a name in the DNS, or by a key in a
//! store that all of them can reach. The modes, keys and configurations are rqlite's.
//!
//! | Mode | Who starts the cluster | Whom the others join |
//! |---|---|---|
//! | `dns` | as many as `-bootstrap-expect` says | the A and AAAA records of a name |
//! | `dns-srv` | the same | the SRV records of a service |
//! | `consul-kv` | whoever makes the key first | whom the key names: the leader |
//! | `etcd-kv` | the same | the same |

mod config;
mod consul;
mod dns;
mod etcd;
mod registry;
mod report;
mod web;

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use serde_json::Value;

use crate::node::{self, Found};
pub use config::DiscoveryError;
use dns::{Directory, Records};
use registry::{Registry, Store};
pub use report::Reporter;

/// How a node finds the others, as its operator has configured it.
#[derive(Clone)]
pub struct DiscoveryOptions {
    /// `consul-kv`, `dns`, `dns-srv` or `etcd-kv`.
    pub mode: String,
    /// Under which key the leader is registered.
    pub key: String,
    /// JSON, or the name of a file with it; empty: the defaults.
    pub config: String,
    /// The node's name, and the addresses that others are told.
    pub name: String,
    /// Where other nodes reach this one.
    pub raft_addr: String,
    /// Where clients reach this one, with or without the scheme.
    pub http_addr: String,
    /// Where the node keeps its data.
    pub data_dir: PathBuf,
    /// Whether this node may start a cluster: it has a vote.
    pub may_found: bool,
}

/// Without the configuration, which may hold secrets.
impl fmt::Debug for DiscoveryOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiscoveryOptions")
            .field("mode", &self.mode)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// One of the ways. Clones share what was seen last.
#[derive(Clone, Debug)]
pub enum Discovery {
    /// By names.
    Dns(Arc<Directory>),
    /// By a key.
    Key(Arc<Registry>),
}

impl Discovery {
    /// Reads the configuration.
    ///
    /// # Errors
    ///
    /// [`DiscoveryError`]: what is wrong with it.
    pub fn new(options: DiscoveryOptions) -> Result<Self, DiscoveryError> {
        let text = config::text(&options.config)?;
        let mode = options.mode.as_str();
        match mode {
            "dns" | "dns-srv" => {
                let records = match mode {
                    "dns" => Records::Addresses,
                    _ => Records::Services,
                };
                let directory = Directory::new(records, &text, &options.raft_addr)?;
                Ok(Self::Dns(Arc::new(directory)))
            }
            "consul-kv" | "etcd-kv" => {
                let store: Box<dyn Store> = match mode {
                    "consul-kv" => Box::new(consul::Consul::new(&text, &options.key)?),
                    _ => Box::new(etcd::Etcd::new(&text, &options.key)?),
                };
                Ok(Self::Key(Arc::new(Registry::new(store, options))))
            }
            _ => Err(DiscoveryError::mode(mode)),
        }
    }

    /// What `/status` tells about it.
    #[must_use]
    pub fn status(&self) -> Value {
        match self {
            Self::Dns(directory) => directory.status(),
            Self::Key(registry) => registry.status(),
        }
    }
}

impl node::Discovery for Discovery {
    fn look(&self, may_found: bool) -> Pin<Box<dyn Future<Output = Found> + Send + '_>> {
        Box::pin(async move {
            match self {
                Self::Dns(directory) => Found::Nodes(directory.look().await),
                Self::Key(registry) => Arc::clone(registry).look(may_found).await,
            }
        })
    }
}
