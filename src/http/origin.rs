//! Keeps web pages of others away from the database of whoever looks at them.
//!
//! A browser lets any page send requests to any address, so a node on `localhost` or in a private
//! network is within reach of every page that somebody there opens. Two rules, both answered with
//! a line of text:
//!
//! * **Origin (403).** A request that says it comes from another site (`Origin`, or
//!   `Sec-Fetch-Site: cross-site` or `same-site`) is refused, unless that origin is the value of
//!   `-http-allow-origin`, or that value is `*`. Links to the console from elsewhere work.
//! * **Host (421).** Against DNS rebinding, where a foreign name is made to point here and the
//!   browser takes the page and this node for one site: the host that was asked for must be an IP
//!   address, `localhost`, a name below it, the name in `-http-addr` or `-http-adv-addr`, or one of
//!   `-http-allow-host`. The rule applies to requests with one of the marks above, which only
//!   browsers set, and to all requests where the node listens on loopback only.
//!
//! Everything else sends neither `Origin` nor `Sec-Fetch-Site`: curl and client libraries reach a
//! node by whatever name leads to it, such as a service name of Kubernetes, as with rqlite. What
//! that leaves open is a rebound GET to a node on an address that is not loopback: browsers mark
//! those only over TLS. Such a node needs users or TLS anyway, and start-up says so.

use std::collections::HashSet;
use std::net::IpAddr;

use axum::http::header::{HOST, HeaderName, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, Request, StatusCode};

/// The one name that turns the rule about hosts off.
const ANY: &str = "*";

/// Whom this node takes itself for, and whose pages it serves.
#[derive(Debug)]
pub(super) struct Origins {
    hosts: HashSet<String>,
    allow_origin: Option<String>,
    is_loopback: bool,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Foreign {
    /// By the rule about hosts.
    #[error(
        "this node does not know itself by the name in the Host header; use its IP address, \
         localhost or its advertised name, or start it with -http-allow-host NAME"
    )]
    Host,
    /// By the rule about origins.
    #[error("requests from other web sites are refused; allow one with -http-allow-origin")]
    Origin,
}

impl Foreign {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Host => StatusCode::MISDIRECTED_REQUEST,
            Self::Origin => StatusCode::FORBIDDEN,
        }
    }
}

impl Origins {
    /// `hosts` may have ports, which do not matter; `is_loopback`: nobody else can connect.
    pub(super) fn new<'a>(
        hosts: impl IntoIterator<Item = &'a str>,
        allow_origin: Option<&str>,
        is_loopback: bool,
    ) -> Self {
        Self {
            hosts: hosts.into_iter().map(name).collect(),
            allow_origin: allow_origin.map(str::to_owned),
            is_loopback,
        }
    }

    /// Applies both rules. `is_page`: what is asked for is meant to be opened by links.
    pub(super) fn check<B>(&self, request: &Request<B>, is_page: bool) -> Result<(), Foreign> {
        let headers = request.headers();
        let is_marked = headers.contains_key(ORIGIN) || headers.contains_key(FETCH_SITE);
        if (is_marked || self.is_loopback) && !self.is_ours(request) {
            return Err(Foreign::Host);
        }
        if is_marked && self.is_from_elsewhere(request, is_page) {
            return Err(Foreign::Origin);
        }
        Ok(())
    }

    /// Whether every host that the request names is one of ours.
    fn is_ours<B>(&self, request: &Request<B>) -> bool {
        if self.hosts.contains(ANY) {
            return true;
        }
        let authority = request.uri().authority().map(Authority::as_str);
        let headers = request.headers().get_all(HOST).iter();
        let named = headers.map(|host| host.to_str().unwrap_or_default());
        authority.into_iter().chain(named).all(|host| {
            let host = name(host);
            let is_local = host == "localhost" || host.ends_with(".localhost");
            is_local || host.parse::<IpAddr>().is_ok() || self.hosts.contains(&host)
        })
    }

    fn is_from_elsewhere<B>(&self, request: &Request<B>, is_page: bool) -> bool {
        let headers = request.headers();
        let origins: Vec<&str> = headers
            .get_all(ORIGIN)
            .iter()
            .map(|origin| origin.to_str().unwrap_or_default())
            .collect();
        if let [origin] = origins[..] {
            let allowed = self.allow_origin.as_deref();
            if allowed == Some(ANY) || allowed == Some(origin) {
                return false;
            }
            // A request that contradicts itself is not one of ours.
            let site = text(headers, &FETCH_SITE);
            let is_claimed = site.is_empty() || site == "same-origin" || site == "none";
            return !(is_claimed && is_same(origin, asked_for(request)));
        }
        if !origins.is_empty() {
            return true;
        }
        let site = text(headers, &FETCH_SITE);
        if site == "same-origin" || site == "none" {
            return false;
        }
        let is_link = request.method() == Method::GET && text(headers, &FETCH_MODE) == "navigate";
        !(is_page && is_link)
    }
}

/// The host and port that were asked for.
fn asked_for<B>(request: &Request<B>) -> &str {
    match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => text(request.headers(), &HOST),
    }
}

/// Whether an origin is this host. The scheme is left out: a proxy may have taken TLS off.
fn is_same(origin: &str, host: &str) -> bool {
    let Some((scheme, site)) = origin.split_once("://") else {
        return false;
    };
    let port = if scheme == "https" { ":443" } else { ":80" };
    let plain = |text: &str| text.strip_suffix(port).unwrap_or(text).to_ascii_lowercase();
    !site.is_empty() && plain(site) == plain(host)
}

/// A host without port, brackets and the dot at its end, in small letters.
fn name(host: &str) -> String {
    let bare = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        // Whatever follows the brackets other than a port makes it another name.
        Some((address, port)) if port.is_empty() || port.starts_with(':') => address,
        Some(_) => host,
        None => host.split(':').next().unwrap_or_default(),
    };
    bare.trim_end_matches('.').to_ascii_lowercase()
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default()
}

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdict on a request with these headers.
    fn verdict(origins: &Origins, headers: &[(&str, &str)]) -> Result<(), Foreign> {
        let mut request = Request::builder().uri("/db/query");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        origins.check(&request.body(()).unwrap(), false)
    }

    const HOST_REFUSED: Result<(), Foreign> = Err(Foreign::Host);
    const ORIGIN_REFUSED: Result<(), Foreign> = Err(Foreign::Origin);

    #[test]
    fn a_plain_client_may_use_any_name_unless_only_loopback_is_served() {
        let open = Origins::new(["db.example:4001"], None, false);
        let local = Origins::new(["db.example:4001"], None, true);
        for (host, on_loopback) in [
            ("127.0.0.1:4001", Ok(())),
            ("[::1]:4001", Ok(())),
            ("localhost", Ok(())),
            ("LOCALHOST.:4001", Ok(())),
            ("a.localhost:1", Ok(())),
            ("db.example", Ok(())),
            ("wallaby.default.svc.cluster.local:4001", HOST_REFUSED),
            ("localhost.evil.example", HOST_REFUSED),
            ("127.0.0.1.evil.example", HOST_REFUSED),
            ("", HOST_REFUSED),
        ] {
            assert_eq!(verdict(&open, &[("host", host)]), Ok(()), "{host}");
            assert_eq!(verdict(&local, &[("host", host)]), on_loopback, "{host}");
            let marked = [("host", host), ("sec-fetch-site", "same-origin")];
            assert_eq!(verdict(&open, &marked), on_loopback, "{host} in a browser");
        }
        let two = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(verdict(&local, &two), HOST_REFUSED);
        let any = Origins::new(["*"], None, true);
        assert_eq!(verdict(&any, &[("host", "evil.example")]), Ok(()));
    }

    #[test]
    fn other_sites_are_refused_unless_allowed() {
        let host = ("host", "localhost:4001");
        let with = |allowed: Option<&str>, headers: &[(&str, &str)]| {
            let origins = Origins::new([], allowed, false);
            verdict(&origins, &[&[host], headers].concat())
        };
        for (headers, expected) in [
            (&[("origin", "http://localhost:4001")][..], Ok(())),
            (&[("origin", "https://localhost:4001")], Ok(())),
            (&[("origin", "http://localhost:3000")], ORIGIN_REFUSED),
            (&[("origin", "http://localhost")], ORIGIN_REFUSED),
            (&[("origin", "https://app.example")], ORIGIN_REFUSED),
            (&[("origin", "null")], ORIGIN_REFUSED),
            (&[("origin", "")], ORIGIN_REFUSED),
            (&[("sec-fetch-site", "same-origin")], Ok(())),
            (&[("sec-fetch-site", "none")], Ok(())),
            (&[("sec-fetch-site", "same-site")], ORIGIN_REFUSED),
            (&[("sec-fetch-site", "cross-site")], ORIGIN_REFUSED),
            (&[("sec-fetch-mode", "cors")], Ok(())),
        ] {
            assert_eq!(with(None, headers), expected, "{headers:?}");
        }
        let app = [
            ("origin", "https://app.example"),
            ("sec-fetch-site", "cross-site"),
        ];
        assert_eq!(with(Some("https://app.example"), &app), Ok(()));
        assert_eq!(with(Some("*"), &app), Ok(()));
        assert_eq!(with(Some("https://other.example"), &app), ORIGIN_REFUSED);
    }

    #[test]
    fn links_from_elsewhere_open_pages_and_nothing_else() {
        let origins = Origins::new([], None, false);
        let request = |method: &str| {
            let request = Request::builder().method(method).uri("/console/");
            let request = request.header("host", "localhost:4001");
            let request = request.header("sec-fetch-site", "cross-site");
            request
                .header("sec-fetch-mode", "navigate")
                .body(())
                .unwrap()
        };
        assert_eq!(origins.check(&request("GET"), true), Ok(()));
        assert_eq!(origins.check(&request("GET"), false), ORIGIN_REFUSED);
        assert_eq!(origins.check(&request("POST"), true), ORIGIN_REFUSED);
    }
}
