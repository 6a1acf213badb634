//! A change of the members whose leader goes away between its two entries.

use std::time::Duration;

use wal_tests::linked::LinkedCluster;
use wal_tests::links::Rule;

#[test]
fn the_next_leader_finishes_a_change_that_was_left_half_done() {
    let mut cluster = LinkedCluster::start(5, 0, |_| {});
    let _ = cluster.commit(0, &["CREATE TABLE t(v)"]);
    cluster.wait_converged();
    let leader = cluster.wait_leader();
    let others: Vec<usize> = (0..5).filter(|&node| node != leader).collect();
    let (removed, away) = (others[0], &others[2..]);
    // The first entry needs a majority of the new members too, and the leader reaches but one of
    // them: it is in the logs of the leader, that one, and the node that is to go.
    away.iter()
        .for_each(|&node| cluster.links().set_around(node, Rule::Cut));
    let (node, name) = (cluster.node(leader), format!("node{}", removed + 1));
    let removal = cluster.spawn(async move {
        node.remove_member(name, true, Duration::from_millis(500), None)
            .await
    });
    assert!(cluster.join(removal).is_err(), "it is not complete");
    let index = |cluster: &LinkedCluster, node| cluster.status(node).membership_index;
    cluster.wait("the first entry to arrive", |cluster| {
        let first = index(cluster, leader);
        let reached = [removed, others[1]].map(|node| index(cluster, node));
        let is_there = reached == [first, first] && first > index(cluster, away[0]);
        is_there.then_some(()).ok_or(format!("{first} {reached:?}"))
    });
    let first = index(&cluster, leader);
    cluster.links().set_around(leader, Rule::Cut);
    for &node in away {
        for &other in others.iter().filter(|&&other| other != node) {
            cluster.links().set_pair(node, other, Rule::Open);
        }
    }
    // Three of the four that stay are enough, whatever has become of the one that led.
    cluster.wait("the change to be finished", |cluster| {
        for &node in &others[1..] {
            let status = cluster.status(node);
            let voters = status.members.iter().filter(|member| member.voter).count();
            let is_done = voters == 4 && status.members.len() == 4;
            if !is_done || status.membership_index <= first {
                return Err(format!("node {} has {:?}", node + 1, status.members));
            }
        }
        Ok(())
    });
    cluster.heal();
    cluster.wait("the removed node to know", |cluster| {
        let sentence = cluster.status(removed).removed;
        sentence.map(drop).ok_or_else(|| "it does not".to_owned())
    });
    cluster.stop(removed);
    cluster.wait_leader();
    let _ = cluster.commit(leader, &["INSERT INTO t VALUES(1)"]);
    cluster.wait_converged();
}
