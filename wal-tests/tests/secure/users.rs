//! The users file: how passwords are given, what is refused at start, what a change does.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::process;

use crate::raw::{basic, call, connect, post};

/// A users file in a directory that goes with it.
pub(crate) struct UsersFile {
    _dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

impl UsersFile {
    pub(crate) fn new(users: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users.json");
        fs::write(&path, users.to_string()).unwrap();
        Self { _dir: dir, path }
    }

    pub(crate) fn text(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// Replaces the file in one step.
    pub(crate) fn replace(&self, text: &str) {
        let new = self.path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &self.path).unwrap();
    }
}

/// What `*` needs for the harness to see when a node is up.
pub(crate) fn watchable() -> Value {
    json!({"username": "*", "perms": ["ready", "status", "backup"]})
}

pub(crate) fn user(name: &str, perms: &[&str]) -> Value {
    json!({"username": name, "password": format!("{name}-secret"), "perms": perms})
}

/// The header of a user made by [`user`].
pub(crate) fn as_user(name: &str) -> String {
    basic(name, &format!("{name}-secret"))
}

/// What `wallaby hash-password` prints for a password.
fn hashed(password: &str) -> String {
    let mut hashing = Command::new(process::binary())
        .arg("hash-password")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = hashing.stdin.take().unwrap();
    stdin.write_all(password.as_bytes()).unwrap();
    drop(stdin);
    let output = hashing.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn hashes_and_plain_passwords_let_in_the_same_way() {
    let hash = hashed("secret of ann\n");
    assert!(
        hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
        "{hash}"
    );
    let file = UsersFile::new(&json!([
        watchable(),
        {"username": "ann", "password": hash, "perms": ["query"]},
        user("bob", &["query"]),
    ]));
    let cluster = ProcessCluster::start(1, &Formation::Join, &["-auth", file.text()]);
    let address = cluster.address(0);
    let asked = |header: &str| call(address, "GET /db/query?q=SELECT+1", &[header]).status;
    assert_eq!(asked(&basic("ann", "secret of ann")), 200);
    assert_eq!(asked(&basic("ann", "secret of ann")), 200, "remembered");
    assert_eq!(asked(&as_user("bob")), 200);
    // The hash is no password, and what was remembered is not just any password.
    assert_eq!(asked(&basic("ann", &hash)), 401);
    assert_eq!(asked(&basic("ann", "bob-secret")), 401);
    assert_eq!(asked(&basic("bob", "ann-secret")), 401);
    assert_eq!(asked(&basic("*", "")), 401);
    assert_eq!(asked(&basic("", "")), 401);
    assert_eq!(asked("Authorization: Bearer abc"), 401);
    assert_eq!(asked(&basic("ann", "secret of ann")), 200);
    let log = cluster.log_text(0);
    let warned = |line: &&str| line.contains("passwords in clear text") && line.contains("users=1");
    assert_eq!(log.lines().filter(warned).count(), 1, "{log}");
    for secret in ["secret of ann", "bob-secret", "ann-secret", &hash] {
        assert!(!log.contains(secret), "{secret} in the log");
    }
    cluster.assert_healthy_logs();
}

#[test]
fn a_hash_is_of_something() {
    let mut hashing = Command::new(process::binary());
    let hashing = hashing.arg("hash-password").stdin(Stdio::null());
    let output = hashing.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("the password is empty"), "{error}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_file_that_cannot_be_used_keeps_the_node_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let check = |path: &Path, expected: &str| {
        let arguments = [
            "serve",
            "-auth",
            path.to_str().unwrap(),
            data.to_str().unwrap(),
        ];
        let output = process::run(&arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(expected), "{expected:?} is not in {error:?}");
        assert!(!error.contains("hunter2"), "{error}");
        assert!(!data.exists(), "nothing is touched");
    };
    check(&dir.path().join("none.json"), "none.json cannot be read: ");
    for (text, expected) in [
        ("", "is damaged at line 1, column 0: it ends too early"),
        (
            "[\n{\"username\" \"bob\"}]",
            "is damaged at line 2, column 13: it is not JSON",
        ),
        (
            "[\n\"hunter2\"]",
            "is damaged at line 2, column 9: it must be an array of objects",
        ),
        (r#"{"username": "bob"}"#, "it must be an array of objects"),
        (
            r#"[{"username": "bob", "password": 7}]"#,
            "it must be an array of objects",
        ),
        (
            r#"[{"username": "a", "password": "b"}] x"#,
            "it is not JSON",
        ),
        (
            r#"[{"username": "bob", "perms": ["all"]}]"#,
            "entry 1 (user \"bob\"): it has no password",
        ),
        (
            r#"[{"username": "*"}, {"password": "hunter2"}]"#,
            "entry 2 (user \"\"): a user needs a name",
        ),
        (
            r#"[{"username": "a:b", "password": "hunter2"}]"#,
            "a user needs a name, without a colon",
        ),
        (
            r#"[{"username": "a", "password": "$argon2id$v=19$hunter2"}]"#,
            "entry 1 (user \"a\"): the password looks like a hash and is none that can be used",
        ),
        (
            r#"[{"username": "a", "password": "$argon2i$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$x7cO0xR8XH0l3pZ9mMzq4Q"}]"#,
            "only argon2id is supported; make one with `wallaby hash-password`",
        ),
    ] {
        let path = dir.path().join("users.json");
        fs::write(&path, text).unwrap();
        check(&path, expected);
    }
    let many: Vec<Value> = (0..10_001).map(|n| user(&n.to_string(), &[])).collect();
    let path = dir.path().join("users.json");
    fs::write(&path, Value::from(many).to_string()).unwrap();
    check(&path, "has more than 10000 users");
    fs::write(&path, vec![b' '; (4 << 20) + 1]).unwrap();
    check(&path, "has more than 4 MiB");
}

#[test]
fn a_changed_file_counts_and_a_damaged_one_does_not() {
    let users = |bob: &[&str]| json!([watchable(), user("bob", bob)]).to_string();
    let file = UsersFile::new(&json!([
        watchable(),
        user("bob", &["query", "no-such-thing"])
    ]));
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &["-auth", file.text()]);
    let address = cluster.address(0).to_owned();
    let create = || {
        let header = as_user("bob");
        post(
            &address,
            "/db/execute",
            &[&header],
            r#"["CREATE TABLE t(v)"]"#,
        )
        .status
    };
    assert!(cluster.log_text(0).contains("unknown permission"));
    assert_eq!(create(), 401);
    file.replace(&users(&["execute"]));
    cluster.wait("bob to be allowed to write", |_| match create() {
        200 => Ok(()),
        status => Err(status.to_string()),
    });
    file.replace("[{");
    cluster.wait_log(0, "the users file was not read again; the old users stay");
    assert_eq!(create(), 200);
    file.replace(&users(&[]));
    cluster.wait("bob to lose his permission", |_| match create() {
        401 => Ok(()),
        status => Err(status.to_string()),
    });
    let log = cluster.log_text(0);
    assert_eq!(log.matches("was not read again").count(), 1, "{log}");
    cluster.assert_healthy_logs();
}

/// One request on a connection that stays open; the status.
fn ask_on(stream: &mut TcpStream, host: &str, header: &str) -> u16 {
    let request = format!("GET /db/query?q=SELECT+1 HTTP/1.1\r\nHost: {host}\r\n{header}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_user_who_is_removed_is_refused_on_a_connection_that_is_open() {
    let users = |users: &[&str]| {
        let users = users.iter().map(|name| user(name, &["query"]));
        let all: Vec<Value> = std::iter::once(watchable()).chain(users).collect();
        Value::from(all)
    };
    let file = UsersFile::new(&users(&["ann", "bob"]));
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &["-auth", file.text()]);
    let address = cluster.address(0).to_owned();
    let mut stream = connect(&address);
    let [ann, bob] = ["ann", "bob"].map(as_user);
    assert_eq!(ask_on(&mut stream, &address, &ann), 200);
    assert_eq!(ask_on(&mut stream, &address, &bob), 200);
    file.replace(&users(&["ann"]).to_string());
    cluster.wait("bob to be refused", |_| {
        match ask_on(&mut stream, &address, &bob) {
            401 => Ok(()),
            status => Err(status.to_string()),
        }
    });
    assert_eq!(ask_on(&mut stream, &address, &ann), 200);
    cluster.assert_healthy_logs();
}

#[test]
fn the_warning_at_start_says_what_is_true() {
    let open = UsersFile::new(&json!([{"username": "*", "perms": ["all"]}]));
    let closed = UsersFile::new(&json!([watchable(), user("bob", &["all"])]));
    for (file, expected) in [
        (&open, "HTTP is neither encrypted nor authenticated"),
        (
            &closed,
            "HTTP is not encrypted; passwords and data can be read",
        ),
    ] {
        let mut cluster = ProcessCluster::prepare(1, &Formation::Join, &["-auth", file.text()]);
        let address = cluster.address(0).to_owned();
        let arguments = cluster.arguments(0);
        let flag = arguments
            .iter()
            .position(|flag| flag == "-http-addr")
            .unwrap();
        arguments[flag + 1] = address.replace("127.0.0.1", "0.0.0.0");
        arguments.splice(0..0, ["-http-adv-addr".to_owned(), address]);
        cluster.start_all(&Formation::Join);
        let log = cluster.log_text(0);
        let warnings: Vec<_> = log
            .lines()
            .filter(|line| line.contains(" HTTP is "))
            .collect();
        assert_eq!(warnings.len(), 1, "{log}");
        assert!(warnings[0].contains(expected), "{}", warnings[0]);
    }
}
