//! Clients that take too long, come too many, or ask for too much.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;
use wal_tests::cluster::{Formation, ProcessCluster};

use crate::raw::{call, connect, post};

/// Waits until the server ends a connection, and returns what it sent before.
fn ended(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => answer,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => answer,
        Err(error) => panic!("the connection is still open: {error}"),
    }
}

#[test]
fn slow_headers_and_idle_connections_are_ended_while_others_are_served() {
    let flags = ["-http-header-timeout", "1s", "-http-idle-timeout", "2s"];
    let cluster = ProcessCluster::start(1, &Formation::Join, &flags);
    let address = cluster.address(0);
    let mut slow: Vec<TcpStream> = (0..100).map(|_| connect(address)).collect();
    for stream in &mut slow {
        stream
            .write_all(b"GET /status HTTP/1.1\r\nHost: loc")
            .unwrap();
    }
    let silent: Vec<TcpStream> = (0..100).map(|_| connect(address)).collect();
    // One more byte now and then does not help.
    let begun = Instant::now();
    let mut dripping = connect(address);
    while dripping.write_all(b"G").is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it still drips");
        assert_eq!(call(address, "GET /readyz", &[]).status, 200);
        std::thread::sleep(Duration::from_millis(100));
    }
    for mut stream in slow.into_iter().chain(silent) {
        assert_eq!(ended(&mut stream), b"");
    }
    // A connection that is kept ends only after its answer.
    let mut kept = connect(address);
    let request = format!("GET /readyz?noleader HTTP/1.1\r\nHost: {address}\r\n\r\n");
    kept.write_all(request.as_bytes()).unwrap();
    let answer = String::from_utf8(ended(&mut kept)).unwrap();
    assert!(answer.ends_with("\r\n\r\n[+]node ok"), "{answer}");
    cluster.assert_healthy_logs();
}

#[test]
fn a_statement_may_take_longer_than_the_time_outs_of_connections() {
    let flags = [
        "-http-header-timeout",
        "500ms",
        "-http-idle-timeout",
        "500ms",
    ];
    let cluster = ProcessCluster::start(1, &Formation::Join, &flags);
    let address = cluster.address(0);
    let mut rows = 200_000_u64;
    // Until one runs long enough on this machine; the tenth would count for hours.
    for _ in 0..10 {
        let sql = format!(
            "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < {rows}) \
             SELECT count(*) AS n FROM c"
        );
        let asked = Instant::now();
        let answer = post(address, "/db/query", &[], &json!([sql]).to_string());
        assert_eq!(answer.status, 200, "{}", answer.text());
        if asked.elapsed() > Duration::from_millis(1500) {
            return;
        }
        rows *= 4;
    }
    panic!("no statement took long enough");
}

#[test]
fn when_all_connections_are_taken_the_idle_ones_go() {
    let flags = ["-http-header-timeout", "1s", "-http-idle-timeout", "1h"];
    let flags = [&flags[..], &["-http-max-connections", "20"]].concat();
    let cluster = ProcessCluster::start(1, &Formation::Join, &flags);
    let address = cluster.address(0);
    let held: Vec<TcpStream> = (0..20).map(|_| connect(address)).collect();
    assert_eq!(call(address, "GET /readyz", &[]).status, 200);
    drop(held);
    cluster.assert_healthy_logs();
}

#[test]
fn bodies_share_a_budget() {
    let flags = ["-http-max-body", "1048576", "-http-max-bodies", "1048576"];
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &flags);
    let address = cluster.address(0).to_owned();
    let large = json!([format!("SELECT length('{}') AS n", "x".repeat(700_000))]).to_string();
    let head = format!(
        "POST /db/query HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n",
        large.len()
    );
    // Once these bytes are taken, as many again do not fit beside them. If they come too late, it
    // is they that are refused, and sent again.
    let (mut held, refused) = cluster.wait("the budget to be taken", |_| {
        let mut held = connect(&address);
        held.write_all(head.as_bytes()).unwrap();
        held.write_all(&large.as_bytes()[..600_000]).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let answer = post(&address, "/db/query", &[], &large);
        match answer.status {
            503 => Ok((held, answer.text())),
            status => Err(status.to_string()),
        }
    });
    assert!(
        refused.contains("too many request bodies at a time"),
        "{refused}"
    );
    let small = post(&address, "/db/query", &[], r#"["SELECT 1"]"#);
    assert_eq!(small.status, 200, "{}", small.text());
    held.write_all(&large.as_bytes()[600_000..]).unwrap();
    let answer = String::from_utf8(ended(&mut held)).unwrap();
    assert!(answer.contains(r#""values":[[700000]]"#), "{answer}");
    cluster.wait("the budget to be free", |_| {
        let answer = post(&address, "/db/query", &[], &large);
        if answer.status == 200 {
            Ok(())
        } else {
            Err(answer.status.to_string())
        }
    });
    cluster.assert_healthy_logs();
}

#[test]
fn rows_beyond_the_limit_fail_the_statement_and_nothing_else() {
    let cluster = ProcessCluster::start(1, &Formation::Join, &["-http-max-response", "100000"]);
    let address = cluster.address(0);
    let rows = |count: u32| {
        format!(
            "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < {count}) \
             SELECT n, hex(zeroblob(100)) FROM c"
        )
    };
    let body = json!([rows(10), rows(1_000_000_000)]).to_string();
    for path in ["/db/query", "/db/query?level=none", "/db/request"] {
        let answer = post(address, path, &[], &body);
        assert_eq!(answer.status, 200, "{path}");
        let text = answer.text();
        let error = r#"{"error":"result too large: the rows of one request exceed the limit"#;
        assert!(text.contains(error) && text.len() < 10_000, "{path} {text}");
        assert!(text.contains("[10,"), "{path} {text}");
    }
    cluster.assert_healthy_logs();
}
