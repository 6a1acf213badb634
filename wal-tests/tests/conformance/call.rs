//! One HTTP call over a connection of its own, seen as it is: no redirect is followed, no header
//! is hidden, no body is taken for text.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::answer::Answer;

/// What is sent.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Option<Vec<u8>>,
}

impl Call {
    /// A GET.
    pub(crate) fn get(target: &str) -> Self {
        Self {
            method: "GET".to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: None,
        }
    }

    /// With the header that tells who is calling: `user:password`.
    pub(crate) fn with_credentials(mut self, credentials: Option<&str>) -> Self {
        if let Some(credentials) = credentials {
            let value = format!("Basic {}", STANDARD.encode(credentials));
            self.headers.push(("Authorization".to_owned(), value));
        }
        self
    }

    /// Sends it and reads the whole answer.
    pub(crate) fn send(&self, address: &str) -> Result<Answer, String> {
        let mut stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .map_err(|error| error.to_string())?;
        stream
            .write_all(&self.head(address))
            .map_err(|error| error.to_string())?;
        // A server that refuses a call may close before it has read the body.
        let _ = stream.write_all(self.body.as_deref().unwrap_or_default());
        let mut bytes = Vec::new();
        stream
            .read_to_end(&mut bytes)
            .map_err(|error| format!("{error} after {} bytes", bytes.len()))?;
        Answer::parse(&bytes)
    }

    fn head(&self, address: &str) -> Vec<u8> {
        let Self { method, target, .. } = self;
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\n");
        head.push_str("Connection: close\r\n");
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(body) = &self.body {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

/// Longer than any server keeps a client waiting.
const PATIENCE: Duration = Duration::from_secs(90);
