//! The control messages between nodes: what each kind of request and stream carries.
//!
//! They are encoded by bincode with a byte limit, and never stored. Log ids and votes have mirror
//! types here, so that openraft's own layouts stay out of the network.
//!
//! | Kind | Lane | Request | Reply |
//! |---|---|---|---|
//! | 1 | request, control | [`VoteMessage`] | [`VoteReply`] |
//! | 2 | request, control | [`VoteMessage`], a pre-vote | [`VoteReply`] |
//! | 3 | request, control | [`TransferMessage`] | [`TransferReply`] |
//! | 4 | request, control | a heartbeat: append frame without entries | [`AppendReply`] |
//! | 5 | stream, data | append frames | one [`AppendReply`] for each, in order |
//! | 6 | stream, bulk | [`VoteMirror`], then as in [`super::snapshot_frame`] | the same |
//! | 7 | request, data | [`Forward`] | [`Forwarded`] |
//! | 8 | request, control | [`Greeting`] | [`Introduction`] |
//! | 9 | request, control | [`Joining`] | [`Joined`] |
//! | 10 | request, control | [`Adoption`] | [`Adopted`] |
//! | 11 | request, data | an errand: [`super::errand::Message`] | [`super::errand::Report`] |
//! | 12 | request, data | [`super::read_index::Asking`] | [`super::read_index::Asked`] |
//! | 13 | stream, bulk | [`Loading`](super::load::Loading), then its bytes | [`Forwarded`] |
//! | 20 | request, data | [`Wanted`](super::repair::Wanted) | page numbers and images |
//! | 21 | request, control | nothing | [`Stand`](super::progress::Stand), if the node has one |
//!
//! Kinds 8 and 10 are the only ones that a peer without a cluster may send or receive.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::api::{CatchUp, Level, Refusal, Served};
use super::caller::{Credentials, Permission};
use crate::raft::{LeaderId, LogId, Member, Role, Vote};
use crate::sqlite::Request;

/// The kinds of requests and streams; see the table above.
pub(crate) mod kind {
    pub(crate) const VOTE: u8 = 1;
    pub(crate) const PRE_VOTE: u8 = 2;
    pub(crate) const TRANSFER: u8 = 3;
    pub(crate) const HEARTBEAT: u8 = 4;
    pub(crate) const APPEND: u8 = 5;
    pub(crate) const SNAPSHOT: u8 = 6;
    pub(crate) const FORWARD: u8 = 7;
    pub(crate) const GREETING: u8 = 8;
    pub(crate) const JOIN: u8 = 9;
    pub(crate) const ADOPT: u8 = 10;
    pub(crate) const ERRAND: u8 = 11;
    pub(crate) const READ_INDEX: u8 = 12;
    pub(crate) const LOAD: u8 = 13;
    pub(crate) const PAGES: u8 = 20;
    pub(crate) const STAND: u8 = 21;
}

/// A log id.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct LogIdMirror {
    term: u64,
    node: u64,
    index: u64,
}

impl From<LogId> for LogIdMirror {
    fn from(id: LogId) -> Self {
        let leader = id.committed_leader_id();
        Self {
            term: leader.term,
            node: leader.node_id,
            index: id.index,
        }
    }
}

impl From<LogIdMirror> for LogId {
    fn from(mirror: LogIdMirror) -> Self {
        Self::new(
            LeaderId {
                term: mirror.term,
                node_id: mirror.node,
            },
            mirror.index,
        )
    }
}

/// A vote.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct VoteMirror {
    term: u64,
    node: u64,
    committed: bool,
}

impl From<Vote> for VoteMirror {
    fn from(vote: Vote) -> Self {
        let leader = vote.leader_id;
        Self {
            term: leader.term,
            node: leader.node_id,
            committed: vote.committed,
        }
    }
}

impl From<VoteMirror> for Vote {
    fn from(mirror: VoteMirror) -> Self {
        let leader_id = LeaderId {
            term: mirror.term,
            node_id: mirror.node,
        };
        Self {
            leader_id,
            committed: mirror.committed,
        }
    }
}

/// A request for a vote or, as a pre-vote, the question whether it would be granted.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct VoteMessage {
    pub(crate) vote: VoteMirror,
    pub(crate) last_log_id: Option<LogIdMirror>,
    pub(crate) leadership_transfer: bool,
}

/// The answer to [`VoteMessage`]; `None` if Raft does not run on the peer.
pub(crate) type VoteReply = Option<VoteAnswer>;

/// A granted or refused vote.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct VoteAnswer {
    pub(crate) vote: VoteMirror,
    pub(crate) granted: bool,
    pub(crate) last_log_id: Option<LogIdMirror>,
}

/// The leader asks a voter to take over.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct TransferMessage {
    pub(crate) from: VoteMirror,
    pub(crate) to: u64,
    pub(crate) last_log_id: Option<LogIdMirror>,
}

/// Whether the peer took note of the [`TransferMessage`], or why not.
pub(crate) type TransferReply = Result<(), String>;

/// The answer to one append frame.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) enum AppendReply {
    /// The log does not have the entry before the first one.
    Conflict(LogIdMirror),
    /// The peer has seen a higher vote.
    HigherVote(VoteMirror),
    /// Flushed up to here.
    Matching(Option<LogIdMirror>),
    /// Raft does not run on the peer.
    Stopped,
    /// The transaction in `entry` was not executed on the database that there is after `base`.
    Objects {
        entry: LogIdMirror,
        base: LogIdMirror,
    },
}

/// The answer to a snapshot: the receiver's vote, or why it was not installed.
pub(crate) type SnapshotReply = Result<VoteMirror, String>;

/// A client's request on its way to the leader.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Forward {
    pub(crate) call: Call,
    pub(crate) request: Request,
    pub(crate) timeout_ms: u64,
    pub(crate) caller: Option<Credentials>,
}

/// What the leader is asked to do.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) enum Call {
    Execute,
    Query(ReadTerms),
    Request(ReadTerms),
}

/// What the leader is to guarantee for a read.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct ReadTerms {
    pub(crate) level: Level,
    /// The index that the read has to see at least; 0: any.
    pub(crate) index_min: u64,
}

impl Call {
    /// What a caller needs for it, and the word for it in rqlite's refusals.
    pub(crate) fn permissions(self) -> (&'static [Permission], &'static str) {
        match self {
            Self::Execute => (&[Permission::Execute], "Execute"),
            Self::Query(_) => (&[Permission::Query], "query"),
            Self::Request(_) => (&[Permission::Query, Permission::Execute], "Request"),
        }
    }
}

/// The leader's answer.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Forwarded {
    /// The peer is not the leader (any more): nothing was done.
    NotLeader,
    Refused(Refusal),
    Served(Served),
}

/// "Who are you, and what do you know?", asked by a node that looks for a cluster.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Greeting {
    pub(crate) raft_id: u64,
    pub(crate) member: MemberMirror,
    /// How many nodes the asker wants to start a cluster with; 0: none.
    pub(crate) bootstrap_expect: u64,
    /// On whose behalf, where the peer has an authority and the asker wants to start a cluster.
    pub(crate) caller: Option<Credentials>,
}

/// The answer to [`Greeting`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Introduction {
    pub(crate) raft_id: u64,
    pub(crate) member: MemberMirror,
    /// The cluster that the peer belongs to, if it does.
    pub(crate) cluster: Option<u128>,
    /// The leader's Raft address, if the peer knows it.
    pub(crate) leader: Option<String>,
    /// How many nodes the peer wants to start a cluster with; 0: none.
    pub(crate) bootstrap_expect: u64,
    pub(crate) version: String,
    /// Why the peer will not start a cluster with the asker.
    pub(crate) refused: Option<String>,
    /// How far it is with a database that it receives.
    pub(crate) catch_up: Option<CatchUp>,
}

/// "Make me a member", or "this is where I am now".
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Joining {
    pub(crate) raft_id: u64,
    pub(crate) member: MemberMirror,
    /// It takes itself for a member and does not ask to become one.
    pub(crate) returns: bool,
    /// On whose behalf, where the leader has an authority.
    pub(crate) caller: Option<Credentials>,
}

/// The answer to [`Joining`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Joined {
    /// It is a member without a vote until it has caught up: ask again.
    CatchingUp,
    /// Ask this leader instead, if known.
    NotLeader(Option<String>),
    /// Not now, for this reason.
    Refused(String),
    /// Whoever returns is no member (any more).
    Removed,
    /// Not for this caller, for this reason.
    Unauthorized(String),
    Welcome,
}

/// "Be part of the cluster that I am about to start."
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Adoption {
    pub(crate) cluster: u128,
    /// On whose behalf, where the peer has an authority.
    pub(crate) caller: Option<Credentials>,
}

/// The answer to [`Adoption`]: agreed for good, or the reason.
pub(crate) type Adopted = Result<(), String>;

/// A member's name and addresses, and whether it wants to be a replica.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct MemberMirror {
    pub(crate) name: String,
    pub(crate) raft_addr: String,
    pub(crate) http_addr: String,
    pub(crate) replica: bool,
}

impl From<Member> for MemberMirror {
    fn from(member: Member) -> Self {
        let Member {
            name,
            raft_addr,
            http_addr,
            role,
        } = member;
        Self {
            name,
            raft_addr,
            http_addr,
            replica: role == Role::Replica,
        }
    }
}

impl From<MemberMirror> for Member {
    fn from(mirror: MemberMirror) -> Self {
        let MemberMirror {
            name,
            raft_addr,
            http_addr,
            replica,
        } = mirror;
        let role = if replica { Role::Replica } else { Role::Voter };
        Self {
            name,
            raft_addr,
            http_addr,
            role,
        }
    }
}

/// Encodes a message.
pub(crate) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(message, CONFIG)
        .expect("control messages have no unsupported types and fit the limit")
}

/// Decodes a message; anything left over is damage.
///
/// bincode makes room for a text before it looks whether the message is as long as the text is said
/// to be; only the limit holds it back. So a short message has a low one.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let decoded = if bytes.len() <= SHORT_BYTES {
        let config = CONFIG.with_limit::<{ SHORT_BYTES * WIDEST }>();
        bincode::serde::decode_from_slice(bytes, config)
    } else if bytes.len() <= MEDIUM_BYTES {
        let config = CONFIG.with_limit::<{ MEDIUM_BYTES * WIDEST }>();
        bincode::serde::decode_from_slice(bytes, config)
    } else {
        bincode::serde::decode_from_slice(bytes, CONFIG)
    };
    match decoded {
        Ok((message, length)) if length == bytes.len() => Ok(message),
        Ok(_) => Err("bytes are left over after a control message".to_owned()),
        Err(error) => Err(format!("unreadable control message: {error}")),
    }
}

/// Forwarded requests and their answers are the largest; a frame has the same cap.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Most messages are not longer than this.
const SHORT_BYTES: usize = 64 << 10;
const MEDIUM_BYTES: usize = 2 << 20;

/// Against the limit every number counts with its full width, of which it may take one byte.
const WIDEST: usize = 16;

const CONFIG: Configuration<LittleEndian, Varint, Limit<MESSAGE_BYTES_MAX>> =
    bincode::config::standard().with_limit::<MESSAGE_BYTES_MAX>();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reads_as_it_was_written_and_no_truncation_does() {
        let message = Greeting {
            raft_id: 7,
            member: MemberMirror {
                name: "n".to_owned(),
                raft_addr: "a:1".to_owned(),
                http_addr: "a:2".to_owned(),
                replica: false,
            },
            bootstrap_expect: 3,
            caller: None,
        };
        let bytes = encode(&message);
        let read: Greeting = decode(&bytes).unwrap();
        assert_eq!((read.raft_id, read.member), (7, message.member));
        for length in 0..bytes.len() {
            assert!(decode::<Greeting>(&bytes[..length]).is_err());
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(decode::<Greeting>(&longer).is_err());
    }

    #[test]
    fn an_announced_length_beyond_the_limit_is_refused_before_it_is_allocated() {
        // A text of nearly 2^63 bytes, and one of 2 MiB, in a message of some bytes.
        for length in [
            &[253, 255, 255, 255, 255, 255, 255, 255, 127][..],
            &[252, 0, 0, 32, 0],
        ] {
            let bytes = [&[7], length].concat();
            let error = decode::<Greeting>(&bytes).unwrap_err();
            assert!(error.contains("LimitExceeded"), "{error}");
        }
    }

    #[test]
    fn the_limit_of_a_short_message_leaves_room_for_numbers_of_any_width() {
        let widest = vec![1_u128; SHORT_BYTES - 3];
        let bytes = encode(&widest);
        assert_eq!(bytes.len(), SHORT_BYTES);
        assert_eq!(decode::<Vec<u128>>(&bytes), Ok(widest));
    }
}
