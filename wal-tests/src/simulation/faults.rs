//! What goes wrong, drawn from the seed.

use std::sync::Arc;
use std::time::Duration;

use super::cluster::Cluster;
use super::network::Link;
use super::threads;
use crate::files::Keep;
use crate::seed::Random;

/// Does harm to a cluster, and undoes it.
pub struct Nemesis {
    cluster: Arc<Cluster>,
    random: Random,
    /// How often it did something.
    pub faults: u64,
    /// Whether it does nothing but cut the power of all nodes at once.
    only_power: bool,
}

/// One kind of harm.
#[derive(Clone, Copy, Debug)]
enum Harm {
    CrashAll,
    CrashOne,
    Cut,
    CutOff,
    Delay,
    Hold,
    Lose,
    OneWay,
    Pause,
    SlowDisk,
    Stay,
    Stop,
}

const HARMS: [Harm; 17] = [
    Harm::CrashAll,
    Harm::CrashOne,
    Harm::CrashOne,
    Harm::CrashOne,
    Harm::Cut,
    Harm::CutOff,
    Harm::CutOff,
    Harm::CutOff,
    Harm::Delay,
    Harm::Hold,
    Harm::Hold,
    Harm::Lose,
    Harm::OneWay,
    Harm::Pause,
    Harm::SlowDisk,
    Harm::Stay,
    Harm::Stop,
];

impl Nemesis {
    /// One for this cluster. It does all kinds of harm, or with `only_power` nothing but cut the
    /// power of all nodes at once.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>, random: Random, only_power: bool) -> Self {
        Self {
            cluster,
            random,
            faults: 0,
            only_power,
        }
    }

    /// Does harm until the time is over, then undoes what is left.
    pub async fn rage(&mut self, until: Duration) {
        while threads::elapsed() < until {
            self.wait(300, 3000).await;
            let harm = match self.only_power {
                true => Harm::CrashAll,
                false => self.random.pick(&HARMS),
            };
            // Mostly the leader, for it has the most to lose.
            let node = match self.leader() {
                Some(leader) if self.random.chance(50) => leader,
                _ => self.random.below(self.cluster.size()),
            };
            self.faults += 1;
            self.cluster
                .events
                .note(&format!("fault {harm:?} of node {}", node + 1));
            self.harm(harm, node).await;
            self.bury();
            if self.random.chance(70) {
                self.mend();
            }
        }
        self.mend();
    }

    fn leader(&self) -> Option<usize> {
        let leading = self.cluster.running().into_iter().filter_map(|node| {
            let status = self.cluster.status(node)?;
            (status.state == "Leader").then_some((status.term, node))
        });
        leading.max().map(|(_, node)| node)
    }

    async fn wait(&mut self, least_ms: u64, most_ms: u64) {
        let ms = least_ms + self.random.number_below(most_ms - least_ms);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    async fn harm(&mut self, harm: Harm, node: usize) {
        let network = self.cluster.network.clone();
        let other = (node + 1 + self.random.below(self.cluster.size() - 1)) % self.cluster.size();
        match harm {
            Harm::CrashAll => {
                let keep = match self.only_power {
                    true => Keep::Nothing,
                    false => self.random.pick(&Keep::ALL),
                };
                for node in self.cluster.running() {
                    self.crash(node, keep);
                }
                self.wait(1, 1000).await;
            }
            Harm::CrashOne => {
                let keep = self.random.pick(&Keep::ALL);
                self.crash(node, keep);
                // Now and then long enough to be left behind.
                let most = self.random.pick(&[300, 2000, 10_000]);
                self.wait(1, most).await;
            }
            Harm::Cut => {
                network.change(node, other, |link| link.is_cut = true);
                network.change(other, node, |link| link.is_cut = true);
                self.wait(200, 4000).await;
            }
            Harm::CutOff => {
                network.change_around(node, |link| link.is_cut = true);
                let most = self.random.pick(&[500, 3000, 10_000]);
                self.wait(200, most).await;
            }
            Harm::Delay => {
                let longest = self.random.pick(&[20_000, 100_000, 400_000]);
                network.change_around(node, |link| link.delay_micros = (1000, longest));
                self.wait(500, 5000).await;
            }
            Harm::Hold => {
                network.change_around(node, |link| link.is_held = true);
                self.wait(100, 2500).await;
            }
            Harm::Lose => {
                self.lose();
                self.wait(500, 5000).await;
            }
            Harm::OneWay => {
                network.change(node, other, |link| link.is_cut = true);
                self.wait(200, 4000).await;
            }
            Harm::Pause => {
                self.cluster.pause(node);
                self.wait(50, 3000).await;
                self.cluster.resume(node);
            }
            Harm::SlowDisk => {
                self.cluster.slow_disk(node, true);
                self.wait(500, 5000).await;
                self.cluster.slow_disk(node, false);
            }
            Harm::Stay => self.wait(500, 4000).await,
            Harm::Stop => {
                if self.cluster.running().contains(&node) {
                    self.cluster.stop(node).await;
                }
                self.wait(1, 2000).await;
            }
        }
    }

    /// Loses and doubles some datagrams on all links.
    fn lose(&mut self) {
        let percent = self.random.pick(&[2, 10, 30]);
        for node in 0..self.cluster.size() {
            self.cluster.network.change_around(node, |link: &mut Link| {
                link.lost_percent = percent;
                link.doubled_percent = percent;
            });
        }
    }

    fn crash(&mut self, node: usize, keep: Keep) {
        if self.cluster.running().contains(&node) {
            let seed = self.random.bits();
            self.cluster.crash(node, keep, seed);
        }
    }

    /// Takes away nodes that have ended themselves.
    fn bury(&mut self) {
        for node in self.cluster.running() {
            if self.cluster.has_aborted(node) {
                self.cluster
                    .events
                    .violation(&format!("node {} has aborted", node + 1));
                self.cluster.crash(node, Keep::Process, 0);
            }
        }
    }

    /// Opens all links and starts what does not run.
    fn mend(&mut self) {
        self.cluster.network.heal();
        for node in 0..self.cluster.size() {
            self.cluster.resume(node);
            if !self.cluster.running().contains(&node) {
                self.cluster.start(node);
            }
        }
        self.cluster.events.note("all is mended");
    }
}
