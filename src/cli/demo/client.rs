//! The few HTTP calls of the demo.

use std::time::Duration;

use serde_json::Value;

/// An HTTP client. Every method blocks for at most its time-out, and says in a sentence what went
/// wrong.
pub(super) struct Client {
    agent: ureq::Agent,
}

/// The page image of one node.
pub(super) struct Image {
    /// Index of the last data entry that it contains.
    pub(super) data_index: u64,
    /// The hash that the node computes as it applies entries, 32 hex digits.
    pub(super) hash: String,
    /// Bytes per page.
    pub(super) page_bytes: usize,
    /// All pages.
    pub(super) bytes: Vec<u8>,
}

impl Client {
    /// A client.
    pub(super) fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build();
        Self {
            agent: config.into(),
        }
    }

    /// Runs statements in one transaction.
    pub(super) fn execute(
        &self,
        address: &str,
        statements: &[String],
        timeout: Duration,
    ) -> Result<(), String> {
        let milliseconds = timeout.as_millis();
        let url = format!("http://{address}/db/execute?transaction&timeout={milliseconds}ms");
        let body = serde_json::to_string(statements).map_err(|error| error.to_string())?;
        let answer = self
            .agent
            .post(&url)
            .config()
            .timeout_global(Some(timeout + GRACE))
            .build()
            .header("Content-Type", "application/json")
            .send(body);
        results(&checked(answer)?).map(|_| ())
    }

    /// Runs one query and returns its rows as text.
    pub(super) fn query(&self, address: &str, sql: &str) -> Result<Vec<Vec<String>>, String> {
        let answer = self
            .agent
            .get(format!("http://{address}/db/query"))
            .query("q", sql)
            .config()
            .timeout_global(Some(Duration::from_secs(10)))
            .build()
            .call();
        let results = results(&checked(answer)?)?;
        let rows = results
            .first()
            .and_then(|first| first["values"].as_array())
            .cloned();
        let text = |value: &Value| {
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned)
        };
        let cells = |row: &Value| row.as_array().into_iter().flatten().map(text).collect();
        Ok(rows.unwrap_or_default().iter().map(cells).collect())
    }

    /// Whether the node is ready and, with `sync`, has applied what its leader had committed.
    pub(super) fn ready(&self, address: &str) -> Result<(), String> {
        let url = format!("http://{address}/readyz?sync&timeout=2s");
        self.get(&url).map(|_| ())
    }

    /// The name of the leader, once it reaches at least `reachable` nodes, itself included.
    pub(super) fn leader(&self, address: &str, reachable: usize) -> Result<String, String> {
        let text = self.get(&format!("http://{address}/nodes?timeout=1s"))?;
        let nodes: serde_json::Map<String, Value> =
            serde_json::from_str(&text).map_err(|error| format!("/nodes: {error}"))?;
        let answering = nodes
            .values()
            .filter(|node| node["reachable"] == true)
            .count();
        if answering < reachable {
            return Err(format!("{answering} of {reachable} nodes answer"));
        }
        let leader = nodes.iter().find(|(_, node)| node["leader"] == true);
        leader
            .map(|(name, _)| name.clone())
            .ok_or_else(|| "no leader".to_owned())
    }

    /// The page image of a node.
    pub(super) fn image(&self, address: &str) -> Result<Image, String> {
        let mut response = self
            .agent
            .get(format!("http://{address}/wallaby/image"))
            .config()
            .timeout_global(Some(Duration::from_secs(60)))
            .build()
            .call()
            .map_err(|error| error.to_string())?;
        let header = |name: &str| {
            let value = response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok());
            value
                .map(str::to_owned)
                .ok_or_else(|| format!("/wallaby/image without {name}"))
        };
        if response.status() != 200 {
            return Err(format!("/wallaby/image: status {}", response.status()));
        }
        let number = |name: &str| {
            header(name)?
                .parse::<u64>()
                .map_err(|error| format!("{name}: {error}"))
        };
        let data_index = number("X-Wallaby-Data-Index")?;
        let page_bytes = usize::try_from(number("X-Wallaby-Page-Size")?).unwrap_or(0);
        let hash = header("X-Wallaby-Database-Hash")?;
        let body = response
            .body_mut()
            .with_config()
            .limit(IMAGE_BYTES_MAX)
            .read_to_vec();
        let bytes = body.map_err(|error| error.to_string())?;
        Ok(Image {
            data_index,
            hash,
            page_bytes,
            bytes,
        })
    }

    /// GET, with status 200 expected.
    fn get(&self, url: &str) -> Result<String, String> {
        let request = self
            .agent
            .get(url)
            .config()
            .timeout_global(Some(Duration::from_secs(4)));
        checked(request.build().call())
    }
}

/// The body of an answer with status 200.
fn checked(
    answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<String, String> {
    let mut response = answer.map_err(|error| error.to_string())?;
    let body = response
        .body_mut()
        .read_to_string()
        .map_err(|error| error.to_string())?;
    if response.status() == 200 {
        return Ok(body);
    }
    Err(format!("status {}: {}", response.status(), body.trim_end()))
}

/// The results in rqlite's JSON, unless one of them, or the request as a whole, failed.
fn results(body: &str) -> Result<Vec<Value>, String> {
    let answer: Value = serde_json::from_str(body).map_err(|error| format!("{body}: {error}"))?;
    let results = answer["results"].as_array().cloned().unwrap_or_default();
    let failed = std::iter::once(&answer)
        .chain(&results)
        .find_map(|part| part["error"].as_str());
    match failed {
        Some(error) => Err(error.to_owned()),
        None => Ok(results),
    }
}

/// How much longer than the node's own time-out the client waits for the answer.
const GRACE: Duration = Duration::from_secs(1);

/// The demo's database has about one million bytes; whatever is far larger is not it.
const IMAGE_BYTES_MAX: u64 = 1 << 30;
