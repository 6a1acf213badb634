//! The answer that is expected, and how another one differs from it.

use serde_json::Value;

use crate::answer::Answer;
use crate::pattern::{Names, Pattern};

/// What an answer has to be.
#[derive(Clone, Debug)]
pub(crate) struct Expectation {
    status: u16,
    kind: Kind,
    /// Name, value, and whether it may be missing.
    headers: Vec<(String, Pattern, bool)>,
    body: Option<Pattern>,
    checks: Vec<Check>,
}

/// The kinds of answers, by the headers that go with them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Answer,
    Empty,
    Error,
    Json,
    Octets,
    Sql,
    Text,
}

/// Something about a body that is not compared as a whole.
#[derive(Clone, Debug)]
pub(crate) enum Check {
    Bytes { offset: usize, bytes: Vec<u8> },
    Json { path: String, value: Pattern },
    Rows { sql: String, rows: Value },
}

/// What the expectation does not know by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Circumstances<'a> {
    pub(crate) names: &'a Names,
    /// The HTTP address of the node that was asked.
    pub(crate) address: &'a str,
    /// Whether the nodes have a users file.
    pub(crate) has_users: bool,
}

impl Kind {
    pub(crate) fn parse(word: &str) -> Result<Self, String> {
        Ok(match word {
            "answer" => Self::Answer,
            "empty" => Self::Empty,
            "error" => Self::Error,
            "json" => Self::Json,
            "octets" => Self::Octets,
            "sql" => Self::Sql,
            "text" => Self::Text,
            _ => return Err(format!("`{word}` is no kind of answer")),
        })
    }

    fn content_type(self) -> Option<&'static str> {
        match self {
            Self::Answer | Self::Json => Some("application/json; charset=utf-8"),
            Self::Empty => None,
            Self::Error | Self::Text => Some("text/plain; charset=utf-8"),
            Self::Octets => Some("application/octet-stream"),
            Self::Sql => Some("application/sql"),
        }
    }
}

impl Check {
    /// Reads a line that begins with `@`, `?` or `.`.
    pub(crate) fn parse(line: &str) -> Result<Self, String> {
        let rest = line[1..].trim();
        match line.as_bytes()[0] {
            b'@' => {
                let mut words = rest.split(' ');
                let offset = words.next().and_then(|word| word.parse().ok());
                let bytes = words.map(|word| u8::from_str_radix(word, 16));
                let bytes: Result<Vec<u8>, _> = bytes.collect();
                let bytes = bytes.map_err(|_| "bytes are hexadecimal")?;
                if bytes.is_empty() {
                    return Err("no bytes".to_owned());
                }
                let offset = offset.ok_or("an offset is a number")?;
                Ok(Self::Bytes { offset, bytes })
            }
            b'?' => {
                let (sql, rows) = rest.split_once(" => ").ok_or("SQL => JSON")?;
                let rows = serde_json::from_str(rows).map_err(|error| error.to_string())?;
                let sql = sql.to_owned();
                Ok(Self::Rows { sql, rows })
            }
            _ => {
                let (path, value) = rest.split_once(" = ").ok_or("path = JSON")?;
                let (path, value) = (path.to_owned(), Pattern::parse(value)?);
                Ok(Self::Json { path, value })
            }
        }
    }

    fn holds(&self, answer: &Answer, names: &Names) -> Result<Names, String> {
        match self {
            Self::Bytes { offset, bytes } => {
                let found = answer.body.get(*offset..offset + bytes.len());
                if found == Some(bytes) {
                    return Ok(Names::new());
                }
                Err(format!("bytes at {offset}: {bytes:x?}, found {found:x?}"))
            }
            Self::Json { path, value } => {
                let body: Value = serde_json::from_slice(&answer.body)
                    .map_err(|error| format!("no JSON ({error}): {}", answer.text()))?;
                let found = path
                    .split('.')
                    .fold(&body, |at, name| at.get(name).unwrap_or(&Value::Null));
                let found = found.to_string();
                value.matches(&found, names).map_err(|error| {
                    format!("{path} = {}\nfound {found}: {error}", value.shown(names))
                })
            }
            Self::Rows { sql, rows } => {
                let found =
                    rows_of(&answer.body, sql).map_err(|error| format!("{sql}: {error}"))?;
                if found == *rows {
                    return Ok(Names::new());
                }
                Err(format!("{sql}\ngives {rows}\nfound {found}"))
            }
        }
    }
}

impl Expectation {
    pub(crate) fn new(
        status: u16,
        kind: Kind,
        headers: Vec<(String, Pattern, bool)>,
        body: &[String],
        checks: Vec<Check>,
    ) -> Result<Self, String> {
        let body = if body.is_empty() {
            None
        } else {
            let end = if kind == Kind::Error { "\n" } else { "" };
            Some(Pattern::parse(&format!("{}{end}", body.join("\n")))?)
        };
        let has_body = body.is_some() || !checks.is_empty();
        if kind == Kind::Empty && has_body {
            return Err("an empty answer has no body".to_owned());
        }
        if matches!(kind, Kind::Answer | Kind::Error | Kind::Octets | Kind::Sql) && !has_body {
            return Err("nothing is said about the body".to_owned());
        }
        Ok(Self {
            status,
            kind,
            headers,
            body,
            checks,
        })
    }

    /// Compares an answer, all of it; returns what is to be kept of it, or every difference.
    pub(crate) fn compare(
        &self,
        answer: &Answer,
        circumstances: &Circumstances<'_>,
    ) -> Result<Names, String> {
        let names = circumstances.names;
        let mut kept = Names::new();
        let mut differences = Vec::new();
        if answer.status != self.status {
            differences.push(format!("status {}, found {}", self.status, answer.status));
        }
        self.compare_headers(answer, circumstances, &mut differences);
        let body = match &self.body {
            None if self.checks.is_empty() && answer.body.is_empty() => Ok(Names::new()),
            None if self.checks.is_empty() => Err("no body is expected".to_owned()),
            None => Ok(Names::new()),
            Some(pattern) => pattern.matches(&answer.common_text(), names),
        };
        match body {
            Ok(found) => kept.extend(found),
            Err(why) => {
                let expected = self.body.as_ref().map(|body| body.shown(names));
                differences.push(format!(
                    "body ({why})\nexpected: {}\nreceived: {}",
                    expected.unwrap_or_default(),
                    answer.text()
                ));
            }
        }
        for check in &self.checks {
            match check.holds(answer, names) {
                Ok(found) => kept.extend(found),
                Err(why) => differences.push(why),
            }
        }
        if differences.is_empty() {
            Ok(kept)
        } else {
            Err(differences.join("\n"))
        }
    }

    fn compare_headers(
        &self,
        answer: &Answer,
        circumstances: &Circumstances<'_>,
        differences: &mut Vec<String>,
    ) {
        let mut expected = self.common(circumstances);
        for (name, value, optional) in &self.headers {
            expected.retain(|(other, _, _)| other != name);
            expected.push((name.clone(), value.clone(), *optional));
        }
        for (name, value, optional) in &expected {
            let found = answer.headers.iter().filter(|(other, _)| other == name);
            let found: Vec<&str> = found.map(|(_, value)| value.as_str()).collect();
            let fits = match found.as_slice() {
                [] => *optional,
                [one] => value.matches(one, circumstances.names).is_ok(),
                _ => false,
            };
            if !fits {
                let value = value.shown(circumstances.names);
                differences.push(format!("header {name}: {value}, found {found:?}"));
            }
        }
        for (name, value) in &answer.headers {
            let known = expected.iter().any(|(other, _, _)| other == name);
            if !known && !FRAMING.contains(&name.as_str()) {
                differences.push(format!("header {name} is not expected, found {value:?}"));
            }
        }
    }

    /// The headers that go without saying.
    fn common(&self, circumstances: &Circumstances<'_>) -> Vec<(String, Pattern, bool)> {
        let mut headers = vec![
            ("x-rqlite-version", "<<version>>"),
            ("access-control-allow-methods", "OPTIONS, GET, POST"),
        ];
        if circumstances.has_users {
            headers.extend([
                (
                    "access-control-allow-headers",
                    "Content-Type, Authorization",
                ),
                ("access-control-allow-credentials", "true"),
                ("www-authenticate", "Basic realm=\"rqlite\""),
            ]);
        } else {
            headers.push(("access-control-allow-headers", "Content-Type"));
        }
        if let Some(content_type) = self.kind.content_type() {
            headers.push(("content-type", content_type));
        }
        match self.kind {
            Kind::Answer => headers.push(("x-rqlite-served-by", circumstances.address)),
            Kind::Error => headers.push(("x-content-type-options", "nosniff")),
            _ => {}
        }
        let pattern = |text| Pattern::parse(text).expect("these are well formed");
        let headers = headers.into_iter();
        headers
            .map(|(name, value)| (name.to_owned(), pattern(value), false))
            .collect()
    }
}

/// Opens a body as a database, has SQLite check it, and asks it.
fn rows_of(body: &[u8], sql: &str) -> Result<Value, String> {
    let said = |error: rusqlite::Error| error.to_string();
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let file = dir.path().join("body.db");
    std::fs::write(&file, body).map_err(|error| error.to_string())?;
    let database = rusqlite::Connection::open(file).map_err(said)?;
    let verdict: String = database
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .map_err(said)?;
    if verdict != "ok" {
        return Err(verdict);
    }
    let mut statement = database.prepare(sql).map_err(said)?;
    let columns = statement.column_count();
    let mut rows = statement.query([]).map_err(said)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(said)? {
        let cell = |column| -> Result<Value, rusqlite::Error> {
            Ok(match row.get::<_, rusqlite::types::Value>(column)? {
                rusqlite::types::Value::Null => Value::Null,
                rusqlite::types::Value::Integer(value) => value.into(),
                rusqlite::types::Value::Real(value) => value.into(),
                rusqlite::types::Value::Text(value) => value.into(),
                rusqlite::types::Value::Blob(value) => value.into(),
            })
        };
        let cells: Result<Vec<Value>, _> = (0..columns).map(cell).collect();
        found.push(Value::Array(cells.map_err(said)?));
    }
    Ok(Value::Array(found))
}

/// What only frames the body, or tells the time.
const FRAMING: [&str; 4] = ["connection", "content-length", "date", "transfer-encoding"];
