//! Where a commit waits for the quorum: called inside SQLite's xSync, on the owner thread.

use std::borrow::Cow;
use std::io;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use super::fence::Fence;
use super::flight::{Discard, Fate, Flights, Signal};
use super::frontier::Frontier;
use super::image::{Freezes, Held};
use super::lineage::Lineage;
use super::proposer::{Proposer, Ticket};
use super::stages::{Stage, Stages};
use crate::planted::{self, Bug};
use crate::sqlite::{self, Captured, Gate, Image, Verdict};
use crate::wal::{
    ClusterId, DatabaseHash, DeltaHeader, DeltaWriter, Encoding, PageNumber, Part, Position,
};

/// What became of the flights of one group.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Landed {
    /// Position of the last flight that was committed.
    pub(crate) committed: Option<Position>,
    /// Why a flight was discarded. A group stops at the first.
    pub(crate) discarded: Option<Discard>,
}

/// Who proposes, and since when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub(crate) cluster: ClusterId,
    pub(crate) node: u64,
    /// Random for each start of the process: tells our own entries from those of an earlier life.
    pub(crate) epoch: u64,
}

/// Shared by the owner's loop and the gate that SQLite calls; both run on the owner thread.
pub(crate) struct Desk {
    pub(crate) origin: Origin,
    pub(crate) flights: Arc<Flights>,
    pub(crate) frontier: Arc<Frontier>,
    pub(crate) proposer: Arc<Proposer>,
    pub(crate) stages: Arc<Stages>,
    /// What the log says of the database.
    pub(crate) lineage: Arc<Lineage>,
    pub(crate) entry_bytes_max: usize,
    /// The images that were handed out.
    pub(crate) freezes: Arc<Freezes>,
    state: Mutex<DeskState>,
}

#[derive(Default)]
struct DeskState {
    sequence: u64,
    ticket: Option<Ticket>,
    /// The fate of the flight that SQLite is finishing.
    landing: Option<Fate>,
    landed: Landed,
    holds: Vec<oneshot::Sender<Option<Held>>>,
}

impl Desk {
    pub(crate) fn new(
        origin: Origin,
        flights: Arc<Flights>,
        frontier: Arc<Frontier>,
        proposer: Arc<Proposer>,
        stages: Arc<Stages>,
        lineage: Arc<Lineage>,
        entry_bytes_max: usize,
    ) -> Arc<Self> {
        let state = Mutex::new(DeskState::default());
        Arc::new(Self {
            origin,
            flights,
            frontier,
            proposer,
            stages,
            lineage,
            entry_bytes_max,
            freezes: Arc::default(),
            state,
        })
    }

    /// Commits from now on are proposed with this ticket; without one they are refused.
    pub(crate) fn open(&self, ticket: Ticket) {
        let mut state = self.lock();
        state.ticket = Some(ticket);
        state.landed = Landed::default();
    }

    /// Ends the group: SQLite is back in autocommit.
    pub(crate) fn close(&self) -> Landed {
        self.settle();
        let mut state = self.lock();
        state.ticket = None;
        std::mem::take(&mut state.landed)
    }

    /// SQLite has finished the commit that was decided last: it has published its pages, or rolled
    /// back. The frontier moves only now, so nobody reads at an index that is not visible yet.
    fn settle(&self) {
        let Some(fate) = self.lock().landing.take() else {
            return;
        };
        match fate {
            Fate::Release(position) => {
                self.stages.count(Stage::Applied);
                self.frontier.advance(|state| {
                    state.fence = Fence::at(Some(position), Some(position));
                });
                self.lock().landed.committed = Some(position);
            }
            Fate::Discard(why) => self.lock().landed.discarded = Some(why),
        }
        self.flights.settle();
    }

    fn lock(&self) -> MutexGuard<'_, DeskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The gate of the owner's database.
pub(crate) struct QuorumGate(pub(crate) Arc<Desk>);

impl Gate for QuorumGate {
    fn commit(&mut self, transaction: &Captured<'_>) -> Verdict {
        let desk = &self.0;
        desk.settle();
        desk.stages.count(Stage::Executed);
        let (sequence, ticket) = {
            let mut state = desk.lock();
            state.sequence += 1;
            (state.sequence, state.ticket.clone())
        };
        let Some(ticket) = ticket else {
            let why = Discard::NotCommitted("no group is open".to_owned());
            desk.lock().landed.discarded = Some(why);
            return Verdict::Discard;
        };
        let signals = desk.flights.register(sequence, ticket.leader.term);
        let fate = desk.propose(transaction, sequence, ticket, &signals);
        let verdict = match fate {
            Fate::Release(_) => Verdict::Release,
            Fate::Discard(_) if planted::is(Bug::RefusedPublished) => Verdict::Release,
            Fate::Discard(_) => Verdict::Discard,
        };
        desk.lock().landing = Some(fate);
        verdict
    }
}

impl Desk {
    /// Sends the transaction to Raft, in parts if it is large, and blocks until its fate is known.
    fn propose(
        &self,
        transaction: &Captured<'_>,
        sequence: u64,
        ticket: Ticket,
        signals: &Receiver<Signal>,
    ) -> Fate {
        let base = self.frontier.state().fence.last_data;
        if let Err(why) = self.lineage.check_own(base, transaction.hash_before()) {
            return Fate::Discard(Discard::NotCommitted(why));
        }
        // Whoever asked for an image before the flight was registered could not nudge it.
        self.serve_holds(|| transaction.image());
        let split = Split::new(transaction, self.entry_bytes_max);
        if split.of == 1 {
            let header = self.header(transaction, &split, 1, sequence, base);
            match transaction.patches(header) {
                Ok(part) => {
                    self.stages.count(Stage::Appended);
                    self.proposer.propose_whole(sequence, ticket, part);
                }
                Err(error) => self.refuse_unread(sequence, &error),
            }
        } else if let Some(fate) =
            self.propose_parts(transaction, &split, sequence, base, ticket, signals)
        {
            return fate;
        }
        loop {
            match signals
                .recv()
                .expect("the flight stays registered until it is settled")
            {
                Signal::Decided(fate) => return fate,
                Signal::Hold => self.serve_holds(|| transaction.image()),
            }
        }
    }

    /// Proposes part by part, as the proposer has room; the fate if it is known before the end.
    fn propose_parts(
        &self,
        transaction: &Captured<'_>,
        split: &Split,
        sequence: u64,
        base: Option<Position>,
        ticket: Ticket,
        signals: &Receiver<Signal>,
    ) -> Option<Fate> {
        let parts = self.proposer.begin(sequence, ticket);
        for number in 1..=split.of {
            let header = self.header(transaction, split, number, sequence, base);
            let part = match encode_part(transaction, split, header) {
                Ok(part) => part,
                Err(error) => {
                    self.refuse_unread(sequence, &error);
                    break;
                }
            };
            self.stages.count(Stage::Appended);
            match self.hand_over(part, &parts, transaction, signals) {
                Handed::Over => {}
                // The proposer gave up; it has decided the flight.
                Handed::Nowhere => break,
                Handed::TooLate(fate) => return Some(fate),
            }
        }
        None
    }

    fn refuse_unread(&self, sequence: u64, error: &io::Error) {
        let why = format!("reading the captured pages failed: {error}");
        drop(self.flights.discard(sequence, Discard::NotCommitted(why)));
    }

    /// Gives a part to the proposer as soon as it has room, and listens meanwhile: room may come
    /// only after an image was sent, or never, because the flight is decided.
    fn hand_over(
        &self,
        mut part: Bytes,
        parts: &mpsc::Sender<Bytes>,
        transaction: &Captured<'_>,
        signals: &Receiver<Signal>,
    ) -> Handed {
        loop {
            part = match parts.try_send(part) {
                Ok(()) => return Handed::Over,
                Err(TrySendError::Closed(_)) => return Handed::Nowhere,
                Err(TrySendError::Full(part)) => part,
            };
            match signals.recv_timeout(ROOM_POLL) {
                Ok(Signal::Decided(fate)) => return Handed::TooLate(fate),
                Ok(Signal::Hold) => self.serve_holds(|| transaction.image()),
                Err(_) => {}
            }
        }
    }

    /// Queues a request for a frozen image; the caller wakes the owner thread.
    pub(crate) fn request_hold(&self, done: oneshot::Sender<Option<Held>>) {
        self.lock().holds.push(done);
    }

    /// Answers all who asked for an image with the database as published now.
    pub(crate) fn serve_holds(&self, image: impl Fn() -> Result<Image, sqlite::Error>) {
        let holds = std::mem::take(&mut self.lock().holds);
        for done in holds {
            // Whoever asked may have given up.
            let _ = done.send(match self.freezes.hold(&image, self.frontier.state()) {
                Ok(held) => Some(held),
                Err(error) => {
                    tracing::error!(%error, "the database cannot be frozen");
                    None
                }
            });
        }
    }

    /// Answers all who asked for an image that there is no database yet.
    pub(crate) fn refuse_holds(&self) {
        for done in std::mem::take(&mut self.lock().holds) {
            let _ = done.send(None);
        }
    }

    fn header(
        &self,
        transaction: &Captured<'_>,
        split: &Split,
        number: u32,
        sequence: u64,
        base: Option<Position>,
    ) -> DeltaHeader {
        let zero = DatabaseHash::default();
        DeltaHeader {
            cluster: self.origin.cluster,
            origin: self.origin.node,
            epoch: self.origin.epoch,
            sequence,
            base,
            page_size: transaction.page_size(),
            page_count: transaction.page_count(),
            hash_before: if number == 1 {
                transaction.hash_before()
            } else {
                zero
            },
            hash_after: if number == split.of {
                transaction.hash_after()
            } else {
                zero
            },
            part: Part {
                number,
                of: split.of,
            },
        }
    }
}

/// A part of a large transaction: whole pages, because not all of their versions before could be
/// kept in memory where it is applied.
fn encode_part(
    transaction: &Captured<'_>,
    split: &Split,
    header: DeltaHeader,
) -> io::Result<Bytes> {
    let mut writer = DeltaWriter::new(header, Encoding::Zstd);
    let mut image = vec![0; transaction.page_size().len()];
    let pages = transaction.page_numbers();
    let first = (header.part.number as usize - 1) * split.pages_per_part;
    let last = (first + split.pages_per_part).min(pages.len());
    for (index, page) in pages.iter().enumerate().take(last).skip(first) {
        transaction.read(index, &mut image)?;
        writer.push(*page, &image);
    }
    Ok(writer.finish())
}

/// What became of a part.
enum Handed {
    Nowhere,
    Over,
    TooLate(Fate),
}

/// How a transaction is divided into parts.
struct Split {
    pages_per_part: usize,
    of: u32,
}

impl Split {
    fn new(transaction: &Captured<'_>, entry_bytes_max: usize) -> Self {
        let pages = transaction.page_numbers().len();
        let one = DeltaWriter::bytes_max_for(transaction.page_size(), 1);
        let two = DeltaWriter::bytes_max_for(transaction.page_size(), 2);
        let pages_per_part = (entry_bytes_max.saturating_sub(one) / (two - one) + 1).max(1);
        let of = u32::try_from(pages.div_ceil(pages_per_part)).expect("page numbers are 32 bits");
        Self { pages_per_part, of }
    }
}

/// A page as redo and injection take it.
pub(crate) type PageImage<'a> = (PageNumber, Cow<'a, [u8]>);

/// How long to wait for room before looking again; a part takes some milliseconds anyway.
const ROOM_POLL: Duration = Duration::from_millis(2);
