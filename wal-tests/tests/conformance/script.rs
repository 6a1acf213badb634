//! The text files, read. What each line means is in `main.rs`.

use crate::expectation::{Check, Expectation, Kind};
use crate::pattern::Pattern;

/// One numbered behaviour.
#[derive(Clone, Debug, Default)]
pub(crate) struct Behaviour {
    pub(crate) file: String,
    pub(crate) line: usize,
    pub(crate) number: u32,
    pub(crate) important: bool,
    pub(crate) title: String,
    pub(crate) setup: Option<String>,
    /// Flags with the node they are for; none: all.
    pub(crate) flags: Vec<(Option<usize>, Pattern)>,
    pub(crate) files: Vec<(String, Pattern)>,
    pub(crate) operator: Option<String>,
    pub(crate) pending: Option<Pending>,
    /// What rqlite does instead, and why we do not.
    pub(crate) differences: Vec<(String, String)>,
    pub(crate) steps: Vec<Step>,
}

/// A mark: from this step on something does not hold yet.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) line: usize,
    pub(crate) reason: String,
    pub(crate) from_step: usize,
}

/// A step and its line.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) line: usize,
    pub(crate) what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    /// The words after `!`.
    Action(String),
    /// Boxed: far larger than the others.
    Request(Box<Request>),
    /// File and name of a test.
    TestedBy(String, String),
}

/// A request and the answer to it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: Pattern,
    pub(crate) node: String,
    pub(crate) credentials: Option<String>,
    pub(crate) headers: Vec<(String, Pattern)>,
    pub(crate) body: Body,
    pub(crate) expected: Expectation,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    File(String),
    None,
    Text(Pattern),
}

/// Reads a file of behaviours.
pub(crate) fn parse(file: &str, text: &str) -> Result<Vec<Behaviour>, String> {
    let mut reader = Reader {
        file: file.to_owned(),
        ..Reader::default()
    };
    for (number, line) in (1..).zip(text.lines()) {
        reader.line = number;
        let read = reader.read(line);
        read.map_err(|error| format!("{file}:{number}: {error}: {line}"))?;
    }
    let last = reader.line;
    let ended = reader.end_behaviour();
    ended.map_err(|error| format!("{file}:{last}: {error}"))?;
    Ok(reader.behaviours)
}

#[derive(Default)]
struct Reader {
    file: String,
    line: usize,
    behaviours: Vec<Behaviour>,
    current: Option<Behaviour>,
    request: Option<RawRequest>,
    in_file: Option<(String, Vec<String>)>,
    difference: Option<String>,
}

/// A request whose lines are still coming.
struct RawRequest {
    line: usize,
    first: String,
    headers: Vec<(String, Pattern)>,
    body_file: Option<String>,
    body: Option<Vec<String>>,
    status: Option<(u16, Kind)>,
    expected_headers: Vec<(String, Pattern, bool)>,
    expected_body: Vec<String>,
    checks: Vec<Check>,
}

impl Reader {
    fn read(&mut self, line: &str) -> Result<(), String> {
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        if let Some(heading) = line.strip_prefix("== ") {
            self.end_behaviour()?;
            self.current = Some(self.heading(heading)?);
            return Ok(());
        }
        if self.current.is_none() {
            return Err("before the first behaviour".to_owned());
        }
        if let Some(rest) = line.strip_prefix("> ") {
            return self.request_line(rest);
        }
        if line.starts_with(['|', '<', '=', '@', '?', '.']) {
            return self.content_line(line);
        }
        self.end_request()?;
        if let Some(action) = line.strip_prefix("! ") {
            self.step(What::Action(action.to_owned()));
            return Ok(());
        }
        if let Some(name) = line.strip_prefix("file ") {
            self.in_file = Some((name.to_owned(), Vec::new()));
            return Ok(());
        }
        let (word, value) = line.split_once(": ").ok_or("a line of no kind")?;
        self.word(word, value.trim())
    }

    fn heading(&self, heading: &str) -> Result<Behaviour, String> {
        let (number, title) = heading.split_once(' ').ok_or("a heading has a title")?;
        let plain = number.trim_end_matches('*');
        Ok(Behaviour {
            file: self.file.clone(),
            line: self.line,
            number: plain.parse().map_err(|_| "a heading has a number")?,
            important: plain != number,
            title: title.to_owned(),
            ..Behaviour::default()
        })
    }

    fn word(&mut self, word: &str, value: &str) -> Result<(), String> {
        let line = self.line;
        if value.is_empty() {
            return Err("nothing follows".to_owned());
        }
        if word == "because" {
            let answer = self
                .difference
                .take()
                .ok_or("`because` without `differs`")?;
            let differences = &mut self.behaviour().differences;
            differences.push((answer, value.to_owned()));
            return Ok(());
        }
        if let Some(which) = word.strip_prefix("flags") {
            let which = which.trim();
            let node = if which.is_empty() {
                None
            } else {
                Some(which.parse().map_err(|_| "the number of a node")?)
            };
            let value = Pattern::parse(value)?;
            self.behaviour().flags.push((node, value));
            return Ok(());
        }
        match word {
            "differs" => self.difference = Some(value.to_owned()),
            "operator" => self.behaviour().operator = Some(value.to_owned()),
            "set-up" => self.behaviour().setup = Some(value.to_owned()),
            "pending" => {
                let behaviour = self.behaviour();
                if behaviour.pending.is_some() {
                    return Err("a second mark".to_owned());
                }
                behaviour.pending = Some(Pending {
                    line,
                    reason: value.to_owned(),
                    from_step: behaviour.steps.len(),
                });
            }
            "tested by" => {
                let (file, name) = value.split_once("::").ok_or("FILE::TEST")?;
                self.step(What::TestedBy(file.to_owned(), name.to_owned()));
            }
            _ => return Err("a line of no kind".to_owned()),
        }
        Ok(())
    }

    fn request_line(&mut self, rest: &str) -> Result<(), String> {
        let first = rest.split(' ').next().unwrap_or_default();
        if let Some(name) = first.strip_suffix(':') {
            let value = Pattern::parse(rest[first.len()..].trim())?;
            let request = self.request.as_mut().ok_or("a header without a request")?;
            request.headers.push((name.to_owned(), value));
            return Ok(());
        }
        self.end_request()?;
        self.request = Some(RawRequest {
            line: self.line,
            first: rest.to_owned(),
            headers: Vec::new(),
            body_file: None,
            body: None,
            status: None,
            expected_headers: Vec::new(),
            expected_body: Vec::new(),
            checks: Vec::new(),
        });
        Ok(())
    }

    fn content_line(&mut self, line: &str) -> Result<(), String> {
        let content = || line[1..].strip_prefix(' ').unwrap_or(&line[1..]);
        if let (Some((_, lines)), true) = (&mut self.in_file, line.starts_with('|')) {
            lines.push(content().to_owned());
            return Ok(());
        }
        let request = self.request.as_mut().ok_or("no request before it")?;
        if request.status.is_none() != line.starts_with(['|', '<']) && !line.starts_with('<') {
            return Err("request, status, then the rest".to_owned());
        }
        if let Some(name) = line.strip_prefix("|file ") {
            request.body_file = Some(name.to_owned());
        } else if line.starts_with('|') {
            let lines = request.body.get_or_insert_default();
            lines.push(content().to_owned());
        } else if let Some(header) = line.strip_prefix("<? ") {
            let (name, value) = header_line(header)?;
            request.expected_headers.push((name, value, true));
        } else if line.starts_with('<') && request.status.is_none() {
            let (status, kind) = content().split_once(' ').ok_or("status and kind")?;
            let status = status.parse().map_err(|_| "a status is a number")?;
            request.status = Some((status, Kind::parse(kind)?));
        } else if line.starts_with('<') {
            let (name, value) = header_line(content())?;
            request.expected_headers.push((name, value, false));
        } else if line.starts_with('=') {
            request.expected_body.push(content().to_owned());
        } else {
            request.checks.push(Check::parse(line)?);
        }
        Ok(())
    }

    fn end_request(&mut self) -> Result<(), String> {
        if let Some((name, lines)) = self.in_file.take() {
            let content = Pattern::parse(&lines.join("\n"))?;
            self.behaviour().files.push((name, content));
        }
        let Some(raw) = self.request.take() else {
            return Ok(());
        };
        let line = raw.line;
        let request = raw.finish()?;
        let what = What::Request(Box::new(request));
        self.behaviour().steps.push(Step { line, what });
        Ok(())
    }

    fn end_behaviour(&mut self) -> Result<(), String> {
        if self.current.is_none() {
            return Ok(());
        }
        self.end_request()?;
        if self.difference.is_some() {
            return Err("`differs` without `because`".to_owned());
        }
        let behaviour = self.behaviour();
        if behaviour.setup.is_none() {
            return Err(format!("behaviour {} has no set-up", behaviour.number));
        }
        let marked = behaviour.pending.as_ref();
        if marked.is_some_and(|pending| pending.from_step >= behaviour.steps.len()) {
            return Err(format!("nothing of {} is pending", behaviour.number));
        }
        self.behaviours.extend(self.current.take());
        Ok(())
    }

    fn behaviour(&mut self) -> &mut Behaviour {
        self.current.as_mut().expect("checked in `read`")
    }

    fn step(&mut self, what: What) {
        let line = self.line;
        self.behaviour().steps.push(Step { line, what });
    }
}

impl RawRequest {
    fn finish(self) -> Result<Request, String> {
        let mut words = self.first.split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let target = words.next().ok_or("a request has a path")?;
        let (mut node, mut credentials) = ("L".to_owned(), None);
        while let Some(word) = words.next() {
            let value = words.next().ok_or("nothing follows")?.to_owned();
            match word {
                "at" => node = value,
                "as" => credentials = Some(value),
                _ => return Err(format!("`{word}` in a request")),
            }
        }
        let (status, kind) = self
            .status
            .ok_or_else(|| format!("the request in line {} expects no answer", self.line))?;
        let body = match (self.body_file, self.body) {
            (None, None) => Body::None,
            (None, Some(lines)) => Body::Text(Pattern::parse(&lines.join("\n"))?),
            (Some(file), None) => Body::File(file),
            (Some(_), Some(_)) => return Err("two bodies".to_owned()),
        };
        Ok(Request {
            method,
            target: Pattern::parse(target)?,
            node,
            credentials,
            headers: self.headers,
            body,
            expected: Expectation::new(
                status,
                kind,
                self.expected_headers,
                &self.expected_body,
                self.checks,
            )?,
        })
    }
}

fn header_line(line: &str) -> Result<(String, Pattern), String> {
    let (name, value) = line.split_once(": ").ok_or("Name: value")?;
    Ok((name.to_ascii_lowercase(), Pattern::parse(value)?))
}
