//! Opening and closing a node.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot, watch};

use super::Raft;
use super::admission::Admission;
use super::apply::StateMachine;
use super::attendance::attend;
use super::backup::BACKUPS_MAX;
use super::caller::Doorkeeper;
use super::contact::Contact;
use super::error::Error;
use super::flight::Flights;
use super::footprint::Footprints;
use super::frontier::Frontier;
use super::gate::{Desk, Origin};
use super::health::Health;
use super::identity::{Identity, random_u64};
use super::image_receiver::ImageReceiver;
use super::image_sender::ImageSender;
use super::join_gate::JoinGate;
use super::lineage::Lineage;
use super::listen::listen;
use super::membership::{Membership, Settled};
use super::memory;
use super::network::Network;
use super::options::NodeOptions;
use super::outlets::{Outlets, Watches};
use super::owner::{Job, Owner, OwnerContext, Recorded};
use super::peers::{Peers, Shared};
use super::places::Places;
use super::progress::Stands;
use super::proposer::Proposer;
use super::raft_config::raft_config;
use super::read_index::Questions;
use super::rebuild;
use super::recovery::{Recovered, reconcile, recover};
use super::refounding::refound;
use super::repair::Repairs;
use super::room::Room;
use super::rounds::Confirmations;
use super::running::{Inner, Node, Shell, check};
use super::search::Search;
use super::stages::Stages;
use super::tally::{NodeCounter, Tally};
use super::tasks;
use super::write::WriteQueue;
use crate::raft::log::Log;
use crate::raft::{Member, Role};
use crate::sqlite::{
    DatabaseOptions, Limits, ReadersOptions, STACK_BYTES, StartLock, WriterOptions, assert_version,
    keep_temporary_files_in, limit_heap,
};
use crate::transport::Endpoint;
use crate::wal::ClusterId;

/// What the parts of a node that start at different times share.
struct Assembly {
    options: NodeOptions,
    doorkeeper: Arc<Doorkeeper>,
    membership: Arc<Membership>,
    health: Arc<Health>,
    tally: Arc<Tally<NodeCounter>>,
    endpoint: Endpoint,
    raft: Arc<OnceLock<Raft>>,
    handler_node: Arc<OnceLock<Weak<Inner>>>,
    images: Arc<ImageReceiver>,
    admission: Arc<Admission>,
    places: Arc<Places>,
    lineage: Arc<Lineage>,
    raft_id: u64,
}

impl Node {
    /// Opens the data directory and starts the node. A node that looks for a cluster is returned
    /// before it has found one; until then it refuses requests as not ready.
    ///
    /// # Errors
    ///
    /// [`Error`]: what is wrong with the options or the directory, and what to do.
    pub async fn open(options: NodeOptions) -> Result<Self, Error> {
        check(&options)?;
        assert_version()?;
        create_dir(&options)?;
        keep_temporary_files_in(&options.data_dir);
        let mut options = options;
        rebuild::resume(&mut options)?;
        match Self::open_once(options.clone()).await {
            // An operator who founds the cluster anew counts on what this node has.
            Err(damage) if rebuild::is_damage(&damage) && options.recovery.is_none() => {
                rebuild::begin(&mut options, &damage)?;
                Self::open_once(options).await
            }
            opened => opened,
        }
    }

    async fn open_once(options: NodeOptions) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(RAFT_THREADS)
            .thread_name("raft")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .map_err(Error::io("start the Raft runtime"))?;
        let shell = runtime.spawn(start(options)).await;
        match shell
            .map_err(|error| Error::Raft(error.to_string()))
            .flatten()
        {
            Ok(shell) => {
                *lock(&shell.runtime) = Some(runtime);
                Ok(Self { shell })
            }
            Err(error) => {
                // Dropping it here would wait for its threads on one of ours. The next attempt
                // needs its port.
                let ended = tokio::task::spawn_blocking(|| runtime.shutdown_timeout(TASKS_END));
                drop(ended.await);
                Err(error)
            }
        }
    }

    /// Stops: hands over nothing that was acknowledged to anybody, checkpoints, and closes all
    /// files.
    pub async fn close(&self) {
        let shell = Arc::clone(&self.shell);
        if shell.options.leaves && self.inner().is_ok() {
            match self.leave().await {
                Ok(()) => tracing::info!("this node has left its cluster"),
                Err(error) => tracing::warn!(%error, "this node stays a member of its cluster"),
            }
        }
        if let Some(inner) = shell.inner.get() {
            inner.close().await;
        }
        shell.endpoint.close().await;
        let runtime = lock(&shell.runtime).take();
        if let Some(runtime) = runtime {
            // Tasks that still run hold the socket; whoever opens the node again needs its port.
            let ended = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(TASKS_END));
            if let Err(error) = ended.await {
                tracing::warn!(%error, "the Raft runtime did not end in order");
            }
        }
    }
}

/// Runs on the Raft runtime, so that everything it spawns does.
async fn start(options: NodeOptions) -> Result<Arc<Shell>, Error> {
    let name = options.name.as_deref();
    let identity =
        Identity::load_or_create(&options.data_dir, name, options.advertised_raft_addr())?;
    let identity = refound(&options, identity).await?;
    let member = own_member(&options, &identity);
    let endpoint = listen(&options, &identity)?;
    let (raft, health) = (Arc::new(OnceLock::new()), Arc::new(Health::default()));
    let tally = Arc::<Tally<NodeCounter>>::default();
    let assigned = identity.cluster;
    let raft_id = identity.raft_id;
    let membership = Membership::new(
        options.data_dir.clone(),
        identity,
        member,
        Search::of(&options),
        Arc::clone(&raft),
        Arc::clone(&health),
    );
    let handler_node = Arc::new(OnceLock::new());
    let places = Places::new(&raft);
    let lineage = Lineage::new(&options.data_dir, &health, &raft);
    let admission = Admission::new(&raft, &endpoint, raft_id, &tally);
    let doorkeeper = Arc::new(Doorkeeper::new(options.authority.clone()));
    let images = Arc::new(ImageReceiver::new(
        options.data_dir.clone(),
        Arc::clone(&tally),
    ));
    endpoint.serve(Arc::new(Shared(Arc::new(Peers {
        gate: JoinGate::new(Arc::clone(&doorkeeper)),
        membership: Arc::clone(&membership),
        admission: Arc::clone(&admission),
        places: Arc::clone(&places),
        lineage: Arc::clone(&lineage),
        raft: Arc::clone(&raft),
        tally: Arc::clone(&tally),
        images: Arc::clone(&images),
        node: Arc::clone(&handler_node),
    }))));
    let shell = Arc::new(Shell {
        options: options.clone(),
        doorkeeper: Arc::clone(&doorkeeper),
        membership: Arc::clone(&membership),
        health: Arc::clone(&health),
        tally: Arc::clone(&tally),
        endpoint: endpoint.clone(),
        inner: OnceLock::new(),
        runtime: Mutex::new(None),
    });
    let assembly = Assembly {
        options,
        doorkeeper,
        membership,
        health,
        tally,
        endpoint,
        raft,
        handler_node,
        images,
        admission,
        places,
        lineage,
        raft_id,
    };
    assembly.launch(&shell, assigned).await?;
    Ok(shell)
}

/// This node as it presents itself to others.
fn own_member(options: &NodeOptions, identity: &Identity) -> Member {
    Member {
        name: identity.name.clone(),
        raft_addr: options.advertised_raft_addr().to_owned(),
        http_addr: options.http_adv_addr.clone(),
        role: if options.replica {
            Role::Replica
        } else {
            Role::Voter
        },
    }
}

impl Assembly {
    /// Runs at once, or in the background if a cluster must be found first.
    async fn launch(self, shell: &Arc<Shell>, assigned: Option<ClusterId>) -> Result<(), Error> {
        let me = &self.membership.member.raft_addr;
        if self.membership.search.is_alone(me) || assigned.is_some() {
            let ran = self.run(shell, assigned).await;
            if ran.is_err() {
                // Another attempt may follow, and needs the port.
                shell.endpoint.close().await;
            }
            return ran;
        }
        let shell = Arc::clone(shell);
        tokio::spawn(async move {
            if let Err(error) = self.run(&shell, None).await {
                shell.health.fail(error.to_string());
            }
        });
        Ok(())
    }

    /// Finds the cluster, recovers, and starts Raft.
    async fn run(self, shell: &Arc<Shell>, assigned: Option<ClusterId>) -> Result<(), Error> {
        let recovered = match assigned {
            Some(cluster) => Some(self.recover(cluster).await?),
            None => None,
        };
        let pristine = recovered
            .as_ref()
            .is_none_or(|recovered| recovered.log.last().is_none());
        let (cluster, settled) = self.membership.settle(&self.endpoint, pristine).await?;
        let recovered = match recovered {
            Some(recovered) => recovered,
            None => self.recover(cluster).await?,
        };
        self.endpoint.assign(cluster)?;
        let inner = self.assemble(cluster, recovered).await?;
        if let Settled::Initialise(members) = settled {
            tracing::info!(%cluster, members = members.len(), "starting a new cluster");
            let initialised = inner.raft.initialize(members).await;
            initialised.map_err(|error| Error::Raft(error.to_string()))?;
        } else if !self.options.join.is_empty() {
            let endpoint = self.endpoint.clone();
            tokio::spawn(Arc::clone(&self.membership).check_targets(endpoint));
        }
        tokio::spawn(attend(Arc::clone(&inner)));
        if shell.inner.set(inner).is_err() {
            unreachable!("a node is assembled once");
        }
        Ok(())
    }

    async fn recover(&self, cluster: ClusterId) -> Result<Recovered, Error> {
        let (mut options, raft_id) = (self.options.clone(), self.raft_id);
        // That is done.
        options.recovery = None;
        tokio::task::spawn_blocking(move || recover(&options, cluster, raft_id))
            .await
            .map_err(|error| Error::Raft(error.to_string()))?
    }

    async fn assemble(&self, cluster: ClusterId, from: Recovered) -> Result<Arc<Inner>, Error> {
        if let (Some(data), Some(hashes)) = (from.fence.last_data, &from.hashes) {
            self.lineage.note(data, hashes.sum());
        }
        let flights = Arc::new(Flights::default());
        let stages = Arc::new(Stages::default());
        let frontier = Arc::new(Frontier::new(from.fence, from.membership.clone()));
        let runtime = tokio::runtime::Handle::current();
        let proposer = Proposer::new(runtime, Arc::clone(&flights), Arc::clone(&stages));
        let origin = Origin {
            cluster,
            node: self.raft_id,
            epoch: random_u64()?,
        };
        let desk = self.desk(origin, &flights, &frontier, &proposer, &stages);
        let freezes = Arc::clone(&desk.freezes);
        let log = from.log.clone();
        let was_closed = from.was_closed;
        let repairs = self.repairs(&frontier, &log);
        reconcile(log.clone(), from.fence.last_applied).await?;
        let gate = Arc::clone(&desk);
        let (owner, watches) = self.start_owner(desk, from, Arc::clone(&repairs)).await?;
        let machine = self.machine(&gate, &owner, &log, &watches, &repairs);
        let raft = self.start_raft(&owner, log.clone(), machine).await?;
        proposer.connect(raft.clone());
        let inner = Arc::new(Inner {
            options: self.options.clone(),
            doorkeeper: Arc::clone(&self.doorkeeper),
            membership: Arc::clone(&self.membership),
            health: Arc::clone(&self.health),
            endpoint: self.endpoint.clone(),
            raft,
            log,
            owner,
            flights,
            frontier,
            stages,
            tally: Arc::clone(&self.tally),
            writes: WriteQueue::new(),
            confirmations: self.confirmations(),
            questions: Questions::of(Arc::clone(&self.handler_node)),
            led: watch::Sender::default(),
            watches,
            footprints: Footprints::default(),
            facts: OnceLock::new(),
            admission: Arc::clone(&self.admission),
            places: Arc::clone(&self.places),
            contact: Contact::default(),
            stands: Stands::default(),
            room: Room::default(),
            repairs,
            freezes,
            images: Arc::clone(&self.images),
            handed_over_term: AtomicU64::new(0),
            backups: Arc::new(Semaphore::new(BACKUPS_MAX)),
            loads: Arc::new(Semaphore::new(1)),
            is_closing: AtomicBool::new(false),
        });
        drop(self.handler_node.set(Arc::downgrade(&inner)));
        inner.writes.connect(&inner);
        tokio::spawn(Arc::clone(&self.admission).finish_changes());
        tasks::start(&inner, origin, was_closed);
        Ok(inner)
    }

    fn desk(
        &self,
        origin: Origin,
        flights: &Arc<Flights>,
        frontier: &Arc<Frontier>,
        proposer: &Arc<Proposer>,
        stages: &Arc<Stages>,
    ) -> Arc<Desk> {
        Desk::new(
            origin,
            Arc::clone(flights),
            Arc::clone(frontier),
            Arc::clone(proposer),
            Arc::clone(stages),
            Arc::clone(&self.lineage),
            self.options.entry_bytes_max,
        )
    }

    fn machine(
        &self,
        desk: &Desk,
        owner: &Arc<Owner>,
        log: &Log,
        watches: &Watches,
        repairs: &Arc<Repairs>,
    ) -> StateMachine {
        StateMachine {
            owner: Arc::clone(owner),
            flights: Arc::clone(&desk.flights),
            frontier: Arc::clone(&desk.frontier),
            log: log.clone(),
            health: Arc::clone(&self.health),
            origin: desk.origin,
            lineage: Arc::clone(&self.lineage),
            recorded: watches.recorded.clone(),
            dir: self.options.data_dir.clone(),
            repairs: Arc::clone(repairs),
            spool_bytes_max: self.options.spool_bytes_max,
            parts: None,
            tally: Arc::clone(&self.tally),
            taken_in: self.membership.taken_in(),
        }
    }

    fn confirmations(&self) -> Confirmations {
        Confirmations::of(
            Arc::clone(&self.raft),
            self.options.election_max() * 2,
            Arc::clone(&self.tally),
        )
    }

    fn repairs(&self, frontier: &Arc<Frontier>, log: &Log) -> Arc<Repairs> {
        Repairs::new(
            self.endpoint.clone(),
            self.raft_id,
            Arc::clone(&self.raft),
            Arc::clone(frontier),
            log.clone(),
        )
    }

    async fn start_owner(
        &self,
        desk: Arc<Desk>,
        from: Recovered,
        repairs: Arc<Repairs>,
    ) -> Result<(Arc<Owner>, Watches), Error> {
        let options = &self.options;
        let recorded = from.recorded.map(|applied| Recorded {
            applied,
            membership: from.membership,
        });
        let (outlets, watches) = Outlets::new(recorded);
        let limits = Limits {
            result_bytes_max: options.result_bytes_max,
            ..Limits::default()
        };
        limit_heap(match options.heap_bytes_max {
            0 => memory::bytes().map_or(0, |bytes| bytes / 2),
            bytes => bytes,
        });
        let context = OwnerContext {
            database: DatabaseOptions {
                spool_bytes_max: usize::try_from(options.spool_bytes_max).unwrap_or(usize::MAX),
                transaction_bytes_max: options.transaction_bytes_max,
            },
            writer: WriterOptions {
                foreign_keys: options.foreign_keys,
                limits,
                extensions: options.extensions.clone(),
            },
            readers: ReadersOptions {
                foreign_keys: options.foreign_keys,
                threads: options.readers,
                path: options.data_dir.join(StartLock::FILE_NAME),
                queue_max: READS_WAITING_MAX,
                limits,
                extensions: options.extensions.clone(),
            },
            desk,
            log: from.log,
            health: Arc::clone(&self.health),
            tally: Arc::clone(&self.tally),
            checkpoint_wal_bytes: options.checkpoint_wal_bytes,
            checkpoint_entries: options.checkpoint_entries,
            dir: options.data_dir.clone(),
            snapshot_wal_bytes_max: options.snapshot_wal_bytes_max,
            checkpoint_interval: options.checkpoint_interval,
            outlets,
            repairs,
            open_wait: options.open_wait,
        };
        let (lock, hashes, damaged) = (from.lock, from.hashes, from.damaged);
        let owner = move || Owner::start(context, lock, hashes, damaged);
        let owner = tokio::task::spawn_blocking(owner)
            .await
            .map_err(|error| Error::Raft(error.to_string()))??;
        Ok((owner, watches))
    }

    async fn start_raft(
        &self,
        owner: &Arc<Owner>,
        log: Log,
        machine: StateMachine,
    ) -> Result<Raft, Error> {
        let network = Network {
            endpoint: self.endpoint.clone(),
            places: Arc::clone(&self.places),
            lineage: Arc::clone(&self.lineage),
            images: ImageSender {
                owner: Arc::clone(owner),
                transfers: Arc::clone(&self.images.transfers),
                tally: Arc::clone(&self.tally),
            },
            stall: self.options.election_max() * 2,
        };
        let config = Arc::new(raft_config(&self.options)?);
        let raft = Raft::new(self.raft_id, config, network, log, machine).await;
        let raft = raft.map_err(|error| Error::Raft(error.to_string()))?;
        if self.raft.set(raft.clone()).is_err() {
            unreachable!("Raft is started once");
        }
        Ok(raft)
    }
}

impl Inner {
    async fn close(self: &Arc<Self>) {
        self.is_closing.store(true, Ordering::Release);
        // The group in flight is finished if the quorum answers in time; else it stays undecided.
        let begun = Instant::now();
        while self.flights.is_in_the_air() && begun.elapsed() < FLIGHT_PATIENCE {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if self.options.hands_over {
            self.hand_over_at_the_end().await;
        }
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "Raft did not stop in order");
        }
        drop(self.flights.discard_any("this node is shutting down"));
        // What is being applied is finished, before the database is closed under it.
        drop(tokio::time::timeout(FLIGHT_PATIENCE, self.frontier.wait_final()).await);
        let (done, closed) = oneshot::channel();
        self.owner.submit(Job::Close { done });
        // An owner that is gone already has nothing to close.
        let _ = closed.await;
        let (owner, log) = (Arc::clone(&self.owner), self.log.clone());
        let readers = Arc::clone(&self.watches.readers);
        let joined = tokio::task::spawn_blocking(move || {
            owner.join();
            if let Some(readers) = readers.get() {
                readers.close();
            }
            log.close();
        });
        if let Err(error) = joined.await {
            tracing::warn!(%error, "closing the files did not end in order");
        }
        self.writes.close();
    }
}

/// Only the operator's account reads what the database contains.
pub(super) fn create_dir(options: &NodeOptions) -> Result<(), Error> {
    let dir = &options.data_dir;
    let create = || {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
    };
    create().map_err(Error::io(format!(
        "create the data directory {}",
        dir.display()
    )))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const RAFT_THREADS: usize = 2;
/// A quorum that is there answers in milliseconds.
const FLIGHT_PATIENCE: Duration = Duration::from_secs(2);
/// Tasks end at their next await; only work on files can take longer, and is waited for no longer.
const TASKS_END: Duration = Duration::from_secs(2);
/// Beyond this, clients are told to come back.
const READS_WAITING_MAX: usize = 16 << 10;
