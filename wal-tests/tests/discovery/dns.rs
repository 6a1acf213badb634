//! Modes `dns` and `dns-srv`.

use std::net::Ipv4Addr;

use wal_tests::cluster::{Formation, ProcessCluster};

use crate::nameserver;

/// Checks that all nodes are members of one cluster that works.
#[track_caller]
pub(crate) fn assert_one_cluster(cluster: &mut ProcessCluster) {
    cluster.wait_all_ready();
    cluster.wait("all nodes to be members", |cluster| {
        let serving = (0..cluster.size()).filter(|&node| cluster.serving(node));
        let serving: Vec<usize> = serving.collect();
        for &node in &serving {
            let nodes = cluster.client().json(cluster.address(node), "/nodes")?;
            if nodes.as_object().map_or(0, serde_json::Map::len) < serving.len() {
                return Err(nodes.to_string());
            }
        }
        Ok(())
    });
    let sql = "CREATE TABLE IF NOT EXISTS t(v)";
    for node in (0..cluster.size()).filter(|&node| cluster.serving(node)) {
        let written = cluster.client().execute_sql(cluster.address(node), sql);
        let _ = written.expect_success();
    }
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}

#[track_caller]
fn assert_mode(cluster: &ProcessCluster, mode: &str) {
    for address in cluster.addresses() {
        let disco = cluster
            .client()
            .json(&address, "/status?key=disco")
            .unwrap();
        assert_eq!(disco["mode"], mode, "{disco}");
    }
}

#[test]
fn nodes_find_each_other_by_the_variable_in_place_of_the_lookup() {
    let flags = ["-disco-mode", "dns", "-bootstrap-expect", "3"];
    let mut cluster = ProcessCluster::prepare(3, &Formation::Found, &flags);
    let hosts: Vec<&str> = (0..3)
        .map(|node| cluster.flag(node, "-raft-addr"))
        .collect();
    let hosts = hosts.join(",");
    cluster.set_variable("RQLITE_DISCO_DNS_HOSTS", &hosts);
    cluster.start_all(&Formation::Found);
    assert_one_cluster(&mut cluster);
    assert_mode(&cluster, "dns");
    // Again with the same flags: they change nothing any more.
    cluster.kill(1);
    cluster.start_node(1);
    assert_one_cluster(&mut cluster);
}

#[test]
fn nodes_may_get_their_addresses_in_the_dns_one_after_the_other() {
    let (nameserver, zone) = nameserver::start();
    let config = format!(r#"{{"name":"nodes.test","nameserver":"{nameserver}"}}"#);
    let flags = [
        "-disco-mode",
        "dns",
        "-disco-config",
        &config,
        "-bootstrap-expect",
        "3",
    ];
    let mut cluster = ProcessCluster::prepare(3, &Formation::Found, &flags);
    // One port, as on as many machines.
    let first = cluster.flag(0, "-raft-addr").to_owned();
    let port = first.rsplit_once(':').unwrap().1;
    for node in 0..3 {
        let arguments = cluster.arguments(node);
        let place = arguments
            .iter()
            .position(|flag| flag == "-raft-addr")
            .unwrap();
        arguments[place + 1] = format!("127.0.0.{}:{port}", node + 1);
        cluster.start_node(node);
        cluster.wait_log(node, "the DNS does not know the nodes yet");
    }
    for last in 1..=3 {
        let mut zone = zone.lock().unwrap();
        let known = zone.addresses.entry("nodes.test".to_owned()).or_default();
        known.push(Ipv4Addr::new(127, 0, 0, last));
        drop(zone);
        // With two in the DNS the third one finds them, and is heard of by them.
        if last < 3 {
            cluster.wait_log(0, &format!("\"127.0.0.{last}:{port}\"]"));
        }
    }
    assert_one_cluster(&mut cluster);
    assert_mode(&cluster, "dns");
}

#[test]
fn nodes_find_each_other_by_the_records_of_a_service() {
    let (nameserver, zone) = nameserver::start();
    let config = serde_json::json!({
        "name": "cluster.test", "service": "rqlite-raft", "nameserver": nameserver.to_string(),
    });
    let config = config.to_string();
    let flags = [
        "-disco-mode",
        "dns-srv",
        "-disco-config",
        &config,
        "-bootstrap-expect",
        "3",
    ];
    let mut cluster = ProcessCluster::prepare(3, &Formation::Found, &flags);
    for node in 0..3 {
        let addr = cluster.flag(node, "-raft-addr").to_owned();
        let port = addr.rsplit_once(':').unwrap().1.parse().unwrap();
        let host = format!("host{node}.cluster.test");
        let mut zone = zone.lock().unwrap();
        let service = zone
            .services
            .entry("_rqlite-raft._tcp.cluster.test".to_owned());
        service.or_default().push((port, host.clone()));
        zone.addresses.insert(host, vec![Ipv4Addr::LOCALHOST]);
    }
    cluster.start_all(&Formation::Found);
    assert_one_cluster(&mut cluster);
    assert_mode(&cluster, "dns-srv");
}
