//! HTTP as the stores are asked by it: small bodies, no redirects, a limit on everything.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ureq::http::Request;
use ureq::tls::{ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::config::{DiscoveryError, Login, Tls};

/// A client of a store.
pub(super) struct Web {
    agent: ureq::Agent,
}

impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Web")
    }
}

/// What came back: the status, and the body.
pub(super) type Reply = (u16, Vec<u8>);

impl Web {
    pub(super) fn new(tls: Option<&Tls>) -> Result<Self, DiscoveryError> {
        let tls = match tls {
            Some(tls) => tls_config(tls).map_err(DiscoveryError::config)?,
            None => TlsConfig::builder().build(),
        };
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .max_redirects(0)
            .tls_config(tls)
            .build();
        Ok(Self {
            agent: config.into(),
        })
    }

    /// One request. Blocks.
    pub(super) fn call(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, String)],
        body: Vec<u8>,
    ) -> Result<Reply, String> {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(body).map_err(|error| error.to_string())?;
        let answer = self.agent.run(request);
        let mut answer = answer.map_err(|error| format!("{url}: {error}"))?;
        let body = answer.body_mut().with_config().limit(BODY_BYTES_MAX);
        let body = body
            .read_to_vec()
            .map_err(|error| format!("{url}: {error}"))?;
        Ok((answer.status().as_u16(), body))
    }
}

/// The header of a login by name and password.
pub(super) fn basic(login: &Login) -> String {
    let plain = format!("{}:{}", login.username, login.password);
    format!("Basic {}", STANDARD.encode(plain))
}

/// What a store says against a request, in one line.
pub(super) fn refusal(what: &str, (status, body): &Reply) -> String {
    let text: String = String::from_utf8_lossy(body)
        .chars()
        .take(TEXT_CHARS_MAX)
        .collect();
    format!(
        "{what} is answered {status}: {}",
        text.trim().escape_debug()
    )
}

/// Leaves only what has no meaning in a URL, and the slashes.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn tls_config(tls: &Tls) -> Result<TlsConfig, String> {
    let mut config = TlsConfig::builder().disable_verification(tls.insecure_skip_verify);
    if let Some(file) = &tls.ca_file {
        let (certificates, _) = pem(file)?;
        config = config.root_certs(RootCerts::new_with_certs(&certificates));
    }
    match (&tls.cert_file, &tls.key_file) {
        (Some(cert), Some(key)) => {
            let (certificates, _) = pem(cert)?;
            let (_, key_found) = pem(key)?;
            let key = key_found.ok_or_else(|| format!("{} has no private key", key.display()))?;
            let shown = ClientCert::new_with_certs(&certificates, key);
            config = config.client_cert(Some(shown));
        }
        (None, None) => {}
        _ => return Err("cert_file and key_file go together".to_owned()),
    }
    Ok(config.build())
}

type Pem = (
    Vec<ureq::tls::Certificate<'static>>,
    Option<PrivateKey<'static>>,
);

fn pem(file: &Path) -> Result<Pem, String> {
    let bytes = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let (mut certificates, mut key) = (Vec::new(), None);
    for item in parse_pem(&bytes) {
        match item.map_err(|error| format!("{}: {error}", file.display()))? {
            PemItem::Certificate(certificate) => certificates.push(certificate),
            PemItem::PrivateKey(found) => key = Some(found),
            _ => {}
        }
    }
    if certificates.is_empty() && key.is_none() {
        return Err(format!(
            "{} has neither certificate nor key",
            file.display()
        ));
    }
    Ok((certificates, key))
}

const PATIENCE: Duration = Duration::from_secs(5);
/// A registered leader has some hundred bytes.
const BODY_BYTES_MAX: u64 = 1 << 20;
const TEXT_CHARS_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_meaning_in_a_url_is_escaped() {
        assert_eq!(escaped("a/b-c.d"), "a/b-c.d");
        assert_eq!(escaped("a b?c=d&e%"), "a%20b%3Fc%3Dd%26e%25");
    }
}
