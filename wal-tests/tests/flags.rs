//! rqlited's flags on the real program: each is accepted in every form, refused with a sentence, or
//! said to have no effect, as `flags/rqlited.txt` has it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Output;

use tempfile::TempDir;
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::process;

struct Flag {
    name: String,
    default: Option<String>,
    class: String,
    sample: String,
}

impl Flag {
    fn is_switch(&self) -> bool {
        ["true", "false"].contains(&self.default.as_deref().unwrap_or_default())
    }
}

fn flags() -> Vec<Flag> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("flags/rqlited.txt");
    let text = fs::read_to_string(file).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let flags: Vec<Flag> = lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, default, class, sample] = words[..] else {
                panic!("{line:?} has not four words")
            };
            Flag {
                name: name.to_owned(),
                default: (default != "-").then(|| default.to_owned()),
                class: class.to_owned(),
                sample: sample.to_owned(),
            }
        })
        .collect();
    assert!(flags.len() > 50, "rqlited has more flags than that");
    flags
}

fn of_class<'a>(flags: &'a [Flag], class: &str) -> Vec<&'a Flag> {
    let those: Vec<&Flag> = flags.iter().filter(|flag| flag.class == class).collect();
    assert!(!those.is_empty(), "no flag is {class}");
    those
}

/// Runs the program with these flags and a data directory that must not come to be.
fn run(arguments: &[&str]) -> Output {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data");
    let mut all = arguments.to_vec();
    all.push(data.to_str().unwrap());
    let output = process::run(&all);
    assert!(!data.exists(), "{arguments:?} touched the data directory");
    output
}

#[track_caller]
fn refused(arguments: &[&str], expected: &str) {
    let output = run(arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
    assert!(error.contains(expected), "{arguments:?}: {error}");
}

#[test]
fn every_flag_is_taken_in_every_form() {
    let version = process::run(&["version"]).stdout;
    for flag in flags().iter().filter(|flag| flag.class != "refused") {
        let Flag { name, sample, .. } = flag;
        let (one, two) = (format!("-{name}"), format!("--{name}"));
        let (one_with, two_with) = (format!("{one}={sample}"), format!("{two}={sample}"));
        let mut forms = vec![vec![one_with.as_str()], vec![two_with.as_str()]];
        if flag.is_switch() {
            forms.extend([vec![one.as_str()], vec![two.as_str()]]);
        } else {
            forms.extend([vec![one.as_str(), sample], vec![two.as_str(), sample]]);
        }
        for mut form in forms {
            form.push("-version");
            let output = run(&form);
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{form:?}: {error}");
            assert_eq!(output.stdout, version, "{form:?}");
        }
    }
}

#[test]
fn the_help_names_every_flag_with_its_default() {
    let help = String::from_utf8(process::run(&["-help"]).stdout).unwrap();
    let serve = String::from_utf8(process::run(&["serve", "-help"]).stdout).unwrap();
    assert!(help.contains("serve"));
    let words: Vec<&str> = serve.split_whitespace().collect();
    for flag in flags() {
        let named = format!("--{}", flag.name);
        let named_with = format!("{named}[=");
        let own = |word: &&str| **word == named || word.starts_with(&named_with);
        let begin = words.iter().position(own);
        let begin = begin.unwrap_or_else(|| panic!("the help lacks {named}"));
        let rest = &words[begin + 1..];
        let end = rest.iter().position(|word| word.starts_with("--"));
        let text = rest[..end.unwrap_or(rest.len())].join(" ");
        let shown = text.split("[default: ").nth(1);
        let shown = shown.and_then(|rest| rest.split(']').next());
        assert_eq!(shown, flag.default.as_deref(), "{named}: {text}");
    }
}

#[test]
fn what_is_not_built_is_refused_unless_it_is_left_alone() {
    for flag in of_class(&flags(), "refused") {
        let (name, sample) = (&flag.name, &flag.sample);
        let sentence = format!("wallaby: -{name}: ");
        refused(&[&format!("-{name}={sample}")], &sentence);
        refused(
            &[&format!("-{name}={sample}")],
            " is not built yet; start without it\n",
        );
    }
    refused(
        &["-cdc-config", "stdout"],
        "wallaby: -cdc-config: change data capture is not built yet; start without it\n",
    );
}

#[test]
fn flags_without_effect_are_said_to_have_none_and_defaults_are_taken_in_silence() {
    let flags = flags();
    let samples = of_class(&flags, "no-effect").into_iter();
    let mut arguments: Vec<String> = samples
        .map(|flag| format!("-{}={}", flag.name, flag.sample))
        .collect();
    for flag in of_class(&flags, "refused") {
        let default = flag.default.clone().unwrap_or_default();
        arguments.push(format!("-{}={default}", flag.name));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let cluster = ProcessCluster::start(1, &Formation::Join, &arguments);
    let log = cluster.log_text(0);
    for flag in &flags {
        let named = format!("flag=\"{}\"", flag.name);
        let lines = log.lines().filter(|line| line.contains(&named)).count();
        let expected = usize::from(flag.class == "no-effect");
        assert_eq!(lines, expected, "-{} in {log}", flag.name);
    }
}

#[test]
fn flags_that_contradict_each_other_are_refused_in_rqlites_words() {
    for (arguments, expected) in CONTRADICTIONS {
        refused(arguments, expected);
    }
    let bare = process::run(&["-node-id", "1"]);
    let error = String::from_utf8(bare.stderr).unwrap();
    assert_eq!(bare.status.code(), Some(2));
    assert!(error.contains("data directory path is required"), "{error}");
}

#[test]
fn a_node_that_finds_no_cluster_gives_up_and_says_why() {
    let nowhere = "localhost:1";
    for (flags, expected) in [
        (
            &[
                "-join",
                nowhere,
                "-join-attempts",
                "2",
                "-join-interval=200ms",
            ][..],
            "no node of a cluster answered at localhost:1 within 400ms",
        ),
        (
            &[
                "-join",
                nowhere,
                "-bootstrap-expect=3",
                "-bootstrap-expect-timeout=300ms",
            ],
            "too few nodes answered at localhost:1 within 300ms",
        ),
    ] {
        let mut cluster = ProcessCluster::prepare(1, &Formation::Join, flags);
        cluster.start_node(0);
        let status = cluster.wait_end(0);
        let log = cluster.log_text(0);
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains(expected), "{log}");
    }
}

#[test]
fn the_raft_library_is_as_loud_as_it_is_told() {
    for (flags, expected) in [(&[][..], false), (&["-raft-log-level=debug"], true)] {
        let cluster = ProcessCluster::start(1, &Formation::Join, flags);
        let log = cluster.log_text(0);
        let found = log.lines().any(|line| line.contains(" openraft"));
        assert_eq!(found, expected, "{flags:?}: {log}");
    }
}

/// What is given, and what is answered.
const CONTRADICTIONS: &[(&[&str], &str)] = &[
    (
        &["-http-addr", "localhost:4002"],
        "HTTP and Raft addresses must differ",
    ),
    (
        &["-http-addr", "0.0.0.0:4001"],
        "advertised HTTP address is not routable (0.0.0.0), specify it via -http-addr or \
             -http-adv-addr",
    ),
    (
        &["-raft-addr", "0.0.0.0:4002", "-insecure-cluster"],
        "advertised Raft address is not routable (0.0.0.0), specify it via -raft-addr or \
             -raft-adv-addr",
    ),
    (
        &["-http-adv-addr", "https://localhost:4001"],
        "HTTP options should not include protocol (http:// or https://)",
    ),
    (&["-join", "x"], "x is an invalid join address"),
    (
        &["-join", "localhost:4002"],
        "node cannot join with itself unless bootstrapping",
    ),
    (
        &["-disco-mode", "dns", "-join", "localhost:4102"],
        "disco mode cannot be used when also explicitly joining a cluster",
    ),
    (
        &[
            "-raft-non-voter",
            "-bootstrap-expect",
            "3",
            "-join",
            "localhost:4102",
        ],
        "bootstrapping only applicable to voting nodes",
    ),
    (
        &["-disco-mode", "dns"],
        "bootstrap-expect value required when using dns with a voting node",
    ),
    (
        &["-disco-mode", "dns-srv"],
        "bootstrap-expect value required when using dns-srv with a voting node",
    ),
    (
        &["-disco-mode", "consul-kv", "-bootstrap-expect", "3"],
        "bootstrapping not applicable when using consul-kv",
    ),
    (
        &["-disco-mode", "zeroconf"],
        "-disco-mode: `zeroconf` is none of consul-kv, dns, dns-srv, etcd-kv",
    ),
    (
        &["-raft-non-voter", "-cdc-config", "stdout"],
        "CDC cannot be enabled on non-voting nodes",
    ),
    (
        &["-auto-restore", "x.json", "-join", "localhost:4102"],
        "auto-restoring cannot be used when joining a cluster",
    ),
    (
        &["-raft-reap-node-timeout=-1h"],
        "must be greater than 0 if given",
    ),
    (
        &["-http-cert", "cert.pem"],
        "either both -http-cert and -http-key must be set, or neither",
    ),
    (&["-raft-log-level=loud"], "-raft-log-level: `loud` is none"),
    (&["-auto-vacuum-int=1ns"], "-auto-vacuum-int: must be at"),
    (&["-join-attempts=0"], "-join-attempts: must be within"),
    (
        &["-cdc-confg", "x"],
        "unknown flag -cdc-confg for `wallaby serve`; did you mean -cdc-config?",
    ),
    (&["-raft-snap"], "-raft-snap"),
    (&["data", "-fk"], "are not accepted"),
];
