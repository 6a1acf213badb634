//! Certificates that are replaced while the node runs: the files are looked at from time to time,
//! and what is in them counts for the next connection, and for the peers of those that exist: one
//! that would not be accepted any more is cut off at once.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use super::endpoint::Inner;
use super::pki::CertificateOptions;
use super::tls::Tls;
use super::watched::Watched;

/// What a node does about its certificate files.
pub(super) struct Renewal {
    pub(super) options: CertificateOptions,
    pub(super) watched: Watched,
    /// When the certificate in use ends.
    pub(super) ends_at: SystemTime,
    /// What was said about that end.
    pub(super) said: Notice,
}

/// How near the end of a certificate is, as the log is told it.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Notice {
    #[default]
    Far,
    Near,
    Over,
}

impl Renewal {
    /// Goes on until the endpoint is closed or dropped.
    pub(super) async fn run(mut self, endpoint: Weak<Inner>) {
        self.warn(SystemTime::now());
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let Some(endpoint) = endpoint.upgrade() else {
                return;
            };
            if endpoint.socket().is_none() {
                return;
            }
            let looked = tokio::task::spawn_blocking(move || {
                self.look(&endpoint);
                self
            });
            let Ok(looked) = looked.await else { return };
            self = looked;
        }
    }

    /// A certificate that does not fit its key is often seen for a moment, while both are replaced:
    /// then the old ones stay.
    fn look(&mut self, endpoint: &Arc<Inner>) {
        if self.watched.have_changed() {
            match Tls::of_files(&self.options, endpoint.node) {
                Ok((tls, ends_at)) => {
                    endpoint.use_tls(tls);
                    self.ends_at = ends_at;
                    self.said = Notice::Far;
                    tracing::info!("the certificate for other nodes was read again");
                }
                Err(error) => tracing::warn!(
                    %error,
                    "the certificate for other nodes was not read again; the old one stays"
                ),
            }
        }
        self.warn(SystemTime::now());
    }

    /// Says once that the end is near, and once that it is over.
    fn warn(&mut self, now: SystemTime) {
        let notice = notice(self.ends_at, now);
        if notice <= self.said {
            return;
        }
        self.said = notice;
        let file = self.options.certificate.display();
        if notice == Notice::Over {
            tracing::error!(%file, "this node's certificate has expired: others refuse it");
        } else {
            tracing::warn!(%file, "this node's certificate expires within a week; replace it");
        }
    }
}

fn notice(ends_at: SystemTime, now: SystemTime) -> Notice {
    match ends_at.duration_since(now) {
        Err(_) => Notice::Over,
        Ok(left) if left < NEAR => Notice::Near,
        Ok(_) => Notice::Far,
    }
}

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const NEAR: Duration = Duration::from_secs(7 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_announced_before_it_comes() {
        let now = SystemTime::now();
        assert_eq!(notice(now + 2 * NEAR, now), Notice::Far);
        assert_eq!(notice(now + NEAR / 2, now), Notice::Near);
        assert_eq!(notice(now - NEAR, now), Notice::Over);
    }
}
