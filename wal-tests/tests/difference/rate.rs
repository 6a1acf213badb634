//! How far a transfer is and how fast, as both ends say in their logs and in `/nodes`.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::pages::let_pages_pass;
use crate::stage::{PATIENCE, Stage};

const LINE: &str = "a transfer of the database goes on";
/// One frame of pages fits in, and two do not.
const FRAME_BYTES: u64 = 800 << 10;

/// The number behind `name=` in a line of the log.
fn number(line: &str, name: &str) -> u64 {
    let name = format!("{name}=");
    let word = line.split(' ').find_map(|word| word.strip_prefix(&name));
    let number = word.and_then(|word| word.parse().ok());
    number.unwrap_or_else(|| panic!("{name} in {line:?}"))
}

/// A line that says how a transfer goes on, of one that is under way: a transfer that was cut off
/// begins at nought again.
fn logged(stage: &Stage, node: usize) -> Option<String> {
    let log = stage.cluster.log_text(node);
    let is_under_way =
        |line: &&str| line.contains(LINE) && (1..100).contains(&number(line, "percent"));
    log.lines().rfind(is_under_way).map(str::to_owned)
}

/// What the node itself says in `/nodes` of the database that it receives.
fn shown(stage: &Stage, node: usize) -> Option<Value> {
    let address = stage.cluster.address(node);
    let nodes = stage.client.json(address, "/nodes?ver=2&timeout=1s").ok()?;
    let catch_up = &nodes["nodes"][node]["wallaby"]["catch_up"];
    catch_up.is_object().then(|| catch_up.clone())
}

#[test]
fn a_transfer_that_takes_long_says_how_far_it_is_and_how_fast() {
    let mut stage = Stage::build(16, &[]);
    let (away, _) = stage.send_away();
    stage.change_all();
    stage.purge();
    let leader = stage.cluster.wait_leader();
    let tap = stage.tap(away);
    drop(let_pages_pass(&tap, FRAME_BYTES));
    stage.cluster.start_node(away);
    let begun = Instant::now();
    let mut percents = Vec::new();
    while [leader, away]
        .iter()
        .any(|&node| logged(&stage, node).is_none())
    {
        assert!(begun.elapsed() < PATIENCE, "no such line; {percents:?}");
        std::thread::sleep(Duration::from_secs(1));
        drop(let_pages_pass(&tap, FRAME_BYTES));
        percents.extend(shown(&stage, away).and_then(|shown| shown["percent"].as_u64()));
    }
    for node in [leader, away] {
        let line = logged(&stage, node).unwrap();
        // A frame a second, and not the megabytes that pass at once elsewhere.
        let rate = number(&line, "bytes_per_second");
        assert!((1..4 * FRAME_BYTES).contains(&rate), "{line}");
        assert!(number(&line, "bytes") > 0, "{line}");
    }
    assert!(
        percents.iter().min() < percents.iter().max(),
        "{percents:?}"
    );
    tap.set(|_| wal_tests::tap::Fate::Pass);
    stage.assert_caught_up();
    assert_eq!(shown(&stage, away), None);
}
