//! What an operator types every day, run by the real curl against real nodes: the files in
//! `wal-tests/runbook`, whose README describes them. `WAL_KEEP=1` keeps the directories.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use wal_tests::cluster::{Formation, ProcessCluster};

/// One command and what it must print.
#[derive(Debug, Default, Eq, PartialEq)]
struct Step {
    /// Its line in the file.
    line: usize,
    command: String,
    expected: String,
}

/// The steps of a file. A command goes on over further lines while a quote in it is open.
fn parse(text: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut step: Option<Step> = None;
    for (line, content) in (1..).zip(text.lines()) {
        match &mut step {
            Some(_) if content.is_empty() => steps.extend(step.take()),
            Some(step) if quote_is_open(&step.command) => {
                step.command.push('\n');
                step.command.push_str(content);
            }
            Some(step) => {
                step.expected.push_str(content);
                step.expected.push('\n');
            }
            None => {
                if let Some(command) = content.strip_prefix("$ ") {
                    step = Some(Step {
                        line,
                        command: command.to_owned(),
                        expected: String::new(),
                    });
                } else {
                    let comment = content.is_empty() || content.starts_with('#');
                    assert!(comment, "line {line} is none of the kinds: {content}");
                }
            }
        }
    }
    steps.extend(step);
    steps
}

/// Whether a text for `sh` ends inside quotes.
fn quote_is_open(command: &str) -> bool {
    let mut open = None;
    let mut characters = command.chars();
    while let Some(character) = characters.next() {
        match (open, character) {
            (None | Some('"'), '\\') => {
                characters.next();
            }
            (None, '\'' | '"') => open = Some(character),
            (Some(quote), _) if quote == character => open = None,
            _ => {}
        }
    }
    open.is_some()
}

/// Whether a text is the one described, with `<number>` and `<word>` in place of what varies.
fn fits(pattern: &str, text: &str) -> bool {
    let number = |c: char| c.is_ascii_digit() || "+-.e".contains(c);
    let word = |c: char| !c.is_whitespace() && !"\",<>".contains(c);
    let kinds: [(&str, &dyn Fn(char) -> bool); 2] = [("<number>", &number), ("<word>", &word)];
    let found = kinds
        .into_iter()
        .filter_map(|(name, kind)| Some((pattern.find(name)?, name, kind)))
        .min_by_key(|(at, _, _)| *at);
    let Some((at, name, kind)) = found else {
        return pattern == text;
    };
    let Some(rest) = text.strip_prefix(&pattern[..at]) else {
        return false;
    };
    // What follows a placeholder never begins with what it may contain.
    let end = rest.find(|c| !kind(c)).unwrap_or(rest.len());
    end > 0 && fits(&pattern[at + name.len()..], &rest[end..])
}

/// Runs a file against a cluster of so many nodes.
#[track_caller]
fn run(file: &str, nodes: usize) {
    if Command::new("curl").arg("--version").output().is_err() {
        // Past the test harness, which keeps the output of tests that pass to itself.
        let _ = writeln!(std::io::stderr(), "{file}: skipped: there is no curl here");
        return;
    }
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/runbook")).join(file);
    let steps = parse(&std::fs::read_to_string(path).unwrap());
    assert!(steps.len() > 10, "the steps of {file} were found");
    let mut cluster = ProcessCluster::start(nodes, &Formation::Join, &[]);
    let leader = cluster.wait_leader();
    let mut names = vec![("localhost:$".to_owned(), "127.0.0.1:$".to_owned())];
    for position in 0..nodes {
        let address = cluster.address((leader + position) % nodes).to_owned();
        let status = cluster.client().json(&address, "/status").unwrap();
        let raft = status["store"]["addr"].as_str().unwrap().to_owned();
        let name = format!("localhost:{}", 4001 + 2 * position);
        // A loop over ports names them apart from the host.
        let port = |text: &str| text.rsplit_once(':').unwrap().1.to_owned();
        names.push((port(&name), port(&address)));
        names.push((name, address));
        names.push((format!("localhost:{}", 4002 + 2 * position), raft));
    }
    let dir = tempfile::tempdir().unwrap();
    for step in steps {
        let printed = printed(&step.command, &names, dir.path());
        assert!(
            fits(step.expected.trim_end(), printed.trim_end()),
            "{file}:{}: {}\n--- expected\n{}--- printed\n{printed}",
            step.line,
            step.command,
            step.expected
        );
    }
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}

/// What a command prints, the addresses in it and in its output replaced.
fn printed(command: &str, names: &[(String, String)], dir: &Path) -> String {
    let output = Command::new("sh")
        .args(["-c", &replaced(command, names)])
        .current_dir(dir)
        // What this machine has set up for the way to other machines is not for loopback.
        .envs([("NO_PROXY", "*"), ("no_proxy", "*"), ("CURL_HOME", ".")])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let back: Vec<_> = names.iter().cloned().map(|(a, b)| (b, a)).collect();
    replaced(&String::from_utf8_lossy(&output.stdout), &back)
}

/// Replaces what stands in the first column by the second, but not inside a longer number. In one
/// pass: a port put in could contain a name that is still to be replaced.
fn replaced(text: &str, names: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let in_number = out.ends_with(|c: char| c.is_ascii_digit() || c == '.');
        let found = names.iter().find(|(from, _)| {
            let after = rest.strip_prefix(from.as_str());
            after.is_some_and(|after| !after.starts_with(|c: char| c.is_ascii_digit()))
        });
        if let (Some((from, to)), false) = (found, in_number) {
            out.push_str(to);
            rest = &rest[from.len()..];
        } else {
            out.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    out
}

#[test]
fn the_runbook_of_a_node_alone() {
    run("single.txt", 1);
}

#[test]
fn the_runbook_of_a_cluster() {
    run("cluster.txt", 3);
}

#[test]
fn steps_are_read_with_quotes_over_lines() {
    let steps = parse("# One\n$ curl 'a\nb \"'\nx\ny\n\n$ true \\\"\n");
    let first = Step {
        line: 2,
        command: "curl 'a\nb \"'".to_owned(),
        expected: "x\ny\n".to_owned(),
    };
    let second = Step {
        line: 7,
        command: "true \\\"".to_owned(),
        ..Step::default()
    };
    assert_eq!(steps, [first, second]);
}

#[test]
fn names_are_replaced_in_one_pass_and_as_a_whole() {
    let names = [("4001", "40031"), ("4003", "9")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    let text = "4001 x:4003, 40010 0.4003 14001";
    assert_eq!(replaced(text, &names), "40031 x:9, 40010 0.4003 14001");
}

#[test]
fn placeholders_stand_for_something_and_for_nothing_else() {
    assert!(fits("a <number>,<word>", "a -1.5e-7,x.y/z"));
    assert!(!fits("a <number>", "a "));
    assert!(!fits("a <number>", "a one"));
    assert!(!fits("a <number>!", "a 1"));
    assert!(!fits("a", "a b"));
    assert!(!fits("<word>", "a b"));
}
