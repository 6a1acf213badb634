//! Certificates of an authority of the operator's own, in place of a cluster key: rqlited's flags
//! `-node-cert`, `-node-key`, `-node-ca-cert` and those that say what is verified.
//!
//! A node shows its certificate to those it dials and to those who dial it. Unlike a certificate
//! that is derived from the cluster key it names no Raft id, so a node is taken for the one that it
//! says it is: every holder of a certificate that is accepted is trusted like every other.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::named::{NamedClient, NamedServer};
use super::tls::{AnyCertificate, TLS_VERSIONS};
use super::trust::Trust;
use super::watched::Watched;
use super::{TransportError, pem};

/// The files, and what other nodes must show.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CertificateOptions {
    /// The node's certificate and those that lead to its authority, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The authorities of the other nodes' certificates, PEM; `None`: those that the operating
    /// system trusts.
    pub authorities: Option<PathBuf>,
    /// Whether the certificate of a node that is dialed is verified.
    pub verify_server: bool,
    /// Whether a node that dials must show a certificate, which is then verified.
    pub verify_client: bool,
    /// The name that the certificate of a node that is dialed must be valid for; `None`: the host
    /// of the address that is dialed.
    pub server_name: Option<String>,
    /// The common name that every certificate that is verified must have, exactly; `None`: any.
    pub common_name: Option<String>,
}

impl CertificateOptions {
    /// Looks at the files. To be called before they are read.
    pub(super) fn watch(&self) -> Watched {
        let files = [
            Some(self.certificate.as_path()),
            Some(self.key.as_path()),
            self.authorities.as_deref(),
        ];
        Watched::new(files.into_iter().flatten())
    }

    /// Reads the files.
    pub(super) fn load(&self) -> Result<Loaded, TransportError> {
        let failed = |flag: &str, file: &Path, why: String| TransportError::Certificates {
            what: format!("-{flag} {}: {why}", file.display()),
        };
        let chain = pem::certificates(&self.certificate);
        let chain = chain.map_err(|why| failed("node-cert", &self.certificate, why))?;
        let key = pem::private_key(&self.key);
        let key = key.map_err(|why| failed("node-key", &self.key, why))?;
        let roots = match &self.authorities {
            Some(file) => {
                pem::authorities(file).map_err(|why| failed("node-ca-cert", file, why))?
            }
            None => system_authorities(),
        };
        Ok(Loaded {
            chain,
            key,
            roots: Arc::new(roots),
        })
    }
}

/// What was in the files.
pub(super) struct Loaded {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

impl Loaded {
    /// The settings for dialing and for accepting, and what they trust.
    pub(super) fn configs(
        &self,
        options: &CertificateOptions,
    ) -> Result<(ClientConfig, ServerConfig, Trust), TransportError> {
        let unusable = |what: String| TransportError::Certificates { what };
        let unfit = |error: rustls::Error| {
            unusable(format!("-node-cert and -node-key cannot be used: {error}"))
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server_verifier = self.server_verifier(options, &provider)?;
        let client_verifier = match options.verify_client {
            true => Some(self.client_verifier(options, Arc::clone(&provider))?),
            false => None,
        };
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(TLS_VERSIONS)
            .map_err(unfit)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&server_verifier))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(unfit)?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(TLS_VERSIONS)
            .map_err(unfit)?;
        let server = match &client_verifier {
            Some(verifier) => server.with_client_cert_verifier(Arc::clone(verifier)),
            None => server.with_no_client_auth(),
        };
        let server = server
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(unfit)?;
        let trust = Trust {
            server: server_verifier,
            client: client_verifier,
        };
        Ok((client, server, trust))
    }

    fn server_verifier(
        &self,
        options: &CertificateOptions,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ServerCertVerifier>, TransportError> {
        if !options.verify_server {
            return Ok(Arc::new(AnyCertificate(Arc::clone(provider))));
        }
        let (roots, provider) = (Arc::clone(&self.roots), Arc::clone(provider));
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| no_verifier(&error))?;
        Ok(match &options.common_name {
            Some(name) => Arc::new(NamedServer {
                verifier,
                common_name: name.clone(),
            }),
            None => verifier,
        })
    }

    fn client_verifier(
        &self,
        options: &CertificateOptions,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>, TransportError> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider)
                .build()
                .map_err(|error| no_verifier(&error))?;
        Ok(match &options.common_name {
            Some(name) => Arc::new(NamedClient {
                verifier,
                common_name: name.clone(),
            }),
            None => verifier,
        })
    }

    /// The private key's bytes.
    pub(super) fn secret(&self) -> &[u8] {
        self.key.secret_der()
    }

    /// When the node's own certificate ends.
    pub(super) fn ends_at(&self) -> SystemTime {
        let seconds = self.chain.first().and_then(pem::ends_at).unwrap_or(0);
        UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }
}

fn no_verifier(error: &impl std::fmt::Display) -> TransportError {
    TransportError::Certificates {
        what: format!(
            "no authority is trusted, so no other node could be ({error}); give -node-ca-cert"
        ),
    }
}

/// The authorities that the operating system trusts, as rqlited takes them.
fn system_authorities() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::warn!(%error, "reading the authorities that the operating system trusts");
    }
    let mut roots = RootCertStore::empty();
    // Old ones among them are not well formed; the others count.
    roots.add_parsable_certificates(found.certs);
    roots
}
