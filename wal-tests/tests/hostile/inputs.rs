//! The inputs: read from the files in `wal-tests/hostile`, expanded, and made into what is sent.

use serde_json::json;
use wal_tests::blunt;

/// What the answer has to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Class {
    Closed,
    Harmless,
    Limited,
    Refused,
    Status(u16),
}

/// How a statement is sent, and how it ends if it would not by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ending {
    /// It has to end by itself.
    Itself,
    /// The client has gone by then.
    ClientGone,
    /// `db_timeout` has passed.
    StatementTime,
    /// `timeout` has passed.
    Time,
}

/// One input.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    /// File, line and how it is sent: enough to find it again.
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) class: Class,
    pub(crate) ending: Ending,
}

/// What placeholders stand for on one node.
pub(crate) struct Place {
    pub(crate) address: String,
    pub(crate) out: String,
    pub(crate) data: String,
}

/// A way to send SQL.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    Execute,
    Request,
    Query(&'static str),
    Get,
}

const WRITING: [Way; 2] = [Way::Execute, Way::Request];
const READING: [Way; 5] = [
    Way::Query("none"),
    Way::Query("weak"),
    Way::Query("linearizable"),
    Way::Query("strong"),
    Way::Get,
];

const PATHS: &str = include_str!("../../hostile/paths.txt");
const SQL: &str = include_str!("../../hostile/sql.txt");
const ENDLESS: &str = include_str!("../../hostile/endless.txt");
const BODIES: &str = include_str!("../../hostile/bodies.txt");
const HTTP: &str = include_str!("../../hostile/http.txt");
const HOSTS: &str = include_str!("../../hostile/hosts.txt");

/// Every input, in the order of the files.
pub(crate) fn all(place: &Place) -> Vec<Input> {
    let mut inputs = paths(place);
    inputs.extend(sql(place));
    inputs.extend(endless(place));
    inputs.extend(bodies(place));
    inputs.extend(http(place));
    inputs.extend(hosts(place));
    inputs
}

/// Every verb with every path, by turns to one of the writing and one of the reading ways.
fn paths(place: &Place) -> Vec<Input> {
    let of = |prefix: &str| -> Vec<String> {
        let lines = lines(PATHS).filter_map(|(_, line)| line.strip_prefix(prefix));
        lines.map(|line| expand(line, place)).collect()
    };
    let (verbs, paths) = (of("verb: "), of("path: "));
    assert!(verbs.len() > 20 && paths.len() > 20);
    let mut inputs = Vec::new();
    for (number, verb) in verbs.iter().enumerate() {
        for (turn, path) in paths.iter().enumerate() {
            let sql = verb.replace("{p}", path);
            let turn = number + turn;
            let way = if turn.is_multiple_of(2) {
                WRITING[turn / 2 % WRITING.len()]
            } else {
                READING[turn / 2 % READING.len()]
            };
            let name = format!("paths.txt {way:?} {sql}");
            inputs.push(statement(&name, way, &sql, "", Class::Refused, place));
        }
    }
    inputs
}

fn sql(place: &Place) -> Vec<Input> {
    let mut inputs = Vec::new();
    for (number, line) in lines(SQL) {
        let [class, targets, sql] = fields(line, number);
        let sql = expand(sql, place);
        for way in ways(targets, number) {
            let name = format!("sql.txt:{number} {way:?}");
            inputs.push(statement(&name, way, &sql, "", class_of(class), place));
        }
    }
    inputs
}

fn endless(place: &Place) -> Vec<Input> {
    let mut inputs = Vec::new();
    for (number, line) in lines(ENDLESS) {
        let [targets, sql] = fields(line, number);
        for way in ways(targets, number) {
            let writes = way == Way::Execute || (way == Way::Request && targets == "write");
            for (ending, parameter) in [
                (Ending::Time, "&timeout=250ms"),
                (Ending::StatementTime, "&db_timeout=150ms"),
                (Ending::ClientGone, ""),
            ] {
                let class = match ending {
                    Ending::Time if writes => Class::Status(503),
                    Ending::Time => Class::Status(504),
                    _ => Class::Limited,
                };
                let name = format!("endless.txt:{number} {way:?} {ending:?}");
                let input = statement(&name, way, sql, parameter, class, place);
                inputs.push(Input { ending, ..input });
            }
        }
    }
    inputs
}

fn bodies(place: &Place) -> Vec<Input> {
    let mut inputs = Vec::new();
    for (number, line) in lines(BODIES) {
        let [class, content_type, body] = fields(line, number);
        let body = unescape_controls(&expand(body, place));
        for path in ["/db/execute", "/db/query?level=none", "/db/request"] {
            let mut bytes = format!(
                "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
                 Content-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
                place.address,
                body.len()
            )
            .into_bytes();
            bytes.extend_from_slice(&body);
            inputs.push(Input {
                name: format!("bodies.txt:{number} {path}"),
                bytes,
                class: class_of(class),
                ending: Ending::Itself,
            });
        }
    }
    inputs
}

fn http(place: &Place) -> Vec<Input> {
    let input = |(number, line)| {
        let [class, text] = fields(line, number);
        Input {
            name: format!("http.txt:{number}"),
            bytes: unescape(&expand(text, place)),
            class: class_of(class),
            ending: Ending::Itself,
        }
    };
    lines(HTTP).map(input).collect()
}

fn hosts(place: &Place) -> Vec<Input> {
    let mut inputs = Vec::new();
    for (number, line) in lines(HOSTS) {
        let [class, headers] = fields(line, number);
        let headers = expand(headers, place);
        for request in [
            "GET /db/query?q=SELECT%201 HTTP/1.1\r\n",
            "POST /db/execute HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 8\r\n",
        ] {
            let body = if request.starts_with("POST") {
                "SELECT 1"
            } else {
                ""
            };
            let text = format!("{request}{headers}\r\nConnection: close\r\n\r\n{body}");
            inputs.push(Input {
                name: format!("hosts.txt:{number} {request}"),
                bytes: unescape(&text),
                class: class_of(class),
                ending: Ending::Itself,
            });
        }
    }
    inputs
}

/// The ways of the targets. There are many lines, so each goes to two of the reading ways.
fn ways(targets: &str, number: usize) -> Vec<Way> {
    let reading = [0, 2].map(|turn| READING[(number + turn) % READING.len()]);
    match targets {
        "all" => [&WRITING[..], &reading].concat(),
        "write" => WRITING.to_vec(),
        "read" => reading.to_vec(),
        "execute" => vec![Way::Execute],
        "request" => vec![Way::Request],
        "query" => vec![Way::Query("weak")],
        other => panic!("{other} is no target"),
    }
}

fn statement(
    name: &str,
    way: Way,
    sql: &str,
    parameters: &str,
    class: Class,
    place: &Place,
) -> Input {
    let path = match way {
        Way::Execute => "/db/execute?_".to_owned(),
        Way::Request => "/db/request?_".to_owned(),
        Way::Query(level) => format!("/db/query?level={level}"),
        Way::Get => format!("/db/query?level=none&q={}", escape(sql)),
    };
    let path = format!("{path}{parameters}");
    // A URL has a limit of its own, which http.txt is about.
    let bytes = if way == Way::Get && path.len() < 60_000 {
        format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            place.address
        )
        .into_bytes()
    } else {
        let path = path.split("&q=").next().unwrap_or_default();
        let body = json!([sql]).to_string();
        blunt::post_bytes(&place.address, &format!("{path}{parameters}"), &body)
    };
    Input {
        name: name.to_owned(),
        bytes,
        class,
        ending: Ending::Itself,
    }
}

pub(crate) fn class_of(text: &str) -> Class {
    match text {
        "closed" => Class::Closed,
        "harmless" => Class::Harmless,
        "limited" => Class::Limited,
        "refused" => Class::Refused,
        number => Class::Status(
            number
                .parse()
                .unwrap_or_else(|_| panic!("{text} is no class")),
        ),
    }
}

/// The lines that say something, with their numbers.
pub(crate) fn lines(text: &'static str) -> impl Iterator<Item = (usize, &'static str)> {
    let lines = text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

pub(crate) fn fields<const N: usize>(line: &'static str, number: usize) -> [&'static str; N] {
    let fields: Vec<&str> = line.splitn(N, '|').map(str::trim).collect();
    fields
        .try_into()
        .unwrap_or_else(|fields| panic!("line {number} has not {N} fields: {fields:?}"))
}

/// Replaces placeholders and repetitions, the latter as often as they occur.
fn expand(text: &str, place: &Place) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("<<") {
        out.push_str(before);
        let (count, after) = after.split_once('*').expect("<<N*text>>");
        let (repeated, after) = after.split_once(">>").expect("<<N*text>>");
        out.push_str(&repeated.repeat(count.parse().expect("<<N*text>>")));
        rest = after;
    }
    out.push_str(rest);
    out.replace("{host}", &place.address)
        .replace("{out}", &place.out)
        .replace("{data}", &place.data)
}

/// `\r`, `\n`, `\t` and `\xNN` become bytes.
fn unescape(text: &str) -> Vec<u8> {
    let text = text
        .replace("\\r", "\r")
        .replace("\\n", "\n")
        .replace("\\t", "\t");
    unescape_controls(&text)
}

/// `\xNN` becomes a byte; JSON has the other escapes itself.
fn unescape_controls(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\\x") {
        out.extend_from_slice(before.as_bytes());
        let (digits, after) = after.split_at(2);
        out.push(u8::from_str_radix(digits, 16).expect("\\xNN"));
        rest = after;
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

/// Percent encoding of everything that is not plainly harmless.
fn escape(text: &str) -> String {
    let one = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(*byte).to_string(),
        _ => format!("%{byte:02x}"),
    };
    text.as_bytes().iter().map(one).collect()
}
