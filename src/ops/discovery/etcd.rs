//! The key in etcd: `/<disco-key>/leader`, by the JSON form of its v3 API.
//!
//! | Field | Default | |
//! |---|---|---|
//! | `endpoints` | `["localhost:2379"]` | asked one after the other until one answers |
//! | `username`, `password` | none | also as `"auth": {"username", "password"}` |
//! | `tls_config` | none | `ca_file`, `cert_file`, `key_file`, `insecure_skip_verify` |
//!
//! An endpoint may say `http://` or `https://`; without, it is HTTPS where there is a `tls_config`.

use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::config::{self, DiscoveryError, Login, Tls};
use super::registry::{Entry, Store};
use super::web::{Reply, Web, refusal};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    endpoints: Vec<String>,
    username: Option<String>,
    password: Option<String>,
    auth: Option<Login>,
    tls_config: Option<Tls>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            endpoints: vec!["localhost:2379".to_owned()],
            username: None,
            password: None,
            auth: None,
            tls_config: None,
        }
    }
}

/// A client of etcd.
pub(super) struct Etcd {
    web: Web,
    endpoints: Vec<String>,
    /// As base64.
    key: String,
    login: Option<Login>,
    /// What the login was answered with.
    token: Mutex<Option<String>>,
}

/// Without the secrets.
impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd")
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

impl Etcd {
    pub(super) fn new(text: &str, key: &str) -> Result<Self, DiscoveryError> {
        let config: Config = config::parse(text)?;
        if config.endpoints.is_empty() {
            return Err(DiscoveryError::config("endpoints: there is none"));
        }
        let scheme = if config.tls_config.is_some() {
            "https"
        } else {
            "http"
        };
        let url = |endpoint: &String| {
            let endpoint = endpoint.trim_end_matches('/');
            match endpoint.contains("://") {
                true => endpoint.to_owned(),
                false => format!("{scheme}://{endpoint}"),
            }
        };
        let login = config.auth.or_else(|| {
            config.username.map(|username| Login {
                username,
                password: config.password.unwrap_or_default(),
            })
        });
        let key = format!("/{}/leader", key.trim_matches('/'));
        Ok(Self {
            web: Web::new(config.tls_config.as_ref())?,
            endpoints: config.endpoints.iter().map(url).collect(),
            key: STANDARD.encode(key),
            login: login.filter(|login| !login.username.is_empty()),
            token: Mutex::default(),
        })
    }

    /// Asks the endpoints until one answers, logging in as needed.
    fn ask(&self, path: &str, request: &Value) -> Result<Value, String> {
        let mut reply = self.send(path, request, self.token()?.as_deref())?;
        // A token ends after some minutes, or with the etcd that gave it.
        if self.login.is_some() && reply.0 == 401 {
            *self.kept() = None;
            reply = self.send(path, request, self.token()?.as_deref())?;
        }
        if reply.0 != 200 {
            return Err(refusal(path, &reply));
        }
        serde_json::from_slice(&reply.1).map_err(|error| format!("{path}: {error}"))
    }

    fn send(&self, path: &str, request: &Value, token: Option<&str>) -> Result<Reply, String> {
        let mut headers = vec![("Content-Type", "application/json".to_owned())];
        headers.extend(token.map(|token| ("Authorization", token.to_owned())));
        let mut failure = String::new();
        for endpoint in &self.endpoints {
            let url = format!("{endpoint}{path}");
            match self
                .web
                .call("POST", &url, &headers, request.to_string().into_bytes())
            {
                Ok(reply) => return Ok(reply),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn token(&self) -> Result<Option<String>, String> {
        let Some(login) = &self.login else {
            return Ok(None);
        };
        if let Some(token) = &*self.kept() {
            return Ok(Some(token.clone()));
        }
        let request = json!({ "name": login.username, "password": login.password });
        let reply = self.send("/v3/auth/authenticate", &request, None)?;
        let answer: Value = serde_json::from_slice(&reply.1).unwrap_or_default();
        match answer["token"].as_str().filter(|_| reply.0 == 200) {
            Some(token) => {
                *self.kept() = Some(token.to_owned());
                Ok(Some(token.to_owned()))
            }
            None => Err(refusal("the login", &reply)),
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, entry: &Entry) -> Value {
        json!({ "key": self.key, "value": STANDARD.encode(entry.to_json()) })
    }
}

impl Store for Etcd {
    fn mode(&self) -> &'static str {
        "etcd-kv"
    }

    fn get(&self) -> Result<Option<Entry>, String> {
        let answer = self.ask("/v3/kv/range", &json!({ "key": self.key }))?;
        let Some(value) = answer["kvs"][0]["value"].as_str() else {
            return Ok(None);
        };
        let value = STANDARD.decode(value).map_err(|error| error.to_string())?;
        Entry::from_json(&value).map(Some)
    }

    fn create(&self, entry: &Entry) -> Result<bool, String> {
        // A key that was created at revision 0 does not exist.
        let request = json!({
            "compare": [{ "key": self.key, "target": "CREATE", "createRevision": "0" }],
            "success": [{ "requestPut": self.put(entry) }],
        });
        let answer = self.ask("/v3/kv/txn", &request)?;
        Ok(answer["succeeded"] == true)
    }

    fn set(&self, entry: &Entry) -> Result<(), String> {
        self.ask("/v3/kv/put", &self.put(entry)).map(drop)
    }
}
