//! Links between nodes that a test can cut, hold and make lossy, each direction by itself.
//!
//! Every node has a gate: the address that it advertises instead of its own. Whatever a peer sends
//! to a gate is sent on to the node from a socket that belongs to that peer, and whatever the node
//! answers to that socket leaves through the gate again, because QUIC expects answers from where it
//! sent to. So each datagram is known by the node that sent it and the node that it is for.
//!
//! ```text
//!   node A  --->  gate of B  ===>  socket for A at B  --->  node B      dialed by A
//!   node A  <---  gate of B  <===  socket for A at B  <---  node B      answers to A
//! ```

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::seed::Random;

/// What happens to the datagrams from one node to another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rule {
    /// All are lost.
    Cut,
    /// They wait until the rule changes; above a few thousand the oldest are lost.
    Hold,
    /// So many out of a hundred are lost.
    Lossy(u8),
    /// They arrive.
    Open,
}

/// The network between some nodes. Ends with the value.
pub struct Links {
    shared: Arc<Shared>,
    gates: Vec<SocketAddr>,
    /// Keeps the forwarders running; gone only when the value is.
    runtime: Option<tokio::runtime::Runtime>,
}

struct Shared {
    /// Where the nodes really listen.
    nodes: Vec<SocketAddr>,
    state: Mutex<State>,
}

struct State {
    rules: Vec<Vec<Rule>>,
    held: Vec<Vec<VecDeque<Datagram>>>,
    random: Random,
    lost: usize,
}

struct Datagram {
    by: Arc<tokio::net::UdpSocket>,
    to: SocketAddr,
    bytes: Vec<u8>,
}

impl Links {
    /// All links open between nodes that listen, or will listen, on these addresses.
    ///
    /// # Panics
    ///
    /// When there are no sockets to be had.
    #[must_use]
    pub fn open(nodes: &[SocketAddr], seed: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("links")
            .enable_all()
            .build()
            .expect("a runtime can be started");
        let row = |_| vec![Rule::Open; nodes.len()];
        let shared = Arc::new(Shared {
            nodes: nodes.to_vec(),
            state: Mutex::new(State {
                rules: nodes.iter().map(row).collect(),
                held: nodes
                    .iter()
                    .map(|_| nodes.iter().map(|_| VecDeque::new()).collect())
                    .collect(),
                random: Random::new(seed),
                lost: 0,
            }),
        });
        let inside = runtime.enter();
        let gates = (0..nodes.len())
            .map(|node| open_gate(&shared, node))
            .collect();
        drop(inside);
        Self {
            shared,
            gates,
            runtime: Some(runtime),
        }
    }

    /// How many nodes it connects.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.gates.len()
    }

    /// The address under which the others are to know a node.
    #[must_use]
    pub fn gate(&self, node: usize) -> SocketAddr {
        self.gates[node]
    }

    /// Sets the rule for what `from` sends to `to`; datagrams held until now arrive.
    pub fn set(&self, from: usize, to: usize, rule: Rule) {
        let released = {
            let mut state = self.shared.lock();
            state.rules[from][to] = rule;
            match rule {
                Rule::Cut => {
                    state.held[from][to].clear();
                    return;
                }
                Rule::Hold => return,
                Rule::Lossy(_) | Rule::Open => std::mem::take(&mut state.held[from][to]),
            }
        };
        for datagram in released {
            datagram.send();
        }
    }

    /// Sets the rule for both directions between two nodes.
    pub fn set_pair(&self, one: usize, other: usize, rule: Rule) {
        self.set(one, other, rule);
        self.set(other, one, rule);
    }

    /// Sets the rule for all links from and to a node.
    pub fn set_around(&self, node: usize, rule: Rule) {
        for other in (0..self.gates.len()).filter(|&other| other != node) {
            self.set_pair(node, other, rule);
        }
    }

    /// Datagrams lost to rules so far.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.shared.lock().lost
    }

    /// Sets the rule for all links.
    pub fn set_all(&self, rule: Rule) {
        for node in 0..self.gates.len() {
            self.set_around(node, rule);
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Without waiting: a test may be asynchronous itself.
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    /// Decides what becomes of a datagram.
    fn pass(&self, from: usize, to: usize, datagram: Datagram) {
        let mut state = self.lock();
        match state.rules[from][to] {
            Rule::Cut => state.lost += 1,
            Rule::Hold => {
                let held = &mut state.held[from][to];
                held.push_back(datagram);
                if held.len() > HELD_MAX {
                    held.pop_front();
                    state.lost += 1;
                }
            }
            Rule::Lossy(percent) => {
                if state.random.below(100) < usize::from(percent) {
                    state.lost += 1;
                } else {
                    datagram.send();
                }
            }
            Rule::Open => datagram.send(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Datagram {
    /// A full socket loses it, as networks do.
    fn send(&self) {
        let _ = self.by.try_send_to(&self.bytes, self.to);
    }
}

/// Starts the forwarders in front of one node and returns the address of its gate.
fn open_gate(shared: &Arc<Shared>, node: usize) -> SocketAddr {
    let (gate, addr) = socket();
    let mut sockets = vec![None; shared.nodes.len()];
    for peer in (0..shared.nodes.len()).filter(|&peer| peer != node) {
        let (by, _) = socket();
        sockets[peer] = Some(Arc::clone(&by));
        let (shared, gate) = (Arc::clone(shared), Arc::clone(&gate));
        tokio::spawn(async move {
            let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
            loop {
                // An error tells of an earlier datagram that nobody was there to receive.
                let Ok((length, source)) = by.recv_from(&mut buffer).await else {
                    continue;
                };
                if source == shared.nodes[node] {
                    let answer = Datagram {
                        by: Arc::clone(&gate),
                        to: shared.nodes[peer],
                        bytes: buffer[..length].to_vec(),
                    };
                    shared.pass(node, peer, answer);
                }
            }
        });
    }
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let Ok((length, source)) = gate.recv_from(&mut buffer).await else {
                continue;
            };
            let Some(peer) = shared.nodes.iter().position(|&known| known == source) else {
                continue;
            };
            if let Some(by) = &sockets[peer] {
                let datagram = Datagram {
                    by: Arc::clone(by),
                    to: shared.nodes[node],
                    bytes: buffer[..length].to_vec(),
                };
                shared.pass(peer, node, datagram);
            }
        }
    });
    addr
}

fn socket() -> (Arc<tokio::net::UdpSocket>, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free UDP port");
    let addr = socket.local_addr().expect("a bound socket has an address");
    socket
        .set_nonblocking(true)
        .expect("a socket can be made non-blocking");
    let socket = tokio::net::UdpSocket::from_std(socket).expect("called inside the runtime");
    (Arc::new(socket), addr)
}

/// The largest UDP datagram.
const DATAGRAM_BYTES_MAX: usize = 64 << 10;

/// Datagrams that a held link keeps.
const HELD_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn node() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let addr = socket.local_addr().unwrap();
        (socket, addr)
    }

    fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 100];
        let (length, source) = socket.recv_from(&mut buffer).unwrap();
        (buffer[..length].to_vec(), source)
    }

    #[test]
    fn a_link_carries_questions_and_answers_and_obeys_the_rule_of_its_direction() {
        let ((one, one_addr), (two, two_addr)) = (node(), node());
        let links = Links::open(&[one_addr, two_addr], 1);
        one.send_to(b"question", links.gate(1)).unwrap();
        let (bytes, asker) = receive(&two);
        assert_eq!(bytes, b"question");
        two.send_to(b"answer", asker).unwrap();
        assert_eq!(receive(&one), (b"answer".to_vec(), links.gate(1)));
        // The answers of node 2 are cut, its own questions too; those of node 1 are held.
        links.set(1, 0, Rule::Cut);
        links.set(0, 1, Rule::Hold);
        two.send_to(b"lost", asker).unwrap();
        two.send_to(b"lost", links.gate(0)).unwrap();
        for held in [b"first", b"secnd"] {
            one.send_to(held, links.gate(1)).unwrap();
        }
        while links.lost() < 2 {
            std::thread::sleep(Duration::from_millis(1));
        }
        links.set(0, 1, Rule::Lossy(0));
        assert_eq!(receive(&two).0, b"first");
        assert_eq!(receive(&two).0, b"secnd");
        links.set(1, 0, Rule::Open);
        two.send_to(b"again", asker).unwrap();
        assert_eq!(receive(&one).0, b"again");
    }
}
