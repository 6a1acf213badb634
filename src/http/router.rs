//! Every call starts here: headers that all answers carry, query parameters, path, method.
//!
//! Where a path leads, by which methods and for whom is in [`super::routes`].
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

use super::parameters::{self, Parameters};
use super::refusal::{self, JSON};
use super::routes::{self, Endpoint};
use super::server::Server;
use super::{image, nodes, pages, readiness, statements, status, variables};

const VERSION: HeaderName = HeaderName::from_static("x-rqlite-version");

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
    let Some(route) = routes::find(&path) else {
        return refusal::empty(StatusCode::NOT_FOUND);
    };
    if !route.methods.is_empty() && !route.methods.contains(&request.method().as_str()) {
        let mut response = refusal::empty(StatusCode::METHOD_NOT_ALLOWED);
        if route.is_json {
            response.headers_mut().insert(CONTENT_TYPE, JSON);
        }
        return response;
    }
    match route.endpoint {
        Endpoint::Console => pages::console(&path, request.method()),
        Endpoint::Image => image::answer(server).await,
        Endpoint::Licenses => pages::licences(),
        Endpoint::Nodes => nodes::answer(server, &parameters).await,
        Endpoint::Profile => pages::profile(),
        Endpoint::Ready => readiness::answer(server, &parameters).await,
        Endpoint::Root => pages::root(request.method()),
        Endpoint::Statements(shape) => statements::answer(server, shape, parameters, request).await,
        Endpoint::Status => status::answer(server, &parameters).await,
        Endpoint::Variables => variables::answer(server, &parameters),
        Endpoint::Backup
        | Endpoint::Boot
        | Endpoint::Leader
        | Endpoint::Load
        | Endpoint::Reap
        | Endpoint::Remove
        | Endpoint::Snapshot
        | Endpoint::Sql => refusal::empty(StatusCode::NOT_FOUND),
    }
}
