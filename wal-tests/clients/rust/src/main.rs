//! A round trip with rqlite-rs: `wallaby-client-tests ADDRESS LEADER [PART ...]`
//!
//! ADDRESS is the node to speak to, LEADER the one that leads (the same one if it is alone), both
//! as host:port. PARTS are what to go through beyond statements: `queue`. Credentials, if the
//! node asks for them, are in the environment: `RQLITE_USER`, `RQLITE_PASSWORD`.

use std::time::{Duration, Instant};

use rqlite_rs::batch::BatchResult;
use rqlite_rs::error::RequestError;
use rqlite_rs::prelude::*;
use rqlite_rs::query;
use rqlite_rs::request::{RqliteFreshnessLevel, RqliteQueryParam};
use rqlite_rs::response::RqliteResult;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const NAME: &str = "\u{5f53} 'quoted' \u{1f418}";

#[derive(Debug, FromRow, PartialEq)]
struct Thing {
    id: i64,
    name: Option<String>,
}

fn connect(addresses: &[&str], parameters: Vec<RqliteQueryParam>) -> RqliteClient {
    let builder = addresses
        .iter()
        .fold(RqliteClientBuilder::new(), |builder, address| {
            builder.known_host(address)
        })
        .default_query_params(parameters);
    let builder = match (env("RQLITE_USER"), env("RQLITE_PASSWORD")) {
        (Some(user), Some(password)) => builder.auth(&user, &password),
        _ => builder,
    };
    builder.build().expect("a client can be made")
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

async fn credentials(address: &str) {
    let builder = RqliteClientBuilder::new().known_host(address);
    let client = builder.build().expect("a client can be made");
    let refused = client.exec("DELETE FROM rs").await;
    assert!(
        matches!(refused, Err(RequestError::Unauthorized)),
        "without credentials"
    );
}

fn failure<T>(result: Result<T, RequestError>) -> String {
    match result {
        Ok(_) => panic!("a statement that must fail has succeeded"),
        Err(RequestError::DatabaseError(text)) => text,
        Err(other) => panic!("not an error of the database: {other}"),
    }
}

async fn writing(client: &RqliteClient) -> Outcome {
    let created = client
        .exec("CREATE TABLE rs (id INTEGER NOT NULL PRIMARY KEY, name TEXT UNIQUE, data BLOB, r REAL)")
        .await?;
    assert!(!created.changed() || created.last_insert_id().is_some());
    let inserted = client.exec("INSERT INTO rs(name) VALUES('fiona')").await?;
    assert_eq!(
        (inserted.last_insert_id(), inserted.rows_affected()),
        (Some(1), Some(1))
    );
    let insert = "INSERT INTO rs(name, data, r) VALUES(?, ?, ?)";
    let blob: Vec<u8> = (0..=255).collect();
    let inserted = client.exec(query!(insert, NAME, blob, 1e-7)).await?;
    assert_eq!(inserted.last_insert_id(), Some(2));
    let nothing: (Option<String>, Option<Vec<u8>>, Option<f64>) = (None, None, None);
    let inserted = client
        .exec(query!(insert, nothing.0, nothing.1, nothing.2))
        .await?;
    assert_eq!(inserted.last_insert_id(), Some(3));
    let updated = client.exec("UPDATE rs SET r = 2.5 WHERE r IS NULL").await?;
    assert_eq!(updated.rows_affected(), Some(2));
    let deleted = client.exec("DELETE FROM rs WHERE id = -1").await?;
    assert!(!deleted.changed());
    Ok(())
}

async fn reading(client: &RqliteClient) -> Outcome {
    let things = client.fetch("SELECT id, name FROM rs ORDER BY id").await?;
    let expected = [(1, Some("fiona")), (2, Some(NAME)), (3, None)];
    let expected = expected.map(|(id, name)| Thing {
        id,
        name: name.map(str::to_owned),
    });
    assert_eq!(things.into_typed::<Thing>()?, expected);
    let rows = client
        .fetch(query!("SELECT data, r FROM rs WHERE id = ?", 2i64))
        .await?;
    assert_eq!(
        rows[0].get::<Vec<u8>>("data")?,
        (0..=255).collect::<Vec<u8>>()
    );
    assert_eq!(rows[0].get::<f64>("r")?, 1e-7);
    let rows = client
        .fetch(query!(
            "SELECT ? AS big, ? AS yes, ? AS none",
            i64::MIN,
            true,
            None::<i64>
        ))
        .await?;
    assert_eq!(rows[0].get::<i64>("big")?, i64::MIN);
    assert_eq!(rows[0].get::<i64>("yes")?, 1);
    assert_eq!(rows[0].get_opt::<i64>("none")?, None);
    assert!(client
        .fetch("SELECT id FROM rs WHERE id = -1")
        .await?
        .is_empty());
    let columns = client.fetch("PRAGMA table_info(rs)").await?;
    let names: Result<Vec<String>, _> = columns.iter().map(|row| row.get("name")).collect();
    assert_eq!(names?, ["id", "name", "data", "r"]);
    Ok(())
}

async fn parameters(address: &str) -> Outcome {
    for level in [RqliteFreshnessLevel::Weak, RqliteFreshnessLevel::Strong] {
        let wait = RqliteQueryParam::Timeout(std::num::NonZeroU16::new(20).expect("not zero"));
        let parameters = vec![
            RqliteQueryParam::Level(level),
            RqliteQueryParam::Pretty,
            RqliteQueryParam::Timings,
            RqliteQueryParam::NoRWRandom,
            wait,
        ];
        let client = connect(&[address], parameters);
        let rows = client.fetch("SELECT count(*) AS n FROM rs").await?;
        assert_eq!(rows[0].get::<i64>("n")?, 3);
    }
    Ok(())
}

async fn errors(client: &RqliteClient) -> Outcome {
    let text = failure(client.exec("INSERT INTO rs(name) VALUES('fiona')").await);
    assert_eq!(text, "UNIQUE constraint failed: rs.name");
    let text = failure(client.exec("INSERT blah blah").await);
    assert_eq!(text, "near \"blah\": syntax error");
    let text = failure(client.fetch("SELECT * FROM nowhere").await);
    assert_eq!(text, "no such table: nowhere");
    Ok(())
}

async fn together(client: &RqliteClient) -> Outcome {
    let batch = client
        .batch(vec![
            "INSERT INTO rs(id, name) VALUES(50, 'batch')",
            "SELECT name FROM rs WHERE id = 50",
            "INSERT INTO rs(id) VALUES(50)",
        ])
        .await?;
    let [RqliteResult::Success(BatchResult::QueryResult(written)), RqliteResult::Success(BatchResult::SelectResults(_)), RqliteResult::Error(error)] =
        &batch[..]
    else {
        panic!("of another kind: {batch:?}");
    };
    assert_eq!(written.last_insert_id(), Some(50));
    assert_eq!(error.error, "UNIQUE constraint failed: rs.id");
    let failed = vec![
        query!("INSERT INTO rs(id, name) VALUES(?, ?)", 60i64, "a"),
        query!("INSERT INTO rs(id, name) VALUES(?, ?)", 1i64, "taken"),
        query!("INSERT INTO rs(id, name) VALUES(?, ?)", 61i64, "b"),
    ];
    let results = client.transaction(failed).await?;
    let [RqliteResult::Success(_), RqliteResult::Error(error)] = &results[..] else {
        panic!("of another kind: {results:?}");
    };
    assert_eq!(error.error, "UNIQUE constraint failed: rs.id");
    let count = "SELECT count(*) AS n FROM rs WHERE id >= 60";
    assert_eq!(client.fetch(count).await?[0].get::<i64>("n")?, 0);
    let good = vec![
        "INSERT INTO rs(id) VALUES(60)",
        "INSERT INTO rs(id) VALUES(61)",
    ];
    assert_eq!(client.transaction(good).await?.len(), 2);
    assert_eq!(client.fetch(count).await?[0].get::<i64>("n")?, 2);
    Ok(())
}

async fn cluster(client: &RqliteClient, address: &str, leader: &str) -> Outcome {
    assert!(client.ready().await);
    let nodes = client.nodes().await?;
    assert_eq!(nodes.len(), if address == leader { 1 } else { 3 });
    assert!(nodes
        .iter()
        .all(|node| node.voter && node.reachable && node.error.is_none()));
    let leading = client.leader().await?.expect("there is a leader");
    assert_eq!(leading.api_addr, format!("http://{leader}"));
    // A host that does not answer is passed over.
    let several = connect(&["127.0.0.1:1", address], Vec::new());
    assert_eq!(
        several.fetch("SELECT 1 AS one").await?[0].get::<i64>("one")?,
        1
    );
    Ok(())
}

async fn queue(client: &RqliteClient) -> Outcome {
    client
        .queue(vec![
            "INSERT INTO rs(id) VALUES(70)",
            "INSERT INTO rs(id) VALUES(71)",
        ])
        .await?;
    // The client cannot ask to wait for the queue.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let rows = client
            .fetch("SELECT count(*) AS n FROM rs WHERE id >= 70")
            .await?;
        if rows[0].get::<i64>("n")? == 2 {
            return Ok(());
        }
        assert!(Instant::now() < deadline, "the queued rows do not come");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, leader, parts @ ..] = &arguments[..] else {
        panic!("usage: wallaby-client-tests ADDRESS LEADER [PART ...]");
    };
    let client = connect(&[address], Vec::new());
    writing(&client).await?;
    reading(&client).await?;
    parameters(address).await?;
    errors(&client).await?;
    together(&client).await?;
    cluster(&client, address, leader).await?;
    let mut steps = 6;
    if env("RQLITE_USER").is_some() {
        credentials(address).await;
        steps += 1;
    }
    if parts.iter().any(|part| part == "queue") {
        queue(&client).await?;
        steps += 1;
    }
    let rows = connect(&[leader], Vec::new())
        .fetch("SELECT name FROM rs WHERE id = 1")
        .await?;
    assert_eq!(rows[0].get::<String>("name")?, "fiona");
    println!("ok: {steps} steps");
    Ok(())
}
