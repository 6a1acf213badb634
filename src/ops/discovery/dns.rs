//! Nodes by names in the DNS.
//!
//! `dns`: `{"name": "rqlite", "port": 4002}`; every address of the name is a node, at that port, by
//! default this node's own. `dns-srv`: `{"name": "rqlite.local", "service": "rqlite-raft"}`; the
//! records of `_rqlite-raft._tcp.rqlite.local` name hosts and ports. Both ask the nameservers of the
//! system, or the one that `"nameserver": "10.0.0.2:53"` names, anew each time.
//!
//! The variable `RQLITE_DISCO_DNS_HOSTS`, a list of addresses with or without ports, takes the place
//! of the lookup in `dns`, as in rqlite.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use serde::Deserialize;
use serde_json::{Value, json};

use super::config::{self, DiscoveryError};

/// What is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Records {
    /// Addresses of a name.
    Addresses,
    /// Hosts and ports of a service.
    Services,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    name: String,
    port: Option<u16>,
    service: Option<String>,
    nameserver: Option<SocketAddr>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "rqlite".to_owned(),
            port: None,
            service: None,
            nameserver: None,
        }
    }
}

/// A name, and who is asked about it.
#[derive(Debug)]
pub struct Directory {
    records: Records,
    name: String,
    service: String,
    port: u16,
    nameserver: Option<SocketAddr>,
    /// In place of the lookup.
    hosts: Option<String>,
    seen: Mutex<Seen>,
}

/// How the last lookup went.
#[derive(Debug, Default)]
struct Seen {
    addresses: Vec<String>,
    error: Option<String>,
}

impl Directory {
    pub(super) fn new(
        records: Records,
        text: &str,
        raft_addr: &str,
    ) -> Result<Self, DiscoveryError> {
        let config: Config = config::parse(text)?;
        let own_port = raft_addr
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok());
        let service = match (records, config.service) {
            (Records::Services, None) => {
                let problem = "dns-srv needs {\"name\": ..., \"service\": ...}";
                return Err(DiscoveryError::config(problem));
            }
            (Records::Addresses, Some(_)) => {
                let problem = "dns has no \"service\"; -disco-mode dns-srv has";
                return Err(DiscoveryError::config(problem));
            }
            (_, service) => service.unwrap_or_default(),
        };
        let hosts = std::env::var("RQLITE_DISCO_DNS_HOSTS").ok();
        Ok(Self {
            records,
            name: config.name,
            service,
            port: config.port.or(own_port).unwrap_or(PORT),
            nameserver: config.nameserver,
            hosts: hosts.filter(|hosts| !hosts.is_empty() && records == Records::Addresses),
            seen: Mutex::default(),
        })
    }

    /// The Raft addresses that the name stands for at this moment.
    pub(super) async fn look(&self) -> Vec<String> {
        let found = match &self.hosts {
            Some(hosts) => Ok(self.given(hosts)),
            None => self.ask().await,
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Ok(mut addresses) => {
                addresses.sort();
                addresses.dedup();
                if addresses != seen.addresses {
                    tracing::info!(name = self.name, ?addresses, "the DNS knows these nodes");
                }
                *seen = Seen {
                    addresses: addresses.clone(),
                    error: None,
                };
                addresses
            }
            Err(error) => {
                if seen.error.as_ref() != Some(&error) {
                    tracing::warn!(
                        name = self.name,
                        error,
                        "the DNS does not know the nodes yet"
                    );
                }
                *seen = Seen {
                    addresses: Vec::new(),
                    error: Some(error),
                };
                Vec::new()
            }
        }
    }

    fn given(&self, hosts: &str) -> Vec<String> {
        let hosts = hosts.split(',').map(str::trim);
        let address = |host: &str| match host.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, self.port).to_string(),
            Err(_) if host.contains(':') => host.to_owned(),
            Err(_) => format!("{host}:{}", self.port),
        };
        hosts.filter(|host| !host.is_empty()).map(address).collect()
    }

    async fn ask(&self) -> Result<Vec<String>, String> {
        let resolver = self.resolver()?;
        match self.records {
            Records::Addresses => addresses(&resolver, &self.name, self.port).await,
            Records::Services => {
                // The dot at the end: no domain of this machine is to be tried behind it.
                let name = format!(
                    "_{}._tcp.{}.",
                    self.service,
                    self.name.trim_end_matches('.')
                );
                let answer = resolver.srv_lookup(name).await;
                let answer = answer.map_err(|error| error.to_string())?;
                let mut found = Vec::new();
                for record in answer.answers() {
                    if let RData::SRV(srv) = &record.data {
                        let host = srv.target.to_ascii();
                        found.extend(addresses(&resolver, &host, srv.port).await?);
                    }
                }
                Ok(found)
            }
        }
    }

    /// A new one for each lookup: it remembers nothing, and follows changes of the system.
    fn resolver(&self) -> Result<TokioResolver, String> {
        let mut builder = match self.nameserver {
            None => TokioResolver::builder_tokio().map_err(|error| error.to_string())?,
            Some(addr) => {
                let mut server = NameServerConfig::udp_and_tcp(addr.ip());
                for connection in &mut server.connections {
                    connection.port = addr.port();
                }
                let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
        };
        let options = builder.options_mut();
        options.cache_size = 0;
        options.timeout = PATIENCE;
        builder.build().map_err(|error| error.to_string())
    }

    pub(super) fn status(&self) -> Value {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut status = match self.records {
            Records::Addresses => json!({
                "mode": "dns", "name": self.name, "port": self.port,
            }),
            Records::Services => json!({
                "mode": "dns-srv", "name": self.name, "service": self.service,
            }),
        };
        status["last_addresses"] = json!(seen.addresses);
        if let Some(error) = &seen.error {
            status["last_error"] = json!(error);
        }
        status
    }
}

async fn addresses(resolver: &TokioResolver, host: &str, port: u16) -> Result<Vec<String>, String> {
    let found = resolver.lookup_ip(host).await;
    let found = found.map_err(|error| error.to_string())?;
    Ok(found
        .iter()
        .map(|ip| SocketAddr::new(ip, port).to_string())
        .collect())
}

/// rqlite's Raft port.
const PORT: u16 = 4002;
const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(records: Records, text: &str) -> Result<Directory, String> {
        Directory::new(records, text, "host:4902").map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_rqlite() {
        let directory = directory(Records::Addresses, "{}").unwrap();
        assert_eq!((&*directory.name, directory.port), ("rqlite", 4902));
        assert_eq!(directory.status()["mode"], "dns");
    }

    #[test]
    fn hosts_may_be_given_in_place_of_the_lookup() {
        let directory = directory(Records::Addresses, r#"{"port":1}"#).unwrap();
        let given = directory.given("10.0.0.1, 10.0.0.2:5,name, ::1,[::1]:6,");
        assert_eq!(
            given,
            ["10.0.0.1:1", "10.0.0.2:5", "name:1", "[::1]:1", "[::1]:6"]
        );
    }

    #[test]
    fn a_configuration_of_the_other_mode_is_refused() {
        let error = directory(Records::Services, r#"{"name":"a"}"#).unwrap_err();
        assert!(error.contains("dns-srv needs"), "{error}");
        let error = directory(Records::Addresses, r#"{"service":"a"}"#).unwrap_err();
        assert!(error.contains("dns-srv has"), "{error}");
        let error = directory(Records::Addresses, r#"{"nameserver":"a"}"#).unwrap_err();
        assert!(error.contains("-disco-config"), "{error}");
    }
}
