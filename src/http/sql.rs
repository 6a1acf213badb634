//! `/db/sql`: how rqlite would rewrite statements before it replicates them. Here pages are
//! replicated and nothing is rewritten, so both texts of each result are the same; what is not SQL
//! has an error in place of the second.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};

use crate::node::Syntax;

use super::body::{self, Share};
use super::parameters::Parameters;
use super::server::Server;
use super::{json, refusal, request};

pub(super) async fn answer(
    server: &Arc<Server>,
    parameters: &Parameters,
    http_request: Request<Body>,
) -> Response<Body> {
    let (texts, _share) = match texts(server, parameters, http_request).await {
        Ok(received) => received,
        Err(response) => return response,
    };
    let is_pretty = parameters.flag("pretty");
    let rendering = tokio::task::spawn_blocking(move || {
        Syntax::new().map(|syntax| render(&texts, &syntax, is_pretty))
    });
    match rendering.await.expect("rendering does not panic") {
        Ok(body) => refusal::json(StatusCode::OK, body),
        Err(error) => refusal::text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// The SQL texts of a call and what they take of the budget of bodies, or the answer that refuses
/// the call.
async fn texts(
    server: &Arc<Server>,
    parameters: &Parameters,
    http_request: Request<Body>,
) -> Result<(Vec<String>, Share), Response<Body>> {
    if http_request.method() == Method::GET {
        return match parameters.text("q") {
            Some(sql) => Ok((vec![sql.to_owned()], Share::default())),
            None => Err(refusal::text(
                StatusCode::BAD_REQUEST,
                "query not specified",
            )),
        };
    }
    let options = &server.options;
    let (bytes_max, pause_max) = (options.body_bytes_max, options.body_pause_max);
    let body = body::read(http_request, bytes_max, pause_max, &server.bodies).await;
    let (body, share) = body.map_err(|error| refusal::text(error.status(), &error.to_string()))?;
    let statements = request::parse_statements(&body)
        .map_err(|error| refusal::text(StatusCode::BAD_REQUEST, &error.to_string()))?;
    let texts = statements.into_iter().map(|statement| statement.sql);
    Ok((texts.collect(), share))
}

fn render(texts: &[String], syntax: &Syntax, is_pretty: bool) -> Vec<u8> {
    let mut out = b"{\"results\":[".to_vec();
    for (position, sql) in texts.iter().enumerate() {
        out.extend_from_slice(if position > 0 { b",{" } else { b"{" });
        out.extend_from_slice(b"\"original\":");
        json::string(&mut out, sql);
        match syntax.error(sql) {
            None => {
                out.extend_from_slice(b",\"rewritten\":");
                json::string(&mut out, sql);
            }
            Some(error) => {
                out.extend_from_slice(b",\"error\":");
                json::string(&mut out, &error);
            }
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
    if is_pretty { json::indent(&out) } else { out }
}
