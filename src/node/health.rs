//! Whether the node still serves. It stops once, for one reason, and for good.

use tokio::sync::watch;

/// The node's health; shared by everything that can fail.
pub(crate) struct Health(watch::Sender<Option<String>>);

impl Default for Health {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Health {
    /// Takes the node out of service. The first reason stays.
    pub(crate) fn fail(&self, why: String) {
        self.0.send_if_modified(|reason| {
            if reason.is_some() {
                return false;
            }
            tracing::error!(reason = %why, "this node stops serving");
            *reason = Some(why);
            true
        });
    }

    /// Why the node stopped serving, if it did.
    pub(crate) fn failure(&self) -> Option<String> {
        self.0.borrow().clone()
    }

    /// A watch on the failure.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<String>> {
        self.0.subscribe()
    }
}
