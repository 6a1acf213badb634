//! `POST /snapshot` and `POST /reap`, each about the files of the node that receives it.
//!
//! A node keeps no snapshots beside its database: the file itself, up to its last checkpoint, is
//! what others are sent. So `/snapshot` is a checkpoint, and purges the log behind it but for
//! `trailing_logs` entries; `/reap` is a checkpoint that leaves the log alone.
//!
//! | Field of `/reap` | What it counts |
//! |---|---|
//! | `snapshots_reaped` | copies of the database removed: none are kept, so always 0 |
//! | `wals_checkpointed` | 1 if SQLite's WAL held pages, which are in the main file now; else 0 |

use axum::body::Body;
use axum::http::{Response, StatusCode};

use super::parameters::Parameters;
use super::refusal;
use super::server::Server;

/// Answers `/snapshot`: 200 if anything was done, 204 if there was nothing to do.
pub(super) async fn snapshot(server: &Server, parameters: &Parameters) -> Response<Body> {
    let trailing = parameters.text("trailing_logs");
    let trailing = trailing.and_then(|text| text.parse().ok()).unwrap_or(0);
    match server.node.snapshot(trailing).await {
        Ok(true) => refusal::empty(StatusCode::OK),
        Ok(false) => refusal::empty(StatusCode::NO_CONTENT),
        Err(why) => refusal::text(StatusCode::INTERNAL_SERVER_ERROR, &why),
    }
}

/// Answers `/reap`.
pub(super) async fn reap(server: &Server) -> Response<Body> {
    match server.node.checkpoint().await {
        Ok(checkpointed) => {
            let wals = u8::from(checkpointed.has_moved_wal);
            let body = format!("{{\"snapshots_reaped\":0,\"wals_checkpointed\":{wals}}}\n");
            refusal::json(StatusCode::OK, body.into_bytes())
        }
        Err(why) => refusal::text(StatusCode::INTERNAL_SERVER_ERROR, &why),
    }
}
