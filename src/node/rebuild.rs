//! A node whose durable state is damaged comes back by itself, as a new voter of the same name.
//!
//! A log that lost something in its interior, or a checkpoint record that cannot be read, leaves a
//! node that may have acknowledged what it does not have any more. If it went on under its Raft id
//! it could help to elect a leader that lacks it too. So it never does: the damaged files are set
//! aside, the node draws a fresh Raft id, and joins as one that lost its data directory. It
//! receives the database from the others, but for the pages that are in its old one as they have
//! them (see [`old_pages`]), and a leader, elected by those who still know what they have
//! acknowledged, puts it in the place of the old voter. While a majority of the old voters is in
//! this state there is no leader, and all of them wait.
//!
//! A node that knows of no other member has nobody to get anything from; it refuses to start.
//!
//! Two small text files in the data directory, each ending in a line with the CRC-32 of the lines
//! before it, in hexadecimal:
//!
//! | File | Lines |
//! |---|---|
//! | `members` | `member`, Raft id (hexadecimal), `voter` or `learner`, Raft address; for each |
//! | `rebuild` | `to`, the fresh Raft id; `aside`, a directory; `moving` or `moved`; `peer`, a |
//! |           | Raft address; for each. Until all is moved aside nothing else is done |
//!
//! `rebuild` with only `wanted` and a reason is an order of the running node for its next start.

mod old_pages;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openraft::async_runtime::WatchReceiver as _;

use super::admission::is_settled;
use super::error::Error;
use super::identity::{Identity, random_u64, write_durably};
use super::lineage::RESTART;
use super::options::NodeOptions;
use super::running::Inner;
use crate::raft::log::LogError;
use crate::sqlite::{self, StartLock};

/// Whether an error of opening the node says that its durable state is damaged, and not that
/// something is in the way.
pub(crate) fn is_damage(error: &Error) -> bool {
    matches!(
        error,
        Error::Corrupt { .. }
            | Error::Log(LogError::Corrupt { .. })
            | Error::Sqlite(
                sqlite::Error::Corrupt { .. }
                    | sqlite::Error::HashMismatch { .. }
                    | sqlite::Error::Page { .. }
            )
    )
}

/// Sets the damaged state aside. The node that is opened then gets everything from its peers.
///
/// # Errors
///
/// The damage itself, with what to do, if there are no peers; and what kept the files from being
/// moved.
pub(crate) fn begin(options: &mut NodeOptions, damage: &Error) -> Result<(), Error> {
    let dir = &options.data_dir;
    let name = options.name.as_deref();
    let identity = Identity::load_or_create(dir, name, options.advertised_raft_addr())?;
    let mut peers = known_peers(dir, identity.raft_id);
    let own = options.advertised_raft_addr().to_owned();
    peers.extend(options.join.iter().cloned());
    peers.sort_unstable();
    peers.dedup();
    peers.retain(|addr| *addr != own);
    if identity.cluster.is_none() || peers.is_empty() {
        return Err(Error::Configuration(format!(
            "{}; this node knows of no other member of its cluster, so there is no copy to \
             rebuild it from. It does not start. If there are other members, start it with -join \
             and their addresses; if not, restore a backup: move {} away, start the node again, \
             and POST the backup to /db/load",
            what(damage),
            dir.display()
        )));
    }
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH);
    let aside = format!("damaged-{}", seconds.unwrap_or_default().as_secs());
    let orders = Orders {
        raft_id: random_u64()?,
        aside,
        is_moved: false,
        peers,
    };
    tracing::error!(
        aside = orders.aside,
        peers = ?orders.peers,
        "{}; this node sets its files aside, and comes back under a fresh Raft id as one that \
         lost them: it gets everything from its peers, and then takes its old place",
        what(damage)
    );
    orders.save(dir)?;
    carry_out(options, orders)
}

/// What is damaged, without advice that does not fit here.
pub(crate) fn what(damage: &Error) -> String {
    match damage {
        Error::Log(LogError::Corrupt { what, file, offset }) => format!(
            "the log is damaged in its interior: {what} in {} at offset {offset}",
            file.display()
        ),
        Error::Corrupt { what, file, .. } => format!("{} is damaged: {what}", file.display()),
        other => other.to_string(),
    }
}

/// Goes on with what an earlier start, or the node that ran before, has left to be done.
///
/// # Errors
///
/// What keeps the files from being moved.
pub(crate) fn resume(options: &mut NodeOptions) -> Result<(), Error> {
    let Some(lines) = load(&options.data_dir, ORDERS)? else {
        return Ok(());
    };
    if let Some(why) = lines.strip_prefix("wanted ") {
        let damage = Error::Corrupt {
            what: why.trim_end().to_owned(),
            file: options.data_dir.clone(),
            advice: "",
        };
        return begin(options, &damage);
    }
    let orders = Orders::parse(&lines).ok_or_else(|| Error::Corrupt {
        what: "the orders in it make no sense".to_owned(),
        file: options.data_dir.join(ORDERS),
        advice: super::error::REBUILD,
    })?;
    carry_out(options, orders)
}

/// Has the next start rebuild this node, for this reason.
pub(crate) fn order(dir: &Path, why: &str) -> Result<(), Error> {
    let why = why.replace(|c: char| c.is_control(), " ");
    save(dir, ORDERS, format!("wanted {why}\n"))
}

/// The node is a member again. What it has ordered for its next start stays.
fn finish(dir: &Path) {
    let is_wanted = |lines: &String| lines.starts_with("wanted ");
    if load(dir, ORDERS)
        .ok()
        .flatten()
        .as_ref()
        .is_some_and(is_wanted)
    {
        return;
    }
    match fs::remove_file(dir.join(ORDERS)) {
        Ok(()) => tracing::info!("this node is rebuilt, and in its old place"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, "the orders to rebuild this node cannot be removed"),
    }
}

/// Doing it twice is doing it once.
fn carry_out(options: &mut NodeOptions, mut orders: Orders) -> Result<(), Error> {
    let dir = options.data_dir.clone();
    if !orders.is_moved {
        // First the new id: with the old one and without its log, this node must never vote.
        let name = options.name.as_deref();
        let identity = Identity::load_or_create(&dir, name, options.advertised_raft_addr())?;
        let fresh = Identity {
            raft_id: orders.raft_id,
            founder: false,
            ..identity
        };
        fresh.save(&dir)?;
        let aside = dir.join(&orders.aside);
        fs::create_dir_all(&aside).map_err(Error::io(format!("create {}", aside.display())))?;
        for name in SET_ASIDE {
            match fs::rename(dir.join(name), aside.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(format!("move {name} to {}", aside.display()))(
                        error,
                    ));
                }
                _ => {}
            }
        }
        for path in [&aside, &dir] {
            let synced = fs::File::open(path).and_then(|dir| dir.sync_all());
            synced.map_err(Error::io(format!("sync {}", path.display())))?;
        }
        old_pages::keep(&dir, &aside.join(StartLock::FILE_NAME));
        orders.is_moved = true;
        orders.save(&dir)?;
    }
    tracing::warn!(peers = ?orders.peers, "this node is being rebuilt from its peers");
    // However long it takes until a leader is there: nobody else can help.
    options.join_attempts = u32::MAX;
    options.join.extend(orders.peers);
    options.join.sort_unstable();
    options.join.dedup();
    Ok(())
}

/// What is to be done, or was.
#[derive(Debug, Eq, PartialEq)]
struct Orders {
    raft_id: u64,
    aside: String,
    is_moved: bool,
    peers: Vec<String>,
}

impl Orders {
    fn save(&self, dir: &Path) -> Result<(), Error> {
        let state = if self.is_moved { "moved" } else { "moving" };
        let mut text = format!("to {:x}\naside {}\n{state}\n", self.raft_id, self.aside);
        for peer in &self.peers {
            text += &format!("peer {peer}\n");
        }
        save(dir, ORDERS, text)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let raft_id = u64::from_str_radix(lines.next()?.strip_prefix("to ")?, 16).ok()?;
        let aside = lines.next()?.strip_prefix("aside ")?.to_owned();
        let is_moved = match lines.next()? {
            "moved" => true,
            "moving" => false,
            _ => return None,
        };
        // A name of ours, within the data directory.
        let is_ours = aside.strip_prefix("damaged-")?;
        if raft_id == 0 || !is_ours.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let peers = lines.map(|line| line.strip_prefix("peer ").map(str::to_owned));
        Some(Self {
            raft_id,
            aside,
            is_moved,
            peers: peers.collect::<Option<_>>()?,
        })
    }
}

/// The addresses of the other members, as this node knew them last. A file that cannot be read is
/// no reason to refuse: it only helps.
fn known_peers(dir: &Path, me: u64) -> Vec<String> {
    let text = match load(dir, MEMBERS) {
        Ok(text) => text.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(%error, "the members of the cluster are not known");
            return Vec::new();
        }
    };
    let addr = |line: &str| {
        let mut words = line.strip_prefix("member ")?.split(' ');
        let id = u64::from_str_radix(words.next()?, 16).ok()?;
        let addr = words.nth(1)?.to_owned();
        (id != me).then_some(addr)
    };
    text.lines().filter_map(addr).collect()
}

/// Keeps `members` as the cluster has them, for as long as the node lives.
pub(crate) async fn remember(inner: Arc<Inner>) {
    // Not of every entry, as from all of the metrics.
    let mut metrics = inner.raft.server_metrics();
    let mut known = None;
    loop {
        let config = metrics.borrow_and_update().membership_config.clone();
        let config = config.membership().clone();
        if is_settled(&config, inner.membership.raft_id()) {
            finish(&inner.options.data_dir);
        }
        if known.as_ref() != Some(&config) {
            let voters: std::collections::BTreeSet<u64> = config.voter_ids().collect();
            let mut text = String::new();
            for (id, member) in config.nodes() {
                let role = if voters.contains(id) {
                    "voter"
                } else {
                    "learner"
                };
                text += &format!("member {id:x} {role} {}\n", member.raft_addr);
            }
            let dir = inner.options.data_dir.clone();
            let saved = tokio::task::spawn_blocking(move || save(&dir, MEMBERS, text)).await;
            match saved {
                Ok(Ok(())) => known = Some(config),
                Ok(Err(error)) => {
                    // A sync of the directory that fails may take other new names with it, and the
                    // next one, which others of this node wait for, would succeed nevertheless.
                    inner
                        .health
                        .fail(format!("the members cannot be written down: {error}"));
                    return;
                }
                Err(_) => return,
            }
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// Finds out, after a start, whether the log has lost its end.
///
/// A batch that was torn when the node was killed was never acknowledged, and is cut off. The same
/// bytes can be a batch that was acknowledged and damaged afterwards; nothing here tells. The
/// leader does: it knows what this node has acknowledged to it. If that is more than there is, this
/// node must not vote as if it had never had it.
pub(crate) async fn recall(inner: Arc<Inner>) {
    let (at_start, mut contradictions) = (inner.log.last().map_or(0, |last| last.index), 0);
    for _ in 0..RECALLS {
        tokio::time::sleep(RECALL_INTERVAL).await;
        if inner.raft.is_leader() {
            return;
        }
        let Some(acknowledged) = inner.repairs.acknowledged().await else {
            continue;
        };
        let last = inner.log.last().map_or(0, |last| last.index);
        if acknowledged <= last {
            contradictions = 0;
            if acknowledged >= at_start {
                return;
            }
            continue;
        }
        contradictions += 1;
        if contradictions == CONTRADICTIONS_MIN {
            let why = format!(
                "the log ends at index {last}, but this node has acknowledged index {acknowledged}"
            );
            if let Err(error) = order(&inner.options.data_dir, &why) {
                tracing::error!(%error, "this node cannot be rebuilt");
            }
            return inner.health.fail(format!("{why}; {RESTART}"));
        }
    }
}

/// For as long as a leader may take to send what is missing, and to count it.
const RECALLS: u32 = 240;
const RECALL_INTERVAL: Duration = Duration::from_millis(250);
/// The leader's figures are a moment old.
const CONTRADICTIONS_MIN: u32 = 4;

fn save(dir: &Path, name: &str, mut text: String) -> Result<(), Error> {
    text += &format!("{:08x}\n", crc32fast::hash(text.as_bytes()));
    write_durably(dir, name, text.as_bytes())
}

/// The lines of one of the two files, without the checksum; `None` if there is no such file.
fn load(dir: &Path, name: &str) -> Result<Option<String>, Error> {
    let path = dir.join(name);
    let corrupt = |what: &str| Error::Corrupt {
        what: what.to_owned(),
        file: path.clone(),
        advice: super::error::REBUILD,
    };
    let length = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(format!("look at {}", path.display()))(error)),
    };
    if length > BYTES_MAX {
        return Err(corrupt("it is too long"));
    }
    let bytes = fs::read(&path).map_err(Error::io(format!("read {}", path.display())))?;
    let text = String::from_utf8(bytes).map_err(|_| corrupt("it is no text"))?;
    let lines = text.strip_suffix('\n').unwrap_or_default();
    let (lines, sum) = lines.rsplit_once('\n').unwrap_or(("", lines));
    let lines = if lines.is_empty() {
        String::new()
    } else {
        format!("{lines}\n")
    };
    let is_right = u32::from_str_radix(sum, 16) == Ok(crc32fast::hash(lines.as_bytes()));
    if !is_right || sum.len() != 8 {
        return Err(corrupt("wrong checksum"));
    }
    Ok(Some(lines))
}

const MEMBERS: &str = "members";
const ORDERS: &str = "rebuild";
/// Everything durable but the identity and this module's files.
const SET_ASIDE: [&str; 7] = [
    "log",
    "checkpoint",
    "pages.hash",
    "db.sqlite",
    "db.sqlite-wal",
    "db.sqlite-shm",
    super::spool::INSTALLING,
];
/// Far more than the members of any cluster take.
const BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Orders {
        Orders {
            raft_id: 0xabc,
            aside: "damaged-17".to_owned(),
            is_moved: true,
            peers: vec!["a:1".to_owned(), "[::1]:2".to_owned()],
        }
    }

    #[test]
    fn orders_read_as_they_were_written_and_no_damage_does() {
        let dir = std::env::temp_dir().join(format!("wallaby-orders-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        example().save(&dir).unwrap();
        let read = load(&dir, ORDERS).unwrap().unwrap();
        assert_eq!(Orders::parse(&read), Some(example()));
        let path = dir.join(ORDERS);
        let bytes = fs::read(&path).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &damaged).unwrap();
            // The case of the checksum's digits does not matter.
            let read = load(&dir, ORDERS).ok().flatten();
            assert!(
                read.is_none_or(|lines| lines == read_lines(&bytes)),
                "bit {bit}"
            );
        }
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            assert!(load(&dir, ORDERS).is_err(), "{length} bytes");
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    fn read_lines(bytes: &[u8]) -> String {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        text[..text.len() - 9].to_owned()
    }

    #[test]
    fn nothing_is_moved_out_of_the_data_directory() {
        for aside in ["..", "damaged-1/../..", "/tmp"] {
            let text = format!("to 1\naside {aside}\nmoving\n");
            assert_eq!(Orders::parse(&text), None);
        }
    }
}
