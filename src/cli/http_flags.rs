//! The flags of `wallaby serve` that secure its HTTP interface; rqlited's where rqlited has them.

use std::path::PathBuf;
use std::time::Duration;

use crate::cli::flags::{span, switch};

/// Users, TLS, browsers, limits.
#[derive(clap::Args)]
pub(crate) struct HttpFlags {
    /// File with users, passwords and permissions, in rqlite's form; without it everybody may do
    /// everything.
    #[arg(long, value_name = "FILE")]
    pub(crate) auth: Option<PathBuf>,
    /// The user, of the file in -auth, as whom this node asks to join a cluster that has users.
    #[arg(long, value_name = "USER")]
    pub(crate) join_as: Option<String>,
    /// File with the password of that user, where -auth has only its hash.
    #[arg(long, value_name = "FILE")]
    pub(crate) join_as_password_file: Option<PathBuf>,
    /// Certificate (PEM) for HTTPS, with those that lead to its authority.
    #[arg(long, value_name = "FILE")]
    pub(crate) http_cert: Option<PathBuf>,
    /// Private key (PEM) of -http-cert.
    #[arg(long, value_name = "FILE")]
    pub(crate) http_key: Option<PathBuf>,
    /// Authorities (PEM) of the certificates that clients show, and of https:// nodes in -join.
    #[arg(long, value_name = "FILE")]
    pub(crate) http_ca_cert: Option<PathBuf>,
    /// Serve only clients with a certificate of -http-ca-cert.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = switch, value_name = "BOOL")]
    pub(crate) http_verify_client: bool,
    /// The common name that the certificates of clients must have.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) http_verify_common_name: String,
    /// The origin (https://host) whose web pages may use this node; *: any, without credentials.
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) http_allow_origin: Option<String>,
    /// Names, besides IP addresses, localhost and the advertised one, by which browsers may reach
    /// this node (and everybody, if it listens on loopback); *: any.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) http_allow_host: Vec<String>,
    /// How long a client may take to send the headers of a request.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = span)]
    pub(crate) http_header_timeout: Duration,
    /// How long an HTTP connection may be without a request.
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = span)]
    pub(crate) http_idle_timeout: Duration,
    /// HTTP connections served at a time; further ones wait.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub(crate) http_max_connections: usize,
    /// Bytes of all HTTP bodies held at a time; beyond it they are refused with 503.
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 20)]
    pub(crate) http_max_bodies: usize,
    /// Bytes of the rows that one request may return, and of the JSON that they become; beyond it
    /// the statement fails.
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 20)]
    pub(crate) http_max_response: usize,
    /// Longest `timeout` that a client is granted; when it has passed, its statements are ended.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = span)]
    pub(crate) http_max_timeout: Duration,
}
