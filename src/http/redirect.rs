//! `?redirect`: instead of passing a call on to the leader, tells the client where the leader is.

use axum::body::Body;
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, Response, StatusCode, Uri};

use super::refusal;
use super::server::Server;

/// The answer that sends a client to the leader, with the same path and query; `None` if this node
/// leads, so that it can serve the call itself. 503 `leader not found` if nobody does.
pub(super) fn to_leader(server: &Server, uri: &Uri) -> Option<Response<Body>> {
    let leader = match server.node.leader_elsewhere() {
        Ok(leader) => leader?,
        Err(refusal) => {
            let text = refusal.to_string();
            return Some(refusal::text(StatusCode::SERVICE_UNAVAILABLE, &text));
        }
    };
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let url = format!("{}{path}", server.url(&leader.http_addr));
    // Addresses are checked where they are configured, and a URI is ASCII.
    let Ok(location) = HeaderValue::from_str(&url) else {
        return Some(refusal::text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the leader's HTTP address cannot be put into a header",
        ));
    };
    // rqlite announces JSON here, and sends no body.
    let mut response = refusal::json(StatusCode::MOVED_PERMANENTLY, Vec::new());
    response.headers_mut().insert(LOCATION, location);
    Some(response)
}
