//! Patches: what real transactions cost as such, and what is refused.

use std::collections::BTreeMap;
use std::fs;

use rusqlite::Connection;
use wal_tests::seed::{Random, seed};
use wallaby::wal::patch::{self, PAGES_MAX};
use wallaby::wal::{PageNumber, PageSize, Transactions};

/// Stores and applies; the bytes that it took.
fn round_trip(pages: &[(Vec<u8>, Vec<u8>)]) -> usize {
    let versions: Vec<(&[u8], &[u8])> = pages.iter().map(|(a, b)| (&a[..], &b[..])).collect();
    let stored = patch::encode(&versions);
    let mut applied: Vec<Vec<u8>> = pages.iter().map(|(old, _)| old.clone()).collect();
    patch::apply(&mut applied, &stored).unwrap();
    assert!(applied.iter().eq(pages.iter().map(|(_, new)| new)));
    stored.len()
}

/// Runs transactions on a database of SQLite's, each of which must be found behind the last.
struct Oracle {
    dir: tempfile::TempDir,
    connection: Connection,
    pages: BTreeMap<PageNumber, Vec<u8>>,
    transactions: usize,
}

impl Oracle {
    fn new(setup: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let connection = Connection::open(dir.path().join("db")).unwrap();
        let set = "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
            PRAGMA wal_autocheckpoint = 0;";
        connection.execute_batch(set).unwrap();
        connection.execute_batch(setup).unwrap();
        let mut oracle = Self {
            dir,
            connection,
            pages: BTreeMap::new(),
            transactions: 0,
        };
        let _ = oracle.changed();
        oracle
    }

    /// The pages that the transactions since the last call changed, before and after.
    fn changed(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let image = fs::read(self.dir.path().join("db-wal")).unwrap();
        let size = PageSize::DEFAULT.len();
        let mut now = BTreeMap::new();
        let all = Transactions::of(&image).unwrap();
        let all: Vec<_> = all.collect();
        for frame in all[self.transactions..].iter().flat_map(|one| &one.frames) {
            let begin = usize::try_from(frame.offset).unwrap() + 24;
            now.insert(frame.page, image[begin..begin + size].to_vec());
        }
        self.transactions = all.len();
        let versions = now.iter().map(|(page, new)| {
            let old = self.pages.get(page).cloned();
            (old.unwrap_or(vec![0; size]), new.clone())
        });
        let versions = versions.collect();
        self.pages.extend(now);
        versions
    }

    /// Mean bytes of SQL and of patches, per transaction.
    fn measure(&mut self, mut sql: impl FnMut(&mut Random) -> String) -> (f64, f64) {
        const TRANSACTIONS: u32 = 400;
        let mut random = Random::new(1);
        let (mut text, mut stored) = (0, 0);
        for _ in 0..TRANSACTIONS {
            let sql = sql(&mut random);
            text += sql.len();
            self.connection.execute_batch(&sql).unwrap();
            let pages = self.changed();
            stored += pages.chunks(PAGES_MAX).map(round_trip).sum::<usize>();
        }
        let mean = |sum| f64::from(u32::try_from(sum).unwrap()) / f64::from(TRANSACTIONS);
        (mean(text), mean(stored))
    }
}

const TABLE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, k INTEGER, v TEXT);
    INSERT INTO t WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c LIMIT 20000)
    SELECT i, i, i * 7919 % 20000, hex(randomblob(32)) FROM c;";

fn hex(random: &mut Random, digits: usize) -> String {
    let digit = |random: &mut Random| char::from(random.pick(b"0123456789abcdef"));
    (0..digits).map(|_| digit(random)).collect()
}

fn key(random: &mut Random) -> usize {
    1 + random.below(20_000)
}

/// What a workload costs, and how many times its SQL it may cost.
type Row = (&'static str, (f64, f64), f64);

fn updates() -> [Row; 3] {
    let mut table = Oracle::new(TABLE);
    let integer = table.measure(|random| {
        let (n, id) = (key(random), key(random));
        format!("UPDATE t SET n = {n} WHERE id = {id} /* a number */")
    });
    let text = table.measure(|random| {
        let (v, id) = (hex(random, 48), key(random));
        format!("UPDATE t SET v = '{v}' WHERE id = {id}")
    });
    let mut index = Oracle::new(&format!("{TABLE} CREATE INDEX k ON t(k);"));
    let indexed = index.measure(|random| {
        let (k, id) = (key(random), key(random));
        format!("UPDATE t SET k = {k} WHERE id = {id} /* in an index */")
    });
    [
        ("random integer update", integer, 1.1),
        ("text update", text, 1.1),
        ("indexed update", indexed, 2.2),
    ]
}

fn inserts() -> [Row; 3] {
    let sequential = Oracle::new(TABLE).measure(|random| {
        let v = hex(random, 56);
        format!("INSERT INTO t(n, k, v) VALUES ({}, 0, '{v}')", key(random))
    });
    let mut uuids = Oracle::new(
        "CREATE TABLE u(id TEXT PRIMARY KEY, n INTEGER, v TEXT);
        INSERT INTO u WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c LIMIT 20000)
        SELECT lower(hex(randomblob(16))), i, hex(randomblob(8)) FROM c;",
    );
    let uuid = uuids.measure(|random| {
        let (id, v) = (hex(random, 32), hex(random, 32));
        format!("INSERT INTO u(id, n, v) VALUES ('{id}', 1, '{v}')")
    });
    let mut orders = Oracle::new(
        "CREATE TABLE o(id INTEGER PRIMARY KEY, customer INTEGER, at TEXT);
        CREATE TABLE i(id INTEGER PRIMARY KEY, o INTEGER, product INTEGER);",
    );
    let order = orders.measure(|random| {
        let customer = key(random);
        let mut sql = format!("BEGIN; INSERT INTO o(customer, at) VALUES ({customer}, '2026');");
        for _ in 0..4 {
            let product = key(random);
            sql += &format!("INSERT INTO i(o, product) VALUES (last_insert_rowid(), {product});");
        }
        sql + "COMMIT;"
    });
    [
        ("sequential insert", sequential, 1.1),
        ("UUID key insert", uuid, 2.2),
        ("order", order, 1.1),
    ]
}

/// What a transaction costs in the log is what decides about network and disk.
#[test]
fn a_transaction_costs_about_as_much_as_its_sql() {
    for (what, (sql, stored), limit) in updates().into_iter().chain(inserts()) {
        println!("{what}: {sql:.0} bytes of SQL, {stored:.0} stored");
        assert!(stored <= limit * sql, "{what}: {sql:.0} and {stored:.0}");
    }
}

/// Versions of a page that have something in common, or nothing.
fn versions(random: &mut Random, size: usize) -> (Vec<u8>, Vec<u8>) {
    let alphabet = random.pick(&[2, 16, 256]);
    let byte = |random: &mut Random| u8::try_from(random.below(alphabet)).unwrap();
    let old: Vec<u8> = (0..size).map(|_| byte(random)).collect();
    let mut new = old.clone();
    for _ in 0..random.pick(&[0, 1, 2, 30, 2_000]) {
        let at = random.below(size);
        new[at] = byte(random);
    }
    if random.below(3) == 0 {
        let (from, to) = (random.below(size), random.below(size));
        let length = random.below(size - from.max(to));
        new.copy_within(from..from + length, to);
    }
    (old, new)
}

#[test]
fn any_pages_come_back_and_damage_never_panics() {
    let seed = seed("format");
    let mut random = Random::new(seed);
    for round in 0..300 {
        let size = random.pick(&[512, 4096, 65_536]);
        let count = 1 + random.below(if size > 4096 { 2 } else { PAGES_MAX });
        let pages: Vec<_> = (0..count).map(|_| versions(&mut random, size)).collect();
        let _ = round_trip(&pages);
        let borrowed: Vec<(&[u8], &[u8])> = pages.iter().map(|(a, b)| (&a[..], &b[..])).collect();
        let stored = patch::encode(&borrowed);
        let olds: Vec<Vec<u8>> = pages.iter().map(|(old, _)| old.clone()).collect();
        let cut = random.below(stored.len());
        assert!(
            patch::apply(&mut olds.clone(), &stored[..cut]).is_err(),
            "{round}"
        );
        let longer = [&stored[..], &[0]].concat();
        assert!(patch::apply(&mut olds.clone(), &longer).is_err(), "{round}");
        let mut flipped = stored.clone();
        flipped[random.below(stored.len())] ^= 1 << random.below(8);
        // What comes of it is another page; the hash of the database tells.
        let _ = patch::apply(&mut olds.clone(), &flipped);
    }
}

#[test]
fn the_layout_is_this_one() {
    let old = vec![0; 512];
    let mut new = old.clone();
    new[3] = 7;
    new[5] = 8;
    new[300..304].fill(9);
    let stored = patch::encode(&[(&old, &new)]);
    // Plain, two runs: after 3 bytes 3, then after 294 bytes 4.
    let golden = [0, 2, 3, 6, 7, 0, 8, 0xa6, 2, 8, 9, 9, 9, 9];
    assert_eq!(stored, golden);
    // Pointers that follow one that was inserted, and those that follow one that was deleted.
    let old: Vec<u8> = (0..=250).cycle().take(512).collect();
    let mut new = old.clone();
    new.copy_within(20..40, 22);
    new[20..22].fill(0xaa);
    new.copy_within(102..200, 100);
    let golden = [0, 3, 20, 4, 0xaa, 0xaa, 0, 41, 5, 58, 197, 1, 4];
    let stored = patch::encode(&[(&old, &new)]);
    assert_eq!(stored, golden);
    let mut pages = [old];
    patch::apply(&mut pages, &stored).unwrap();
    assert!(pages[0] == new);
    let old = vec![0; 512];
    for (bytes, why) in [
        (&[][..], "nothing there"),
        (&[2, 0], "unknown form"),
        (&[0], "cut short"),
        (&[0, 0x80, 0], "a number with more bytes than it needs"),
        (&[0, 0x80, 0x80, 0x80], "a number is too large"),
        (&[0, 1, 0, 0], "a run outside the page"),
        (&[0, 1, 0, 1, 2], "a run outside the page"),
        (&[0, 1, 0xff, 3, 4, 1, 1], "a run outside the page"),
        (&[0, 1, 0, 4, 1], "a run is cut short"),
        (&[0, 1, 0, 5], "cut short"),
        (&[0, 1, 0, 5, 3], "moved from outside the page"),
        (&[0, 1, 0xfe, 3, 5, 2], "moved from outside the page"),
        (&[0, 0, 0], "bytes behind the last patch"),
        (&[1, 0, 0], "cannot be decompressed"),
    ] {
        let error = patch::apply(&mut [old.clone()], bytes).unwrap_err();
        assert_eq!(error.to_string(), format!("patches: {why}"));
    }
    // A frame that claims to be larger than any patch of a page.
    // RFC 8878: a window of 2 MiB, and a block that is one byte repeated 128 Ki times.
    let block: u32 = (128 << 10) << 3 | 1 << 1 | 1;
    let bomb = [&[1, 0, 0x58][..], &block.to_le_bytes()[..3], &[0]].concat();
    let error = patch::apply(&mut [old], &bomb).unwrap_err();
    assert_eq!(error.to_string(), "patches: cannot be decompressed");
}
