//! Sends the database to a peer that is behind the log: of a frozen image, the pages that the peer
//! does not have.
//!
//! The peer says first that it is ready, and only then is the database frozen: a freeze holds up
//! checkpoints. One that has to be given up because the WAL grew too large is followed by another
//! one at a newer index, and what the peer received already counts as had.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::image::Held;
use super::owner::Owner;
use super::snapshot_frame::{self as frame, Reply};
use super::tally::{NodeCounter, Tally};
use super::transfers::{Transfer, Transfers};
use super::wire::{self, VoteMirror, kind};
use crate::raft::Vote;
use crate::transport::{FrameReader, FrameWriter, Peer, Priority};
use crate::wal::{PageHash, PageNumber};

/// What sending takes.
#[derive(Clone)]
pub(crate) struct ImageSender {
    pub(crate) owner: Arc<Owner>,
    pub(crate) transfers: Arc<Transfers>,
    pub(crate) tally: Arc<Tally<NodeCounter>>,
}

impl ImageSender {
    /// Sends the database at its own place in the log, which may be later than `needed`, the one
    /// that Raft goes on from; returns the peer's vote.
    pub(crate) async fn send(
        &self,
        peer: &Peer,
        target: u64,
        vote: Vote,
        needed: u64,
    ) -> Result<VoteMirror, String> {
        // First, because this is tried again and again while the peer is down.
        let mut streams = open(peer, vote).await?;
        let transfer = self.transfers.begin(target, true);
        loop {
            let kept = match next(&mut streams.1, READY_PATIENCE).await? {
                Reply::Ready { kept } => kept,
                Reply::Verdict(Err(why)) => return Err(why),
                _ => return Err("the peer is not ready, and says something else".to_owned()),
            };
            let held = self.owner.hold().await;
            let held = Arc::new(held.ok_or("there is no database to send yet")?);
            let sending = self.send_image(&held, streams, (target, needed), &transfer, kept);
            match sending.await {
                Err(why) if held.is_revoked() => {
                    tracing::info!(target, why, "the transfer goes on at a newer index");
                    drop(held);
                    streams = open(peer, vote).await?;
                }
                ended => return ended,
            }
        }
    }

    async fn send_image(
        &self,
        held: &Arc<Held>,
        (mut writer, mut reader): (FrameWriter, FrameReader),
        (target, needed): (u64, u64),
        transfer: &Transfer,
        kept: u32,
    ) -> Result<VoteMirror, String> {
        let manifest = held.manifest().ok_or("nothing is applied yet")?;
        let pages = u64::from(manifest.page_count.0);
        transfer.at(manifest.applied.index, Some(needed));
        transfer.phase("comparing");
        if kept > 0 {
            self.tally.count(NodeCounter::TransfersResumed);
        }
        tracing::info!(
            pages, kept, applied = %manifest.applied,
            "sending a peer the pages of the database that it lacks"
        );
        let before = transfer.bytes();
        send(&mut writer, &frame::manifest(&manifest.encode())).await?;
        let (frames, prepared) = mpsc::channel(FRAMES_AHEAD);
        // At most as many as there are pages: the listener counts them.
        let (hashes, told) = mpsc::unbounded_channel();
        let (taken, has_taken) = watch::channel(0);
        let talk = async {
            let (sent, ()) = tokio::try_join!(
                self.compare(held, told, transfer, frames),
                self.pass_on(prepared, &mut writer, has_taken),
            )?;
            send(&mut writer, &frame::end()).await?;
            writer.finish();
            held.release();
            self.tally
                .add(NodeCounter::PagesSkipped, pages.saturating_sub(sent));
            let bytes = transfer.bytes() - before;
            tracing::info!(
                sent,
                bytes,
                target,
                "the peer has all pages and installs them"
            );
            transfer.phase("installing");
            Ok(())
        };
        let listening = listen(&mut reader, pages, hashes, taken);
        let (verdict, ()) = tokio::try_join!(listening, talk)?;
        Ok(verdict)
    }

    /// Takes the peer's hashes, and prepares the pages that differ; returns how many did.
    async fn compare(
        &self,
        held: &Arc<Held>,
        mut told: mpsc::UnboundedReceiver<(u32, Vec<PageHash>)>,
        transfer: &Transfer,
        frames: mpsc::Sender<Bytes>,
    ) -> Result<u64, String> {
        let all = held.page_count().0;
        let mut outgoing = Outgoing {
            tally: &self.tally,
            transfer,
            held,
            frames,
            batch: Vec::new(),
            sent: 0,
        };
        let mut next_page = 1;
        while let Some((first, hashes)) =
            tokio::time::timeout(HASHES_PATIENCE, told.recv())
                .await
                .map_err(|_| format!("the peer sent no hashes for {HASHES_PATIENCE:?}"))?
        {
            let count = u32::try_from(hashes.len()).expect("bounded by the frame");
            let source = Arc::clone(held);
            let differing = blocking(move || differing(&source, first, &hashes)).await?;
            for page in differing {
                outgoing.add(page).await?;
            }
            next_page = first + count;
            transfer.advance(u64::from(next_page) - 1, u64::from(all), 0);
        }
        let lock_byte = held.page_size().lock_byte_page();
        let rest = (next_page..=all).filter_map(PageNumber::new);
        for page in rest.filter(|page| *page != lock_byte) {
            outgoing.add(page).await?;
        }
        outgoing.flush().await?;
        Ok(outgoing.sent)
    }

    /// Sends frames, never far ahead of what the peer has in its spool: what is on the way when the
    /// link is cut has to be sent again.
    async fn pass_on(
        &self,
        mut prepared: mpsc::Receiver<Bytes>,
        writer: &mut FrameWriter,
        mut taken: watch::Receiver<u64>,
    ) -> Result<(), String> {
        let mut sent = 0_u64;
        while let Some(frame) = prepared.recv().await {
            let window = (sent / WINDOW_PART).clamp(WINDOW_MIN, WINDOW_MAX);
            let room = taken.wait_for(|taken| sent.saturating_sub(*taken) <= window);
            let room = tokio::time::timeout(BULK_STALL, room).await;
            let room = room.map_err(|_| format!("the peer took nothing for {BULK_STALL:?}"))?;
            room.map_err(|_| "the peer has ended the transfer")?;
            send(writer, &frame).await?;
            sent += frame.len() as u64;
            tracing::trace!(sent, "pages are on their way to a peer");
            self.tally
                .add(NodeCounter::SnapshotBytesSent, frame.len() as u64);
        }
        Ok(())
    }
}

/// Passes on what the peer says, up to its verdict.
async fn listen(
    reader: &mut FrameReader,
    pages: u64,
    hashes: mpsc::UnboundedSender<(u32, Vec<PageHash>)>,
    taken: watch::Sender<u64>,
) -> Result<VoteMirror, String> {
    let mut hashes = Some(hashes);
    let mut next_page = 1;
    loop {
        match next(reader, INSTALL_PATIENCE).await? {
            Reply::Hashes { hashes: run, .. } if run.is_empty() => hashes = None,
            Reply::Hashes { first, hashes: run } => {
                let after = u64::from(first) + run.len() as u64;
                let to = hashes.as_ref().filter(|_| first == next_page);
                let to = to.filter(|_| after <= pages + 1);
                let to = to.ok_or("the peer's hashes are not of the pages asked for")?;
                // Pages that nobody compares any more are of a transfer that has ended.
                let _ = to.send((first, run));
                next_page = u32::try_from(after).map_err(|_| "hashes beyond any page")?;
            }
            Reply::Taken(bytes) => drop(taken.send_replace(bytes)),
            Reply::Verdict(verdict) => return verdict,
            Reply::Ready { .. } => return Err("the peer is ready a second time".to_owned()),
        }
    }
}

/// Pages that go out, gathered into frames.
struct Outgoing<'a> {
    tally: &'a Tally<NodeCounter>,
    transfer: &'a Transfer,
    held: &'a Arc<Held>,
    frames: mpsc::Sender<Bytes>,
    batch: Vec<PageNumber>,
    sent: u64,
}

impl Outgoing<'_> {
    async fn add(&mut self, page: PageNumber) -> Result<(), String> {
        self.batch.push(page);
        if self.batch.len() < frame::pages_max(self.held.page_size()) {
            return Ok(());
        }
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), String> {
        let batch = std::mem::take(&mut self.batch);
        let Some(last) = batch.last().copied() else {
            return Ok(());
        };
        let count = batch.len() as u64;
        let held = Arc::clone(self.held);
        let frame = blocking(move || encode(&held, &batch)).await?;
        let (last, all) = (
            u64::from(last.number()),
            u64::from(self.held.page_count().0),
        );
        self.transfer.advance(last, all, frame.len());
        self.tally.add(NodeCounter::PagesSent, count);
        self.sent += count;
        let gone = "the stream to the peer has ended";
        self.frames.send(frame).await.map_err(|_| gone.to_owned())
    }
}

/// The pages whose hashes are others than the peer's, from page `first` on. Blocks.
fn differing(held: &Held, first: u32, theirs: &[PageHash]) -> Result<Vec<PageNumber>, String> {
    let pages = (first..).take(theirs.len());
    let ours = held.hashes(pages).map_err(|error| error.to_string())?;
    let pages = (first..).zip(ours.iter().zip(theirs));
    let differing = pages.filter(|(_, (ours, theirs))| ours != theirs);
    Ok(differing
        .filter_map(|(page, _)| PageNumber::new(page))
        .collect())
}

/// Reads the pages and encodes them as one frame. Blocks.
fn encode(held: &Held, pages: &[PageNumber]) -> Result<Bytes, String> {
    let size = held.page_size().len();
    let mut images = vec![0; pages.len() * size];
    for (page, image) in pages.iter().zip(images.chunks_exact_mut(size)) {
        let read = held.page(*page, image);
        let read = read.map_err(|error| format!("reading page {page}: {error}"))?;
        if read.is_none() {
            let what = "a page of this node's database does not have its recorded hash";
            tracing::error!(page = page.number(), what);
            return Err(format!("page {page} of the sender's database is damaged"));
        }
    }
    Ok(Bytes::from(frame::pages(pages, &images)))
}

async fn open(peer: &Peer, vote: Vote) -> Result<(FrameWriter, FrameReader), String> {
    let first = Bytes::from(wire::encode(&VoteMirror::from(vote)));
    let opened = peer.open_stream(kind::SNAPSHOT, Priority::Bulk, first);
    opened.await.map_err(|error| error.to_string())
}

async fn next(reader: &mut FrameReader, patience: Duration) -> Result<Reply, String> {
    let reply = tokio::time::timeout(patience, reader.next()).await;
    let reply = reply.map_err(|_| format!("the peer said nothing for {patience:?}"))?;
    let reply = reply.map_err(|error| error.to_string())?;
    Reply::decode(&reply.ok_or("the peer ended the transfer")?)
}

async fn send(writer: &mut FrameWriter, bytes: &[u8]) -> Result<(), String> {
    match tokio::time::timeout(BULK_STALL, writer.send(bytes, &[])).await {
        Ok(sent) => sent.map_err(|error| error.to_string()),
        Err(_) => Err(format!("the peer took nothing for {BULK_STALL:?}")),
    }
}

/// Runs work on files and tables off the async workers.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| error.to_string())?
}

/// An eighth of what was sent may be under way, so many cuts cost no more than that.
const WINDOW_PART: u64 = 8;
const WINDOW_MIN: u64 = 512 << 10;
/// As much as the stream takes.
const WINDOW_MAX: u64 = 4 << 20;
/// Frames that are read and compressed while one is on its way.
const FRAMES_AHEAD: usize = 2;
/// The peer may first have to read what it kept of a transfer that was cut off.
const READY_PATIENCE: Duration = Duration::from_secs(60);
/// Hashes come from memory.
const HASHES_PATIENCE: Duration = Duration::from_secs(30);
/// Reading and injecting some GiB takes minutes on a slow disk.
const INSTALL_PATIENCE: Duration = Duration::from_secs(600);
/// A receiver that takes nothing for so long is stuck: its connection would have timed out.
const BULK_STALL: Duration = Duration::from_secs(30);
