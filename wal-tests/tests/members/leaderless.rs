//! Requests that find no leader: they are held, and served once when there is one.

use std::time::Duration;

use wal_tests::client::{Client, Outcome};
use wal_tests::cluster::{Formation, ProcessCluster};

use crate::write;

fn three() -> ProcessCluster {
    let cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    write(&cluster, cluster.address(0), "CREATE TABLE t(v UNIQUE)");
    cluster
}

fn insert(row: &str) -> String {
    format!("INSERT INTO t VALUES('{row}')")
}

fn rows(cluster: &ProcessCluster, row: &str) -> u64 {
    let sql = format!("SELECT count(*) FROM t WHERE v = '{row}'");
    let found = cluster
        .client()
        .query(cluster.address(0), "linearizable", &sql);
    found.unwrap()[0][0].as_u64().unwrap()
}

#[test]
fn a_write_without_a_leader_waits_for_one_and_is_done_once() {
    let mut cluster = three();
    let leader = cluster.wait_leader();
    let [left, other] = [1, 2].map(|next| (leader + next) % 3);
    cluster.kill(leader);
    cluster.kill(other);
    let address = cluster.address(left).to_owned();
    let impatient = Client::new(Duration::from_millis(500));
    cluster.wait("the node that is left to miss its leader", |_| {
        let answer = impatient.get(&address, "/readyz?timeout=500ms");
        let answer = answer.map_err(|error| error.to_string())?;
        let says = answer.body.contains("leader does not exist");
        says.then_some(()).ok_or(answer.body)
    });
    let (at, sql) = (address.clone(), insert("patient"));
    let held = std::thread::spawn(move || {
        let patient = Client::new(Duration::from_secs(60));
        patient.execute_sql(&at, &sql)
    });
    // Who does not wait that long is told that nothing was done.
    match impatient.execute_sql(&address, &insert("impatient")) {
        Outcome::NotCommitted(why) => {
            assert!(why.contains("status 503: leader not found"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!held.is_finished(), "nobody leads");
    cluster.start_node(other);
    let _ = held.join().unwrap().expect_success();
    cluster.start_node(leader);
    cluster.wait_all_ready();
    assert_eq!(
        [rows(&cluster, "patient"), rows(&cluster, "impatient")],
        [1, 0]
    );
    cluster.assert_healthy_logs();
}

#[test]
fn a_write_at_the_moment_at_which_the_leader_dies_needs_no_second_try() {
    let mut cluster = three();
    let mut unknown = 0;
    for round in 0..3 {
        let leader = cluster.wait_leader();
        let address = cluster.address((leader + 1) % 3).to_owned();
        let row = format!("round {round}");
        cluster.kill(leader);
        let patient = Client::new(Duration::from_secs(60));
        let outcome = patient.execute_sql(&address, &insert(&row));
        cluster.start_node(leader);
        cluster.wait_all_ready();
        match outcome {
            Outcome::Answered(answer) if answer.error().is_none() => {
                assert_eq!(rows(&cluster, &row), 1, "{row} was acknowledged");
            }
            // It was on its way to the leader, which took what became of it to its grave.
            Outcome::Unknown(why) if why.contains("status 409: outcome unknown") => {
                assert!(rows(&cluster, &row) <= 1);
                unknown += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    println!("{unknown} of 3 writes reached the leader that was dead already");
    cluster.assert_healthy_logs();
}
