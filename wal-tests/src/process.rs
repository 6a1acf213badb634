//! One `wallaby` process: where its binary is, how it is started, and the signals it gets.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use check::programs;
pub use rustix::process::Signal;

/// A node's process and its log.
pub struct Process {
    child: Child,
}

/// Where and with what a process runs.
#[derive(Clone, Debug, Default)]
pub struct Setting {
    /// A directory whose `cwd`, `home` and `tmp` become its working directory, `HOME` and `TMPDIR`.
    pub surroundings: Option<PathBuf>,
    /// Variables.
    pub environment: Vec<(String, String)>,
    /// The network namespace, as `ip netns` knows it.
    pub namespace: Option<String>,
}

impl Process {
    /// Starts a node with these arguments, its stderr appended to `log_file`. It dies with the
    /// thread that starts it, so it must be started by the test's own thread.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn start(binary: &Path, arguments: &[String], log_file: &Path) -> Self {
        Self::start_in(binary, arguments, log_file, &Setting::default())
    }

    /// As [`Self::start`], somewhere else.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn start_in(
        binary: &Path,
        arguments: &[String],
        log_file: &Path,
        setting: &Setting,
    ) -> Self {
        let log = OpenOptions::new().create(true).append(true).open(log_file);
        let log = log.unwrap_or_else(|error| panic!("{}: {error}", log_file.display()));
        let mut command = match &setting.namespace {
            None => Command::new(binary),
            Some(name) => {
                // It becomes the node itself: the same process, the same parent.
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{name}")).arg(binary);
                command
            }
        };
        if let Some(dir) = &setting.surroundings {
            command
                .current_dir(dir.join("cwd"))
                .env("HOME", dir.join("home"))
                .env("TMPDIR", dir.join("tmp"))
                .env_remove("SQLITE_TMPDIR");
        }
        let child = command
            .envs(setting.environment.iter().cloned())
            .arg("serve")
            .args(["-die-with-parent", &std::process::id().to_string()])
            .args(arguments)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("starting {}: {error}", binary.display()));
        Self { child }
    }

    /// Sends a signal.
    ///
    /// # Panics
    ///
    /// When the process is gone already.
    pub fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("a child not yet waited for exists");
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// When it has not ended after `patience`.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the process has not ended after {patience:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already: nothing to do, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `wallaby` with these arguments to its end.
///
/// # Panics
///
/// When it cannot be started.
#[must_use]
pub fn run(arguments: &[&str]) -> Output {
    let output = Command::new(binary())
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    output.expect("the binary was just built")
}

/// The `wallaby` binary of the same build as the test. `cargo test -p wal-tests` does not build it,
/// so it is built here, once, when it is missing or when `WAL_BINARY` does not name another one.
///
/// # Panics
///
/// When it cannot be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(binary) = std::env::var_os("WAL_BINARY") {
            return binary.into();
        }
        let running = std::env::current_exe().expect("what runs has a file");
        // target/PROFILE/deps/test-HASH, or target/PROFILE/tool
        let dir = running.parent().expect("files are in directories");
        let profile = if dir.ends_with("deps") {
            dir.parent()
                .expect("tests are built in target/PROFILE/deps")
        } else {
            dir
        };
        let release = profile.file_name().is_some_and(|name| name == "release");
        // Of all that is built by default, because a package by itself is built with fewer features
        // of what they share, and all of that would be compiled once more.
        let mut build = programs::cargo(&["build", "--quiet", "--bin", "wallaby"]);
        build.args(release.then_some("--release"));
        // Asked even if the file is there: it may be older than the sources.
        let status = build.status().expect("cargo can be run");
        assert!(status.success(), "cargo build failed");
        profile.join("wallaby")
    })
}
