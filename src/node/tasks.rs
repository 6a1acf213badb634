//! What a node does by itself: create the database, purge the log, keep connections, and notice
//! that it has failed.

use std::sync::Arc;
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver as _;

use super::gate::Origin;
use super::image_receiver::KEPT_FOR;
use super::notices;
use super::progress;
use super::reaping::reap;
use super::rebuild;
use super::repair;
use super::room;
use super::running::Inner;
use super::scrub;
use crate::planted::{self, Bug};
use crate::raft::{LeaderId, Outcome, Payload};
use crate::sqlite::{AutoVacuum, genesis_page};
use crate::wal::{
    DatabaseHash, DeltaHeader, DeltaWriter, Encoding, PageCount, PageHash, PageNumber, PageSize,
    Part,
};

/// Starts the tasks; they end with the node's runtime.
pub(crate) fn start(inner: &Arc<Inner>, origin: Origin, was_closed: bool) {
    tokio::spawn(rebuild::remember(Arc::clone(inner)));
    tokio::spawn(rebuild::recall(Arc::clone(inner)));
    tokio::spawn(repair::run(Arc::clone(inner)));
    tokio::spawn(scrub::run(Arc::clone(inner), was_closed));
    tokio::spawn(create_database(Arc::clone(inner), origin));
    tokio::spawn(purge(Arc::clone(inner)));
    tokio::spawn(forget_transfers(Arc::clone(inner)));
    tokio::spawn(watch_log(Arc::clone(inner)));
    tokio::spawn(watch_raft(Arc::clone(inner)));
    tokio::spawn(notices::leaders(Arc::clone(inner)));
    tokio::spawn(notices::silence(Arc::clone(inner)));
    tokio::spawn(reap(Arc::clone(inner)));
    tokio::spawn(progress::follow(Arc::clone(inner)));
    tokio::spawn(room::watch(Arc::clone(inner)));
    tokio::spawn(leave_when_failed(Arc::clone(inner)));
    tokio::spawn(keep_connections(Arc::clone(inner)));
}

/// Keeps a connection to every member. Followers have nothing to tell each other until their leader
/// is lost; then the votes, and the first entries of the successor, must not wait for handshakes.
async fn keep_connections(inner: Arc<Inner>) {
    let me = inner.membership.raft_id();
    loop {
        let members = inner.known_members().into_iter();
        let connecting = members.filter(|member| member.raft_id != me).map(|member| {
            let peer = inner.endpoint.peer(&member.raft_addr, Some(member.raft_id));
            async move {
                // Whoever has something to say to it reports that it cannot be reached.
                drop(peer.connect().await);
            }
        });
        futures_util::future::join_all(connecting).await;
        tokio::time::sleep(CONNECT_INTERVAL).await;
    }
}

/// Proposes the genesis whenever this node leads a cluster without a database. The fence makes all
/// but the first one void.
async fn create_database(inner: Arc<Inner>, origin: Origin) {
    let mut reached = inner.frontier.watch();
    let mut metrics = inner.raft.metrics();
    if reached.borrow_and_update().data.is_some() {
        return;
    }
    while reached.borrow_and_update().data.is_none() {
        if let Some(leader) = ready_to_create(&inner) {
            propose_genesis(&inner, origin, leader).await;
        }
        tokio::select! {
            changed = reached.changed() => if changed.is_err() { return },
            changed = metrics.changed() => if changed.is_err() { return },
        }
    }
    tracing::info!(
        index = inner.frontier.reached().index(),
        "the database exists"
    );
}

/// The leadership under which the genesis may be proposed: this term's first entry is applied.
fn ready_to_create(inner: &Inner) -> Option<LeaderId> {
    let metrics = inner.raft.metrics();
    let metrics = metrics.borrow_watched();
    let leader = metrics.vote.leader_id;
    let applied = inner.frontier.reached().applied?;
    let caught_up = (applied.term, applied.node) == (leader.term, leader.node_id);
    (metrics.state.is_leader() && metrics.vote.committed && caught_up).then_some(leader)
}

async fn propose_genesis(inner: &Inner, origin: Origin, leader: LeaderId) {
    let page_size = PageSize::DEFAULT;
    let image = genesis_page(page_size, AutoVacuum::None);
    let hash = DatabaseHash::default().with(PageHash::of(PageNumber::FIRST, &image));
    let header = DeltaHeader {
        cluster: origin.cluster,
        origin: origin.node,
        epoch: origin.epoch,
        // Flights begin at 1, so this is never taken for one.
        sequence: 0,
        base: None,
        page_size,
        page_count: PageCount(1),
        hash_before: DatabaseHash::default(),
        hash_after: hash,
        part: Part::WHOLE,
    };
    let mut delta = DeltaWriter::new(header, Encoding::Raw);
    delta.push(PageNumber::FIRST, &image);
    let (responder, outcome) = Outcome::awaited();
    let proposal = inner.raft.write(Payload(delta.finish()));
    let proposal = proposal.with_leader(leader).responder(responder);
    if proposal.await.is_ok() {
        // Whatever became of it, the frontier says whether the database exists now.
        drop(outcome.await);
    }
}

/// Follows the checkpoint records: tells Raft about them, and purges the log below the last one but
/// for a tail that lets followers catch up without a whole image.
async fn purge(inner: Arc<Inner>) {
    let mut recorded = inner.watches.recorded.clone();
    loop {
        let upto = recorded
            .borrow_and_update()
            .as_ref()
            .map(|recorded| recorded.applied.index);
        let upto = if planted::is(Bug::PurgedBeforeRecord) {
            Some(inner.frontier.reached().index())
        } else {
            upto
        };
        if let Some(upto) = upto {
            let keep = inner.log.index_of_tail(inner.options.log_tail_bytes);
            let upto = upto.min(keep.saturating_sub(1)).min(needed(&inner));
            let purged = inner.log.purged().map_or(0, |purged| purged.index);
            // Few entries are not worth the trouble, unless they are large.
            let options = &inner.options;
            let large = inner.log.bytes() > options.log_tail_bytes + 2 * options.log_segment_bytes;
            // Below the record there is nothing that a restart needs.
            if upto > purged + PURGE_ENTRIES_MIN || (large && upto > purged) {
                let told = inner.raft.trigger().snapshot().await;
                // The snapshot is known to Raft's core a moment later, and purges wait for it.
                tokio::time::sleep(SNAPSHOT_SETTLES).await;
                if told.is_err() || inner.raft.trigger().purge_log(upto).await.is_err() {
                    return;
                }
            }
        }
        let wait = if planted::is(Bug::PurgedBeforeRecord) {
            SNAPSHOT_SETTLES
        } else {
            PURGE_LOOKS_AGAIN
        };
        // Also without a new record: who needed the log may have gone since, or caught up.
        if matches!(
            tokio::time::timeout(wait, recorded.changed()).await,
            Ok(Err(_))
        ) {
            return;
        }
    }
}

/// The index up to which nobody needs the log who is catching up just now: receivers of the
/// database, and followers that are there but behind. A log that grows too large is purged all the
/// same.
pub(super) fn needed(inner: &Inner) -> u64 {
    let options = &inner.options;
    if inner.log.bytes()
        > options
            .log_tail_bytes
            .saturating_add(options.log_catch_up_bytes)
    {
        return u64::MAX;
    }
    let receivers = inner.images.transfers.needed();
    let metrics = inner.raft.metrics();
    let metrics = metrics.borrow_watched();
    let (matched, heard) = (metrics.replication.as_ref(), metrics.heartbeat.as_ref());
    let followers = matched.zip(heard).and_then(|(matched, heard)| {
        let is_there = |id: &u64| {
            let acked = heard.get(id).copied().flatten();
            acked.is_some_and(|acked| acked.elapsed() < options.heartbeat() * 2 + SILENCE_MAX)
        };
        let behind = matched.iter().filter(|(id, _)| is_there(id));
        // One that has nothing yet receives the database.
        behind
            .filter_map(|(_, matched)| matched.map(|id| id.index))
            .min()
    });
    receivers
        .into_iter()
        .chain(followers)
        .min()
        .unwrap_or(u64::MAX)
}

/// Pages of a transfer that was cut off and that nobody continues take room.
async fn forget_transfers(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(FORGET_EVERY).await;
        // Without a database the node has not caught up in another way.
        if inner.frontier.reached().data.is_some() {
            inner.images.forget(KEPT_FOR).await;
        }
    }
}

/// A log that failed to write or sync cannot be trusted with anything more.
async fn watch_log(inner: Arc<Inner>) {
    let mut failed = inner.log.failed();
    loop {
        if let Some(why) = failed.borrow_and_update().clone() {
            return inner.health.fail(format!("the log has failed: {why}"));
        }
        if failed.changed().await.is_err() {
            return;
        }
    }
}

/// Raft stops for good when storage fails under it.
async fn watch_raft(inner: Arc<Inner>) {
    let mut metrics = inner.raft.server_metrics();
    // The channel closes with Raft's core, which has left its reason by then.
    while metrics.changed().await.is_ok() {}
    let state = inner.raft.metrics().borrow_watched().running_state.clone();
    if let Err(fatal) = state
        && !matches!(fatal, openraft::errors::Fatal::Stopped)
    {
        inner.health.fail(format!("Raft has stopped: {fatal}"));
    }
}

/// A node that has stopped serving must not lead: its heartbeats would keep the others from
/// electing one that serves.
async fn leave_when_failed(inner: Arc<Inner>) {
    let mut failure = inner.health.watch();
    if failure.wait_for(Option::is_some).await.is_err() {
        return;
    }
    if let Err(error) = inner.raft.shutdown().await {
        tracing::warn!(%error, "Raft did not stop in order");
    }
}

/// A node that is down costs its peers some packets this often.
const CONNECT_INTERVAL: Duration = Duration::from_millis(500);
/// A follower that is busy acknowledges a heartbeat late, one that is away never.
const SILENCE_MAX: Duration = Duration::from_secs(1);
const FORGET_EVERY: Duration = Duration::from_secs(60);
const PURGE_ENTRIES_MIN: u64 = 64;
const SNAPSHOT_SETTLES: Duration = Duration::from_millis(100);
const PURGE_LOOKS_AGAIN: Duration = Duration::from_secs(5);
