//! Every endpoint with every method by every kind of caller. The expectations come from the table
//! of routes; that the table says what rqlite says is checked against a list of its own.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use wal_tests::cluster::{Formation, ProcessCluster};
use wallaby::http::routes::{ROUTES, Route};
use wallaby::node::Permission;

use crate::raw::{Raw, basic, call};
use crate::users::{UsersFile, as_user, user};

const METHODS: [&str; 6] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"];
const CHALLENGE: Option<&str> = Some("Basic realm=\"rqlite\"");

/// rqlite's permissions by path, and ours.
const NEEDED: [(&str, &[&str]); 20] = [
    ("/", &[]),
    ("/boot", &["load"]),
    ("/console", &["ui"]),
    ("/db/backup", &["backup"]),
    ("/db/execute", &["execute"]),
    ("/db/load", &["load"]),
    ("/db/query", &["query"]),
    ("/db/request", &["execute", "query"]),
    ("/db/sql", &["query"]),
    ("/debug/pprof", &["status"]),
    ("/debug/vars", &["status"]),
    ("/leader", &["leader-ops"]),
    ("/licenses", &["status"]),
    ("/nodes", &["status"]),
    ("/readyz", &["ready"]),
    ("/reap", &["snapshot"]),
    ("/remove", &["remove"]),
    ("/snapshot", &["snapshot"]),
    ("/status", &["status"]),
    ("/wallaby/image", &["backup"]),
];

#[test]
fn the_table_of_routes_asks_for_the_permissions_that_rqlite_asks_for() {
    let needed = |route: &Route| {
        let names = route.permissions.iter().map(|permission| permission.name());
        (route.path, names.collect::<BTreeSet<_>>())
    };
    let table: BTreeSet<_> = ROUTES.iter().map(needed).collect();
    for (path, names) in NEEDED {
        let names = names.iter().copied().collect();
        assert!(table.contains(&(path, names)), "{path}: {table:?}");
    }
    // A route that is new here needs a line above.
    let listed = |route: &&Route| !NEEDED.iter().any(|(path, _)| *path == route.path);
    let unlisted: Vec<_> = ROUTES
        .iter()
        .filter(listed)
        .map(|route| route.path)
        .collect();
    assert!(unlisted.is_empty(), "{unlisted:?}");
}

/// Calls every route with every method and these headers, as somebody with these permissions.
fn check(address: &str, who: &str, headers: &[&str], granted: &[Permission]) {
    for route in &ROUTES {
        let is_granted = route
            .permissions
            .iter()
            .all(|needed| granted.contains(needed));
        for method in METHODS {
            let line = format!("{method} {}", route.path);
            let answer = call(address, &line, headers);
            let is_served = route.methods.is_empty() || route.methods.contains(&method);
            let about = format!("{line} by {who}: {}", answer.status);
            match (is_granted, is_served) {
                (false, _) => refused(&answer, 401, route, &about),
                (true, false) => refused(&answer, 405, route, &about),
                (true, true) => assert!(!matches!(answer.status, 401 | 403 | 405 | 421), "{about}"),
            }
            assert_eq!(answer.header("www-authenticate"), CHALLENGE, "{about}");
        }
    }
}

fn refused(answer: &Raw, status: u16, route: &Route, about: &str) {
    assert_eq!(answer.status, status, "{about}");
    assert!(answer.body.is_empty(), "{about}: {}", answer.text());
    let json = Some("application/json; charset=utf-8").filter(|_| route.is_json);
    assert_eq!(answer.header("content-type"), json, "{about}");
}

fn everything() -> Vec<Permission> {
    Permission::ALL
        .iter()
        .map(|&(permission, _)| permission)
        .collect()
}

/// A single node with these users; it is up when somebody may ask whether it is ready.
fn node(file: &UsersFile, header: &str) -> ProcessCluster {
    let mut cluster = ProcessCluster::prepare(1, &Formation::Join, &["-auth", file.text()]);
    cluster.start_node(0);
    cluster.wait("the node to be ready", |cluster| {
        let address = cluster.address(0);
        // Refused while the process starts.
        std::net::TcpStream::connect(address).map_err(|error| error.to_string())?;
        match call(address, "GET /readyz?sync", &[header]) {
            answer if answer.status == 200 => Ok(()),
            answer => Err(format!("{} {}", answer.status, answer.text())),
        }
    });
    cluster
}

#[test]
fn every_caller_reaches_what_his_permissions_say_and_nothing_else() {
    let mut users = vec![user("nobody", &[]), user("almighty", &["all"])];
    let only = |name: &str| format!("only-{name}");
    users.extend(
        Permission::ALL
            .iter()
            .map(|(_, name)| user(&only(name), &[name])),
    );
    let file = UsersFile::new(&Value::from(users));
    let cluster = node(&file, &as_user("almighty"));
    let address = cluster.address(0);
    check(address, "a caller without credentials", &[], &[]);
    let wrong = basic("almighty", "wrong");
    check(address, "a wrong password", &[&wrong], &[]);
    let unknown = basic("unknown", "almighty-secret");
    check(address, "an unknown user", &[&unknown], &[]);
    check(
        address,
        "a user without permissions",
        &[&as_user("nobody")],
        &[],
    );
    for &(permission, name) in &Permission::ALL {
        let name = only(name);
        check(address, &name, &[&as_user(&name)], &[permission]);
    }
    check(
        address,
        "a user with all",
        &[&as_user("almighty")],
        &everything(),
    );
    for line in ["OPTIONS /db/execute", "OPTIONS /nowhere"] {
        let answer = call(address, line, &[]);
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{line}");
        assert_eq!(answer.header("www-authenticate"), CHALLENGE, "{line}");
        let allowed = answer.header("access-control-allow-headers");
        assert_eq!(allowed, Some("Content-Type, Authorization"), "{line}");
        let credentials = answer.header("access-control-allow-credentials");
        assert_eq!(credentials, Some("true"), "{line}");
    }
    assert_eq!(call(address, "GET /nowhere", &[]).status, 404);
    let status = call(
        address,
        "GET /status?key=http.auth",
        &[&as_user("almighty")],
    );
    assert_eq!(status.text(), "\"enabled\"");
    cluster.assert_healthy_logs();
}

#[test]
fn what_everybody_may_do_needs_no_credentials() {
    let users = |everybody: &[&str], marker: &str| {
        json!([
            {"username": "*", "perms": everybody},
            user(marker, &["ready", "status"]),
            user("half", &["execute"]),
        ])
    };
    let file = UsersFile::new(&users(&[], "first"));
    let mut cluster = node(&file, &as_user("first"));
    let address = cluster.address(0).to_owned();
    // A new file counts as soon as its own user does. The file before gives everybody one
    // permission, so it cannot be mistaken for the new one, whose user has two.
    let replace = |cluster: &mut ProcessCluster, everybody: &str| {
        file.replace(&users(&[everybody], everybody).to_string());
        let header = as_user(everybody);
        cluster.wait("the users to change", |cluster| {
            let asked = |line| call(cluster.address(0), line, &[&header]).status;
            match (asked("GET /readyz?noleader"), asked("GET /status")) {
                (200, 200) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    };
    for &(permission, name) in &Permission::ALL {
        replace(&mut cluster, name);
        let who = format!("everybody with {name}");
        check(&address, &who, &[], &[permission]);
        check(&address, &who, &[&basic("unknown", "x")], &[permission]);
    }
    // What everybody may do and what a user may do add up.
    replace(&mut cluster, "query");
    let both = [Permission::Execute, Permission::Query];
    check(
        &address,
        "a user beside everybody",
        &[&as_user("half")],
        &both,
    );
    replace(&mut cluster, "all");
    check(&address, "everybody with all", &[], &everything());
    cluster.assert_healthy_logs();
}
