//! `wal-inspect`: shows what is in SQLite's WAL, in a database, and in everything that a node keeps.
//!
//! It opens files to read and takes no lock, so it can be used on a node that runs; what it shows
//! then may be from different moments, and it says so. Of damaged files it decodes what can be
//! decoded and says where it stopped and why. The formats are described, and decoded, where they are
//! in the library; what is new here is the inside of database pages ([`crate::pages`]).
//!
//! | Exit code | Meaning |
//! |---|---|
//! | 0 | nothing to worry about, no difference |
//! | 1 | damage, or a difference, was found and shown |
//! | 2 | wrong usage, or what was asked for cannot be read or reached |

mod arguments;
mod database;
mod diff;
mod directory;
mod entries;
mod extract;
mod history;
mod image;
mod kind;
mod log;
mod output;
mod page;
mod small;
mod source;
mod summary;
mod verify;
mod wal_file;
mod wal_index;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

use arguments::{Colour, Command, Line};
use clap::Parser as _;
use kind::Subject;
use output::{Form, Printer};
use source::Failure;
use wallaby::wal::PageNumber;

use crate::pages::Pages as _;

/// Why nothing more is shown.
enum Stopped {
    Failure(Failure),
    Output(io::Error),
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

type Shown<T> = Result<T, Stopped>;

/// Runs the tool with these arguments, of which the first is its own name. `is_terminal` is whether
/// `out` is one. Returns the exit code.
pub fn run<A: Into<OsString> + Clone>(
    arguments: impl IntoIterator<Item = A>,
    out: &mut dyn Write,
    errors: &mut dyn Write,
    is_terminal: bool,
) -> u8 {
    let line = match Line::try_parse_from(arguments) {
        Ok(line) => line,
        Err(error) => {
            let is_asked_for = !error.use_stderr();
            // Whoever does not listen does not miss it.
            if is_asked_for {
                drop(write!(out, "{error}"));
            } else {
                drop(write!(errors, "{error}"));
            }
            return if is_asked_for { FINE } else { UNUSABLE };
        }
    };
    let colour = match line.color {
        Colour::Always => true,
        Colour::Auto => is_terminal && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty()),
        Colour::Never => false,
    };
    let form = if line.json {
        Form::Json
    } else {
        Form::Text { colour }
    };
    let mut printer = Printer::new(out, form);
    let shown = command(&mut printer, &line.command);
    let code = if printer.found() { FOUND } else { FINE };
    match shown.and_then(|()| printer.finish()) {
        Ok(()) => code,
        // Whoever stops reading has seen enough.
        Err(Stopped::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => code,
        Err(stopped) => {
            let text = match stopped {
                Stopped::Failure(failure) => failure.to_string(),
                Stopped::Output(error) => error.to_string(),
            };
            drop(printer.finish());
            drop(writeln!(errors, "wal-inspect: {text}"));
            UNUSABLE
        }
    }
}

fn command(printer: &mut Printer<'_>, command: &Command) -> Shown<()> {
    match command {
        Command::Summary { paths, kind } => {
            for path in paths {
                summary::show(printer, &Subject::open(path, *kind)?)?;
            }
            Ok(())
        }
        Command::List { path, kind } => list(printer, &Subject::open(path, *kind)?),
        Command::Show {
            path,
            kind,
            entry,
            frame,
            offset,
            page,
        } => {
            let page = page.map(number).transpose()?;
            let subject = Subject::open(path, *kind)?;
            show(printer, &subject, (*entry, *frame, *offset, page))
        }
        Command::Diff {
            left,
            right,
            from,
            to,
            brief,
        } => difference(printer, left, right.as_deref(), (*from, *to), *brief),
        Command::Verify { paths, kind } => {
            for path in paths {
                verify_one(printer, &Subject::open(path, *kind)?)?;
            }
            if !printer.found() {
                printer.note("no damage found")?;
            }
            Ok(())
        }
        Command::Extract {
            path,
            index: Some(index),
            frame: None,
            output,
        } => extract::extract(printer, path, *index, output),
        Command::Extract {
            path,
            index: None,
            frame: Some(frame),
            output,
        } => extract::extract_frame(printer, path, *frame, output),
        Command::Extract { .. } => {
            let text = "either --index and a data directory, or --frame and a database";
            Err(Failure::new(text).into())
        }
    }
}

fn difference(
    printer: &mut Printer<'_>,
    left: &Path,
    right: Option<&Path>,
    interval: (Option<u64>, Option<u64>),
    brief: bool,
) -> Shown<()> {
    match (right, interval) {
        (Some(right), (None, None)) => {
            let subjects = [Subject::open(left, None)?, Subject::open(right, None)?];
            compare(printer, subjects, brief)
        }
        (None, (Some(from), Some(to))) => match Subject::open(left, None)? {
            Subject::Directory(directory) => {
                summary::liveness(printer, &directory)?;
                diff::indexes(printer, &directory, from, to, brief)
            }
            _ => Err(Failure::new("--from and --to are for a data directory").into()),
        },
        _ => {
            let text = "either two paths, or one data directory with --from and --to";
            Err(Failure::new(text).into())
        }
    }
}

fn number(page: u32) -> Result<PageNumber, Failure> {
    PageNumber::new(page).ok_or_else(|| Failure::new("pages are counted from 1"))
}

fn list(printer: &mut Printer<'_>, subject: &Subject) -> Shown<()> {
    match subject {
        Subject::Database(image) => database::list(printer, image),
        Subject::Directory(directory) => {
            summary::liveness(printer, directory)?;
            match &directory.log {
                Some(log) => entries::list(printer, log),
                None => printer.note("there is no log"),
            }
        }
        Subject::Log(log) => entries::list(printer, log),
        Subject::Segment(segment, whose) => entries::segment_list(printer, segment, *whose),
        Subject::Small(kind, path, bytes) => small::show(printer, *kind, path, bytes, true),
        Subject::Wal(wal) => wal.list(printer),
        Subject::WalIndex(index) => index.list(printer),
    }
}

type Item = (Option<u64>, Option<u32>, Option<u64>, Option<PageNumber>);

fn show(printer: &mut Printer<'_>, subject: &Subject, item: Item) -> Shown<()> {
    match (subject, item) {
        (Subject::Directory(directory), (Some(entry), None, None, page)) => {
            summary::liveness(printer, directory)?;
            match &directory.log {
                Some(log) => entries::show(printer, (log, Some(directory)), entry, page),
                None => Err(Failure::new("there is no log").into()),
            }
        }
        (Subject::Log(log), (Some(entry), None, None, page)) => {
            entries::show(printer, (log, None), entry, page)
        }
        (Subject::Directory(directory), (None, None, None, Some(page))) => {
            summary::liveness(printer, directory)?;
            database::show(printer, &directory.image()?, page)
        }
        (Subject::Database(image), (None, None, None, Some(page))) => {
            database::show(printer, image, page)
        }
        (Subject::Wal(wal), (None, Some(frame), None, None)) => wal.show(printer, frame),
        (Subject::Segment(segment, whose), (None, None, Some(offset), None)) => {
            entries::show_record(printer, segment, *whose, offset)
        }
        (Subject::Small(kind, path, bytes), (None, None, None, None)) => {
            small::show(printer, *kind, path, bytes, true)
        }
        _ => Err(Failure::new(
            "say what to show: --entry of a data directory or log (and --page of it), --page of a \
             data directory or database, --frame of a WAL, --offset of a segment",
        )
        .into()),
    }
}

fn compare(printer: &mut Printer<'_>, subjects: [Subject; 2], brief: bool) -> Shown<()> {
    match subjects {
        [Subject::Database(left), Subject::Database(right)] => {
            diff::databases(printer, [&left, &right], brief)
        }
        [Subject::Directory(left), Subject::Directory(right)] => {
            summary::liveness(printer, &left)?;
            summary::liveness(printer, &right)?;
            diff::directories(printer, [&left, &right], brief)
        }
        [left, right] => {
            if std::mem::discriminant(&left) != std::mem::discriminant(&right) {
                return Err(Failure::new("the two are of different kinds").into());
            }
            let mut rows = |subject| {
                printer.keep();
                let listed = list(printer, subject);
                let rows = printer.kept();
                listed.map(|()| rows)
            };
            let rows = [rows(&left)?, rows(&right)?];
            diff::rows(printer, rows)
        }
    }
}

fn verify_one(printer: &mut Printer<'_>, subject: &Subject) -> Shown<()> {
    match subject {
        Subject::Database(image) => {
            if let Err(error) = &image.header
                && image.page_count().0 > 0
            {
                printer.damage(error)?;
            }
            let path = image.path();
            summary::in_use(printer, image)?;
            verify::database(printer, || image::Image::open(path, None, None))
        }
        Subject::Directory(directory) => {
            summary::liveness(printer, directory)?;
            verify::directory(printer, directory)
        }
        Subject::Log(log) => verify::log(printer, log),
        Subject::Segment(segment, whose) => entries::segment_summary(printer, segment, *whose),
        Subject::Small(kind, path, bytes) => small::show(printer, *kind, path, bytes, false),
        Subject::Wal(wal) => verify::wal(printer, wal),
        Subject::WalIndex(index) => index.verify(printer, None),
    }
}

const FINE: u8 = 0;
const FOUND: u8 = 1;
const UNUSABLE: u8 = 2;
