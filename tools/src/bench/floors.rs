//! What the machine itself can do, measured in the same run: nothing that syncs each transaction can
//! be faster than the disk, and nothing that speaks HTTP faster than an echo.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rusqlite::Connection;

/// The figures.
#[derive(Clone, Copy, Debug)]
pub struct Floors {
    /// Median and 99th percentile of writing 4 KiB and `fdatasync`, in microseconds.
    pub sync_us: (u64, u64),
    /// Transactions of one row per second in plain SQLite with a WAL and `synchronous=FULL`.
    pub sqlite_full: f64,
    /// The same with `synchronous=OFF`.
    pub sqlite_off: f64,
}

/// Measures in this directory, each for so long.
///
/// # Errors
///
/// What the file system or SQLite said.
pub fn measure(dir: &Path, time: Duration) -> Result<Floors, String> {
    Ok(Floors {
        sync_us: sync(dir, time).map_err(|error| format!("{}: {error}", dir.display()))?,
        sqlite_full: sqlite(dir, "FULL", time).map_err(|error| error.to_string())?,
        sqlite_off: sqlite(dir, "OFF", time).map_err(|error| error.to_string())?,
    })
}

/// Into space that is there already, as a log that is laid out ahead does.
fn sync(dir: &Path, time: Duration) -> std::io::Result<(u64, u64)> {
    let path = dir.join("bench-sync");
    let mut options = OpenOptions::new();
    let mut file = options
        .create(true)
        .truncate(true)
        .write(true)
        .open(&path)?;
    file.write_all(&vec![1; SYNC_FILE_BYTES])?;
    file.sync_all()?;
    let mut latencies = Histogram::<u64>::new(3).expect("good bounds");
    let page = [2_u8; PAGE_BYTES];
    let begun = Instant::now();
    'whole: while begun.elapsed() < time {
        file.seek(SeekFrom::Start(0))?;
        for _ in 0..SYNC_FILE_BYTES / PAGE_BYTES {
            let start = Instant::now();
            file.write_all(&page)?;
            file.sync_data()?;
            let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
            latencies.saturating_record(micros.max(1));
            if begun.elapsed() >= time {
                break 'whole;
            }
        }
    }
    std::fs::remove_file(&path)?;
    Ok((
        latencies.value_at_quantile(0.5),
        latencies.value_at_quantile(0.99),
    ))
}

fn sqlite(dir: &Path, synchronous: &str, time: Duration) -> rusqlite::Result<f64> {
    let path = dir.join(format!("bench-{synchronous}.sqlite"));
    let connection = Connection::open(&path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection
        .execute_batch("CREATE TABLE bench_log(id INTEGER PRIMARY KEY, name TEXT, n INTEGER)")?;
    let mut insert = connection.prepare("INSERT INTO bench_log(name, n) VALUES(?, ?)")?;
    let begun = Instant::now();
    let mut rows = 0_u32;
    while begun.elapsed() < time {
        for _ in 0..16 {
            insert.execute((format!("customer number {rows}"), rows))?;
            rows += 1;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    drop(insert);
    drop(connection);
    for suffix in ["", "-wal", "-shm"] {
        let file = dir.join(format!("bench-{synchronous}.sqlite{suffix}"));
        // Whatever is there no more need not be removed.
        drop(std::fs::remove_file(file));
    }
    Ok(f64::from(rows) / seconds)
}

const PAGE_BYTES: usize = 4096;
const SYNC_FILE_BYTES: usize = 16 << 20;
