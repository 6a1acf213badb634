//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use super::kind::Kind;

/// Shows what is in SQLite's WAL files and databases, and in everything that a Wallaby node keeps.
///
/// It opens files only to read them and takes no lock: it can look at a node that runs. A path is a
/// data directory, a log directory, or a file of any kind; what it is, its first bytes say.
///
/// Exit codes: 0 nothing to worry about; 1 damage or a difference was found; 2 wrong usage, or what
/// was asked for cannot be read or reached.
#[derive(Debug, Parser)]
#[command(name = "wal-inspect", version)]
pub(super) struct Line {
    /// One JSON object a line, instead of text for people
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Colours; `auto` = on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, default_value = "auto", value_name = "WHEN")]
    pub(super) color: Colour,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Colour {
    Always,
    Auto,
    Never,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// What is there, in short
    Summary {
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// Read the files as this, whatever they begin with
        #[arg(long = "as", value_name = "KIND")]
        kind: Option<Kind>,
    },
    /// Everything in it, a line each: frames, pages, records; of a data directory the entries
    List {
        path: PathBuf,
        /// Read the file as this, whatever it begins with
        #[arg(long = "as", value_name = "KIND")]
        kind: Option<Kind>,
    },
    /// One thing in detail
    Show {
        path: PathBuf,
        /// Read the file as this, whatever it begins with
        #[arg(long = "as", value_name = "KIND")]
        kind: Option<Kind>,
        /// An entry of the log, by its index
        #[arg(long, value_name = "INDEX")]
        entry: Option<u64>,
        /// A frame of a WAL, counted from 1
        #[arg(long)]
        frame: Option<u32>,
        /// What begins at this offset of a segment
        #[arg(long)]
        offset: Option<u64>,
        /// A page with its cells: of the database, or of the entry
        #[arg(long)]
        page: Option<u32>,
    },
    /// How two databases, data directories or files differ; or what entries of a log changed
    ///
    /// Of two data directories it says which entry wrote each page that differs, and on which side
    /// the page is not as it was written.
    Diff {
        left: PathBuf,
        right: Option<PathBuf>,
        /// Of a data directory: the state after this entry ...
        #[arg(long, value_name = "INDEX")]
        from: Option<u64>,
        /// ... and the state after this one
        #[arg(long, value_name = "INDEX")]
        to: Option<u64>,
        /// Only which pages, not what is in them
        #[arg(long)]
        brief: bool,
    },
    /// Checks everything that can be checked
    Verify {
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// Read the files as this, whatever they begin with
        #[arg(long = "as", value_name = "KIND")]
        kind: Option<Kind>,
    },
    /// Writes the database as it was to a new file
    ///
    /// Of a data directory: after an entry of the log, proved by the hash that the log names for that
    /// state. Of a database with a WAL: up to the last transaction that ends at or before a frame.
    Extract {
        path: PathBuf,
        /// The entry, by its index
        #[arg(long)]
        index: Option<u64>,
        /// The frame, counted from 1; 0 = without the WAL
        #[arg(long)]
        frame: Option<u32>,
        /// The file to write, which must not exist
        #[arg(long, short)]
        output: PathBuf,
    },
}
