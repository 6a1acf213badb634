//! Pages as readers get them: compared with what was written to their place, whatever way SQLite
//! takes to them. `WAL_SEED=n` replays which bits flip.

#![allow(clippy::unwrap_used)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use wal_tests::replica::{Replica, both, run};
use wal_tests::seed::{Random, seed};
use wallaby::sqlite::{
    AutoVacuum, Checkpoint, DatabaseOptions, Error, Extensions, Interest, Limits, Place, Readers,
    ReadersOptions, Reply, Request, Shape, Statement, Unread, Witness,
};
use wallaby::wal::{PageNumber, PageSize, Stored};

const ALL: &str = "SELECT sum(length(v)), sum(instr(v, 'z')) FROM t";

/// A table in the main file, of values that each take more than one page.
fn filled(dir: &Path, rows: u32, value_bytes: u32) -> Replica {
    let options = DatabaseOptions::default();
    let mut node = Replica::create(dir, PageSize::DEFAULT, AutoVacuum::None, options);
    node.sql()
        .execute_batch(&format!(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO t SELECT i, hex(randomblob({value_bytes} / 2)) FROM n"
        ))
        .unwrap();
    checkpoint(&mut node);
    node
}

fn checkpoint(node: &mut Replica) {
    let kind = Checkpoint::Restart {
        wait: Duration::from_secs(1),
    };
    assert!(node.checkpoint(kind).unwrap().complete);
}

/// Nothing is left in the WAL.
fn move_all(node: &mut Replica) {
    let kind = Checkpoint::Truncate {
        wait: Duration::from_secs(1),
    };
    assert!(node.checkpoint(kind).unwrap().complete);
}

fn readers(path: &Path, witness: Option<&Arc<Witness>>) -> Readers {
    let options = ReadersOptions {
        path: path.to_owned(),
        threads: 1,
        queue_max: 10,
        foreign_keys: false,
        limits: Limits::default(),
        extensions: Extensions::default(),
    };
    Readers::open_watched(options, witness.cloned()).unwrap()
}

fn query(readers: &Readers, sql: &str) -> Result<Reply, Unread> {
    let request = Request {
        statements: vec![Statement {
            sql: sql.to_owned(),
            parameters: Vec::new(),
        }],
        transaction: false,
        shape: Shape::Query,
        statement_time_max: None,
        qualify_columns: false,
    };
    let (send, receive) = mpsc::channel();
    let done = Box::new(move |read| send.send(read).unwrap());
    readers
        .submit_watched(request, Interest::default(), done)
        .unwrap();
    receive.recv().unwrap()
}

fn flip(path: &Path, offset: usize, bit: usize) {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let (file, mut byte) = (file.unwrap(), [0]);
    file.read_exact_at(&mut byte, offset as u64).unwrap();
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, offset as u64).unwrap();
}

/// Long values are read past SQLite's page cache, and the last page of each only as far as the value
/// goes: a bit in any of these is found nevertheless.
#[test]
fn no_flipped_bit_is_ever_in_an_answer() {
    let mut random = Random::new(seed("witness"));
    let dir = tempfile::tempdir().unwrap();
    let node = filled(dir.path(), 200, 30_000);
    let witness = Arc::clone(node.database.witness());
    let path = node.path().to_owned();
    let bytes = usize::try_from(path.metadata().unwrap().len()).unwrap();
    let readers = readers(&path, Some(&witness));
    let good = query(&readers, ALL).unwrap().outcomes[0].answer.clone();
    let mut met = 0;
    for _ in 0..60 {
        let (offset, bit) = (4096 + random.below(bytes - 4096), random.below(8));
        flip(&path, offset, bit);
        let page = u32::try_from(offset / 4096 + 1).unwrap();
        let place = Place::Main(PageNumber::new(page).unwrap());
        match query(&readers, ALL) {
            Err(unread) => {
                assert_eq!(unread.damage.place, place);
                met += 1;
            }
            // SQLite still has the page in its cache.
            Ok(reply) => {
                assert_eq!(reply.outcomes[0].answer, good);
                assert!(!witness.recheck(place));
            }
        }
        let damage = witness.damaged()[0];
        // The right image is taken, and nothing else.
        let mut image = vec![0; 4096];
        let file = std::fs::File::open(&path).unwrap();
        let begin = (offset / 4096 * 4096) as u64;
        file.read_exact_at(&mut image, begin).unwrap();
        assert!(!witness.mend(damage, &image).unwrap());
        image[offset % 4096] ^= 1 << bit;
        assert!(witness.mend(damage, &image).unwrap());
        assert_eq!(query(&readers, ALL).unwrap().outcomes[0].answer, good);
    }
    assert_eq!((witness.found(), witness.mended()), (60, 60));
    assert!(met > 30, "{met}");
    readers.close();
}

/// Readers at all ages of the database, while transactions and checkpoints of all kinds go on.
#[test]
fn nothing_is_taken_for_damage_that_is_none() {
    let mut random = Random::new(seed("witness-busy"));
    let dir = tempfile::tempdir().unwrap();
    let mut node = filled(dir.path(), 100, 3000);
    let witness = Arc::clone(node.database.witness());
    let path = node.path().to_owned();
    let readers = readers(&path, Some(&witness));
    let scrubbed = Arc::clone(&witness);
    let (stop, stopped) = mpsc::channel::<()>();
    let scrub = std::thread::spawn(move || {
        let mut passes = 0;
        while matches!(stopped.try_recv(), Err(mpsc::TryRecvError::Empty)) {
            let mut next = 1;
            loop {
                let at = scrubbed.scrub(next, 16);
                next = at.next;
                if at.next > at.pages {
                    break;
                }
            }
            passes += 1;
        }
        passes
    });
    for _ in 0..300 {
        let id = random.below(200);
        let sql = match random.below(6) {
            0 => format!("DELETE FROM t WHERE id > {id}"),
            1 => format!("INSERT OR REPLACE INTO t VALUES({id}, hex(randomblob(9000)))"),
            2 => "VACUUM".to_owned(),
            _ => format!("UPDATE t SET v = hex(randomblob(2000)) WHERE id % 7 = {id} % 7"),
        };
        node.sql().execute_batch(&sql).unwrap();
        let kind = match random.below(4) {
            0 => Checkpoint::Passive,
            1 => Checkpoint::Truncate {
                wait: Duration::from_millis(5),
            },
            _ => Checkpoint::Restart {
                wait: Duration::from_millis(5),
            },
        };
        if random.below(2) == 0 {
            node.checkpoint(kind).unwrap();
        }
        query(&readers, ALL).unwrap();
    }
    drop(stop);
    println!("{} passes of the scrub meanwhile", scrub.join().unwrap());
    assert_eq!(witness.found(), 0);
    readers.close();
}

/// Prints what comparing costs; nothing depends on it.
#[test]
fn what_comparing_costs_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let node = filled(dir.path(), 4000, 3000);
    let witness = Arc::clone(node.database.witness());
    let pages = f64::from(node.database.page_count().0);
    for (what, witness) in [("plain", None), ("compared", Some(&witness))] {
        let readers = readers(node.path(), witness);
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let begun = Instant::now();
            query(&readers, "SELECT sum(length(v)) FROM t").unwrap();
            best = best.min(begun.elapsed());
        }
        let each = best.as_secs_f64() * 1e9 / pages;
        println!("{what}: {each:.0} ns per page, {pages} pages");
        readers.close();
    }
}

/// What changed in a page says nothing to whoever has another version of it.
#[test]
fn a_change_to_a_damaged_page_is_stored_whole_and_waits_where_it_is_injected() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options = DatabaseOptions::default();
    let create = |dir: &Path| Replica::create(dir, PageSize::DEFAULT, AutoVacuum::None, options);
    let (mut leader, mut follower) = (create(one.path()), create(other.path()));
    both(
        &leader,
        &mut follower,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)",
    );
    let fill = "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 200) \
         INSERT INTO t SELECT i, hex(randomblob(20)) FROM n";
    both(&leader, &mut follower, fill);
    move_all(&mut leader);
    move_all(&mut follower);
    leader.decisions.patches(true);

    let update = "UPDATE t SET v = 'short' WHERE id IN (1, 200)";
    let sound = run(&leader, "UPDATE t SET v = 'sound' WHERE id IN (1, 200)");
    assert!(
        sound[0].len() == 2
            && sound[0]
                .page_table()
                .all(|entry| entry.stored == Stored::Patch)
    );
    let page = sound[0].page_numbers().max().unwrap();
    let offset = usize::try_from(page.offset(PageSize::DEFAULT)).unwrap() + 4000;
    let good = std::fs::read(follower.path()).unwrap();
    flip(follower.path(), offset, 3);
    let (before, hash) = (follower.database.hash(), sound[0].header().hash_after);
    let Err(Error::Damaged(damage)) = follower.inject(&sound[0]) else {
        panic!("a patch was applied to a damaged page");
    };
    assert_eq!(
        (damage.place, follower.database.hash()),
        (Place::Main(page), before)
    );
    let image = &good[offset - 4000..offset + 96];
    assert!(follower.database.witness().mend(damage, image).unwrap());
    follower.inject(&sound[0]).unwrap();
    assert_eq!(follower.database.hash(), hash);

    // The leader has the page in SQLite's cache, and writes it anew without having read it.
    move_all(&mut leader);
    leader
        .sql()
        .query_row("SELECT count(*), max(v) FROM t", [], |_| Ok(()))
        .unwrap();
    flip(leader.path(), offset, 3);
    let changed = run(&leader, update);
    for entry in changed[0].page_table() {
        let is_damaged = entry.first == page;
        assert_eq!(entry.stored != Stored::Patch, is_damaged, "{entry:?}");
    }
    follower.inject(&changed[0]).unwrap();
    assert!(leader.pages() == follower.pages());
}
