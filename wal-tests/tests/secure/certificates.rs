//! Authorities and certificates made for a test, and clients that trust or show them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

/// An authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

/// A certificate with its key, both PEM.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for 127.0.0.1 and localhost, or for a client of this common name.
    pub(crate) fn issue(&self, common_name: &str) -> Pair {
        self.issue_as(common_name, |_| ())
    }

    /// The same, of which something else was changed.
    pub(crate) fn issue_as(
        &self,
        common_name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    pub(crate) fn write(&self, file: &Path) {
        fs::write(file, &self.pem).unwrap();
    }

    /// Its certificate, PEM.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// A client that trusts this authority, offers these protocols, and shows this certificate.
    pub(crate) fn client(&self, protocols: &[&str], shown: Option<&Pair>) -> Arc<ClientConfig> {
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        self.client_of(&versions, protocols, shown)
    }

    /// The same with these versions of TLS only.
    pub(crate) fn client_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&str],
        shown: Option<&Pair>,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match shown {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![chain], key).unwrap()
            }
        };
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        Arc::new(config)
    }
}

/// The files that a node is given.
pub(crate) struct Files {
    _dir: tempfile::TempDir,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) authority: PathBuf,
}

impl Files {
    /// A certificate of this authority for the server, and the authority itself.
    pub(crate) fn new(authority: &Authority) -> Self {
        let dir = tempfile::tempdir().unwrap();
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
    pub(crate) fn put(&self, pair: &Pair) {
        fs::write(&self.certificate, &pair.certificate).unwrap();
        fs::write(&self.key, &pair.key).unwrap();
    }

    /// The flags of a node that shows these files to other nodes, and demands of them certificates
    /// of the same authority.
    pub(crate) fn node_flags(&self) -> [&str; 7] {
        [
            "-node-cert",
            self.certificate.to_str().unwrap(),
            "-node-key",
            self.key.to_str().unwrap(),
            "-node-ca-cert",
            self.authority.to_str().unwrap(),
            "-node-verify-client",
        ]
    }

    /// The flags of a node with these files.
    pub(crate) fn flags(&self) -> [&str; 4] {
        let (certificate, key) = (self.certificate.to_str(), self.key.to_str());
        [
            "-http-cert",
            certificate.unwrap(),
            "-http-key",
            key.unwrap(),
        ]
    }
}
