//! A frame that is damaged in the WAL before its piece is moved.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use wal_tests::replica::{Replica, data_dir};
use wal_tests::seed::{Random, seed};
use wallaby::sqlite::{AutoVacuum, Checkpoint, Database, DatabaseOptions, Place};
use wallaby::wal::PageSize;

const FRAME_BYTES: u64 = 24 + 4096;
const PIECE: u32 = 32;

/// Moves pieces until little is left; whether that went well.
fn move_all(database: &mut Database) -> bool {
    loop {
        match database.backfill(u32::MAX, PIECE) {
            Ok(at) if at.left() <= PIECE => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

#[test]
fn a_damaged_frame_is_found_by_its_piece_and_does_not_reach_the_main_file() {
    let mut random = Random::new(seed("checkpoints"));
    let dir = data_dir();
    let options = DatabaseOptions::default();
    let mut node = Replica::create(dir.path(), PageSize::DEFAULT, AutoVacuum::None, options);
    node.sql()
        .execute_batch(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, v);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 400)
             INSERT INTO t SELECT i, randomblob(3000) FROM n",
        )
        .unwrap();
    let expected = node.pages();
    let wal = node.path().with_file_name("db.sqlite-wal");
    let file = OpenOptions::new().read(true).write(true).open(&wal);
    let file = file.unwrap();
    // One that is the last of its page: all of the big transaction are.
    let frame = 100 + random.number_below(200);
    let offset = 32 + (frame - 1) * FRAME_BYTES + 24 + random.number_below(4096);
    let (mut byte, bit) = ([0], random.below(8));
    file.read_exact_at(&mut byte, offset).unwrap();
    let sound = byte;
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, offset).unwrap();
    println!("bit {bit} of byte {offset} flipped, in frame {frame}");

    node.count_on_wal(2);
    assert!(!move_all(&mut node.database));
    let damage = node.database.take_damage().unwrap();
    let Place::Frame { frame: found, page } = damage.place else {
        panic!("{damage:?}");
    };
    assert_eq!(u64::from(found), frame);
    assert_eq!(node.database.witness().found(), 1);
    let at = node.database.backfilled().unwrap();
    assert!(u64::from(at.backfilled) < frame && at.backfilled >= PIECE);
    let main = std::fs::metadata(node.path()).unwrap().len();
    assert!(
        main <= (u64::from(page.number()) - 1) * 4096,
        "page {page} was written"
    );

    // Mended as a peer's copy would: then the pieces go on where they stopped.
    file.write_all_at(&sound, offset).unwrap();
    assert!(node.database.witness().recheck(damage.place));
    assert!(move_all(&mut node.database));
    let end = node.checkpoint(Checkpoint::Passive).unwrap();
    assert!(end.complete);
    assert!(node.pages() == expected);
    assert_eq!(node.database.witness().damaged(), []);
}
