//! Recovery without a node: what a start does with the files before it speaks to anybody.
//!
//! For who wants to know what a data directory contains after a crash, thousands of times: no
//! network, no readers, no Raft.

use super::error::Error;
use super::identity::Identity;
use super::open::create_dir;
use super::options::NodeOptions;
use super::rebuild;
use super::recovery::{reconcile, recover};
use super::refounding::refound;
use crate::raft::log::Log;
use crate::wal::Position;

/// What a data directory contains, brought in order as a start would have done it.
pub struct Offline {
    /// The log. Entries after `applied` are in it, and perhaps not committed.
    pub log: Log,
    /// The last entry that the main file contains; `None`: there is no database yet.
    pub applied: Option<Position>,
    /// The last data entry that it contains.
    pub data: Option<Position>,
    /// Numbers of the pages of the main file that are not as they were written.
    pub damaged: Vec<u32>,
}

/// Does with the files of a node that is not running what its next start would do first, and lets
/// go of the database. `None`: the node belongs to no cluster yet.
///
/// # Errors
///
/// As [`Node::open`](super::Node::open), except that damage is only reported: nothing is set aside.
pub async fn recover_offline(options: &NodeOptions) -> Result<Option<Offline>, Error> {
    create_dir(options)?;
    let mut options = options.clone();
    rebuild::resume(&mut options)?;
    let name = options.name.as_deref();
    let identity =
        Identity::load_or_create(&options.data_dir, name, options.advertised_raft_addr())?;
    let identity = refound(&options, identity).await?;
    let Some(cluster) = identity.cluster else {
        return Ok(None);
    };
    let recovered =
        tokio::task::spawn_blocking(move || recover(&options, cluster, identity.raft_id))
            .await
            .map_err(|error| Error::Raft(error.to_string()))??;
    let fence = recovered.fence;
    reconcile(recovered.log.clone(), fence.last_applied).await?;
    let damaged = recovered.damaged.iter().map(|page| page.number());
    Ok(Some(Offline {
        applied: fence.last_applied,
        data: fence.last_data,
        damaged: damaged.collect(),
        log: recovered.log,
    }))
}
