//! Modes `consul-kv` and `etcd-kv`.

use serde_json::{Value, json};
use wal_tests::certificates::{Authority, Files};
use wal_tests::cluster::{Formation, ProcessCluster};

use crate::dns::assert_one_cluster;
use crate::stores::{Kind, NAME, SECRET, Store};

fn prepare(nodes: usize, store: &Store, secret_is_right: bool) -> ProcessCluster {
    prepare_with(nodes, &store.flags(secret_is_right))
}

fn prepare_with(nodes: usize, flags: &[String]) -> ProcessCluster {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    ProcessCluster::prepare(nodes, &Formation::Found, &flags)
}

/// What the key is to say when a node leads.
fn entry(cluster: &ProcessCluster, node: usize) -> Value {
    json!({
        "id": cluster.flag(node, "-node-id"),
        "api_addr": format!("http://{}", cluster.flag(node, "-http-addr")),
        "addr": cluster.flag(node, "-raft-addr"),
    })
}

/// Waits until the key names the leader, as rqlite would write it.
#[track_caller]
fn wait_registered(cluster: &mut ProcessCluster, store: &Store) {
    cluster.wait("the leader in the key", |cluster| {
        let leader = cluster.leader().ok_or("no leader")?;
        match store.leader() {
            Some(named) if named == entry(cluster, leader) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// A race of three, a fourth that comes later, and a leader that is lost.
fn one_cluster_by_a_key(kind: Kind) {
    let store = Store::new(kind);
    store.start();
    let mut cluster = prepare(4, &store, true);
    for node in 0..3 {
        cluster.start_node(node);
    }
    assert_one_cluster(&mut cluster);
    wait_registered(&mut cluster, &store);
    cluster.start_node(3);
    assert_one_cluster(&mut cluster);
    let leader = cluster.wait_leader();
    cluster.kill(leader);
    cluster.wait_leader_other_than(leader);
    wait_registered(&mut cluster, &store);
    // It comes back as a member, and neither starts a cluster nor takes the key.
    cluster.start_node(leader);
    assert_one_cluster(&mut cluster);
    wait_registered(&mut cluster, &store);
    for node in 0..4 {
        let path = "/status?key=disco";
        let disco = cluster.client().json(cluster.address(node), path).unwrap();
        let mode = match kind {
            Kind::Consul => "consul-kv",
            Kind::Etcd => "etcd-kv",
        };
        assert_eq!(disco["mode"], mode, "{disco}");
    }
}

#[test]
fn nodes_find_each_other_by_a_key_in_consul() {
    one_cluster_by_a_key(Kind::Consul);
}

#[test]
fn nodes_find_each_other_by_a_key_in_etcd() {
    one_cluster_by_a_key(Kind::Etcd);
}

#[test]
fn a_store_that_is_down_is_waited_for() {
    for kind in [Kind::Consul, Kind::Etcd] {
        let store = Store::new(kind);
        let mut cluster = prepare(2, &store, true);
        for node in 0..2 {
            // Longer than a node looks for others: it must not give up meanwhile.
            let place = cluster.arguments(node).len() - 1;
            let flags = ["-join-attempts=4", "-join-interval=1s"].map(str::to_owned);
            cluster.arguments(node).splice(place..place, flags);
            cluster.start_node(node);
            cluster.wait_log(node, "the store does not do what it is asked, trying on");
        }
        std::thread::sleep(std::time::Duration::from_secs(5));
        store.start();
        cluster.wait_log(0, "the store answers");
        cluster.wait("a leader in the key", |_| {
            store.leader().map(drop).ok_or_else(|| "none".to_owned())
        });
        assert_one_cluster(&mut cluster);
    }
}

#[test]
fn a_wrong_secret_is_named_in_the_log_and_starts_nothing() {
    for (kind, expected) in [
        (Kind::Consul, "is answered 403: ACL not found"),
        (
            Kind::Etcd,
            "authentication failed, invalid user ID or password",
        ),
    ] {
        let store = Store::new(kind);
        store.start();
        let mut cluster = prepare(1, &store, false);
        cluster.start_node(0);
        cluster.wait_log(0, expected);
        let ready = cluster
            .client()
            .get(cluster.address(0), "/readyz?timeout=1s");
        assert_eq!(ready.unwrap().status, 503);
        assert_eq!(store.leader(), None);
        // The secret stays out of the log.
        assert!(!cluster.log_text(0).contains("a wrong secret"));
        assert!(!cluster.has_ended(0));
    }
}

#[test]
fn only_who_promised_it_starts_the_cluster_of_a_key_that_names_it() {
    let store = Store::new(Kind::Consul);
    store.start();
    let mut cluster = prepare(1, &store, true);
    // Another node led; it has lost its data, and others may have theirs.
    store.set_leader(&entry(&cluster, 0));
    cluster.start_node(0);
    cluster.wait_log(0, "the key names this node, which has no data");
    let ready = cluster
        .client()
        .get(cluster.address(0), "/readyz?timeout=1s");
    assert_eq!(ready.unwrap().status, 503);
    cluster.kill(0);
    // It was killed between making the key and starting the cluster.
    std::fs::write(cluster.data_dir(0).join("claimed"), "").unwrap();
    cluster.start_node(0);
    assert_one_cluster(&mut cluster);
    wait_registered(&mut cluster, &store);
}

/// What a configuration says about TLS: whom it trusts, and what it shows.
fn trust(config: &mut Value, trusted: &Files, shown: &Files) {
    config["tls_config"] = json!({
        "ca_file": trusted.authority,
        "cert_file": shown.certificate,
        "key_file": shown.key,
    });
    if config["address"].is_string() {
        config["scheme"] = json!("https");
    }
}

/// The node says this, asks on, and starts nothing.
#[track_caller]
fn assert_refused(store: &Store, flags: &[String], expected: &str) {
    let mut cluster = prepare_with(1, flags);
    cluster.start_node(0);
    cluster.wait_log(0, "the store does not do what it is asked, trying on");
    let log = cluster.log_text(0);
    assert!(log.contains(expected), "{expected:?} is not in {log}");
    assert!(!log.contains(SECRET), "{log}");
    let ready = cluster
        .client()
        .get(cluster.address(0), "/readyz?timeout=500ms");
    assert_eq!(ready.unwrap().status, 503);
    assert_eq!(store.leader(), None);
    assert!(!cluster.has_ended(0));
}

#[test]
fn a_store_in_tls_is_believed_if_its_authority_is_the_one_that_was_given() {
    let [authority, stranger] = ["authority", "another"].map(Authority::new);
    let [own, of_stranger] = [&authority, &stranger].map(Files::new);
    for kind in [Kind::Consul, Kind::Etcd] {
        let store = Store::in_tls(kind, &authority);
        store.start();
        let wrong = store.flags_with(|config| trust(config, &of_stranger, &own));
        assert_refused(&store, &wrong, "UnknownIssuer");
        // Nor does it believe whoever shows a certificate of somebody else.
        let wrong = store.flags_with(|config| trust(config, &own, &of_stranger));
        assert_refused(&store, &wrong, "error=\"https://127.0.0.1:");
        let right = store.flags_with(|config| trust(config, &own, &own));
        let mut cluster = prepare_with(2, &right);
        (0..2).for_each(|node| cluster.start_node(node));
        assert_one_cluster(&mut cluster);
        wait_registered(&mut cluster, &store);
    }
}

#[test]
fn a_store_in_clear_is_not_asked_where_tls_was_meant() {
    let authority = Authority::new("authority");
    let own = Files::new(&authority);
    for kind in [Kind::Consul, Kind::Etcd] {
        let store = Store::new(kind);
        store.start();
        let flags = store.flags_with(|config| trust(config, &own, &own));
        assert_refused(&store, &flags, "error=\"https://127.0.0.1:");
    }
}

#[test]
fn a_certificate_file_that_is_none_is_named_at_the_start() {
    let store = Store::new(Kind::Etcd);
    let files = Files::new(&Authority::new("authority"));
    for (config, expected) in [
        (
            json!({ "ca_file": "/nonexistent.pem" }),
            "/nonexistent.pem: ",
        ),
        (
            json!({ "cert_file": files.certificate }),
            "cert_file and key_file go together",
        ),
        (
            json!({ "cert_file": files.certificate, "key_file": files.authority }),
            "has no private key",
        ),
    ] {
        let flags = store.flags_with(|all| all["tls_config"] = config);
        let mut cluster = prepare_with(1, &flags);
        cluster.start_node(0);
        assert!(!cluster.wait_end(0).success());
        let log = cluster.log_text(0);
        let says = log.contains(expected) && log.contains("-disco-config");
        assert!(says, "{expected:?} is not in {log}");
    }
}

#[test]
fn a_name_and_a_token_from_a_file_let_a_node_in() {
    let store = Store::with_name();
    store.start();
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), format!("{SECRET}\n")).unwrap();
    let flags = |password: &str| {
        store.flags_with(|config| {
            config["basic_auth"] = json!({ "username": NAME, "password": password });
            config["token"] = json!("");
            config["token_file"] = json!(token.path());
        })
    };
    assert_refused(&store, &flags("another"), "is answered 401: who are you?");
    let mut cluster = prepare_with(2, &flags(SECRET));
    (0..2).for_each(|node| cluster.start_node(node));
    assert_one_cluster(&mut cluster);
    wait_registered(&mut cluster, &store);
}
