//! `-extensions-path`: a node loads the extensions that the operator chose, and clients load none.

use std::path::Path;
use std::process::Command;

use serde_json::json;
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::process;

/// Builds the extension against the headers that come with the SQLite of the node.
fn compile(to: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("extension/twice.c");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(to)
        .arg("-I")
        .arg(env!("SQLITE_INCLUDE"))
        .arg(source)
        .status()
        .expect("SQLite itself needed a C compiler");
    assert!(compiled.success());
}

fn pack(command: &str, arguments: &[&str], dir: &Path) {
    let packed = Command::new(command)
        .args(arguments)
        .current_dir(dir)
        .status();
    assert!(packed.expect("tar is on every system").success());
}

/// The function works in writes, in reads of every node, and in a view.
fn assert_loaded(path: &Path, nodes: usize) {
    let flags = [
        "-extensions-path",
        path.to_str().expect("temporary paths are text"),
    ];
    let mut cluster = ProcessCluster::start(nodes, &Formation::Join, &flags);
    let leader = cluster.wait_leader();
    let statements = json!([
        "CREATE TABLE t(v)",
        "INSERT INTO t VALUES(twice(21))",
        "CREATE VIEW w AS SELECT twice(v) AS v FROM t"
    ]);
    let written = cluster
        .client()
        .execute(cluster.address(leader), &statements);
    let _ = written.expect_success();
    let _ = cluster.assert_identical();
    for node in 0..nodes {
        let sql = "SELECT t.v, w.v, twice(1) FROM t, w";
        let rows = cluster.client().query(cluster.address(node), "none", sql);
        assert_eq!(rows, Ok(vec![vec![json!(42), json!(84), json!(2)]]));
        let names = "/status?key=extensions.names";
        let names = cluster.client().json(cluster.address(node), names);
        assert_eq!(names, Ok(json!(["twice.so"])));
    }
    let refused = cluster
        .client()
        .query(
            cluster.address(leader),
            "weak",
            "SELECT load_extension('x')",
        )
        .expect_err("SQL loads nothing");
    assert!(refused.contains("not authorized"), "{refused}");
}

#[test]
fn a_file_is_loaded_by_every_connection_of_every_node() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("twice.so");
    compile(&file);
    assert_loaded(&file, 3);
}

#[test]
fn directories_and_archives_are_taken_apart() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    compile(&inner.join("twice.so"));
    assert_loaded(&inner, 1);
    pack("tar", &["czf", "all.tar.gz", "inner"], dir.path());
    assert_loaded(&dir.path().join("all.tar.gz"), 1);
}

#[test]
fn a_file_that_is_no_extension_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("nothing.so");
    std::fs::write(&file, "not an object file").unwrap();
    let data = dir.path().join("data");
    for path in [file, dir.path().join("absent.zip")] {
        let (path, data) = (path.to_str().unwrap(), data.to_str().unwrap());
        let output = process::run(&["serve", "-extensions-path", path, data]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{said}");
        assert!(
            said.contains("-extensions-path") && said.contains(path),
            "{said}"
        );
    }
}
