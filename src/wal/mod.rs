//! Layer 0: bytes. SQLite's WAL format, the WAL-index, and the delta that travels between nodes.

mod hash;
mod page;
mod position;

pub use hash::{DatabaseHash, PageHash};
pub use page::{PageCount, PageNumber, PageSize};
pub use position::{ClusterId, Position};
