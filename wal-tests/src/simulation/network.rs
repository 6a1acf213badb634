//! The network: datagrams between nodes are delayed, lost, doubled, held and cut as each direction
//! of each link is told, and delivered by a thread of the world.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use wallaby::transport::Sockets;

use super::threads;
use crate::seed::Random;

/// One direction between two nodes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Link {
    /// Nothing arrives.
    pub is_cut: bool,
    /// What is sent waits until this ends.
    pub is_held: bool,
    /// So many of 100 are lost.
    pub lost_percent: u64,
    /// So many of 100 arrive twice.
    pub doubled_percent: u64,
    /// The shortest and the longest way, in microseconds; so datagrams overtake each other.
    pub delay_micros: (u64, u64),
}

impl Link {
    /// As between machines in one room.
    pub const GOOD: Self = Self {
        is_cut: false,
        is_held: false,
        lost_percent: 0,
        doubled_percent: 0,
        delay_micros: (100, 600),
    };
}

/// What has happened to datagrams so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Sent by nodes.
    pub sent: u64,
    /// Lost on the way, for whatever reason.
    pub lost: u64,
    /// A checksum over all of them: who sent what to whom, and when.
    pub digest: u32,
}

/// The network. Clones are the same one.
#[derive(Clone)]
pub struct Network(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    links: Vec<Vec<Link>>,
    sockets: BTreeMap<SocketAddr, Arc<Inbox>>,
    under_way: BinaryHeap<Reverse<Datagram>>,
    held: VecDeque<Datagram>,
    random: Random,
    traffic: Traffic,
    digest: crc32fast::Hasher,
}

/// In the order in which they arrive.
#[derive(Clone, Eq, Ord, PartialEq, PartialOrd)]
struct Datagram {
    arrives: Instant,
    number: u64,
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

impl Network {
    /// A good network between so many nodes, and the thread that delivers.
    ///
    /// # Panics
    ///
    /// When there are no more threads to be had.
    #[must_use]
    pub fn start(nodes: usize, random: Random) -> Self {
        let network = Self(Arc::new(Shared {
            state: Mutex::new(State {
                links: vec![vec![Link::GOOD; nodes]; nodes],
                sockets: BTreeMap::new(),
                under_way: BinaryHeap::new(),
                held: VecDeque::new(),
                random,
                traffic: Traffic::default(),
                digest: crc32fast::Hasher::new(),
            }),
            changed: Condvar::new(),
        }));
        let shared = Arc::clone(&network.0);
        let thread = std::thread::Builder::new().name("network".to_owned());
        let started = thread.spawn(move || shared.deliver());
        drop(started.expect("a thread can be started"));
        network
    }

    /// Where a node listens.
    #[must_use]
    pub fn address(node: usize) -> SocketAddr {
        let last = u8::try_from(node + 1).expect("a few nodes");
        SocketAddr::from((Ipv4Addr::new(10, 0, 0, last), 4002))
    }

    /// Changes the link from one node to another.
    pub fn change(&self, from: usize, to: usize, change: impl FnOnce(&mut Link)) {
        let mut state = self.0.lock();
        change(&mut state.links[from][to]);
        if !state.links[from][to].is_held {
            let is_this =
                |datagram: &Datagram| (node_at(datagram.from), node_at(datagram.to)) == (from, to);
            let (released, held) = std::mem::take(&mut state.held)
                .into_iter()
                .partition(|datagram| is_this(datagram));
            state.held = held;
            let released: VecDeque<Datagram> = released;
            for datagram in released {
                state.send(datagram);
            }
            self.0.changed.notify_one();
        }
    }

    /// Changes all links from and to a node.
    pub fn change_around(&self, node: usize, change: impl Fn(&mut Link)) {
        for other in (0..self.nodes()).filter(|&other| other != node) {
            self.change(node, other, &change);
            self.change(other, node, &change);
        }
    }

    /// Makes all links good.
    pub fn heal(&self) {
        for node in 0..self.nodes() {
            self.change_around(node, |link| *link = Link::GOOD);
        }
    }

    fn nodes(&self) -> usize {
        self.0.lock().links.len()
    }

    /// Takes away the socket of a node that crashed.
    pub fn unplug(&self, node: usize) {
        self.0.lock().sockets.remove(&Self::address(node));
    }

    /// What has happened so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let state = self.0.lock();
        Traffic {
            digest: state.digest.clone().finalize(),
            ..state.traffic
        }
    }
}

fn node_at(addr: SocketAddr) -> usize {
    match addr {
        SocketAddr::V4(addr) => usize::from(addr.ip().octets()[3]).saturating_sub(1),
        SocketAddr::V6(_) => usize::MAX,
    }
}

impl State {
    /// When the next datagram arrives.
    fn first(&self) -> Option<Instant> {
        self.under_way.peek().map(|Reverse(first)| first.arrives)
    }

    /// Decides what becomes of a datagram.
    fn send(&mut self, datagram: Datagram) {
        let (from, to) = (node_at(datagram.from), node_at(datagram.to));
        let Some(link) = self.links.get(from).and_then(|row| row.get(to)).copied() else {
            self.traffic.lost += 1;
            return;
        };
        if link.is_cut || self.random.chance(link.lost_percent) {
            self.traffic.lost += 1;
            return;
        }
        if link.is_held {
            self.held.push_back(datagram);
            if self.held.len() > HELD_MAX {
                self.held.pop_front();
                self.traffic.lost += 1;
            }
            return;
        }
        let copies = 1 + usize::from(self.random.chance(link.doubled_percent));
        for _ in 0..copies {
            let (shortest, longest) = link.delay_micros;
            let micros = shortest + self.random.number_below(longest - shortest + 1);
            let arrives = Instant::now() + Duration::from_micros(micros);
            self.traffic.sent += 1;
            let number = self.traffic.sent;
            self.under_way.push(Reverse(Datagram {
                arrives,
                number,
                ..datagram.clone()
            }));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let wait = state.first();
            let wait = wait.map(|first| first.saturating_duration_since(now));
            state = match wait {
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => {
                    let Some(Reverse(datagram)) = state.under_way.pop() else {
                        continue;
                    };
                    let inbox = state.sockets.get(&datagram.to).cloned();
                    drop(state);
                    if let Some(inbox) = inbox {
                        inbox.push(datagram);
                    }
                    self.lock()
                }
                Some(wait) => {
                    let waited = self.changed.wait_timeout(state, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a simulated network")
    }
}

impl Sockets for Network {
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let mut state = self.0.lock();
        if state.sockets.contains_key(&addr) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let inbox = Arc::new(Inbox::default());
        state.sockets.insert(addr, Arc::clone(&inbox));
        Ok(Arc::new(Socket {
            network: self.clone(),
            addr,
            inbox,
        }))
    }
}

/// What has arrived for a socket.
#[derive(Default)]
struct Inbox(Mutex<(VecDeque<Datagram>, Option<Waker>)>);

impl Inbox {
    fn push(&self, datagram: Datagram) {
        let waker = {
            let mut inbox = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // A receiver that is too slow loses some.
            if inbox.0.len() < INBOX_MAX {
                inbox.0.push_back(datagram);
            }
            inbox.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

struct Socket {
    network: Network,
    addr: SocketAddr,
    inbox: Arc<Inbox>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a simulated socket on {}", self.addr)
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut state = self.network.0.lock();
        let now = threads::elapsed().as_nanos();
        state.digest.update(&now.to_le_bytes());
        let (from, to) = (node_at(self.addr), node_at(transmit.destination));
        state.digest.update(format!("{from}>{to}").as_bytes());
        state.digest.update(transmit.contents);
        let first = state.first();
        state.send(Datagram {
            arrives: Instant::now(),
            number: 0,
            from: self.addr,
            to: transmit.destination,
            bytes: transmit.contents.to_vec(),
        });
        let is_first = state.first() != first;
        drop(state);
        if is_first {
            self.network.0.changed.notify_one();
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let Some(datagram) = inbox.0.pop_front() else {
                break;
            };
            let length = datagram.bytes.len().min(buffer.len());
            buffer[..length].copy_from_slice(&datagram.bytes[..length]);
            *meta = RecvMeta::default();
            meta.addr = datagram.from;
            meta.len = length;
            meta.stride = length;
            count += 1;
        }
        if count == 0 {
            inbox.1 = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut state = self.network.0.lock();
        let bound = state.sockets.get(&self.addr);
        if bound.is_some_and(|inbox| Arc::ptr_eq(inbox, &self.inbox)) {
            state.sockets.remove(&self.addr);
        }
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Datagrams that held links keep.
const HELD_MAX: usize = 4096;
/// Datagrams that a socket keeps until they are read: 4 MiB of 1400 bytes each.
const INBOX_MAX: usize = 3000;
