//! `wallaby demo`: three nodes as processes of their own, a real database, the death of the leader,
//! and the proof that all replicas are equal byte for byte.

mod chinook;
mod client;
mod nodes;
mod proof;
mod screen;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use client::Client;
use nodes::Cluster;
use screen::Screen;

use crate::cli::flags::DemoFlags;

/// Why the demo did not get to its end.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    /// Two replicas differ.
    #[error("THE REPLICAS DIFFER: {0}")]
    Differ(String),
    /// A file, a process or a port of ours.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// A node ended that should be running.
    #[error("{node} ended by itself ({status})")]
    NodeEnded {
        /// Its name.
        node: String,
        /// How it ended.
        status: String,
    },
    /// A node refused something that should work.
    #[error("{0}")]
    Refused(String),
    /// Something that should have happened by now has not.
    #[error("gave up after {seconds} s waiting for {what}; the last answer was: {last}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// For how long.
        seconds: u64,
        /// What the last attempt came to.
        last: String,
    },
}

/// Runs the demo and says how it ended.
pub(crate) fn run(flags: &DemoFlags) -> ExitCode {
    let mut screen = Screen::new(STEPS);
    let (dir, temporary) = match directory(flags.dir.as_deref()) {
        Ok(found) => found,
        Err(error) => {
            screen.line(&format!("FAILED: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let mut cluster = None;
    let result = play(flags, &dir, &mut screen, &mut cluster);
    let tails = cluster.as_ref().map(Cluster::log_tails).unwrap_or_default();
    if let Some(cluster) = cluster {
        cluster.stop();
    }
    match result {
        Ok(()) | Err(DemoError::Interrupted) => {
            if temporary && let Err(error) = std::fs::remove_dir_all(&dir) {
                screen.line(&format!("cannot remove {}: {error}", dir.display()));
            }
            if result.is_ok() {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(130)
            }
        }
        Err(error) => {
            screen.line(&format!("FAILED while {}: {error}", screen.current()));
            for (name, tail) in tails {
                screen.line(&format!("--- the end of {name}'s log ---\n{tail}"));
            }
            screen.line(&format!(
                "Everything is left in {} for a look.",
                dir.display()
            ));
            ExitCode::FAILURE
        }
    }
}

/// The demo itself, step by step. The cluster is handed out as soon as it exists, so that its logs
/// can be shown when a step fails.
fn play(
    flags: &DemoFlags,
    dir: &Path,
    screen: &mut Screen,
    slot: &mut Option<Cluster>,
) -> Result<(), DemoError> {
    screen.step("starting three nodes");
    let cluster = slot.insert(Cluster::prepare(dir, flags.port_base)?);
    cluster.start_all()?;
    let leader = cluster.wait_for_leader(NODES)?;
    for node in cluster.nodes() {
        let role = if node.name == leader {
            "leader"
        } else {
            "follower"
        };
        let log = node.log_file.display();
        screen.line(&format!(
            "{}: http://{} ({role}), log in {log}",
            node.name, node.http_addr
        ));
    }

    screen.step("loading the Chinook database through a follower");
    let follower = cluster.address_other_than(&leader);
    load(cluster, &follower, screen)?;

    screen.step("asking it a few questions");
    ask(cluster, &follower, screen)?;

    screen.step("killing the leader (SIGKILL) and writing on");
    cluster.execute(&follower, &[EVENT_TABLE.to_owned()])?;
    let killed = Instant::now();
    cluster.kill(&leader)?;
    screen.line(&format!("{leader} is dead"));
    let first = write_on(cluster, killed)?;
    screen.line(&format!(
        "the next write was acknowledged {} ms later",
        first.as_millis()
    ));
    let successor = cluster.wait_for_leader(NODES - 1)?;
    screen.line(&format!(
        "{successor} leads now; {EVENTS} more writes are acknowledged"
    ));

    screen.step("bringing the dead node back");
    cluster.start(&leader)?;
    cluster.wait_for_ready(&leader)?;
    screen.line(&format!("{leader} has caught up"));

    screen.step("comparing the replicas byte for byte");
    for line in proof::prove(cluster)? {
        screen.line(&line);
    }

    screen.step("done");
    let successor = cluster.address_of(&successor);
    screen.line(&format!(
        "Try it yourself, on any of the three:\n{}",
        curl_lines(&successor)
    ));
    if flags.once {
        return Ok(());
    }
    screen.line("The cluster keeps running. Press Ctrl-C to end it.");
    loop {
        match cluster.pause(Duration::from_millis(100)) {
            Err(DemoError::Interrupted) => return Ok(()),
            other => other?,
        }
    }
}

/// Sends Chinook in transactions of some ten thousand bytes each.
fn load(cluster: &mut Cluster, address: &str, screen: &Screen) -> Result<(), DemoError> {
    let batches = chinook::batches(chinook::SQL, BATCH_BYTES);
    let bar = screen.bar(batches.len());
    let started = Instant::now();
    for batch in &batches {
        cluster.execute(address, batch)?;
        bar.advance();
    }
    bar.finish();
    let milliseconds = started.elapsed().as_millis();
    let statements: usize = batches.iter().map(Vec::len).sum();
    let transactions = batches.len();
    screen.line(&format!(
        "{statements} statements in {transactions} transactions, {milliseconds} ms"
    ));
    Ok(())
}

/// Runs the example queries and shows what they return.
fn ask(cluster: &mut Cluster, address: &str, screen: &Screen) -> Result<(), DemoError> {
    for (question, sql) in QUESTIONS {
        screen.line(question);
        for row in cluster
            .client()
            .query(address, sql)
            .map_err(DemoError::Refused)?
        {
            screen.line(&format!("    {}", row.join("  ")));
        }
    }
    Ok(())
}

/// Writes through the survivors until one acknowledges, and returns how long after `killed` that
/// was; then writes the rest. Every statement may be sent twice, because the first answer may have
/// been "unknown": the primary key makes the second one harmless.
fn write_on(cluster: &mut Cluster, killed: Instant) -> Result<Duration, DemoError> {
    let survivors: Vec<String> = cluster
        .nodes()
        .iter()
        .filter(|node| node.running())
        .map(|n| n.http_addr.clone())
        .collect();
    let mut first = None;
    for id in 0..EVENTS {
        let statement = [format!(
            "INSERT INTO event(id, note) VALUES({id}, 'after the crash') ON CONFLICT DO NOTHING"
        )];
        let mut turns = survivors.iter().cycle();
        cluster.wait("a survivor to acknowledge a write", |client: &Client| {
            let address = turns
                .next()
                .expect("a cycle over two addresses does not end");
            client.execute(address, &statement, Duration::from_secs(2))
        })?;
        first.get_or_insert_with(|| killed.elapsed());
    }
    Ok(first.unwrap_or_default())
}

/// The directory for the nodes, and whether it is ours to remove.
fn directory(wanted: Option<&Path>) -> Result<(PathBuf, bool), DemoError> {
    use std::os::unix::fs::DirBuilderExt;
    let (dir, temporary) = match wanted {
        Some(dir) => (dir.to_owned(), false),
        None => (
            std::env::temp_dir().join(format!("wallaby-demo-{}", std::process::id())),
            true,
        ),
    };
    let failed = |source| DemoError::Io {
        what: format!("making {}", dir.display()),
        source,
    };
    std::fs::DirBuilder::new()
        .recursive(!temporary)
        .mode(0o700)
        .create(&dir)
        .map_err(failed)?;
    let dir = dir.canonicalize().map_err(failed)?;
    Ok((dir, temporary))
}

/// A few lines to paste into another terminal.
fn curl_lines(address: &str) -> String {
    [
        format!("    curl -sG 'http://{address}/db/query?pretty' \\"),
        "        --data-urlencode 'q=SELECT Name FROM Artist LIMIT 3'".to_owned(),
        format!("    curl -s 'http://{address}/db/execute?pretty' \\"),
        "        -H 'Content-Type: application/json' \\".to_owned(),
        "        -d '[[\"INSERT INTO event(note) VALUES(?)\", \"hello\"]]'".to_owned(),
        format!("    curl -s 'http://{address}/nodes?pretty'"),
        format!("    curl -s 'http://{address}/status?pretty'"),
    ]
    .join("\n")
}

/// Nodes in the demo: the smallest number that survives the loss of one.
const NODES: usize = 3;

/// Steps announced on the screen.
const STEPS: usize = 7;

/// Rows written while one node is dead.
const EVENTS: usize = 50;

/// SQL text per transaction while loading; small enough to see progress.
const BATCH_BYTES: usize = 10_000;

/// `random()` and the time are there on purpose: SQL is executed once, so replicas stay equal.
const EVENT_TABLE: &str = "CREATE TABLE IF NOT EXISTS event(id INTEGER PRIMARY KEY, note TEXT, \
    at TEXT DEFAULT CURRENT_TIMESTAMP, dice INTEGER DEFAULT (random()))";

/// What the demo asks Chinook.
const QUESTIONS: [(&str, &str); 2] = [
    (
        "Which artists earned most?",
        "SELECT Artist.Name, printf('%.2f', sum(InvoiceLine.UnitPrice * Quantity)) \
         FROM InvoiceLine JOIN Track USING (TrackId) JOIN Album USING (AlbumId) \
         JOIN Artist USING (ArtistId) GROUP BY ArtistId \
         ORDER BY 0 + sum(InvoiceLine.UnitPrice * Quantity) DESC LIMIT 3",
    ),
    (
        "How many tracks, invoices, customers?",
        "SELECT (SELECT count(*) FROM Track), (SELECT count(*) FROM Invoice), \
         (SELECT count(*) FROM Customer)",
    ),
];
