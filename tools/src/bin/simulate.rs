//! Runs whole clusters on simulated time, network and disks, one for each seed:
//! `cargo run --release -p tools --bin simulate -- --seeds 1..1000`. What else it takes is said in
//! `wal_tests::simulation::command`.

wal_tests::take_over!();

fn main() -> std::process::ExitCode {
    wal_tests::simulation::command::main(std::env::args().skip(1))
}
