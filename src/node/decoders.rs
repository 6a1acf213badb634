//! What this layer reads from peers and from its own directory, decoder by decoder, in one place:
//! the door through which tests give them any bytes. Nothing else comes in here.
//!
//! Each decoder answers with what it read, written again, or with what is wrong.

use std::path::Path;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::append_frame;
use super::errand;
use super::identity::Identity;
use super::load::Loading;
use super::manifest::Manifest;
use super::progress::Stand;
use super::read_index::{Asked, Asking};
use super::repair::Wanted;
use super::snapshot_frame::{self, Pages, Part, Reply};
use super::spool::{Incoming, Spool};
use super::wire::{
    self, Adopted, Adoption, AppendReply, Forward, Forwarded, Greeting, Introduction, Joined,
    Joining, SnapshotReply, TransferMessage, TransferReply, VoteMessage, VoteMirror, VoteReply,
};
use crate::wal::{PageNumber, PageSize};

/// Reads bytes and writes again what they say.
pub type Decoder = fn(&[u8]) -> Result<Vec<u8>, String>;

/// The messages between nodes, by name.
pub const MESSAGES: [(&str, Decoder); 24] = [
    ("append frame", append),
    ("append reply", message::<AppendReply>),
    ("vote request", message::<VoteMessage>),
    ("vote reply", message::<VoteReply>),
    ("vote of a leader", message::<VoteMirror>),
    ("transfer", message::<TransferMessage>),
    ("transfer reply", message::<TransferReply>),
    ("forward", message::<Forward>),
    ("forwarded", message::<Forwarded>),
    ("greeting", message::<Greeting>),
    ("introduction", message::<Introduction>),
    ("joining", message::<Joining>),
    ("joined", message::<Joined>),
    ("adoption", message::<Adoption>),
    ("adopted", message::<Adopted>),
    ("errand", message::<errand::Message>),
    ("report", message::<errand::Report>),
    ("read index", message::<Asking>),
    ("read index reply", message::<Asked>),
    ("loading", message::<Loading>),
    ("wanted pages", message::<Wanted>),
    ("stand", message::<Option<Stand>>),
    ("snapshot verdict", message::<SnapshotReply>),
    ("snapshot reply", |bytes| Ok(Reply::decode(bytes)?.encode())),
];

fn message<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Result<Vec<u8>, String> {
    Ok(wire::encode(&wire::decode::<T>(bytes)?))
}

fn append(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let request = append_frame::decode(&Bytes::copy_from_slice(bytes))?;
    let (mut out, payloads) = append_frame::encode(&request);
    out.extend(payloads.iter().flatten());
    Ok(out)
}

/// The head of a snapshot.
///
/// # Errors
///
/// What is wrong with it.
pub fn manifest(bytes: &[u8]) -> Result<Vec<u8>, String> {
    Ok(Manifest::decode(bytes)?.encode())
}

/// A frame of the sender of a snapshot whose pages have this size; how many pages it has.
///
/// # Errors
///
/// What is wrong with it.
pub fn snapshot_part(bytes: &Bytes, size: PageSize) -> Result<(Vec<u8>, usize), String> {
    Ok(match Part::decode(bytes)? {
        Part::Manifest(bytes) => (snapshot_frame::manifest(&manifest(&bytes)?), 0),
        Part::End => (snapshot_frame::end(), 0),
        Part::Pages(bytes) => {
            let pages = Pages::decode(&bytes, size)?;
            let (mut numbers, mut images) = (Vec::new(), Vec::new());
            for (number, image) in pages.iter() {
                numbers.push(PageNumber::new(number).ok_or("page number zero")?);
                images.extend_from_slice(image);
            }
            let count = numbers.len();
            (snapshot_frame::pages(&numbers, &images), count)
        }
    })
}

/// What a directory has of a snapshot that was received: how many pages of one that was cut off,
/// and of one that is yet to be installed.
///
/// # Errors
///
/// What is wrong with the second; the first has no more than can be read.
pub fn spooled(dir: &Path) -> (Result<usize, String>, Result<Option<usize>, String>) {
    let incoming = Incoming::resume(dir)
        .map(|incoming| incoming.map_or(0, |incoming| incoming.len()))
        .map_err(|error| error.to_string());
    let pending = Spool::pending(dir).map_err(|error| error.to_string());
    let pending = pending.and_then(|spool| {
        let Some(spool) = spool else {
            return Ok(None);
        };
        let mut pages = 0;
        for page in spool.pages() {
            let (page, image) = page.map_err(|error| error.to_string())?;
            let manifest = spool.manifest();
            if !manifest.page_count.contains(page) || image.len() != manifest.page_size.len() {
                return Err(format!("page {page} does not fit the manifest"));
            }
            pages += 1;
        }
        Ok(Some(pages))
    });
    (incoming, pending)
}

/// The identity in a directory that has one, written again in its place.
///
/// # Errors
///
/// What is wrong with it.
pub fn identity(dir: &Path) -> Result<(), String> {
    let read = Identity::load_or_create(dir, None, "nobody").map_err(|error| error.to_string())?;
    read.save(dir).map_err(|error| error.to_string())
}
