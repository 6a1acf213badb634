//! Changes of the members whose leader goes away between the two entries, and what arrives late.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

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

#[test]
fn a_question_to_join_that_was_never_answered_undoes_no_removal() {
    // Asked first, and answers nobody: the cluster exists long before the question is given up.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let mut cluster = LinkedCluster::start(3, 0, |options| {
        if options.name.as_deref() == Some("node3") {
            options.join.insert(0, address.clone());
        }
    });
    // It hears of its removal, and is not the one that leads.
    let leader = cluster.wait_leader();
    if leader == 2 {
        let node = cluster.node(2);
        let hand_over = cluster.spawn(async move {
            node.step_down(None, true, Duration::from_secs(5), None)
                .await
        });
        assert!(cluster.join(hand_over).is_ok());
    }
    let node = cluster.node(0);
    let removal = cluster.spawn(async move {
        let name = "node3".to_owned();
        node.remove_member(name, false, Duration::from_secs(10), None)
            .await
    });
    cluster.join(removal).unwrap();
    cluster.wait("the removed node to know", |cluster| {
        let sentence = cluster.status(2).removed;
        sentence.map(drop).ok_or_else(|| "it does not".to_owned())
    });
    // Longer than the question would wait for its answer, and the next one for its turn.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(18) {
        let members = cluster.status(0).members;
        assert_eq!(members.len(), 2, "{members:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    cluster.stop(2);
}
