//! The flags of discovery, rqlited's.

use wallaby::node::NodeOptions;
use wallaby::ops::DiscoveryOptions;

use crate::cli::config::ConfigError;

/// How nodes find each other without -join.
#[derive(clap::Args)]
pub(crate) struct DiscoveryFlags {
    /// How nodes find each other: consul-kv, dns, dns-srv or etcd-kv (default: by -join only).
    #[arg(
        long,
        value_name = "MODE",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) disco_mode: String,
    /// The key in the store is KEY/leader (consul-kv) or /KEY/leader (etcd-kv).
    #[arg(long, value_name = "KEY", default_value = "rqlite")]
    pub(crate) disco_key: String,
    /// JSON, or a file with it, with what the mode needs to know; ${NAME} in it stands for a
    /// variable of the environment.
    #[arg(
        long,
        value_name = "JSON",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) disco_config: String,
}

/// What other flags say.
pub(crate) struct Company {
    /// -join is given.
    pub(crate) joins: bool,
    /// -bootstrap-expect is given.
    pub(crate) expects: bool,
    /// The node has a vote.
    pub(crate) has_vote: bool,
}

impl DiscoveryFlags {
    /// Whether there is any discovery.
    pub(crate) fn is_on(&self) -> bool {
        !self.disco_mode.is_empty()
    }

    /// Refuses what makes no sense together, in rqlite's words where it has some.
    pub(crate) fn check(&self, with: &Company) -> Result<(), ConfigError> {
        let together = |sentence| Err(ConfigError::Together(sentence));
        let mode = self.disco_mode.as_str();
        if !["", "consul-kv", "dns", "dns-srv", "etcd-kv"].contains(&mode) {
            return Err(ConfigError::Flag {
                flag: "disco-mode",
                problem: format!("`{mode}` is none of consul-kv, dns, dns-srv, etcd-kv"),
            });
        }
        if self.disco_key.trim_matches('/').is_empty() {
            return Err(ConfigError::Flag {
                flag: "disco-key",
                problem: "must not be empty".to_owned(),
            });
        }
        if self.is_on() && with.joins {
            return together("disco mode cannot be used when also explicitly joining a cluster");
        }
        match mode {
            "consul-kv" if with.expects => {
                together("bootstrapping not applicable when using consul-kv")
            }
            "etcd-kv" if with.expects => {
                together("bootstrapping not applicable when using etcd-kv")
            }
            "dns" if with.has_vote && !with.expects => {
                together("bootstrap-expect value required when using dns with a voting node")
            }
            "dns-srv" if with.has_vote && !with.expects => {
                together("bootstrap-expect value required when using dns-srv with a voting node")
            }
            _ => Ok(()),
        }
    }

    /// What discovery needs to know, if there is any.
    pub(crate) fn options(
        self,
        node: &NodeOptions,
        has_tls: bool,
        may_found: bool,
    ) -> Option<DiscoveryOptions> {
        let raft_addr = node.advertised_raft_addr();
        let scheme = if has_tls { "https" } else { "http" };
        self.is_on().then(|| DiscoveryOptions {
            mode: self.disco_mode,
            key: self.disco_key,
            config: self.disco_config,
            name: node.name.as_deref().unwrap_or(raft_addr).to_owned(),
            raft_addr: raft_addr.to_owned(),
            http_addr: format!("{scheme}://{}", node.http_adv_addr),
            data_dir: node.data_dir.clone(),
            may_found,
        })
    }
}
