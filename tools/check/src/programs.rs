//! The test programs of the workspace, as cargo builds them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// A test program that cargo has built.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name; a name occurs more than once, for the unit tests of a library and its binary.
    pub name: String,
    /// The executable.
    pub path: PathBuf,
    /// Where its package is: the directory in which cargo would start it.
    pub package: PathBuf,
}

impl Program {
    /// Runs it as cargo would.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command
            .current_dir(&self.package)
            .env("CARGO_MANIFEST_DIR", &self.package);
        command
    }
}

/// A command that runs when nothing else wants the processor.
#[must_use]
pub fn behind(command: &Command) -> Command {
    let mut nice = Command::new("nice");
    nice.args(["-n", "19"]).arg(command.get_program());
    nice.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => nice.env(name, value),
            None => nice.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        nice.current_dir(directory);
    }
    nice
}

/// Builds what these arguments name, and returns the test programs among it.
///
/// # Errors
///
/// What cargo said is on stderr.
pub fn build(arguments: &[&str]) -> Result<Vec<Program>, String> {
    let output = cargo(&["build", "--locked"])
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo does not start: {error}"))?;
    if !output.status.success() {
        return Err("the tests do not build".to_owned());
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter_map(|message: Value| program(&message).transpose())
        .collect()
}

/// The test program that a message of cargo tells of, if it tells of one.
fn program(message: &Value) -> Result<Option<Program>, String> {
    let is_test = message["profile"]["test"].as_bool() == Some(true);
    let (true, Some(path)) = (is_test, message["executable"].as_str()) else {
        return Ok(None);
    };
    let text = |value: &Value| {
        let text = value.as_str().map(str::to_owned);
        text.ok_or_else(|| format!("cargo says something else now: {message}"))
    };
    let manifest = PathBuf::from(text(&message["manifest_path"])?);
    Ok(Some(Program {
        name: text(&message["target"]["name"])?,
        path: path.into(),
        package: manifest.parent().map(Path::to_owned).unwrap_or_default(),
    }))
}

/// A command of the cargo that this one was started by, in the root of the workspace.
///
/// What cargo tells a program about its package would be taken for news by build scripts (ring's
/// watches these variables), and half of the dependencies would be compiled again each time.
#[must_use]
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    for (name, _) in env::vars_os() {
        let told = name.to_string_lossy();
        if told.starts_with("CARGO_MANIFEST_") || told.starts_with("CARGO_PKG_") {
            command.env_remove(&name);
        }
    }
    command
}
