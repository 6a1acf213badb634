//! Who is trusted: the TLS 1.3 settings of both directions.

use std::sync::Arc;
use std::time::SystemTime;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::certificate::{Authority, Identity};
use super::pki::CertificateOptions;
use super::trust::Trust;
use super::{Security, key};

/// The settings for dialing and for accepting.
pub(super) struct Tls {
    pub(super) client: Arc<QuicClientConfig>,
    pub(super) server: Arc<QuicServerConfig>,
    /// What the tokens are made of by which peers learn that this node has restarted; the same
    /// after each restart.
    pub(super) reset_secret: [u8; 32],
    /// What was trusted, where it can change while the node runs.
    pub(super) trust: Option<Trust>,
}

impl Tls {
    /// With a key: each side demands a certificate of the cluster's authority. Without: each side
    /// takes whatever the other shows.
    pub(super) fn new(security: &Security, node: u64) -> Result<Self, BoxError> {
        match security {
            Security::Certificates(options) => Ok(Self::of_files(options, node)?.0),
            Security::Key(key) => {
                let secret = key.derive(&reset_purpose(&node.to_le_bytes()));
                Self::mutual(&Authority::derive(key)?, node, secret)
            }
            Security::Insecure | Security::Loopback => Self::unverified(node),
        }
    }

    /// With certificates of the operator's own; also when this node's ends.
    pub(super) fn of_files(
        options: &CertificateOptions,
        node: u64,
    ) -> Result<(Self, SystemTime), BoxError> {
        let loaded = options.load()?;
        let (client, server, trust) = loaded.configs(options)?;
        let secret = key::derive(loaded.secret(), &reset_purpose(&node.to_le_bytes()));
        let tls = Self {
            trust: Some(trust),
            ..Self::over_quic(client, server, secret)?
        };
        Ok((tls, loaded.ends_at()))
    }

    fn mutual(authority: &Authority, node: u64, secret: [u8; 32]) -> Result<Self, BoxError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate())?;
        let roots = Arc::new(roots);
        let own = authority.issue(node)?;
        let chain = vec![own.certificate];
        let client = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(TLS_VERSIONS)?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain.clone(), own.key.clone_key())?;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build()?;
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(TLS_VERSIONS)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, own.key)?;
        Self::over_quic(client, server, secret)
    }

    fn unverified(node: u64) -> Result<Self, BoxError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let own = Identity::throwaway(node)?;
        let verifier = Arc::new(AnyCertificate(provider.clone()));
        let client = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(TLS_VERSIONS)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(TLS_VERSIONS)?
            .with_no_client_auth()
            .with_single_cert(vec![own.certificate], own.key)?;
        let secret = key::derive(&[], &reset_purpose(&node.to_le_bytes()));
        Self::over_quic(client, server, secret)
    }

    /// No resumption in either direction: a connection lives for days, and each one shall show its
    /// certificate.
    fn over_quic(
        mut client: rustls::ClientConfig,
        mut server: rustls::ServerConfig,
        reset_secret: [u8; 32],
    ) -> Result<Self, BoxError> {
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self {
            client: Arc::new(QuicClientConfig::try_from(client)?),
            server: Arc::new(QuicServerConfig::try_from(server)?),
            reset_secret,
            trust: None,
        })
    }
}

/// What the secret of the reset tokens is derived for.
const fn reset_purpose(node: &[u8; 8]) -> [&[u8]; 2] {
    [b"stateless reset of node ", node]
}

/// Accepts every certificate; still checks that the server holds its private key.
#[derive(Debug)]
pub(super) struct AnyCertificate(pub(super) Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Any of the errors of four libraries; it only becomes the reason of a failed bind.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

pub(super) const TLS_VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Says that QUIC carries Wallaby's frames. The version of the protocol is in the hello, where a
/// difference can be explained.
const ALPN: &[u8] = b"wallaby";
