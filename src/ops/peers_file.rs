//! `raft/peers.json` in the data directory: the nodes that are to go on as a cluster, in the form
//! of rqlite.
//!
//! ```json
//! [
//!   {"id": "1", "address": "host1:4002", "non_voter": false},
//!   {"id": "2", "address": "host2:4002"}
//! ]
//! ```

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::node::{Recovery, RecoveryMember};

/// Why the file is not obeyed.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}. Nothing was changed")]
pub struct PeersFileError {
    file: PathBuf,
    problem: String,
}

/// One node in the file.
#[derive(Deserialize)]
struct Peer {
    id: String,
    address: String,
    #[serde(default)]
    non_voter: bool,
}

/// What the file in a data directory says; `None` if there is none.
///
/// # Errors
///
/// [`PeersFileError`] says what is wrong with the file.
pub fn read(data_dir: &Path) -> Result<Option<Recovery>, PeersFileError> {
    let file = data_dir.join("raft").join("peers.json");
    let refuse = |problem: String| PeersFileError {
        file: file.clone(),
        problem,
    };
    match fs::metadata(&file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        _ => {}
    }
    let mut text = String::new();
    let opened = File::open(&file).and_then(|opened| {
        let limited = opened.take(BYTES_MAX + 1).read_to_string(&mut text);
        limited.map(drop)
    });
    opened.map_err(|error| refuse(error.to_string()))?;
    if text.len() as u64 > BYTES_MAX {
        return Err(refuse(format!("it has more than {BYTES_MAX} bytes")));
    }
    let members = parse(&text).map_err(refuse)?;
    Ok(Some(Recovery { members, file }))
}

fn parse(text: &str) -> Result<Vec<RecoveryMember>, String> {
    let peers: Vec<Peer> = serde_json::from_str(text).map_err(|error| {
        format!(
            "it is not a list like [{{\"id\":\"1\",\"address\":\"host:4002\",\
             \"non_voter\":false}}]: {error}"
        )
    })?;
    if peers.is_empty() {
        return Err("it names no node".to_owned());
    }
    peers.into_iter().map(member).collect()
}

fn member(peer: Peer) -> Result<RecoveryMember, String> {
    let Peer {
        id,
        address,
        non_voter,
    } = peer;
    if id.is_empty() {
        return Err("a node in it has no id".to_owned());
    }
    if address.contains("://") {
        return Err(format!(
            "the address {address} of node {id:?} should not include a protocol; write host:port, \
             the node's Raft address"
        ));
    }
    let port = address.rsplit_once(':').and_then(|(host, port)| {
        let port = port.parse::<u16>().ok();
        port.filter(|port| *port != 0 && !host.is_empty())
    });
    if port.is_none() {
        return Err(format!(
            "the address {address:?} of node {id:?} is not of the form host:port"
        ));
    }
    Ok(RecoveryMember {
        name: id,
        raft_addr: address,
        voter: !non_voter,
    })
}

/// A thousand nodes with long names.
const BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_rqlite_is_read() {
        let text = r#"[{"id":"1","address":"[::1]:4002","non_voter":false},
            {"id":"2","address":"b:4002","non_voter":true,"more":1},{"id":"3","address":"c:1"}]"#;
        let read = parse(text).unwrap();
        let votes: Vec<_> = read.iter().map(|member| member.voter).collect();
        assert_eq!(votes, [true, false, true]);
        assert_eq!((&*read[1].name, &*read[1].raft_addr), ("2", "b:4002"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, expected) in [
            ("", "it is not a list like"),
            ("{}", "it is not a list like"),
            ("[]", "it names no node"),
            (r#"[{"id":"1"}]"#, "missing field `address`"),
            (r#"[{"id":"","address":"a:1"}]"#, "has no id"),
            (
                r#"[{"id":"1","address":"http://a:1"}]"#,
                "should not include a protocol",
            ),
            (r#"[{"id":"1","address":"a"}]"#, "not of the form host:port"),
            (
                r#"[{"id":"1","address":":1"}]"#,
                "not of the form host:port",
            ),
            (
                r#"[{"id":"1","address":"a:0"}]"#,
                "not of the form host:port",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
