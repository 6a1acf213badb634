//! The console: one page that needs nothing from outside and lets nothing in.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use ureq::http::Response;
use wal_tests::cluster::{Formation, ProcessCluster};

fn request(cluster: &ProcessCluster, method: &str, path: &str) -> Response<ureq::Body> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .max_redirects(0)
        .http_status_as_error(false)
        .build()
        .into();
    let url = format!("http://{}{path}", cluster.address(0));
    match method {
        "HEAD" => agent.head(url).call().unwrap(),
        "POST" => agent.post(url).send_empty().unwrap(),
        _ => agent.get(url).call().unwrap(),
    }
}

fn header<'a>(response: &'a Response<ureq::Body>, name: &str) -> &'a str {
    let value = response.headers().get(name);
    value.map_or("", |value| value.to_str().unwrap())
}

fn text(mut response: Response<ureq::Body>) -> String {
    response.body_mut().read_to_string().unwrap()
}

/// What stands between quotes behind each of these words.
fn quoted(page: &str, words: &[&str]) -> BTreeSet<String> {
    let found = words.iter().flat_map(|word| page.split(word).skip(1));
    found
        .map(|rest| rest.split('"').next().unwrap().to_owned())
        .collect()
}

#[test]
fn the_way_to_the_console_is_shown() {
    let cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    for (path, status, body) in [
        ("/", 302, "<a href=\"/console/\">Found</a>.\n\n"),
        (
            "/console",
            301,
            "<a href=\"/console/\">Moved Permanently</a>.\n\n",
        ),
    ] {
        let response = request(&cluster, "GET", path);
        assert_eq!(response.status(), status, "{path}");
        assert_eq!(header(&response, "location"), "/console/", "{path}");
        assert_eq!(text(response), body, "{path}");
    }
    assert_eq!(request(&cluster, "POST", "/").status(), 302);
    assert_eq!(request(&cluster, "POST", "/console/").status(), 405);
    for path in [
        "/consoles",
        "/console/nothing",
        "/console/../status",
        "/console/style.css/",
    ] {
        assert_eq!(request(&cluster, "GET", path).status(), 404, "{path}");
    }
}

#[test]
fn the_page_is_complete_and_closed() {
    let cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    let head = request(&cluster, "HEAD", "/console/");
    assert_eq!(head.status(), 200);
    let page = text(request(&cluster, "GET", "/console/"));
    assert_eq!(header(&head, "content-length"), page.len().to_string());
    assert_eq!(text(head), "");
    for tab in ["Status", "Schema", "Query", "Backup", "Restore"] {
        assert!(page.contains(&format!(">{tab}</button>")), "{tab}");
    }
    // The policy forbids them, so the page would not work with any.
    for inline in ["<style", " style=", " onclick=", "<script>", "javascript:"] {
        assert!(!page.contains(inline), "{inline}");
    }
    let mut open: BTreeSet<String> = quoted(&page, &["href=\"", "src=\""]);
    open.insert(String::new());
    let mut seen = BTreeSet::new();
    while let Some(name) = open.pop_first() {
        if name.starts_with("data:") || !seen.insert(name.clone()) {
            continue;
        }
        let response = request(&cluster, "GET", &format!("/console/{name}"));
        assert_eq!(response.status(), 200, "{name}");
        let expected = match name.rsplit('.').next().unwrap() {
            "css" => "text/css; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            _ => "text/html; charset=utf-8",
        };
        assert_eq!(header(&response, "content-type"), expected, "{name}");
        assert_eq!(header(&response, "x-content-type-options"), "nosniff");
        let policy = header(&response, "content-security-policy");
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(rule), "{name}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        let content = text(response);
        for outside in [
            "http://",
            "https://",
            "url(",
            "@import",
            "innerHTML",
            "eval(",
        ] {
            assert!(!content.contains(outside), "{name} has {outside}");
        }
        assert!(content.is_ascii() && !content.is_empty(), "{name}");
        let imported = quoted(&content, &["from \"./"]);
        open.extend(imported);
    }
    assert!(seen.len() > 7, "{seen:?}");
}
