//! What a node answers beyond statements. Tests of clients and scripts go through such a part where
//! it is there, and pass it over where it is not there yet.

use crate::client::Client;

/// The parts that the node at this address offers, of `redirect` (on followers only: a leader has
/// nowhere to lead to), `queue`, `backup` and `load`.
///
/// # Panics
///
/// When the node does not answer.
#[must_use]
pub fn parts(client: &Client, address: &str) -> Vec<&'static str> {
    let get = |path: &str| client.get(address, path).expect("the node answers");
    let post = |path: &str, body: &[u8]| {
        let response = client.post(address, path, "application/json", body);
        response.expect("the node answers")
    };
    let flush = post("/db/execute?queue&wait", b"[\"SELECT 1\"]");
    let parts = [
        (
            "redirect",
            get("/db/query?redirect&q=SELECT%201").status == 301,
        ),
        ("queue", flush.body.contains("sequence_number")),
        ("backup", get("/db/backup").status != 404),
        ("load", post("/db/load", b"").status != 404),
    ];
    let offered = parts.into_iter().filter(|(_, offered)| *offered);
    offered.map(|(part, _)| part).collect()
}
