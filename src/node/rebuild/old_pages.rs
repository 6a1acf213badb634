//! The pages of the database that was set aside, for the transfer that brings the new one.
//!
//! They go into the spool as if a transfer had been cut off after it had brought them. Nothing
//! about them is trusted: the spool knows each page by the hash of what it holds, the sender skips
//! those that hash to what it has itself, and before anything counts all are read again and must
//! add up to the hash of the sender's database. A page that is damaged, older, or of a history
//! that the others do not share is fetched like one that is missing. So a mixture that a crash
//! left, and a database that has diverged, are as good as any other. The WAL is left alone: what
//! only it has is what was changed last, which is little.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::super::error::Error;
use super::super::scratch::check_room;
use super::super::spool::Incoming;
use crate::wal::{PageNumber, PageSize};

/// Makes the spool from this database file. It only saves sending: whatever keeps it from being
/// made is no reason not to go on. Blocks.
pub(super) fn keep(dir: &Path, database: &Path) {
    match copy(dir, database) {
        Ok(Some(kept)) => {
            let pages = kept.len();
            tracing::info!(
                pages,
                "pages of the old database that need not be sent if right"
            );
        }
        Ok(None) => tracing::info!("there is no old database whose pages could be used"),
        Err(error) => tracing::warn!(error, "the pages of the old database cannot be used"),
    }
}

/// `None` if the file cannot be told for a database.
fn copy(dir: &Path, database: &Path) -> Result<Option<Incoming>, String> {
    let failed = |error: io::Error| format!("reading {}: {error}", database.display());
    let told = |error: Error| error.to_string();
    let file = match File::open(database) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let bytes = file.metadata().map_err(failed)?.len();
    let Some(page_size) = page_size(&file) else {
        return Ok(None);
    };
    check_room(dir, bytes)?;
    let mut spool = Incoming::create(dir, page_size).map_err(told)?;
    let mut image = vec![0; page_size.len()];
    let count = bytes / u64::from(page_size.bytes());
    for page in (1..=count).map_while(|page| PageNumber::new(u32::try_from(page).ok()?)) {
        // What cannot be read is not there.
        let is_read = file
            .read_exact_at(&mut image, page.offset(page_size))
            .is_ok();
        if is_read && page != page_size.lock_byte_page() {
            spool.put(page, &image).map_err(told)?;
        }
    }
    Ok(Some(spool))
}

/// The page size in the header of a SQLite file; `None` if there is none.
fn page_size(file: &File) -> Option<PageSize> {
    let mut header = [0; 18];
    file.read_exact_at(&mut header, 0).ok()?;
    let [magic @ .., s0, s1] = header;
    let bytes = match u16::from_be_bytes([s0, s1]) {
        1 => 65536,
        bytes => u32::from(bytes),
    };
    PageSize::new(bytes).filter(|_| magic == *b"SQLite format 3\0")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::wal::PageHash;

    #[test]
    fn the_whole_pages_of_a_database_file_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("old");
        assert!(copy(dir.path(), &database).unwrap().is_none());
        let mut bytes: Vec<u8> = (1..=3).flat_map(|byte| vec![byte; 4096]).collect();
        bytes[..16].copy_from_slice(b"SQLite format 3\0");
        bytes[16..18].copy_from_slice(&4096_u16.to_be_bytes());
        // The last one is cut off.
        fs::write(&database, &bytes[..bytes.len() - 1]).unwrap();
        drop(copy(dir.path(), &database).unwrap().unwrap());
        let kept = Incoming::resume(dir.path()).unwrap().unwrap();
        assert_eq!((kept.len(), kept.last()), (2, 2));
        let second = PageNumber::new(2).unwrap();
        let hash = PageHash::of(second, &[2; 4096]);
        assert_eq!(kept.hash(second), Some(hash));
        for (offset, byte) in [(0, b'T'), (16, 3)] {
            let mut foreign = bytes.clone();
            foreign[offset] = byte;
            fs::write(&database, &foreign).unwrap();
            assert!(copy(dir.path(), &database).unwrap().is_none());
        }
    }
}
