//! The dialing side: one connection per peer, made by whoever needs it first and made again when
//! it has failed.
//!
//! ```text
//!            first request                 hello accepted
//!   Down ------------------> Connecting ------------------> Up
//!    ^                           |                           |
//!    |         failed            |                           |
//!    +---------------------------+                           |
//!    +-------------------------------------------------------+
//!      found closed by the next request, or the node was assigned
//! ```

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::endpoint::{Inner, locked};
use super::error::EndCode;
use super::frame::Role;
use super::hello::{self, Hello};
use super::limits::{DATA_REQUESTS_MAX, LONG_STREAMS_MAX};
use super::stream::{FrameReader, FrameWriter};
use super::trust::Side;
use super::{PeerIdentity, TransportError};

/// Which bytes go first when not all can go at once. Strict: none of a lower priority is sent while
/// a higher one has some.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Priority {
    /// Heartbeats, votes: an election depends on them.
    Control = 0,
    /// Entries and forwarded requests.
    Data = 1,
    /// Snapshots.
    Bulk = 2,
}

impl Priority {
    pub(super) const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Control),
            1 => Some(Self::Data),
            2 => Some(Self::Bulk),
            _ => None,
        }
    }

    /// As quinn counts: more is sooner.
    pub(super) const fn level(self) -> i32 {
        match self {
            Self::Control => 2,
            Self::Data => 1,
            Self::Bulk => 0,
        }
    }
}

/// A peer at an address. A cheap handle; those with equal address and node share a connection.
#[derive(Clone)]
pub struct Peer {
    endpoint: Arc<Inner>,
    link: Arc<Link>,
}

impl Peer {
    pub(super) const fn new(endpoint: Arc<Inner>, link: Arc<Link>) -> Self {
        Self { endpoint, link }
    }

    /// The address as given.
    #[must_use]
    pub fn addr(&self) -> &str {
        &self.link.addr
    }

    /// Who is at the other end of the live connection; `None` if there is none.
    #[must_use]
    pub fn remote(&self) -> Option<PeerIdentity> {
        self.link.live().map(|live| live.identity)
    }

    /// A number that tells the live connection from those before and after it; `None` if there is
    /// none.
    #[must_use]
    pub fn connection_number(&self) -> Option<u64> {
        self.link.live().map(|live| live.number)
    }

    /// Makes the connection unless it is there, so that the next request need not wait for it.
    ///
    /// # Errors
    /// As for [`Peer::request`], before anything is sent.
    pub async fn connect(&self) -> Result<(), TransportError> {
        self.live().await.map(drop)
    }

    /// Sends a request and waits for its reply, on a stream of its own. Giving up (a dropped
    /// future, the deadline) cancels the work on the other side if it is still going on.
    ///
    /// # Errors
    /// Any but [`TransportError::Bind`] and [`TransportError::Key`]; ask
    /// [`TransportError::nothing_was_delivered`] before sending the request again.
    pub async fn request(
        &self,
        kind: u8,
        priority: Priority,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        let mut sending = false;
        let exchange = async {
            let (mut writer, mut reader, _turn) = self.open_for_request(priority).await?;
            sending = true;
            writer
                .send_as(Role::Request, kind, priority, &[], &[body])
                .await?;
            writer.finish();
            match reader.next().await? {
                Some(reply) => Ok(reply),
                None => Err(TransportError::Closed {
                    addr: self.link.addr.to_string(),
                    reason: "the stream ended without a reply".to_owned(),
                }),
            }
        };
        let result = timeout(deadline, exchange).await;
        let addr = self.link.addr.to_string();
        match result {
            Ok(result) => result,
            Err(_) if sending => Err(TransportError::TimedOut {
                addr,
                after: deadline,
            }),
            Err(_) => Err(TransportError::Unreachable {
                addr,
                reason: format!("no connection within {deadline:?}"),
            }),
        }
    }

    /// Opens a long-lived stream that begins with `first`. Dropping either half cancels the work
    /// on the other side; [`FrameWriter::finish`] ends this side's half alone.
    ///
    /// # Errors
    /// As for [`Peer::request`]; [`TransportError::Overloaded`] if too many are open.
    pub async fn open_stream(
        &self,
        kind: u8,
        priority: Priority,
        first: Bytes,
    ) -> Result<(FrameWriter, FrameReader), TransportError> {
        let (live, send, recv) = self.open().await?;
        let Ok(place) = live.long_streams.clone().try_acquire_owned() else {
            let addr = self.link.addr.to_string();
            return Err(TransportError::Overloaded { addr });
        };
        let place = Arc::new(place);
        let addr = &self.link.addr;
        let mut writer = FrameWriter::new(send, addr.clone()).occupying(place.clone());
        let reader = FrameReader::new(recv, addr.clone(), &[Role::Body]).occupying(place);
        writer.set_priority(priority);
        writer
            .send_as(Role::Open, kind, priority, &[], &[first])
            .await?;
        Ok((writer, reader))
    }

    async fn open_for_request(
        &self,
        priority: Priority,
    ) -> Result<(FrameWriter, FrameReader, Option<OwnedSemaphorePermit>), TransportError> {
        let turn = match priority {
            Priority::Control => None,
            Priority::Bulk | Priority::Data => {
                self.link.data_requests.clone().acquire_owned().await.ok()
            }
        };
        let (_, send, recv) = self.open().await?;
        let writer = FrameWriter::new(send, self.link.addr.clone());
        let reader = FrameReader::new(recv, self.link.addr.clone(), &[Role::Reply]);
        writer.set_priority(priority);
        Ok((writer, reader, turn))
    }

    /// A new stream on the live connection. A connection that turns out to be dead has delivered
    /// nothing on a stream that was never opened, so it is made again, once.
    async fn open(&self) -> Result<(Live, quinn::SendStream, quinn::RecvStream), TransportError> {
        let live = self.live().await?;
        if let Ok((send, recv)) = live.connection.open_bi().await {
            return Ok((live, send, recv));
        }
        let live = self.live().await?;
        match live.connection.open_bi().await {
            Ok((send, recv)) => Ok((live, send, recv)),
            Err(error) => Err(TransportError::Unreachable {
                addr: self.link.addr.to_string(),
                reason: error.to_string(),
            }),
        }
    }

    /// The live connection, or the outcome of one attempt to make it, shared by all who wait. The
    /// attempt is a task of its own: callers with deadlines shorter than a handshake would
    /// otherwise cancel each other's attempts for ever.
    async fn live(&self) -> Result<Live, TransportError> {
        let mut outcome = {
            let mut state = locked(&self.link.state);
            match &*state {
                State::Up(live) if live.connection.close_reason().is_none() => {
                    return Ok(live.clone());
                }
                State::Connecting(outcome) if outcome.has_changed().is_ok() => outcome.clone(),
                State::Connecting(_) | State::Down | State::Up(_) => {
                    let (sender, outcome) = watch::channel(None);
                    *state = State::Connecting(outcome.clone());
                    let attempt = connect(self.endpoint.clone(), self.link.clone(), sender);
                    self.endpoint.runtime.spawn(attempt);
                    outcome
                }
            }
        };
        let finished = outcome.wait_for(Option::is_some).await;
        match finished.ok().and_then(|outcome| outcome.clone()) {
            Some(outcome) => outcome,
            None => Err(TransportError::Unreachable {
                addr: self.link.addr.to_string(),
                reason: "the runtime of the endpoint has ended".to_owned(),
            }),
        }
    }
}

/// The connection to one peer and how to make it.
pub(super) struct Link {
    addr: Arc<str>,
    expected: Option<u64>,
    state: Mutex<State>,
    data_requests: Arc<Semaphore>,
}

impl Link {
    pub(super) fn new(addr: &str, expected: Option<u64>) -> Self {
        Self {
            addr: addr.into(),
            expected,
            state: Mutex::new(State::Down),
            data_requests: Arc::new(Semaphore::new(DATA_REQUESTS_MAX)),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.live().is_some()
    }

    pub(super) fn close_if_unassigned(&self, reason: &[u8]) {
        let mut state = locked(&self.state);
        if let State::Up(live) = &*state
            && live.identity.cluster.is_none()
        {
            live.connection.close(EndCode::Reassigned.into(), reason);
            *state = State::Down;
        }
    }

    /// Has the next request make the connection again, with the settings of now. What is under way
    /// on the old one goes on, unless its peer is not trusted any more.
    pub(super) fn renew(&self, endpoint: &Inner) {
        let mut state = locked(&self.state);
        if let State::Up(live) = &*state {
            let name = endpoint.name_of(&self.addr);
            let side = Side::Server(&name);
            drop(endpoint.still_trusted(&live.connection, &self.addr, side));
            *state = State::Down;
        }
    }

    fn live(&self) -> Option<Live> {
        match &*locked(&self.state) {
            State::Up(live) if live.connection.close_reason().is_none() => Some(live.clone()),
            _ => None,
        }
    }
}

enum State {
    Connecting(watch::Receiver<Outcome>),
    Down,
    Up(Live),
}

type Outcome = Option<Result<Live, TransportError>>;

/// A connection whose hello was accepted.
#[derive(Clone)]
struct Live {
    connection: quinn::Connection,
    identity: PeerIdentity,
    number: u64,
    long_streams: Arc<Semaphore>,
}

/// One attempt to connect, and a second one if the node was assigned to a cluster meanwhile.
async fn connect(endpoint: Arc<Inner>, link: Arc<Link>, sender: watch::Sender<Outcome>) {
    loop {
        let hello = Hello {
            cluster: endpoint.cluster(),
            node: endpoint.node,
            expected: link.expected,
        };
        let mut outcome = dial_all(&endpoint, &link.addr, hello).await;
        let mut state = locked(&link.state);
        // What is trusted may have changed meanwhile.
        let name = endpoint.name_of(&link.addr);
        outcome = outcome.and_then(|live| {
            let side = Side::Server(&name);
            endpoint.still_trusted(&live.connection, &link.addr, side)?;
            Ok(live)
        });
        if let Ok(live) = &outcome
            && endpoint.cluster() != hello.cluster
        {
            let reason = b"the node was assigned to a cluster";
            live.connection.close(EndCode::Reassigned.into(), reason);
            continue;
        }
        if let Err(error @ (TransportError::Refused { .. } | TransportError::Security { .. })) =
            &outcome
        {
            endpoint.complain(&link.addr, &error.to_string());
        }
        *state = match &outcome {
            Ok(live) => State::Up(live.clone()),
            Err(_) => State::Down,
        };
        sender.send_replace(Some(outcome));
        return;
    }
}

/// Looks the name up and tries its addresses in turn, each with a fair share of the time left.
async fn dial_all(endpoint: &Inner, addr: &Arc<str>, hello: Hello) -> Result<Live, TransportError> {
    let unreachable = |reason: String| TransportError::Unreachable {
        addr: addr.to_string(),
        reason,
    };
    let end = Instant::now() + endpoint.connect_timeout;
    let found: Vec<SocketAddr> = timeout_at(end, tokio::net::lookup_host(&**addr))
        .await
        .map_err(|_| unreachable("the name was not found in time".to_owned()))?
        .map_err(|error| unreachable(error.to_string()))?
        .filter(|found| endpoint.can_reach(found))
        .take(ADDRESSES_MAX)
        .collect();
    let mut last = unreachable("the name has no address of the kind that is bound here".to_owned());
    let mut left = u32::try_from(found.len()).unwrap_or(1);
    for found in found {
        let share = end.saturating_duration_since(Instant::now()) / left;
        left -= 1;
        match timeout(share, dial(endpoint, addr, found, hello)).await {
            Ok(Ok(live)) => return Ok(live),
            Ok(Err(error)) => last = error,
            Err(_) => {
                let limit = endpoint.connect_timeout;
                last = unreachable(format!("no answer from {found} within {limit:?}"));
            }
        }
    }
    Err(last)
}

async fn dial(
    endpoint: &Inner,
    addr: &Arc<str>,
    found: SocketAddr,
    hello: Hello,
) -> Result<Live, TransportError> {
    let unreachable = |reason: String| TransportError::Unreachable {
        addr: addr.to_string(),
        reason,
    };
    let socket = endpoint
        .socket()
        .ok_or_else(|| unreachable("this node's endpoint is closed".to_owned()))?;
    let connection = socket
        .connect_with(endpoint.client_config(), found, &endpoint.name_of(addr))
        .map_err(|error| unreachable(error.to_string()))?
        .await
        .map_err(|error| TransportError::connecting(addr, &error))?;
    let certified = endpoint.certified(&connection);
    match hello::offer(&connection, addr, hello, certified).await {
        Ok(identity) => Ok(Live {
            connection,
            identity,
            number: endpoint.dialed_count.fetch_add(1, Ordering::Relaxed),
            long_streams: Arc::new(Semaphore::new(LONG_STREAMS_MAX as usize)),
        }),
        Err(error) => {
            connection.close(EndCode::Refused.into(), error.to_string().as_bytes());
            Err(error)
        }
    }
}

/// More addresses than this would leave too little time for each.
const ADDRESSES_MAX: usize = 4;
