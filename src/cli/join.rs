//! `-join http://host:port`, the form of older manuals, or `https://`: the node behind that HTTP
//! address is asked where its Raft address is, on behalf of the user in `-join-as`.
//!
//! The certificate behind `https://` must be one of the authorities in `-http-ca-cert`, or without
//! that flag of those that the web trusts. A node that demands a certificate of its clients cannot
//! be asked; its Raft address can be given instead.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use wallaby::node::Credentials;

/// Why a target could not be turned into a Raft address.
#[derive(Debug, thiserror::Error)]
#[error("-join: {target} does not say what its Raft address is: {reason}")]
pub(crate) struct JoinError {
    target: String,
    reason: String,
}

/// On which terms nodes are asked.
pub(crate) struct JoinTerms {
    /// On whose behalf.
    pub(crate) caller: Option<Credentials>,
    /// How often each target is asked.
    pub(crate) attempts: u32,
    /// Time for each of these attempts.
    pub(crate) interval: Duration,
    /// The file with the authorities that are trusted.
    pub(crate) authorities: Option<PathBuf>,
}

/// The Raft addresses of the nodes behind these HTTP addresses. Blocks; asks each several times.
///
/// A node that has data already knows its cluster, and must be able to start while the others are
/// down, so then nobody is asked.
pub(crate) fn raft_addresses(
    targets: &[String],
    data_dir: &Path,
    terms: &JoinTerms,
) -> Result<Vec<String>, JoinError> {
    // The log is made when the node belongs to a cluster. The directory alone says nothing: a node
    // that was stopped while it still looked for a cluster would start one of its own.
    if data_dir.join("log").exists() {
        return Ok(Vec::new());
    }
    let address = |target: &String| raft_address(target, terms);
    targets.iter().map(address).collect()
}

fn raft_address(target: &str, terms: &JoinTerms) -> Result<String, JoinError> {
    let mut attempt = 1;
    loop {
        let reason = match ask(target, terms) {
            Ok(found) => return Ok(found),
            Err(reason) => reason,
        };
        tracing::warn!(target, attempt, reason, "a node to join does not answer");
        if attempt >= terms.attempts {
            return Err(JoinError {
                target: target.to_owned(),
                reason,
            });
        }
        attempt += 1;
        std::thread::sleep(terms.interval);
    }
}

/// One question: `/status` tells the Raft address of the node that answers it.
fn ask(target: &str, terms: &JoinTerms) -> Result<String, String> {
    let mut tls = TlsConfig::builder();
    if let Some(file) = &terms.authorities {
        let pem = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let certificates: Vec<_> = parse_pem(&pem)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        tls = tls.root_certs(RootCerts::new_with_certs(&certificates));
    }
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(terms.interval))
        .tls_config(tls.build())
        .build();
    let url = format!("{target}/status?key=cluster");
    let mut request = ureq::Agent::from(config).get(url);
    if let Some(caller) = &terms.caller {
        let plain = format!("{}:{}", caller.username, caller.password);
        request = request.header("Authorization", format!("Basic {}", STANDARD.encode(plain)));
    }
    let answer = request.call();
    let mut answer = answer.map_err(|error| error.to_string())?;
    let cluster: serde_json::Value = answer
        .body_mut()
        .read_json()
        .map_err(|error| error.to_string())?;
    cluster["addr"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| format!("it answers {cluster}"))
}
