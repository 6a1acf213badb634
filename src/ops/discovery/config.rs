//! `-disco-config`: JSON, or a file with it, in which `${NAME}` stands for a variable of the
//! environment.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Why a configuration is of no use.
#[derive(Debug, thiserror::Error)]
#[error("-{flag}: {problem}")]
pub struct DiscoveryError {
    flag: &'static str,
    problem: String,
}

impl DiscoveryError {
    pub(super) fn mode(mode: &str) -> Self {
        let problem = format!("`{mode}` is none of consul-kv, dns, dns-srv, etcd-kv");
        Self {
            flag: "disco-mode",
            problem,
        }
    }

    pub(super) fn config(problem: impl Into<String>) -> Self {
        Self {
            flag: "disco-config",
            problem: problem.into(),
        }
    }
}

/// Name and password for a store.
#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Login {
    pub(super) username: String,
    pub(super) password: String,
}

/// How a store is known to be the right one, and this node to it.
#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tls {
    /// Authorities (PEM); none: those that the web trusts.
    pub(super) ca_file: Option<PathBuf>,
    /// Certificate (PEM) to be shown.
    pub(super) cert_file: Option<PathBuf>,
    /// Its key (PEM).
    pub(super) key_file: Option<PathBuf>,
    /// Whether any certificate will do.
    pub(super) insecure_skip_verify: bool,
}

/// The text that the flag stands for, its variables filled in.
pub(super) fn text(flag: &str) -> Result<String, DiscoveryError> {
    if flag.trim().is_empty() {
        return Ok("{}".to_owned());
    }
    // A file first, as in rqlite. JSON of any use is no name of a file.
    let text = match std::fs::read_to_string(flag) {
        Ok(text) => text,
        Err(_) if flag.trim_start().starts_with('{') => flag.to_owned(),
        Err(error) => {
            let problem = format!("{flag:?} is neither JSON nor a file that can be read: {error}");
            return Err(DiscoveryError::config(problem));
        }
    };
    Ok(expanded(&text, |name| std::env::var(name).ok()))
}

/// `${NAME}` is replaced; nothing stands for a variable that is not set, as in rqlite.
fn expanded(text: &str, variable: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find("${") {
        let Some(length) = rest[begin..].find('}') else {
            break;
        };
        let name = &rest[begin + 2..begin + length];
        let value = variable(name);
        if value.is_none() {
            tracing::warn!(
                name,
                "a variable in -disco-config is not set, and taken as empty"
            );
        }
        out.push_str(&rest[..begin]);
        out.push_str(&value.unwrap_or_default());
        rest = &rest[begin + length + 1..];
    }
    out.push_str(rest);
    out
}

/// Reads the text as a configuration of one kind.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, DiscoveryError> {
    // Once as an object, because serde_json would take a list for a struct as well.
    let fields: Result<BTreeMap<String, serde_json::Value>, _> = serde_json::from_str(text);
    let parsed = fields.and_then(|_| serde_json::from_str(text));
    parsed.map_err(|error| DiscoveryError::config(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_in() {
        let variable = |name: &str| (name == "A").then(|| "one".to_owned());
        for (text, expected) in [
            ("${A}", "one"),
            ("x${A}y${A}", "xoneyone"),
            ("${B}!", "!"),
            ("$A ${A", "$A ${A"),
            ("plain", "plain"),
        ] {
            assert_eq!(expanded(text, variable), expected);
        }
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for text in ["[]", "{", "{\"user\":1}", "null"] {
            assert!(parse::<Login>(text).is_err(), "{text}");
        }
        assert!(text("/nonexistent/file").is_err());
        assert_eq!(text(" ").unwrap(), "{}");
    }
}
