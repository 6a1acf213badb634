//! A leader that is cut off must not answer from the state that it had.

use std::time::Duration;

use wal_tests::linked::{LinkedCluster, PATIENCE, Pending};
use wal_tests::links::Rule;
use wallaby::node::{Answer, Level, Refusal, Served};

use crate::fixture::{assert_unknown, read, texts, three, unhurried};

/// Requests to the cut-off leader that write nothing in the state that it has.
struct Probes {
    update: Pending,
    constraint: Pending,
    unified: Pending,
}

impl Probes {
    /// `taken` is a row that is gone in the state after; probes sent later need another one.
    fn send(cluster: &LinkedCluster, node: usize, taken: u8) -> Self {
        let update = ["UPDATE t SET v = 'updated' WHERE id = 3"];
        let insert = format!("INSERT INTO t VALUES({taken}, 'again')");
        let unified = [
            "UPDATE t SET v = v WHERE id = 99",
            "SELECT v FROM t WHERE id = 1",
        ];
        Self {
            update: cluster.begin(node, &update, PATIENCE),
            constraint: cluster.begin(node, &[&insert], PATIENCE),
            unified: cluster.begin_unified(node, Level::Weak, &unified, PATIENCE),
        }
    }

    fn finished(&self) -> bool {
        self.update.is_finished() || self.constraint.is_finished() || self.unified.is_finished()
    }

    /// All show the state after, or failed.
    fn check(self, cluster: &LinkedCluster) {
        let written = |served: &Served| match served.reply.outcomes[0].answer {
            Answer::Written { rows_affected, .. } => rows_affected,
            ref other => panic!("{other:?}"),
        };
        if let Ok(served) = cluster.outcome(self.update) {
            assert_eq!(written(&served), 1, "row 3 is there in the state after");
        }
        if let Ok(served) = cluster.outcome(self.constraint) {
            assert_eq!(written(&served), 1, "the row is gone in the state after");
        }
        if let Ok(served) = cluster.outcome(self.unified) {
            assert_eq!(texts(&served, 1), ["new"]);
        }
    }
}

/// Row 1 is `old`, 2 and 4 are taken, 3 is not there; after [`change`] all is different.
fn prepare() -> (LinkedCluster, usize) {
    let cluster = three(unhurried);
    let leader = cluster.wait_leader();
    let _ = cluster.commit(leader, &["INSERT INTO t VALUES(2, 'taken'), (4, 'taken')"]);
    (cluster, leader)
}

fn change(cluster: &LinkedCluster, old: usize) {
    let new = cluster.wait_leader_other_than(old);
    let sql = [
        "UPDATE t SET v = 'new' WHERE id = 1",
        "DELETE FROM t WHERE id IN (2, 4)",
        "INSERT INTO t VALUES(3, 'new')",
    ];
    let _ = cluster.commit(new, &sql);
}

#[test]
fn groups_without_a_delta_are_not_answered_by_a_leader_that_is_cut_off() {
    let (cluster, old) = prepare();
    let grouped = cluster.stage(old, "Grouped");
    cluster.cut_off(old);
    let probes = Probes::send(&cluster, old, 2);
    // While it has its lease, and after.
    cluster.wait("the old leader to execute them", |cluster| {
        match cluster.stage(old, "Grouped") {
            now if now >= grouped + 3 => Ok(()),
            now => Err(format!("{grouped}, {now}")),
        }
    });
    change(&cluster, old);
    let later = Probes::send(&cluster, old, 4);
    cluster.wait("the old leader to execute more", |cluster| {
        match cluster.stage(old, "Grouped") {
            now if now >= grouped + 6 => Ok(()),
            now => Err(format!("{grouped}, {now}")),
        }
    });
    assert!(
        !probes.finished() && !later.finished(),
        "answered from the past"
    );
    cluster.heal();
    probes.check(&cluster);
    later.check(&cluster);
    let _ = cluster.assert_identical();
}

#[test]
fn groups_without_a_delta_behind_a_flight_are_answered_from_the_state_after_it() {
    let (cluster, old) = prepare();
    let flight = cluster.take_off(old, &["INSERT INTO t VALUES(9, 'in flight')"], |links| {
        links.set_around(old, Rule::Cut);
    });
    let probes = Probes::send(&cluster, old, 2);
    change(&cluster, old);
    assert!(!probes.finished());
    cluster.heal();
    assert_unknown(cluster.outcome(flight));
    probes.check(&cluster);
    assert_eq!(
        read(&cluster, old, "SELECT count(*) || '' FROM t WHERE id = 9"),
        ["0"]
    );
    let _ = cluster.assert_identical();
}

#[test]
fn a_leader_that_is_cut_off_confirms_no_read_and_stops_weak_ones() {
    let (cluster, old) = prepare();
    cluster.cut_off(old);
    let sql = "SELECT v FROM t WHERE id = 1";
    let soon = Duration::from_secs(4);
    let linearizable = cluster.begin_query(old, Level::Linearizable, sql, PATIENCE);
    let strong = cluster.begin_query(old, Level::Strong, sql, soon);
    change(&cluster, old);
    // Another leader works, so whatever the old one shows now is stale.
    for level in [Level::Linearizable, Level::Strong] {
        let answer = cluster.query(old, level, sql, soon);
        assert!(
            matches!(answer, Err(Refusal::LeaderNotFound | Refusal::TimedOut(_))),
            "{answer:?}"
        );
    }
    cluster.wait("weak reads to end", |cluster| {
        match cluster.query(old, Level::Weak, sql, Duration::from_millis(200)) {
            Err(_) => Ok(()),
            Ok(served) => Err(format!("{served:?}")),
        }
    });
    assert!(
        cluster.query(old, Level::Weak, sql, soon).is_err(),
        "and they stay refused"
    );
    let local = cluster.query(old, Level::None, sql, soon).unwrap();
    assert_eq!(texts(&local, 0), ["old"], "whatever its age");
    if let Ok(served) = cluster.outcome(strong) {
        panic!("answered while cut off: {served:?}");
    }
    assert!(!linearizable.is_finished());
    cluster.heal();
    let served = cluster.outcome(linearizable).unwrap();
    assert_eq!(texts(&served, 0), ["new"]);
    let weak = cluster.query(old, Level::Weak, sql, PATIENCE).unwrap();
    assert_eq!(
        texts(&weak, 0),
        ["new"],
        "they are served again, by whoever leads"
    );
    let _ = cluster.assert_identical();
}
