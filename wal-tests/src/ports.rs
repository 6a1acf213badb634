//! Ports on loopback that nobody else takes while a test runs.
//!
//! A port that the system handed out and got back may be given to any connection a moment later,
//! which is then in the way of the node that is told to listen there. So the ports come from below
//! those that systems hand out, and a locked file says that one is taken, to every test process.

use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::ops::Range;
use std::sync::Mutex;

/// Below the ports for outgoing connections of Linux (32768) and of others (49152), and above the
/// well-known ones.
const RANGE: Range<u16> = 12_000..32_000;

/// The locks live as long as the process, since a node may come back to its port at any time.
static LOCKS: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// `count` ports, all different, free for TCP and UDP, and this process's own until it ends.
///
/// # Panics
///
/// When there is no directory for the lock files, or no port is free.
#[must_use]
pub fn reserve(count: usize) -> Vec<u16> {
    (0..count).map(|_| reserve_one()).collect()
}

fn reserve_one() -> u16 {
    let dir = std::env::temp_dir().join("wallaby-test-ports");
    std::fs::create_dir_all(&dir).expect("a directory for lock files can be made");
    for _ in 0..1000 {
        let port = random_port();
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join(port.to_string()))
            .expect("a lock file can be made");
        if file.try_lock().is_ok() && is_free(port) {
            LOCKS
                .lock()
                .expect("nothing panics while it holds this lock")
                .push(file);
            return port;
        }
    }
    panic!("no free port in {RANGE:?}");
}

fn random_port() -> u16 {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).expect("the system has random bytes");
    RANGE.start + u16::from_le_bytes(bytes) % (RANGE.end - RANGE.start)
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports_are_free_and_different() {
        let mut ports = reserve(50);
        assert!(
            ports
                .iter()
                .all(|port| RANGE.contains(port) && is_free(*port))
        );
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 50);
    }
}
