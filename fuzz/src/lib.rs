//! Fuzz targets: what nodes read from peers, clients and disks, given any bytes.
//!
//! Each target is a plain function of the input. It must neither panic nor take more memory than
//! its bound allows, and it compares what it finds with somebody who knows: SQLite, a model, or the
//! encoder. The inputs in `corpus/` are replayed by `cargo test`, which also changes them at random
//! for some seconds: `FUZZ_SECONDS` per target, `WAL_SEED` to do it again.
//!
//! | Command | What it does |
//! |---|---|
//! | `cargo test -p fuzz` | the corpus and a second of random changes for each target |
//! | `cargo run --release -p fuzz --bin campaign -- all --seconds 10` | the same, counted |
//! | `cargo run -p tools --bin fuzz -- walker --seconds 60` | libFuzzer, led by coverage |
//! | `cargo run -p tools --bin fuzz -- all --seconds 60` | each target in turn, with a table |
//! | `cargo run -p fuzz --bin samples` | writes the samples into the corpus again |
//!
//! Only `tools --bin fuzz` needs a C++ compiler: libFuzzer is built by `libfuzzer-sys`, behind the
//! feature `libfuzzer`.

pub mod campaign;
pub mod corpus;
pub mod memory;
pub mod mutation;
pub mod place;
pub mod script;
mod targets;

pub use targets::answers::answers;
pub use targets::bodies::bodies;
pub use targets::delta::delta;
pub use targets::frames::frames;
pub use targets::inject::inject;
pub use targets::load::load;
pub use targets::log::log;
pub use targets::messages::messages;
pub use targets::patch::patch;
pub use targets::snapshot::snapshot;
pub use targets::sql::sql;
pub use targets::stored::stored;
pub use targets::urls::urls;
pub use targets::users::users;
pub use targets::wal_index::wal_index;
pub use targets::walker::walker;

/// How far an input came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reached {
    /// It meant something, and what it means was checked.
    Accepted,
    /// It was refused in an orderly way.
    Refused,
}

impl Reached {
    const fn accepted(is_accepted: bool) -> Self {
        if is_accepted {
            Self::Accepted
        } else {
            Self::Refused
        }
    }
}

/// An input that the corpus begins with.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What it is, as the name of a file.
    pub name: String,
    /// The input.
    pub bytes: Vec<u8>,
}

impl Sample {
    fn new(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            bytes,
        }
    }
}

/// A target and what is known about it.
pub struct Target {
    /// Its name: of the function, of the libFuzzer program and of the folder of its corpus.
    pub name: &'static str,
    /// Panics if something is wrong.
    pub body: fn(&[u8]) -> Reached,
    /// The longest input that is tried.
    pub bytes_max: usize,
    /// Pieces that the format knows.
    pub words: &'static [&'static str],
    /// What the corpus begins with.
    pub samples: fn() -> Vec<Sample>,
}

const fn target(
    name: &'static str,
    body: fn(&[u8]) -> Reached,
    samples: fn() -> Vec<Sample>,
) -> Target {
    Target {
        name,
        body,
        bytes_max: 4096,
        words: &[],
        samples,
    }
}

/// All of them.
pub const TARGETS: [Target; 16] = [
    target("answers", answers, targets::answers::samples),
    Target {
        words: &targets::bodies::WORDS,
        ..target("bodies", bodies, targets::bodies::samples)
    },
    target("delta", delta, targets::delta::samples),
    target("frames", frames, targets::frames::samples),
    target("inject", inject, targets::inject::samples),
    Target {
        bytes_max: 16 << 10,
        words: &targets::load::WORDS,
        ..target("load", load, targets::load::samples)
    },
    target("log", log, targets::log::samples),
    target("messages", messages, targets::messages::samples),
    target("patch", patch, targets::patch::samples),
    target("snapshot", snapshot, targets::snapshot::samples),
    Target {
        bytes_max: 200,
        ..target("sql", sql, targets::sql::samples)
    },
    target("stored", stored, targets::stored::samples),
    Target {
        words: &targets::urls::WORDS,
        ..target("urls", urls, targets::urls::samples)
    },
    Target {
        words: &targets::users::WORDS,
        ..target("users", users, targets::users::samples)
    },
    target("wal_index", wal_index, targets::wal_index::samples),
    Target {
        bytes_max: 8 << 10,
        ..target("walker", walker, targets::walker::samples)
    },
];
