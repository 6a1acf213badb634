//! Certificates and keys in PEM files, and the common name in a certificate. HTTP reads its files
//! by the same functions.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The certificates of a file: one's own first, then those that lead to its authority.
///
/// # Errors
/// What is wrong with the file, without its name.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<_, _>>);
    let found: Vec<_> = read.map_err(|error| error.to_string())?;
    if found.is_empty() {
        return Err("it has no certificate in PEM form".to_owned());
    }
    Ok(found)
}

/// The certificates of a file as authorities to be trusted.
///
/// # Errors
/// What is wrong with the file, without its name.
pub fn authorities(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    Ok(roots)
}

/// The private key in a file.
///
/// # Errors
/// What is wrong with the file, without its name.
pub fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(file)
        .map_err(|error| format!("it has no private key in PEM form: {error}"))
}

/// Whether the only common name of a certificate's subject is this one.
#[must_use]
pub fn has_common_name(certificate: &CertificateDer<'_>, wanted: &str) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
        return false;
    };
    let mut names = parsed.subject().iter_common_name();
    let first = names.next().and_then(|name| name.as_str().ok());
    first == Some(wanted) && names.next().is_none()
}

/// When a certificate ends, in seconds since 1970; `None` if it cannot be read.
#[must_use]
pub fn ends_at(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}
