//! The rules of the repository that neither compiler nor linter knows. Each finding begins with the
//! name of its rule.

#![allow(
    clippy::unwrap_used,
    reason = "a repository that cannot be read is a failed test"
)]

mod planted;
mod rules;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use source::Source;

#[test]
fn layers_only_use_what_is_below_them() {
    assert_none(each(rules::layers));
}

#[test]
fn each_external_crate_is_named_only_by_its_owners() {
    assert_none(each(rules::owners));
}

#[test]
fn layer_wal_touches_no_file_no_socket_and_no_clock() {
    assert_none(each(rules::wal_is_pure));
}

#[test]
fn files_functions_and_lines_are_short_and_ascii() {
    assert_none(each(rules::sizes));
}

#[test]
fn nothing_unfinished_unsafe_or_talkative_is_in_the_sources() {
    assert_none(each(rules::words));
}

#[test]
fn every_source_file_is_a_module() {
    let sources = sources();
    assert!(
        sources
            .iter()
            .any(|source| source.path == "src/wal/page.rs"),
        "found the sources"
    );
    assert_none(rules::reachable(&sources));
}

#[test]
fn every_document_has_one_title() {
    let documents = files_with(".md");
    let check = |path: &String| rules::one_title(path, &text(path));
    assert_none(documents.iter().flat_map(check));
}

#[test]
fn golden_bytes_are_those_their_readme_vouches_for() {
    let files = files_with("");
    let golden: Vec<_> = files
        .iter()
        .filter(|file| file.starts_with("wal-tests/golden/") && !file.ends_with(".md"))
        .collect();
    assert!(!golden.is_empty(), "found the golden files");
    assert_none(golden.into_iter().flat_map(|file| {
        let folder = file.rsplit_once('/').unwrap().0;
        let readme = fs::read_to_string(root().join(folder).join("README.md")).unwrap_or_default();
        rules::golden(&readme, file, &fs::read(root().join(file)).unwrap())
    }));
}

#[test]
fn every_dependency_has_its_reason_above_it() {
    let manifests = files_with("Cargo.toml");
    assert!(manifests.len() >= 4, "found the manifests");
    let check = |path: &String| rules::dependencies_have_reasons(path, &text(path));
    assert_none(manifests.iter().flat_map(check));
}

fn assert_none(findings: impl IntoIterator<Item = String>) {
    let findings: Vec<String> = findings.into_iter().collect();
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

fn each(rule: fn(&Source) -> Vec<String>) -> Vec<String> {
    sources().iter().flat_map(rule).collect()
}

fn sources() -> Vec<Source> {
    let paths = files_with(".rs");
    paths
        .iter()
        .map(|path| Source::new(path, &text(path)))
        .collect()
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// The files of the repository whose names end like this, sorted, with paths from its root.
/// Without what is built and what is hidden.
fn files_with(end: &str) -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_dir() {
                if name != "target" && !name.starts_with('.') {
                    folders.push(entry.path());
                }
            } else if name.ends_with(end) {
                let path = entry.path();
                let path = path.strip_prefix(root()).unwrap();
                files.push(path.to_str().unwrap().replace('\\', "/"));
            }
        }
    }
    files.sort();
    files
}
