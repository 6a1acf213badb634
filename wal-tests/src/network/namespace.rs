//! Namespaces of the system in which each node has an address, and a network card, of its own.
//!
//! ```text
//!   namespace of node 1      namespace of node 2      namespace of the test
//!     198.18.S.1               198.18.S.2               198.18.S.254
//!        TAP                      TAP                      TAP
//!         |                        |                        |
//!         +------------------- the switch ------------------+
//! ```
//!
//! Who has which hardware address is told to each beforehand: a question about it that is lost
//! would look to the nodes like an error, and not like a network that loses things.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use tappers::{Interface, Tap};

use super::frame::hardware_address;

/// Namespaces, gone with this value; what runs in them keeps them alive.
pub(super) struct Namespaces {
    subnet: u8,
    nodes: usize,
    /// Says that the subnet is taken.
    _lock: File,
}

impl Namespaces {
    /// A namespace for each node, and the network cards: the nodes', and last the one of the
    /// process itself.
    ///
    /// # Errors
    ///
    /// Why this machine does not let this process have them.
    pub(super) fn create(nodes: usize) -> Result<(Self, Vec<Tap>), String> {
        if !rustix::process::geteuid().is_root() {
            return Err("they take root".to_owned());
        }
        ip(&["-V"])?;
        let (subnet, lock) = reserve_subnet()?;
        let namespaces = Self {
            subnet,
            nodes,
            _lock: lock,
        };
        let mut devices = Vec::new();
        for place in 0..=nodes {
            if place < nodes {
                let name = namespaces.name(place);
                // Left over from a process that was killed.
                let _ = ip(&["netns", "delete", &name]);
                ip(&["netns", "add", &name])?;
            }
            devices.push(namespaces.furnish(place)?);
        }
        Ok((namespaces, devices))
    }

    /// The name of a node's namespace.
    pub(super) fn name(&self, node: usize) -> String {
        format!("wallaby-{}-{}", self.subnet, node + 1)
    }

    /// The address of a node, or of the test.
    pub(super) fn address(&self, place: usize) -> Ipv4Addr {
        let last = if place == self.nodes { 254 } else { place + 1 };
        let last = u8::try_from(last).expect("there are few nodes");
        Ipv4Addr::new(198, 18, self.subnet, last)
    }

    /// Whose hardware addresses these are.
    pub(super) fn subnet(&self) -> u8 {
        self.subnet
    }

    /// Makes the network card of a place.
    fn furnish(&self, place: usize) -> Result<Tap, String> {
        let device_name = format!("wal{}p{}", self.subnet, place + 1);
        let device = card(&device_name).map_err(|error| format!("{device_name}: {error}"))?;
        let hardware = |place| {
            let bytes = hardware_address(self.subnet, place);
            bytes.map(|byte| format!("{byte:02x}")).join(":")
        };
        let mut batch = format!(
            "link set dev {device_name} address {} addrgenmode none\n\
             address add {}/24 dev {device_name}\n\
             link set dev {device_name} up\n",
            hardware(place),
            self.address(place),
        );
        for other in (0..=self.nodes).filter(|&other| other != place) {
            let address = self.address(other);
            let lladdr = hardware(other);
            writeln!(
                batch,
                "neighbor replace {address} lladdr {lladdr} dev {device_name} nud permanent"
            )
            .expect("writing to a string");
        }
        if place == self.nodes {
            ip_batch(&[], &batch)?;
        } else {
            let name = self.name(place);
            ip(&["link", "set", "dev", &device_name, "netns", &name])?;
            let batch = format!("link set dev lo up\n{batch}");
            ip_batch(&["-netns", &name], &batch)?;
        }
        Ok(device)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for node in 0..self.nodes {
            // One that was not made cannot be deleted.
            let _ = ip(&["netns", "delete", &self.name(node)]);
        }
    }
}

/// A network card that sends to and receives from whoever has the value.
fn card(name: &str) -> std::io::Result<Tap> {
    let mut card = Tap::new_named(Interface::new(name)?)?;
    card.set_nonblocking(true)?;
    Ok(card)
}

/// A subnet of those that are for tests of networks (RFC 2544), and a lock that keeps it.
fn reserve_subnet() -> Result<(u8, File), String> {
    let dir = std::env::temp_dir().join("wallaby-test-subnets");
    std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    for subnet in 0..=u8::MAX {
        let file = dir.join(subnet.to_string());
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file)
            .map_err(|error| format!("{}: {error}", file.display()))?;
        if lock.try_lock().is_ok() {
            return Ok((subnet, lock));
        }
    }
    Err("all subnets are taken".to_owned())
}

/// Runs `ip` of iproute2.
fn ip(arguments: &[&str]) -> Result<(), String> {
    ip_batch(arguments, "")
}

/// Runs `ip` with commands to read, if there are any.
fn ip_batch(arguments: &[&str], batch: &str) -> Result<(), String> {
    let mut command = Command::new("ip");
    command.args(arguments);
    if !batch.is_empty() {
        command.args(["-batch", "-"]);
    }
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|error| format!("ip: {error}"))?;
    let mut stdin = child.stdin.take().expect("it is piped");
    // If it does not read, it says why.
    let _ = stdin.write_all(batch.as_bytes());
    drop(stdin);
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip {}: {}", arguments.join(" "), why.trim()))
}
