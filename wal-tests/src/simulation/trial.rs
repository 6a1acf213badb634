//! One run: a cluster, its clients and its nemesis, from one seed; and the verdict.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use wallaby::node::{Level, ReadRequest, Refusal, Served, Shape, WriteRequest};

use super::clients::{Book, Client, MARKS, Tally};
use super::cluster::{Cluster, Counts};
use super::events::Events;
use super::faults::Nemesis;
use super::network::Network;
use super::threads;
use crate::linked::{FrozenImage, request};
use crate::seed::Random;
use crate::{checker, workload};

/// How a run is made.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// All follows from it.
    pub seed: u64,
    /// How many nodes; `None`: drawn.
    pub nodes: Option<usize>,
    /// How long things go wrong.
    pub length: Duration,
    /// Whether events are printed as they happen.
    pub prints: bool,
    /// Whether disks sync later than they say, and the power fails again and again.
    pub disks_lie: bool,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// What must not have happened; empty is good.
    pub violations: Vec<String>,
    /// All events.
    pub events: String,
    /// Figures.
    pub figures: Figures,
}

/// What a run went through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Nodes.
    pub nodes: usize,
    /// Simulated time.
    pub seconds: f64,
    /// Things that went wrong on purpose.
    pub faults: u64,
    /// The last term.
    pub terms: u64,
    /// Datagrams.
    pub datagrams: u64,
    /// Of those, lost.
    pub lost: u64,
    /// Times that a thread waited.
    pub waits: u64,
    /// What happened on the nodes.
    pub counts: Counts,
    /// What clients were told.
    pub tally: Tally,
}

impl Figures {
    /// Names and values, in one order.
    #[must_use]
    pub fn all(&self) -> [(&'static str, u64); 14] {
        [
            ("faults", self.faults),
            ("starts", self.counts.starts),
            ("elections", self.terms),
            ("installs", self.counts.installs),
            ("cut off", self.counts.cut_off),
            ("discarded", self.counts.discarded),
            ("acknowledged", self.tally.acknowledged),
            ("refused", self.tally.refused),
            ("unknown", self.tally.unknown),
            ("reads", self.tally.reads),
            ("unread", self.tally.reads_failed),
            ("datagrams", self.datagrams),
            ("lost", self.lost),
            ("waits", self.waits),
        ]
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} nodes, {:.1} s", self.nodes, self.seconds)?;
        self.all()
            .iter()
            .try_for_each(|(name, value)| write!(f, ", {name} {value}"))
    }
}

/// Makes a run, with the nodes' directories in this one, which is empty. To be called by the first
/// thread of [`threads::run`].
///
/// # Panics
///
/// When there is no room for them.
#[must_use]
pub fn run(plan: Plan, dir: &Path) -> Verdict {
    let events = Arc::new(Events::printed(plan.prints));
    let heard = Arc::clone(&events);
    std::panic::set_hook(Box::new(move |panic| {
        heard.violation(&panic.to_string());
        println!("{}", heard.text());
        println!("VIOLATION: {panic}");
        std::process::exit(2);
    }));
    let mut random = Random::new(plan.seed);
    let nodes = plan.nodes.unwrap_or_else(|| random.pick(&[3, 3, 3, 5]));
    let network = Network::start(nodes, random.fork());
    let cluster = Cluster::new(nodes, dir, network, Arc::clone(&events), plan.disks_lie);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime can be started");
    let figures = runtime.block_on(trial(plan, Arc::new(cluster), random));
    let verdict = Verdict {
        violations: events.violations(),
        events: events.text(),
        figures,
    };
    // Without waiting for anybody.
    std::mem::forget(runtime);
    verdict
}

async fn trial(plan: Plan, cluster: Arc<Cluster>, mut random: Random) -> Figures {
    let book = Arc::new(Mutex::new(Book::new(CLIENTS)));
    let watch = tokio::spawn(watch(Arc::clone(&cluster)));
    let mut nemesis = Nemesis::new(Arc::clone(&cluster), random.fork(), plan.disks_lie);
    let mut clients = Vec::new();
    let begun = begin(&cluster).await;
    if begun {
        let pause_max = Duration::from_millis(random.pick(&[100, 300, 800]));
        let until = threads::elapsed() + plan.length;
        for number in 0..CLIENTS {
            let client = Client {
                number,
                cluster: Arc::clone(&cluster),
                book: Arc::clone(&book),
                random: random.fork(),
                pause_max,
            };
            clients.push(tokio::spawn(client.work(until)));
        }
        nemesis.rage(until).await;
        for client in clients {
            client.await.expect("clients do not panic");
        }
        end(&cluster, &book).await;
    }
    watch.abort();
    let terms = cluster.running().into_iter();
    let terms = terms.filter_map(|node| cluster.status(node).map(|status| status.term));
    let terms = terms.max().unwrap_or(0);
    let (traffic, counts) = (cluster.network.traffic(), cluster.counts());
    let tally = book.lock().unwrap_or_else(PoisonError::into_inner).tally;
    let figures = Figures {
        nodes: cluster.size(),
        seconds: threads::elapsed().as_secs_f64(),
        faults: nemesis.faults,
        terms,
        datagrams: traffic.sent,
        lost: traffic.lost,
        waits: threads::waits(),
        counts,
        tally,
    };
    cluster
        .events
        .note(&format!("{figures}; datagrams {:08x}", traffic.digest));
    // A cluster that is dropped would be closed.
    std::mem::forget(cluster);
    figures
}

/// Starts the nodes and makes the tables.
async fn begin(cluster: &Arc<Cluster>) -> bool {
    for node in 0..cluster.size() {
        cluster.start(node);
    }
    let tables = [workload::TABLE, MARKS];
    let begin = threads::elapsed();
    loop {
        let write = WriteRequest::new(request(&tables, Shape::Execute), Duration::from_secs(5));
        if let Some(Ok(_)) = cluster.execute(0, write).await {
            return true;
        }
        if threads::elapsed() > begin + START_PATIENCE {
            cluster.events.violation("the cluster does not come up");
            return false;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Notes how the nodes are, and looks for what cannot be: two leaders of one term, two databases at
/// one index.
async fn watch(cluster: Arc<Cluster>) {
    let mut leaders: BTreeMap<u64, usize> = BTreeMap::new();
    let mut hashes: BTreeMap<u64, (usize, String)> = BTreeMap::new();
    let mut rounds = 0_u64;
    loop {
        tokio::time::sleep(WATCH_INTERVAL).await;
        rounds += 1;
        let mut states = Vec::new();
        for node in 0..cluster.size() {
            let Some(status) = cluster.status(node) else {
                states.push("-".to_owned());
                continue;
            };
            if status.state == "Leader" {
                let leader = *leaders.entry(status.term).or_insert(node);
                if leader != node {
                    let (term, one, other) = (status.term, leader + 1, node + 1);
                    let what = format!("nodes {one} and {other} lead in term {term}");
                    cluster.events.violation(&what);
                }
            }
            let hash = status.database_hash.clone();
            if status.data_index > 0 {
                let first = hashes.entry(status.data_index);
                let (first, expected) = first.or_insert((node, hash.clone()));
                if *expected != hash {
                    let index = status.data_index;
                    let (one, other) = (*first + 1, node + 1);
                    let what = format!("nodes {one} and {other} differ at index {index}");
                    cluster.events.violation(&what);
                }
            }
            if !status.repair.damaged.is_empty() {
                let what = format!("node {}: {:?}", node + 1, status.repair.damaged);
                cluster.events.violation(&what);
            }
            let state = status.state.chars().next().unwrap_or('?');
            states.push(format!(
                "{state}{}:{}/{} {}",
                status.term, status.applied_index, status.last_log_index, status.purged_index
            ));
        }
        if rounds.is_multiple_of(ROUNDS_PER_NOTE) {
            let traffic = cluster.network.traffic();
            let states = states.join(", ");
            let note = format!("[{states}] {} {:08x}", traffic.sent, traffic.digest);
            cluster.events.note(&note);
        }
    }
}

/// After all is mended: the cluster must come back, its nodes must be equal, and what they contain
/// must be what the clients were told.
async fn end(cluster: &Arc<Cluster>, book: &Arc<Mutex<Book>>) {
    let begin = threads::elapsed();
    let images = loop {
        let problem = match converged(cluster).await {
            Ok(images) => break images,
            Err(problem) => problem,
        };
        if threads::elapsed() > begin + END_PATIENCE {
            let what = format!("the cluster does not come back: {problem}");
            return cluster.events.violation(&what);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let took = (threads::elapsed() - begin).as_secs_f64();
    cluster.events.note(&format!("converged after {took:.3} s"));
    for (node, image) in images.iter().enumerate().skip(1) {
        if image.bytes != images[0].bytes {
            let what = format!("the bytes of node {} are not those of node 1", node + 1);
            cluster.events.violation(&what);
        }
    }
    let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = compare(&images[0], &mut book, &cluster.events) {
        let what = format!("the database cannot be read: {error}");
        cluster.events.violation(&what);
    }
    for (client, mark) in book.dirty() {
        cluster.events.violation(&format!(
            "mark {mark} of client {client} was read and is certainly not committed"
        ));
    }
}

/// The images of all nodes, once all have applied the same and serve it.
async fn converged(cluster: &Cluster) -> Result<Vec<FrozenImage>, String> {
    let write = WriteRequest::new(
        request(
            &["INSERT INTO mark VALUES(1000, 1) ON CONFLICT DO NOTHING"],
            Shape::Execute,
        ),
        Duration::from_secs(5),
    );
    answered(cluster.execute(0, write).await)?;
    for node in 0..cluster.size() {
        let read = request(&["SELECT 1"], Shape::Query);
        let read = ReadRequest::new(read, Level::Linearizable, Duration::from_secs(5));
        answered(cluster.query(node, read).await)?;
    }
    let mut images: Vec<FrozenImage> = Vec::new();
    for node in 0..cluster.size() {
        let image = cluster.image(node).await.ok_or("it stopped")?;
        let image = image.map_err(|refusal| refusal.to_string())?;
        if let Some(first) = images.first()
            && first.data_index != image.data_index
        {
            let (one, other) = (first.data_index, image.data_index);
            return Err(format!("node {} has index {other}, not {one}", node + 1));
        }
        images.push(image);
    }
    Ok(images)
}

fn answered(asked: Option<Result<Served, Refusal>>) -> Result<(), String> {
    match asked {
        None => Err("it stopped".to_owned()),
        Some(Err(refusal)) => Err(refusal.to_string()),
        Some(Ok(_)) => Ok(()),
    }
}

/// Compares a database with what the clients know.
fn compare(
    image: &FrozenImage,
    book: &mut Book,
    events: &Events,
) -> Result<(), Box<dyn std::error::Error>> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), &image.bytes)?;
    let database = rusqlite::Connection::open(file.path())?;
    let sound: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if sound != "ok" {
        events.violation(&format!("integrity_check says {sound}"));
    }
    for violation in checker::check(&book.history, &checker::items(&database)?) {
        events.violation(&format!("{violation:?}"));
    }
    let mut marks = Vec::new();
    for client in 0..CLIENTS {
        let mark = "SELECT coalesce(max(value), 0) FROM mark WHERE client = ?";
        let client = i64::try_from(client)?;
        let mark: i64 = database.query_row(mark, [client], |row| row.get(0))?;
        marks.push(u64::try_from(mark)?);
    }
    let bounds = book.least().into_iter().zip(book.most().to_vec());
    for (client, (mark, (least, most))) in marks.iter().zip(bounds).enumerate() {
        if *mark < least || *mark > most {
            let what = format!("mark {mark} of client {client} is not from {least} to {most}");
            events.violation(&what);
        }
    }
    book.found(&marks);
    Ok(())
}

const CLIENTS: usize = 4;
const WATCH_INTERVAL: Duration = Duration::from_millis(50);
const ROUNDS_PER_NOTE: u64 = 20;
/// Simulated, as all times here.
const START_PATIENCE: Duration = Duration::from_secs(60);
const END_PATIENCE: Duration = Duration::from_secs(120);
