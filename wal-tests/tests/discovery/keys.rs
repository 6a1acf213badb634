//! Modes `consul-kv` and `etcd-kv`.

use serde_json::json;
use wal_tests::cluster::{Formation, ProcessCluster};

use crate::dns::assert_one_cluster;
use crate::stores::{Kind, Store};

fn prepare(nodes: usize, store: &Store, secret_is_right: bool) -> ProcessCluster {
    let flags = store.flags(secret_is_right);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    ProcessCluster::prepare(nodes, &Formation::Found, &flags)
}

/// What the key is to say when a node leads.
fn entry(cluster: &ProcessCluster, node: usize) -> serde_json::Value {
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
            let flags = ["-join-attempts=1", "-join-interval=100ms"].map(str::to_owned);
            cluster.arguments(node).splice(place..place, flags);
            cluster.start_node(node);
            cluster.wait_log(node, "the store does not do what it is asked, trying on");
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
        store.start();
        cluster.wait_log(0, "the store answers");
        cluster.wait("a leader in the key", |_| {
            store.leader().map(drop).ok_or_else(|| "none".to_owned())
        });
        let first = usize::from(store.leader() == Some(entry(&cluster, 1)));
        cluster.wait_ready(first);
        // The other one has a tenth of a second to join, unless it was too late already.
        let other = 1 - first;
        if cluster.has_ended(other) {
            let _ = cluster.wait_end(other);
            cluster.start_node(other);
        }
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
