//! The command line of `wallaby`: `serve`, `demo`, `hash-password`, `keygen` and `version`.
//!
//! Exit codes: 0 done, 1 failed while running, 2 the command line makes no sense (nothing was
//! touched).

mod arguments;
mod config;
mod demo;
mod discovery_flags;
mod extensions;
mod flags;
mod hash_password;
mod http_config;
mod http_flags;
mod join;
mod keygen;
mod logging;
mod member_flags;
mod node_flags;
mod pace;
mod rqlited;
mod serve;
mod version;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use config::ServeConfig;
use flags::{Command, CommandLine};

/// Reads the arguments (the program's name first) and does what they say.
pub(crate) fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter();
    let program = arguments.next().unwrap_or_else(|| "wallaby".into());
    let normalised = match arguments::normalise(arguments.collect(), &CommandLine::command()) {
        Ok(normalised) => normalised,
        Err(error) => return misused(&error),
    };
    let line = match CommandLine::try_parse_from(std::iter::once(program).chain(normalised)) {
        Ok(line) => line,
        Err(error) => error.exit(),
    };
    match line.command {
        Command::Demo(flags) => demo::run(&flags),
        Command::HashPassword => finished(hash_password::run()),
        Command::Keygen { file } => finished(keygen::run(&file)),
        Command::Serve(flags) if flags.version => finished(version::run()),
        Command::Serve(flags) => match ServeConfig::from_flags(*flags) {
            Ok(config) => finished(serve::run(config)),
            Err(error) => misused(&error),
        },
        Command::Version => finished(version::run()),
    }
}

/// The end of a command that was understood.
fn finished<E: std::fmt::Display>(result: Result<(), E>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    // Nobody is left to be told if stderr is gone; the exit code still says it.
    let _ = writeln!(std::io::stderr(), "wallaby: {error}");
    ExitCode::FAILURE
}

/// The end of a command that makes no sense.
fn misused(error: &dyn std::error::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "wallaby: {error}\nSee `wallaby -help`.");
    ExitCode::from(2)
}
