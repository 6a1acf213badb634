//! Requests that web pages make a browser send, and those of everybody else.

use serde_json::json;
use wal_tests::cluster::{Formation, ProcessCluster};

use crate::raw::{Raw, call, connect, exchange};
use crate::users::{UsersFile, as_user, user, watchable};

const TEXT: &str = "Content-Type: text/plain";

fn execute(address: &str, headers: &[&str], sql: &str) -> Raw {
    let stream = connect(address);
    exchange(stream, address, "POST /db/execute", headers, sql.as_bytes()).unwrap()
}

#[test]
fn a_page_of_another_site_cannot_write_through_a_browser() {
    let cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    let address = cluster.address(0);
    let origin = format!("Origin: http://{address}");
    let sql = "CREATE TABLE IF NOT EXISTS t(v)";
    // A plain client, and a page that this node could have served.
    assert_eq!(execute(address, &[TEXT], sql).status, 200);
    assert_eq!(execute(address, &[TEXT, &origin], sql).status, 200);
    for marks in [
        &["Origin: https://evil.example"][..],
        &["Origin: null"],
        &["Origin: http://localhost:3000", "Sec-Fetch-Site: same-site"],
        &["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"],
    ] {
        let headers = [&[TEXT], marks].concat();
        let answer = execute(address, &headers, "DROP TABLE t");
        assert_eq!(answer.status, 403, "{marks:?}");
        assert!(
            answer.text().contains("-http-allow-origin"),
            "{}",
            answer.text()
        );
        assert_eq!(answer.header("access-control-allow-origin"), None);
        let read = call(address, "GET /db/query?q=SELECT+1", marks);
        assert_eq!(read.status, 403, "{marks:?}");
        let preflight = call(address, "OPTIONS /db/execute", marks);
        assert_eq!(preflight.status, 403, "{marks:?}");
    }
    let count = call(address, "GET /db/query?q=SELECT+count(*)+AS+n+FROM+t", &[]);
    let expected = r#"{"results":[{"columns":["n"],"types":["integer"],"values":[[0]]}]}"#;
    assert_eq!(count.text(), expected);
    cluster.assert_healthy_logs();
}

#[test]
fn on_loopback_a_foreign_name_is_not_answered() {
    let flags = ["-http-allow-host", "db.example,other.example:80"];
    let cluster = ProcessCluster::start(1, &Formation::Join, &flags);
    let address = cluster.address(0);
    let port = address.rsplit_once(':').unwrap().1;
    for (host, status) in [
        (format!("127.0.0.1:{port}"), 200),
        (format!("localhost:{port}"), 200),
        ("localhost".to_owned(), 200),
        ("[::1]:4001".to_owned(), 200),
        ("10.1.2.3".to_owned(), 200),
        ("db.example:4001".to_owned(), 200),
        ("other.example".to_owned(), 200),
        (format!("evil.example:{port}"), 421),
        ("127.0.0.1.evil.example".to_owned(), 421),
    ] {
        let header = format!("Host: {host}");
        let answer = call(address, "GET /db/query?q=SELECT+1", &[&header]);
        assert_eq!(answer.status, status, "{host}: {}", answer.text());
        if status == 421 {
            assert!(
                answer.text().contains("-http-allow-host"),
                "{}",
                answer.text()
            );
        }
    }
    // A rebound name makes browser and page agree on the origin; the name itself gives it away.
    let rebound = [
        "Host: evil.example:4001",
        "Origin: http://evil.example:4001",
    ];
    assert_eq!(call(address, "POST /db/execute", &rebound).status, 421);
    cluster.assert_healthy_logs();
}

#[test]
fn on_an_open_address_only_browsers_are_held_to_known_names() {
    let mut cluster = ProcessCluster::prepare(1, &Formation::Join, &[]);
    let address = cluster.address(0).to_owned();
    let port = address.rsplit_once(':').unwrap().1.to_owned();
    let arguments = cluster.arguments(0);
    let flag = arguments.iter().position(|flag| flag == "-http-addr");
    arguments[flag.unwrap() + 1] = format!("0.0.0.0:{port}");
    let advertised = ["-http-adv-addr", &format!("db.example:{port}")].map(str::to_owned);
    arguments.splice(0..0, advertised);
    cluster.start_all(&Formation::Join);
    let service = "Host: wallaby.default.svc.cluster.local:4001";
    let known = format!("Host: db.example:{port}");
    let read = "GET /db/query?q=SELECT+1";
    let mark = "Sec-Fetch-Site: same-origin";
    assert_eq!(call(&address, read, &[service]).status, 200);
    assert_eq!(
        call(&address, read, &[service, "Sec-Fetch-Mode: cors"]).status,
        200
    );
    assert_eq!(call(&address, read, &[service, mark]).status, 421);
    assert_eq!(call(&address, read, &[&known, mark]).status, 200);
    cluster.wait_log(0, "HTTP is neither encrypted nor authenticated");
    cluster.assert_healthy_logs();
}

#[test]
fn an_allowed_origin_may_use_the_node() {
    let file = UsersFile::new(&json!([watchable(), user("bob", &["query"])]));
    let app = "https://app.example";
    let (from_app, from_other) = (format!("Origin: {app}"), "Origin: https://other.example");
    let read = "GET /db/query?q=SELECT+1";
    let bob = as_user("bob");
    for (allowed, credentials, other) in [(app, Some("true"), 403), ("*", None, 200)] {
        let flags = ["-http-allow-origin", allowed, "-auth", file.text()];
        let cluster = ProcessCluster::start(1, &Formation::Join, &flags);
        let address = cluster.address(0);
        let preflight = call(address, "OPTIONS /db/execute", &[&from_app]);
        assert_eq!(preflight.status, 200);
        for answer in [&preflight, &call(address, read, &[&from_app, &bob])] {
            assert_eq!(answer.status, 200);
            let origin = answer.header("access-control-allow-origin");
            assert_eq!(origin, Some(allowed));
            // Never credentials that the browser remembers for any page there is.
            let with = answer.header("access-control-allow-credentials");
            assert_eq!(with, credentials, "{allowed}");
        }
        assert_eq!(call(address, read, &[from_other, &bob]).status, other);
        let shown = call(address, "GET /status?key=http.allow_origin", &[]);
        assert_eq!(shown.text(), json!(allowed).to_string());
        cluster.assert_healthy_logs();
    }
}
