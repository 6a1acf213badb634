//! What is sent, in bytes of pages.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wal_tests::client::Client;
use wal_tests::tap::{Fate, Tap};

use crate::stage::{PAGE_BYTES, Spooled, Stage, spooled};
use crate::transit::is_pages;

/// A sender waits for a confirmation when so much is on its way, or an eighth of all if that is more.
const UNCONFIRMED_BYTES: u64 = 512 << 10;

/// Keeps writing and reading on the leader while something else happens.
struct Traffic {
    stop: Arc<AtomicBool>,
    slowest_ms: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<u64>,
}

impl Traffic {
    fn start(stage: &mut Stage) -> Self {
        let leader = stage.cluster.wait_leader();
        let address = stage.cluster.address(leader).to_owned();
        let stop = Arc::new(AtomicBool::new(false));
        let slowest_ms = Arc::new(AtomicU64::new(0));
        let (stopped, slowest) = (Arc::clone(&stop), Arc::clone(&slowest_ms));
        let thread = std::thread::spawn(move || {
            let client = Client::new(Duration::from_secs(60));
            let mut written = 0;
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let sql = "INSERT INTO traffic(payload) VALUES(randomblob(50))";
                let _ = client.execute_sql(&address, sql).expect_success();
                let took = u64::try_from(begun.elapsed().as_millis()).unwrap();
                slowest.fetch_max(took, Ordering::Relaxed);
                written += 1;
                let sql = "SELECT count(*) FROM traffic";
                let rows = client.query(&address, "linearizable", sql).unwrap();
                assert_eq!(rows[0][0].as_u64(), Some(written));
            }
            written
        });
        Self {
            stop,
            slowest_ms,
            thread,
        }
    }
}

fn mebibytes() -> u64 {
    std::env::var("WAL_DATABASE_MIB").map_or(6, |text| text.parse().unwrap())
}

/// Bytes that a transfer which was cut off has in its spool.
fn received(dir: &Path) -> u64 {
    match spooled(dir) {
        Spooled::Incoming(bytes) => bytes,
        _ => 0,
    }
}

#[test]
fn a_node_behind_the_log_receives_the_pages_that_differ_while_writes_and_reads_go_on() {
    let mut stage = Stage::build(mebibytes(), &[]);
    let (away, before) = stage.send_away();
    stage.execute("UPDATE filler SET payload = randomblob(3900) WHERE id % 100 = 0");
    stage.purge();
    let sent_before = stage.sent("bytes_sent");
    let traffic = Traffic::start(&mut stage);
    let begun = Instant::now();
    stage.cluster.start_node(away);
    stage.cluster.wait("the pages to be installed", |cluster| {
        let client = Client::new(Duration::from_secs(2));
        let vars = client.json(cluster.address(away), "/debug/vars?key=store")?;
        let installed = vars["store"]["num_restores"].as_u64();
        (installed > Some(0))
            .then_some(())
            .ok_or_else(|| "not yet".to_owned())
    });
    let took = begun.elapsed();
    traffic.stop.store(true, Ordering::Relaxed);
    let written = traffic.thread.join().unwrap();
    assert!(written > 0);
    let changed = stage.changed_since(&before) * PAGE_BYTES;
    let sent = stage.sent("bytes_sent") - sent_before;
    let leader = stage.cluster.wait_leader();
    let status = stage.status(leader);
    println!(
        "{} MiB: {changed} bytes changed, {sent} sent, installed {took:?} after the start; {written} \
         writes meanwhile, the slowest {} ms; on the leader: {} and {}",
        mebibytes(),
        traffic.slowest_ms.load(Ordering::Relaxed),
        status["snapshots"],
        status["checkpoint"],
    );
    assert!(sent > 0 && sent * 10 <= changed * 12, "{sent} of {changed}");
    assert!(stage.snapshots(away, "bytes_received") * 10 <= changed * 12);
    assert!(stage.sent("pages_skipped") * 10 > stage.rows * 9);
    for text in [
        "pages of the database that it lacks",
        "has all pages and installs them",
    ] {
        stage.cluster.wait_log(leader, text);
    }
    stage
        .cluster
        .wait_log(away, "the received database is installed");
    stage.cluster.assert_healthy_logs();
}

#[test]
fn what_was_received_before_a_cut_is_not_sent_again() {
    let mut stage = Stage::build(mebibytes(), &[]);
    let (away, before) = stage.send_away();
    // Enough that what is under way at a cut is a small share.
    let every = if mebibytes() < 64 { 1 } else { 3 };
    stage.execute(&format!(
        "UPDATE filler SET payload = randomblob(3900) WHERE id % {every} = 0"
    ));
    stage.purge();
    let dir = stage.cluster.data_dir(away).to_owned();
    let tap = stage.tap(away);
    let third = stage.rows / every * PAGE_BYTES / 3;
    for part in 1..=2 {
        let is_held = let_pages_pass(&tap, third);
        stage.cluster.start_node(away);
        stage.cluster.wait("a third to arrive", |_| {
            let received = received(&dir);
            let has_arrived = is_held.load(Ordering::Acquire) && received * 2 > third * part;
            has_arrived
                .then_some(())
                .ok_or_else(|| format!("{received} bytes"))
        });
        stage.cluster.kill(away);
        println!("killed with {} bytes of thirds of {third}", received(&dir));
        // The state to be reached moves on.
        stage.execute("UPDATE filler SET payload = randomblob(3900) WHERE id % 100 = 1");
    }
    tap.set(|_| Fate::Pass);
    stage.cluster.start_node(away);
    let changed = stage.changed_since(&before) * PAGE_BYTES;
    let sent = stage.sent("bytes_sent");
    println!(
        "{} MiB, cut twice: {changed} bytes changed, {sent} sent",
        mebibytes()
    );
    // What was on its way at a cut is lost, and of a small database that is a large share.
    let allowed = changed * 12 / 10 + 2 * UNCONFIRMED_BYTES;
    assert!(sent <= allowed, "{sent} of {changed}");
    assert!(stage.sent("transfers_resumed") >= 2);
    stage.assert_caught_up();
}

/// Lets so many bytes of pages pass, and holds back what follows; says when it does.
pub(crate) fn let_pages_pass(tap: &Tap, bytes: u64) -> Arc<AtomicBool> {
    let is_held = Arc::new(AtomicBool::new(false));
    let (says, mut passed) = (Arc::clone(&is_held), 0);
    tap.set(move |frame| {
        if !is_pages(frame) {
            return Fate::Pass;
        }
        passed += frame.bytes.len() as u64;
        if passed <= bytes {
            return Fate::Pass;
        }
        says.store(true, Ordering::Release);
        Fate::Hold
    });
    is_held
}

#[test]
fn a_transfer_goes_on_at_a_newer_index_when_its_freeze_is_given_up() {
    // Any large transaction takes the freeze away.
    let mut stage = Stage::build(6, &["-snapshot-wal-max", "2097152"]);
    let (away, _) = stage.send_away();
    stage.change_all();
    stage.purge();
    let tap = stage.tap(away);
    let is_held = let_pages_pass(&tap, 1 << 20);
    let leader = stage.cluster.wait_leader();
    stage.cluster.start_node(away);
    stage.cluster.wait("some pages to arrive", |_| {
        let is_held = is_held.load(Ordering::Acquire);
        is_held.then_some(()).ok_or_else(|| "none".to_owned())
    });
    stage.change_all();
    tap.set(|_| Fate::Pass);
    stage.cluster.wait_log(leader, "goes on at a newer index");
    stage.assert_caught_up();
    assert_eq!(stage.installed(away), 1);
}

#[test]
fn a_database_that_shrank_and_grew_again_is_the_same_afterwards() {
    let mut stage = Stage::build(2, &[]);
    for sql in [
        "DELETE FROM filler WHERE id > 200; VACUUM",
        "DELETE FROM filler; VACUUM",
        "INSERT INTO filler WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE \
         i < 800) SELECT NULL, 0, randomblob(3000) FROM n",
    ] {
        let (away, _) = stage.send_away();
        for sql in sql.split("; ") {
            stage.execute(sql);
        }
        stage.purge();
        stage.cluster.start_node(away);
        stage.assert_caught_up();
    }
}
