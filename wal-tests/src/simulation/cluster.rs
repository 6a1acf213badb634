//! Whole nodes and their lives: started, stopped in order, killed, cut from power, paused.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use wallaby::node::{
    ClusterKey, Node, NodeCounter, NodeOptions, NodeStatus, ReadRequest, Refusal, Served,
    WriteRequest,
};

use super::disk::Disk;
use super::events::Events;
use super::network::Network;
use super::threads;
use crate::files::Keep;
use crate::linked::FrozenImage;

/// What a node is asked to do, as through its HTTP interface.
enum Call {
    Close(oneshot::Sender<()>),
    Execute(WriteRequest, oneshot::Sender<Result<Served, Refusal>>),
    Image(oneshot::Sender<Result<FrozenImage, Refusal>>),
    Query(ReadRequest, oneshot::Sender<Result<Served, Refusal>>),
}

/// Some nodes on their network.
pub struct Cluster {
    /// The network between them.
    pub network: Network,
    /// What happens.
    pub events: Arc<Events>,
    dir: PathBuf,
    seats: Vec<Mutex<Seat>>,
    lives: Mutex<u32>,
    counts: Mutex<Counts>,
}

/// The place of a node.
struct Seat {
    dir: PathBuf,
    disk: Disk,
    life: Option<Life>,
}

/// From one start to its end.
#[derive(Clone)]
struct Life {
    group: u32,
    calls: mpsc::UnboundedSender<Call>,
    node: Arc<OnceLock<Node>>,
    is_paused: bool,
}

/// What happened on all nodes in all their lives.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Times that a node was started.
    pub starts: u64,
    /// Databases received from a leader.
    pub installs: u64,
    /// Log entries that another leader replaced.
    pub cut_off: u64,
    /// Transactions that were executed and given up.
    pub discarded: u64,
}

impl Counts {
    fn add(&mut self, status: &NodeStatus, node: &Node) {
        let stage = |wanted: &str| {
            let found = status.stages.iter().find(|(name, _)| *name == wanted);
            found.map_or(0, |(_, count)| *count)
        };
        let counters = node.counters().all();
        let installs = NodeCounter::ImagesInstalled;
        self.installs += counters[wallaby::node::Counted::place(installs)].value;
        self.cut_off += status.log_cut_off;
        self.discarded += stage("Executed").saturating_sub(stage("Applied"));
    }
}

impl Cluster {
    /// Nodes that are to found a cluster together, none of them running.
    ///
    /// # Panics
    ///
    /// When the directory cannot be used.
    #[must_use]
    pub fn new(
        nodes: usize,
        dir: &Path,
        network: Network,
        events: Arc<Events>,
        disks_lie: bool,
    ) -> Self {
        let key = ClusterKey::generate().expect("there are random bytes");
        key.write_new(&dir.join("key")).expect("a new file");
        let seat = |node: usize| {
            Mutex::new(Seat {
                dir: dir.join(format!("node{}-0", node + 1)),
                disk: Disk::new(disks_lie),
                life: None,
            })
        };
        Self {
            network,
            events,
            dir: dir.to_owned(),
            seats: (0..nodes).map(seat).collect(),
            lives: Mutex::default(),
            counts: Mutex::default(),
        }
    }

    /// How many nodes there are.
    #[must_use]
    pub fn size(&self) -> usize {
        self.seats.len()
    }

    /// The nodes that run.
    #[must_use]
    pub fn running(&self) -> Vec<usize> {
        let runs = |node: &usize| self.life(*node).is_some();
        (0..self.size()).filter(runs).collect()
    }

    /// Whether a node is paused.
    #[must_use]
    pub fn is_paused(&self, node: usize) -> bool {
        self.life(node).is_some_and(|life| life.is_paused)
    }

    fn seat(&self, node: usize) -> MutexGuard<'_, Seat> {
        lock(&self.seats[node])
    }

    fn life(&self, node: usize) -> Option<Life> {
        self.seat(node).life.clone()
    }

    fn options(&self, node: usize, seat: &Seat) -> NodeOptions {
        let address = |node: usize| Network::address(node).to_string();
        let name = format!("node{}", node + 1);
        let http = format!("{name}:4001");
        let mut options = NodeOptions::new(seat.dir.clone(), address(node), http);
        options.name = Some(name);
        options.join = (0..self.size()).map(address).collect();
        options.bootstrap_expect = self.size() as u64;
        options.settle_time_max = Duration::from_secs(60);
        options.cluster_key = Some(self.dir.join("key"));
        options.sockets = Arc::new(self.network.clone());
        options.log_files = Some(Arc::new(seat.disk.clone()));
        options.readers = 2;
        options.heap_bytes_max = 1 << 30;
        // Small, so that a minute sees what weeks see otherwise.
        options.entry_bytes_max = 128 << 10;
        options.log_segment_bytes = 256 << 10;
        options.log_tail_bytes = 64 << 10;
        options.log_catch_up_bytes = 256 << 10;
        options.checkpoint_wal_bytes = 128 << 10;
        options.checkpoint_entries = 200;
        options.checkpoint_interval = Duration::from_secs(2);
        options
    }

    /// Starts a node.
    ///
    /// # Panics
    ///
    /// When it runs, or there are no more threads.
    pub fn start(&self, node: usize) {
        let mut seat = self.seat(node);
        assert!(seat.life.is_none(), "node {} runs already", node + 1);
        let group = self.next_life();
        self.events.note(&format!("node {} starts", node + 1));
        let (calls, asked) = mpsc::unbounded_channel();
        let shared = Arc::new(OnceLock::new());
        let life = Life {
            group,
            calls,
            node: Arc::clone(&shared),
            is_paused: false,
        };
        seat.life = Some(life);
        let options = self.options(node, &seat);
        let events = Arc::clone(&self.events);
        let thread = std::thread::Builder::new().name(format!("life {group}"));
        let started = thread.spawn(move || {
            threads::enter(group);
            live(node, options, asked, &shared, &events);
        });
        drop(started.expect("a thread can be started"));
        lock(&self.counts).starts += 1;
    }

    /// A number that no group had before.
    fn next_life(&self) -> u32 {
        let mut lives = lock(&self.lives);
        *lives += 1;
        *lives
    }

    /// Ends a node at once: nothing that it is doing goes on. `keep` says what of the log is found
    /// afterwards; everything else is found as it was written.
    ///
    /// # Panics
    ///
    /// When it does not run, or its directory cannot be copied.
    pub fn crash(&self, node: usize, keep: Keep, seed: u64) {
        self.count(node);
        let life = self.seat(node).life.take().expect("the node runs");
        threads::freeze(life.group);
        self.network.unplug(node);
        let number = self.next_life();
        let mut seat = self.seat(node);
        seat.disk = seat.disk.restart(keep, seed);
        // The old life has its files open, with locks that this process cannot take from itself.
        let next = self.dir.join(format!("node{}-{number}", node + 1));
        if seat.dir.exists() {
            copy(&seat.dir, &next).expect("a data directory can be copied");
        }
        seat.dir = next;
        drop(seat);
        self.events
            .note(&format!("node {} crashes, {keep:?}", node + 1));
        // Whoever holds on to it would end what a crash does not end.
        std::mem::forget(life);
    }

    /// Stops a node in order.
    pub async fn stop(&self, node: usize) {
        self.count(node);
        let Some(life) = self.life(node) else { return };
        self.events.note(&format!("node {} stops", node + 1));
        let (done, closed) = oneshot::channel();
        let asked = life.calls.send(Call::Close(done));
        let closed = async { asked.is_ok() && closed.await.is_ok() };
        let closed = tokio::time::timeout(CLOSE_PATIENCE, closed).await;
        if closed != Ok(true) {
            self.events
                .violation(&format!("node {} does not close: {closed:?}", node + 1));
        }
        self.events.note(&format!("node {} has stopped", node + 1));
        self.seat(node).life = None;
    }

    /// Stops all threads of a node where they are.
    pub fn pause(&self, node: usize) {
        if let Some(life) = &mut self.seat(node).life {
            life.is_paused = true;
            threads::pause(life.group);
            self.events.note(&format!("node {} is paused", node + 1));
        }
    }

    /// Lets them go on.
    pub fn resume(&self, node: usize) {
        if let Some(life) = &mut self.seat(node).life
            && life.is_paused
        {
            life.is_paused = false;
            threads::resume(life.group);
            self.events.note(&format!("node {} goes on", node + 1));
        }
    }

    /// Makes a node's disk slow, or quick again.
    pub fn slow_disk(&self, node: usize, is_slow: bool) {
        if let Some(life) = self.life(node) {
            threads::slow_down(life.group, is_slow);
            let what = if is_slow { "slow" } else { "quick" };
            self.events
                .note(&format!("the disk of node {} is {what}", node + 1));
        }
    }

    /// Whether a node has ended itself.
    #[must_use]
    pub fn has_aborted(&self, node: usize) -> bool {
        self.life(node)
            .is_some_and(|life| threads::has_aborted(life.group))
    }

    /// What a running node says about itself; `None` if it cannot say anything.
    #[must_use]
    pub fn status(&self, node: usize) -> Option<NodeStatus> {
        let life = self.life(node).filter(|life| !life.is_paused)?;
        life.node.get().map(Node::status)
    }

    fn count(&self, node: usize) {
        if let Some(status) = self.status(node)
            && let Some(life) = self.life(node)
            && let Some(node) = life.node.get()
        {
            lock(&self.counts).add(&status, node);
        }
    }

    /// What happened on all nodes, those that run now included.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = *lock(&self.counts);
        for node in self.running() {
            if let Some(status) = self.status(node)
                && let Some(life) = self.life(node)
                && let Some(node) = life.node.get()
            {
                counts.add(&status, node);
            }
        }
        counts
    }

    /// Has a node execute something. `None`: no answer, ever.
    pub async fn execute(
        &self,
        node: usize,
        write: WriteRequest,
    ) -> Option<Result<Served, Refusal>> {
        self.ask(node, |answer| Call::Execute(write, answer)).await
    }

    /// Has a node answer a query.
    pub async fn query(&self, node: usize, read: ReadRequest) -> Option<Result<Served, Refusal>> {
        self.ask(node, |answer| Call::Query(read, answer)).await
    }

    /// The bytes of a node's database.
    pub async fn image(&self, node: usize) -> Option<Result<FrozenImage, Refusal>> {
        self.ask(node, Call::Image).await
    }

    async fn ask<T>(
        &self,
        node: usize,
        call: impl FnOnce(oneshot::Sender<T>) -> Call,
    ) -> Option<T> {
        let life = self.life(node)?;
        let (answer, answered) = oneshot::channel();
        life.calls.send(call(answer)).ok()?;
        answered.await.ok()
    }

    /// The life of a node: its end tells a session that it has moved.
    #[must_use]
    pub fn life_number(&self, node: usize) -> Option<u32> {
        self.life(node).map(|life| life.group)
    }
}

/// The thread of one life.
fn live(
    number: usize,
    options: NodeOptions,
    mut asked: mpsc::UnboundedReceiver<Call>,
    shared: &OnceLock<Node>,
    events: &Arc<Events>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime can be started");
    runtime.block_on(async move {
        let node = match Node::open(options).await {
            Ok(node) => node,
            Err(error) => {
                let what = format!("node {} does not open: {error}", number + 1);
                return events.violation(&what);
            }
        };
        events.note(&format!("node {} is open", number + 1));
        drop(shared.set(node.clone()));
        let mut failure = node.failure();
        let watched = Arc::clone(events);
        tokio::spawn(async move {
            if let Ok(why) = failure.wait_for(Option::is_some).await {
                watched.violation(&format!("node {} has failed: {:?}", number + 1, *why));
            }
        });
        while let Some(call) = asked.recv().await {
            let node = node.clone();
            match call {
                Call::Close(done) => {
                    node.close().await;
                    // The stopper may have given up.
                    let _ = done.send(());
                    return;
                }
                call => drop(tokio::spawn(serve(node, call))),
            }
        }
    });
}

/// Whoever asked may have gone away.
async fn serve(node: Node, call: Call) {
    match call {
        Call::Close(_) => {}
        Call::Execute(write, answer) => drop(answer.send(node.execute(write).await)),
        Call::Image(answer) => drop(answer.send(image(&node).await)),
        Call::Query(read, answer) => drop(answer.send(node.query(read).await)),
    }
}

async fn image(node: &Node) -> Result<FrozenImage, Refusal> {
    let mut reader = node.image().await?;
    let mut bytes = Vec::new();
    while let Some(run) = reader.next().await {
        let run = run.map_err(|error| Refusal::Failed(error.to_string()))?;
        bytes.extend_from_slice(&run);
    }
    Ok(FrozenImage {
        data_index: reader.data_index(),
        hash: reader.database_hash(),
        bytes,
    })
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node that is closed hands over and checkpoints; it waits for nobody for longer than this.
const CLOSE_PATIENCE: Duration = Duration::from_secs(60);
