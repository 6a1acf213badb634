//! What README tells a newcomer to type works as it stands there.

// A test that cannot unwrap says less.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use std::{fs, thread};

use check::programs;
use rustix::process::{Pid, Signal, kill_process_group};
use wal_tests::{ports, process};

/// The commands that run in the background, and everything they started.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // Nothing is left to kill if all of them have ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
        drop(self.0.wait());
    }
}

/// With a second package that names a program to be run, cargo asks which one is meant.
#[test]
fn cargo_run_is_the_server() {
    let readme = readme();
    assert!(readme.contains("\ncargo run --release -- demo\n"));
    let output = programs::cargo(&["run", "--locked", "--quiet", "--", "version"]).output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(text.to_lowercase().contains("wallaby"), "{text}");
}

#[test]
fn three_nodes_in_a_minute() {
    let readme = readme();
    let block = blocks(&readme, "Three nodes in a minute").remove(0);
    let (nodes, questions): (Vec<&str>, Vec<&str>) = commands(&block)
        .into_iter()
        .filter(|command| !command.starts_with("cargo"))
        .partition(|command| command.ends_with('&'));
    assert_eq!(
        (nodes.len(), questions.len()),
        (3, 3),
        "the block is another one now"
    );
    let ports = free_ports(&block);
    let directory = tempfile::TempDir::new().unwrap();
    std::os::unix::fs::symlink(process::binary(), directory.path().join("wallaby")).unwrap();
    // The first node is there before the others look for it, as it would be when typed by hand.
    let (first, others) = nodes.split_first().unwrap();
    let script = format!("{first}\nsleep 1\n{}\nwait", others.join("\n"));
    let child = Command::new("sh")
        .args(["-c", &with_ports(&script, &ports)])
        .current_dir(directory.path())
        .process_group(0)
        .spawn()
        .unwrap();
    let _group = Group(child);
    let answers: Vec<String> = questions
        .iter()
        .map(|question| answer(directory.path(), &with_ports(question, &ports)))
        .collect();
    assert!(answers[0].contains("\"last_insert_id\":1"), "{answers:?}");
    assert!(answers[1].contains("\"values\":[[1,"), "{answers:?}");
    assert!(answers[2].contains("\"reachable\": true"), "{answers:?}");
}

#[test]
fn a_cluster_key_is_made_and_used() {
    let readme = readme();
    let block = blocks(&readme, "Three nodes in a minute").remove(1);
    let keygen = commands(&block).remove(0);
    let directory = tempfile::TempDir::new().unwrap();
    std::os::unix::fs::symlink(process::binary(), directory.path().join("wallaby")).unwrap();
    let made = Command::new("sh")
        .args(["-c", keygen])
        .current_dir(directory.path())
        .status();
    assert!(made.unwrap().success());
    assert!(directory.path().join("cluster.key").exists());
}

#[test]
fn every_flag_in_the_table_exists() {
    let readme = readme();
    let help = Command::new(process::binary())
        .args(["serve", "-help"])
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let flags = section(&readme, "Flags");
    let rows = flags.lines().filter(|line| line.starts_with("| `-"));
    let mut checked = 0;
    for flag in rows.flat_map(|row| row.split('|').nth(1).unwrap().split(',')) {
        let name = flag.trim().trim_matches('`').trim_start_matches('-');
        assert!(
            help.contains(&format!("-{name}")),
            "-{name} is not in the help text"
        );
        checked += 1;
    }
    assert!(checked > 10, "the table of flags is another one now");
}

/// Asks until the cluster answers without an error.
fn answer(directory: &Path, question: &str) -> String {
    let begun = Instant::now();
    loop {
        let output = Command::new("sh")
            .args(["-c", question])
            .current_dir(directory)
            .output();
        let output = String::from_utf8(output.unwrap().stdout).unwrap();
        let failed = output.is_empty() || output.contains("error") || output.contains("false,");
        let failed = failed && !output.contains("\"reachable\": true");
        // A node that is still on its way into the cluster knows no members.
        let failed = failed || output == "{}";
        if !failed {
            return output;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{question}: {output}"
        );
        thread::sleep(Duration::from_millis(200));
    }
}

fn readme() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    fs::read_to_string(path).unwrap()
}

fn section<'a>(readme: &'a str, title: &str) -> &'a str {
    let (_, section) = readme.split_once(&format!("\n## {title}\n")).unwrap();
    section.split("\n## ").next().unwrap()
}

/// The fenced blocks of a section, continued lines joined.
fn blocks(readme: &str, title: &str) -> Vec<String> {
    let fenced = section(readme, title).split("```").skip(1).step_by(2);
    fenced.map(|block| block.replace("\\\n", " ")).collect()
}

fn commands(block: &str) -> Vec<&str> {
    block
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect()
}

/// A free port for each that README names.
fn free_ports(block: &str) -> BTreeMap<String, u16> {
    let named = block
        .split("localhost:")
        .skip(1)
        .map(|rest| rest[..4].to_owned());
    let mut ports: BTreeMap<String, u16> = named.map(|port| (port, 0)).collect();
    // The defaults are not written out.
    ports.insert("4001".to_owned(), 0);
    ports.insert("4002".to_owned(), 0);
    // None that begins like one of README's.
    let named: Vec<String> = ports.keys().cloned().collect();
    for free in ports.values_mut() {
        *free = ports::reserve(1)[0];
        while named.iter().any(|name| free.to_string().starts_with(name)) {
            *free = ports::reserve(1)[0];
        }
    }
    ports
}

fn with_ports(script: &str, ports: &BTreeMap<String, u16>) -> String {
    let defaults = "./wallaby -node-id 1 -http-addr localhost:4001 -raft-addr localhost:4002";
    let script = script.replace("./wallaby -node-id 1", defaults);
    ports.iter().fold(script, |script, (named, free)| {
        script.replace(&format!("localhost:{named}"), &format!("localhost:{free}"))
    })
}
