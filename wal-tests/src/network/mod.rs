//! The network between the nodes of a test, each with an address of its own where the machine lets
//! it, and what a test can do to it.
//!
//! | | namespaces | loopback |
//! |---|---|---|
//! | takes | root, `/dev/net/tun`, `ip` and `nsenter` | nothing |
//! | a node has | an address and a network card of its own | two ports |
//! | carries | frames: QUIC and HTTP, what the system makes of them included | datagrams of QUIC |
//! | can be cut, held and made lossy | yes, the way to the clients as well | between nodes |
//! | delay, jitter, rate, duplicates, other order, flipped bits | yes | no |
//!
//! Namespaces are used where they can be had; where they cannot, the first test that wanted them
//! says so on stderr, past the harness that keeps what passing tests print. `WAL_NETWORK=namespaces`
//! makes it a failure not to get them, `WAL_NETWORK=loopback` does without.

mod conduct;
mod frame;
mod namespace;
mod switch;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Once;

use crate::links::{Links, Rule};
use namespace::Namespaces;
use switch::Switch;

pub use conduct::Conduct;
pub use switch::Counts;

/// What is between the nodes.
pub enum Network {
    /// Gates on loopback.
    Gates(Links),
    /// A switch between namespaces.
    Switched(Switched),
}

/// Namespaces and the switch between them.
pub struct Switched {
    // Ends first: then no card is in use any more when the namespaces go.
    switch: Switch,
    namespaces: Namespaces,
    nodes: usize,
}

impl Switched {
    /// A switch between so many nodes and the test itself, all links open.
    ///
    /// # Errors
    ///
    /// Why this machine does not let this process have it.
    pub fn open(nodes: usize, seed: u64) -> Result<Self, String> {
        let (namespaces, devices) = Namespaces::create(nodes)?;
        let switch = Switch::start(devices, namespaces.subnet(), seed);
        Ok(Self {
            switch,
            namespaces,
            nodes,
        })
    }

    /// As [`Self::open`]; `None` where the test is to go on without, and why is said.
    ///
    /// # Panics
    ///
    /// When namespaces were demanded and cannot be had.
    #[must_use]
    pub fn open_if_possible(nodes: usize, seed: u64) -> Option<Self> {
        let wanted = std::env::var("WAL_NETWORK").unwrap_or_default();
        if wanted == "loopback" {
            announce("WAL_NETWORK=loopback");
            return None;
        }
        match Self::open(nodes, seed) {
            Ok(switched) => Some(switched),
            Err(why) => {
                assert_ne!(wanted, "namespaces", "no network namespaces: {why}");
                announce(&why);
                None
            }
        }
    }

    /// The place of the test itself, after those of the nodes: where the clients are.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.nodes
    }

    /// The address of a node.
    #[must_use]
    pub fn address(&self, node: usize) -> Ipv4Addr {
        self.namespaces.address(node)
    }

    /// The name of a node's namespace, as `ip netns` knows it.
    #[must_use]
    pub fn namespace(&self, node: usize) -> String {
        self.namespaces.name(node)
    }

    /// Sets how frames travel from one place to another.
    pub fn set(&self, from: usize, to: usize, conduct: Conduct) {
        self.switch.set(from, to, conduct);
    }

    /// What became of the frames so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.switch.counts()
    }
}

impl Network {
    /// How many nodes it connects.
    #[must_use]
    pub fn nodes(&self) -> usize {
        match self {
            Self::Gates(links) => links.nodes(),
            Self::Switched(switched) => switched.nodes,
        }
    }

    /// The switch, with all that it can do and gates cannot.
    #[must_use]
    pub fn switched(&self) -> Option<&Switched> {
        match self {
            Self::Gates(_) => None,
            Self::Switched(switched) => Some(switched),
        }
    }

    /// What it is, for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gates(_) => "UDP gates on loopback",
            Self::Switched(_) => "a switch between network namespaces",
        }
    }

    /// Sets the rule for what `from` sends to `to`; what was held until now arrives.
    pub fn set(&self, from: usize, to: usize, rule: Rule) {
        match self {
            Self::Gates(links) => links.set(from, to, rule),
            Self::Switched(switched) => switched.set(from, to, rule.into()),
        }
    }

    /// Sets the rule for both directions between two nodes.
    pub fn set_pair(&self, one: usize, other: usize, rule: Rule) {
        self.set(one, other, rule);
        self.set(other, one, rule);
    }

    /// Sets the rule for all links from and to a node, but those to the clients.
    pub fn set_around(&self, node: usize, rule: Rule) {
        for other in (0..self.nodes()).filter(|&other| other != node) {
            self.set_pair(node, other, rule);
        }
    }

    /// Sets the rule for all links between nodes.
    pub fn set_all(&self, rule: Rule) {
        for node in 0..self.nodes() {
            self.set_around(node, rule);
        }
    }

    /// Datagrams or frames lost so far.
    #[must_use]
    pub fn lost(&self) -> usize {
        match self {
            Self::Gates(links) => links.lost(),
            Self::Switched(switched) => switched.counts().lost,
        }
    }
}

/// The ports of a node that has an address of its own: rqlite's.
#[must_use]
pub fn addresses_at(address: Ipv4Addr) -> (SocketAddr, SocketAddr) {
    ((address, 4001).into(), (address, 4002).into())
}

/// Tells whoever runs the tests, once, and not only when one fails.
fn announce(why: &str) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Not by `eprintln`, which the harness of the tests keeps to itself.
        let _ = writeln!(
            std::io::stderr(),
            "NOTE: no network namespaces ({why}); the nodes run on loopback, behind UDP gates"
        );
    });
}
