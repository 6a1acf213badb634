//! Room on the disk. A node that has little left says so, in its log and in `/status`, and hands
//! the leadership to one that has more: its own log fails soon, and then it is out of service.
//! Writes go on through the others.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::admission::membership;
use super::errand::Report;
use super::running::Inner;

/// What is known of the room on this node's disks.
#[derive(Debug, Default)]
pub(crate) struct Room(Mutex<Option<String>>);

impl Room {
    /// What is short; `None`: there is enough.
    pub(crate) fn shortage(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Takes note of the bytes that are left, and says so when that is too little, or enough again.
    fn note(&self, dir: &Path, left: u64, reserve: u64) {
        let mut shortage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = dir.display();
        match &*shortage {
            None if left < reserve => {
                let (left, reserve) = (left >> 20, reserve >> 20);
                tracing::warn!(
                    %dir,
                    left_mib = left,
                    "the disk is almost full; the node stops when it is"
                );
                *shortage = Some(format!("{left} MiB of {reserve} are left in {dir}"));
            }
            // Not at once again, for a checkpoint gives some back and takes it again.
            Some(_) if left >= reserve + reserve / 4 => {
                tracing::info!(%dir, left_mib = left >> 20, "there is room on the disk again");
                *shortage = None;
            }
            None | Some(_) => {}
        }
    }
}

/// Looks again and again, until the node fails.
pub(crate) async fn watch(inner: Arc<Inner>) {
    let data_dir = &inner.options.data_dir;
    let dirs = [data_dir.clone(), data_dir.join("log")];
    let reserve = inner.options.log_segment_bytes * SEGMENTS_RESERVED + BYTES_RESERVED;
    while inner.health.failure().is_none() {
        let asked = dirs.clone();
        let least = tokio::task::spawn_blocking(move || least_room(&asked)).await;
        if let Ok(Some((dir, left))) = least {
            inner.room.note(&dir, left, reserve);
        }
        if inner.room.shortage().is_some() && inner.raft.is_leader() {
            inner.leave_the_lead().await;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// The directory whose file system has the least bytes left, and how many; `None` if none can be
/// asked.
fn least_room(dirs: &[PathBuf]) -> Option<(PathBuf, u64)> {
    let left = dirs.iter().filter_map(|dir| {
        let found = rustix::fs::statvfs(dir).ok()?;
        Some((dir.clone(), found.f_bavail.saturating_mul(found.f_frsize)))
    });
    left.min_by_key(|(_, left)| *left)
}

impl Inner {
    /// Hands over to a node that has room, if one is there. Where all are short of it, they would
    /// only pass the leadership round.
    async fn leave_the_lead(self: &Arc<Self>) {
        let me = self.membership.raft_id();
        let config = membership(&self.raft);
        let heir = config
            .voter_ids()
            .find(|voter| *voter != me && self.answers(*voter) && self.stands.has_room(*voter));
        let Some(heir) = heir else { return };
        let name = self.name_of(heir);
        tracing::warn!(
            to = name,
            "handing the leadership over, for the disk of this node is almost full"
        );
        let report = self.step_down(Some(name), true, HAND_OVER_TIME_MAX).await;
        if let Report::Impossible(why) = report {
            tracing::warn!(why, "the leadership is not handed over");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// The log is written by whole segments, and made some ahead.
const SEGMENTS_RESERVED: u64 = 4;
/// For SQLite's WAL between two checkpoints, and for spools.
const BYTES_RESERVED: u64 = 16 << 20;
/// A disk that takes 500 MB/s takes a third of the reserve meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
const HAND_OVER_TIME_MAX: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_ends_only_when_there_is_clearly_enough() {
        let (room, dir) = (Room::default(), Path::new("data"));
        room.note(dir, 100, 100);
        assert_eq!(room.shortage(), None);
        room.note(dir, 99, 100);
        assert!(room.shortage().unwrap().contains("data"));
        room.note(dir, 124, 100);
        assert!(room.shortage().is_some());
        room.note(dir, 125, 100);
        assert_eq!(room.shortage(), None);
    }

    #[test]
    fn the_fuller_file_system_counts() {
        let here = std::env::temp_dir();
        let found = least_room(&["/nonexistent".into(), here.clone()]);
        assert_eq!(found.map(|(dir, _)| dir), Some(here));
        assert_eq!(least_room(&["/nonexistent".into()]), None);
    }
}
