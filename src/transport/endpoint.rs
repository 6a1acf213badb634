//! The UDP socket of a node, its options and its identity.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use quinn::{ConnectionId, ConnectionIdGenerator, IdleTimeout, TransportConfig, VarInt};
use ring::hmac;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::certificate::{self, ANY_NODE};
use super::client::{Link, Peer};
use super::complaints::Complaints;
use super::error::EndCode;
use super::pki::CertificateOptions;
use super::renewal::{Notice, Renewal};
use super::server::{self, Handler};
use super::sockets::{Sockets, SystemSockets};
use super::tls::{BoxError, Tls};
use super::trust::{Side, Trust, chain_of};
use super::{ClusterKey, TransportError, limits};
use crate::wal::ClusterId;

/// How an endpoint is opened.
#[derive(Clone, Debug)]
pub struct EndpointOptions {
    /// The address to bind; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Who is trusted.
    pub security: Security,
    /// This node's Raft id, not zero.
    pub node: u64,
    /// This node's cluster; `None` until it is assigned to one.
    pub cluster: Option<ClusterId>,
    /// A connection on which nothing was sent for so long sends a sign of life.
    pub keep_alive: Duration,
    /// A connection on which nothing arrived for so long is dead.
    pub idle_timeout: Duration,
    /// How long an attempt to connect may take, names and hello included.
    pub connect_timeout: Duration,
}

/// Who is trusted.
#[derive(Clone, Debug)]
pub enum Security {
    /// Nodes with certificates of an authority of the operator's own, as far as the options demand
    /// them.
    Certificates(CertificateOptions),
    /// Any address, and no check of who is there. Somebody asked for it.
    Insecure,
    /// Nodes with a certificate of the authority derived from this key.
    Key(ClusterKey),
    /// Whoever can reach the loopback address; no other address can be bound.
    Loopback,
}

/// Who is at the other end of a connection, as TLS and the hello established it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PeerIdentity {
    /// The peer's Raft id.
    pub node: u64,
    /// The cluster to which both belong. `None` marks the connection *unassigned*: at least one of
    /// the two had no cluster yet, and nothing but finding one another may be talked about.
    pub cluster: Option<ClusterId>,
    /// Where the peer's packets come from.
    pub addr: SocketAddr,
}

/// The network as one node sees it. A cheap handle; all clones are the same endpoint.
#[derive(Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

impl Endpoint {
    /// Opens the socket. Must be called inside a tokio runtime, which then does all the work.
    ///
    /// # Errors
    /// [`TransportError::Security`] for [`Security::Loopback`] on another address, else
    /// [`TransportError::Bind`].
    pub fn bind(options: &EndpointOptions) -> Result<Self, TransportError> {
        Self::bind_over(&SystemSockets, options)
    }

    /// As [`Self::bind`], with a socket from somewhere else.
    ///
    /// # Errors
    /// As there.
    pub fn bind_over(
        sockets: &dyn Sockets,
        options: &EndpointOptions,
    ) -> Result<Self, TransportError> {
        let addr = options.bind;
        let loopback = addr.ip().to_canonical().is_loopback();
        if matches!(options.security, Security::Loopback) && !loopback {
            return Err(TransportError::Security {
                addr: addr.to_string(),
                reason: NOT_LOOPBACK.to_owned(),
            });
        }
        let failed = |reason: BoxError| match reason.downcast::<TransportError>() {
            Ok(error) => *error,
            Err(reason) => TransportError::Bind {
                addr,
                reason: reason.to_string(),
            },
        };
        let (inner, renewal) = Inner::open(sockets, options).map_err(failed)?;
        let inner = Arc::new(inner);
        if let Some(renewal) = renewal {
            inner.runtime.spawn(renewal.run(Arc::downgrade(&inner)));
        }
        Ok(Self { inner })
    }

    /// Begins to accept connections. To be called once.
    pub fn serve(&self, handler: Arc<dyn Handler>) {
        let inner = self.inner.clone();
        self.inner.runtime.spawn(server::accept(inner, handler));
    }

    /// A handle on the peer at `addr` (`host:port`; the name is looked up at each connect). With
    /// `node`, only that node is talked to. Equal arguments share one connection.
    #[must_use]
    pub fn peer(&self, addr: &str, node: Option<u64>) -> Peer {
        let mut links = locked(&self.inner.links);
        let key = (addr.to_owned(), node);
        if !links.contains_key(&key) && links.len() >= limits::LINKS_REMEMBERED {
            links.retain(|_, link| Arc::strong_count(link) > 1 || link.is_up());
        }
        let link = links
            .entry(key)
            .or_insert_with(|| Arc::new(Link::new(addr, node)));
        Peer::new(self.inner.clone(), link.clone())
    }

    /// Takes note that the node now belongs to a cluster. Connections made before are closed where
    /// their mark would change, and are made again by whoever dialed them; those that an unassigned
    /// peer dialed are left alone, so that an answer under way to it arrives.
    ///
    /// # Errors
    /// [`TransportError::Refused`] if the node belongs to another cluster already.
    pub fn assign(&self, cluster: ClusterId) -> Result<(), TransportError> {
        self.inner.assign(cluster)
    }

    /// The cluster this node belongs to.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.inner.cluster()
    }

    /// The bound address, with the port that was taken.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr
    }

    /// Closes all connections, tells the peers, and gives the socket back. Peers obtained from
    /// this endpoint fail from now on.
    pub async fn close(&self) {
        let socket = locked(&self.inner.socket).take();
        if let Some(socket) = socket {
            socket.close(EndCode::Cancelled.into(), b"the node shuts down");
            // The peers that can be told have been by then; the others time out by themselves.
            let _ = tokio::time::timeout(limits::LINGER, socket.wait_idle()).await;
        }
    }
}

/// What all parts of an endpoint share.
pub(super) struct Inner {
    pub(super) runtime: Handle,
    pub(super) node: u64,
    pub(super) connect_timeout: Duration,
    client_config: RwLock<quinn::ClientConfig>,
    /// What is trusted now, where that can change.
    trust: RwLock<Option<Arc<Trust>>>,
    transport: Arc<TransportConfig>,
    names: Names,
    /// Connections dialed so far.
    pub(super) dialed_count: AtomicU64,
    local_addr: SocketAddr,
    /// Whether certificates are verified, so that the nodes they name count.
    verified: bool,
    socket: Mutex<Option<quinn::Endpoint>>,
    registry: Mutex<Registry>,
    links: Mutex<Links>,
    request_kib: Arc<Semaphore>,
    complaints: Complaints,
}

/// The links by address and expected node.
type Links = HashMap<(String, Option<u64>), Arc<Link>>;

/// The local cluster and the accepted connections, under one lock: a connection is either
/// registered before an assignment, and seen by it, or judged by the new identity.
struct Registry {
    cluster: Option<ClusterId>,
    accepted: HashMap<u64, (quinn::Connection, Option<ClusterId>)>,
    accepted_count: u64,
}

impl Inner {
    fn open(
        sockets: &dyn Sockets,
        options: &EndpointOptions,
    ) -> Result<(Self, Option<Renewal>), BoxError> {
        if options.node == 0 {
            return Err("zero is no node id".into());
        }
        let runtime = Handle::try_current()?;
        let transport = Arc::new(transport_config(options)?);
        let (tls, renewal) = match &options.security {
            Security::Certificates(files) => {
                let watched = files.watch();
                let (tls, ends_at) = Tls::of_files(files, options.node)?;
                let renewal = Renewal {
                    options: files.clone(),
                    watched,
                    ends_at,
                    said: Notice::default(),
                };
                (tls, Some(renewal))
            }
            security => (Tls::new(security, options.node)?, None),
        };
        let mut tls = tls;
        let (reset_secret, trust) = (tls.reset_secret, tls.trust.take());
        let (client_config, server_config) = configs(tls, &transport);
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            endpoint_config(&reset_secret),
            Some(server_config),
            sockets.bind(options.bind)?,
            Arc::new(quinn::TokioRuntime),
        )?;
        let inner = Self {
            runtime,
            node: options.node,
            connect_timeout: options.connect_timeout,
            client_config: RwLock::new(client_config),
            trust: RwLock::new(trust.map(Arc::new)),
            transport,
            names: Names::of(&options.security),
            dialed_count: AtomicU64::new(0),
            local_addr: endpoint.local_addr()?,
            verified: matches!(options.security, Security::Key(_)),
            socket: Mutex::new(Some(endpoint)),
            registry: Mutex::new(Registry {
                cluster: options.cluster,
                accepted: HashMap::new(),
                accepted_count: 0,
            }),
            links: Mutex::default(),
            request_kib: Arc::new(Semaphore::new(
                (limits::REQUEST_BYTES_IN_HAND_MAX >> 10) as usize,
            )),
            complaints: Complaints::default(),
        };
        Ok((inner, renewal))
    }

    /// The settings for the next connection that is dialed.
    pub(super) fn client_config(&self) -> quinn::ClientConfig {
        let current = self.client_config.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The name that the certificate of the node at `addr` has to be valid for.
    pub(super) fn name_of(&self, addr: &str) -> String {
        self.names.of_node_at(addr)
    }

    /// From the next connection on these settings are used. Connections with peers that would not
    /// be accepted any more are closed; those that this node has dialed are made again when they
    /// are needed, so that the peers see its new certificate, and the old ones end with what is
    /// under way on them.
    pub(super) fn use_tls(&self, mut tls: Tls) {
        let trust = tls.trust.take();
        let (client, server) = configs(tls, &self.transport);
        if let Some(socket) = self.socket() {
            socket.set_server_config(Some(server));
        }
        *write(&self.client_config) = client;
        // Before the connections are looked at: one that is made meanwhile looks at this.
        *write(&self.trust) = trust.map(Arc::new);
        let accepted: Vec<_> = {
            let registry = locked(&self.registry);
            let connections = registry.accepted.values();
            connections
                .map(|(connection, _)| connection.clone())
                .collect()
        };
        for connection in accepted {
            let addr = connection.remote_address().to_string();
            drop(self.still_trusted(&connection, &addr, Side::Client));
        }
        let links: Vec<_> = locked(&self.links).values().cloned().collect();
        for link in links {
            link.renew(self);
        }
    }

    /// Whether the peer's certificate is one that is accepted now; if not, closes the connection.
    pub(super) fn still_trusted(
        &self,
        connection: &quinn::Connection,
        addr: &str,
        side: Side<'_>,
    ) -> Result<(), TransportError> {
        let trust = self.trust.read();
        let trust = trust.unwrap_or_else(PoisonError::into_inner).clone();
        let Some(trust) = trust else {
            return Ok(());
        };
        trust.judge(connection, side).map_err(|reason| {
            self.complain(addr, &reason);
            connection.close(EndCode::Refused.into(), WITHDRAWN.as_bytes());
            let addr = addr.to_owned();
            TransportError::Security { addr, reason }
        })
    }

    /// The socket; `None` after the endpoint was closed.
    pub(super) fn socket(&self) -> Option<quinn::Endpoint> {
        locked(&self.socket).clone()
    }

    pub(super) fn cluster(&self) -> Option<ClusterId> {
        locked(&self.registry).cluster
    }

    /// Whether the socket can send to this address.
    pub(super) const fn can_reach(&self, addr: &SocketAddr) -> bool {
        addr.is_ipv4() || self.local_addr.is_ipv6()
    }

    /// The node that the peer's certificate names; `None` if certificates are not verified. A
    /// verified certificate without a name gives 0, which no node has.
    pub(super) fn certified(&self, connection: &quinn::Connection) -> Option<u64> {
        if !self.verified {
            return None;
        }
        let chain = chain_of(connection);
        let named = chain.first().and_then(certificate::node_named_in);
        Some(named.unwrap_or(0))
    }

    /// Judges an accepted connection by the local cluster of this moment, and registers it if
    /// `judge` gives true. Returns the local cluster that was looked at.
    pub(super) fn register(
        self: &Arc<Self>,
        connection: &quinn::Connection,
        peer_cluster: Option<ClusterId>,
        judge: impl FnOnce(Option<ClusterId>) -> bool,
    ) -> (Option<ClusterId>, Option<Registration>) {
        let mut registry = locked(&self.registry);
        let cluster = registry.cluster;
        if !judge(cluster) {
            return (cluster, None);
        }
        let number = registry.accepted_count;
        registry.accepted_count += 1;
        registry
            .accepted
            .insert(number, (connection.clone(), peer_cluster));
        let endpoint = self.clone();
        (cluster, Some(Registration { endpoint, number }))
    }

    /// Takes a request's bytes out of the budget until the permit is dropped; `None` if they are
    /// not there. Small requests are free.
    pub(super) fn count_request(&self, bytes: u32) -> Option<Option<OwnedSemaphorePermit>> {
        if bytes <= limits::REQUEST_BYTES_UNCOUNTED {
            return Some(None);
        }
        let permit = self
            .request_kib
            .clone()
            .try_acquire_many_owned(bytes.div_ceil(1024));
        permit.ok().map(Some)
    }

    /// Logs that the two sides do not agree to talk to each other, unless that was said already.
    pub(super) fn complain(&self, addr: &str, reason: &str) {
        self.complaints.complain(addr, reason);
    }

    fn assign(&self, cluster: ClusterId) -> Result<(), TransportError> {
        let again = b"the node was assigned to a cluster";
        let mut registry = locked(&self.registry);
        match registry.cluster {
            Some(current) if current == cluster => return Ok(()),
            Some(current) => {
                return Err(TransportError::Refused {
                    addr: self.local_addr.to_string(),
                    reason: format!("this node belongs to cluster {current}, not {cluster}"),
                    cluster: None,
                });
            }
            None => registry.cluster = Some(cluster),
        }
        for (connection, peer_cluster) in registry.accepted.values() {
            if peer_cluster.is_some() {
                connection.close(EndCode::Reassigned.into(), again);
            }
        }
        drop(registry);
        let links: Vec<_> = locked(&self.links).values().cloned().collect();
        for link in links {
            link.close_if_unassigned(again);
        }
        Ok(())
    }
}

/// An accepted connection's entry in the registry, removed when this is dropped.
pub(super) struct Registration {
    endpoint: Arc<Inner>,
    number: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        locked(&self.endpoint.registry)
            .accepted
            .remove(&self.number);
    }
}

/// The guard of a mutex. None of this layer's critical sections can leave half a change behind, so
/// a panic of another holder is no reason to stop.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same of a lock that is written.
fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Which name the certificate of a node has to be valid for.
enum Names {
    /// The one that says that it is some node of the cluster.
    AnyNode,
    /// This one.
    Fixed(String),
    /// The host of the address that is dialed.
    Host,
}

impl Names {
    fn of(security: &Security) -> Self {
        match security {
            Security::Certificates(options) => {
                let fixed = options.server_name.clone();
                fixed.map_or(Self::Host, Self::Fixed)
            }
            Security::Insecure | Security::Key(_) | Security::Loopback => Self::AnyNode,
        }
    }

    fn of_node_at(&self, addr: &str) -> String {
        match self {
            Self::AnyNode => ANY_NODE.to_owned(),
            Self::Fixed(name) => name.clone(),
            Self::Host => {
                let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
                host.trim_matches(['[', ']']).to_owned()
            }
        }
    }
}

/// The settings of QUIC for dialing and for accepting.
fn configs(
    tls: Tls,
    transport: &Arc<TransportConfig>,
) -> (quinn::ClientConfig, quinn::ServerConfig) {
    let mut client = quinn::ClientConfig::new(tls.client);
    client.transport_config(Arc::clone(transport));
    let mut server = quinn::ServerConfig::with_crypto(tls.server);
    server
        .transport_config(Arc::clone(transport))
        .max_incoming(limits::CONNECTIONS_ACCEPTED_MAX)
        .incoming_buffer_size(64 << 10);
    (client, server)
}

fn transport_config(
    options: &EndpointOptions,
) -> Result<TransportConfig, quinn::VarIntBoundsExceeded> {
    let mut config = TransportConfig::default();
    // The first lost packet of a handshake is repeated after three times this: twice within the
    // connect time-out. QUIC's own 333 ms would miss it (RFC 9002 section 6.2.2).
    let initial_rtt =
        (options.connect_timeout / 12).clamp(Duration::from_millis(5), Duration::from_millis(333));
    config
        .initial_rtt(initial_rtt)
        .keep_alive_interval(Some(options.keep_alive))
        .max_idle_timeout(Some(IdleTimeout::try_from(options.idle_timeout)?))
        .max_concurrent_bidi_streams(limits::STREAMS_MAX.into())
        .max_concurrent_uni_streams(0_u32.into())
        .stream_receive_window(limits::STREAM_WINDOW_BYTES.into())
        .receive_window(VarInt::from_u32(limits::CONNECTION_WINDOW_BYTES))
        .send_window(limits::SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None);
    Ok(config)
}

/// A restarted node sends the same reset tokens as before, so its peers learn at the next packet
/// that their connections are dead, and need not wait for the idle time-out (RFC 9000, 10.3).
fn endpoint_config(secret: &[u8; 32]) -> quinn::EndpointConfig {
    let mut config =
        quinn::EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, secret)));
    let hasher = RandomState::new();
    config.cid_generator(move || {
        Box::new(ConnectionIds {
            hasher: hasher.clone(),
            drawn: AtomicU64::new(0),
        })
    });
    config
}

/// Connection ids that look random and say nothing. quinn's own generator marks its ids with a
/// number of the process, and then stays silent about the ids of the process before it.
struct ConnectionIds {
    hasher: RandomState,
    drawn: AtomicU64,
}

impl ConnectionIdGenerator for ConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let number = self.drawn.fetch_add(1, Ordering::Relaxed);
        ConnectionId::new(&self.hasher.hash_one(number).to_le_bytes())
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// What the peer is told when its connection is closed.
const WITHDRAWN: &str =
    "the certificate that was shown on this connection is not accepted any more";

const NOT_LOOPBACK: &str = "without a cluster key or certificates a node only binds a loopback \
    address, for anyone who reaches this port owns the data; make a key with `wallaby keygen` and \
    give every node `-cluster-key FILE` (or -node-cert and its kind), or say `-insecure-cluster`";
