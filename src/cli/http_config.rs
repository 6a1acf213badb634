//! From the flags that secure the HTTP interface to what the server is told.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use wallaby::http::users::{self, Users, UsersError};
use wallaby::http::{HttpOptions, Tls, TlsError, TlsOptions};
use wallaby::node::{Authority as _, Credentials, Permission};

use crate::cli::config::ConfigError;
use crate::cli::http_flags::HttpFlags;

/// The flags, checked; nothing is read yet.
#[derive(Clone, Debug)]
pub(crate) struct HttpConfig {
    auth: Option<PathBuf>,
    join_as: Option<String>,
    join_as_password_file: Option<PathBuf>,
    tls: Option<TlsOptions>,
    /// Authorities of https:// nodes in `-join`.
    pub(crate) authorities: Option<PathBuf>,
    options: HttpOptions,
}

/// What the flags lead to, with all files read.
pub(crate) struct HttpParts {
    pub(crate) options: HttpOptions,
    /// As whom to join.
    pub(crate) join_as: Option<Credentials>,
}

/// Why a file that a flag names cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpFileError {
    #[error("-join-as: {0}")]
    JoinAs(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("-auth: {0}")]
    Users(#[from] UsersError),
}

impl HttpConfig {
    /// Checks the flags. `http_addr`: where to listen; its name is one that browsers may use.
    pub(crate) fn from_flags(
        flags: HttpFlags,
        http_addr: &str,
        body_bytes_max: usize,
    ) -> Result<Self, ConfigError> {
        check_limits(&flags, body_bytes_max)?;
        let tls = tls_options(&flags)?;
        if flags.join_as.is_some() && flags.auth.is_none() && flags.join_as_password_file.is_none()
        {
            return Err(ConfigError::Together(
                "-join-as needs the password of that user, from -auth or -join-as-password-file",
            ));
        }
        if flags.join_as.is_none() && flags.join_as_password_file.is_some() {
            return Err(ConfigError::Together(
                "-join-as-password-file needs -join-as",
            ));
        }
        if let Some(origin) = &flags.http_allow_origin {
            check_origin(origin)?;
        }
        let mut allow_hosts = flags.http_allow_host;
        allow_hosts.push(http_addr.to_owned());
        Ok(Self {
            auth: flags.auth,
            join_as: flags.join_as,
            join_as_password_file: flags.join_as_password_file,
            tls,
            authorities: flags.http_ca_cert,
            options: HttpOptions {
                allow_hosts,
                allow_origin: flags.http_allow_origin,
                body_bytes_max,
                body_bytes_total_max: flags.http_max_bodies,
                connections_max: flags.http_max_connections,
                header_time_max: flags.http_header_timeout,
                idle_time_max: flags.http_idle_timeout,
                response_bytes_max: flags.http_max_response,
                timeout_max: flags.http_max_timeout,
                ..HttpOptions::default()
            },
        })
    }

    /// Reads the files.
    ///
    /// # Errors
    ///
    /// The first file that cannot be used.
    pub(crate) fn load(&self) -> Result<HttpParts, HttpFileError> {
        let users = self.auth.as_deref().map(Users::open).transpose()?;
        let tls = self.tls.clone().map(Tls::open).transpose()?;
        let join_as = match &self.join_as {
            None => None,
            Some(username) => Some(Credentials {
                username: username.clone(),
                password: self.password(username)?,
            }),
        };
        Ok(HttpParts {
            options: HttpOptions {
                tls,
                users,
                ..self.options.clone()
            },
            join_as,
        })
    }

    fn password(&self, username: &str) -> Result<String, HttpFileError> {
        let failed = |why: String| HttpFileError::JoinAs(why);
        if let Some(file) = &self.join_as_password_file {
            let mut text = String::new();
            let read = File::open(file)
                .and_then(|open| open.take(PASSWORD_BYTES_MAX).read_to_string(&mut text));
            read.map_err(|error| failed(format!("{}: {error}", file.display())))?;
            return Ok(text.trim_end_matches(['\r', '\n']).to_owned());
        }
        let Some(auth) = &self.auth else {
            return Err(failed("no users file".to_owned()));
        };
        users::password_of(auth, username)?
            .ok_or_else(|| failed(format!("no user {username:?} in {}", auth.display())))
    }
}

impl HttpParts {
    /// What somebody who can reach the node over the network can do to it, if that is worth a
    /// warning.
    pub(crate) fn exposure(&self) -> Option<&'static str> {
        let users = self.options.users.as_deref();
        let everybody_writes = users
            .is_none_or(|users| users.permits_at_once(None, &[Permission::Execute]) == Some(true));
        let tls = self.options.tls.as_deref();
        let is_mutual = tls.is_some_and(Tls::verifies_clients);
        match (tls.is_some(), everybody_writes && !is_mutual) {
            (false, true) => Some(
                "HTTP is neither encrypted nor authenticated; anyone who can reach this address \
                 can read and change the database",
            ),
            (true, true) => Some(
                "HTTP is encrypted but not authenticated; anyone who can reach this address can \
                 read and change the database",
            ),
            (false, false) => {
                Some("HTTP is not encrypted; passwords and data can be read on their way, and used")
            }
            (true, false) => None,
        }
    }
}

fn tls_options(flags: &HttpFlags) -> Result<Option<TlsOptions>, ConfigError> {
    let refuse = |what| Err(ConfigError::Together(what));
    let has_name = !flags.http_verify_common_name.is_empty();
    if flags.http_verify_client && flags.http_ca_cert.is_none() {
        return refuse(
            "-http-verify-client needs -http-ca-cert with the authorities to be trusted",
        );
    }
    if has_name && !flags.http_verify_client {
        return refuse("-http-verify-common-name needs -http-verify-client");
    }
    match (&flags.http_cert, &flags.http_key) {
        (Some(certificate), Some(key)) => Ok(Some(TlsOptions {
            certificate: certificate.clone(),
            key: key.clone(),
            client_authorities: flags.http_ca_cert.clone(),
            verify_client: flags.http_verify_client,
            client_common_name: flags.http_verify_common_name.clone(),
        })),
        (None, None) if flags.http_verify_client => {
            refuse("-http-verify-client needs -http-cert and -http-key")
        }
        (None, None) => Ok(None),
        _ => refuse("either both -http-cert and -http-key must be set, or neither"),
    }
}

/// An origin as browsers send it, so that it can match at all.
fn check_origin(origin: &str) -> Result<(), ConfigError> {
    let site = origin
        .split_once("://")
        .map(|(_, site)| site)
        .filter(|site| !site.is_empty() && !site.contains(['/', ' ', ',', '*']))
        .filter(|site| site.bytes().all(|byte| byte.is_ascii_graphic()));
    if origin == "*" || site.is_some() {
        return Ok(());
    }
    Err(ConfigError::Flag {
        flag: "http-allow-origin",
        problem: format!(
            "{origin:?} is not an origin such as https://app.example or http://localhost:3000, \
             without a path, and not *"
        ),
    })
}

fn check_limits(flags: &HttpFlags, body_bytes_max: usize) -> Result<(), ConfigError> {
    let refuse = |flag, problem: String| Err(ConfigError::Flag { flag, problem });
    for (flag, value) in [
        ("http-header-timeout", flags.http_header_timeout),
        ("http-idle-timeout", flags.http_idle_timeout),
    ] {
        if !(Duration::from_millis(100)..=Duration::from_secs(86_400)).contains(&value) {
            return refuse(flag, "must be 100ms to 24h".to_owned());
        }
    }
    if !(Duration::from_millis(1)..=TIMEOUT_LIMIT).contains(&flags.http_max_timeout) {
        return refuse("http-max-timeout", "must be 1ms to 8760h".to_owned());
    }
    let bounds = [
        (
            "http-max-connections",
            flags.http_max_connections,
            1,
            1 << 20,
        ),
        (
            "http-max-bodies",
            flags.http_max_bodies,
            body_bytes_max,
            1 << 40,
        ),
        ("http-max-response", flags.http_max_response, 1024, 1 << 40),
    ];
    for (flag, value, min, max) in bounds {
        if !(min..=max).contains(&value) {
            return refuse(flag, format!("{value} is not within {min} and {max}"));
        }
    }
    Ok(())
}

/// A year.
const TIMEOUT_LIMIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// More than any password.
const PASSWORD_BYTES_MAX: u64 = 4096;

/// The users, as the node asks them.
pub(crate) fn authority(options: &HttpOptions) -> Option<Arc<dyn wallaby::node::Authority>> {
    let users = options.users.clone()?;
    Some(users)
}
