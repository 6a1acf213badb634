//! The load generator against real nodes: what it says it has sent is in the database.

use std::process::{Command, Output};

use serde_json::Value;
use wal_tests::certificates::{Authority, Files};
use wal_tests::cluster::{Formation, ProcessCluster};

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    let output = command.args(arguments).output();
    output.expect("the load generator can be started")
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

/// Its JSON lines.
fn measured(arguments: &[&str]) -> Vec<Value> {
    let output = bench(arguments);
    assert!(output.status.success(), "{}", text(&output));
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let parse = |line: &str| serde_json::from_str(line);
    out.lines()
        .map(|line| parse(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

fn rows(cluster: &ProcessCluster, table: &str) -> u64 {
    let sql = format!("SELECT count(*) FROM {table}");
    let read = cluster
        .client()
        .query(cluster.address(0), "linearizable", &sql);
    let read = read.unwrap_or_else(|why| panic!("{why}"));
    read[0][0].as_u64().expect("a number of rows")
}

#[test]
fn what_is_reported_is_there() {
    let cluster = ProcessCluster::start(1, &Formation::Expect, &[]);
    let url = format!("http://{}", cluster.address(0));
    let run = |more: &[&str]| {
        let mut arguments = vec!["run", "--endpoints", &url, "--json", "--rows", "500"];
        arguments.extend(["--seconds", "0.5", "--warm-up", "0", "--connections", "4"]);
        arguments.extend(more);
        measured(&arguments).remove(0)
    };
    let inserted = run(&["--workload", "insert"]);
    let requests = inserted["requests"].as_u64().expect("a number");
    let there = rows(&cluster, "bench_log");
    assert_eq!(inserted["failed"], 0);
    // What was on its way at the end was not measured.
    assert!((requests..=requests + 4).contains(&there), "{inserted}");
    assert!(inserted["latency_us"]["p50"].as_u64() > Some(0));
    let batched = run(&["--workload", "batch"]);
    let batches = batched["requests"].as_u64().expect("a number");
    let more = rows(&cluster, "bench_log") - there;
    assert!((batches * 100..=(batches + 4) * 100).contains(&more));
    for workload in [
        "update",
        "update-indexed",
        "read-none",
        "read-weak",
        "read-linearizable",
        "read-strong",
        "mixed",
        "large",
    ] {
        let one = run(&["--workload", workload]);
        assert!(
            one["requests"].as_u64() > Some(0) && one["failed"] == 0,
            "{workload}: {one}"
        );
    }
    assert_eq!(rows(&cluster, "bench_rows"), 500);
}

#[test]
fn what_is_answered_late_is_measured() {
    let cluster = ProcessCluster::start(1, &Formation::Expect, &[]);
    let url = format!("http://{}", cluster.address(0));
    let mut arguments = vec!["run", "--endpoints", &url, "--json", "--connections", "64"];
    arguments.extend(["--seconds", "0.001", "--warm-up", "0"]);
    let one = measured(&arguments).remove(0);
    // Nobody answers 64 writes in a millisecond.
    assert!(one["requests"].as_u64() >= Some(64), "{one}");
    assert!(one["seconds"].as_f64() > Some(0.001), "{one}");
}

#[test]
fn an_open_loop_keeps_its_rate_and_draws_it() {
    let cluster = ProcessCluster::start(1, &Formation::Expect, &[]);
    let url = format!("http://{}", cluster.address(0));
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let svg = dir.path().join("load.svg");
    let path = svg.to_str().expect("a path that is text");
    let output = bench(&[
        "run",
        "--endpoints",
        &url,
        "--rate",
        "50",
        "--seconds",
        "2",
        "--warm-up",
        "0",
        "--svg",
        path,
        "--json",
    ]);
    assert!(output.status.success(), "{}", text(&output));
    let one: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    // A hundred are due; a machine that stands still at the end keeps some from being sent.
    let requests = one["requests"].as_u64().expect("a number");
    assert!((1..=100).contains(&requests), "{one}");
    let drawn = std::fs::read_to_string(&svg).expect("the picture is written");
    assert!(drawn.starts_with("<svg") && drawn.matches("<polyline").count() == 2);
}

#[test]
fn errors_end_with_an_error() {
    let cluster = ProcessCluster::start(1, &Formation::Expect, &[]);
    let url = format!("http://{}", cluster.address(0));
    for (arguments, says) in [
        (
            vec!["run", "--workload", "nothing"],
            "there are insert, batch",
        ),
        (
            vec!["run", "--endpoints", "localhost"],
            "is not http://host:port",
        ),
        (
            vec!["run", "--endpoints", "http://127.0.0.1:1"],
            "127.0.0.1:1",
        ),
        (
            vec!["run", "--endpoints", "https://127.0.0.1:1"],
            "--ca-cert",
        ),
        (vec!["run", "--endpoints", &url, "--seconds=-1"], "seconds"),
    ] {
        let output = bench(&arguments);
        assert!(!output.status.success());
        assert!(text(&output).contains(says), "{}", text(&output));
    }
}

#[test]
fn both_versions_of_http_are_spoken_in_tls() {
    let authority = Authority::new("load");
    let files = Files::new(&authority);
    files.put(&authority.issue("127.0.0.1"));
    let mut cluster = ProcessCluster::prepare(1, &Formation::Join, &files.flags());
    cluster.start_node(0);
    let url = format!("https://{}", cluster.address(0));
    let file = files.authority.to_str().expect("a plain name");
    for version in [&[][..], &["--h2"]] {
        let mut arguments = vec!["run", "--endpoints", &url, "--ca-cert", file, "--json"];
        arguments.extend(["--seconds", "0.3", "--warm-up", "0", "--connections", "2"]);
        arguments.extend(version);
        // Its own client does not know the authority, so nobody waits until the node is ready.
        let output = cluster.wait("the node to answer", |_| {
            let output = bench(&arguments);
            let is_done = output.status.success();
            is_done.then_some(()).ok_or_else(|| text(&output))?;
            Ok(output)
        });
        let one: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert!(one["requests"].as_u64() > Some(0), "{one}");
    }
}

#[test]
fn two_clusters_are_compared_in_turns() {
    let cluster = ProcessCluster::start(1, &Formation::Expect, &[]);
    let url = format!("http://{}", cluster.address(0));
    let output = bench(&[
        "compare",
        "--a",
        &url,
        "--b",
        &url,
        "--rounds",
        "2",
        "--seconds",
        "0.3",
        "--warm-up",
        "0",
        "--connections",
        "2",
    ]);
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    let turns = text.lines().filter_map(|line| line.split(' ').next());
    let turns: Vec<&str> = turns.take(4).collect();
    assert_eq!(turns, ["A", "B", "B", "A"]);
    assert!(text.contains("medians of 2 pairs"), "{text}");
}

#[test]
fn the_floors_are_measured_without_a_node() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let path = dir.path().to_str().expect("a path that is text");
    let output = bench(&["floors", "--dir", path, "--seconds", "0.2"]);
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    for what in ["fdatasync", "SQLite FULL", "SQLite OFF", "HTTP echo at 512"] {
        assert!(text.contains(what), "{text}");
    }
    let left = std::fs::read_dir(dir.path()).expect("it is there").count();
    assert_eq!(left, 0, "nothing is left behind");
}

#[test]
fn a_whole_cluster_is_measured_row_by_row() {
    let rows = measured(&["cluster", "--seconds", "0.2", "--rows", "500", "--json"]);
    let names: Vec<&str> = rows.iter().filter_map(|row| row["row"].as_str()).collect();
    assert!(names.len() >= 15, "{names:?}");
    for row in rows.iter().filter(|row| row["row"].is_string()) {
        assert_eq!(row["measured"]["failed"], 0, "{row}");
    }
    assert!(rows[0]["fdatasync_us"]["p50"].as_u64() > Some(0));
    assert_eq!(rows.iter().filter(|row| row["echo"].is_u64()).count(), 3);
}

#[test]
fn transactions_cost_about_as_many_bytes_as_their_sql() {
    let rows = measured(&[
        "bytes",
        "--json",
        "--seconds",
        "0.5",
        "--rows",
        "5000",
        "--connections",
        "1,16",
    ]);
    assert_eq!(rows.len(), 12);
    for row in &rows {
        let of = |name: &str| row[name].as_f64().expect("a number");
        assert!(of("encoded") < of("pages") / 4.0, "{row}");
        // A small table splits its pages more often than a large one.
        assert!(of("encoded") < 4.0 * of("sql"), "{row}");
        assert!(
            of("encoded") < of("entry") && of("entry") < of("log"),
            "{row}"
        );
        assert!(of("sent") > of("entry") / 2.0, "{row}");
    }
}
