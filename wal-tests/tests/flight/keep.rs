//! Entries of the same term that come between a group and its fate, and must leave it alone.

use wal_tests::linked::{LinkedCluster, PATIENCE};
use wal_tests::links::Rule;
use wallaby::node::Level;

use crate::fixture::{count, others, stable, texts};

/// Cuts all links between the three voters, so that there is no quorum and no election.
fn without_quorum(links: &wal_tests::links::Links, leader: usize, rule: Rule) {
    for other in others(leader) {
        links.set_pair(leader, other, rule);
    }
    let [one, other] = others(leader);
    links.set_pair(one, other, Rule::Cut);
}

#[test]
fn a_strong_read_and_a_joining_node_leave_a_waiting_group_alone() {
    let mut cluster = LinkedCluster::start(3, 1, stable);
    let leader = cluster.wait_leader();
    let _ = cluster.commit(leader, &["CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)"]);
    let (before, term) = {
        let status = cluster.status(leader);
        (status.last_log_index, status.term)
    };
    let wait_end = |cluster: &LinkedCluster, end: u64| {
        cluster.wait("the next entry in the log", |cluster| {
            let found = cluster.status(leader).last_log_index;
            (found >= end)
                .then_some(())
                .ok_or_else(|| format!("{found} of {end}"))
        });
    };
    without_quorum(cluster.links(), leader, Rule::Cut);
    // In front of the group, so they are applied while it waits; and one behind it.
    let sql = "SELECT count(*) || '' FROM t";
    let first = cluster.begin_query(leader, Level::Strong, sql, PATIENCE);
    wait_end(&cluster, before + 1);
    cluster.start_node(3);
    wait_end(&cluster, before + 2);
    let flight = cluster.begin(leader, &["INSERT INTO t(v) VALUES('waits')"], PATIENCE);
    wait_end(&cluster, before + 3);
    let last = cluster.begin_query(leader, Level::Strong, sql, PATIENCE);
    wait_end(&cluster, before + 4);
    for pending in [&first, &flight, &last] {
        assert!(!pending.is_finished());
    }
    // Only the leader's links heal: the followers cannot elect anybody.
    for other in others(leader) {
        cluster.links().set_pair(leader, other, Rule::Open);
    }
    let served = cluster.outcome(flight).unwrap();
    assert_eq!(served.raft_index, Some(before + 3));
    assert!(cluster.outcome(first).is_ok());
    let last = cluster.outcome(last).unwrap();
    assert_eq!(texts(&last, 0), ["1"], "it is behind the group in the log");
    cluster.heal();
    cluster.wait("the fourth node to vote", |cluster| {
        let members = cluster.status(leader).members;
        let voters = members.iter().filter(|member| member.voter).count();
        (voters == 4)
            .then_some(())
            .ok_or_else(|| format!("{voters}"))
    });
    assert_eq!(cluster.status(leader).term, term, "there was no election");
    assert_eq!(count(&cluster.assert_identical(), "waits"), 1);
}

#[test]
fn a_group_is_committed_when_the_quorum_answers_late() {
    let cluster = crate::fixture::three(stable);
    let leader = cluster.wait_leader();
    for round in 0..5 {
        let sql = format!("INSERT INTO t(v) VALUES('late {round}')");
        let flight = cluster.take_off(leader, &[&sql], |links| {
            without_quorum(links, leader, Rule::Hold);
        });
        let waiting: Vec<_> = (0..3)
            .map(|_| cluster.begin_query(leader, Level::Strong, "SELECT count(*) FROM t", PATIENCE))
            .collect();
        for other in others(leader) {
            cluster.links().set_pair(leader, other, Rule::Open);
        }
        let _ = cluster.outcome(flight).unwrap();
        for strong in waiting {
            let _ = cluster.outcome(strong).unwrap();
        }
    }
    cluster.heal();
    let database = cluster.assert_identical();
    for round in 0..5 {
        assert_eq!(count(&database, &format!("late {round}")), 1);
    }
}
