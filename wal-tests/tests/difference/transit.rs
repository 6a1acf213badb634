//! What goes wrong between two nodes, above everything that QUIC checks, and in the sender's file
//! while it sends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};

use serde_json::json;
use wal_tests::seed::{Random, seed};
use wal_tests::tap::{Fate, Passing, SNAPSHOT, Way};

use crate::stage::{PAGE_BYTES, Stage, flip};

/// The first byte of a frame says what it is; see `node/snapshot_frame.rs`.
const READY: u8 = 1;
const HASHES: u8 = 2;
/// Whether the database is installed.
pub(crate) const VERDICT: u8 = 3;
const MANIFEST: u8 = 4;
const PAGES: u8 = 5;
const END: u8 = 6;

/// Whether it is a frame of pages.
pub(crate) fn is_pages(frame: &Passing<'_>) -> bool {
    frame.kind == SNAPSHOT && frame.way == Way::In && frame.bytes.first() == Some(&PAGES)
}

/// A frame and the bytes of it of which one is hit.
struct Target {
    what: &'static str,
    way: Way,
    tag: u8,
    from: usize,
    upto: usize,
}

impl Target {
    const fn new(what: &'static str, way: Way, tag: u8, from: usize, upto: usize) -> Self {
        Self {
            what,
            way,
            tag,
            from,
            upto,
        }
    }

    /// Pages of noise do not shrink, so they travel as they are: 128 in a frame, behind a head of
    /// 12 bytes and a table of 4 for each.
    fn all() -> Vec<Self> {
        const TABLE: usize = 12 + 128 * 4;
        vec![
            Self::new("version of the receiver", Way::Out, READY, 1, 5),
            Self::new("manifest", Way::In, MANIFEST, 1, usize::MAX),
            Self::new("place of the hashes", Way::Out, HASHES, 1, 5),
            Self::new("a hash", Way::Out, HASHES, 5, 5 + 16 * 128),
            Self::new("head of pages", Way::In, PAGES, 1, 12),
            Self::new("page numbers", Way::In, PAGES, 12, TABLE),
            Self::new("page bytes", Way::In, PAGES, TABLE, usize::MAX),
            Self::new("what a frame of pages is", Way::In, PAGES, 0, 1),
            Self::new("end", Way::In, END, 0, 1),
        ]
    }

    fn hit(&self, random: &mut Random, frame: &mut Passing<'_>) -> Option<String> {
        let is_it = frame.kind == SNAPSHOT
            && frame.way == self.way
            && frame.bytes.first() == Some(&self.tag)
            && frame.bytes.len() > self.from;
        if !is_it {
            return None;
        }
        let upto = self.upto.min(frame.bytes.len());
        let (byte, bit) = (self.from + random.below(upto - self.from), random.below(8));
        frame.bytes[byte] ^= 1 << bit;
        Some(format!("{}: bit {bit} of byte {byte}", self.what))
    }
}

/// Hits one target after the other, in the first frame of each that comes by.
fn hit_all(mut random: Random, done: Sender<String>) -> impl FnMut(&mut Passing<'_>) -> Fate {
    let mut targets = Target::all().into_iter().peekable();
    move |frame| {
        let hit = targets
            .peek()
            .and_then(|target| target.hit(&mut random, frame));
        if let Some(hit) = hit {
            targets.next();
            // Nobody listens once the test has failed.
            drop(done.send(hit));
        }
        Fate::Pass
    }
}

#[test]
fn a_bit_that_flips_in_transit_never_reaches_the_database() {
    let random = Random::new(seed("difference"));
    let mut stage = Stage::build(4, &[]);
    let (away, _) = stage.send_away();
    stage.change_all();
    stage.purge();
    let tap = stage.tap(away);
    let (done, hits) = mpsc::channel();
    tap.set(hit_all(random, done));
    stage.cluster.start_node(away);
    stage.assert_caught_up();
    let hits: Vec<String> = hits.try_iter().collect();
    println!("{hits:#?}");
    assert_eq!(hits.len(), Target::all().len());
    assert_eq!(stage.installed(away), 1);
    // All but the hash that was hit, which asks for a page more.
    let given_up: usize = (0..3)
        .map(|node| stage.cluster.log_text(node))
        .map(|log| {
            log.matches("the database is not received to its end")
                .count()
        })
        .sum();
    assert!(given_up >= 4, "{given_up} transfers were given up");
}

/// The sender does not learn that it is done, and sends the database again to one that has it.
#[test]
fn a_database_that_arrives_again_leaves_no_spool() {
    let mut stage = Stage::build(1, &[]);
    let (away, _) = stage.send_away();
    stage.change_all();
    stage.purge();
    let tap = stage.tap(away);
    let mut is_lost = false;
    tap.set(move |frame| {
        let is_verdict = frame.kind == SNAPSHOT
            && frame.way == Way::Out
            && frame.bytes.first() == Some(&VERDICT);
        if is_verdict && !is_lost {
            is_lost = true;
            // No frame says that.
            frame.bytes[0] = 0;
        }
        Fate::Pass
    });
    stage.cluster.start_node(away);
    stage.cluster.wait("the second arrival", |cluster| {
        let text = cluster.log_text(away);
        let count = text.matches("the received database is installed").count();
        (count > 1).then_some(()).ok_or_else(|| count.to_string())
    });
    stage.assert_caught_up();
}

#[test]
fn a_page_that_flips_in_the_file_of_the_sender_is_mended_before_it_is_sent() {
    let mut random = Random::new(seed("difference"));
    let mut stage = Stage::build(6, &["-scrub-rate", "0"]);
    let (away, _) = stage.send_away();
    stage.change_all();
    stage.purge();
    let sender = stage.cluster.wait_leader();
    let address = stage.cluster.address(sender).to_owned();
    // All of it is in the main file.
    let answer = stage.client.post(&address, "/snapshot", "", b"").unwrap();
    assert!(answer.status < 300, "{}", answer.body);
    let tap = stage.tap(away);
    let is_held = Arc::new(AtomicBool::new(false));
    let says = Arc::clone(&is_held);
    tap.set(move |frame| {
        if !is_pages(frame) {
            return Fate::Pass;
        }
        says.store(true, Ordering::Release);
        Fate::Hold
    });
    stage.cluster.start_node(away);
    stage.cluster.wait("the first pages", |_| {
        let is_held = is_held.load(Ordering::Acquire);
        is_held.then_some(()).ok_or_else(|| "none".to_owned())
    });
    // The sender reads a few frames ahead; so far it cannot be.
    let file = stage.cluster.data_dir(sender).join("db.sqlite");
    let good = std::fs::read(&file).unwrap();
    let pages = good.len() as u64 / PAGE_BYTES;
    let page = pages * 3 / 4 + random.number_below(pages / 8);
    let offset = page * PAGE_BYTES + random.number_below(PAGE_BYTES);
    flip(&file, offset, random.below(8));
    tap.set(|_| Fate::Pass);
    stage.assert_caught_up();
    assert_eq!(stage.installed(away), 1);
    stage
        .cluster
        .wait_log(sender, "is not what was written there");
    let repair = stage.status(sender)["repair"].clone();
    assert_eq!(repair["found"], 1, "{repair}");
    assert_eq!(repair["repaired"], 1, "{repair}");
    assert_eq!(repair["damaged"], json!([]));
    let now = std::fs::read(&file).unwrap();
    let place = usize::try_from(page * PAGE_BYTES).unwrap();
    let page = place..place + usize::try_from(PAGE_BYTES).unwrap();
    assert!(now[page.clone()] == good[page], "the page is as before");
}
