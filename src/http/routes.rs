//! The table of routes: path, methods, and what a caller needs. The router follows it, and the
//! tests of the permissions are made from it.
//!
//! Prefixes match anything that begins with them, as in rqlite: `/db/execute/x` is `/db/execute`.

use crate::node::{Permission, Shape};

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The path, or how it begins.
    pub path: &'static str,
    /// Whether longer paths that begin with it match too.
    pub is_prefix: bool,
    /// The methods that are served; others get 405. Empty: any.
    pub methods: &'static [&'static str],
    /// What a caller needs, all of it.
    pub permissions: &'static [Permission],
    /// Whether a 405 says that the content would have been JSON, as rqlite does on some paths.
    pub is_json: bool,
    pub(super) endpoint: Endpoint,
}

/// What answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Endpoint {
    Backup,
    Boot,
    Console,
    Image,
    Leader,
    Licenses,
    Load,
    Nodes,
    Profile,
    Ready,
    Reap,
    Remove,
    Root,
    Snapshot,
    Sql,
    Statements(Shape),
    Status,
    Variables,
}

const fn exact(
    path: &'static str,
    methods: &'static [&'static str],
    permissions: &'static [Permission],
    endpoint: Endpoint,
) -> Route {
    Route {
        path,
        is_prefix: false,
        methods,
        permissions,
        is_json: false,
        endpoint,
    }
}

const fn prefix(
    path: &'static str,
    methods: &'static [&'static str],
    permissions: &'static [Permission],
    endpoint: Endpoint,
) -> Route {
    Route {
        is_prefix: true,
        ..exact(path, methods, permissions, endpoint)
    }
}

impl Route {
    const fn json(self) -> Self {
        Self {
            is_json: true,
            ..self
        }
    }

    /// Whether it is a page that people open by a link.
    pub(super) fn is_page(&self) -> bool {
        matches!(self.endpoint, Endpoint::Console | Endpoint::Root)
    }

    fn matches(&self, path: &str) -> bool {
        if self.is_prefix {
            path.starts_with(self.path)
        } else {
            path == self.path
        }
    }
}

const EXECUTE: Endpoint = Endpoint::Statements(Shape::Execute);
const QUERY: Endpoint = Endpoint::Statements(Shape::Query);
const UNIFIED: Endpoint = Endpoint::Statements(Shape::Unified);

/// All routes, in the order in which they are tried.
#[rustfmt::skip]
pub const ROUTES: [Route; 20] = [
    exact("/", &[], &[], Endpoint::Root),
    prefix("/console", &["GET", "HEAD"], &[Permission::Ui], Endpoint::Console),
    prefix("/db/execute", &["POST"], &[Permission::Execute], EXECUTE).json(),
    prefix("/db/query", &["GET", "POST"], &[Permission::Query], QUERY).json(),
    prefix("/db/request", &["POST"], &[Permission::Query, Permission::Execute], UNIFIED).json(),
    prefix("/db/sql", &["GET", "POST"], &[Permission::Query], Endpoint::Sql).json(),
    prefix("/db/backup", &["GET"], &[Permission::Backup], Endpoint::Backup),
    prefix("/db/load", &["POST"], &[Permission::Load], Endpoint::Load),
    exact("/boot", &["POST"], &[Permission::Load], Endpoint::Boot),
    exact("/snapshot", &["POST"], &[Permission::Snapshot], Endpoint::Snapshot),
    exact("/reap", &["POST"], &[Permission::Snapshot], Endpoint::Reap).json(),
    prefix("/remove", &["DELETE"], &[Permission::Remove], Endpoint::Remove),
    prefix("/status", &["GET"], &[Permission::Status], Endpoint::Status).json(),
    prefix("/nodes", &["GET"], &[Permission::Status], Endpoint::Nodes).json(),
    exact("/leader", &["GET", "POST"], &[Permission::LeaderOps], Endpoint::Leader).json(),
    prefix("/readyz", &["GET"], &[Permission::Ready], Endpoint::Ready),
    exact("/licenses", &["GET"], &[Permission::Status], Endpoint::Licenses),
    exact("/debug/vars", &["GET"], &[Permission::Status], Endpoint::Variables).json(),
    prefix("/debug/pprof", &[], &[Permission::Status], Endpoint::Profile),
    exact("/wallaby/image", &["GET"], &[Permission::Backup], Endpoint::Image),
];

/// Where a path leads.
pub(super) fn find(path: &str) -> Option<&'static Route> {
    ROUTES.iter().find(|route| route.matches(path))
}
