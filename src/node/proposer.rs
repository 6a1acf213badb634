//! Hands deltas to Raft: in order, under one leadership, a few parts at a time.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};

use super::Raft;
use super::flight::{Discard, Flights};
use super::stages::{Stage, Stages};
use crate::raft::{LeaderId, Payload, TypeConfig};

/// The leadership under which a group is executed and proposed, and the line to its clients.
#[derive(Clone)]
pub(crate) struct Ticket {
    /// Proposals are refused by Raft unless this leader still leads.
    pub(crate) leader: LeaderId,
    /// Set when the outcome became unknown although the flight goes on.
    pub(crate) doubt: Arc<watch::Sender<Option<String>>>,
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
            let (responder, outcome) = ProgressResponder::complete_only();
            let proposal = raft
                .write(Payload(part))
                .with_leader(ticket.leader)
                .responder(responder);
            if let Err(fatal) = proposal.await {
                return self.refuse(sequence, &format!("Raft has stopped: {fatal}"));
            }
            let (proposer, ticket) = (Arc::clone(&self), ticket.clone());
            tokio::spawn(async move {
                proposer.conclude(sequence, &ticket, outcome.await.ok());
                drop(permit);
            });
        }
    }

    /// What Raft said about one part. Success needs no action: apply has seen the entry itself.
    fn conclude(
        &self,
        sequence: u64,
        ticket: &Ticket,
        outcome: Option<openraft::raft::ClientWriteResult<TypeConfig>>,
    ) {
        match outcome {
            Some(Ok(_)) => self.stages.count(Stage::Committed),
            Some(Err(ClientWriteError::LogEntryDiscarded(_))) => {
                let why = "another leader replaced the log entry";
                ticket.doubt.send_replace(Some(why.to_owned()));
            }
            Some(Err(refused)) => self.refuse(sequence, &refused.to_string()),
            None => {
                ticket
                    .doubt
                    .send_replace(Some("Raft has stopped on this node".to_owned()));
            }
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

/// With parts of at most 2 MiB, 8 MiB of a large transaction are on their way at a time.
const PARTS_IN_FLIGHT_MAX: usize = 4;
