//! `/db/sql`: how rqlite would rewrite statements before it replicates them. Here pages are
//! replicated and nothing is rewritten, so both texts of each result are the same; what is not SQL
//! has an error in place of the second.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};

use crate::node::Syntax;

use super::parameters::Parameters;
use super::server::Server;
use super::{body, json, refusal, request};

pub(super) async fn answer(
    server: &Arc<Server>,
    parameters: &Parameters,
    http_request: Request<Body>,
) -> Response<Body> {
    let texts = match texts(server, parameters, http_request).await {
        Ok(texts) => texts,
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

/// The SQL texts of a call, or the answer that refuses it.
async fn texts(
    server: &Arc<Server>,
    parameters: &Parameters,
    http_request: Request<Body>,
) -> Result<Vec<String>, Response<Body>> {
    if http_request.method() == Method::GET {
        return match parameters.text("q") {
            Some(sql) => Ok(vec![sql.to_owned()]),
            None => Err(refusal::text(
                StatusCode::BAD_REQUEST,
                "query not specified",
            )),
        };
    }
    let options = &server.options;
    let body = body::read(http_request, options.body_bytes_max, options.body_pause_max)
        .await
        .map_err(|error| refusal::text(error.status(), &error.to_string()))?;
    let statements = request::parse_statements(&body)
        .map_err(|error| refusal::text(StatusCode::BAD_REQUEST, &error.to_string()))?;
    Ok(statements
        .into_iter()
        .map(|statement| statement.sql)
        .collect())
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
