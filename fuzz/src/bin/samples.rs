//! Writes the samples of all targets into the corpus.

use std::process::ExitCode;

fn main() -> ExitCode {
    for target in &fuzz::TARGETS {
        match fuzz::corpus::write_samples(target) {
            Ok(samples) => println!("{}: {samples} samples", target.name),
            Err(error) => {
                eprintln!("samples: {}: {error}", target.name);
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
