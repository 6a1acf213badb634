//! Requests as bytes, and answers as they came.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// An answer as it came over the connection.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Raw {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A stream in clear, with patience.
pub(crate) fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    let patience = Some(Duration::from_secs(60));
    stream.set_read_timeout(patience).unwrap();
    stream
}

/// A stream in TLS; the certificate must be for 127.0.0.1. The handshake is not made yet.
pub(crate) fn connect_tls(
    address: &str,
    config: &Arc<ClientConfig>,
) -> StreamOwned<ClientConnection, TcpStream> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    StreamOwned::new(connection, connect(address))
}

/// The header of a user.
pub(crate) fn basic(username: &str, password: &str) -> String {
    let encoded = STANDARD.encode(format!("{username}:{password}"));
    format!("Authorization: Basic {encoded}")
}

/// One request (`GET /path`) over a stream; the answer is read to the end of the stream. Without a
/// `Host` among the headers, `host` is sent.
pub(crate) fn exchange(
    mut stream: impl Read + Write,
    host: &str,
    line: &str,
    headers: &[&str],
    body: &[u8],
) -> std::io::Result<Raw> {
    let mut head = format!("{line} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|header| header.starts_with("Host:")) {
        head.push_str(&format!("Host: {host}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for header in headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    // A server that has refused the head may close before it has read the body.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&answer)
}

fn parse(answer: &[u8]) -> std::io::Result<Raw> {
    let odd = || std::io::Error::other(String::from_utf8_lossy(answer).into_owned());
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.ok_or_else(odd)?;
    let head = String::from_utf8(answer[..end].to_vec()).map_err(|_| odd())?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let status = status.and_then(|status| status.parse().ok());
    let split = |line: &str| {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        (name.to_ascii_lowercase(), value.trim().to_owned())
    };
    Ok(Raw {
        status: status.ok_or_else(odd)?,
        headers: lines.map(split).collect(),
        body: answer[end + 4..].to_vec(),
    })
}

/// One request without a body, in clear.
pub(crate) fn call(address: &str, line: &str, headers: &[&str]) -> Raw {
    exchange(connect(address), address, line, headers, b"").unwrap()
}

/// One request with a JSON body, in clear.
pub(crate) fn post(address: &str, path: &str, headers: &[&str], body: &str) -> Raw {
    let headers = [headers, &["Content-Type: application/json"]].concat();
    let line = format!("POST {path}");
    exchange(connect(address), address, &line, &headers, body.as_bytes()).unwrap()
}
