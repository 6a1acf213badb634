//! The text of `/licenses`: under which licences this program and everything linked into it may be
//! used. Made from what cargo knows and from the files that the packages ship.
//!
//! Where a package may be used under any of several licences and MIT is one of them, its MIT text
//! is the one that is shown: it is the one that the program uses it under.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

/// The file in the repository that holds the text.
#[must_use]
pub fn file() -> PathBuf {
    root().join("src/http/licences.txt")
}

/// Makes the text anew.
///
/// # Errors
///
/// What cargo or the file system refused.
pub fn text() -> Result<String, String> {
    let linked = linked()?;
    let packages = packages(&linked)?;
    let mut out = String::from(HEAD);
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in &packages {
        let Package { title, terms, .. } = package;
        let _ = writeln!(out, "{title}: {terms}");
        for file in package.files()? {
            let text = fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
            let text = tidied(&String::from_utf8_lossy(&text));
            let holders = texts.entry(text).or_default();
            if !holders.contains(title) {
                holders.push(title.clone());
            }
        }
    }
    let own = fs::read_to_string(root().join("LICENSE-MIT"));
    let own = own.map_err(|error| format!("LICENSE-MIT: {error}"))?;
    section(
        &mut out,
        "Wallaby itself, used under MIT or Apache-2.0",
        &tidied(&own),
    );
    section(
        &mut out,
        "The Chinook sample database, Copyright (c) Luis Rocha",
        CHINOOK,
    );
    section(&mut out, "SQLite", SQLITE);
    for (text, holders) in &texts {
        section(&mut out, &holders.join("\n"), text);
    }
    Ok(out)
}

/// A package that is linked.
struct Package {
    /// Name and version.
    title: String,
    /// Its licence expression.
    terms: String,
    dir: PathBuf,
}

impl Package {
    /// The files with the texts that apply.
    fn files(&self) -> Result<Vec<PathBuf>, String> {
        let mut files = licence_files(&self.dir)?;
        // The C library is below the package that binds it.
        let below = self.dir.join("zstd");
        if below.is_dir() {
            files.extend(licence_files(&below)?);
        }
        let is_mit = |file: &PathBuf| name_of(file).contains("MIT");
        let is_choice = self.terms.contains(" OR ") || self.terms.contains('/');
        if is_choice && self.terms.contains("MIT") && files.iter().any(is_mit) {
            files.retain(is_mit);
        }
        Ok(files)
    }
}

/// Names and versions of the packages that cargo links into the program.
fn linked() -> Result<BTreeSet<(String, String)>, String> {
    let tree = cargo(&[
        "tree",
        "--package",
        "wallaby",
        "--edges",
        "normal,no-proc-macro",
        "--target",
        TARGET,
        "--prefix",
        "none",
        "--format",
        "{p}",
        "--locked",
    ])?;
    let mut linked = BTreeSet::new();
    for line in tree.lines() {
        let mut words = line.split(' ');
        if let (Some(name), Some(version)) = (words.next(), words.next()) {
            let version = version.trim_start_matches('v');
            linked.insert((name.to_owned(), version.to_owned()));
        }
    }
    linked.retain(|(name, _)| name != "wallaby");
    Ok(linked)
}

fn packages(linked: &BTreeSet<(String, String)>) -> Result<Vec<Package>, String> {
    let metadata = cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--filter-platform",
        TARGET,
        "--locked",
    ])?;
    let metadata: Value = serde_json::from_str(&metadata).map_err(|error| error.to_string())?;
    let mut found = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        let key = (text("name"), text("version"));
        let manifest = PathBuf::from(text("manifest_path"));
        if !linked.contains(&key) {
            continue;
        }
        let (name, version) = &key;
        let package = Package {
            title: format!("{name} {version}"),
            terms: text("license"),
            dir: manifest.parent().unwrap_or(Path::new(".")).to_owned(),
        };
        found.insert(key, package);
    }
    match linked.iter().find(|key| !found.contains_key(key)) {
        Some((name, version)) => Err(format!("cargo metadata does not know {name} {version}")),
        None => Ok(found.into_values().collect()),
    }
}

fn licence_files(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = name_of(&path);
        let is_licence = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        if is_licence && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().to_ascii_uppercase()
}

/// The text without what editors leave behind.
fn tidied(text: &str) -> String {
    let lines = text.lines().map(str::trim_end);
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}

fn section(out: &mut String, title: &str, text: &str) {
    let line = "-".repeat(80);
    let _ = write!(out, "\n{line}\n{title}\n{line}\n\n{text}\n");
}

fn cargo(arguments: &[&str]) -> Result<String, String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .current_dir(root())
        .output()
        .map_err(|error| format!("cargo does not start: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    String::from_utf8(output.stdout).map_err(|error| error.to_string())
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The platform that the text is made for; the others link less or the same.
const TARGET: &str = "x86_64-unknown-linux-gnu";

const PREFIXES: [&str; 6] = [
    "COPYING",
    "COPYRIGHT",
    "LICENCE",
    "LICENSE",
    "NOTICE",
    "UNLICENSE",
];

const HEAD: &str = "Wallaby is used under the MIT or the Apache-2.0 licence, at your choice.\n\
     It contains the following packages; the texts of their licences follow.\n\
     This file is made by `cargo run -p tools --bin licences`.\n\n";

const CHINOOK: &str = "Used under MIT: the text above, with this copyright line.";

const SQLITE: &str = "SQLite is in the public domain: https://sqlite.org/copyright.html";

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when a dependency was added, removed or updated and the text was not made anew.
    #[test]
    fn the_text_in_the_repository_is_up_to_date() {
        let found = fs::read_to_string(file()).expect("the text is in the repository");
        let expected = text().expect("cargo knows the packages it has just compiled");
        let differs = expected.lines().zip(found.lines()).find(|(a, b)| a != b);
        assert!(
            expected == found,
            "run `cargo run -p tools --bin licences`; the first difference is {differs:?}"
        );
    }

    #[test]
    fn what_is_linked_is_listed_and_what_only_builds_is_not() {
        let linked = linked().expect("cargo tree works");
        let names: BTreeSet<&str> = linked.iter().map(|(name, _)| name.as_str()).collect();
        for name in ["libsqlite3-sys", "openraft", "quinn", "zstd-sys"] {
            assert!(names.contains(name), "{name} is linked");
        }
        for name in ["cc", "proc-macro2", "syn", "tempfile", "thiserror-impl"] {
            assert!(!names.contains(name), "{name} is not linked");
        }
    }
}
