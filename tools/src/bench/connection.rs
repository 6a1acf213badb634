//! One kept connection to an endpoint.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Where and how to connect.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// `host:port`.
    pub address: String,
    /// With TLS, and these authorities.
    pub tls: Option<Arc<ClientConfig>>,
    /// HTTP/2 instead of HTTP/1.1; without TLS by prior knowledge.
    pub is_h2: bool,
    /// The value of `Authorization`.
    pub authorization: Option<String>,
}

impl Endpoint {
    /// From `http://host:port`, `https://host:port` or `host:port`. `authorities` is a PEM file;
    /// `https` needs it.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(
        text: &str,
        is_h2: bool,
        user: Option<&str>,
        authorities: Option<&Path>,
    ) -> Result<Self, String> {
        let (address, tls) = match text.strip_prefix("https://") {
            Some(address) => {
                let why = || format!("{text}: give the authority of its certificate as --ca-cert");
                (address, Some(tls(authorities.ok_or_else(why)?, is_h2)?))
            }
            None => (text.strip_prefix("http://").unwrap_or(text), None),
        };
        let address = address.trim_end_matches('/');
        let has_port = address
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if !has_port {
            return Err(format!(
                "{text:?} is not http://host:port or https://host:port"
            ));
        }
        let encode = |user: &str| {
            use base64::Engine as _;
            let encoded = base64::engine::general_purpose::STANDARD.encode(user);
            format!("Basic {encoded}")
        };
        Ok(Self {
            address: address.to_owned(),
            tls,
            is_h2,
            authorization: user.map(encode),
        })
    }
}

fn tls(authorities: &Path, is_h2: bool) -> Result<Arc<ClientConfig>, String> {
    let why = |error: &dyn std::fmt::Display| format!("{}: {error}", authorities.display());
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(authorities).map_err(|error| why(&error))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| why(&error))?;
        roots.add(certificate).map_err(|error| why(&error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| why(&error))?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    let protocol: &[u8] = if is_h2 { b"h2" } else { b"http/1.1" };
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(Arc::new(config))
}

/// A call: its method and path are fixed by the workload, its body varies.
#[derive(Clone, Debug)]
pub struct Call {
    /// Path and query.
    pub path: &'static str,
    /// The JSON that is posted.
    pub body: Bytes,
}

/// An open connection.
pub struct Connection {
    sender: Sender,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
    authority: String,
}

/// With TLS or without.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    /// Connects; what drives the connection runs as a task of its own.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub async fn open(endpoint: &Endpoint) -> Result<Self, String> {
        let why = |error: &dyn std::fmt::Display| format!("{}: {error}", endpoint.address);
        let connecting = timeout(PATIENCE, TcpStream::connect(&endpoint.address));
        let stream = connecting.await.map_err(|error| why(&error))?;
        let stream = stream.map_err(|error| why(&error))?;
        stream.set_nodelay(true).map_err(|error| why(&error))?;
        let io: Box<dyn Stream> = match &endpoint.tls {
            None => Box::new(stream),
            Some(config) => {
                let host = endpoint
                    .address
                    .rsplit_once(':')
                    .map_or("", |(host, _)| host);
                let name = ServerName::try_from(host.to_owned()).map_err(|error| why(&error))?;
                let connector = TlsConnector::from(Arc::clone(config));
                let secured = connector.connect(name, stream).await;
                Box::new(secured.map_err(|error| why(&error))?)
            }
        };
        let io = TokioIo::new(io);
        let sender = if endpoint.is_h2 {
            let (sender, driver) = http2::handshake(TokioExecutor::new(), io)
                .await
                .map_err(|error| why(&error))?;
            // Its end shows at the next call.
            tokio::spawn(async move { drop(driver.await) });
            Sender::Http2(sender)
        } else {
            let (sender, driver) = http1::handshake(io).await.map_err(|error| why(&error))?;
            tokio::spawn(async move { drop(driver.await) });
            Sender::Http1(sender)
        };
        let header = |text: &str| HeaderValue::from_str(text).map_err(|error| why(&error));
        Ok(Self {
            sender,
            host: header(&endpoint.address)?,
            authorization: endpoint.authorization.as_deref().map(header).transpose()?,
            authority: format!(
                "{}://{}",
                if endpoint.tls.is_some() {
                    "https"
                } else {
                    "http"
                },
                endpoint.address
            ),
        })
    }

    /// Sends a call and reads the whole answer.
    ///
    /// # Errors
    ///
    /// What was answered instead of a success, or why nothing was.
    pub async fn call(&mut self, call: Call) -> Result<Bytes, String> {
        let uri = match &self.sender {
            Sender::Http1(_) => call.path.to_owned(),
            Sender::Http2(_) => format!("{}{}", self.authority, call.path),
        };
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if matches!(self.sender, Sender::Http1(_)) {
            request = request.header(HOST, self.host.clone());
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let request = request.body(Full::new(call.body));
        let request = request.map_err(|error| error.to_string())?;
        let answer = match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await.map_err(|error| error.to_string())?;
                sender.send_request(request).await
            }
            Sender::Http2(sender) => sender.send_request(request).await,
        };
        let answer = answer.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = answer.into_body().collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        if status.as_u16() == 200 && !has_error(&body) {
            Ok(body)
        } else {
            let text = String::from_utf8_lossy(&body);
            let text: String = text.trim().chars().take(200).collect();
            Err(format!("status {}: {text}", status.as_u16()))
        }
    }
}

/// Whether an answer says that a statement failed. Results follow each other without white space, as
/// rqlite writes them; no workload has such a text among its values.
fn has_error(body: &[u8]) -> bool {
    body.windows(ERROR.len()).any(|window| window == ERROR)
}

const ERROR: &[u8] = b"\"error\":";
const PATIENCE: Duration = Duration::from_secs(5);
