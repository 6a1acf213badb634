//! What a node passes on to the leader besides statements: whole batches of writes, and changes of
//! the cluster, each on behalf of its caller.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use wal_tests::linked::{LinkedCluster, request};
use wallaby::node::{
    AdministrationError, Authority, Credentials, Level, Permission, Refusal, Shape, Value,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Knows one user, who may only write. Nodes may join.
#[derive(Debug)]
struct WritersOnly;

impl Authority for WritersOnly {
    fn permits_at_once(&self, caller: Option<&Credentials>, all: &[Permission]) -> Option<bool> {
        Some(self.permits(caller, all))
    }

    fn permits(&self, caller: Option<&Credentials>, all: &[Permission]) -> bool {
        let is_writer =
            caller.is_some_and(|caller| caller.username == "writer" && caller.password == "w");
        all.iter().all(|permission| match permission {
            Permission::Execute => is_writer,
            // The nodes themselves have to find each other.
            Permission::Join => true,
            _ => false,
        })
    }
}

fn caller(password: &str) -> Credentials {
    Credentials {
        username: "writer".to_owned(),
        password: password.to_owned(),
    }
}

#[test]
fn errands_need_the_permission_of_their_caller_on_the_leader() {
    let cluster = LinkedCluster::start(3, 0, |options| {
        options.authority = Some(Arc::new(WritersOnly));
    });
    let leader = cluster.wait_leader();
    cluster.commit(leader, &["CREATE TABLE t(v)"]);
    let follower = cluster.node((leader + 1) % 3);
    let batch = || vec![request(&["INSERT INTO t VALUES(1)"], Shape::Execute)];
    let node = follower.clone();
    let outcomes = cluster.join(cluster.spawn(async move {
        [
            node.execute_all(batch(), PATIENCE, None).await,
            node.execute_all(batch(), PATIENCE, Some(caller("x"))).await,
            node.execute_all(batch(), PATIENCE, Some(caller("w"))).await,
        ]
    }));
    let refused = Err(Refusal::NotPermitted("Execute".to_owned()));
    assert_eq!(outcomes[0], refused);
    assert_eq!(outcomes[1], refused);
    let brief = outcomes[2].as_ref().unwrap()[0].as_ref().unwrap();
    assert_eq!((brief.failed, brief.error.as_deref()), (0, None));
    let (removed, moved) = cluster.join(cluster.spawn(async move {
        let writer = || Some(caller("w"));
        let name = "node1".to_owned();
        (
            follower
                .remove_member(name, false, PATIENCE, writer())
                .await,
            follower.step_down(None, true, PATIENCE, writer()).await,
        )
    }));
    let refused = |what: &str| {
        let refusal = Refusal::NotPermitted(what.to_owned());
        Err(AdministrationError::Refused(refusal))
    };
    assert_eq!(removed, refused("remove node"));
    assert_eq!(moved, refused("stepdown"));
    assert_eq!(
        moved.unwrap_err().to_string(),
        "remote stepdown not authorized"
    );
    assert_eq!(cluster.leader(), Some(leader), "nothing was done");
}

#[test]
fn each_write_of_a_batch_stands_for_itself_and_they_keep_their_order() {
    let cluster = LinkedCluster::start(3, 0, |_| {});
    let leader = cluster.wait_leader();
    cluster.commit(
        leader,
        &["CREATE TABLE t(id INTEGER PRIMARY KEY, v UNIQUE)"],
    );
    let batch: Vec<_> = [
        &["INSERT INTO t(v) VALUES('a')"][..],
        &[
            "INSERT INTO t(v) VALUES('a')",
            "INSERT INTO t(v) VALUES('b')",
        ],
        &["PRAGMA journal_mode=DELETE", "INSERT INTO t(v) VALUES('c')"],
        &["VACUUM"],
        &["INSERT INTO missing VALUES(1)", "nonsense"],
        &["INSERT INTO t(v) VALUES('d')"],
    ]
    .into_iter()
    .map(|sql| request(sql, Shape::Execute))
    .collect();
    for node in [(leader + 1) % 3, leader] {
        cluster.commit(leader, &["DELETE FROM t"]);
        let (node, batch) = (cluster.node(node), batch.clone());
        let run = cluster.spawn(async move { node.execute_all(batch, PATIENCE, None).await });
        let briefs: Vec<_> = cluster
            .join(run)
            .unwrap()
            .into_iter()
            .map(|brief| brief.map(|brief| (brief.refused, brief.failed)))
            .collect();
        let expected = [
            (false, 0),
            (false, 1),
            (true, 0),
            (false, 0),
            (false, 2),
            (false, 0),
        ];
        assert_eq!(briefs, expected.map(Ok));
        let select = "SELECT group_concat(v, '') FROM (SELECT v FROM t ORDER BY id)";
        let served = cluster
            .query(leader, Level::Strong, select, PATIENCE)
            .unwrap();
        let wallaby::node::Answer::Rows(rows) = &served.reply.outcomes[0].answer else {
            panic!("{served:?}");
        };
        assert_eq!(rows.values, [[Value::Text(b"abd".to_vec())]]);
    }
    let _ = cluster.assert_identical();
}
