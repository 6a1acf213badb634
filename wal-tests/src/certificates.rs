//! Authorities and certificates made for a test, and clients and servers that trust or show them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

/// An authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

/// A certificate with its key, both PEM.
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Pair {
    fn parsed(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = CertificateDer::from_pem_slice(self.certificate.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes());
        (vec![chain.expect(OURS)], key.expect(OURS))
    }
}

impl Authority {
    /// One with this common name.
    ///
    /// # Panics
    ///
    /// Never, as below: what is made here is well formed.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect(OURS);
        let certificate = params.self_signed(&key).expect(OURS);
        Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for 127.0.0.1 and localhost, or for a client of this common name.
    #[must_use]
    pub fn issue(&self, common_name: &str) -> Pair {
        self.issue_as(common_name, |_| ())
    }

    /// The same, of which something else was changed.
    ///
    /// # Panics
    ///
    /// When that makes no sense.
    #[must_use]
    pub fn issue_as(&self, common_name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let mut params = CertificateParams::new(names).expect(OURS);
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        change(&mut params);
        let key = KeyPair::generate().expect(OURS);
        let certificate = params.signed_by(&key, &self.issuer).expect(OURS);
        Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    /// Writes its certificate to a file.
    ///
    /// # Panics
    ///
    /// When that is impossible.
    pub fn write(&self, file: &Path) {
        fs::write(file, &self.pem).expect("a test can write its files");
    }

    /// Its certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A client that trusts this authority, offers these protocols, and shows this certificate.
    #[must_use]
    pub fn client(&self, protocols: &[&str], shown: Option<&Pair>) -> Arc<ClientConfig> {
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        self.client_of(&versions, protocols, shown)
    }

    /// The same with these versions of TLS only.
    ///
    /// # Panics
    ///
    /// When there are none.
    #[must_use]
    pub fn client_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&str],
        shown: Option<&Pair>,
    ) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("there are ciphers for every version")
            .with_root_certificates(self.roots());
        let mut config = match shown {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let (chain, key) = pair.parsed();
                builder.with_client_auth_cert(chain, key).expect(OURS)
            }
        };
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        Arc::new(config)
    }

    /// A server with a certificate of this authority, which demands one of its clients.
    ///
    /// # Panics
    ///
    /// Never.
    #[must_use]
    pub fn server(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(self.roots());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let (chain, key) = self.issue("server").parsed();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("there are ciphers for every version")
            .with_client_cert_verifier(verifier.build().expect(OURS))
            .with_single_cert(chain, key);
        Arc::new(config.expect(OURS))
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).expect(OURS);
        roots
    }
}

/// The files that a node is given.
pub struct Files {
    _dir: tempfile::TempDir,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authorities that are trusted.
    pub authority: PathBuf,
}

impl Files {
    /// A certificate of this authority for the server, and the authority itself.
    ///
    /// # Panics
    ///
    /// When files cannot be written.
    #[must_use]
    pub fn new(authority: &Authority) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let path = |name: &str| dir.path().join(name);
        let files = Self {
            certificate: path("cert.pem"),
            key: path("key.pem"),
            authority: path("ca.pem"),
            _dir: dir,
        };
        files.put(&authority.issue("server"));
        authority.write(&files.authority);
        files
    }

    /// Replaces certificate and key.
    ///
    /// # Panics
    ///
    /// When files cannot be written.
    pub fn put(&self, pair: &Pair) {
        for (file, text) in [
            (&self.certificate, &pair.certificate),
            (&self.key, &pair.key),
        ] {
            fs::write(file, text).expect("a test can write its files");
        }
    }

    /// The flags of a node that shows these files to other nodes, and demands of them certificates
    /// of the same authority.
    #[must_use]
    pub fn node_flags(&self) -> [&str; 7] {
        [
            "-node-cert",
            text(&self.certificate),
            "-node-key",
            text(&self.key),
            "-node-ca-cert",
            text(&self.authority),
            "-node-verify-client",
        ]
    }

    /// The flags of a node with these files.
    #[must_use]
    pub fn flags(&self) -> [&str; 4] {
        [
            "-http-cert",
            text(&self.certificate),
            "-http-key",
            text(&self.key),
        ]
    }
}

fn text(path: &Path) -> &str {
    path.to_str()
        .expect("temporary directories have plain names")
}

const OURS: &str = "what is made here is well formed";
