//! Whether the node still serves. It stops once, for one reason, and for good: it has failed, which
//! ends the process, or the cluster has removed it, which does not.

use tokio::sync::watch;

/// The node's health; shared by everything that can fail.
pub(crate) struct Health {
    failure: watch::Sender<Option<String>>,
    dismissal: watch::Sender<Option<String>>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            failure: watch::Sender::new(None),
            dismissal: watch::Sender::new(None),
        }
    }
}

impl Health {
    /// Takes the node out of service. The first reason stays.
    pub(crate) fn fail(&self, why: String) {
        if set_once(&self.failure, &why) {
            tracing::error!(reason = %why, "this node stops serving");
        }
    }

    /// Why the node stopped serving, if it did.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    /// A watch on the failure.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<String>> {
        self.failure.subscribe()
    }

    /// Takes the node out of service because it is no member any more.
    pub(crate) fn dismiss(&self, why: String) {
        if set_once(&self.dismissal, &why) {
            tracing::warn!(reason = %why, "this node is no member of its cluster any more");
        }
    }

    /// That the node is no member any more, in a sentence for whoever asks it for something.
    pub(crate) fn dismissal(&self) -> Option<String> {
        self.dismissal.borrow().clone()
    }
}

/// Sets a reason unless there is one.
fn set_once(reason: &watch::Sender<Option<String>>, why: &str) -> bool {
    reason.send_if_modified(|reason| {
        if reason.is_some() {
            return false;
        }
        *reason = Some(why.to_owned());
        true
    })
}
