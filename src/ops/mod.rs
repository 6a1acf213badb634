//! Layer 3: what is done to a database from time to time, how nodes find each other, and what an
//! operator does to them, on the public interface of a node only.

mod discovery;
pub mod peers_file;
mod upkeep;

pub use discovery::{Discovery, DiscoveryError, DiscoveryOptions, Reporter};
pub use peers_file::PeersFileError;
pub use upkeep::{Upkeep, UpkeepOptions};
