//! A small client of rqlite's API that keeps the three outcomes of a write apart.

use std::time::Duration;

use serde_json::Value;

/// What came of a write.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It was answered; single statements may still have failed.
    Answered(Answer),
    /// Certainly not committed.
    NotCommitted(String),
    /// Perhaps committed, perhaps not.
    Unknown(String),
}

/// An answer to statements.
#[derive(Clone, Debug)]
pub struct Answer {
    /// One per statement, in rqlite's JSON.
    pub results: Vec<Value>,
    /// The index in the log, if it was asked for and there is one.
    pub raft_index: Option<u64>,
}

/// Any HTTP answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// An HTTP answer that is not text.
#[derive(Clone, Debug)]
pub struct Download {
    /// The status code.
    pub status: u16,
    /// `Content-Type`; empty if there is none.
    pub content_type: String,
    /// The body.
    pub bytes: Vec<u8>,
}

/// The page image of one node.
#[derive(Clone)]
pub struct Image {
    /// Index of the last entry applied.
    pub applied_index: u64,
    /// Index of the last data entry contained.
    pub data_index: u64,
    /// The hash that the node keeps, 32 hex digits.
    pub hash: String,
    /// Bytes per page.
    pub page_bytes: usize,
    /// All pages.
    pub bytes: Vec<u8>,
}

/// A client. Every request uses a connection of its own: an error on a kept one would not tell
/// whether the request was sent.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    timeout: Duration,
}

impl Answer {
    /// The error of the first statement that failed.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.results
            .iter()
            .find_map(|result| result["error"].as_str())
    }

    /// The rows of one result.
    #[must_use]
    pub fn rows(&self, result: usize) -> Vec<Vec<Value>> {
        let cells = |row: &Value| row.as_array().cloned().unwrap_or_default();
        let values = self.results[result]["values"].as_array();
        values.into_iter().flatten().map(cells).collect()
    }
}

impl Outcome {
    /// The answer, with every statement a success.
    ///
    /// # Panics
    ///
    /// When it is anything else.
    #[must_use]
    #[track_caller]
    pub fn expect_success(self) -> Answer {
        match self {
            Self::Answered(answer) if answer.error().is_none() => answer,
            other => panic!("a success was expected: {other:?}"),
        }
    }
}

impl Client {
    /// A client that gives up after `timeout`, and tells the server so.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_idle_connections(0)
            // What this node answers, not what another one does.
            .max_redirects(0)
            .timeout_global(Some(timeout + Duration::from_secs(1)))
            .timeout_connect(Some(Duration::from_secs(1)))
            .build();
        Self {
            agent: config.into(),
            timeout,
        }
    }

    /// Writes through `/db/execute`. Each statement is an SQL text or an array of text and
    /// parameters.
    #[must_use]
    pub fn execute(&self, address: &str, statements: &Value) -> Outcome {
        self.write(address, "/db/execute?transaction&raft_index", statements)
    }

    /// Writes one SQL text, which may be one that cannot run inside a transaction.
    #[must_use]
    pub fn execute_sql(&self, address: &str, sql: &str) -> Outcome {
        self.write(address, "/db/execute?raft_index", &serde_json::json!([sql]))
    }

    /// Writes, or reads and writes, through an endpoint with its query parameters.
    #[must_use]
    pub fn write(&self, address: &str, endpoint: &str, statements: &Value) -> Outcome {
        let separator = if endpoint.contains('?') { '&' } else { '?' };
        let timeout = self.timeout.as_millis();
        let url = format!("{endpoint}{separator}timeout={timeout}ms");
        match self.post(
            address,
            &url,
            "application/json",
            statements.to_string().as_bytes(),
        ) {
            Ok(response) => outcome(&response),
            Err(error) if never_sent(&error) => Outcome::NotCommitted(error.to_string()),
            Err(error) => Outcome::Unknown(error.to_string()),
        }
    }

    /// Reads with one SQL text.
    ///
    /// # Errors
    ///
    /// Whatever kept rows from coming back.
    pub fn query(&self, address: &str, level: &str, sql: &str) -> Result<Vec<Vec<Value>>, String> {
        let timeout = self.timeout.as_millis();
        let url = format!("/db/query?level={level}&timeout={timeout}ms");
        let body = serde_json::json!([sql]).to_string();
        let response = self
            .post(address, &url, "application/json", body.as_bytes())
            .map_err(|error| error.to_string())?;
        match outcome(&response) {
            Outcome::Answered(answer) if answer.error().is_none() && !answer.results.is_empty() => {
                Ok(answer.rows(0))
            }
            other => Err(format!("{other:?}")),
        }
    }

    /// POST of anything.
    ///
    /// # Errors
    ///
    /// When no answer came.
    pub fn post(
        &self,
        address: &str,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> Result<Response, ureq::Error> {
        let request = self.agent.post(format!("http://{address}{path}"));
        read(request.header("Content-Type", content_type).send(body)?)
    }

    /// Has the cluster remove a node.
    ///
    /// # Errors
    ///
    /// When no answer came.
    pub fn remove(&self, address: &str, name: &str) -> Result<Response, ureq::Error> {
        let request = self.agent.delete(format!("http://{address}/remove"));
        let body = serde_json::json!({ "id": name }).to_string();
        let request = request.header("Content-Type", "application/json");
        read(request.force_send_body().send(body)?)
    }

    /// GET of anything that is text.
    ///
    /// # Errors
    ///
    /// When no answer came.
    pub fn get(&self, address: &str, path: &str) -> Result<Response, ureq::Error> {
        read(self.agent.get(format!("http://{address}{path}")).call()?)
    }

    /// GET of anything, as bytes.
    ///
    /// # Errors
    ///
    /// When no answer came, or not all of it.
    pub fn download(&self, address: &str, path: &str) -> Result<Download, ureq::Error> {
        let mut response = self.agent.get(format!("http://{address}{path}")).call()?;
        let content_type = response.headers().get("Content-Type");
        let content_type = content_type.and_then(|value| value.to_str().ok());
        Ok(Download {
            status: response.status().as_u16(),
            content_type: content_type.unwrap_or_default().to_owned(),
            bytes: response
                .body_mut()
                .with_config()
                .limit(IMAGE_BYTES_MAX)
                .read_to_vec()?,
        })
    }

    /// GET of JSON.
    ///
    /// # Errors
    ///
    /// When no answer came, or not status 200, or no JSON.
    pub fn json(&self, address: &str, path: &str) -> Result<Value, String> {
        let response = self.get(address, path).map_err(|error| error.to_string())?;
        if response.status != 200 {
            return Err(format!("status {}: {}", response.status, response.body));
        }
        serde_json::from_str(&response.body).map_err(|error| format!("{path}: {error}"))
    }

    /// The page image of a node.
    ///
    /// # Errors
    ///
    /// When it cannot be had.
    pub fn image(&self, address: &str) -> Result<Image, String> {
        let request = self.agent.get(format!("http://{address}/wallaby/image"));
        let request = request
            .config()
            .timeout_global(Some(Duration::from_secs(60)))
            .build();
        let mut response = request.call().map_err(|error| error.to_string())?;
        if response.status() != 200 {
            let body = response.body_mut().read_to_string().unwrap_or_default();
            return Err(format!("status {}: {body}", response.status()));
        }
        let header = |name: &str| {
            let value = response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok());
            value
                .map(str::to_owned)
                .ok_or_else(|| format!("no header {name}"))
        };
        let number = |name: &str| {
            header(name)?
                .parse::<u64>()
                .map_err(|error| format!("{name}: {error}"))
        };
        let applied_index = number("X-Wallaby-Applied-Index")?;
        let data_index = number("X-Wallaby-Data-Index")?;
        let page_bytes = usize::try_from(number("X-Wallaby-Page-Size")?).unwrap_or(0);
        let page_count = usize::try_from(number("X-Wallaby-Page-Count")?).unwrap_or(0);
        let hash = header("X-Wallaby-Database-Hash")?;
        let body = response
            .body_mut()
            .with_config()
            .limit(IMAGE_BYTES_MAX)
            .read_to_vec();
        let bytes = body.map_err(|error| error.to_string())?;
        if bytes.len() != page_bytes * page_count {
            return Err(format!(
                "{} bytes for {page_count} pages of {page_bytes}",
                bytes.len()
            ));
        }
        Ok(Image {
            applied_index,
            data_index,
            hash,
            page_bytes,
            bytes,
        })
    }
}

/// Reads a whole answer.
fn read(mut response: ureq::http::Response<ureq::Body>) -> Result<Response, ureq::Error> {
    let body = response
        .body_mut()
        .with_config()
        .limit(IMAGE_BYTES_MAX)
        .read_to_vec()?;
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(Response {
        status: response.status().as_u16(),
        body,
    })
}

/// Whether the request cannot have reached the server: no connection was made.
fn never_sent(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => true,
        ureq::Error::Timeout(which) => {
            matches!(which, ureq::Timeout::Connect | ureq::Timeout::Resolve)
        }
        _ => false,
    }
}

/// What an HTTP answer says about a write. Whatever is not clearly one of the known refusals counts
/// as unknown: the checker then allows the write to be there or not.
fn outcome(response: &Response) -> Outcome {
    let parsed: Value = serde_json::from_str(&response.body).unwrap_or_default();
    let refusal = parsed["error"].as_str().unwrap_or(&response.body);
    if response.status == 200 && parsed["results"].is_array() && parsed["error"].is_null() {
        let results = parsed["results"].as_array().cloned().unwrap_or_default();
        return Outcome::Answered(Answer {
            results,
            raft_index: parsed["raft_index"].as_u64(),
        });
    }
    let certain = response.status == 400
        || response.status == 413
        || REFUSALS.iter().any(|known| refusal.contains(known));
    let text = format!("status {}: {}", response.status, refusal.trim_end());
    if certain && !refusal.contains("unknown") {
        Outcome::NotCommitted(text)
    } else {
        Outcome::Unknown(text)
    }
}

/// What the server says when it knows that nothing was appended (`node::Refusal`).
const REFUSALS: [&str; 8] = [
    "disallowed pragma",
    "leader not found",
    "no space for the WAL",
    "not ready: ",
    "safe to send the request again",
    "stopped serving",
    "too many writes are waiting",
    "transaction too large",
];

/// More than any test's database or answer.
const IMAGE_BYTES_MAX: u64 = 2 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, body: &str) -> &'static str {
        match outcome(&Response {
            status,
            body: body.to_owned(),
        }) {
            Outcome::Answered(_) => "answered",
            Outcome::NotCommitted(_) => "not committed",
            Outcome::Unknown(_) => "unknown",
        }
    }

    #[test]
    fn only_known_refusals_count_as_not_committed() {
        assert_eq!(
            kind(200, r#"{"results":[{"rows_affected":1}]}"#),
            "answered"
        );
        assert_eq!(
            kind(200, r#"{"results":[{"error":"no such table: t"}]}"#),
            "answered"
        );
        assert_eq!(kind(503, "leader not found\n"), "not committed");
        assert_eq!(kind(400, "invalid JSON body\n"), "not committed");
        let refused = "not committed: x; it is safe to send the request again";
        assert_eq!(
            kind(200, &format!(r#"{{"results":[],"error":"{refused}"}}"#)),
            "not committed"
        );
        assert_eq!(
            kind(200, r#"{"results":[],"error":"outcome unknown: x"}"#),
            "unknown"
        );
        assert_eq!(kind(500, "something new"), "unknown");
        assert_eq!(kind(200, "not JSON"), "unknown");
    }
}
