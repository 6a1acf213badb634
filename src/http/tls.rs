//! TLS for HTTP: rqlited's flags `-http-cert`, `-http-key`, `-http-ca-cert`, `-http-verify-client`
//! and `-http-verify-common-name`.
//!
//! TLS 1.2 and later. HTTP/2 and HTTP/1.1 are offered, in that order. All files are read again
//! when they change; connections that exist keep what they began with.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use crate::node::{NamedClient, Watched, pem};

/// The files, and what clients must show.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// The certificate and those that lead to its authority, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Authorities of client certificates, PEM.
    pub client_authorities: Option<PathBuf>,
    /// Whether every client must show a certificate of one of those authorities.
    pub verify_client: bool,
    /// The common name that a client's certificate must have, exactly; empty: any.
    pub client_common_name: String,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or has nothing of what it should have.
    #[error("-{flag} {file}: {why}")]
    File {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The files do not fit together.
    #[error("-http-cert and -http-key cannot be used: {0}")]
    Settings(String),
}

/// The TLS settings of the HTTP interface, always as the files say.
pub struct Tls {
    options: TlsOptions,
    config: RwLock<Arc<ServerConfig>>,
    watched: Mutex<Watched>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] names the flag and the file.
    pub fn open(options: TlsOptions) -> Result<Arc<Self>, TlsError> {
        let files = [
            Some(options.certificate.as_path()),
            Some(options.key.as_path()),
            options.client_authorities.as_deref(),
        ];
        let watched = Watched::new(files.into_iter().flatten());
        let config = server_config(&options)?;
        Ok(Arc::new(Self {
            options,
            config: RwLock::new(Arc::new(config)),
            watched: Mutex::new(watched),
        }))
    }

    /// Whether every client has to show a certificate.
    #[must_use]
    pub fn verifies_clients(&self) -> bool {
        self.options.verify_client
    }

    /// What was asked for.
    pub(super) fn options(&self) -> &TlsOptions {
        &self.options
    }

    /// The settings for the next connection.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the files again if they have changed. A certificate that does not fit its key is
    /// often seen for a moment, while both are replaced: then the old ones stay.
    pub(super) fn refresh(&self) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if !watched.have_changed() {
            return;
        }
        match server_config(&self.options) {
            Ok(config) => {
                tracing::info!("the certificate of the HTTP interface was read again");
                let mut current = self.config.write().unwrap_or_else(PoisonError::into_inner);
                *current = Arc::new(config);
            }
            Err(error) => {
                tracing::warn!(%error, "the certificate was not read again; the old one stays");
            }
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

fn server_config(options: &TlsOptions) -> Result<ServerConfig, TlsError> {
    let settings = |error: rustls::Error| TlsError::Settings(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let failed = |flag, file: &Path, why| TlsError::File {
        flag,
        file: file.to_owned(),
        why,
    };
    let chain = pem::certificates(&options.certificate)
        .map_err(|why| failed("http-cert", &options.certificate, why))?;
    let key =
        pem::private_key(&options.key).map_err(|why| failed("http-key", &options.key, why))?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(settings)?;
    let builder = match (&options.client_authorities, options.verify_client) {
        (Some(file), true) => {
            let verifier = client_verifier(options, file, provider)?;
            builder.with_client_cert_verifier(verifier)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(settings)?;
    config.alpn_protocols = vec![H2.to_vec(), HTTP_1_1.to_vec()];
    Ok(config)
}

fn client_verifier(
    options: &TlsOptions,
    file: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let failed = |why: String| TlsError::File {
        flag: "http-ca-cert",
        file: file.to_owned(),
        why,
    };
    let roots = pem::authorities(file).map_err(failed)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let verifier = verifier.map_err(|error| failed(error.to_string()))?;
    if options.client_common_name.is_empty() {
        return Ok(verifier);
    }
    Ok(Arc::new(NamedClient {
        verifier,
        common_name: options.client_common_name.clone(),
    }))
}

/// The names of the protocols in the handshake.
pub(super) const H2: &[u8] = b"h2";
const HTTP_1_1: &[u8] = b"http/1.1";
