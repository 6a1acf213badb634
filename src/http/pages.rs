//! What is there to be looked at: `/`, the console, the licences, and why there are no profiles.
//!
//! The console is one page with its style and scripts, all compiled in. Its
//! `Content-Security-Policy` lets it load nothing but these, talk to nobody but this node, and be
//! shown in no other page.

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, HeaderValue, Method, Response, StatusCode};

use super::refusal::{self, PLAIN};

/// `/`: leads to the console.
pub(super) fn root(method: &Method) -> Response<Body> {
    redirect(StatusCode::FOUND, method)
}

/// `/console...`: the page and its files.
pub(super) fn console(path: &str, method: &Method) -> Response<Body> {
    let Some(name) = path.strip_prefix("/console/") else {
        return if path == "/console" {
            redirect(StatusCode::MOVED_PERMANENTLY, method)
        } else {
            refusal::empty(StatusCode::NOT_FOUND)
        };
    };
    let Some(file) = FILES.iter().find(|file| file.name == name) else {
        return refusal::empty(StatusCode::NOT_FOUND);
    };
    let mut response = Response::new(Body::from(file.content));
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, file.content_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // The next version of the node has other scripts.
        (CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// `/licenses`: the licences of this program and of everything linked into it.
pub(super) fn licences() -> Response<Body> {
    let mut response = Response::new(Body::from(LICENCES));
    response.headers_mut().insert(CONTENT_TYPE, PLAIN);
    response
}

/// `/debug/pprof`: nothing of the kind.
pub(super) fn profile() -> Response<Body> {
    refusal::text(
        StatusCode::NOT_IMPLEMENTED,
        "there is no Go runtime here to be profiled; use perf on the process instead",
    )
}

/// A redirect to the console, as Go's `http.Redirect` makes it.
fn redirect(status: StatusCode, method: &Method) -> Response<Body> {
    let mut response = refusal::empty(status);
    let headers = response.headers_mut();
    headers.insert(LOCATION, HeaderValue::from_static("/console/"));
    if method == Method::GET || method == Method::HEAD {
        headers.insert(CONTENT_TYPE, HTML);
    }
    if method == Method::GET {
        let reason = status.canonical_reason().unwrap_or_default();
        let page = format!("<a href=\"/console/\">{reason}</a>.\n\n");
        *response.body_mut() = Body::from(page);
    }
    response
}

/// A file of the console.
struct File {
    name: &'static str,
    content_type: &'static str,
    content: &'static str,
}

const FILES: [File; 9] = [
    File {
        name: "",
        content_type: "text/html; charset=utf-8",
        content: include_str!("console/index.html"),
    },
    File {
        name: "style.css",
        content_type: "text/css; charset=utf-8",
        content: include_str!("console/style.css"),
    },
    script("api.js", include_str!("console/api.js")),
    script("elements.js", include_str!("console/elements.js")),
    script("main.js", include_str!("console/main.js")),
    script("query.js", include_str!("console/query.js")),
    script("schema.js", include_str!("console/schema.js")),
    script("status.js", include_str!("console/status.js")),
    script("transfer.js", include_str!("console/transfer.js")),
];

const fn script(name: &'static str, content: &'static str) -> File {
    File {
        name,
        content_type: "text/javascript; charset=utf-8",
        content,
    }
}

/// Made by `cargo run -p tools --bin licences`.
const LICENCES: &str = include_str!("licences.txt");

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const CONTENT_SECURITY_POLICY: HeaderName = HeaderName::from_static("content-security-policy");
const REFERRER_POLICY: HeaderName = HeaderName::from_static("referrer-policy");
