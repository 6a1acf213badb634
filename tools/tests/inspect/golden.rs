//! Each command on each sample, as text and as JSON, against outputs that were looked at.
//! `UPDATE=1 cargo test -p tools --test inspect golden` writes them anew; the difference is reviewed.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::samples::{SEGMENT, workbench};
use crate::{inspect, process, text};

/// The name of a case and its arguments, run where the samples are.
fn cases() -> Vec<(&'static str, Vec<String>)> {
    let segment = format!("node/log/{SEGMENT}");
    let damaged = format!("log-damaged/{SEGMENT}");
    let torn = format!("log-torn/{SEGMENT}");
    let all: [(&str, &str); 39] = [
        ("summary-database", "summary plain.db"),
        ("summary-wal", "summary plain.db-wal plain.db-shm"),
        ("summary-node", "summary node"),
        ("summary-receiving", "summary receiving"),
        ("summary-segment", "summary SEGMENT"),
        ("summary-spool", "summary installing incoming-pages"),
        ("list-wal", "list plain.db-wal"),
        ("list-wal-flipped", "list flipped-wal"),
        ("list-wal-cut", "list cut-wal"),
        ("list-wal-no-header", "list no-header-wal"),
        ("list-wal-index", "list plain.db-shm"),
        ("list-database", "list plain.db"),
        ("list-node", "list node"),
        ("list-segment", "list SEGMENT"),
        ("list-segment-damaged", "list DAMAGED"),
        ("list-segment-torn", "list TORN"),
        ("list-page-hashes", "list node/pages.hash"),
        ("list-spool", "list installing"),
        ("show-page", "show plain.db --page 2"),
        ("show-first-page", "show plain.db --page 1"),
        ("show-frame", "show plain.db-wal --frame 2"),
        ("show-entry", "show node --entry 4"),
        ("show-entry-page", "show node --entry 4 --page 2"),
        ("show-membership", "show node --entry 0"),
        ("show-record", "show SEGMENT --offset 544"),
        ("show-identity", "show node/identity"),
        ("show-checkpoint", "show node/checkpoint"),
        ("diff-nodes", "diff node flipped"),
        ("diff-same", "diff node node"),
        ("diff-databases", "diff node/db.sqlite flipped/db.sqlite"),
        ("diff-indexes", "diff node --from 3 --to 6"),
        ("diff-wals", "diff plain.db-wal cut-wal"),
        ("verify-node", "verify node"),
        ("verify-node-flipped", "verify flipped"),
        ("verify-node-without-log", "verify bare"),
        ("extract-from-damage", "extract bare --index 6 -o x.db"),
        ("verify-log-damaged", "verify log-damaged"),
        ("extract-out-of-reach", "extract node --index 99 -o x.db"),
        ("extract", "extract node --index 4 -o out.db"),
    ];
    let expand = |line: &str| {
        let word = |word: &str| match word {
            "SEGMENT" => segment.clone(),
            "DAMAGED" => damaged.clone(),
            "TORN" => torn.clone(),
            other => other.to_owned(),
        };
        line.split(' ').map(word).collect()
    };
    all.into_iter()
        .map(|(name, line)| (name, expand(line)))
        .collect()
}

/// The whole of what the tool said, run where the samples are.
fn transcript(dir: &Path, arguments: &[String], json: bool) -> String {
    let mut words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    words.extend(json.then_some("--json"));
    let output = Command::new(env!("CARGO_BIN_EXE_wal-inspect"))
        .args(&words)
        .current_dir(dir)
        .output()
        .expect("the binary was just built");
    let text = |bytes| String::from_utf8(bytes).expect("the output is text");
    let (out, errors) = (text(output.stdout), text(output.stderr));
    let mut shown = format!("$ wal-inspect {}\n{out}", words.join(" "));
    if !errors.is_empty() {
        writeln!(shown, "stderr: {}", errors.trim_end()).unwrap();
    }
    writeln!(shown, "exit code {}", output.status.code().unwrap()).unwrap();
    shown
}

#[test]
fn outputs_are_those_that_were_looked_at() {
    let dir = workbench();
    let golden = Path::new("tests/inspect/golden");
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    for (name, arguments) in cases() {
        for (json, ending) in [(false, "txt"), (true, "json")] {
            // Extracting made a file, and would refuse to make it again.
            drop(fs::remove_file(dir.path().join("out.db")));
            let shown = transcript(dir.path(), &arguments, json);
            let file = golden.join(format!("{name}.{ending}"));
            if update {
                fs::write(&file, &shown).unwrap();
            } else if fs::read_to_string(&file).unwrap_or_default() != shown {
                wrong.push(format!("{}:\n{shown}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "not as expected:\n{}", wrong.join("\n"));
    let expected = 2 * cases().len();
    assert_eq!(
        fs::read_dir(golden).unwrap().count(),
        expected,
        "no golden file is left over"
    );
}

#[test]
fn every_line_of_json_is_an_object_with_a_kind() {
    let dir = workbench();
    for (name, arguments) in cases() {
        let shown = transcript(dir.path(), &arguments, true);
        let lines: Vec<&str> = shown.lines().collect();
        let ends = ["exit code", "stderr", "$ "];
        let objects = lines
            .iter()
            .filter(|line| !ends.iter().any(|end| line.starts_with(end)));
        for line in objects {
            let object: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(object["kind"].is_string(), "{name}: {line}");
        }
    }
}

#[test]
fn colours_come_only_when_they_are_asked_for_or_on_a_terminal() {
    let wal = "tests/inspect/samples/plain.db-wal";
    let plain = process(&["list", wal]);
    assert!(!plain.stdout.contains(&0x1b), "a pipe is no terminal");
    let coloured = process(&["list", wal, "--color", "always"]);
    assert!(coloured.stdout.contains(&0x1b));
    let arguments = ["wal-inspect", "list", wal];
    let mut on_terminal = Vec::new();
    tools::inspect::run(arguments, &mut on_terminal, &mut Vec::new(), true);
    let forbidden = std::env::var_os("NO_COLOR").is_some_and(|no| !no.is_empty());
    assert_eq!(on_terminal.contains(&0x1b), !forbidden);
    let json = process(&["list", wal, "--color", "always", "--json"]);
    assert!(!json.stdout.contains(&0x1b), "JSON has no colours");
}

#[test]
fn exit_codes_say_what_was_found() {
    let dir = workbench();
    let at = |name: &str| text(&dir.path().join(name)).to_owned();
    let code = |arguments: &[&str]| process(arguments).status.code();
    assert_eq!(code(&["verify", &at("node"), &at("plain.db")]), Some(0));
    assert_eq!(code(&["verify", &at("flipped")]), Some(1));
    assert_eq!(code(&["diff", &at("node"), &at("flipped")]), Some(1));
    assert_eq!(code(&["diff", &at("node"), &at("node")]), Some(0));
    assert_eq!(code(&["verify", &at("nothing-here")]), Some(2));
    assert_eq!(code(&["diff", &at("node"), &at("plain.db")]), Some(2));
    assert_eq!(code(&["show", &at("node"), "--entry", "77"]), Some(2));
    assert_eq!(code(&["frobnicate"]), Some(2));
    assert_eq!(code(&["--help"]), Some(0));
}

/// A node that was stopped between receiving an image and installing it.
#[test]
fn what_is_being_installed_counts_as_the_latest_state() {
    let dir = workbench();
    let (node, out) = (dir.path().join("receiving"), dir.path().join("then.db"));
    let extract = |index: &str| {
        drop(fs::remove_file(&out));
        inspect(&["extract", text(&node), "--index", index, "-o", text(&out)])
    };
    let (code, said, errors) = extract("40");
    assert_eq!(code, 0, "{said}{errors}");
    let expected: Vec<u8> = [1, 2, 3].into_iter().flat_map(|page| [page; 512]).collect();
    assert_eq!(fs::read(&out).unwrap(), expected);
    // The log still leads to what was there before.
    let (code, said, errors) = extract("6");
    assert_eq!(code, 0, "{said}{errors}");
    assert!(fs::read(&out).unwrap() == fs::read(node.join("db.sqlite")).unwrap());
    assert_eq!(extract("39").0, 2);
}

/// Of a plain SQLite database: what it was after each transaction that is still in its WAL.
#[test]
fn a_database_is_taken_out_up_to_a_frame() {
    let dir = workbench();
    let out = dir.path().join("then.db");
    for (frame, names) in [
        ("0", "apple,pear,fig"),
        ("1", "apple,pear,fig"),
        ("2", "apple,pear,fig,plum"),
        ("3", "apple,pear,fig,plum"),
        ("4", "quince,pear,fig,plum"),
        ("8", "quince,fig,plum"),
        ("99", "quince,fig,plum"),
    ] {
        drop(fs::remove_file(&out));
        let plain = dir.path().join("plain.db");
        let run = inspect(&["extract", text(&plain), "--frame", frame, "-o", text(&out)]);
        assert_eq!(run.0, 0, "{run:?}");
        let database = rusqlite::Connection::open(&out).unwrap();
        let sql = "SELECT group_concat(name) FROM (SELECT name FROM fruit ORDER BY id)";
        let found: String = database.query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(found, names, "frame {frame}");
        let check = "PRAGMA integrity_check";
        let verdict: String = database.query_row(check, [], |row| row.get(0)).unwrap();
        assert_eq!(verdict, "ok", "frame {frame}");
    }
}

/// Nobody's files are touched: not their content, not their times, and nothing is left beside them.
#[test]
fn looking_changes_nothing() {
    let dir = workbench();
    let state = || {
        let mut found = Vec::new();
        let mut folders = vec![dir.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                if entry.path().is_dir() {
                    folders.push(entry.path());
                } else {
                    let modified = entry.metadata().unwrap().modified().unwrap();
                    found.push((entry.path(), modified, fs::read(entry.path()).unwrap()));
                }
            }
        }
        found.sort();
        found
    };
    let before = state();
    for (name, arguments) in cases() {
        if name != "extract" {
            transcript(dir.path(), &arguments, false);
        }
    }
    assert!(before == state());
}
