//! Real nodes: looked at while they are written to, compared after damage, and their past taken out.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;
use wal_tests::client::{Client, Image, Outcome};
use wal_tests::cluster::{Formation, ProcessCluster};

use crate::samples::{SEGMENT, copy, flip};
use crate::{inspect, objects, process, text};

fn write(client: &Client, address: &str, sql: &str) {
    let outcome = client.execute_sql(address, sql);
    let error = match &outcome {
        Outcome::Answered(answer) => answer.error(),
        _ => None,
    };
    assert_eq!(error, None, "{sql}");
    assert!(
        matches!(outcome, Outcome::Answered(_)),
        "{sql}: {outcome:?}"
    );
}

#[test]
fn every_state_of_a_running_node_can_be_taken_out_of_its_log() {
    // Checkpoints, segments and parts of transactions between any two of the states.
    let flags = [
        "-entry-bytes=131072",
        "-log-segment=1048576",
        "-raft-snap-wal-size=65536",
    ];
    let mut cluster = ProcessCluster::start(1, &Formation::Expect, &flags);
    let images = states(&cluster);
    let dir = cluster.data_dir(0).to_owned();
    for image in &images {
        assert_extracted(&dir, image);
    }
    assert_interval_shown(&dir, &images[0], &images[images.len() - 1]);
    let (_, out, _) = inspect(&["list", text(&dir), "--json"]);
    let staged = objects(&out, "entry")
        .iter()
        .filter(|entry| entry["effect"] == "staged")
        .count();
    assert!(staged > 0, "some transactions had several parts");
    cluster.stop(0);
    let copied = tempfile::tempdir().unwrap();
    copy(&dir, copied.path());
    assert_out_of_reach(copied.path(), &images);
    // Without a tail, what a checkpoint covers goes.
    cluster
        .arguments(0)
        .splice(0..0, ["-log-tail", "0"].map(str::to_owned));
    cluster.start_node(0);
    cluster.wait_ready(0);
    let (address, client) = (cluster.address(0).to_owned(), cluster.client().clone());
    cluster.wait("the first segment to go", |_| {
        write(
            &client,
            &address,
            "INSERT INTO t(v) VALUES (hex(randomblob(20000)))",
        );
        match dir.join("log").join(SEGMENT).exists() {
            false => Ok(()),
            true => Err("it is there".to_owned()),
        }
    });
    assert_extracted(&dir, &client.image(&address).unwrap());
    let oldest = images[0].data_index.to_string();
    let out = copied.path().join("oldest.db");
    let (code, _, errors) = inspect(&["extract", text(&dir), "--index", &oldest, "-o", text(&out)]);
    assert_eq!(code, 2);
    assert!(
        errors.contains("is not reachable: the log here has the entries"),
        "{errors}"
    );
    assert_eq!(inspect(&["verify", text(&dir)]).0, 0);
}

/// The images of a database after each of some statements.
fn states(cluster: &ProcessCluster) -> Vec<Image> {
    let (address, client) = (cluster.address(0), cluster.client());
    let mut images: Vec<Image> = Vec::new();
    for sql in [
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v)",
        "CREATE INDEX by_v ON t(v)",
        "CREATE TABLE other(v)",
        "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 400)
         INSERT INTO t SELECT i, hex(randomblob(20)) FROM n",
        "UPDATE t SET v = zeroblob(9000) WHERE id % 50 = 0",
        "UPDATE t SET v = hex(randomblob(2500)) WHERE id % 2 = 1",
        "DELETE FROM t WHERE id > 100",
        "VACUUM",
        "INSERT INTO t(v) VALUES ('the last row')",
        "INSERT INTO other VALUES ('elsewhere')",
    ] {
        write(client, address, sql);
        images.push(client.image(address).unwrap());
    }
    assert!(
        images
            .windows(2)
            .all(|pair| pair[0].data_index < pair[1].data_index)
    );
    images
}

fn assert_extracted(dir: &Path, image: &Image) {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("then.db");
    let index = image.data_index.to_string();
    let arguments = [
        "extract",
        text(dir),
        "--index",
        &index,
        "-o",
        text(&file),
        "--json",
    ];
    let run = process(&arguments);
    let said = String::from_utf8(run.stdout).unwrap();
    assert_eq!(run.status.code(), Some(0), "{said}{:?}", run.stderr);
    let facts = objects(&said, "extracted");
    assert_eq!(facts[0]["database_hash"], json!(image.hash));
    assert!(
        fs::read(&file).unwrap() == image.bytes,
        "the bytes at index {index}"
    );
    // What is there is not overwritten.
    assert_eq!(process(&arguments).status.code(), Some(2));
}

/// Every page that two images do not have in common, and what is in it.
fn assert_interval_shown(dir: &Path, before: &Image, after: &Image) {
    let (from, to) = (before.data_index.to_string(), after.data_index.to_string());
    let (code, out, _) = inspect(&["diff", text(dir), "--from", &from, "--to", &to, "--json"]);
    assert_eq!(code, 1);
    let differing = objects(&out, "page_difference");
    let pages = |image: &Image| -> Vec<Vec<u8>> {
        image
            .bytes
            .chunks(image.page_bytes)
            .map(<[u8]>::to_vec)
            .collect()
    };
    let (before, after) = (pages(before), pages(after));
    for (index, page) in after.iter().enumerate() {
        let shown = differing.iter().any(|row| row["page"] == json!(index + 1));
        let is_new = before.get(index) != Some(page);
        assert!(
            shown || !is_new,
            "page {} has changed and is not shown",
            index + 1
        );
    }
    assert!(out.contains("the last row"), "down to the cells");
}

/// With the entry of the VACUUM damaged, what it wrote is known only as far as the database file
/// still has it: the page of `other` it has not, since the last write.
fn assert_out_of_reach(dir: &Path, images: &[Image]) {
    let [.., vacuum, last_row, elsewhere] = images else {
        panic!("there are more than three");
    };
    let (_, out, _) = inspect(&["list", text(dir), "--json"]);
    let entries = objects(&out, "entry");
    let of_vacuum = entries
        .iter()
        .find(|entry| entry["index"] == json!(vacuum.data_index));
    let offset = usize::try_from(of_vacuum.unwrap()["offset"].as_u64().unwrap()).unwrap();
    let segment = of_vacuum.unwrap()["segment"].as_u64().unwrap();
    let name = format!("{segment:016x}-");
    let files = fs::read_dir(dir.join("log"))
        .unwrap()
        .map(|entry| entry.unwrap());
    let mut files = files.filter(|file| file.file_name().to_str().unwrap().starts_with(&name));
    flip(&files.next().unwrap().path(), offset + 60);
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("then.db");
    let extract = |index: u64| {
        let index = index.to_string();
        inspect(&["extract", text(dir), "--index", &index, "-o", text(&file)])
    };
    let (code, _, errors) = extract(last_row.data_index);
    assert_eq!(code, 2, "{errors}");
    let by = format!("by entry {}", elsewhere.data_index);
    assert!(
        errors.contains("is not reachable") && errors.contains(&by),
        "{errors}"
    );
    assert!(!file.exists(), "nothing is left behind");
    let (code, _, errors) = extract(vacuum.data_index);
    assert_eq!(code, 2, "{errors}");
    let (code, out, errors) = extract(elsewhere.data_index);
    assert_eq!(code, 0, "{out}{errors}");
    assert!(fs::read(&file).unwrap() == elsewhere.bytes);
    assert_eq!(inspect(&["verify", text(dir)]).0, 1);
}

#[test]
fn a_cluster_under_writes_is_found_sound_and_a_flipped_byte_is_named() {
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    let leader = cluster.wait_leader();
    let address = cluster.address(leader).to_owned();
    write(
        cluster.client(),
        &address,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)",
    );
    look_while_writing(&cluster, &address);
    // One page of its own, so that it is known which entry wrote it last.
    let mark = "INSERT INTO marked VALUES ('the mark')";
    write(cluster.client(), &address, "CREATE TABLE marked(v TEXT)");
    write(cluster.client(), &address, mark);
    let image = cluster.assert_identical();
    let page = image.bytes.len() / image.page_bytes;
    for node in 0..3 {
        cluster.stop(node);
    }
    let entry = image.data_index;
    let (left, right) = (
        cluster.data_dir(0).to_owned(),
        cluster.data_dir(1).to_owned(),
    );
    let (code, out, errors) = inspect(&["diff", text(&left), text(&right), "--json"]);
    assert_eq!(code, 0, "{out}{errors}");
    let damaged = right.join("db.sqlite");
    let bytes = fs::read(&damaged).unwrap();
    let at = bytes
        .windows(8)
        .rposition(|window| window == b"the mark")
        .unwrap();
    assert_eq!(
        at / image.page_bytes + 1,
        page,
        "the mark is in the last page"
    );
    flip(&damaged, at);
    let (code, out, _) = inspect(&["diff", text(&left), text(&right), "--json"]);
    assert_eq!(code, 1);
    let rows = objects(&out, "page_difference");
    assert_eq!(rows.len(), 1, "{out}");
    assert_eq!(rows[0]["page"], json!(page));
    assert_eq!(rows[0]["tree"], "marked");
    assert_eq!(rows[0]["last_entry"], json!(entry));
    assert_eq!(rows[0]["left"], json!(format!("as entry {entry} wrote it")));
    assert_eq!(rows[0]["right"], "not as written: damaged");
    let cells = objects(&out, "cell_change");
    assert_eq!(cells[0]["values"], json!(["the mark"]));
    let (code, out, _) = inspect(&["verify", text(&right)]);
    assert_eq!(code, 1);
    let wanted = format!(
        "page {page} of the database is not as it was written; it was written last by entry {entry}"
    );
    assert!(out.contains(&wanted), "{out}");
    assert_eq!(inspect(&["verify", text(&left)]).0, 0);
}

/// Commands on the directories of all nodes while one of them is written to.
fn look_while_writing(cluster: &ProcessCluster, address: &str) {
    let (stop, writes) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let sql =
                    "INSERT INTO t(v) SELECT hex(randomblob(300)) FROM (VALUES (1), (2), (3))";
                write(cluster.client(), address, sql);
                writes.fetch_add(1, Ordering::Relaxed);
            }
        });
        for round in 0..ROUNDS {
            // However slow the machine is, there are writes between one round and the next.
            let before = writes.load(Ordering::Relaxed);
            while writes.load(Ordering::Relaxed) < before + 2 && !writer.is_finished() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            for node in 0..cluster.size() {
                let dir = text(cluster.data_dir(node));
                let (code, out, errors) = inspect(&["verify", dir]);
                assert_eq!(
                    code,
                    0,
                    "round {round} on node {}:\n{out}{errors}",
                    node + 1
                );
                assert!(out.contains("is in use by process"), "{out}");
                for command in ["summary", "list"] {
                    let (code, out, errors) = inspect(&[command, dir, "--json"]);
                    assert!(code < 2, "{out}{errors}");
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer has not panicked");
    });
}

/// How often all nodes are looked at under load.
const ROUNDS: usize = 3;
