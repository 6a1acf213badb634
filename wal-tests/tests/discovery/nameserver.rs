//! A nameserver for a few names, over UDP.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};

/// What it knows; a test may add to it at any time.
#[derive(Default)]
pub(crate) struct Zone {
    /// Addresses by name, without the dot at the end.
    pub(crate) addresses: BTreeMap<String, Vec<Ipv4Addr>>,
    /// Ports and hosts by the name of a service.
    pub(crate) services: BTreeMap<String, Vec<(u16, String)>>,
}

/// Starts one that ends with the process.
pub(crate) fn start() -> (SocketAddr, Arc<Mutex<Zone>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    let zone = Arc::<Mutex<Zone>>::default();
    let known = Arc::clone(&zone);
    std::thread::spawn(move || {
        let mut query = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            let reply = answer(&query[..length], &known.lock().unwrap());
            // Whoever asked may be gone.
            let _ = socket.send_to(&reply, from);
        }
    });
    (addr, zone)
}

/// RFC 1035, 4: header, question, answers.
fn answer(query: &[u8], zone: &Zone) -> Vec<u8> {
    let mut name = Vec::new();
    let mut at = 12;
    while query[at] != 0 {
        let length = usize::from(query[at]);
        name.push(String::from_utf8_lossy(&query[at + 1..=at + length]).to_lowercase());
        at += length + 1;
    }
    let question = &query[12..at + 5];
    let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
    let name = name.join(".");
    let addresses = zone.addresses.get(&name);
    let services = zone.services.get(&name);
    let mut data: Vec<Vec<u8>> = Vec::new();
    match kind {
        KIND_A => {
            let found = addresses.into_iter().flatten();
            data.extend(found.map(|addr| addr.octets().to_vec()));
        }
        KIND_SRV => data.extend(services.into_iter().flatten().map(service)),
        _ => {}
    }
    let known = addresses.is_some() || services.is_some();
    let mut reply = query[..2].to_vec();
    reply.extend([0x85, if known { 0x80 } else { 0x83 }, 0, 1]);
    reply.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    reply.extend([0; 4]);
    reply.extend(question);
    for data in data {
        // The name as in the question, the kind, the class, 60 seconds.
        reply.extend([0xc0, 12]);
        reply.extend(kind.to_be_bytes());
        reply.extend([0, 1, 0, 0, 0, 60]);
        reply.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        reply.extend(data);
    }
    reply
}

/// Priority, weight, port, host.
fn service((port, host): &(u16, String)) -> Vec<u8> {
    let mut data = vec![0, 1, 0, 1];
    data.extend(port.to_be_bytes());
    for label in host.split('.') {
        data.push(u8::try_from(label.len()).unwrap());
        data.extend(label.as_bytes());
    }
    data.push(0);
    data
}

const KIND_A: u16 = 1;
const KIND_SRV: u16 = 33;
