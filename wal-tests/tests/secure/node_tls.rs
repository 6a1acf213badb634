//! Certificates between nodes: rqlited's `-node-*` flags, what is refused and how both sides say
//! so, and certificates that are replaced while the nodes run.

use std::fs;
use std::time::Duration;

use rcgen::date_time_ymd;
use serde_json::Value;
use wal_tests::certificates::{Authority, Files, Pair};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::process;

const CREATE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
const INSERT: &str = "INSERT INTO t(v) VALUES(randomblob(1000))";

/// Files with this certificate, and with this authority as the one to be trusted.
fn files(trusted: &Authority, shown: &Pair) -> Files {
    let files = Files::new(trusted);
    files.put(shown);
    files
}

/// Adds flags to one node.
fn give(cluster: &mut ProcessCluster, node: usize, flags: &[&str]) {
    let arguments = cluster.arguments(node);
    let data_dir = arguments.len() - 1;
    let flags = flags.iter().map(|&flag| flag.to_owned());
    arguments.splice(data_dir..data_dir, flags);
}

/// The Raft address of a node.
fn raft_addr(cluster: &mut ProcessCluster, node: usize) -> String {
    let arguments = cluster.arguments(node);
    let flag = arguments.iter().position(|word| word == "-raft-addr");
    arguments[flag.unwrap() + 1].clone()
}

/// The lines by which a node says that it and the one at this address do not talk to each other.
fn complaints(cluster: &ProcessCluster, node: usize, addr: &str) -> Vec<String> {
    let addr = format!("addr=\"{addr}\"");
    let log = cluster.log_text(node);
    let lines = log.lines().filter(|line| line.contains("do not agree"));
    lines
        .filter(|line| line.contains(&addr))
        .map(str::to_owned)
        .collect()
}

/// Waits until both sides have said something.
fn wait_refused(cluster: &mut ProcessCluster, node: usize) {
    let (first, other) = (raft_addr(cluster, 0), raft_addr(cluster, node));
    cluster.wait("both sides to say why", |cluster| {
        let lines = [(0, &other), (node, &first)].map(|(at, about)| complaints(cluster, at, about));
        let said = lines.iter().all(|lines| !lines.is_empty());
        said.then_some(()).ok_or(format!("{lines:?}"))
    });
}

/// One line on each side, with these words in it.
#[track_caller]
fn assert_refused(cluster: &mut ProcessCluster, node: usize, here: &str, there: &str) {
    let (first, other) = (raft_addr(cluster, 0), raft_addr(cluster, node));
    for (at, about, words) in [(0, &other, here), (node, &first, there)] {
        let lines = complaints(cluster, at, about);
        assert_eq!(lines.len(), 1, "node {} says {lines:#?}", at + 1);
        assert!(lines[0].contains(words), "{words:?} in {}", lines[0]);
    }
}

/// How many nodes the first one counts.
fn members(cluster: &ProcessCluster) -> usize {
    let nodes = cluster.client().json(cluster.address(0), "/nodes?ver=2");
    nodes.unwrap()["nodes"].as_array().unwrap().len()
}

#[test]
fn every_reason_to_refuse_a_node_is_named_once_on_both_sides() {
    let authority = Authority::new("authority");
    let stranger = Authority::new("another");
    let named = ["-node-verify-common-name", "node"];
    let expired = authority.issue_as("node", |params| {
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2001, 1, 1);
    });
    let own = files(&authority, &authority.issue("node"));
    let of_stranger = files(&authority, &stranger.issue("node"));
    let old = files(&authority, &expired);
    let misnamed = files(&authority, &authority.issue("somebody"));
    let key = own.key.with_file_name("cluster.key");
    let key = key.to_str().unwrap();
    assert!(process::run(&["keygen", key]).status.success());
    let elsewhere = ["-node-verify-server-name", "db.example"];
    let cases = [
        (
            [&of_stranger.node_flags()[..], &named].concat(),
            "certificate is of an authority that is not trusted",
            "it is of an authority that is not trusted",
        ),
        (
            [&old.node_flags()[..], &named].concat(),
            "certificate has expired",
            "it has expired",
        ),
        (
            [&misnamed.node_flags()[..], &named].concat(),
            "certificate has another common name",
            "it has another common name",
        ),
        (
            [&own.node_flags()[..], &named, &elsewhere].concat(),
            "refuses this node's certificate: it is not for the name",
            "wrong server name",
        ),
        (vec![], "shows no certificate", "demands a certificate"),
        (
            vec!["-cluster-key", key],
            "refuses this node's certificate: it is of an authority",
            "certificate is of an authority that is not trusted",
        ),
    ];
    let other_cluster = cases.len() + 1;
    let mut cluster = ProcessCluster::prepare(cases.len() + 2, &Formation::Join, &[]);
    let flags = [&own.node_flags()[..], &named].concat();
    give(&mut cluster, 0, &flags);
    give(&mut cluster, other_cluster, &flags);
    cluster.start_node(0);
    cluster.wait_ready(0);
    found_another_cluster(&mut cluster, other_cluster);
    for (node, (flags, _, _)) in (1..).zip(&cases) {
        give(&mut cluster, node, flags);
        give(&mut cluster, node, &["-join-attempts", "1000"]);
        cluster.start_node(node);
    }
    for node in 1..=cases.len() {
        wait_refused(&mut cluster, node);
    }
    // Some more attempts, so that a line for each would be more than one line.
    std::thread::sleep(Duration::from_secs(2));
    for (node, (_, here, there)) in (1..).zip(&cases) {
        assert_refused(&mut cluster, node, here, there);
    }
    let different = "the two nodes belong to different clusters";
    cluster.wait_log(other_cluster, different);
    cluster.wait_log(0, different);
    assert_refused(&mut cluster, other_cluster, different, different);
    assert_eq!(members(&cluster), 1);
    cluster.assert_healthy_logs();
}

/// Starts a node alone, so that it has a cluster of its own, and then tells it to join.
fn found_another_cluster(cluster: &mut ProcessCluster, node: usize) {
    let join = cluster.arguments(node).clone();
    let at = join.iter().position(|word| word == "-join").unwrap();
    cluster.arguments(node).drain(at..at + 2);
    cluster.start_node(node);
    cluster.wait_ready(node);
    cluster.stop(node);
    *cluster.arguments(node) = join;
    cluster.start_node(node);
}

#[test]
fn an_address_that_others_can_reach_takes_a_key_or_certificates_or_an_explicit_word() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let open = ["serve", "-raft-addr", "192.0.2.1:4002"];
    let output = process::run(&[&open[..], &[data.to_str().unwrap()]].concat());
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    for way in ["-cluster-key", "-node-cert", "-insecure-cluster"] {
        assert!(error.contains(way), "{error}");
    }
    assert!(!data.exists());
    // On all addresses, one of which others can reach, with such a word.
    let mut cluster = ProcessCluster::prepare(1, &Formation::Join, &["-insecure-cluster"]);
    let addr = raft_addr(&mut cluster, 0);
    let port = addr.rsplit_once(':').unwrap().1;
    give(&mut cluster, 0, &["-raft-addr", &format!("0.0.0.0:{port}")]);
    give(&mut cluster, 0, &["-raft-adv-addr", &addr]);
    cluster.start_node(0);
    cluster.wait_ready(0);
    cluster.assert_healthy_logs();
}

#[test]
fn nodes_with_a_wrong_server_name_never_form_a_cluster() {
    let authority = Authority::new("authority");
    let files = Files::new(&authority);
    let wrong = ["-node-verify-server-name", "db.example"];
    let patience = ["-bootstrap-expect-timeout", "3s"];
    let flags = [&files.node_flags()[..4], &wrong, &patience].concat();
    let trust = ["-node-ca-cert", files.authority.to_str().unwrap()];
    let flags = [&flags[..], &trust].concat();
    let mut cluster = ProcessCluster::prepare(3, &Formation::Expect, &flags);
    for node in 0..3 {
        cluster.start_node(node);
    }
    for node in 0..3 {
        assert_eq!(cluster.wait_end(node).code(), Some(1));
        let log = cluster.log_text(node);
        assert!(log.contains("wrong server name"), "{log}");
        assert!(!log.contains("starting a new cluster"), "{log}");
    }
    // With a name that the certificates are valid for they do.
    for node in 0..3 {
        for word in cluster.arguments(node) {
            if word == "db.example" {
                "localhost".clone_into(word);
            }
        }
    }
    cluster.start_all(&Formation::Expect);
    assert_eq!(members(&cluster), 3);
    cluster.assert_healthy_logs();
}

/// How often a node has read its certificates again.
fn readings(cluster: &ProcessCluster, node: usize) -> usize {
    let log = cluster.log_text(node);
    log.matches("certificate for other nodes was read again")
        .count()
}

/// Changes files that all nodes have, and waits until each has read them again.
fn replace(cluster: &mut ProcessCluster, nodes: usize, change: impl FnOnce()) {
    let before: Vec<usize> = (0..nodes).map(|node| readings(cluster, node)).collect();
    change();
    cluster.wait("the certificates to be read again", |cluster| {
        let now: Vec<usize> = (0..nodes).map(|node| readings(cluster, node)).collect();
        let all = now.iter().zip(&before).all(|(now, before)| now > before);
        all.then_some(()).ok_or(format!("{before:?}, then {now:?}"))
    });
}

#[test]
fn certificates_and_their_authority_are_replaced_while_the_cluster_runs() {
    let old = Authority::new("authority");
    let new = Authority::new("its successor");
    let files = Files::new(&old);
    let left_behind = Files::new(&old);
    let mut cluster = ProcessCluster::prepare(4, &Formation::Join, &[]);
    for node in 0..3 {
        give(&mut cluster, node, &files.node_flags());
    }
    give(&mut cluster, 3, &left_behind.node_flags());
    for node in 0..3 {
        cluster.start_node(node);
        cluster.wait_ready(node);
    }
    let write = |cluster: &ProcessCluster, sql: &str| {
        let client = cluster.client();
        let _ = client.execute_sql(cluster.address(0), sql).expect_success();
    };
    write(&cluster, CREATE);
    replace(&mut cluster, 3, || {
        let both = format!("{}{}", old.pem(), new.pem());
        fs::write(&files.authority, both).unwrap();
    });
    write(&cluster, INSERT);
    replace(&mut cluster, 3, || files.put(&new.issue("node")));
    write(&cluster, INSERT);
    replace(&mut cluster, 3, || new.write(&files.authority));
    // Each meets the others anew.
    for node in 0..3 {
        cluster.stop(node);
        write_somewhere(&mut cluster, node);
        cluster.start_node(node);
        cluster.wait_ready(node);
    }
    // One that nobody told of the new authority is not let in any more.
    let patience = ["-join-attempts", "1", "-join-interval", "2s"];
    give(&mut cluster, 3, &patience);
    cluster.start_node(3);
    assert_eq!(cluster.wait_end(3).code(), Some(1));
    let words = "of an authority that is not trusted";
    assert!(cluster.log_text(3).contains(words));
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}

/// Inserts a row through a node that is not this one.
fn write_somewhere(cluster: &mut ProcessCluster, not: usize) {
    cluster.wait("a write", |cluster| {
        let address = cluster.address((not + 1) % 3);
        match cluster.client().execute_sql(address, INSERT) {
            wal_tests::client::Outcome::Answered(answer) if answer.error().is_none() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn a_node_whose_certificate_is_about_to_expire_says_so() {
    let authority = Authority::new("authority");
    let files = Files::new(&authority);
    let mut cluster = ProcessCluster::prepare(1, &Formation::Join, &files.node_flags());
    files.put(&authority.issue_as("node", |params| {
        params.not_after = date_time_ymd(2001, 1, 1);
    }));
    cluster.start_node(0);
    cluster.wait_log(0, "this node's certificate has expired");
    replace(&mut cluster, 1, || files.put(&authority.issue("node")));
    // A certificate without its key is not taken.
    fs::write(&files.certificate, authority.issue("node").certificate).unwrap();
    cluster.wait_log(0, "was not read again; the old one stays");
    cluster.wait_ready(0);
    let status = cluster.client().json(cluster.address(0), "/status");
    assert_eq!(status.unwrap()["store"]["ready"], Value::Bool(true));
    cluster.assert_healthy_logs();
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let authority = Authority::new("authority");
    let files = Files::new(&authority);
    let mut cluster = ProcessCluster::prepare(3, &Formation::Join, &[]);
    let mut flags = files.node_flags();
    flags[1] = "/nonexistent.pem";
    give(&mut cluster, 0, &flags);
    let mut flags = files.node_flags();
    flags[3] = flags[1];
    give(&mut cluster, 1, &flags);
    let mut flags = files.node_flags();
    flags[5] = flags[3];
    give(&mut cluster, 2, &flags);
    for (node, words) in [
        (0, "-node-cert /nonexistent.pem"),
        (1, "it has no private key in PEM form"),
        (2, "it has no certificate in PEM form"),
    ] {
        cluster.start_node(node);
        assert_eq!(cluster.wait_end(node).code(), Some(1));
        let log = cluster.log_text(node);
        assert!(log.contains(words), "{log}");
    }
}

/// Whether a node says that it follows a leader.
fn has_leader(cluster: &ProcessCluster, node: usize) -> bool {
    let ready = cluster
        .client()
        .get(cluster.address(node), "/readyz?timeout=1s");
    ready.is_ok_and(|ready| ready.status == 200)
}

#[test]
fn a_node_whose_authority_is_withdrawn_is_cut_off_at_once_although_it_is_connected() {
    let old = Authority::new("authority");
    let new = Authority::new("its successor");
    let both = format!("{}{}", old.pem(), new.pem());
    let [told, left_behind] = [&new, &old].map(|authority| {
        let files = files(authority, &authority.issue("node"));
        fs::write(&files.authority, &both).unwrap();
        files
    });
    let mut cluster = ProcessCluster::prepare(3, &Formation::Join, &[]);
    for (node, files) in [&told, &told, &left_behind].into_iter().enumerate() {
        give(&mut cluster, node, &files.node_flags());
        cluster.start_node(node);
        cluster.wait_ready(node);
    }
    let client = cluster.client().clone();
    let _ = client
        .execute_sql(cluster.address(2), CREATE)
        .expect_success();
    let gone = raft_addr(&mut cluster, 2);
    replace(&mut cluster, 2, || new.write(&told.authority));
    // Whoever led: the two go on together, and the third has nobody to talk to.
    cluster.wait("the third node to be alone", |cluster| {
        let leaders = [0, 1, 2].map(|node| has_leader(cluster, node));
        let is_so = leaders == [true, true, false];
        is_so.then_some(()).ok_or(format!("{leaders:?}"))
    });
    write_somewhere(&mut cluster, 2);
    for node in [0, 1] {
        let said = cluster.log_text(node);
        let words = "certificate is of an authority that is not trusted";
        assert!(said.contains(words), "{said}");
    }
    assert!(!complaints(&cluster, 0, &gone).is_empty());
    // The connections that the others have with each other are of use as before.
    let nodes = cluster.client().json(cluster.address(0), "/nodes?ver=2");
    let nodes = nodes.unwrap();
    let reachable = |node: &Value| node["reachable"] == true;
    let reachable: Vec<bool> = nodes["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(reachable)
        .collect();
    assert_eq!(reachable, [true, true, false], "{nodes}");
    // With a certificate of the new authority it is one of them again, without a restart.
    left_behind.put(&new.issue("node"));
    cluster.wait_log(2, "certificate for other nodes was read again");
    cluster.wait_ready(2);
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}
