//! Whether a peer's certificate is still one that would be accepted. The authorities can be
//! replaced while the node runs, and a connection lives for days: what is withdrawn must not live
//! on in it.

use std::sync::Arc;

use rustls::AlertDescription;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;

use super::alert;

/// What judges the certificates of other nodes.
#[derive(Debug)]
pub(super) struct Trust {
    /// Of those that this node dials.
    pub(super) server: Arc<dyn ServerCertVerifier>,
    /// Of those that dial this node; `None`: they need not show any.
    pub(super) client: Option<Arc<dyn ClientCertVerifier>>,
}

/// Which side of a connection the peer is on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side<'a> {
    /// It dialed this node.
    Client,
    /// It was dialed, and its certificate has to be for this name.
    Server(&'a str),
}

impl Trust {
    /// Looks at the certificate that the peer has shown when the connection was made.
    ///
    /// # Errors
    /// Why it would not be accepted now.
    pub(super) fn judge(
        &self,
        connection: &quinn::Connection,
        side: Side<'_>,
    ) -> Result<(), String> {
        let chain = chain_of(connection);
        let now = UnixTime::now();
        let verified = match (side, chain.split_first()) {
            (Side::Client, None) if self.client.is_none() => return Ok(()),
            (_, None) => return Err("the other node shows no certificate".to_owned()),
            (Side::Client, Some((own, others))) => match &self.client {
                Some(verifier) => verifier.verify_client_cert(own, others, now).map(drop),
                None => Ok(()),
            },
            (Side::Server(name), Some((own, others))) => {
                let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
                let verifier = &self.server;
                let verified = verifier.verify_server_cert(own, others, &name, &[], now);
                verified.map(drop)
            }
        };
        verified.map_err(|error| match error {
            rustls::Error::InvalidCertificate(what) => {
                let detail = what.to_string();
                let code = u8::from(AlertDescription::from(what));
                alert::found_here(u64::from(code), &detail)
            }
            other => other.to_string(),
        })
    }
}

/// The certificates that the peer has shown, its own first.
pub(super) fn chain_of(connection: &quinn::Connection) -> Vec<CertificateDer<'static>> {
    let shown = connection.peer_identity();
    let chain = shown.and_then(|shown| shown.downcast::<Vec<CertificateDer<'static>>>().ok());
    chain.map_or_else(Vec::new, |chain| *chain)
}
