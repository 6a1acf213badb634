//! Stand-ins for the key-value interfaces of Consul and etcd.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::ServerConfig;
use serde_json::{Value, json};
use wal_tests::certificates::Authority;
use wal_tests::ports;

use crate::web::{self, Reply, Request};

/// Which of them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Consul,
    Etcd,
}

/// A store with one user.
pub(crate) struct Store {
    kind: Kind,
    port: u16,
    keys: Arc<Mutex<Keys>>,
    tls: Option<Arc<ServerConfig>>,
    asks_for_name: bool,
}

/// Values with the revisions that made and changed them.
#[derive(Default)]
struct Keys {
    revision: u64,
    by_name: BTreeMap<String, (Vec<u8>, u64, u64)>,
}

impl Keys {
    fn put(&mut self, name: &str, value: Vec<u8>) {
        self.revision += 1;
        let made = self
            .by_name
            .get(name)
            .map_or(self.revision, |(_, made, _)| *made);
        self.by_name
            .insert(name.to_owned(), (value, made, self.revision));
    }
}

/// What the stores ask for.
pub(crate) const SECRET: &str = "the right secret";
pub(crate) const NAME: &str = "root";

impl Store {
    /// One that does not run yet.
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            port: ports::reserve(1)[0],
            keys: Arc::default(),
            tls: None,
            asks_for_name: false,
        }
    }

    /// One that is reached in TLS only, by clients with a certificate of the same authority.
    pub(crate) fn in_tls(kind: Kind, authority: &Authority) -> Self {
        Self {
            tls: Some(authority.server()),
            ..Self::new(kind)
        }
    }

    /// A Consul behind a server that asks for a name and a password.
    pub(crate) fn with_name() -> Self {
        Self {
            asks_for_name: true,
            ..Self::new(Kind::Consul)
        }
    }

    pub(crate) fn start(&self) {
        let (kind, keys) = (self.kind, Arc::clone(&self.keys));
        let asks_for_name = self.asks_for_name;
        let answer = move |request: &Request| match kind {
            Kind::Consul if asks_for_name => {
                let login = STANDARD.encode(format!("{NAME}:{SECRET}"));
                let given = request.headers.get("authorization");
                if given != Some(&format!("Basic {login}")) {
                    return (401, "who are you?".to_owned());
                }
                consul(&mut keys.lock().unwrap(), request)
            }
            Kind::Consul => consul(&mut keys.lock().unwrap(), request),
            Kind::Etcd => etcd(&mut keys.lock().unwrap(), request),
        };
        web::serve(self.port, self.tls.clone(), Arc::new(answer));
    }

    /// `-disco-mode` and `-disco-config`, with the right secret or another one.
    pub(crate) fn flags(&self, secret_is_right: bool) -> [String; 4] {
        let secret = if secret_is_right {
            SECRET
        } else {
            "a wrong secret"
        };
        self.flags_with(|config| match self.kind {
            Kind::Consul => config["token"] = json!(secret),
            Kind::Etcd => config["password"] = json!(secret),
        })
    }

    /// The same with the right secret, and something else changed.
    pub(crate) fn flags_with(&self, change: impl FnOnce(&mut Value)) -> [String; 4] {
        let address = format!("127.0.0.1:{}", self.port);
        let (mode, mut config) = match self.kind {
            Kind::Consul => (
                "consul-kv",
                json!({ "address": address, "token": SECRET, "datacenter": "dc1" }),
            ),
            Kind::Etcd => (
                "etcd-kv",
                // The first endpoint is one that nobody listens at.
                json!({
                    "endpoints": ["127.0.0.1:9", address],
                    "username": NAME,
                    "password": SECRET,
                }),
            ),
        };
        change(&mut config);
        ["-disco-mode", mode, "-disco-config", &config.to_string()].map(str::to_owned)
    }

    /// Where the nodes keep the leader.
    pub(crate) fn key(&self) -> &'static str {
        match self.kind {
            Kind::Consul => "rqlite/leader",
            Kind::Etcd => "/rqlite/leader",
        }
    }

    /// What the key says.
    pub(crate) fn leader(&self) -> Option<Value> {
        let keys = self.keys.lock().unwrap();
        let (value, _, _) = keys.by_name.get(self.key())?;
        Some(serde_json::from_slice(value).unwrap())
    }

    /// Sets the key by hand.
    pub(crate) fn set_leader(&self, value: &Value) {
        let value = value.to_string().into_bytes();
        self.keys.lock().unwrap().put(self.key(), value);
    }
}

/// `/v1/kv/...` with `cas`.
fn consul(keys: &mut Keys, request: &Request) -> Reply {
    if request.headers.get("x-consul-token").map(String::as_str) != Some(SECRET) {
        return (403, "ACL not found".to_owned());
    }
    if request.query.get("dc").map(String::as_str) != Some("dc1") {
        return (500, "No path to datacenter".to_owned());
    }
    let Some(name) = request.path.strip_prefix("/v1/kv/") else {
        return (404, String::new());
    };
    let found = keys.by_name.get(name);
    match request.method.as_str() {
        "GET" => match found {
            None => (404, String::new()),
            Some((value, made, changed)) => {
                let pair = json!([{
                    "LockIndex": 0, "Key": name, "Flags": 0, "Value": STANDARD.encode(value),
                    "CreateIndex": made, "ModifyIndex": changed,
                }]);
                (200, pair.to_string())
            }
        },
        "PUT" => {
            // Zero: only if there is none. Another number: only if it was not changed since.
            let wanted = request
                .query
                .get("cas")
                .map(|cas| cas.parse::<u64>().unwrap());
            let changed = found.map_or(0, |(_, _, changed)| *changed);
            if wanted.is_some_and(|wanted| wanted != changed) {
                return (200, "false\n".to_owned());
            }
            keys.put(name, request.body.clone());
            (200, "true\n".to_owned())
        }
        _ => (405, String::new()),
    }
}

/// An error as etcd shows it, with the code of gRPC.
fn refuse(status: u16, error: &str, code: u32) -> Reply {
    let body = json!({ "error": error, "code": code, "message": error });
    (status, body.to_string())
}

/// The JSON gateway of etcd's v3 API: keys and values are base64, numbers are texts, and what is
/// false or zero is left out.
fn etcd(keys: &mut Keys, request: &Request) -> Reply {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let header = json!({ "cluster_id": "1", "member_id": "1", "raft_term": "2" });
    if request.path == "/v3/auth/authenticate" {
        if body["name"] != NAME || body["password"] != SECRET {
            let error = "etcdserver: authentication failed, invalid user ID or password";
            return refuse(400, error, 3);
        }
        return (
            200,
            json!({ "header": header, "token": "token.1" }).to_string(),
        );
    }
    if request.headers.get("authorization").map(String::as_str) != Some("token.1") {
        return refuse(401, "etcdserver: invalid auth token", 16);
    }
    let text = |value: &Value| {
        let decoded = STANDARD.decode(value.as_str().unwrap_or_default());
        String::from_utf8(decoded.unwrap()).unwrap()
    };
    let put = |keys: &mut Keys, put: &Value| {
        keys.put(&text(&put["key"]), text(&put["value"]).into_bytes());
    };
    match request.path.as_str() {
        "/v3/kv/range" => {
            let name = text(&body["key"]);
            let Some((value, made, changed)) = keys.by_name.get(&name) else {
                return (200, json!({ "header": header }).to_string());
            };
            let found = json!({
                "header": header, "count": "1",
                "kvs": [{
                    "key": STANDARD.encode(name), "value": STANDARD.encode(value),
                    "create_revision": made.to_string(), "mod_revision": changed.to_string(),
                }],
            });
            (200, found.to_string())
        }
        "/v3/kv/put" => {
            put(keys, &body);
            (200, json!({ "header": header }).to_string())
        }
        "/v3/kv/txn" => {
            let compare = &body["compare"][0];
            assert_eq!(
                (
                    &compare["target"],
                    body["compare"].as_array().unwrap().len()
                ),
                (&json!("CREATE"), 1),
                "all that this one can compare"
            );
            let made = keys
                .by_name
                .get(&text(&compare["key"]))
                .map_or(0, |(_, made, _)| *made);
            if compare["createRevision"].as_str().unwrap_or("0") != made.to_string() {
                return (200, json!({ "header": header }).to_string());
            }
            for operation in body["success"].as_array().unwrap() {
                put(keys, &operation["requestPut"]);
            }
            (
                200,
                json!({ "header": header, "succeeded": true }).to_string(),
            )
        }
        _ => refuse(404, "Not Found", 5),
    }
}
