//! Writes the text of `/licenses` anew, or with `--check` says whether it is out of date.

use std::process::ExitCode;
use std::{env, fs};

use tools::licences;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => write(),
        ["--check"] => check(),
        _ => {
            eprintln!("licences: only --check is understood");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("licences: {why}");
            ExitCode::FAILURE
        }
    }
}

fn write() -> Result<(), String> {
    let file = licences::file();
    fs::write(&file, licences::text()?).map_err(|error| format!("{}: {error}", file.display()))
}

fn check() -> Result<(), String> {
    let file = licences::file();
    let found = fs::read_to_string(&file);
    let found = found.map_err(|error| format!("{}: {error}", file.display()))?;
    if found == licences::text()? {
        return Ok(());
    }
    let how = "run `cargo run -p tools --bin licences`";
    Err(format!("{} is out of date; {how}", file.display()))
}
