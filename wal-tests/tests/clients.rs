//! Published rqlite clients work unmodified: against a node alone, and through a follower of three.
//!
//! The clients are installed from their registries, into a fresh directory, with the settings of
//! the environment. A language is skipped, with the reason on stderr, where its interpreter is
//! missing or its registry cannot be reached; once the registry has answered, whatever fails is a
//! failure. The programs that use the clients are in `wal-tests/clients`.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use wal_tests::cluster::{Formation, ProcessCluster};

/// What ran: whether it succeeded, and all that it printed.
struct Ended {
    success: bool,
    output: String,
}

/// What a client needs before it can be used.
struct Setup {
    what: &'static str,
    dir: TempDir,
}

impl Setup {
    fn new(what: &'static str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("wallaby-clients-")
            .tempdir();
        Self {
            what,
            dir: dir.unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Printed past the test harness, which keeps the output of tests that pass to itself.
    fn skip(&self, reason: &str) {
        let _ = writeln!(std::io::stderr(), "{}: skipped: {reason}", self.what);
    }

    /// Whether these commands are there, each asked for its version; if not, the test is skipped.
    fn has(&self, commands: &[&[&str]]) -> bool {
        let missing = commands.iter().find(|words| {
            let ended = ended(command(words), PATIENCE).ok().flatten();
            !ended.is_some_and(|ended| ended.success)
        });
        if let Some(words) = missing {
            self.skip(&format!("`{}` does not run here", words.join(" ")));
        }
        missing.is_none()
    }

    /// Whether the registry answers this cheap question; if not, the test is skipped.
    ///
    /// # Panics
    ///
    /// When the question fails in another way than for want of a connection.
    #[track_caller]
    fn reaches(&self, probe: Command) -> bool {
        let Some(probed) = ended(probe, PROBE_PATIENCE).unwrap() else {
            self.skip(&format!("no answer within {PROBE_PATIENCE:?}"));
            return false;
        };
        if probed.success {
            return true;
        }
        let output = probed.output.to_lowercase();
        let Some(sign) = NO_CONNECTION.iter().find(|sign| output.contains(**sign)) else {
            panic!(
                "{}: the registry answers with a failure:\n{output}",
                self.what
            );
        };
        self.skip(&format!("the registry cannot be reached ({sign})"));
        false
    }

    /// Runs something that must succeed, and returns what it printed.
    #[track_caller]
    fn run(&self, command: Command) -> String {
        let shown = format!("{command:?}");
        let ended = ended(command, PATIENCE).unwrap();
        let Some(ended) = ended else {
            panic!("{}: not done after {PATIENCE:?}: {shown}", self.what);
        };
        assert!(ended.success, "{}: {shown}\n{}", self.what, ended.output);
        ended.output
    }

    /// Runs the programs against a node alone, then through a follower of three, then the same
    /// where credentials are needed.
    #[track_caller]
    fn round_trips(&self, programs: &[&dyn Fn() -> Command], parts: &[&str]) {
        let users = self.path("users.json");
        std::fs::write(&users, USERS).unwrap();
        let users = users.display().to_string();
        for (nodes, flags) in [(1, vec![]), (3, vec![]), (3, vec!["-auth", &users])] {
            let mut cluster = ProcessCluster::start(nodes, &Formation::Join, &flags);
            let leader = cluster.wait_leader();
            let node = (leader + 1) % nodes;
            let (address, leader) = (cluster.address(node), cluster.address(leader));
            for program in programs {
                let mut command = program();
                command.args([address, leader]).args(parts);
                command.envs(NO_PROXIES);
                if !flags.is_empty() {
                    command.envs(CREDENTIALS);
                }
                let output = self.run(command);
                assert!(output.contains("ok: "), "{}: {output}", self.what);
            }
            let _ = cluster.assert_identical();
            cluster.assert_healthy_logs();
        }
    }
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// Waits for a command, its output in a file: a pipe would be held open by what it leaves behind.
/// `None` when it was ended after `patience`.
///
/// # Errors
///
/// When it cannot be started.
fn ended(mut command: Command, patience: Duration) -> std::io::Result<Option<Ended>> {
    let mut log = tempfile::tempfile()?;
    command.stdin(Stdio::null());
    command.stdout(log.try_clone()?).stderr(log.try_clone()?);
    // What cargo tells this test about its own package is no news for other packages.
    for (name, _) in std::env::vars_os() {
        let told = name.to_string_lossy();
        if told.starts_with("CARGO_PKG_") || told.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    let mut child = command.spawn()?;
    let deadline = Instant::now() + patience;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    log.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes)?;
    Ok(Some(Ended {
        success: status.success(),
        output: String::from_utf8_lossy(&bytes).into_owned(),
    }))
}

/// The folder of one language.
fn sources(language: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/clients")).join(language)
}

/// Copies the files of a folder, where tools may then write beside them.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            if entry.file_name() != "target" && entry.file_name() != "node_modules" {
                copy(&entry.path(), &target);
            }
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn python_clients_work() {
    let setup = Setup::new("python");
    // Debian keeps the module for environments apart from the interpreter.
    if !setup.has(&[&["python3", "-c", "import venv, ensurepip"]]) {
        return;
    }
    let environment = setup.path("environment");
    let mut create = command(&["python3", "-m", "venv"]);
    create.arg(&environment);
    setup.run(create);
    let python = environment.join("bin/python");
    let pip = |words: &[&str]| {
        let mut command = Command::new(&python);
        command.args(["-m", "pip", "--no-input"]).args(words);
        command
    };
    // It says why it found nothing only when it tries again.
    let words = "download --no-deps --disable-pip-version-check --retries 1 --timeout 10 \
                 pyrqlite==2.2.3 --dest";
    let mut probe = pip(&words.split(' ').collect::<Vec<_>>());
    probe.arg(setup.path("probe"));
    if !setup.reaches(probe) {
        return;
    }
    let mut install = pip(&["install", "--no-deps", "--require-hashes", "--requirement"]);
    install.arg(sources("python").join("requirements.txt"));
    setup.run(install);
    let program = |name: &'static str| {
        let python = &python;
        move || {
            let mut command = Command::new(python);
            command.arg("-B").arg(sources("python").join(name));
            command
        }
    };
    let (dbapi, alchemy) = (program("dbapi.py"), program("alchemy.py"));
    setup.round_trips(&[&dbapi, &alchemy], &["redirect", "queue"]);
}

#[test]
fn the_javascript_client_works() {
    let setup = Setup::new("javascript");
    // The first also asks for a version that knows modules by such names.
    let commands: [&[&str]; 2] = [
        &["node", "-e", "require('node:assert/strict')"],
        &["npm", "--version"],
    ];
    if !setup.has(&commands) {
        return;
    }
    let words = "npm view rqlite-js@2.5.7 version --fetch-retries=0 --fetch-timeout=10000";
    if !setup.reaches(command(&words.split(' ').collect::<Vec<_>>())) {
        return;
    }
    let project = setup.path("project");
    copy(&sources("javascript"), &project);
    let mut install = command(&["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
    install.current_dir(&project);
    setup.run(install);
    let node = |program: &str| {
        let mut command = command(&["node", program]);
        command.current_dir(&project);
        command
    };
    let parts = ["redirect", "queue", "backup", "load"];
    setup.round_trips(&[&|| node("round_trip.js")], &parts);
    writes_of_unknown_outcome_are_sent_once(&setup, node("unknown.js"));
}

/// The program stops and resumes the followers itself.
#[track_caller]
fn writes_of_unknown_outcome_are_sent_once(setup: &Setup, mut program: Command) {
    let mut cluster = ProcessCluster::start(3, &Formation::Join, &[]);
    let leader = cluster.wait_leader();
    program.arg(cluster.address(leader));
    for node in (0..3).filter(|&node| node != leader) {
        program.arg(cluster.process_id(node).to_string());
    }
    program.envs(NO_PROXIES);
    let output = setup.run(program);
    assert!(output.contains("ok: "), "{output}");
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}

#[test]
fn the_rust_client_works() {
    let setup = Setup::new("rust");
    let project = setup.path("project");
    copy(&sources("rust"), &project);
    let cargo = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.args(words).current_dir(&project);
        command
    };
    let mut probe = cargo(&["fetch", "--locked"]);
    probe.envs([("CARGO_HTTP_TIMEOUT", "10"), ("CARGO_NET_RETRY", "0")]);
    if !setup.reaches(probe) {
        return;
    }
    // Beside what the tests themselves are built into, so that the next run finds it built.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients-rust");
    let mut build = cargo(&["build", "--locked", "--target-dir"]);
    build.arg(&target);
    setup.run(build);
    let program = || Command::new(target.join("debug/wallaby-client-tests"));
    setup.round_trips(&[&program], &["queue"]);
}

#[test]
fn the_go_client_works() {
    let setup = Setup::new("go");
    if !setup.has(&[&["go", "version"]]) {
        return;
    }
    let project = setup.path("project");
    copy(&sources("go"), &project);
    let go = |words: &[&str]| {
        let mut command = command(&["go"]);
        command.args(words).current_dir(&project);
        command
    };
    if !setup.reaches(go(&["mod", "download"])) {
        return;
    }
    setup.run(go(&["build", "-mod=readonly", "-o", "round_trip"]));
    let program = || Command::new(project.join("round_trip"));
    setup.round_trips(&[&program], &["queue"]);
}

/// Everybody may do what these tests and joining nodes do, and only one user what clients do.
const USERS: &str = r#"[
    {"username": "*", "perms": ["backup", "join", "ready", "status"]},
    {"username": "fiona", "password": "p: %/@'", "perms": ["all"]}
]"#;

const CREDENTIALS: [(&str, &str); 2] = [("RQLITE_USER", "fiona"), ("RQLITE_PASSWORD", "p: %/@'")];

/// How long one command may take: an installation over a slow line on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// Proxies are for the way to registries, not to loopback.
const NO_PROXIES: [(&str, &str); 2] = [("NO_PROXY", "*"), ("no_proxy", "*")];

/// How long a registry may take to show that it is there.
const PROBE_PATIENCE: Duration = Duration::from_secs(120);

/// What pip, npm, cargo and go say when there is no way to their registry, in lower case.
const NO_CONNECTION: [&str; 21] = [
    "connect timeout",
    "connection aborted",
    "connection broken",
    "connection error",
    "connection refused",
    "connection reset",
    "connection timed out",
    "could not connect",
    "could not resolve",
    "couldn't connect",
    "couldn't resolve",
    "deadline exceeded",
    "eai_again",
    "econnrefused",
    "econnreset",
    "enetunreach",
    "enotfound",
    "etimedout",
    "i/o timeout",
    "network is unreachable",
    "no such host",
];
