//! The cluster's certificate authority and the certificates of its nodes.
//!
//! Every node derives the same authority from the cluster key and issues its own certificate, so
//! nothing has to be handed round but the key. A node's private key is drawn at each start and
//! never leaves memory.
//!
//! A certificate names its node twice: `node.wallaby`, which says that it is some node of the
//! cluster and is what TLS checks, and `node-<Raft id, 16 hex digits>.wallaby`, which the hello is
//! compared with. The second check is made after TLS so that each side can say which node it met.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::ClusterKey;

/// The name in every node's certificate.
pub(super) const ANY_NODE: &str = "node.wallaby";

/// The authority that the cluster key stands for.
pub(super) struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Derives the authority. Equal keys give equal authorities, byte for byte: the seed comes from
    /// the key, Ed25519 signatures have no randomness (RFC 8032), and all else is fixed here.
    pub(super) fn derive(key: &ClusterKey) -> Result<Self, rcgen::Error> {
        let seed = key.derive(&[b"certificate authority, Ed25519 seed"]);
        let mut pkcs8 = PKCS8_ED25519_PREFIX.to_vec();
        pkcs8.extend_from_slice(&seed);
        let key_pair = KeyPair::try_from(&PrivatePkcs8KeyDer::from(pkcs8))?;
        let mut params = named("Wallaby cluster", vec![])?;
        params.serial_number = Some(SerialNumber::from(1_u64));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key_pair)?.der().clone();
        Ok(Self {
            certificate,
            issuer: Issuer::new(params, key_pair),
        })
    }

    /// The authority's own certificate, which the nodes trust.
    pub(super) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    /// Issues a certificate for a node.
    pub(super) fn issue(&self, node: u64) -> Result<Identity, rcgen::Error> {
        let key_pair = KeyPair::generate_for(&PKCS_ED25519)?;
        let certificate = node_params(node)?.signed_by(&key_pair, &self.issuer)?;
        Ok(Identity {
            certificate: certificate.der().clone(),
            key: PrivatePkcs8KeyDer::from(key_pair.serialize_der()).into(),
        })
    }
}

/// What a node shows of itself.
pub(super) struct Identity {
    /// Its certificate.
    pub(super) certificate: CertificateDer<'static>,
    /// The certificate's private key.
    pub(super) key: PrivateKeyDer<'static>,
}

impl Identity {
    /// A certificate that nobody vouches for, for a cluster without a key.
    pub(super) fn throwaway(node: u64) -> Result<Self, rcgen::Error> {
        let key_pair = KeyPair::generate_for(&PKCS_ED25519)?;
        let certificate = node_params(node)?.self_signed(&key_pair)?;
        Ok(Self {
            certificate: certificate.der().clone(),
            key: PrivatePkcs8KeyDer::from(key_pair.serialize_der()).into(),
        })
    }
}

/// The node that a certificate names; `None` if it names none. Whether the certificate is to be
/// trusted is not decided here.
pub(super) fn node_named_in(certificate: &CertificateDer<'_>) -> Option<u64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| {
        let GeneralName::DNSName(name) = name else {
            return None;
        };
        let digits = name.strip_prefix("node-")?.strip_suffix(".wallaby")?;
        if digits.len() != 16 {
            return None;
        }
        u64::from_str_radix(digits, 16).ok()
    })
}

fn node_params(node: u64) -> Result<CertificateParams, rcgen::Error> {
    let own_name = format!("node-{node:016x}.wallaby");
    let mut params = named("Wallaby node", vec![ANY_NODE.to_owned(), own_name])?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Ok(params)
}

/// Parameters with a common name and the fixed validity. The certificate ends with the process and
/// the authority with the key, so dates would add nothing but outages on clocks that are wrong.
fn named(common_name: &str, dns: Vec<String>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(dns)?;
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    params.not_before = date_time_ymd(1975, 1, 1);
    params.not_after = date_time_ymd(4096, 1, 1);
    Ok(params)
}

/// The PKCS#8 wrapping of an Ed25519 seed without its public key (RFC 8410 section 7): a sequence
/// of version 0, the algorithm 1.3.101.112, and the 32 bytes that follow.
const PKCS8_ED25519_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
