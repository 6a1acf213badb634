//! Layer 3: what is done to a database from time to time, on the public interface of a node only.

mod upkeep;

pub use upkeep::{Upkeep, UpkeepOptions};
