//! `simulate` for the tests: see `wal_tests::simulation::command`.

wal_tests::take_over!();

fn main() -> std::process::ExitCode {
    wal_tests::simulation::command::main(std::env::args().skip(1))
}
