//! What the owner thread lets others see without asking it.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use super::owner::Recorded;
use crate::sqlite::Readers;

/// The size of the database as `/status` shows it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extent {
    pub(crate) wal_bytes: u64,
    pub(crate) page_count: u32,
    pub(crate) page_size: u32,
    pub(crate) hash: u128,
    /// The entry after which the database has this hash.
    pub(crate) data_index: u64,
}

/// The owner's side.
pub(crate) struct Outlets {
    /// Filled when the database exists.
    pub(crate) readers: Arc<OnceLock<Readers>>,
    /// How the connection that writes is set; filled when the database exists.
    pub(crate) pragmas: Arc<OnceLock<Vec<(String, String)>>>,
    /// The last durable checkpoint record.
    pub(crate) recorded: watch::Sender<Option<Recorded>>,
    /// What keeps checkpoints from completing.
    pub(crate) blocked: watch::Sender<Option<String>>,
    /// The database's size after the last job.
    pub(crate) extent: watch::Sender<Extent>,
}

/// Everyone else's side.
pub(crate) struct Watches {
    pub(crate) readers: Arc<OnceLock<Readers>>,
    pub(crate) pragmas: Arc<OnceLock<Vec<(String, String)>>>,
    pub(crate) recorded: watch::Receiver<Option<Recorded>>,
    pub(crate) blocked: watch::Receiver<Option<String>>,
    pub(crate) extent: watch::Receiver<Extent>,
}

impl Outlets {
    pub(crate) fn new(recorded: Option<Recorded>) -> (Self, Watches) {
        let readers = Arc::new(OnceLock::new());
        let pragmas = Arc::new(OnceLock::new());
        let (recorded, recorded_watch) = watch::channel(recorded);
        let (blocked, blocked_watch) = watch::channel(None);
        let (extent, extent_watch) = watch::channel(Extent::default());
        let watches = Watches {
            readers: Arc::clone(&readers),
            pragmas: Arc::clone(&pragmas),
            recorded: recorded_watch,
            blocked: blocked_watch,
            extent: extent_watch,
        };
        let outlets = Self {
            readers,
            pragmas,
            recorded,
            blocked,
            extent,
        };
        (outlets, watches)
    }
}
