//! Every call starts here: headers that all answers carry, where it comes from, query parameters,
//! path, permission, method.
//!
//! Where a path leads, by which methods and for whom is in [`super::routes`].
//!
//! Any path answers OPTIONS with 200 and no body. Callers without permission get 401, before their
//! method is looked at; other methods get 405 and other paths 404. All three have no body.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_TYPE, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};

use super::counters::HttpCounter;
use super::parameters::{self, Parameters};
use super::refusal::{self, JSON};
use super::routes::{self, Endpoint, Route};
use super::server::Server;
use super::{
    backup, caller, image, leader, load, nodes, pages, readiness, removal, sql, statements, status,
    upkeep, variables,
};

/// Where there are users, every answer asks for one, as in rqlite.
const CHALLENGE: &str = "Basic realm=\"rqlite\"";
const VERSION: HeaderName = HeaderName::from_static("x-rqlite-version");

/// Answers one call.
pub(super) async fn answer(server: &Arc<Server>, request: Request<Body>) -> Response<Body> {
    let mut response = dispatch(server, request).await;
    common(response.headers_mut(), server);
    response
}

fn common(headers: &mut HeaderMap, server: &Server) {
    headers.insert(VERSION, HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
    let methods = HeaderValue::from_static("OPTIONS, GET, POST");
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
    let allow_origin = server.options.allow_origin.as_deref();
    let allow_headers = if server.node.has_authority() {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(CHALLENGE));
        // Never together with `*`: any page could then use what the browser remembers.
        if allow_origin != Some("*") {
            let yes = HeaderValue::from_static("true");
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        "Content-Type, Authorization"
    } else {
        "Content-Type"
    };
    let allow_headers = HeaderValue::from_static(allow_headers);
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allow_headers);
    if let Some(origin) = allow_origin.and_then(|origin| HeaderValue::from_str(origin).ok()) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
}

async fn dispatch(server: &Arc<Server>, request: Request<Body>) -> Response<Body> {
    let path = parameters::unescape(request.uri().path(), false);
    let route = path.as_ref().ok().and_then(|path| routes::find(path));
    let is_page = route.is_some_and(Route::is_page);
    if let Err(foreign) = server.origins.check(&request, is_page) {
        return refusal::text(foreign.status(), &foreign.to_string());
    }
    if request.method() == Method::OPTIONS {
        return refusal::empty(StatusCode::OK);
    }
    let parameters = Parameters::parse(request.uri().query().unwrap_or_default());
    let (path, parameters) = match (path, parameters) {
        (Ok(path), Ok(parameters)) => (path, parameters),
        (Err(error), _) | (_, Err(error)) => {
            return refusal::text(StatusCode::BAD_REQUEST, &error.to_string());
        }
    };
    let Some(route) = route else {
        return refusal::empty(StatusCode::NOT_FOUND);
    };
    let caller = caller::credentials(request.headers());
    if !server
        .node
        .permits(caller.as_ref(), route.permissions)
        .await
    {
        return refused(route, StatusCode::UNAUTHORIZED);
    }
    if !route.methods.is_empty() && !route.methods.contains(&request.method().as_str()) {
        return refused(route, StatusCode::METHOD_NOT_ALLOWED);
    }
    if let Some(counter) = HttpCounter::of(route.endpoint) {
        server.counters.count(counter);
    }
    match route.endpoint {
        Endpoint::Backup => backup::answer(server, &parameters, request.uri(), caller).await,
        Endpoint::Boot => load::boot(server, &parameters, caller, request).await,
        Endpoint::Console => pages::console(&path, request.method()),
        Endpoint::Image => image::answer(server).await,
        Endpoint::Leader => leader::answer(server, &parameters, request, caller).await,
        Endpoint::Licenses => pages::licences(),
        Endpoint::Load => load::answer(server, &parameters, caller, request).await,
        Endpoint::Nodes => nodes::answer(server, &parameters).await,
        Endpoint::Profile => pages::profile(),
        Endpoint::Ready => readiness::answer(server, &parameters).await,
        Endpoint::Reap => upkeep::reap(server).await,
        Endpoint::Remove => removal::answer(server, &parameters, request, caller).await,
        Endpoint::Root => pages::root(request.method()),
        Endpoint::Snapshot => upkeep::snapshot(server, &parameters).await,
        Endpoint::Sql => sql::answer(server, &parameters, request).await,
        Endpoint::Statements(shape) => statements::answer(server, shape, parameters, request).await,
        Endpoint::Status => status::answer(server, &parameters).await,
        Endpoint::Variables => variables::answer(server, &parameters),
    }
}

/// A refusal without a body, which says what the content would have been as rqlite does.
fn refused(route: &Route, status: StatusCode) -> Response<Body> {
    let mut response = refusal::empty(status);
    if route.is_json {
        response.headers_mut().insert(CONTENT_TYPE, JSON);
    }
    response
}
