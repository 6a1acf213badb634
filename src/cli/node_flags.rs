//! The flags of `wallaby serve` by which nodes know each other by certificates of the operator's
//! own: rqlited's, with rqlited's meanings.

use std::path::PathBuf;

use wallaby::transport::CertificateOptions;

use crate::cli::config::ConfigError;
use crate::cli::flags::switch;

/// Certificates in place of the cluster key.
#[derive(clap::Args)]
pub(crate) struct NodeFlags {
    /// Certificate (PEM) that this node shows to others, with those that lead to its authority;
    /// in place of -cluster-key.
    #[arg(long, value_name = "FILE")]
    pub(crate) node_cert: Option<PathBuf>,
    /// Private key (PEM) of -node-cert.
    #[arg(long, value_name = "FILE")]
    node_key: Option<PathBuf>,
    /// Authorities (PEM) of the other nodes' certificates (default: those that the operating system
    /// trusts).
    #[arg(long, value_name = "FILE")]
    node_ca_cert: Option<PathBuf>,
    /// Do not verify the certificates of nodes that are dialed.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = switch, value_name = "BOOL")]
    node_no_verify: bool,
    /// Accept only nodes that show a certificate of -node-ca-cert; without it, whoever reaches the
    /// Raft address can act as a node.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = switch, value_name = "BOOL")]
    node_verify_client: bool,
    /// The name that the certificates of nodes that are dialed must be valid for (default: the host
    /// of the address that is dialed).
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    node_verify_server_name: String,
    /// The common name that the certificates of other nodes must have.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    node_verify_common_name: String,
}

impl NodeFlags {
    /// Checks the flags; no file is read yet. `has_key`: there is a cluster key.
    ///
    /// # Errors
    ///
    /// What is missing, or what would make somebody believe in a check that is not made.
    pub(crate) fn certificates(
        &self,
        has_key: bool,
    ) -> Result<Option<CertificateOptions>, ConfigError> {
        let refuse = |what| Err(ConfigError::Together(what));
        let verifies_server = !self.node_no_verify;
        let (certificate, key) = match (&self.node_cert, &self.node_key) {
            (Some(certificate), Some(key)) => (certificate, key),
            (None, None) => {
                return match self.without_certificate() {
                    Some(what) => refuse(what),
                    None => Ok(None),
                };
            }
            _ => return refuse("either both -node-cert and -node-key must be set, or neither"),
        };
        if has_key {
            return refuse(
                "-cluster-key and -node-cert are two ways to the same end; give one of them",
            );
        }
        if self.node_verify_client && self.node_ca_cert.is_none() {
            return refuse(
                "-node-verify-client needs -node-ca-cert with the authorities to be trusted",
            );
        }
        let given = |name: &String| Some(name.clone()).filter(|name| !name.is_empty());
        let server_name = given(&self.node_verify_server_name);
        let common_name = given(&self.node_verify_common_name);
        if server_name.is_some() && !verifies_server {
            return refuse("-node-verify-server-name cannot be used with -node-no-verify");
        }
        if common_name.is_some() && !verifies_server && !self.node_verify_client {
            return refuse(
                "-node-verify-common-name cannot be used with -node-no-verify unless \
                 -node-verify-client is set",
            );
        }
        Ok(Some(CertificateOptions {
            certificate: certificate.clone(),
            key: key.clone(),
            authorities: self.node_ca_cert.clone(),
            verify_server: verifies_server,
            verify_client: self.node_verify_client,
            server_name,
            common_name,
        }))
    }

    /// What is asked of certificates although there are none; -node-no-verify asks for nothing.
    fn without_certificate(&self) -> Option<&'static str> {
        let asked = [
            (
                self.node_ca_cert.is_some(),
                "-node-ca-cert needs -node-cert and -node-key",
            ),
            (
                self.node_verify_client,
                "-node-verify-client needs -node-cert and -node-key",
            ),
            (
                !self.node_verify_server_name.is_empty(),
                "-node-verify-server-name needs -node-cert and -node-key",
            ),
            (
                !self.node_verify_common_name.is_empty(),
                "-node-verify-common-name needs -node-cert and -node-key",
            ),
        ];
        asked
            .into_iter()
            .find_map(|(given, what)| given.then_some(what))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: NodeFlags,
    }

    fn options(flags: &[&str]) -> Result<Option<CertificateOptions>, String> {
        let words = ["wallaby"].iter().chain(flags);
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        let made = line.flags.certificates(false);
        made.map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refused(flags: &[&str], expected: &str) {
        let error = options(flags).unwrap_err();
        assert!(error.contains(expected), "{flags:?}: {error}");
    }

    const PAIR: [&str; 2] = ["--node-cert=c", "--node-key=k"];

    fn with(more: &[&'static str]) -> Vec<&'static str> {
        [&PAIR[..], more].concat()
    }

    #[test]
    fn what_secures_the_cluster_must_be_whole() {
        let pair = "either both -node-cert and -node-key must be set, or neither";
        refused(&["--node-cert=c"], pair);
        refused(&["--node-key=k"], pair);
        for flag in [
            "--node-ca-cert=a",
            "--node-verify-client",
            "--node-verify-server-name=n",
            "--node-verify-common-name=n",
        ] {
            refused(&[flag], "needs -node-cert and -node-key");
        }
        refused(&with(&["--node-verify-client"]), "needs -node-ca-cert");
        let name = "--node-verify-server-name=n";
        refused(&with(&["--node-no-verify", name]), "-node-no-verify");
        let name = "--node-verify-common-name=n";
        refused(&with(&["--node-no-verify", name]), "-node-no-verify");
        assert_eq!(options(&["--node-no-verify"]), Ok(None));
    }

    #[test]
    fn a_key_and_certificates_exclude_each_other() {
        let line = Line::try_parse_from(["wallaby"].iter().chain(&PAIR)).unwrap();
        let error = line.flags.certificates(true).unwrap_err().to_string();
        assert!(error.contains("give one of them"), "{error}");
    }

    #[test]
    fn dialed_nodes_are_verified_unless_it_is_said_otherwise() {
        let plain = options(&PAIR).unwrap().unwrap();
        assert!(plain.verify_server && !plain.verify_client);
        assert_eq!((plain.server_name, plain.common_name), (None, None));
        let all = options(&with(&[
            "--node-no-verify",
            "--node-verify-client",
            "--node-ca-cert=a",
            "--node-verify-common-name=n",
        ]));
        let all = all.unwrap().unwrap();
        assert!(!all.verify_server && all.verify_client);
        assert_eq!(all.common_name.as_deref(), Some("n"));
    }
}
