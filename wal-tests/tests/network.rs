//! The switch between network namespaces: every way of treating a link does to real datagrams of
//! real sockets what it says, in its own direction and in no other.
//!
//! Where namespaces cannot be had, these tests say so on stderr and prove nothing; with
//! `WAL_NETWORK=namespaces` they fail.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use wal_tests::network::{Conduct, Switched, addresses_at};

/// As many as the receiver's socket keeps while nobody reads.
const NUMBERS: u32 = 200;

struct Pair {
    switched: Switched,
    /// One per node.
    sockets: Vec<UdpSocket>,
}

impl Pair {
    fn open() -> Option<Self> {
        let switched = Switched::open_if_possible(2, 7)?;
        let sockets = (0..2).map(|node| socket(&switched, node)).collect();
        Some(Self { switched, sockets })
    }

    fn set(&self, conduct: Conduct) {
        self.switched.set(0, 1, conduct);
    }

    /// Has node 0 send numbers to node 1, and returns what arrived, in that order; a datagram that
    /// is not as it was sent counts as `None`.
    fn send_numbers(&self) -> Vec<Option<u32>> {
        let (_, to) = addresses_at(self.switched.address(1));
        for number in 0..NUMBERS {
            self.sockets[0].send_to(&datagram(number), to).unwrap();
            // Far below what would fill the card's queue.
            std::thread::sleep(Duration::from_micros(200));
        }
        self.received()
    }

    /// All that arrives at node 1 until nothing has for a while.
    fn received(&self) -> Vec<Option<u32>> {
        let mut buffer = [0; 200];
        let mut found = Vec::new();
        while let Ok((length, _)) = self.sockets[1].recv_from(&mut buffer) {
            let number = u32::from_le_bytes(buffer[..4].try_into().unwrap());
            found.push((buffer[..length] == datagram(number)).then_some(number));
        }
        found
    }
}

/// A socket in the namespace of a node.
fn socket(switched: &Switched, node: usize) -> UdpSocket {
    let (_, own) = addresses_at(switched.address(node));
    let namespace = File::open(format!("/run/netns/{}", switched.namespace(node))).unwrap();
    // A thread of its own, which stays there; the socket does as well.
    let open = move || {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), kind).unwrap();
        let socket = UdpSocket::bind(own).unwrap();
        let quiet = Duration::from_millis(300);
        socket.set_read_timeout(Some(quiet)).unwrap();
        socket
    };
    std::thread::spawn(open).join().unwrap()
}

/// The number again and again, so that no flipped bit makes another one of it.
fn datagram(number: u32) -> Vec<u8> {
    number.to_le_bytes().repeat(25)
}

fn in_order() -> Vec<Option<u32>> {
    (0..NUMBERS).map(Some).collect()
}

#[test]
fn an_open_link_carries_everything_once_and_in_order() {
    let Some(pair) = Pair::open() else { return };
    assert_eq!(pair.send_numbers(), in_order());
    assert_eq!(pair.switched.counts().lost, 0);
}

#[test]
fn a_cut_link_carries_nothing_and_the_other_direction_does_not_care() {
    let Some(pair) = Pair::open() else { return };
    pair.set(Conduct::CUT);
    assert_eq!(pair.send_numbers(), []);
    let (_, to) = addresses_at(pair.switched.address(0));
    pair.sockets[1].send_to(&datagram(5), to).unwrap();
    assert!(pair.sockets[0].recv_from(&mut [0; 200]).is_ok());
    pair.set(Conduct::OPEN);
    assert_eq!(pair.send_numbers(), in_order());
}

#[test]
fn a_held_link_keeps_what_it_is_given_until_it_opens() {
    let Some(pair) = Pair::open() else { return };
    let hold = Conduct {
        hold: true,
        ..Conduct::OPEN
    };
    pair.set(hold);
    assert_eq!(pair.send_numbers(), []);
    pair.set(Conduct::OPEN);
    assert_eq!(pair.received(), in_order());
}

#[test]
fn loss_loses_some_and_duplication_repeats_some() {
    let Some(pair) = Pair::open() else { return };
    let lossy = Conduct {
        loss: 50,
        ..Conduct::OPEN
    };
    pair.set(lossy);
    let found = pair.send_numbers();
    assert!((50..150).contains(&found.len()), "{} of 200", found.len());
    assert!(found.is_sorted(), "what is not lost is in order");
    let twice = Conduct {
        duplicate: 50,
        ..Conduct::OPEN
    };
    pair.set(twice);
    let found = pair.send_numbers();
    assert!((250..350).contains(&found.len()), "{} of 200", found.len());
    assert!(found.is_sorted() && found.first() == Some(&Some(0)));
}

#[test]
fn reordering_changes_the_order_and_nothing_else() {
    let Some(pair) = Pair::open() else { return };
    let conducts = [
        Conduct {
            reorder: 30,
            ..Conduct::OPEN
        },
        Conduct {
            jitter: Duration::from_millis(20),
            ..Conduct::OPEN
        },
    ];
    for conduct in conducts {
        pair.set(conduct);
        let mut found = pair.send_numbers();
        assert!(!found.is_sorted(), "{conduct:?}");
        found.sort_unstable();
        assert_eq!(found, in_order(), "{conduct:?}");
    }
}

#[test]
fn corruption_reaches_the_receiver_whose_system_does_not_see_it() {
    let Some(pair) = Pair::open() else { return };
    let corrupt = Conduct {
        corrupt: 50,
        ..Conduct::OPEN
    };
    pair.set(corrupt);
    let found = pair.send_numbers();
    assert_eq!(found.len(), 200, "none is lost on the way");
    let damaged = found.iter().filter(|number| number.is_none()).count();
    assert!((50..150).contains(&damaged), "{damaged} of 200");
    assert_eq!(pair.switched.counts().corrupted, damaged);
}

#[test]
fn delay_and_a_limited_rate_make_what_arrives_arrive_later() {
    let Some(pair) = Pair::open() else { return };
    let slow = Conduct {
        delay: Duration::from_millis(100),
        ..Conduct::OPEN
    };
    pair.set(slow);
    let (_, to) = addresses_at(pair.switched.address(1));
    let begin = Instant::now();
    pair.sockets[0].send_to(&datagram(1), to).unwrap();
    pair.sockets[1].recv_from(&mut [0; 200]).unwrap();
    assert!(begin.elapsed() >= slow.delay);
    let narrow = Conduct {
        bytes_per_second: Some(10_000),
        ..Conduct::OPEN
    };
    pair.set(narrow);
    // At 142 bytes each, 20 of them take 284 ms, and of 200 the queue drops most.
    let begin = Instant::now();
    for number in 0..20 {
        pair.sockets[0].send_to(&datagram(number), to).unwrap();
    }
    for number in 0..20 {
        let mut buffer = [0; 200];
        pair.sockets[1].recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[..4], u32::to_le_bytes(number));
    }
    assert!(begin.elapsed() >= Duration::from_millis(280));
    assert!(pair.send_numbers().len() < 100);
}
