//! Hands deltas to Raft: in order, under one leadership, a few parts at a time.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use openraft::errors::{ClientWriteError, ForwardReason};
use openraft::raft::ClientWriteResult;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};

use super::Raft;
use super::clients::Clients;
use super::flight::{Discard, Flights};
use super::stages::{Stage, Stages};
use crate::raft::{LeaderId, Outcome, Payload, TypeConfig};

/// The leadership under which a group is executed and proposed, and the line to its clients.
#[derive(Clone)]
pub(crate) struct Ticket {
    /// Proposals are refused by Raft unless this leader still leads.
    pub(crate) leader: LeaderId,
    /// Who is told when the outcome becomes unknown although the flight goes on.
    pub(crate) clients: Clients,
}

/// Proposes on behalf of the owner thread.
pub(crate) struct Proposer {
    runtime: Handle,
    raft: OnceLock<Raft>,
    flights: Arc<Flights>,
    stages: Arc<Stages>,
}

impl Proposer {
    pub(crate) fn new(runtime: Handle, flights: Arc<Flights>, stages: Arc<Stages>) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            raft: OnceLock::new(),
            flights,
            stages,
        })
    }

    /// Raft is built after the state machine that needs us; this closes the circle, once.
    pub(crate) fn connect(&self, raft: Raft) {
        assert!(self.raft.set(raft).is_ok(), "connected once");
    }

    /// Proposes a flight of one part, from the owner thread itself: a task in between would have to
    /// be woken first, and again for the outcome.
    pub(crate) fn propose_whole(self: &Arc<Self>, sequence: u64, ticket: Ticket, part: Bytes) {
        let Some(raft) = self.raft.get() else {
            return self.refuse(sequence, "this node has just started");
        };
        let (proposer, leader) = (Arc::clone(self), ticket.leader);
        let outcome = Outcome::told(move |outcome| proposer.conclude(sequence, &ticket, outcome));
        let proposal = raft.write(Payload(part)).with_leader(leader);
        // Ready at once, unless Raft has thousands of messages to read.
        let proposed = self
            .runtime
            .block_on(proposal.responder(outcome).into_future());
        if let Err(fatal) = proposed {
            self.refuse(sequence, &format!("Raft has stopped: {fatal}"));
        }
    }

    /// Begins to propose a flight; its encoded parts are to be sent in order.
    pub(crate) fn begin(self: &Arc<Self>, sequence: u64, ticket: Ticket) -> mpsc::Sender<Bytes> {
        let (parts, queue) = mpsc::channel(1);
        let proposer = Arc::clone(self);
        self.runtime
            .spawn(async move { proposer.run(sequence, ticket, queue).await });
        parts
    }

    async fn run(self: Arc<Self>, sequence: u64, ticket: Ticket, mut parts: mpsc::Receiver<Bytes>) {
        let window = Arc::new(Semaphore::new(PARTS_IN_FLIGHT_MAX));
        let mut is_first = true;
        while let Some(part) = parts.recv().await {
            // The flight's thread may be waiting for room for its next part.
            self.flights.nudge();
            let permit = Arc::clone(&window)
                .acquire_owned()
                .await
                .expect("the window is never closed");
            let Some(raft) = self.raft.get() else {
                return self.refuse(sequence, "this node has just started");
            };
            let outcome = loop {
                let (responder, mut outcome) = Outcome::awaited();
                let proposal = raft
                    .write(Payload(part.clone()))
                    .with_leader(ticket.leader)
                    .responder(responder);
                if let Err(fatal) = proposal.await {
                    return self.refuse(sequence, &format!("Raft has stopped: {fatal}"));
                }
                // Raft's core takes its messages in order: when it answers this one it has appended
                // the part or refused it. If it has stopped, the outcome says so too.
                // The first part is not proposed again, so nobody waits for that answer.
                if !is_first {
                    drop(raft.with_raft_state(|_| ()).await);
                }
                match (&mut outcome).now_or_never() {
                    Some(Ok(refused))
                        if !is_first
                            && is_lease_expired(&refused)
                            && self.flights.is_waiting(sequence) =>
                    {
                        tokio::time::sleep(LEASE_RETRY).await;
                    }
                    Some(known) => break Some(known.ok()),
                    None => {
                        let (proposer, ticket) = (Arc::clone(&self), ticket.clone());
                        tokio::spawn(async move {
                            proposer.conclude(sequence, &ticket, outcome.await.ok());
                            drop(permit);
                        });
                        break None;
                    }
                }
            };
            if let Some(known) = outcome {
                self.conclude(sequence, &ticket, known);
            }
            is_first = false;
        }
    }

    /// What Raft said about one part. Success needs no action: apply has seen the entry itself.
    fn conclude(
        &self,
        sequence: u64,
        ticket: &Ticket,
        outcome: Option<ClientWriteResult<TypeConfig>>,
    ) {
        match outcome {
            Some(Ok(_)) => self.stages.count(Stage::Committed),
            Some(Err(ClientWriteError::LogEntryDiscarded(_))) => {
                let why = "another leader replaced the log entry";
                ticket.clients.doubt(why);
            }
            Some(Err(refused)) => self.refuse(sequence, &refused.to_string()),
            None => ticket.clients.doubt("Raft has stopped on this node"),
        }
    }

    /// The part was certainly not appended, so the transaction can never be complete.
    fn refuse(&self, sequence: u64, why: &str) {
        drop(
            self.flights
                .discard(sequence, Discard::NotCommitted(why.to_owned())),
        );
    }
}

/// Whether the part was refused for want of the leader's lease only: under load the followers'
/// answers can be late without anybody else leading. Giving up a transaction of which many parts
/// are appended would cost all of them; the next part may simply be proposed again.
fn is_lease_expired(outcome: &ClientWriteResult<TypeConfig>) -> bool {
    matches!(
        outcome,
        Err(ClientWriteError::ForwardToLeader(forward))
            if forward.reason == ForwardReason::LeaseExpired
    )
}

const LEASE_RETRY: Duration = Duration::from_millis(20);

/// With parts of at most 2 MiB, 8 MiB of a large transaction are on their way at a time.
const PARTS_IN_FLIGHT_MAX: usize = 4;
