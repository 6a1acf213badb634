//! The key in Consul: `<disco-key>/leader`, by its HTTP API.
//!
//! | Field | Default | |
//! |---|---|---|
//! | `address` | `127.0.0.1:8500` | of an agent |
//! | `scheme` | `http` | or `https` |
//! | `datacenter`, `namespace`, `partition` | the agent's | where the key is |
//! | `basic_auth` | none | `username` and `password` |
//! | `token`, `token_file` | none | the file is read anew for each request |
//! | `tls_config` | none | `ca_file`, `cert_file`, `key_file`, `insecure_skip_verify` |

use std::fmt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::config::{self, DiscoveryError, Login, Tls};
use super::registry::{Entry, Store};
use super::web::{Web, basic, escaped, refusal};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    address: String,
    scheme: String,
    datacenter: Option<String>,
    basic_auth: Option<Login>,
    token: Option<String>,
    token_file: Option<PathBuf>,
    namespace: Option<String>,
    partition: Option<String>,
    tls_config: Option<Tls>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:8500".to_owned(),
            scheme: "http".to_owned(),
            datacenter: None,
            basic_auth: None,
            token: None,
            token_file: None,
            namespace: None,
            partition: None,
            tls_config: None,
        }
    }
}

/// A client of Consul.
pub(super) struct Consul {
    web: Web,
    /// Up to and with the key.
    url: String,
    /// Behind it, each with `&`.
    place: String,
    login: Option<String>,
    token: Option<String>,
    token_file: Option<PathBuf>,
}

/// Without the secrets.
impl fmt::Debug for Consul {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consul")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// One key as Consul shows it.
#[derive(Deserialize)]
struct Pair {
    #[serde(rename = "Value")]
    value: Option<String>,
}

impl Consul {
    pub(super) fn new(text: &str, key: &str) -> Result<Self, DiscoveryError> {
        let config: Config = config::parse(text)?;
        if !["http", "https"].contains(&config.scheme.as_str()) {
            let problem = format!("scheme is http or https, not {:?}", config.scheme);
            return Err(DiscoveryError::config(problem));
        }
        let place = [
            ("dc", &config.datacenter),
            ("ns", &config.namespace),
            ("partition", &config.partition),
        ];
        let given = place.iter().filter_map(|(name, value)| {
            let value = value.as_ref().filter(|value| !value.is_empty())?;
            Some(format!("&{name}={}", escaped(value)))
        });
        let (scheme, address) = (&config.scheme, &config.address);
        let key = escaped(key.trim_matches('/'));
        Ok(Self {
            web: Web::new(config.tls_config.as_ref())?,
            url: format!("{scheme}://{address}/v1/kv/{key}/leader"),
            place: given.collect(),
            login: config.basic_auth.as_ref().map(basic),
            token: config.token.filter(|token| !token.is_empty()),
            token_file: config
                .token_file
                .filter(|file| !file.as_os_str().is_empty()),
        })
    }

    fn call(&self, method: &str, query: &str, body: Vec<u8>) -> Result<(u16, Vec<u8>), String> {
        let mut headers = Vec::new();
        if let Some(login) = &self.login {
            headers.push(("Authorization", login.clone()));
        }
        let token = match &self.token_file {
            Some(file) => {
                let text = std::fs::read_to_string(file);
                let text = text.map_err(|error| format!("{}: {error}", file.display()))?;
                Some(text.trim().to_owned())
            }
            None => self.token.clone(),
        };
        if let Some(token) = token {
            headers.push(("X-Consul-Token", token));
        }
        let url = format!("{}?{query}{}", self.url, self.place);
        self.web.call(method, &url, &headers, body)
    }

    /// Writes the key; whether it was written.
    fn put(&self, query: &str, entry: &Entry) -> Result<bool, String> {
        let reply = self.call("PUT", query, entry.to_json())?;
        match (reply.0, reply.1.trim_ascii()) {
            (200, b"true") => Ok(true),
            (200, b"false") => Ok(false),
            _ => Err(refusal("PUT of the key", &reply)),
        }
    }
}

impl Store for Consul {
    fn mode(&self) -> &'static str {
        "consul-kv"
    }

    fn get(&self) -> Result<Option<Entry>, String> {
        // Consistent: an old value would have a node look for a leader that is gone.
        let reply = self.call("GET", "consistent", Vec::new())?;
        match reply.0 {
            404 => Ok(None),
            200 => {
                let pairs: Vec<Pair> = serde_json::from_slice(&reply.1)
                    .map_err(|error| format!("the key is not readable: {error}"))?;
                let value = pairs.into_iter().find_map(|pair| pair.value);
                let value = STANDARD.decode(value.unwrap_or_default());
                Entry::from_json(&value.map_err(|error| error.to_string())?).map(Some)
            }
            _ => Err(refusal("GET of the key", &reply)),
        }
    }

    fn create(&self, entry: &Entry) -> Result<bool, String> {
        self.put("cas=0", entry)
    }

    fn set(&self, entry: &Entry) -> Result<(), String> {
        match self.put("flags=0", entry)? {
            true => Ok(()),
            false => Err("the key was not written".to_owned()),
        }
    }
}
