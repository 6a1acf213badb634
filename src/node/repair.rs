//! Damaged pages: finding a good image of each, and putting it back.
//!
//! At equal applied index the pages of all nodes are equal, and every node knows what each of its
//! own must hash to. So a good image is asked for by its hash: whoever has a page with exactly this
//! content, in the main file, in the WAL or in the log, can give it, whatever index it is at. If
//! nobody has it, the page has been changed elsewhere meanwhile and the log brings the new image
//! here, or the others are behind; so asking again is all there is to do.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver as _;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot};

use super::Raft;
use super::api::{Refusal, RepairStatus};
use super::frontier::Frontier;
use super::logged::logged_images;
use super::options::NodeOptions;
use super::owner::Job;
use super::running::Inner;
use super::wire::{self, kind};
use crate::raft::log::Log;
use crate::sqlite::{Damage, Outlook, PageHashes, Place, Scrubbed, StartLock, Witness};
use crate::transport::{Endpoint, Priority};
use crate::wal::{PageHash, PageNumber, PageSize};

/// What finds and mends damaged pages, from before the database is open.
pub(crate) struct Repairs {
    pub(crate) endpoint: Endpoint,
    pub(crate) raft_id: u64,
    pub(crate) raft: Arc<OnceLock<Raft>>,
    pub(crate) frontier: Arc<Frontier>,
    pub(crate) log: Log,
    runtime: tokio::runtime::Handle,
    /// Of the database, once it is open.
    witness: OnceLock<Arc<Witness>>,
    /// Something is damaged, or the database is open now.
    pub(crate) noticed: Arc<Notify>,
    scrub: Mutex<ScrubState>,
}

/// How far the background scrub is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ScrubState {
    pub(crate) at: Scrubbed,
    pub(crate) completed: Option<SystemTime>,
}

/// What a node asks a peer about pages. Numbers in the answers are little-endian.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Wanted {
    /// "Which index have you applied?" The answer is a u64.
    Applied,
    /// "Which of these pages do you not have with exactly these hashes?" The answer is their
    /// numbers, u32 each.
    Lacking(Vec<(u32, u128)>),
    /// "Up to which index have I acknowledged entries to you, and in which term do you lead?", by
    /// the Raft id of the asker. The answer is two u64; nothing from a node that does not lead.
    Matched(u64),
    /// "Give me those of these pages that you have with exactly these hashes." The answer is, for
    /// each that is given, its number (u32) and its image; as many as fit.
    Pages(Vec<(u32, u128)>),
}

impl Repairs {
    pub(crate) fn new(
        endpoint: Endpoint,
        raft_id: u64,
        raft: Arc<OnceLock<Raft>>,
        frontier: Arc<Frontier>,
        log: Log,
    ) -> Arc<Self> {
        Arc::new(Self {
            endpoint,
            raft_id,
            raft,
            frontier,
            log,
            runtime: tokio::runtime::Handle::current(),
            witness: OnceLock::new(),
            noticed: Arc::default(),
            scrub: Mutex::default(),
        })
    }

    /// A witness for a database that is about to be opened; these pages are known to be damaged.
    pub(crate) fn witness_of(
        &self,
        path: &Path,
        hashes: &PageHashes,
        damaged: &[PageNumber],
    ) -> Arc<Witness> {
        let noticed = Arc::clone(&self.noticed);
        let notice = Box::new(move || noticed.notify_one());
        let witness = Arc::new(Witness::new(path.to_owned(), hashes, notice));
        for page in damaged {
            if let Some(expected) = hashes.get(*page) {
                let place = Place::Main(*page);
                witness.blame(Damage { place, expected });
            }
        }
        witness
    }

    /// The database is open, and this is its witness.
    pub(crate) fn adopt(&self, witness: Arc<Witness>) {
        if self.witness.set(witness).is_err() {
            unreachable!("the database is opened once");
        }
        self.noticed.notify_one();
    }

    pub(crate) fn witness(&self) -> Option<&Arc<Witness>> {
        self.witness.get()
    }

    pub(crate) fn scrub_state(&self) -> ScrubState {
        *self.scrub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_scrub_state(&self, state: ScrubState) {
        *self.scrub.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// What an operator sees of it.
    pub(crate) fn status(&self, options: &NodeOptions) -> RepairStatus {
        let scrub = self.scrub_state();
        let mut status = RepairStatus {
            scrubbed_pages: scrub.at.next.saturating_sub(1),
            scrub_pages: scrub.at.pages,
            scrub_rate: options.scrub_rate,
            scrub_completed_at: scrub.completed,
            ..RepairStatus::default()
        };
        if let Some(witness) = self.witness.get() {
            let damaged = witness.damaged();
            let named = damaged.iter().take(NAMED_MAX);
            status.damaged = named.map(|damage| witness.describe(damage.place)).collect();
            status.found = witness.found();
            status.repaired = witness.mended();
        }
        status
    }

    /// The other members, the leader first: Raft id and address.
    fn peers(&self) -> Vec<(u64, String)> {
        let state = self.frontier.state();
        let leader = self
            .raft
            .get()
            .and_then(|raft| raft.metrics().borrow_watched().current_leader);
        let mut peers: Vec<_> = state
            .membership
            .membership()
            .nodes()
            .filter(|(id, _)| **id != self.raft_id)
            .map(|(id, member)| (*id, member.raft_addr.clone()))
            .collect();
        peers.sort_by_key(|(id, _)| Some(*id) != leader);
        peers
    }

    /// Whether there is no other node that could help.
    pub(crate) fn is_alone(&self) -> bool {
        self.peers().is_empty()
    }

    /// What a client is told whose statement needs a page that is damaged.
    pub(crate) fn explain(&self, damage: Damage) -> String {
        let what = self.witness.get().map_or_else(
            || format!("page {}", damage.place.page()),
            |witness| witness.describe(damage.place),
        );
        let advice = self.advice();
        format!("{what} is damaged on this node, and is not served; {advice}")
    }

    fn advice(&self) -> &'static str {
        if self.is_alone() {
            ALONE
        } else {
            "a good copy is being asked for from the other nodes: send the request again, or to \
             another node"
        }
    }

    /// Good images of damaged places, as far as this node or a peer has them.
    async fn images(&self, damaged: &[Damage], size: PageSize) -> Vec<(Damage, Vec<u8>)> {
        let mut found = Vec::new();
        let mut missing: Vec<Damage> = damaged.iter().take(WANTED_MAX).copied().collect();
        let sort_out = |images: &Images, missing: &mut Vec<Damage>, found: &mut Vec<_>| {
            missing.retain(|damage| {
                let image = images.get(&(damage.place.page(), damage.expected.0));
                found.extend(image.map(|image| (*damage, image.clone())));
                image.is_none()
            });
        };
        if let Some(witness) = self.witness.get().cloned() {
            let wanted = missing.clone();
            let own = tokio::task::spawn_blocking(move || own_images(&witness, &wanted)).await;
            sort_out(&own.unwrap_or_default(), &mut missing, &mut found);
        }
        for (id, addr) in self.peers() {
            if missing.is_empty() {
                return found;
            }
            match self.ask((id, &addr), &missing, size).await {
                Ok(images) => {
                    let before = found.len();
                    sort_out(&images, &mut missing, &mut found);
                    let pages = found.len() - before;
                    tracing::info!(peer = addr, pages, "good copies of damaged pages");
                }
                Err(what) => tracing::debug!(peer = addr, what, "no pages from there"),
            }
        }
        if !missing.is_empty() {
            let (log, wanted) = (self.log.clone(), missing.clone());
            let logged = tokio::task::spawn_blocking(move || logged_images(&log, &wanted)).await;
            sort_out(&logged.unwrap_or_default(), &mut missing, &mut found);
        }
        found
    }

    async fn ask(
        &self,
        (id, addr): (u64, &str),
        missing: &[Damage],
        size: PageSize,
    ) -> Result<Images, String> {
        let wanted = missing
            .iter()
            .map(|damage| (damage.place.page().number(), damage.expected.0));
        let body = Bytes::from(wire::encode(&Wanted::Pages(wanted.collect())));
        let peer = self.endpoint.peer(addr, Some(id));
        let reply = peer.request(kind::PAGES, Priority::Data, body, PATIENCE);
        let reply = reply.await.map_err(|error| error.to_string())?;
        Ok(parse(&reply, size))
    }

    /// Answers a peer. Blocks.
    pub(crate) fn serve(&self, wanted: &Wanted) -> Vec<u8> {
        match wanted {
            Wanted::Applied => self.frontier.reached().index().to_le_bytes().to_vec(),
            Wanted::Lacking(pages) => self.lacking(pages),
            Wanted::Matched(node) => self.matched(*node).unwrap_or_default(),
            Wanted::Pages(pages) => self.given(pages),
        }
    }

    fn matched(&self, node: u64) -> Option<Vec<u8>> {
        let metrics = self.raft.get()?.metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.as_ref()?.get(&node).copied().flatten();
        let matched = matched.map_or(0, |matched| matched.index);
        Some([matched.to_le_bytes(), metrics.current_term.to_le_bytes()].concat())
    }

    /// What the leader says to [`Wanted::Matched`], if it leads in the term that this node knows.
    pub(crate) async fn acknowledged(&self) -> Option<u64> {
        let (leader, term) = {
            let metrics = self.raft.get()?.metrics();
            let metrics = metrics.borrow_watched();
            (metrics.current_leader?, metrics.current_term)
        };
        let (id, addr) = self.peers().into_iter().find(|(id, _)| *id == leader)?;
        let body = Bytes::from(wire::encode(&Wanted::Matched(self.raft_id)));
        let peer = self.endpoint.peer(&addr, Some(id));
        let reply = peer.request(kind::PAGES, Priority::Data, body, PATIENCE);
        let reply = reply.await.ok()?;
        let (matched, rest) = reply.split_first_chunk()?;
        let told = u64::from_le_bytes(*rest.first_chunk()?);
        (told == term).then_some(u64::from_le_bytes(*matched))
    }

    fn lacking(&self, pages: &[(u32, u128)]) -> Vec<u8> {
        let page = |(number, hash): &(u32, u128)| {
            let page = PageNumber::new(*number)?;
            Some((page, PageHash(*hash)))
        };
        let pages: Vec<_> = pages.iter().filter_map(page).collect();
        let lacking = self
            .witness
            .get()
            .map_or_else(Vec::new, |witness| witness.lacking(&pages));
        let numbers = lacking.iter().map(|page| page.number().to_le_bytes());
        numbers.flatten().collect()
    }

    fn given(&self, pages: &[(u32, u128)]) -> Vec<u8> {
        let mut answer = Vec::new();
        let Some(witness) = self.witness.get() else {
            return answer;
        };
        for (number, hash) in pages.iter().take(WANTED_MAX) {
            let Some(page) = PageNumber::new(*number) else {
                continue;
            };
            if answer.len() + witness.page_size().len() > ANSWER_BYTES_MAX {
                break;
            }
            if let Some(image) = witness.find(page, PageHash(*hash)) {
                answer.extend_from_slice(&number.to_le_bytes());
                answer.extend_from_slice(&image);
            }
        }
        answer
    }

    /// Whether another node than the one that made it has applied the entry at this index, which
    /// this node cannot apply because it does not fit its database. Then there is a majority of two
    /// for the view that it is this node that has diverged; otherwise it may be the other.
    pub(crate) async fn has_diverged(&self, index: u64, origin: u64) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            for (id, addr) in self.peers().into_iter().filter(|(id, _)| *id != origin) {
                let body = Bytes::from(wire::encode(&Wanted::Applied));
                let peer = self.endpoint.peer(&addr, Some(id));
                let reply = peer.request(kind::PAGES, Priority::Data, body, PATIENCE);
                let Ok(reply) = reply.await else { continue };
                let applied = reply
                    .first_chunk()
                    .map(|applied| u64::from_le_bytes(*applied));
                if applied.is_some_and(|applied| applied >= index) {
                    self.name_differences(id, &addr).await;
                    return true;
                }
            }
            tokio::time::sleep(PAUSE_MIN).await;
        }
        false
    }

    /// Logs which pages another node does not have as they are here.
    async fn name_differences(&self, id: u64, addr: &str) {
        let Some(witness) = self.witness.get() else {
            return;
        };
        let mut differing = Vec::new();
        for pages in witness.current().chunks(LACKING_MAX) {
            let pages = pages.iter().map(|(page, hash)| (page.number(), hash.0));
            let body = Bytes::from(wire::encode(&Wanted::Lacking(pages.collect())));
            let peer = self.endpoint.peer(addr, Some(id));
            let reply = peer.request(kind::PAGES, Priority::Data, body, PATIENCE);
            let Ok(reply) = reply.await else { return };
            let numbers = reply.as_chunks::<4>().0.iter();
            differing.extend(numbers.map(|number| u32::from_le_bytes(*number)));
        }
        let (count, named) = (differing.len(), differing.len().min(NAMED_MAX));
        tracing::error!(
            peer = addr,
            count,
            pages = ?&differing[..named],
            "pages that are not as on another node, apart from those changed meanwhile"
        );
    }

    /// Mends a database that cannot be opened because of these places. Whether all are mended.
    /// Blocks; not for asynchronous code.
    pub(crate) fn mend_closed(
        &self,
        lock: &StartLock,
        hashes: &PageHashes,
        damaged: &[Damage],
    ) -> Result<bool, super::Error> {
        let images = self
            .runtime
            .block_on(self.images(damaged, hashes.page_size()));
        for (damage, image) in &images {
            lock.mend(hashes.page_size(), damage.place.page(), image)?;
            tracing::info!(page = damage.place.page().number(), "mended before opening");
        }
        Ok(images.len() == damaged.len())
    }
}

/// By page number and hash.
pub(super) type Images = BTreeMap<(PageNumber, u128), Vec<u8>>;

fn parse(reply: &[u8], size: PageSize) -> Images {
    let mut images = Images::new();
    for item in reply.chunks_exact(size.len() + 4) {
        let (number, image) = item.split_at(4);
        let number = u32::from_le_bytes(number.try_into().expect("4 bytes"));
        if let Some(page) = PageNumber::new(number) {
            images.insert((page, PageHash::of(page, image).0), image.to_vec());
        }
    }
    images
}

/// The same content elsewhere on this node: in the WAL, or in the main file.
fn own_images(witness: &Witness, wanted: &[Damage]) -> Images {
    let mut images = Images::new();
    for Damage { place, expected } in wanted {
        if let Some(image) = witness.find(place.page(), *expected) {
            images.insert((place.page(), expected.0), image);
        }
    }
    images
}

/// Mends whatever is noticed, for as long as the node lives.
pub(crate) async fn run(inner: Arc<Inner>) {
    let repairs = &inner.repairs;
    loop {
        repairs.noticed.notified().await;
        let Some(witness) = repairs.witness().cloned() else {
            continue;
        };
        let mut pause = PAUSE_MIN;
        while !witness.damaged().is_empty() {
            if let Err(error) = mend(&inner, &witness).await {
                return inner.health.fail(format!("mending a page failed: {error}"));
            }
            let left = witness.damaged();
            let Some(first) = left.first() else { break };
            witness.despair();
            if pause == PAUSE_MIN {
                let (first, advice) = (witness.describe(first.place), repairs.advice());
                tracing::error!(
                    pages = left.len(),
                    first,
                    advice,
                    "no good copy was found yet"
                );
            }
            // Whoever finds more damage cuts the pause short.
            let _ = tokio::time::timeout(pause, repairs.noticed.notified()).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// One attempt at everything that is damaged.
async fn mend(inner: &Inner, witness: &Arc<Witness>) -> Result<(), String> {
    let checked = Arc::clone(witness);
    let looked = tokio::task::spawn_blocking(move || {
        for damage in checked.damaged() {
            checked.recheck(damage.place);
        }
    });
    looked.await.map_err(|error| error.to_string())?;
    let damaged = witness.damaged();
    let images = inner.repairs.images(&damaged, witness.page_size()).await;
    let mended = Arc::clone(witness);
    let written = tokio::task::spawn_blocking(move || {
        images
            .iter()
            .try_for_each(|(damage, image)| mended.mend(*damage, image).map(drop))
    });
    let written = written.await.map_err(|error| error.to_string())?;
    written.map_err(|error| error.to_string())?;
    // A newer image in the WAL is as good, once it is moved.
    let is_newer = |damage: &Damage| {
        matches!(damage.place, Place::Main(_)) && witness.is_in_wal(damage.place.page())
    };
    if witness.damaged().iter().any(is_newer) {
        let (done, checkpointed) = oneshot::channel();
        inner.owner.submit(Job::Checkpoint { done });
        let _ = tokio::time::timeout(PATIENCE, checkpointed).await;
    }
    Ok(())
}

impl Inner {
    /// Waits a moment until a place is mended.
    pub(crate) async fn mended(&self, damage: Damage, deadline: Instant) -> Result<(), Refusal> {
        let patience = deadline.min(Instant::now() + CLIENT_PATIENCE);
        while let Some(witness) = self.repairs.witness() {
            match witness.outlook(damage.place) {
                Outlook::Sound => return Ok(()),
                Outlook::Mending if Instant::now() < patience => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                _ => break,
            }
        }
        Err(Refusal::Damaged(self.repairs.explain(damage)))
    }
}

/// The same on the owner thread. Whether the place is mended.
pub(crate) fn wait_mended(repairs: &Repairs, damage: Damage) -> bool {
    let begun = Instant::now();
    let Some(witness) = repairs.witness() else {
        return false;
    };
    loop {
        match witness.outlook(damage.place) {
            Outlook::Sound => return true,
            Outlook::Mending if begun.elapsed() < CLIENT_PATIENCE => {
                std::thread::sleep(LOOK_AGAIN);
            }
            _ => return false,
        }
    }
}

/// What the operator of a node without others can do.
const ALONE: &str = "there is no other node with a copy: restore the database from a backup (POST \
     it to /db/load)";

/// Damaged pages that `/status` names.
const NAMED_MAX: usize = 100;
/// Pages asked for at once.
const WANTED_MAX: usize = 1024;
/// Hashes sent at once to be compared.
const LACKING_MAX: usize = 64 << 10;
/// Far below what a frame between nodes carries.
const ANSWER_BYTES_MAX: usize = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(2);
/// A page comes from a peer within milliseconds; clients are not kept waiting for more.
const CLIENT_PATIENCE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
