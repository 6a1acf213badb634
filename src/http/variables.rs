//! `GET /debug/vars`: counters since the start of the process, laid out as Go's `expvar` does.
//!
//! Maps and names are rqlite's where rqlite counts the same; the map `wallaby` holds the stages of
//! a write. What Go tells about its own memory has no counterpart. `?key=http` selects one entry.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::http::{Response, StatusCode};

use super::parameters::Parameters;
use super::server::Server;
use super::{json, refusal};

pub(super) fn answer(server: &Server, parameters: &Parameters) -> Response<Body> {
    let mut entries = maps(server);
    entries.insert("cmdline".to_owned(), command_line(std::env::args_os()));
    if let Some(key) = parameters.text("key") {
        entries.retain(|name, _| name == key);
    }
    refusal::json(StatusCode::OK, lay_out(&entries))
}

/// Each map of counters, rendered.
fn maps(server: &Server) -> BTreeMap<String, Vec<u8>> {
    let mut maps: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
    let counts = server.counters.all().into_iter();
    for count in counts.chain(server.node.counters().all()) {
        let map = maps.entry(count.map).or_default();
        map.insert(count.name.to_owned(), count.value);
    }
    let stages = maps.entry("wallaby").or_default();
    for (stage, count) in server.node.status().stages {
        stages.insert(stage.to_ascii_lowercase(), count);
    }
    let rendered = maps.into_iter();
    rendered
        .map(|(name, map)| (name.to_owned(), counters(&map)))
        .collect()
}

/// A map of counters as `expvar.Map` prints it.
fn counters(map: &BTreeMap<String, u64>) -> Vec<u8> {
    let mut out = vec![b'{'];
    for (position, (name, value)) in map.iter().enumerate() {
        if position > 0 {
            out.extend_from_slice(b", ");
        }
        json::string(&mut out, name);
        out.extend_from_slice(b": ");
        json::unsigned(&mut out, *value);
    }
    out.push(b'}');
    out
}

fn command_line(arguments: impl Iterator<Item = std::ffi::OsString>) -> Vec<u8> {
    let mut out = vec![b'['];
    for (position, argument) in arguments.enumerate() {
        if position > 0 {
            out.push(b',');
        }
        json::string(&mut out, &argument.to_string_lossy());
    }
    out.push(b']');
    out
}

/// All entries, one a line.
fn lay_out(entries: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut out = b"{\n".to_vec();
    for (position, (name, value)) in entries.iter().enumerate() {
        if position > 0 {
            out.extend_from_slice(b",\n");
        }
        json::string(&mut out, name);
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
    }
    out.extend_from_slice(b"\n}\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_laid_out_as_go_does() {
        let map = BTreeMap::from([("b".to_owned(), 2), ("a".to_owned(), 1)]);
        let words = ["wallaby", "a<b"].into_iter().map(Into::into);
        let entries = BTreeMap::from([
            ("http".to_owned(), counters(&map)),
            ("cmdline".to_owned(), command_line(words)),
        ]);
        let expected = "{\n\"cmdline\": [\"wallaby\",\"a\\u003cb\"],\n\
                        \"http\": {\"a\": 1, \"b\": 2}\n}\n";
        assert_eq!(String::from_utf8(lay_out(&entries)).unwrap(), expected);
        assert_eq!(lay_out(&BTreeMap::new()), b"{\n\n}\n");
    }
}
