//! HTTP as bytes on a connection, for what no client library would send.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// What came back: the status of the first answer, and all bytes after its head.
#[derive(Clone, Debug, Default)]
pub struct BluntAnswer {
    /// `None`: the connection ended without an answer.
    pub status: Option<u16>,
    /// What followed the first head.
    pub body: String,
}

/// Connects with a patience for reading and writing.
///
/// # Panics
///
/// When nobody listens.
#[must_use]
pub fn connect(address: &str, patience: Duration) -> TcpStream {
    let stream = TcpStream::connect(address);
    let stream = stream.unwrap_or_else(|error| panic!("connecting to {address}: {error}"));
    stream
        .set_read_timeout(Some(patience))
        .and_then(|()| stream.set_write_timeout(Some(patience)))
        .expect("the patience is not zero");
    stream
}

/// The bytes of a POST with a JSON body, on a connection that is closed after it.
#[must_use]
pub fn post_bytes(address: &str, path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Sends bytes and reads until the server closes or the patience ends. The server may close while
/// bytes are still being sent; what it has answered by then is read nevertheless.
#[must_use]
pub fn exchange(address: &str, bytes: &[u8], patience: Duration) -> BluntAnswer {
    let mut stream = connect(address, patience);
    let _ = stream.write_all(bytes);
    read_answer(&mut stream)
}

/// Reads an answer to the end of the connection.
#[must_use]
pub fn read_answer(stream: &mut TcpStream) -> BluntAnswer {
    let mut answer = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer);
    let status = text
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| text.strip_prefix("HTTP/1.0 "))
        .and_then(|rest| rest.get(..3)?.parse().ok());
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    BluntAnswer {
        status,
        body: body.to_owned(),
    }
}

/// More than any answer that is looked at.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
