//! What a follower permits, the leader has to permit too.

use serde_json::{Value, json};
use wal_tests::cluster::{Formation, ProcessCluster};

use crate::raw::post;
use crate::users::{UsersFile, as_user, user, watchable};

#[test]
fn a_forwarded_request_is_checked_on_the_leader_again() {
    // Each node has a user that may write and read there only, and one that may everywhere.
    let file = |node: usize| {
        let mine = format!("only-{node}");
        let mut users = vec![watchable(), user("everywhere", &["execute", "query"])];
        users.extend((0..3).map(|other| user(&format!("only-{other}"), &[])));
        users.push(user(&mine, &["execute", "query"]));
        users.push(user("member", &["join"]));
        UsersFile::new(&Value::from(users))
    };
    let files: Vec<UsersFile> = (0..3).map(file).collect();
    let mut cluster = ProcessCluster::prepare(3, &Formation::Join, &["-join-as", "member"]);
    for (node, file) in files.iter().enumerate() {
        let flags = ["-auth", file.text()].map(str::to_owned);
        cluster.arguments(node).splice(0..0, flags);
    }
    cluster.start_all(&Formation::Join);
    let leader = cluster.wait_leader();
    let follower = (leader + 1) % 3;
    let asked = |node: usize, who: &str, path: &str, sql: &str| {
        let body = json!([sql]).to_string();
        let answer = post(cluster.address(node), path, &[&as_user(who)], &body);
        (answer.status, answer.text())
    };
    let create = "CREATE TABLE IF NOT EXISTS t(v)";
    let (there, here) = (format!("only-{follower}"), format!("only-{leader}"));
    for (path, sql, refusal) in [
        ("/db/execute", create, "remote Execute not authorized\n"),
        ("/db/query", "SELECT 1", "remote query not authorized\n"),
        (
            "/db/query?level=strong",
            "SELECT 1",
            "remote query not authorized\n",
        ),
        (
            "/db/query?level=linearizable",
            "SELECT 1",
            "remote query not authorized\n",
        ),
        (
            "/db/request?level=linearizable",
            "SELECT 1",
            "remote Request not authorized\n",
        ),
        ("/db/request", create, "remote Request not authorized\n"),
        ("/db/request", "SELECT 1", "remote Request not authorized\n"),
    ] {
        let refused = (401, refusal.to_owned());
        assert_eq!(asked(follower, &there, path, sql), refused, "{path}");
        assert_eq!(
            asked(follower, &here, path, sql),
            (401, String::new()),
            "{path}"
        );
        assert_eq!(asked(leader, &here, path, sql).0, 200, "{path}");
        assert_eq!(asked(follower, "everywhere", path, sql).0, 200, "{path}");
    }
    // What the follower answers by itself is its own affair.
    assert_eq!(
        asked(follower, &there, "/db/query?level=none", "SELECT 1").0,
        200
    );
    cluster.assert_healthy_logs();
}
