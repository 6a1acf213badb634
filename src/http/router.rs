//! Every call starts here: headers that all answers carry, query parameters, path, method.
//!
//! | Path | Match | Methods |
//! |---|---|---|
//! | `/db/execute` | prefix | POST |
//! | `/db/query` | prefix | GET, POST |
//! | `/db/request` | prefix | POST |
//! | `/status` | prefix | GET |
//! | `/nodes` | prefix | GET |
//! | `/readyz` | prefix | GET |
//! | `/wallaby/image` | exact | GET |
//!
//! Any path answers OPTIONS with 200 and no body. Other methods get 405 and other paths 404, both
//! without a body.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    CONTENT_TYPE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};

use crate::node::Shape;

use super::parameters::{self, Parameters};
use super::refusal::{self, JSON};
use super::server::Server;
use super::{image, nodes, readiness, statements, status};

const VERSION: HeaderName = HeaderName::from_static("x-rqlite-version");

/// Where a path leads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Route {
    Image,
    Nodes,
    Ready,
    Statements(Shape),
    Status,
}

/// The prefixes, in the order in which they are tried.
const PREFIXES: [(&str, Route); 6] = [
    ("/db/execute", Route::Statements(Shape::Execute)),
    ("/db/query", Route::Statements(Shape::Query)),
    ("/db/request", Route::Statements(Shape::Unified)),
    ("/status", Route::Status),
    ("/nodes", Route::Nodes),
    ("/readyz", Route::Ready),
];

/// Answers one call.
pub(super) async fn answer(
    State(server): State<Arc<Server>>,
    request: Request<Body>,
) -> Response<Body> {
    let mut response = dispatch(&server, request).await;
    common(
        response.headers_mut(),
        server.options.allow_origin.as_deref(),
    );
    response
}

fn common(headers: &mut HeaderMap, allow_origin: Option<&str>) {
    headers.insert(VERSION, HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
    let methods = HeaderValue::from_static("OPTIONS, GET, POST");
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("Content-Type"),
    );
    if let Some(origin) = allow_origin.and_then(|origin| HeaderValue::from_str(origin).ok()) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
}

async fn dispatch(server: &Arc<Server>, request: Request<Body>) -> Response<Body> {
    if request.method() == Method::OPTIONS {
        return refusal::empty(StatusCode::OK);
    }
    let path = parameters::unescape(request.uri().path(), false);
    let parameters = Parameters::parse(request.uri().query().unwrap_or_default());
    let (path, parameters) = match (path, parameters) {
        (Ok(path), Ok(parameters)) => (path, parameters),
        (Err(error), _) | (_, Err(error)) => {
            return refusal::text(StatusCode::BAD_REQUEST, &error.to_string());
        }
    };
    let Some(route) = route(&path) else {
        return refusal::empty(StatusCode::NOT_FOUND);
    };
    let allowed = match (route, request.method().as_str()) {
        (Route::Statements(_), "POST") => true,
        (Route::Statements(shape), "GET") => shape == Shape::Query,
        (Route::Statements(_), _) => false,
        (_, method) => method == "GET",
    };
    if !allowed {
        let mut response = refusal::empty(StatusCode::METHOD_NOT_ALLOWED);
        if !matches!(route, Route::Ready | Route::Image) {
            response.headers_mut().insert(CONTENT_TYPE, JSON);
        }
        return response;
    }
    match route {
        Route::Image => image::answer(server).await,
        Route::Nodes => nodes::answer(server, &parameters).await,
        Route::Ready => readiness::answer(server, &parameters).await,
        Route::Statements(shape) => statements::answer(server, shape, parameters, request).await,
        Route::Status => status::answer(server, &parameters),
    }
}

fn route(path: &str) -> Option<Route> {
    if path == "/wallaby/image" {
        return Some(Route::Image);
    }
    PREFIXES
        .iter()
        .find(|(prefix, _)| path.starts_with(prefix))
        .map(|&(_, route)| route)
}
