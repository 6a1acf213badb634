//! Losing the leader in several ways, and the time until writes are acknowledged again.
//!
//! A write begins every 20 ms, through the two other nodes in turn, whatever came of those before:
//! each row is a client of its own. The time of a run is the longest one without an acknowledgement
//! from the fault on. That is the time from the fault to the next acknowledged write where the
//! leader is gone at once; a leader that stops in order still acknowledges for a moment.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;
use wal_tests::checker;
use wal_tests::client::{Client, Outcome};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::workload::{self, Attempt, Fate, History};

/// How the leader is lost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Loss {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and SIGCONT when another one leads.
    Pause,
    /// SIGTERM.
    Stop,
}

impl Loss {
    pub(crate) const ALL: [Self; 3] = [Self::Kill, Self::Stop, Self::Pause];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Stop => "stop",
        }
    }
}

/// Runs each loss so many times, one way after the other in turn, and prints a table.
pub(crate) fn run(runs: usize, losses: &[Loss]) -> Result<(), String> {
    println!("before: {}", super::load());
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    let create = cluster
        .client()
        .execute_sql(cluster.address(0), workload::TABLE);
    let _ = create.expect_success();
    let mut history = History::default();
    let mut table: Vec<(Loss, Vec<Figures>)> =
        losses.iter().map(|loss| (*loss, Vec::new())).collect();
    for run in 0..runs {
        for (loss, figures) in &mut table {
            let name = format!("{}-{run}", loss.name());
            let (found, attempts) = lose(&mut cluster, *loss, &name)?;
            println!("{name}: {:.0} ms", found.silence.as_secs_f64() * 1e3);
            figures.push(found);
            history.attempts.extend(attempts);
        }
    }
    let image = cluster.assert_identical();
    checker::assert_kept(&history, &cluster.open(&image));
    cluster.assert_healthy_logs();
    print(&table);
    let written = history.count(Fate::Acknowledged);
    let (refused, unknown) = (history.count(Fate::Refused), history.count(Fate::Unknown));
    println!("{written} writes acknowledged and all there; {refused} refused, {unknown} unknown");
    println!("after: {}", super::load());
    Ok(())
}

/// What one loss cost.
struct Figures {
    /// The longest time without an acknowledgement.
    silence: Duration,
    /// The longest that a client waited for an answer of any kind.
    answer: Duration,
    /// Writes whose outcome nobody knows.
    unknown: usize,
}

fn print(table: &[(Loss, Vec<Figures>)]) {
    println!("| leader | runs | median s | p90 s | max s | longest answer s | unknown per run |");
    println!("|---|---|---|---|---|---|---|");
    for (loss, figures) in table {
        let mut silences: Vec<f64> = figures
            .iter()
            .map(|figures| figures.silence.as_secs_f64())
            .collect();
        silences.sort_unstable_by(f64::total_cmp);
        let at = |percent: usize| silences[(silences.len() - 1) * percent / 100];
        let answer = figures.iter().map(|figures| figures.answer).max();
        let unknown: usize = figures.iter().map(|figures| figures.unknown).sum();
        println!(
            "| {} | {} | {:.3} | {:.3} | {:.3} | {:.3} | {:.1} |",
            loss.name(),
            silences.len(),
            at(50),
            at(90),
            at(100),
            answer.unwrap_or_default().as_secs_f64(),
            unknown as f64 / silences.len() as f64,
        );
    }
}

/// One write.
struct Probe {
    begun: Instant,
    ended: Instant,
    attempt: Attempt,
}

fn lose(
    cluster: &mut ProcessCluster,
    loss: Loss,
    name: &str,
) -> Result<(Figures, Vec<Attempt>), String> {
    let leader = cluster.wait_leader();
    let others = (0..3).filter(|&node| node != leader);
    let addresses: Vec<String> = others
        .map(|node| cluster.address(node).to_owned())
        .collect();
    let done: Arc<Mutex<Vec<Probe>>> = Arc::default();
    let mut probes = Probes {
        name,
        addresses,
        done,
        threads: Vec::new(),
    };
    probes.go_on(WARM_UP, |_| false);
    let fault = Instant::now();
    // The main thread signals, so it cannot begin writes while it waits for the end of the process.
    match loss {
        Loss::Kill => cluster.kill(leader),
        Loss::Pause => cluster.pause(leader),
        Loss::Stop => cluster.terminate(leader),
    }
    // Only a write that began when the leader was gone tells that there is another one.
    let mut gone = (loss != Loss::Stop).then(Instant::now);
    let recovered = probes.go_on(PATIENCE, |done| {
        if gone.is_none() && cluster.has_ended(leader) {
            gone = Some(Instant::now());
        }
        let Some(gone) = gone else { return false };
        let acknowledged =
            |probe: &Probe| probe.attempt.fate == Fate::Acknowledged && probe.begun > gone;
        done.iter().any(acknowledged)
    });
    if !recovered {
        return Err(format!(
            "{name}: no write was acknowledged within {PATIENCE:?}"
        ));
    }
    let end = Instant::now();
    match loss {
        Loss::Kill => cluster.start_node(leader),
        Loss::Pause => cluster.resume(leader),
        Loss::Stop => {
            let status = cluster.wait_end(leader);
            if !status.success() {
                return Err(format!(
                    "{name}: the node that was stopped ended with {status}"
                ));
            }
            cluster.start_node(leader);
        }
    }
    let probes = probes.finish();
    cluster.wait_all_ready();
    Ok((figures(&probes, fault, end), attempts(probes)))
}

fn attempts(probes: Vec<Probe>) -> Vec<Attempt> {
    probes.into_iter().map(|probe| probe.attempt).collect()
}

fn figures(probes: &[Probe], fault: Instant, end: Instant) -> Figures {
    let mut moments: Vec<Instant> = probes
        .iter()
        .filter(|probe| probe.attempt.fate == Fate::Acknowledged)
        .map(|probe| probe.ended)
        .filter(|ended| *ended > fault && *ended <= end)
        .collect();
    moments.push(fault);
    moments.sort_unstable();
    let silences = moments.windows(2).map(|pair| pair[1] - pair[0]);
    let answers = probes.iter().map(|probe| probe.ended - probe.begun);
    let unknown = probes
        .iter()
        .filter(|probe| probe.attempt.fate == Fate::Unknown);
    Figures {
        silence: silences.max().unwrap_or_default(),
        answer: answers.max().unwrap_or_default(),
        unknown: unknown.count(),
    }
}

/// Writes that begin one after the other without waiting for each other.
struct Probes<'a> {
    name: &'a str,
    addresses: Vec<String>,
    done: Arc<Mutex<Vec<Probe>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Probes<'_> {
    /// Begins writes for so long, or until what is done is enough; then it is true.
    fn go_on(&mut self, time: Duration, mut is_enough: impl FnMut(&[Probe]) -> bool) -> bool {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            self.begin();
            std::thread::sleep(INTERVAL);
            if is_enough(&self.done.lock().unwrap_or_else(PoisonError::into_inner)) {
                return true;
            }
        }
        false
    }

    fn begin(&mut self) {
        let number = self.threads.len();
        let key = format!("{}-{number}", self.name);
        let address = self.addresses[number % self.addresses.len()].clone();
        let done = Arc::clone(&self.done);
        self.threads.push(std::thread::spawn(move || {
            let insert = json!([["INSERT INTO item(key, payload) VALUES(?, ?)", key, "probe"]]);
            let begun = Instant::now();
            let outcome = Client::new(PATIENCE).execute(&address, &insert);
            let ended = Instant::now();
            let fate = match outcome {
                Outcome::Answered(answer) if answer.error().is_none() => Fate::Acknowledged,
                Outcome::Answered(_) | Outcome::NotCommitted(_) => Fate::Refused,
                Outcome::Unknown(_) => Fate::Unknown,
            };
            let attempt = Attempt {
                request: key.clone(),
                key,
                payload: "probe".to_owned(),
                fate,
            };
            let probe = Probe {
                begun,
                ended,
                attempt,
            };
            done.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(probe);
        }));
    }

    /// Waits for the answers to all of them.
    fn finish(self) -> Vec<Probe> {
        for thread in self.threads {
            thread.join().expect("probes do not panic");
        }
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut done)
    }
}

const INTERVAL: Duration = Duration::from_millis(20);
/// So that connections are there and writes are under way when the leader is lost.
const WARM_UP: Duration = Duration::from_millis(500);
/// For clients and for the cluster; beyond it, it has not recovered.
const PATIENCE: Duration = Duration::from_secs(30);
