//! A database that shrinks on the leader shrinks on a follower.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use wal_tests::replica::{Replica, both, data_dir};
use wallaby::sqlite::{AutoVacuum, Checkpoint, DatabaseOptions};
use wallaby::wal::PageSize;

const WAIT: Duration = Duration::from_millis(2);

fn create(dir: &Path) -> Replica {
    std::fs::create_dir_all(dir).unwrap();
    let page_size = PageSize::new(512).unwrap();
    Replica::create(dir, page_size, AutoVacuum::None, DatabaseOptions::default())
}

#[test]
fn a_follower_shrinks_with_its_leader() {
    let dir = data_dir();
    let mut leader = create(&dir.path().join("a"));
    let mut follower = create(&dir.path().join("b"));
    both(&leader, &mut follower, "CREATE TABLE t(v)");
    let pages = |replica: &Replica| -> u32 {
        let connection = replica.reader();
        let sound = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0));
        assert_eq!(sound, Ok("ok".to_owned()));
        let count = connection.query_row("PRAGMA page_count", [], |row| row.get(0));
        count.unwrap()
    };
    let fill = "INSERT INTO t WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n \
                WHERE i < 200) SELECT randomblob(400) FROM n";
    both(&leader, &mut follower, fill);
    let full = pages(&follower);
    both(&leader, &mut follower, "DELETE FROM t");
    both(&leader, &mut follower, "VACUUM");
    let empty = pages(&follower);
    assert!(empty < full / 10, "{empty} of {full} pages are left");
    assert_eq!(empty, pages(&leader));
    assert_eq!(follower.pages().len(), empty as usize);
    let file = |node: &mut Replica| {
        let moved = node.checkpoint(Checkpoint::Restart { wait: WAIT });
        assert!(moved.unwrap().complete);
        std::fs::metadata(node.path()).unwrap().len()
    };
    assert_eq!(file(&mut leader), u64::from(empty) * 512);
    assert_eq!(file(&mut follower), u64::from(empty) * 512);
    // Pages that were cut off and come back have nothing of their former content.
    both(&leader, &mut follower, fill);
    assert_eq!(pages(&follower), pages(&leader));
}
