//! What is there, in short.

use super::Shown;
use super::directory::Directory;
use super::image::Image;
use super::kind::Subject;
use super::output::{Printer, Row};
use super::source::Source;
use super::wal_file::WalFile;
use super::wal_index::WalIndex;
use super::{database, entries, small};

pub(super) fn show(printer: &mut Printer<'_>, subject: &Subject) -> Shown<()> {
    match subject {
        Subject::Database(image) => {
            in_use(printer, image)?;
            database::summary(printer, image)
        }
        Subject::Directory(directory) => self::directory(printer, directory),
        Subject::Log(log) => entries::summary(printer, log),
        Subject::Segment(segment, whose) => entries::segment_summary(printer, segment, *whose),
        Subject::Small(kind, path, bytes) => small::show(printer, *kind, path, bytes, false),
        Subject::Wal(wal) => wal.summary(printer),
        Subject::WalIndex(index) => index.summary(printer),
    }
}

/// The same for a database that SQLite has open somewhere.
pub(super) fn in_use(printer: &mut Printer<'_>, image: &Image) -> Shown<()> {
    match image.holder() {
        None => Ok(()),
        Some(process) => printer.note(format!(
            "{} is in use by process {process}: nothing is locked here, and the WAL and the database \
             file may be from different moments",
            image.path().display()
        )),
    }
}

/// Says so if what is shown may be from different moments.
pub(super) fn liveness(printer: &mut Printer<'_>, directory: &Directory) -> Shown<()> {
    match &directory.holder {
        None => Ok(()),
        Some(process) => printer.note(format!(
            "{} is in use by process {process}: nothing is locked here, and files were read one \
             after the other, so that the WAL, the WAL-index and the end of the log may be ahead of \
             the rest, or half written",
            directory.path.display()
        )),
    }
}

fn directory(printer: &mut Printer<'_>, directory: &Directory) -> Shown<()> {
    liveness(printer, directory)?;
    match &directory.identity {
        None => printer.note("there is no identity file")?,
        Some(Ok(identity)) => printer.facts(&small::identity_row(identity))?,
        Some(Err(error)) => printer.damage(error)?,
    }
    match &directory.record {
        None => printer.note("there is no checkpoint record")?,
        Some(Ok(record)) => small::record_facts(printer, record)?,
        Some(Err(error)) => printer.damage(error)?,
    }
    match directory.hashes() {
        None => {}
        Some(Ok(hashes)) => small::hashes_facts(printer, &hashes, false)?,
        Some(Err(error)) => printer.damage(error)?,
    }
    if let Some(Err(error)) = &directory.installing {
        printer.damage(error)?;
    }
    if let Some(installing) = directory.installing() {
        printer.facts(
            &Row::new("installing")
                .with("applied", installing.manifest.applied.to_string())
                .with("pages_received", installing.pages.contents().count())
                .with("database_pages", installing.manifest.page_count.0),
        )?;
    }
    if directory.incoming().exists() {
        small::spool(printer, &directory.incoming(), false)?;
    }
    if let Some(log) = &directory.log {
        entries::summary(printer, log)?;
    }
    if directory.main().exists() {
        database::summary(printer, &directory.image()?)?;
    }
    if directory.is_closed() && directory.wal().exists() {
        printer.note("the node was stopped in order: the next start does not need the WAL")?;
    }
    if let Some(source) = Source::find(&directory.wal())? {
        WalFile::open(source)?.summary(printer)?;
    }
    if let Some(source) = Source::find(&directory.wal_index())? {
        WalIndex::open(source)?.summary(printer)?;
    }
    Ok(())
}
