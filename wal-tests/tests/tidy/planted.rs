//! The checker checked: each rule finds what was planted, and leaves alone what only looks like it.

use crate::rules;
use crate::source::Source;

fn at(path: &str, raw: &str) -> Source {
    Source::new(path, raw)
}

/// The rule finds exactly one thing in the bad text, and nothing in the good one.
fn tells(rule: fn(&Source) -> Vec<String>, path: &str, bad: &str, good: &str) {
    let found = rule(&at(path, bad));
    assert_eq!(found.len(), 1, "{bad:?}: {found:?}");
    assert_eq!(rule(&at(path, good)), Vec::<String>::new(), "{good:?}");
}

#[test]
fn an_import_against_the_layers_is_found_in_every_form() {
    let good =
        "use crate::wal::Delta;\n// use crate::node::Node;\nconst S: &str = \"crate::raft\";";
    let forms = [
        "use crate::raft::Log;",
        "use crate::{wal::Delta, raft::{Log, Other}};",
        "fn f() { crate::raft::open(); }",
        "use super::super::raft::Log;",
        "use\n    crate\n    ::raft;",
        "impl From<crate::raft::LogError> for E {}",
    ];
    for bad in forms {
        tells(rules::layers, "src/sqlite/vfs.rs", bad, good);
    }
    tells(
        rules::layers,
        "src/http/mod.rs",
        "use crate::sqlite::V;",
        "use crate::node::V;",
    );
    tells(
        rules::layers,
        "src/wal/page.rs",
        "use crate::node::V;",
        "use super::hash::node;",
    );
    let unknown = rules::layers(&at("src/attic/mod.rs", ""));
    assert_eq!(
        unknown,
        ["layers: src/attic/mod.rs: attic is not in the table of layers"]
    );
}

#[test]
fn a_crate_named_outside_of_its_layer_is_found() {
    let good = "let tokio = 1; let x = tokio + self.tokio;";
    tells(
        rules::owners,
        "src/wal/page.rs",
        "use tokio::sync::Mutex;",
        good,
    );
    tells(rules::owners, "src/sqlite/vfs.rs", "#[tokio::main]", good);
    tells(
        rules::owners,
        "src/http/db.rs",
        "fn f(c: &rusqlite::Connection) {}",
        "use axum::Router;",
    );
    tells(
        rules::owners,
        "src/raft/types.rs",
        "use bincode::{config, serde};",
        "use openraft::Vote;",
    );
    assert_eq!(
        rules::owners(&at("wal-tests/tests/x.rs", "use rusqlite::Row;")),
        [""; 0]
    );
}

#[test]
fn a_clock_or_a_file_in_wal_is_found() {
    let good = "use std::fmt; // std::time\nlet time = page.time;";
    for bad in [
        "use std::fs;",
        "use std::{fmt, time::Instant};",
        "std::net::lookup()",
    ] {
        tells(rules::wal_is_pure, "src/wal/page.rs", bad, good);
    }
}

#[test]
fn what_is_too_long_or_not_ascii_is_found() {
    let function =
        |lines: usize| format!("fn f(a: [u8; 4]) {{\n{}}}\n", "    a();\n".repeat(lines));
    let with_comments = function(70).replacen("    a();", "    a(); // }\n\n    // more\n", 1);
    tells(rules::sizes, "src/a.rs", &function(71), &with_comments);
    tells(
        rules::sizes,
        "src/a.rs",
        &"\n".repeat(601),
        &"\n".repeat(600),
    );
    tells(rules::sizes, "src/a.rs", &"x".repeat(101), &"x".repeat(100));
    tells(
        rules::sizes,
        "wal-tests/a.rs",
        "// caf\u{e9}",
        &"x".repeat(101),
    );
}

#[test]
fn forbidden_words_are_found_where_they_are_code() {
    let good = "fn f() { g().unwrap_or(1); print(2); } // println! and .unwrap() and unsafe";
    let unfinished = concat!("// TO", "DO: later");
    for bad in [
        "println!(1);",
        "dbg!(x);",
        "todo!()",
        "g().unwrap();",
        "unsafe { g() }",
        unfinished,
    ] {
        tells(rules::words, "src/node/mod.rs", bad, good);
    }
    tells(rules::words, "src/cli/mod.rs", "dbg!(1)", "println!(1)");
    tells(
        rules::words,
        "src/sqlite/vfs.rs",
        "x.unwrap()",
        "unsafe { g() }",
    );
    let apart = "#[cfg(test)]\nmod tests;\n";
    tells(
        rules::words,
        "src/a.rs",
        &format!("{apart} fn h() {{ g().unwrap() }}"),
        apart,
    );
    tells(
        rules::words,
        "src/a/tests.rs",
        "dbg!(1)",
        "fn f() { g().unwrap() }",
    );
    let tested = "#[cfg(test)]\nmod tests {\n fn f() { if a { g().unwrap() } }\n}\n";
    tells(
        rules::words,
        "src/a.rs",
        &format!("{tested} fn h() {{ g().unwrap() }}"),
        tested,
    );
}

#[test]
fn a_file_that_no_module_declares_is_found() {
    let sources = [
        at("src/lib.rs", "pub mod wal;\n// mod lost;"),
        at("src/main.rs", "mod cli;"),
        at("src/cli/mod.rs", ""),
        at("src/wal/mod.rs", "mod page; mod tests { }"),
        at("src/wal/page.rs", "mod inner;"),
        at("src/wal/page/inner.rs", ""),
        at("src/wal/lost.rs", ""),
        at("wal-tests/src/other.rs", ""),
    ];
    let found = rules::reachable(&sources);
    assert_eq!(found, ["reachable: src/wal/lost.rs: no module declares it"]);
}

#[test]
fn a_document_without_exactly_one_title_is_found() {
    let good = "# Title\n\n```sh\n# comment\n```\n## Section\n";
    assert!(rules::one_title("a.md", good).is_empty());
    assert_eq!(rules::one_title("a.md", "no title").len(), 1);
    assert_eq!(rules::one_title("a.md", "# One\n# Two\n").len(), 1);
}

#[test]
fn golden_bytes_that_changed_or_were_never_described_are_found() {
    let readme = "| `a.hex` | `352441c2` | three letters |";
    assert!(rules::golden(readme, "v1/a.hex", b"abc").is_empty());
    assert_eq!(rules::golden(readme, "v1/a.hex", b"abd").len(), 1);
    assert_eq!(rules::golden(readme, "v1/b.hex", b"abc").len(), 1);
}

#[test]
fn a_dependency_without_a_reason_is_found() {
    let good = "[dependencies]\n# Why.\nserde = \"1\"\n[lints]\nworkspace = true\n";
    assert!(rules::dependencies_have_reasons("Cargo.toml", good).is_empty());
    let bad = "[dev-dependencies]\n# Why.\nserde.workspace = true\nbytes = \"1\"\n";
    let found = rules::dependencies_have_reasons("Cargo.toml", bad);
    assert_eq!(found, ["dependency without a reason: Cargo.toml: bytes"]);
}

#[test]
fn comments_and_literals_are_not_code_and_keep_their_lines() {
    let raw = "a /* x /* y */ z */ \"q\\\"// r\" r#\"s\"\n\"# 'u' '\\'' 'life b\"v\" // w\nend";
    let source = at("src/a.rs", raw);
    assert_eq!(source.code.len(), raw.len());
    let left: Vec<&str> = source.code.split_whitespace().collect();
    assert_eq!(left, ["a", "'life", "b", "end"]);
    assert_eq!(source.line_at(raw.len()), 3);
}
