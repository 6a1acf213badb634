//! HTTP in TLS: versions, protocols, client certificates, and certificates that change.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::ClientConfig;
use serde_json::Value;
use wal_tests::certificates::{Authority, Files, Pair};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::process;

use crate::raw::{Raw, connect, connect_tls, exchange};

/// One GET in TLS.
fn get(address: &str, client: &Arc<ClientConfig>, path: &str) -> std::io::Result<Raw> {
    let line = format!("GET {path}");
    exchange(connect_tls(address, client), address, &line, &[], b"")
}

/// Waits until a node is ready, as this client sees it.
fn wait_ready(cluster: &mut ProcessCluster, node: usize, client: &Arc<ClientConfig>) {
    cluster.wait("the node to be ready", |cluster| {
        let address = cluster.address(node);
        std::net::TcpStream::connect(address).map_err(|error| error.to_string())?;
        match get(address, client, "/readyz?sync") {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

fn node(flags: &[&str], client: &Arc<ClientConfig>) -> ProcessCluster {
    let mut cluster = ProcessCluster::prepare(1, &Formation::Join, flags);
    cluster.start_node(0);
    wait_ready(&mut cluster, 0, client);
    cluster
}

#[test]
fn both_versions_of_tls_and_of_http_are_served() {
    let authority = Authority::new("authority");
    let files = Files::new(&authority);
    let client = authority.client(&["http/1.1"], None);
    let cluster = node(&files.flags(), &client);
    let address = cluster.address(0);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let client = authority.client_of(&[version], &[], None);
        let mut stream = connect_tls(address, &client);
        let answer = exchange(&mut stream, address, "GET /db/query?q=SELECT+1", &[], b"");
        assert_eq!(answer.unwrap().status, 200, "{version:?}");
        assert_eq!(stream.conn.protocol_version(), Some(version.version));
        assert_eq!(stream.conn.alpn_protocol(), None);
    }
    let both = authority.client(&["h2", "http/1.1"], None);
    let mut stream = connect_tls(address, &both);
    speak_h2(&mut stream, address);
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"h2"[..]));
    let status = get(address, &client, "/status").unwrap();
    let status: Value = serde_json::from_slice(&status.body).unwrap();
    assert_eq!(status["http"]["tls"]["enabled"], "true");
    assert_eq!(status["cluster"]["https"], "true");
    let nodes = get(address, &client, "/nodes").unwrap();
    let nodes: Value = serde_json::from_slice(&nodes.body).unwrap();
    assert_eq!(nodes["node1"]["api_addr"], format!("https://{address}"));
    // Whoever speaks in clear gets no answer in clear, nor does one that trusts another authority.
    let plain = exchange(connect(address), address, "GET /status", &[], b"");
    assert!(plain.is_err(), "{plain:?}");
    let stranger = Authority::new("another").client(&[], None);
    assert!(get(address, &stranger, "/status").is_err());
    assert_eq!(get(address, &client, "/readyz").unwrap().status, 200);
    cluster.assert_healthy_logs();
}

/// Asks for `/readyz?noleader` in HTTP/2 by hand, and waits for its status 200. The request needs
/// only what every decoder knows: two entries of the static table and two literals.
fn speak_h2(stream: &mut (impl Read + Write), address: &str) {
    let literal = |block: &mut Vec<u8>, name: u8, value: &str| {
        block.extend([name, u8::try_from(value.len()).unwrap()]);
        block.extend(value.as_bytes());
    };
    let (get, https, path, authority) = (0x82, 0x87, 0x04, 0x01);
    let mut block = vec![get, https];
    literal(&mut block, path, "/readyz?noleader");
    literal(&mut block, authority, address);
    let frame = |kind: u8, flags: u8, id: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, id][..], payload].concat()
    };
    let (settings, headers, end_of_both) = (4, 1, 5);
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .unwrap();
    stream.write_all(&frame(settings, 0, 0, &[])).unwrap();
    stream
        .write_all(&frame(headers, end_of_both, 1, &block))
        .unwrap();
    let mut bounds_streams = false;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).unwrap();
        if head[3] == settings {
            let max_concurrent_streams = [0, 3, 0, 0, 0, 250];
            bounds_streams |= payload
                .chunks(6)
                .any(|entry| entry == max_concurrent_streams);
        }
        if head[3] == headers {
            let status_200 = 0x88;
            // A change of the size of the table may come before.
            assert!(
                payload.iter().take(3).any(|&byte| byte == status_200),
                "{payload:?}"
            );
            break;
        }
    }
    assert!(bounds_streams, "streams are not bounded");
}

#[test]
fn http_2_is_not_spoken_in_clear() {
    let cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    let mut stream = connect(cluster.address(0));
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
        "{answer}"
    );
}

#[test]
fn clients_must_show_a_certificate_where_that_is_asked_for() {
    let authority = Authority::new("authority");
    let other = Authority::new("another");
    let files = Files::new(&authority);
    let right = authority.issue("client one");
    let client = authority.client(&[], Some(&right));
    let ca = [
        "-http-ca-cert",
        files.authority.to_str().unwrap(),
        "-http-verify-client",
    ];
    let flags = [&files.flags()[..], &ca].concat();
    let cluster = node(&flags, &client);
    let address = cluster.address(0);
    let asked = |shown: Option<&Pair>| get(address, &authority.client(&[], shown), "/readyz");
    assert_eq!(asked(Some(&right)).unwrap().status, 200);
    let longer = authority.issue("client one too");
    assert_eq!(asked(Some(&longer)).unwrap().status, 200);
    assert!(asked(None).is_err());
    assert!(asked(Some(&other.issue("client one"))).is_err());
    drop(cluster);

    let flags = [&flags[..], &["-http-verify-common-name", "client one"]].concat();
    let cluster = node(&flags, &client);
    let address = cluster.address(0);
    let asked = |shown: Option<&Pair>| get(address, &authority.client(&[], shown), "/readyz");
    assert_eq!(asked(Some(&right)).unwrap().status, 200);
    for name in ["client one too", "client", "Client one", "client one ", ""] {
        assert!(asked(Some(&authority.issue(name))).is_err(), "{name:?}");
    }
    assert!(asked(Some(&other.issue("client one"))).is_err());
    assert!(asked(None).is_err());
    cluster.assert_healthy_logs();
}

#[test]
fn a_changed_certificate_is_used_without_a_restart() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let files = Files::new(&old);
    let (by_old, by_new) = (old.client(&[], None), new.client(&[], None));
    let mut cluster = node(&files.flags(), &by_old);
    let address = cluster.address(0).to_owned();
    assert!(get(&address, &by_new, "/readyz").is_err());
    // A certificate without its key is no change yet.
    let pair = new.issue("server");
    std::fs::write(&files.certificate, &pair.certificate).unwrap();
    cluster.wait_log(0, "the certificate was not read again; the old one stays");
    assert_eq!(get(&address, &by_old, "/readyz").unwrap().status, 200);
    std::fs::write(&files.key, &pair.key).unwrap();
    cluster.wait("the new certificate", |_| {
        let answer = get(&address, &by_new, "/readyz");
        answer.map(drop).map_err(|error| error.to_string())
    });
    assert!(get(&address, &by_old, "/readyz").is_err());
    std::fs::write(&files.certificate, "garbage").unwrap();
    cluster.wait_log(0, "it has no certificate in PEM form");
    assert_eq!(get(&address, &by_new, "/readyz").unwrap().status, 200);
    cluster.assert_healthy_logs();
}

#[test]
fn a_node_joins_through_an_https_address() {
    let authority = Authority::new("authority");
    let files = Files::new(&authority);
    let ca = ["-http-ca-cert", files.authority.to_str().unwrap()];
    let flags = [&files.flags()[..], &ca].concat();
    let client = authority.client(&[], None);
    let mut cluster = ProcessCluster::prepare(2, &Formation::Join, &flags);
    let target = format!("https://{}", cluster.address(0));
    let arguments = cluster.arguments(1);
    let join = arguments.iter().position(|flag| flag == "-join").unwrap();
    arguments[join + 1] = target;
    for node in [0, 1] {
        cluster.start_node(node);
        wait_ready(&mut cluster, node, &client);
    }
    let nodes = get(cluster.address(1), &client, "/nodes").unwrap();
    let nodes: Value = serde_json::from_slice(&nodes.body).unwrap();
    assert_eq!(nodes.as_object().unwrap().len(), 2, "{nodes}");
    cluster.assert_healthy_logs();
}

#[test]
fn files_that_cannot_be_used_keep_the_node_from_starting() {
    let authority = Authority::new("authority");
    let files = Files::new(&authority);
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let [cert_flag, cert, key_flag, key] = files.flags();
    let missing = "/does/not/exist.pem";
    let other = dir.path().join("other.pem");
    std::fs::write(&other, authority.issue("server").key).unwrap();
    for (cert, key, expected) in [
        (missing, key, "-http-cert /does/not/exist.pem: "),
        (key, key, "it has no certificate in PEM form"),
        (cert, missing, "-http-key /does/not/exist.pem: "),
        (cert, cert, "it has no private key in PEM form"),
        (
            cert,
            other.to_str().unwrap(),
            "-http-cert and -http-key cannot be used",
        ),
    ] {
        let flags = [
            "serve",
            cert_flag,
            cert,
            key_flag,
            key,
            data.to_str().unwrap(),
        ];
        let output = process::run(&flags);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(expected), "{expected:?} is not in {error}");
        assert!(!data.exists());
    }
}
