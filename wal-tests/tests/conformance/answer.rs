//! An answer as it came over the connection.

/// Status, headers in lower case, and the body without its framing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Reads an answer that ends with the connection.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let end = bytes.windows(4).position(|at| at == b"\r\n\r\n");
        let end = end.ok_or_else(|| format!("no HTTP answer in {} bytes", bytes.len()))?;
        let head = std::str::from_utf8(&bytes[..end]).map_err(|error| error.to_string())?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let status = status.and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| format!("no status in {head:?}"))?;
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        let headers: Option<Vec<_>> = lines.map(header).collect();
        let headers = headers.ok_or_else(|| format!("no header in a line of {head:?}"))?;
        let mut answer = Self {
            status,
            headers,
            body: bytes[end + 4..].to_vec(),
        };
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = unchunked(&answer.body)?;
        } else if let Some(length) = answer.header("content-length")
            && length.parse() != Ok(answer.body.len())
        {
            return Err(format!("{} bytes, announced {length}", answer.body.len()));
        }
        Ok(answer)
    }

    /// The value of a header, if it is there exactly once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(key, _)| key == name);
        let value = found.next().map(|(_, value)| value.as_str());
        value.filter(|_| found.next().is_none())
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as text, as rqlite would write it: what it does not have stands at the end of an
    /// object under the key `wallaby`.
    pub(crate) fn common_text(&self) -> String {
        let mut text = self.text();
        while let Some(begin) = text.find(ADDITIONS) {
            let mut depth = 0;
            let end = text[begin..].find(|c| {
                depth += i32::from(c == '{') - i32::from(c == '}');
                c == '}' && depth == 0
            });
            let Some(end) = end else {
                break;
            };
            text.replace_range(begin..=begin + end, "");
        }
        text
    }
}

const ADDITIONS: &str = ",\"wallaby\":{";

#[test]
fn what_is_added_to_an_answer_is_left_out_of_the_comparison() {
    let text = r#"{"1":{"id":"1","wallaby":{"a":{"b":1},"c":"d"}},"2":{"wallaby":"x"}}"#;
    let answer = Answer {
        body: text.into(),
        ..Answer::default()
    };
    let common = r#"{"1":{"id":"1"},"2":{"wallaby":"x"}}"#;
    assert_eq!(answer.common_text(), common);
}

/// The bytes of a chunked body; one that is cut off is an error, for so a server tells of trouble
/// after the status.
fn unchunked(mut rest: &[u8]) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|at| at == b"\r\n");
        let line = line.ok_or("the body was cut off")?;
        let size = String::from_utf8_lossy(&rest[..line]).into_owned();
        let size = usize::from_str_radix(size.trim(), 16).map_err(|_| "no size of a chunk")?;
        let data = &rest[line + 2..];
        if size == 0 {
            return Ok(body);
        }
        if data.len() < size + 2 {
            return Err("the body was cut off".to_owned());
        }
        body.extend_from_slice(&data[..size]);
        rest = &data[size + 2..];
    }
}

#[test]
fn a_body_that_was_cut_off_is_no_answer() {
    let head = "HTTP/1.1 200 OK\r\nA: b\r\n";
    let parse = |rest: &str| Answer::parse(format!("{head}{rest}").as_bytes());
    let whole = parse("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n").unwrap();
    assert_eq!((whole.status, whole.text()), (200, "abcd".to_owned()));
    assert!(parse("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").is_err());
    assert!(parse("Transfer-Encoding: chunked\r\n\r\n3\r\nab").is_err());
    assert!(parse("Content-Length: 3\r\n\r\nabc").is_ok());
    assert!(parse("Content-Length: 3\r\n\r\nab").is_err());
    assert!(parse("").is_err());
}
