//! Log lines about nodes that were turned away. A node that is not wanted tries again and again,
//! and a stranger can be many: each reason is said once in a while, and not too many of them.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use super::endpoint::locked;
use super::limits::{
    COMPLAINT_AGAIN, COMPLAINT_INTERVAL, COMPLAINTS_AT_ONCE, COMPLAINTS_REMEMBERED,
};

/// What was said, and when.
#[derive(Default)]
pub(super) struct Complaints(Mutex<Said>);

#[derive(Default)]
struct Said {
    /// When the lines so far would all have been said, with an interval after each.
    paid_until: Option<Instant>,
    /// By address and reason.
    recent: HashMap<(String, String), Instant>,
}

impl Complaints {
    /// Logs that the two sides do not agree to talk to each other, unless this was said not long
    /// ago or too much was just now.
    pub(super) fn complain(&self, addr: &str, reason: &str) {
        if self.is_due(addr, reason, Instant::now()) {
            tracing::warn!(addr, reason, "no connection: the nodes do not agree");
        }
    }

    fn is_due(&self, addr: &str, reason: &str, now: Instant) -> bool {
        let mut said = locked(&self.0);
        let since = |moment: Instant| now.saturating_duration_since(moment);
        let begin = said.paid_until.map_or(now, |until| until.max(now));
        if begin.saturating_duration_since(now) >= COMPLAINT_INTERVAL * COMPLAINTS_AT_ONCE {
            return false;
        }
        let key = (addr.to_owned(), reason.to_owned());
        said.recent
            .retain(|_, moment| since(*moment) < COMPLAINT_AGAIN);
        if said.recent.contains_key(&key) {
            return false;
        }
        // Forgetting all of them only means that some are said again before their time.
        if said.recent.len() >= COMPLAINTS_REMEMBERED {
            said.recent.clear();
        }
        said.recent.insert(key, now);
        said.paid_until = Some(begin + COMPLAINT_INTERVAL);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_said_once_in_a_while_and_another_one_at_once_but_not_in_a_flood() {
        let complaints = Complaints::default();
        let begin = Instant::now();
        assert!(complaints.is_due("a", "key", begin));
        assert!(!complaints.is_due("a", "key", begin));
        assert!(complaints.is_due("a", "expired", begin));
        for other in 2..COMPLAINTS_AT_ONCE {
            assert!(complaints.is_due(&other.to_string(), "key", begin));
        }
        assert!(!complaints.is_due("b", "key", begin));
        let later = begin + COMPLAINT_INTERVAL;
        assert!(complaints.is_due("b", "key", later));
        assert!(!complaints.is_due("c", "key", later));
        assert!(complaints.is_due("a", "key", begin + COMPLAINT_AGAIN));
    }

    #[test]
    fn many_strangers_are_not_remembered_without_bound() {
        let complaints = Complaints::default();
        let mut now = Instant::now();
        for stranger in 0..10 * COMPLAINTS_REMEMBERED {
            now += COMPLAINT_INTERVAL;
            assert!(complaints.is_due(&stranger.to_string(), "key", now));
            assert!(locked(&complaints.0).recent.len() <= COMPLAINTS_REMEMBERED);
        }
    }
}
