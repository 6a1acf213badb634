//! The hello: the first stream of each connection, on which the two nodes find out whether they
//! want to talk to each other.
//!
//! The dialer sends a frame of role `Hello`, the other answers one of role `HelloReply`. All
//! fields are little-endian.
//!
//! Hello:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | 0x89 `wallby` 0x0a |
//! | 8 | 4 | version | 1 |
//! | 12 | 4 | flags | zero |
//! | 16 | 16 | cluster | the dialer's cluster id; zero: not assigned to one yet |
//! | 32 | 8 | node | the dialer's Raft id, not zero |
//! | 40 | 8 | expected | the Raft id that the dialer wants to reach; zero: whoever is there |
//!
//! Reply:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | as above |
//! | 8 | 4 | version | of the node that answers |
//! | 12 | 1 | verdict | see [`Verdict`] |
//! | 13 | 3 | reserved | zero |
//! | 16 | 16 | cluster | of the node that answers; zero: not assigned |
//! | 32 | 8 | node | its Raft id, not zero |
//!
//! Magic, version and verdict keep their places in every version, so that a difference of versions
//! can be named. A reader looks at the version first and at nothing else if it is not its own.

use std::sync::Arc;

use super::client::Priority;
use super::frame::Role;
use super::stream::{FrameReader, FrameWriter};
use super::{PeerIdentity, TransportError};
use crate::wal::ClusterId;

/// What the dialer says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hello {
    /// The dialer's cluster; `None`: not assigned to one yet.
    pub cluster: Option<ClusterId>,
    /// The dialer's Raft id.
    pub node: u64,
    /// The Raft id that the dialer wants to reach; `None`: whoever is there.
    pub expected: Option<u64>,
}

impl Hello {
    /// The bytes of the hello.
    #[must_use]
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&cluster_number(self.cluster).to_le_bytes());
        bytes[32..40].copy_from_slice(&self.node.to_le_bytes());
        bytes[40..].copy_from_slice(&self.expected.unwrap_or(0).to_le_bytes());
        bytes
    }

    /// Reads a hello.
    ///
    /// # Errors
    /// The verdict to answer: [`Verdict::VersionUnsupported`] or [`Verdict::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Verdict> {
        if version_of(bytes).ok_or(Verdict::Malformed)? != VERSION {
            return Err(Verdict::VersionUnsupported);
        }
        let bytes: &[u8; HELLO_BYTES] = bytes.try_into().map_err(|_| Verdict::Malformed)?;
        let hello = Self {
            cluster: cluster_at_16(bytes),
            node: number_at(bytes, 32),
            expected: Some(number_at(bytes, 40)).filter(|node| *node != 0),
        };
        if bytes[12..16] != [0; 4] || hello.node == 0 {
            return Err(Verdict::Malformed);
        }
        Ok(hello)
    }

    /// What a node answers to this hello. `certified` is the node that the dialer's certificate
    /// names; `None` in a cluster without a key.
    #[must_use]
    pub fn judge(
        &self,
        certified: Option<u64>,
        own_node: u64,
        own_cluster: Option<ClusterId>,
    ) -> Verdict {
        if certified.is_some_and(|node| node != self.node) {
            return Verdict::CertificateDiffers;
        }
        if let (Some(theirs), Some(ours)) = (self.cluster, own_cluster)
            && theirs != ours
        {
            return Verdict::ClusterDiffers;
        }
        if self.expected.is_some_and(|node| node != own_node) {
            return Verdict::NodeDiffers;
        }
        Verdict::Accepted
    }
}

/// What the other node answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HelloReply {
    /// Whether it accepts the dialer.
    pub verdict: Verdict,
    /// Its cluster; `None`: not assigned to one yet.
    pub cluster: Option<ClusterId>,
    /// Its Raft id.
    pub node: u64,
}

impl HelloReply {
    /// The bytes of the reply.
    #[must_use]
    pub fn encode(&self) -> [u8; REPLY_BYTES] {
        let mut bytes = [0; REPLY_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12] = self.verdict as u8;
        bytes[16..32].copy_from_slice(&cluster_number(self.cluster).to_le_bytes());
        bytes[32..].copy_from_slice(&self.node.to_le_bytes());
        bytes
    }

    /// Reads a reply.
    ///
    /// # Errors
    /// [`Verdict::VersionUnsupported`] if the other node speaks another version, and
    /// [`Verdict::Malformed`] if this is no reply at all.
    pub fn decode(bytes: &[u8]) -> Result<Self, Verdict> {
        if version_of(bytes).ok_or(Verdict::Malformed)? != VERSION {
            return Err(Verdict::VersionUnsupported);
        }
        let bytes: &[u8; REPLY_BYTES] = bytes.try_into().map_err(|_| Verdict::Malformed)?;
        let reply = Self {
            verdict: Verdict::from_byte(bytes[12]).ok_or(Verdict::Malformed)?,
            cluster: cluster_at_16(bytes),
            node: number_at(bytes, 32),
        };
        if bytes[13..16] != [0; 3] || reply.node == 0 {
            return Err(Verdict::Malformed);
        }
        Ok(reply)
    }
}

/// Whether a node wants to talk to another, and if not, why.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It does.
    Accepted = 0,
    /// The two belong to different clusters.
    ClusterDiffers = 1,
    /// The dialer wanted another node than this.
    NodeDiffers = 2,
    /// The certificate names another node than the hello.
    CertificateDiffers = 3,
    /// The two speak different versions of the protocol.
    VersionUnsupported = 4,
    /// What came was no hello.
    Malformed = 5,
}

impl Verdict {
    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Accepted),
            1 => Some(Self::ClusterDiffers),
            2 => Some(Self::NodeDiffers),
            3 => Some(Self::CertificateDiffers),
            4 => Some(Self::VersionUnsupported),
            5 => Some(Self::Malformed),
            _ => None,
        }
    }

    /// The verdict in words, for both sides.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::ClusterDiffers => "the two nodes belong to different clusters",
            Self::NodeDiffers => "another node than the expected one answers at this address",
            Self::CertificateDiffers => "the certificate names another node than the hello",
            Self::VersionUnsupported => "the two nodes speak different protocol versions",
            Self::Malformed => "what came was no hello",
        }
    }
}

/// The dialer's side: says hello, waits for the answer and judges it.
///
/// # Errors
/// [`TransportError::Refused`], whichever side refused, or what happened to the connection.
pub(super) async fn offer(
    connection: &quinn::Connection,
    addr: &Arc<str>,
    hello: Hello,
    certified: Option<u64>,
) -> Result<PeerIdentity, TransportError> {
    let exchange = async {
        let (send, recv) = connection
            .open_bi()
            .await
            .map_err(|error| TransportError::connecting(addr, &error))?;
        let mut writer = FrameWriter::new(send, addr.clone());
        let mut reader = FrameReader::new(recv, addr.clone(), &[Role::HelloReply]);
        writer
            .send_as(Role::Hello, 0, Priority::Control, &hello.encode(), &[])
            .await?;
        writer.finish();
        reader.next().await
    };
    let reply = match exchange.await {
        Ok(reply) => reply.unwrap_or_default(),
        Err(error) => {
            // The connection knows better than the stream why it ended.
            return Err(connection
                .close_reason()
                .map_or(error, |reason| TransportError::connecting(addr, &reason)));
        }
    };
    let refused =
        |side: &str, verdict: Verdict, cluster: Option<ClusterId>| TransportError::Refused {
            addr: addr.to_string(),
            reason: format!("{}{side}", verdict.reason()),
            cluster: cluster.filter(|_| verdict == Verdict::ClusterDiffers),
        };
    let reply =
        HelloReply::decode(&reply).map_err(|verdict| refused(" (found here)", verdict, None))?;
    if reply.verdict != Verdict::Accepted {
        let theirs = reply.cluster.map_or_else(String::new, |cluster| {
            format!(", which is node {:x} of cluster {cluster}", reply.node)
        });
        let side = format!(" (found there{theirs})");
        return Err(refused(&side, reply.verdict, reply.cluster));
    }
    // A node that is not to be trusted accepts everybody, so the dialer judges for itself.
    let mirrored = Hello {
        cluster: reply.cluster,
        node: reply.node,
        expected: None,
    };
    let verdict = match mirrored.judge(certified, hello.node, hello.cluster) {
        Verdict::Accepted if hello.expected.is_some_and(|node| node != reply.node) => {
            Verdict::NodeDiffers
        }
        verdict => verdict,
    };
    if verdict != Verdict::Accepted {
        return Err(refused(" (found here)", verdict, reply.cluster));
    }
    Ok(PeerIdentity {
        node: reply.node,
        cluster: hello.cluster.and(reply.cluster),
        addr: canonical(connection),
    })
}

/// The accepting side, first half: waits for the hello.
///
/// # Errors
/// What happened to the connection or the stream.
pub(super) async fn receive(
    connection: &quinn::Connection,
    addr: &Arc<str>,
) -> Result<(Result<Hello, Verdict>, FrameWriter), TransportError> {
    let (send, recv) = connection
        .accept_bi()
        .await
        .map_err(|error| TransportError::connecting(addr, &error))?;
    let writer = FrameWriter::new(send, addr.clone());
    let mut reader = FrameReader::new(recv, addr.clone(), &[Role::Hello]);
    let hello = reader.next().await?.unwrap_or_default();
    Ok((Hello::decode(&hello), writer))
}

/// The accepting side, second half: answers.
///
/// # Errors
/// What happened to the connection or the stream.
pub(super) async fn answer(
    mut writer: FrameWriter,
    reply: HelloReply,
) -> Result<(), TransportError> {
    writer
        .send_as(Role::HelloReply, 0, Priority::Control, &reply.encode(), &[])
        .await?;
    let delivered = writer.delivered();
    writer.finish();
    if reply.verdict != Verdict::Accepted {
        // The connection is closed next, which would take the reply with it.
        delivered.await;
    }
    Ok(())
}

/// The peer's address, an IPv4 address as such even on an IPv6 socket.
pub(super) fn canonical(connection: &quinn::Connection) -> std::net::SocketAddr {
    let addr = connection.remote_address();
    std::net::SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn version_of(bytes: &[u8]) -> Option<u32> {
    let rest = bytes.strip_prefix(&MAGIC)?;
    Some(u32::from_le_bytes(*rest.first_chunk()?))
}

fn cluster_number(cluster: Option<ClusterId>) -> u128 {
    cluster.map_or(0, |cluster| cluster.0)
}

fn cluster_at_16<const N: usize>(bytes: &[u8; N]) -> Option<ClusterId> {
    let mut number = [0; 16];
    number.copy_from_slice(&bytes[16..32]);
    Some(ClusterId(u128::from_le_bytes(number))).filter(|cluster| cluster.0 != 0)
}

fn number_at<const N: usize>(bytes: &[u8; N], offset: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(number)
}

/// Like PNG's: a byte above ASCII and a newline, which a transfer as text would change.
const MAGIC: [u8; 8] = *b"\x89wallby\n";
const VERSION: u32 = 1;
const HELLO_BYTES: usize = 48;
const REPLY_BYTES: usize = 40;
