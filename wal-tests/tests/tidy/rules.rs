//! The rules, each a function from text to findings.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::Source;

/// A layer and what it may use besides itself.
const LAYERS: [(&str, &[&str]); 9] = [
    ("wal", &[]),
    ("sqlite", &["wal"]),
    ("raft", &["wal"]),
    ("transport", &["wal"]),
    ("node", &["sqlite", "raft", "transport", "wal"]),
    ("http", &["node"]),
    ("ops", &["node"]),
    (
        "cli",
        &["http", "ops", "node", "sqlite", "raft", "transport", "wal"],
    ),
    (
        "main",
        &[
            "cli",
            "http",
            "ops",
            "node",
            "sqlite",
            "raft",
            "transport",
            "wal",
        ],
    ),
];

/// A crate and the only layers that may name it.
const OWNERS: [(&str, &[&str]); 20] = [
    // In `cli` the tests of the demo ask a plain SQLite.
    ("rusqlite", &["sqlite", "cli"]),
    ("libsqlite3_sys", &["sqlite"]),
    ("openraft", &["raft", "node"]),
    ("quinn", &["transport"]),
    // Two kinds of TLS: between nodes under QUIC, and with clients under HTTP.
    ("rustls", &["transport", "http"]),
    ("tokio_rustls", &["http"]),
    ("rustls_native_certs", &["transport"]),
    ("rustls_pki_types", &["transport"]),
    ("rcgen", &["transport"]),
    ("ring", &["transport", "http"]),
    ("x509_parser", &["transport", "http"]),
    ("argon2", &["http"]),
    ("bincode", &["node", "transport"]),
    ("axum", &["http"]),
    ("serde_json", &["http", "ops", "cli"]),
    ("ureq", &["ops", "cli"]),
    ("hickory_resolver", &["ops"]),
    ("indicatif", &["cli"]),
    ("clap", &["cli", "main"]),
    (
        "tokio",
        &["raft", "transport", "node", "http", "ops", "cli", "main"],
    ),
];

const FILES_WITH_UNSAFE: [&str; 3] = [
    "src/sqlite/ffi.rs",
    "src/sqlite/raw.rs",
    "src/sqlite/vfs.rs",
];

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const LINE_COLUMNS_MAX: usize = 100;

pub(crate) fn layers(source: &Source) -> Vec<String> {
    // `planted` is below all of them and uses none.
    let is_layer = |layer: &&str| !["lib", "planted"].contains(layer);
    let Some(layer) = source.layer().filter(is_layer) else {
        return Vec::new();
    };
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
        return vec![format!(
            "layers: {}: {layer} is not in the table of layers",
            source.path
        )];
    };
    let mut findings = BTreeSet::new();
    for (line, path) in source.paths() {
        let root = path.first().map_or("", String::as_str);
        let mut names = path.iter().skip_while(|name| *name == "super");
        let target = match root {
            "crate" | "wallaby" => path.get(1),
            "super" => names.next(),
            _ => None,
        };
        let Some(target) = target.map(String::as_str) else {
            continue;
        };
        let known = LAYERS.iter().any(|(name, _)| *name == target);
        if known && target != layer && !allowed.contains(&target) {
            findings.insert(format!(
                "layers: {}:{line}: {layer} uses {target}",
                source.path
            ));
        }
    }
    findings.into_iter().collect()
}

pub(crate) fn owners(source: &Source) -> Vec<String> {
    let Some(layer) = source.layer() else {
        return Vec::new();
    };
    let mut findings = BTreeSet::new();
    for (line, path) in source.paths() {
        // A lone name is a variable or a field, except after `use`, which always has a path here.
        let owner = OWNERS
            .iter()
            .find(|(name, _)| path.len() > 1 && *name == path[0]);
        if let Some((name, owners)) = owner
            && !owners.contains(&layer)
        {
            let path = &source.path;
            findings.insert(format!(
                "owners: {path}:{line}: {name} belongs to {owners:?}"
            ));
        }
    }
    findings.into_iter().collect()
}

pub(crate) fn wal_is_pure(source: &Source) -> Vec<String> {
    if source.layer() != Some("wal") {
        return Vec::new();
    }
    let impure = ["env", "fs", "net", "os", "process", "thread", "time"];
    let paths = source.paths().into_iter().filter(|(_, path)| {
        path.len() > 1 && path[0] == "std" && impure.contains(&path[1].as_str())
    });
    let path = &source.path;
    paths
        .map(|(line, found)| format!("wal is pure: {path}:{line}: {}", found.join("::")))
        .collect()
}

pub(crate) fn sizes(source: &Source) -> Vec<String> {
    let path = &source.path;
    let mut findings = Vec::new();
    let lines = source.raw.lines().count();
    if lines > FILE_LINES_MAX {
        findings.push(format!("file length: {path}: {lines} lines"));
    }
    for (line, name, lines) in source.functions() {
        if lines > FUNCTION_LINES_MAX {
            findings.push(format!(
                "function length: {path}:{line}: {name} has {lines} lines"
            ));
        }
    }
    for (number, line) in (1..).zip(source.raw.lines()) {
        if !line.is_ascii() {
            findings.push(format!("ascii: {path}:{number}"));
        }
        if path.starts_with("src/") && line.chars().count() > LINE_COLUMNS_MAX {
            findings.push(format!("line length: {path}:{number}"));
        }
    }
    findings
}

pub(crate) fn words(source: &Source) -> Vec<String> {
    let Some(layer) = source.layer() else {
        return Vec::new();
    };
    let path = &source.path;
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(source.raw.lines()) {
        // Spelled in halves so that a plain search of the repository finds none here.
        for word in [concat!("TO", "DO"), concat!("FIX", "ME")] {
            if line.contains(word) {
                findings.push(format!("words: {path}:{number}: {word}"));
            }
        }
    }
    let speaks = layer == "cli" || layer == "main";
    let silent = ["print", "println", "eprint", "eprintln"];
    let never = ["dbg", "todo", "unimplemented"];
    for name in silent.iter().filter(|_| !speaks).chain(&never) {
        for offset in source.words(name) {
            if source.code[offset + name.len()..].starts_with('!') {
                findings.push(format!("words: {path}:{}: {name}!", source.line_at(offset)));
            }
        }
    }
    let code = source.code_without_tests();
    for (offset, _) in code.match_indices(".unwrap()") {
        findings.push(format!("unwrap: {path}:{}", source.line_at(offset)));
    }
    if !FILES_WITH_UNSAFE.contains(&path.as_str()) {
        for offset in source.words("unsafe") {
            findings.push(format!("unsafe: {path}:{}", source.line_at(offset)));
        }
    }
    findings
}

/// Files under `src` that no `mod` reaches are compiled by nobody and tested by nobody.
pub(crate) fn reachable(sources: &[Source]) -> Vec<String> {
    let by_path: BTreeMap<&str, &Source> = sources
        .iter()
        .map(|source| (source.path.as_str(), source))
        .collect();
    let mut open = vec!["src/lib.rs".to_owned(), "src/main.rs".to_owned()];
    let mut reached = BTreeSet::new();
    while let Some(path) = open.pop() {
        let Some(source) = by_path.get(path.as_str()) else {
            continue;
        };
        if !reached.insert(path.clone()) {
            continue;
        }
        let stem = path.trim_end_matches(".rs");
        let is_root = ["lib", "main", "mod"]
            .iter()
            .any(|name| stem.ends_with(&format!("/{name}")));
        let folder = if is_root {
            stem.rsplit_once('/').map_or("", |pair| pair.0)
        } else {
            stem
        };
        for module in source.modules() {
            open.push(format!("{folder}/{module}.rs"));
            open.push(format!("{folder}/{module}/mod.rs"));
        }
    }
    let lost = by_path
        .keys()
        .filter(|path| path.starts_with("src/") && !reached.contains(**path));
    lost.map(|path| format!("reachable: {path}: no module declares it"))
        .collect()
}

pub(crate) fn one_title(path: &str, text: &str) -> Vec<String> {
    let mut in_fence = false;
    let mut titles = 0;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_fence = !in_fence;
        } else if !in_fence && line.starts_with("# ") {
            titles += 1;
        }
    }
    if titles == 1 {
        Vec::new()
    } else {
        vec![format!("one title: {path}: {titles} titles")]
    }
}

/// The README of a golden folder names each file beside the CRC-32 of its bytes.
pub(crate) fn golden(readme: &str, file: &str, bytes: &[u8]) -> Vec<String> {
    let name = file.rsplit('/').next().unwrap_or(file);
    let checksum = format!("`{:08x}`", crc32fast::hash(bytes));
    let quoted = format!("`{name}`");
    let Some(line) = readme.lines().find(|line| line.contains(&quoted)) else {
        return vec![format!(
            "golden: {file}: not in the README of its folder ({checksum})"
        )];
    };
    if line.contains(&checksum) {
        Vec::new()
    } else {
        vec![format!(
            "golden: {file}: its bytes have {checksum}, README says {line:?}"
        )]
    }
}

pub(crate) fn dependencies_have_reasons(path: &str, manifest: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let mut in_dependencies = false;
    let mut previous = "";
    for line in manifest.lines() {
        if line.starts_with('[') {
            let section = line.trim_matches(['[', ']']);
            in_dependencies =
                section.ends_with("dependencies") && !section.starts_with("workspace");
        } else if in_dependencies {
            let names_one = line.starts_with(|c: char| c.is_ascii_alphabetic());
            if names_one && !previous.starts_with('#') {
                let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
                findings.push(format!("dependency without a reason: {path}: {name}"));
            }
        }
        previous = line;
    }
    findings
}
