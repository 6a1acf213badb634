//! The node: its public face, and the routing of requests to whoever leads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver as _;
use tokio::sync::{Semaphore, watch};

use super::Raft;
use super::admission::Admission;
use super::api::{Freshness, Level, ReadRequest, Refusal, Served, WriteRequest};
use super::caller::{Credentials, Doorkeeper, Permission};
use super::contact::Contact;
use super::error::Error;
use super::facts::SqliteFacts;
use super::flight::Flights;
use super::footprint::Footprints;
use super::frontier::Frontier;
use super::health::Health;
use super::image::Freezes;
use super::image_receiver::ImageReceiver;
use super::membership::Membership;
use super::options::NodeOptions;
use super::outlets::Watches;
use super::owner::Owner;
use super::places::Places;
use super::progress::Stands;
use super::read_index::{Purpose, Questions};
use super::repair::Repairs;
use super::room::Room;
use super::rounds::Confirmations;
use super::routing::{FORWARD_MARGIN, Led, Route, forwarded, undelivered};
use super::stages::Stages;
use super::tally::{NodeCounter, Tally};
use super::wire::{self, Call, Forward, ReadTerms, kind};
use super::write::{WriteQueue, served};
use crate::raft::log::Log;
use crate::raft::{LeaderId, Member};
use crate::sqlite::{Interest, Readers, Reply, Request};
use crate::transport::{Endpoint, Priority};

/// A request that this node does not lead: `None` means "route it again, nothing was done".
pub(crate) type NotLed = Option<Refusal>;

/// A running node. Clones are handles on the same one.
#[derive(Clone)]
pub struct Node {
    pub(crate) shell: Arc<Shell>,
}

/// What exists from the start, before the node belongs to a cluster.
pub(crate) struct Shell {
    pub(crate) options: NodeOptions,
    pub(crate) doorkeeper: Arc<Doorkeeper>,
    pub(crate) membership: Arc<Membership>,
    pub(crate) health: Arc<Health>,
    pub(crate) tally: Arc<Tally<NodeCounter>>,
    pub(crate) endpoint: Endpoint,
    pub(crate) inner: OnceLock<Arc<Inner>>,
    /// Raft and QUIC run here, away from HTTP and its clients.
    pub(crate) runtime: std::sync::Mutex<Option<tokio::runtime::Runtime>>,
}

/// Everything behind a node that belongs to a cluster.
pub(crate) struct Inner {
    pub(crate) options: NodeOptions,
    pub(crate) doorkeeper: Arc<Doorkeeper>,
    pub(crate) membership: Arc<Membership>,
    pub(crate) health: Arc<Health>,
    pub(crate) endpoint: Endpoint,
    pub(crate) raft: Raft,
    pub(crate) log: Log,
    pub(crate) owner: Arc<Owner>,
    pub(crate) flights: Arc<Flights>,
    pub(crate) frontier: Arc<Frontier>,
    pub(crate) stages: Arc<Stages>,
    pub(crate) tally: Arc<Tally<NodeCounter>>,
    pub(crate) writes: WriteQueue,
    pub(crate) confirmations: Confirmations,
    pub(crate) questions: Questions,
    /// Follows who leads.
    pub(crate) led: watch::Sender<Led>,
    pub(crate) watches: Watches,
    pub(crate) footprints: Footprints,
    pub(crate) facts: OnceLock<SqliteFacts>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) places: Arc<Places>,
    /// When the leader was last heard.
    pub(crate) contact: Contact,
    /// Room on the disk.
    pub(crate) room: Room,
    /// How far the others are.
    pub(crate) stands: Stands,
    /// The term in which this node hands its leadership over, and begins no group; 0: none.
    pub(crate) handed_over_term: AtomicU64,
    /// What mends damaged pages.
    pub(crate) repairs: Arc<Repairs>,
    /// How long freezing and checkpoints have taken.
    pub(crate) freezes: Arc<Freezes>,
    /// Where databases arrive, and how far transfers are.
    pub(crate) images: Arc<ImageReceiver>,
    /// Places for backups on their way to clients.
    pub(crate) backups: Arc<Semaphore>,
    /// The place for a load.
    pub(crate) loads: Arc<Semaphore>,
    /// Set when the node is closed: no group begins any more.
    pub(crate) is_closing: AtomicBool,
}

impl Node {
    /// Runs statements that may write.
    ///
    /// # Errors
    ///
    /// See [`Refusal`]; only `Unknown` may have been committed.
    pub async fn execute(&self, write: WriteRequest) -> Result<Served, Refusal> {
        self.routed(Call::Execute, write).await
    }

    /// Runs statements that only read.
    ///
    /// # Errors
    ///
    /// See [`Refusal`].
    pub async fn query(&self, read: ReadRequest) -> Result<Served, Refusal> {
        if read.level == Level::None {
            return self.inner()?.read_local(read).await;
        }
        if read.level == Level::Linearizable {
            return self.read_here(read, Purpose::Query).await;
        }
        self.routed(Call::Query(read.terms()), read.into()).await
    }

    /// Runs any statements: through the log if one of them writes, else as a query.
    ///
    /// # Errors
    ///
    /// See [`Refusal`].
    pub async fn request(&self, read: ReadRequest) -> Result<Served, Refusal> {
        let call = match read.level {
            Level::None => Call::Execute,
            Level::Linearizable => Call::Request(read.terms()),
            Level::Strong | Level::Weak => {
                return self.routed(Call::Request(read.terms()), read.into()).await;
            }
        };
        let inner = self.inner()?;
        let deadline = Instant::now() + read.timeout;
        // An older schema than the leader's may fail to see that it only reads, not that it writes.
        let is_read_only = inner.is_read_only(&read.request, deadline).await?;
        let read = ReadRequest {
            timeout: deadline.saturating_duration_since(Instant::now()),
            ..read
        };
        match (is_read_only, read.level) {
            (true, Level::Linearizable) => self.read_here(read, Purpose::Request).await,
            (true, _) => inner.read_local(read).await,
            (false, _) => self.routed(call, read.into()).await,
        }
    }

    /// Whether this node leads, and may execute.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.inner().is_ok_and(|inner| inner.leading().is_some())
    }

    /// What the node counts.
    #[must_use]
    pub fn counters(&self) -> &Tally<NodeCounter> {
        &self.shell.tally
    }

    /// A watch on why the node stopped serving; the process should end when it does.
    #[must_use]
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.shell.health.watch()
    }

    /// What the node was told when it was opened.
    #[must_use]
    pub fn options(&self) -> &NodeOptions {
        &self.shell.options
    }

    /// Whether a caller may do all of this on this node.
    pub async fn permits(
        &self,
        caller: Option<&Credentials>,
        permissions: &'static [Permission],
    ) -> bool {
        let doorkeeper = &self.shell.doorkeeper;
        doorkeeper.permits(caller, permissions).await
    }

    /// Whether this node asks who its callers are.
    #[must_use]
    pub fn has_authority(&self) -> bool {
        self.shell.doorkeeper.has_authority()
    }

    /// The advertised HTTP address.
    #[must_use]
    pub fn http_addr(&self) -> &str {
        &self.shell.options.http_adv_addr
    }

    pub(crate) fn inner(&self) -> Result<&Arc<Inner>, Refusal> {
        let health = &self.shell.health;
        if let Some(why) = health.failure().or_else(|| health.dismissal()) {
            return Err(Refusal::OutOfService(why));
        }
        let missing = || Refusal::NotReady("this node does not belong to a cluster yet".to_owned());
        let inner = self.shell.inner.get().ok_or_else(missing)?;
        if inner.is_closing.load(Ordering::Acquire) {
            let why = "this node is shutting down".to_owned();
            return Err(Refusal::OutOfService(why));
        }
        Ok(inner)
    }

    /// Has the leader serve a request.
    async fn routed(&self, call: Call, write: WriteRequest) -> Result<Served, Refusal> {
        let deadline = Instant::now() + write.timeout;
        let write = &write;
        self.at_leader(deadline, |inner, route, left| async move {
            match route {
                Route::Here => inner.lead(call, write.request.clone(), left).await,
                Route::There { node, addr } => {
                    let handed = inner.forward(node, &addr, call, write, left).await;
                    inner.count_handed(call, handed.is_ok());
                    handed
                }
            }
        })
        .await
    }
}

impl Inner {
    /// The leadership under which this node may execute: Raft says it leads, an entry of this term
    /// is applied (so everything before it is), and the database exists.
    pub(crate) fn leading(&self) -> Option<LeaderId> {
        if self.is_closing.load(Ordering::Acquire) {
            return None;
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let vote = metrics.vote;
        let leads = metrics.state.is_leader() && vote.committed;
        let leader = vote.leader_id;
        let reached = self.frontier.reached();
        let applied = reached.applied?;
        let caught_up = (applied.term, applied.node) == (leader.term, leader.node_id);
        if self.handed_over_term.load(Ordering::Acquire) == leader.term {
            return None;
        }
        (leads && caught_up && reached.data.is_some() && self.health.failure().is_none())
            .then_some(leader)
    }

    /// Serves a call on the node that leads.
    pub(crate) async fn lead(
        &self,
        call: Call,
        request: Request,
        timeout: Duration,
    ) -> Result<Served, NotLed> {
        match call {
            Call::Execute => self.lead_write(WriteRequest::new(request, timeout)).await,
            Call::Query(terms) => self.lead_read(terms.read(request, timeout)).await,
            Call::Request(terms) => self.lead_request(terms.read(request, timeout)).await,
        }
    }

    /// Whether a caller may do all of this here.
    pub(crate) async fn permits(
        &self,
        caller: Option<Credentials>,
        permissions: &'static [Permission],
    ) -> bool {
        self.doorkeeper.permits(caller.as_ref(), permissions).await
    }

    /// A write on the node that leads.
    pub(crate) async fn lead_write(&self, write: WriteRequest) -> Result<Served, NotLed> {
        if self.leading().is_none() {
            return Err(None);
        }
        let (reply, raft_index) = self.writes.write(write).await?;
        Ok(served(reply, raft_index, &self.options.http_adv_addr))
    }

    /// A mix of reads and writes on the node that leads.
    pub(crate) async fn lead_request(&self, read: ReadRequest) -> Result<Served, NotLed> {
        if self.leading().is_none() {
            return Err(None);
        }
        let deadline = Instant::now() + read.timeout;
        let is_read_only = self.is_read_only(&read.request, deadline).await;
        let read = ReadRequest {
            timeout: deadline.saturating_duration_since(Instant::now()),
            ..read
        };
        if is_read_only.map_err(Some)? {
            return self.lead_read(read).await;
        }
        self.lead_write(read.into()).await
    }

    /// Hands a request to the leader. Whatever may have been executed there is never sent again.
    async fn forward(
        &self,
        node: u64,
        addr: &str,
        call: Call,
        write: &WriteRequest,
        timeout: Duration,
    ) -> Result<Served, NotLed> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let forward = Forward {
            call,
            request: write.request.clone(),
            timeout_ms,
            caller: write.caller.clone(),
        };
        let body = Bytes::from(wire::encode(&forward));
        let peer = self.endpoint.peer(addr, Some(node));
        // The leader keeps the time; a little more for the way lets its own answer win.
        let patience = timeout + FORWARD_MARGIN;
        let writes = !matches!(call, Call::Query(_));
        let handed = peer.request(kind::FORWARD, Priority::Data, body, patience);
        let reply = if writes {
            handed.await
        } else {
            self.while_leads(node, handed).await.ok_or(None)?
        };
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => return Err(undelivered(&error, writes)),
        };
        forwarded(&reply, addr)
    }

    fn count_handed(&self, call: Call, well: bool) {
        use NodeCounter as Of;
        let (all, failed) = match call {
            Call::Execute => (Of::RemoteExecutions, Of::RemoteExecutionsFailed),
            Call::Query(_) => (Of::RemoteQueries, Of::RemoteQueriesFailed),
            Call::Request(_) => (Of::RemoteRequests, Of::RemoteRequestsFailed),
        };
        self.tally.count(all);
        if !well {
            self.tally.count(failed);
        }
    }

    /// Runs statements on the local database, whatever its age unless that is limited.
    pub(crate) async fn read_local(&self, read: ReadRequest) -> Result<Served, Refusal> {
        let deadline = Instant::now() + read.timeout;
        self.applied(read.index_min, deadline).await?;
        let reply = if read.freshness.is_some_and(|limit| self.is_stale(limit)) {
            Reply {
                outcomes: Vec::new(),
                error: Some("stale read".to_owned()),
            }
        } else {
            self.read(read.request, deadline).await?
        };
        Ok(served(reply, None, &self.options.http_adv_addr))
    }

    /// Whether the local database may be older than asked for. A leader's own never is.
    fn is_stale(&self, limit: Freshness) -> bool {
        if limit.max.is_zero() || self.raft.is_leader() {
            return false;
        }
        let within = |age: Option<Duration>| age.is_some_and(|age| age <= limit.max);
        let applied = self.frontier.reached().index();
        !within(self.contact.silence()) || (limit.strict && !within(self.contact.age(applied)))
    }

    /// Runs a request on a reader. It ends there when this future is dropped, as when the client
    /// has gone, and at the deadline. Damaged pages that it needs are mended first.
    pub(crate) async fn read(&self, request: Request, deadline: Instant) -> Result<Reply, Refusal> {
        let mut request = request;
        for _ in 0..MENDINGS_MAX {
            let interest = Interest::default();
            let _waiting = interest.waiting();
            let readers = self.readers()?;
            let read = match readers.try_at_once(request, &interest) {
                Ok(read) => read,
                Err(request) => {
                    let (answer, reply) = tokio::sync::oneshot::channel();
                    let done = Box::new(move |reply| drop(answer.send(reply)));
                    readers
                        .submit_watched(request, interest, done)
                        .map_err(|full| Refusal::Overloaded(full.to_string()))?;
                    by(deadline, reply).await?
                }
            };
            match read {
                Ok(reply) => return Ok(reply),
                Err(unread) => {
                    self.mended(unread.damage, deadline).await?;
                    request = unread.request;
                }
            }
        }
        let why = "pages are damaged again and again on this node".to_owned();
        Err(Refusal::Damaged(why))
    }

    /// Whether a request only reads; ends as [`Self::read`] does.
    pub(crate) async fn is_read_only(
        &self,
        request: &Request,
        deadline: Instant,
    ) -> Result<bool, Refusal> {
        let interest = Interest::default();
        let _waiting = interest.waiting();
        let (answer, verdict) = tokio::sync::oneshot::channel();
        let done = Box::new(move |_request, read_only| {
            // An asker that went away needs no answer.
            let _ = answer.send(read_only);
        });
        self.readers()?
            .classify(request.clone(), interest, done)
            .map_err(|full| Refusal::Overloaded(full.to_string()))?;
        by(deadline, verdict).await
    }

    fn readers(&self) -> Result<&Readers, Refusal> {
        let missing = || Refusal::NotReady("the database does not exist yet".to_owned());
        self.watches.readers.get().ok_or_else(missing)
    }

    /// This node as the others know it.
    pub(crate) fn member(&self) -> &Member {
        &self.membership.member
    }
}

impl ReadRequest {
    /// What travels with the call.
    fn terms(&self) -> ReadTerms {
        ReadTerms {
            level: self.level,
            index_min: self.index_min,
        }
    }
}

impl ReadTerms {
    /// The read that a node has handed on; its caller was asked for already.
    fn read(self, request: Request, timeout: Duration) -> ReadRequest {
        ReadRequest {
            index_min: self.index_min,
            ..ReadRequest::new(request, self.level, timeout)
        }
    }
}

impl From<ReadRequest> for WriteRequest {
    /// The level travels with the call.
    fn from(read: ReadRequest) -> Self {
        Self {
            request: read.request,
            timeout: read.timeout,
            caller: read.caller,
        }
    }
}

/// What a reader answers by the deadline.
async fn by<T>(deadline: Instant, answer: tokio::sync::oneshot::Receiver<T>) -> Result<T, Refusal> {
    match tokio::time::timeout_at(deadline.into(), answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(Refusal::OutOfService("the readers have stopped".to_owned())),
        Err(_) => Err(Refusal::TimedOut(
            "the query was ended; allow it more time with the parameter `timeout`".to_owned(),
        )),
    }
}

/// Checks what cannot be checked where the options are parsed.
pub(crate) fn check(options: &NodeOptions) -> Result<(), Error> {
    let refuse = |what: String| Err(Error::Configuration(what));
    if options.heartbeat() * 2 > options.election_min() {
        return refuse(format!(
            "the heartbeat interval ({:?}) must be at most half of the election time-out ({:?})",
            options.heartbeat(),
            options.election_min()
        ));
    }
    if options.entry_bytes_max < ENTRY_BYTES_MIN {
        return refuse(format!(
            "log entries must be allowed to have {ENTRY_BYTES_MIN} bytes"
        ));
    }
    if options.entry_bytes_max > ENTRY_BYTES_LIMIT {
        return refuse(format!(
            "log entries of more than {ENTRY_BYTES_LIMIT} bytes would hold up heartbeats"
        ));
    }
    if options.bootstrap_expect > 0 && options.replica {
        return refuse("bootstrapping only applicable to voting nodes".to_owned());
    }
    if options.bootstrap_expect > 1 && options.join.is_empty() && options.discovery.is_none() {
        return refuse("-bootstrap-expect needs the addresses of the nodes in -join".to_owned());
    }
    Ok(())
}

/// How many damaged pages one query waits for.
const MENDINGS_MAX: usize = 16;
/// One page of 64 KiB and its head must fit.
const ENTRY_BYTES_MIN: usize = 128 << 10;
/// Half of what one frame between nodes carries.
const ENTRY_BYTES_LIMIT: usize = 32 << 20;
