//! The log as openraft uses it: its own conformance suite for log stores.

// A test that cannot unwrap says less.
#![allow(clippy::unwrap_used)]

mod log_model;

use std::io;
use std::sync::Arc;

use futures_util::{Stream, TryStreamExt};
use log_model::{IDENTITY, SMALL};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageError};
use tempfile::TempDir;
use wallaby::raft::log::{Log, RealFiles};
use wallaby::raft::{Applied, LogId, StoredMembership, TypeConfig};

/// The least that openraft accepts as a state machine.
#[derive(Clone, Default)]
struct Machine(Arc<tokio::sync::Mutex<MachineState>>);

#[derive(Default)]
struct MachineState {
    applied: Option<LogId>,
    membership: StoredMembership,
    snapshot: Option<SnapshotMetaOf<TypeConfig>>,
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, ()>, io::Error> {
        let mut machine = self.0.lock().await;
        let meta = SnapshotMetaOf::<TypeConfig> {
            last_log_id: machine.applied,
            last_membership: machine.membership.clone(),
        };
        machine.snapshot = Some(meta.clone());
        Ok(SnapshotOf::<TypeConfig, ()> { meta, snapshot: () })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let machine = self.0.lock().await;
        Ok((machine.applied, machine.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let mut machine = self.0.lock().await;
            machine.applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                machine.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            if let Some(responder) = responder {
                responder.send(Applied::Nothing);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        (): (),
    ) -> Result<(), io::Error> {
        let mut machine = self.0.lock().await;
        machine.applied = meta.last_log_id;
        machine.membership = meta.last_membership.clone();
        machine.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, ()>>, io::Error> {
        let snapshot = self.0.lock().await.snapshot.clone();
        Ok(snapshot.map(|meta| SnapshotOf::<TypeConfig, ()> { meta, snapshot: () }))
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, Log, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, Log, Machine), StorageError<TypeConfig>> {
        let directory = TempDir::new().unwrap();
        let files = Arc::new(RealFiles::open(directory.path()).unwrap());
        let log = Log::open(files, IDENTITY, SMALL).unwrap();
        Ok((directory, log, Machine::default()))
    }
}

#[tokio::test]
async fn the_log_passes_the_conformance_suite_of_openraft() {
    Suite::test_all(Builder).await.unwrap();
}
