//! Receives the database from the leader: says which pages are here, takes those that differ, and
//! hands over what, together with this node's own pages, is the leader's database.
//!
//! The node's own pages are those of an image that stays frozen until the end, so they are the
//! pages that their hashes are of, whatever is applied meanwhile. Before anything counts, all of
//! them that are to stay are read and compared with their hashes, and the sum of all hashes with
//! the manifest's. A page that fails is asked for by the next attempt.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::OwnedMutexGuard;

use super::error::Error;
use super::image::Held;
use super::manifest::Manifest;
use super::owner::Owner;
use super::scratch::check_room;
use super::snapshot_frame::{self as frame, Pages, Part, Reply};
use super::spool::{INCOMING, Incoming, Spool};
use super::tally::{NodeCounter, Tally};
use super::transfers::{Transfer, Transfers};
use crate::sqlite::Image;
use crate::transport::{FrameReader, FrameWriter};
use crate::wal::{DatabaseHash, PageHash, PageNumber};

/// Own pages that turned out not to be what their hashes say.
type Suspects = BTreeSet<PageNumber>;

/// Where databases arrive, one at a time.
pub(crate) struct ImageReceiver {
    dir: PathBuf,
    pub(crate) transfers: Arc<Transfers>,
    tally: Arc<Tally<NodeCounter>>,
    /// Whoever holds it may touch the spool.
    place: Arc<tokio::sync::Mutex<Suspects>>,
}

/// Two tasks answer on one stream.
type Replies<'a> = tokio::sync::Mutex<&'a mut FrameWriter>;

/// A complete, verified database: received pages, and a frozen image that has the others.
pub(crate) struct Arrival {
    pub(crate) manifest: Manifest,
    pages: Incoming,
    base: Option<Held>,
    _place: OwnedMutexGuard<Suspects>,
}

/// What is there while pages arrive.
struct Reception {
    pages: Incoming,
    base: Option<Held>,
    manifest: Manifest,
    place: OwnedMutexGuard<Suspects>,
    last: u32,
    received: u64,
}

impl ImageReceiver {
    pub(crate) fn new(dir: PathBuf, tally: Arc<Tally<NodeCounter>>) -> Self {
        Self {
            dir,
            transfers: Arc::default(),
            tally,
            place: Arc::default(),
        }
    }

    /// Removes what a transfer left that nobody has continued for so long: the node has caught up
    /// in another way.
    pub(crate) async fn forget(&self, kept_for: Duration) {
        let place = Arc::clone(&self.place).try_lock_owned();
        let path = self.dir.join(INCOMING);
        let remove = move || {
            let Ok(_place) = place else {
                return Ok(());
            };
            let modified = std::fs::metadata(&path).and_then(|found| found.modified());
            let age = modified.ok().and_then(|modified| modified.elapsed().ok());
            if age.is_some_and(|age| age > kept_for) {
                std::fs::remove_file(&path).map_err(|error| error.to_string())?;
            }
            Ok(())
        };
        if let Err(error) = blocking(remove).await {
            tracing::warn!(error, "an old spool cannot be removed");
        }
    }

    /// Receives a database, up to its verification; the verdict is for the caller to send.
    pub(crate) async fn receive(
        &self,
        owner: &Owner,
        transfer: &Transfer,
        frames: &mut FrameReader,
        replies: &mut FrameWriter,
    ) -> Result<Arrival, String> {
        let place = Arc::clone(&self.place).lock_owned().await;
        tracing::debug!("a peer is about to send its database");
        let dir = self.dir.clone();
        let kept = blocking(move || told(Incoming::resume(&dir))).await?;
        let base = owner.hold().await;
        let count = kept.as_ref().map_or(0, Incoming::len);
        let count = u32::try_from(count).expect("page numbers are 32 bits");
        send(replies, &Reply::Ready { kept: count }).await?;
        let Part::Manifest(manifest) = next(frames).await? else {
            return Err("a snapshot without a manifest".to_owned());
        };
        let manifest = Manifest::decode(&manifest)?;
        transfer.at(manifest.applied.index, None);
        transfer.phase("comparing");
        let (pages, size) = (manifest.page_count.0, manifest.page_size);
        tracing::info!(
            pages, kept = count, applied = %manifest.applied,
            "receiving the database from the leader, as far as it differs"
        );
        let kept = kept.filter(|kept| kept.page_size() == size);
        if kept.as_ref().is_some_and(|kept| kept.len() > 0) {
            self.tally.count(NodeCounter::TransfersResumed);
        }
        let pages = match kept {
            Some(kept) => kept,
            None => {
                let dir = self.dir.clone();
                blocking(move || told(Incoming::create(&dir, size))).await?
            }
        };
        let reception = Arc::new(Mutex::new(Reception {
            pages,
            base: base.filter(|base| base.page_size() == size),
            manifest,
            place,
            last: 0,
            received: 0,
        }));
        let replies = tokio::sync::Mutex::new(replies);
        tokio::try_join!(
            tell_hashes(&reception, &replies),
            self.take_pages(&reception, transfer, frames, &replies),
        )?;
        transfer.phase("verifying");
        let reception = Arc::into_inner(reception).expect("both users of it have ended");
        let reception = reception
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let (received, applied) = (reception.received, reception.manifest.applied);
        let begun = Instant::now();
        let arrival = blocking(move || reception.verify()).await?;
        let took = begun.elapsed();
        let bytes = transfer.bytes();
        tracing::info!(received, bytes, %applied, ?took, "the received database is verified");
        transfer.phase("installing");
        Ok(arrival)
    }

    async fn take_pages(
        &self,
        reception: &Arc<Mutex<Reception>>,
        transfer: &Transfer,
        frames: &mut FrameReader,
        replies: &Replies<'_>,
    ) -> Result<(), String> {
        let mut taken = 0;
        loop {
            let bytes = match next(frames).await? {
                Part::Pages(bytes) => bytes,
                Part::End => {
                    tracing::debug!("all pages that differ have arrived");
                    return Ok(());
                }
                Part::Manifest(_) => return Err("a second manifest".to_owned()),
            };
            let length = bytes.len();
            let (reception, dir) = (Arc::clone(reception), self.dir.clone());
            let (last, all, count) = blocking(move || lock(&reception).take(&bytes, &dir)).await?;
            tracing::trace!(count, last, "received pages are in the spool");
            self.tally.add(NodeCounter::PagesReceived, count);
            self.tally
                .add(NodeCounter::SnapshotBytesReceived, length as u64);
            transfer.advance(last.into(), all.into(), length);
            taken += length as u64;
            send(*replies.lock().await, &Reply::Taken(taken)).await?;
        }
    }
}

/// Sends the hashes of the pages that are here, run by run.
async fn tell_hashes(
    reception: &Arc<Mutex<Reception>>,
    replies: &Replies<'_>,
) -> Result<(), String> {
    let mut first = 1;
    loop {
        let reception = Arc::clone(reception);
        let run = blocking(move || lock(&reception).hashes(first)).await?;
        let Reply::Hashes { hashes, .. } = &run else {
            return Ok(());
        };
        let count = u32::try_from(hashes.len()).expect("bounded by the frame");
        send(*replies.lock().await, &run).await?;
        if count == 0 {
            tracing::debug!("the sender knows which pages are here");
            return Ok(());
        }
        first += count;
    }
}

impl Reception {
    /// The hashes of the pages from this one on; of what was received before, where there is any.
    fn hashes(&self, first: u32) -> Result<Reply, String> {
        let own = self.base.as_ref().map_or(0, |base| base.page_count().0);
        let last = own.max(self.pages.last()).min(self.manifest.page_count.0);
        let count = u32::try_from(frame::HASHES_MAX).expect("a small constant");
        let run = first..=last.min(first.saturating_add(count - 1));
        let length = run.clone().count();
        let mut hashes = match &self.base {
            Some(base) => base
                .hashes(run.clone())
                .map_err(|error| error.to_string())?,
            None => Vec::new(),
        };
        hashes.resize(length, PageHash::default());
        for (page, hash) in run.zip(&mut hashes) {
            let page = PageNumber::new(page).expect("pages are counted from 1");
            if let Some(kept) = self.pages.hash(page) {
                *hash = kept;
            } else if self.place.contains(&page) {
                *hash = PageHash::default();
            }
        }
        Ok(Reply::Hashes { first, hashes })
    }

    /// Takes a run of pages; returns the last of them, how many there are in all and in the run.
    fn take(&mut self, bytes: &Bytes, dir: &Path) -> Result<(u32, u32, u64), String> {
        let (size, all) = (self.manifest.page_size, self.manifest.page_count);
        check_room(dir, bytes.len() as u64)?;
        let mut count = 0;
        for (number, image) in Pages::decode(bytes, size)?.iter() {
            let page = PageNumber::new(number).filter(|page| {
                number > self.last && all.contains(*page) && *page != size.lock_byte_page()
            });
            let page = page.ok_or("a page that cannot come here")?;
            self.last = number;
            self.pages
                .put(page, image)
                .map_err(|error| error.to_string())?;
            count += 1;
        }
        self.received += count;
        Ok((self.last, all.0, count))
    }

    /// Makes the received pages durable, and checks that they and the node's own are the announced
    /// database: each is read again from where it lies.
    fn verify(mut self) -> Result<Arrival, String> {
        let size = self.manifest.page_size;
        self.pages.sync().map_err(|error| error.to_string())?;
        tracing::debug!("the received pages are durable");
        // The next attempt goes on with what it finds to be good.
        let damaged_spool = |what: String| format!("the spool is damaged: {what}");
        self.pages.check_header().map_err(damaged_spool)?;
        let mut sum = DatabaseHash::default();
        let mut image = vec![0; size.len()];
        let mut damaged = Suspects::new();
        for number in 1..=self.manifest.page_count.0 {
            let page = PageNumber::new(number).expect("from 1 on");
            if page == size.lock_byte_page() {
                continue;
            }
            let spooled = self.pages.reread(page);
            let spooled = spooled.map_err(|error| damaged_spool(error.to_string()))?;
            if let Some(hash) = spooled {
                sum = sum.with(hash);
                continue;
            }
            let base = self.base.as_ref();
            let base = base.filter(|base| base.page_count().contains(page));
            let base = base.ok_or_else(|| format!("page {page} has not arrived"))?;
            match base.page(page, &mut image) {
                Ok(Some(hash)) => sum = sum.with(hash),
                Ok(None) => {
                    damaged.insert(page);
                }
                Err(error) => return Err(format!("reading page {page}: {error}")),
            }
        }
        if let Some(first) = damaged.first().copied() {
            let count = damaged.len();
            tracing::warn!(
                page = first.number(),
                count,
                "own pages are damaged; fetching them"
            );
            self.place.append(&mut damaged);
            return Err(format!(
                "page {first} of the receiver is damaged and has to be sent as well"
            ));
        }
        if sum != self.manifest.hash {
            return Err("the pages do not have the announced hash".to_owned());
        }
        Ok(Arrival {
            manifest: self.manifest,
            pages: self.pages,
            base: self.base,
            _place: self.place,
        })
    }
}

impl Arrival {
    /// Adds the pages that a start-up after a crash could not find in the main file, and makes the
    /// whole part of the durable state. `now` is the database as it is; nothing changes it any
    /// more. Blocks.
    pub(crate) fn adopt(self, dir: &Path, now: Option<&Image>) -> Result<Spool, Error> {
        let Self {
            manifest,
            mut pages,
            base,
            mut _place,
        } = self;
        if let Some((base, now)) = base.as_ref().zip(now) {
            let size = manifest.page_size;
            let failed = |source| Error::io("read the database")(source);
            let mut image = vec![0; size.len()];
            for number in 1..=manifest.page_count.0.min(base.page_count().0) {
                let page = PageNumber::new(number).expect("from 1 on");
                if page == size.lock_byte_page() || pages.hash(page).is_some() {
                    continue;
                }
                let [wanted] = base.hashes(number..=number).map_err(failed)?[..] else {
                    unreachable!("one hash for one page");
                };
                // Changed by an entry that was applied meanwhile, or not in the main file yet.
                if now.page_hash(page) == Some(wanted) && !now.is_in_wal(page) {
                    continue;
                }
                if base.page(page, &mut image).map_err(failed)?.is_none() {
                    let what = format!("page {page} is damaged");
                    return Err(failed(std::io::Error::other(what)));
                }
                pages.put(page, &image)?;
            }
        }
        drop(base);
        let spool = pages.adopt(dir, manifest)?;
        _place.clear();
        Ok(spool)
    }
}

fn lock(reception: &Mutex<Reception>) -> MutexGuard<'_, Reception> {
    reception.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn next(frames: &mut FrameReader) -> Result<Part, String> {
    let frame = frames.next().await.map_err(|error| error.to_string())?;
    Part::decode(&frame.ok_or("the sender ended the transfer")?)
}

async fn send(replies: &mut FrameWriter, reply: &Reply) -> Result<(), String> {
    let sent = replies.send(&reply.encode(), &[]).await;
    sent.map_err(|error| error.to_string())
}

fn told<T>(result: Result<T, Error>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

/// Runs file work off the async workers.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| error.to_string())?
}

/// A transfer that was cut off is tried again within seconds.
pub(crate) const KEPT_FOR: Duration = Duration::from_secs(600);
