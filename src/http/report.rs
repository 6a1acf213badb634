//! Parts of `/status` about what stands beside the node.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

/// One part of `/status`, asked anew for each call.
#[derive(Clone)]
pub struct Report {
    pub(super) key: &'static str,
    pub(super) value: Arc<dyn Fn() -> Value + Send + Sync>,
}

impl Report {
    /// The part under a top-level key.
    pub fn new(key: &'static str, value: impl Fn() -> Value + Send + Sync + 'static) -> Self {
        Self {
            key,
            value: Arc::new(value),
        }
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Report").field(&self.key).finish()
    }
}
