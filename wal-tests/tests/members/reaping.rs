//! The leader removes members that are silent for too long, and never a majority of them.

use wal_tests::cluster::{Formation, ProcessCluster};

use crate::{add, status, wait_roles, write};

#[test]
fn silent_members_are_removed_each_after_its_own_time_and_never_a_majority() {
    let flags = [
        "-raft-reap-node-timeout=4s",
        "-raft-reap-read-only-node-timeout=3s",
    ];
    let mut cluster = ProcessCluster::prepare(4, &Formation::Join, &flags);
    add(&mut cluster, 3, &["-raft-non-voter"]);
    cluster.start_all(&Formation::Join);
    let all = [
        ("node1", "voter"),
        ("node2", "voter"),
        ("node3", "voter"),
        ("node4", "replica"),
    ];
    wait_roles(&mut cluster, &[0, 1, 2, 3], &all);
    assert_eq!(status(&cluster, 0, "store.reap_timeout"), "4s");
    assert_eq!(status(&cluster, 0, "store.reap_read_only_timeout"), "3s");
    write(&cluster, cluster.address(0), "CREATE TABLE t(v)");
    cluster.kill(3);
    wait_roles(&mut cluster, &[0, 1, 2], &all[..3]);
    cluster.kill(2);
    wait_roles(&mut cluster, &[0, 1], &all[..2]);
    let counted = cluster
        .client()
        .json(cluster.address(0), "/debug/vars?key=store");
    let reaped = counted.unwrap()["store"]["nodes_reaped_ok"].clone();
    assert_eq!(reaped, 2, "node1 led all the time");
    // Of two, one is no majority: it is silent, and it stays.
    cluster.kill(1);
    std::thread::sleep(std::time::Duration::from_secs(6));
    cluster.start_node(1);
    cluster.wait_all_ready();
    wait_roles(&mut cluster, &[0, 1], &all[..2]);
    write(&cluster, cluster.address(1), "INSERT INTO t VALUES(1)");
    // Who joins a leader of long standing is not silent because nothing was heard of it before.
    cluster.start_node(3);
    let with_replica = [all[0], all[1], all[3]];
    wait_roles(&mut cluster, &[0, 1, 3], &with_replica);
    std::thread::sleep(std::time::Duration::from_secs(2));
    wait_roles(&mut cluster, &[0, 1, 3], &with_replica);
    cluster.assert_healthy_logs();
}
