//! Logs on stderr, one line per event, and what happens when a thread panics.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// Starts logging at `level`, for the Raft library at `raft`, or as the variable `RUST_LOG` says.
/// To be called once.
pub(crate) fn start(level: LevelFilter, raft: LevelFilter) {
    // The libraries report every lost packet at `info`, and every heartbeat, vote and append that a
    // peer does not answer at `warn`: ten lines a second while a node is down. The node itself says
    // once that a peer is silent, and who leads.
    let default = format!("{level},openraft={raft},quinn=warn,quinn_proto=warn,rustls=warn");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::force_capture();
        tracing::error!(%panic, %backtrace, "a thread panicked; the process ends");
        // A node with one dead thread would be half alive: followers keep it as leader while no
        // group is ever released. Ended as a whole, it is replaced within an election.
        std::process::abort();
    }));
}
