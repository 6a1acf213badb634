//! Brings the faults about, and ends them.
//!
//! A node is out while it is down, paused, cut off, or on its way back: until it says that it has
//! everything and has a vote. Only as many may be out at a time as the schedule allows. What loses
//! data strikes only while all nodes are there and all links are open: what is nowhere else could
//! not come back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::Plan;
use super::clients::Clients;
use super::damage::{self, Disks};
use super::fault::Fault;
use crate::client::Client;
use crate::cluster::ProcessCluster;
use crate::links::Rule;
use crate::network::{Conduct, Network};
use crate::seed::Random;

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Struck {
    /// How many faults of each kind have begun.
    pub events: BTreeMap<Fault, usize>,
    /// Processes that ended though nothing was done to them.
    pub unexpected_ends: Vec<String>,
}

impl Struck {
    /// All faults together.
    #[must_use]
    pub fn total(&self) -> usize {
        self.events.values().sum()
    }
}

/// The nemesis, and all that it may touch.
pub(super) struct Nemesis<'a> {
    plan: &'a Plan,
    cluster: ProcessCluster,
    network: Network,
    disks: Disks,
    starts: Arc<Vec<AtomicU32>>,
    clients: &'a Clients,
    random: Random,
    /// Impatient: a node that does not answer is not there.
    client: Client,
    states: Vec<State>,
    /// Whose disk was full since they were ready last: they may still find out, and end.
    was_full: Vec<bool>,
    links: Vec<LinkFault>,
    struck: Struck,
}

/// How a node is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// It works, as far as anybody knows.
    Up,
    /// It has been started, and is not ready yet.
    Coming,
    /// It is to be started then.
    Down(Instant),
    /// It is to go on then.
    Paused(Instant),
    /// Its disk is full until then, and it may end.
    Full(Instant),
}

/// A fault of links.
struct LinkFault {
    fault: Fault,
    until: Instant,
    /// From, to, and how.
    conducts: Vec<(usize, usize, Conduct)>,
    /// The nodes that it takes out.
    out: Vec<usize>,
}

impl<'a> Nemesis<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        cluster: ProcessCluster,
        network: Network,
        disks: Disks,
        clients: &'a Clients,
        random: Random,
    ) -> Self {
        Self {
            plan,
            states: vec![State::Up; cluster.size()],
            was_full: vec![false; cluster.size()],
            cluster,
            network,
            disks,
            starts: clients.starts(),
            clients,
            random,
            client: Client::new(Duration::from_secs(2)),
            links: Vec::new(),
            struck: Struck::default(),
        }
    }

    /// Strikes until the time is up and it was often enough.
    pub(super) fn run(&mut self) {
        let begin = Instant::now();
        let patience = self.plan.time * 4 + Duration::from_secs(30);
        let mut next = begin;
        let mut said = begin;
        loop {
            let now = Instant::now();
            let spent = now - begin;
            let enough = self.struck.total() >= self.plan.events_min;
            if spent >= patience || (spent >= self.plan.time && enough) {
                return;
            }
            self.end_faults(now);
            self.look_after_nodes();
            if now >= next {
                // Many cannot strike just now; it is enough that one can.
                if let Some((fault, node)) = (0..20).find_map(|_| self.choose()) {
                    self.strike(fault, node);
                }
                next = Instant::now() + self.plan.schedule.gap(&mut self.random);
            }
            if said.elapsed() > Duration::from_secs(60) {
                said = Instant::now();
                println!(
                    "after {:.0} s: {} faults, {} requests acknowledged",
                    spent.as_secs_f64(),
                    self.struck.total(),
                    self.clients.acknowledged()
                );
            }
            std::thread::sleep(TICK);
        }
    }

    /// Ends all faults and waits until all nodes are there. The disks are in use until the cluster
    /// ends.
    ///
    /// # Panics
    ///
    /// When that takes for ever.
    pub(super) fn finish(mut self) -> (Disks, Network, Struck, ProcessCluster) {
        let deadline = Instant::now() + PATIENCE;
        let end = Instant::now() + Duration::from_secs(3600);
        self.end_faults(end);
        while self.out() > 0 {
            assert!(
                Instant::now() < deadline,
                "not whole again: {:?}",
                self.states
            );
            self.look_after_nodes();
            self.end_faults(end);
            std::thread::sleep(TICK);
        }
        (self.disks, self.network, self.struck, self.cluster)
    }

    /// A fault that may strike now, and the node that it is to strike.
    fn choose(&mut self) -> Option<(Fault, usize)> {
        let faults = self.plan.schedule.faults();
        if faults.is_empty() {
            return None;
        }
        let fault = self.random.pick(faults);
        let nodes = self.states.len();
        let node = match fault.strikes_leader() {
            true => self.cluster.leader()?,
            false => self.random.below(nodes),
        };
        let out = self.out();
        let is_up = self.states[node] == State::Up && !self.is_cut_off(node);
        let limit = self.plan.schedule.out_max(nodes);
        let possible = (!fault.needs_switch() || self.network.switched().is_some())
            && (fault != Fault::DiskFull || self.disks.exist())
            && (!fault.strikes_all() || out == 0)
            && (!fault.loses_data() || (out == 0 && self.links.is_empty()))
            && (!fault.takes_out() || fault.strikes_all() || (is_up && out < limit))
            && (fault.takes_out() || self.states[node] == State::Up);
        possible.then_some((fault, node))
    }

    /// How many nodes are out.
    fn out(&self) -> usize {
        let out = |&node: &usize| self.states[node] != State::Up || self.is_cut_off(node);
        (0..self.states.len()).filter(out).count()
    }

    fn is_cut_off(&self, node: usize) -> bool {
        self.links.iter().any(|fault| fault.out.contains(&node))
    }

    fn strike(&mut self, fault: Fault, node: usize) {
        let until = Instant::now() + self.plan.schedule.length(&mut self.random);
        if fault.is_of_links() {
            self.strike_links(fault, node, until);
            self.count(fault);
            return;
        }
        let done = match fault {
            Fault::Kill | Fault::KillLeader => {
                self.kill(node, until);
                true
            }
            Fault::KillAll => {
                for node in 0..self.states.len() {
                    self.kill(node, Instant::now());
                }
                true
            }
            Fault::Stop => self.stop(node, until),
            Fault::StopAll => {
                // All at once, for the last one alone waits long for others to hand over to.
                for node in 0..self.states.len() {
                    self.new_time(node);
                    self.cluster.terminate(node);
                }
                for node in 0..self.states.len() {
                    self.cluster.wait_end(node);
                    self.states[node] = State::Down(until);
                }
                true
            }
            Fault::Pause | Fault::PauseLeader => {
                self.cluster.pause(node);
                self.states[node] = State::Paused(until);
                true
            }
            Fault::DiskFull => {
                self.disks.fill(node);
                self.states[node] = State::Full(until);
                self.was_full[node] = true;
                true
            }
            Fault::Wipe => {
                self.kill(node, until);
                self.wipe(node);
                true
            }
            Fault::FlipDatabase => {
                let dir = self.cluster.data_dir(node);
                matches!(damage::flip_database(dir, &mut self.random), Ok(Some(_)))
            }
            Fault::FlipLog => {
                let stopped = self.stop(node, until);
                let dir = self.cluster.data_dir(node);
                stopped && matches!(damage::flip_log(dir, &mut self.random), Ok(Some(_)))
            }
            Fault::Transfer => self.transfer(node),
            Fault::Replace => self.replace(node, until),
            Fault::Snapshot => {
                let address = self.cluster.address(node);
                self.client.post(address, "/snapshot", "", b"").is_ok()
            }
            _ => false,
        };
        if done {
            self.count(fault);
        }
    }

    fn count(&mut self, fault: Fault) {
        *self.struck.events.entry(fault).or_default() += 1;
    }

    /// What a node answers from now on belongs to another time.
    fn new_time(&self, node: usize) {
        self.starts[node].fetch_add(1, Ordering::SeqCst);
    }

    fn kill(&mut self, node: usize, until: Instant) {
        self.new_time(node);
        self.cluster.kill(node);
        self.states[node] = State::Down(until);
    }

    /// Ends a node as an operator would; false if it had ended already.
    fn stop(&mut self, node: usize, until: Instant) -> bool {
        if self.cluster.has_ended(node) {
            return false;
        }
        self.new_time(node);
        self.cluster.stop(node);
        self.states[node] = State::Down(until);
        true
    }

    fn wipe(&self, node: usize) {
        damage::wipe(self.cluster.data_dir(node)).expect("nobody uses the directory");
    }

    fn transfer(&self, node: usize) -> bool {
        let body = json!({ "id": name(node) }).to_string();
        let address = self.cluster.address(node);
        let answer = self
            .client
            .post(address, "/leader", "application/json", body.as_bytes());
        answer.is_ok_and(|answer| answer.status == 200)
    }

    /// Removes a node from the cluster, and lets it come back with nothing.
    fn replace(&mut self, node: usize, until: Instant) -> bool {
        let other = (node + 1) % self.states.len();
        let removed = self.client.remove(self.cluster.address(other), &name(node));
        if !removed.is_ok_and(|answer| answer.status == 200) {
            return false;
        }
        self.new_time(node);
        self.cluster.kill(node);
        self.states[node] = State::Down(until);
        self.wipe(node);
        true
    }

    fn strike_links(&mut self, fault: Fault, node: usize, until: Instant) {
        let nodes = self.states.len();
        let others: Vec<usize> = (0..nodes).filter(|&other| other != node).collect();
        let other = others[self.random.below(others.len())];
        let both = |one: usize, another: usize, conduct: Conduct| {
            [(one, another, conduct), (another, one, conduct)]
        };
        let around = |conduct: Conduct| -> Vec<_> {
            others
                .iter()
                .flat_map(|&other| both(node, other, conduct))
                .collect()
        };
        let conduct = harm(fault, &mut self.random);
        let mut out = Vec::new();
        let conducts = match fault {
            Fault::Isolate | Fault::IsolateLeader | Fault::Flap => {
                out.push(node);
                around(Conduct::CUT)
            }
            Fault::Halves => {
                // The smaller half, with the node in it, is as large as is allowed.
                let free = self.plan.schedule.out_max(nodes).saturating_sub(self.out());
                let size = (1 + self.random.below(free.max(1))).min(nodes - 1);
                out = (0..size).map(|step| (node + step) % nodes).collect();
                let is_out = |node: usize| out.contains(&node);
                let pairs = (0..nodes).flat_map(|one| (0..nodes).map(move |other| (one, other)));
                let apart = pairs.filter(|&(one, other)| is_out(one) != is_out(other));
                apart
                    .map(|(one, other)| (one, other, Conduct::CUT))
                    .collect()
            }
            Fault::Bridge => both(node, other, Conduct::CUT).to_vec(),
            Fault::Deaf => {
                out.push(node);
                others
                    .iter()
                    .map(|&other| (other, node, Conduct::CUT))
                    .collect()
            }
            Fault::Mute => {
                out.push(node);
                others
                    .iter()
                    .map(|&other| (node, other, Conduct::CUT))
                    .collect()
            }
            Fault::Narrow | Fault::Slow => around(conduct),
            Fault::ClientsCut => both(node, nodes, conduct).to_vec(),
            Fault::ClientsLossy => (0..nodes)
                .flat_map(|one| both(one, nodes, conduct))
                .collect(),
            _ => {
                let pairs = (0..nodes).flat_map(|one| (0..nodes).map(move |other| (one, other)));
                let pairs = pairs.filter(|(one, other)| one != other);
                pairs.map(|(one, other)| (one, other, conduct)).collect()
            }
        };
        self.links.push(LinkFault {
            fault,
            until,
            conducts,
            out,
        });
        self.set_links(Instant::now());
    }

    /// Gives every link what the faults together prescribe.
    fn set_links(&self, now: Instant) {
        let nodes = self.states.len();
        let mut conducts: BTreeMap<(usize, usize), Conduct> = BTreeMap::new();
        for fault in &self.links {
            let left = fault.until.saturating_duration_since(now).as_millis();
            let is_open = fault.fault == Fault::Flap && (left / FLAP_MILLIS).is_multiple_of(2);
            for &(from, to, conduct) in &fault.conducts {
                let conduct = if is_open { Conduct::OPEN } else { conduct };
                let known = conducts.entry((from, to)).or_default();
                *known = known.and(conduct);
            }
        }
        let conduct = |from, to| conducts.get(&(from, to)).copied().unwrap_or_default();
        for from in 0..=nodes {
            for to in (0..=nodes).filter(|&to| to != from) {
                match &self.network {
                    Network::Switched(switched) => switched.set(from, to, conduct(from, to)),
                    Network::Gates(links) if from < nodes && to < nodes => {
                        let cut = conduct(from, to).cut;
                        links.set(from, to, if cut { Rule::Cut } else { Rule::Open });
                    }
                    Network::Gates(_) => {}
                }
            }
        }
    }

    /// Ends what is over.
    fn end_faults(&mut self, now: Instant) {
        let flaps = self.links.iter().any(|fault| fault.fault == Fault::Flap);
        let before = self.links.len();
        self.links.retain(|fault| fault.until > now);
        if flaps || self.links.len() < before {
            self.set_links(now);
        }
        for node in 0..self.states.len() {
            match self.states[node] {
                State::Down(until) if until <= now => {
                    self.new_time(node);
                    self.cluster.start_node(node);
                    self.states[node] = State::Coming;
                }
                State::Paused(until) if until <= now => {
                    self.cluster.resume(node);
                    self.states[node] = State::Coming;
                }
                State::Full(until) if until <= now => {
                    self.disks.enlarge(node);
                    if self.cluster.has_ended(node) {
                        self.cluster.wait_end(node);
                        self.new_time(node);
                        self.cluster.start_node(node);
                    }
                    self.states[node] = State::Coming;
                }
                _ => {}
            }
        }
    }

    /// Finds out who is ready again, and who has ended by itself.
    fn look_after_nodes(&mut self) {
        for node in 0..self.states.len() {
            let state = self.states[node];
            let ends_by_itself = matches!(state, State::Up | State::Coming);
            if ends_by_itself && self.cluster.has_ended(node) {
                let status = self.cluster.wait_end(node);
                let log = self.cluster.log_text(node);
                let last = log.lines().last().unwrap_or_default();
                let what = format!("{} while {state:?}: {status}: {last}", name(node));
                if !self.was_full[node] {
                    println!("{what}");
                    self.struck.unexpected_ends.push(what);
                }
                self.new_time(node);
                self.cluster.start_node(node);
                self.states[node] = State::Coming;
            }
            if state == State::Coming && !self.is_cut_off(node) && self.is_ready(node) {
                self.states[node] = State::Up;
                self.was_full[node] = false;
            }
        }
    }

    /// Whether a node has everything and a vote.
    fn is_ready(&self, node: usize) -> bool {
        let address = self.cluster.address(node);
        let ready = self.client.get(address, "/readyz?sync&timeout=500ms");
        if !ready.is_ok_and(|ready| ready.status == 200) {
            return false;
        }
        let status = self.client.json(address, "/status?key=store.raft.voter");
        status.is_ok_and(|voter| voter == true)
    }
}

/// How links are harmed by a fault.
fn harm(fault: Fault, random: &mut Random) -> Conduct {
    let millis = |most: usize, random: &mut Random| {
        Duration::from_millis(1 + u64::try_from(random.below(most)).unwrap_or(0))
    };
    let percent =
        |most: usize, random: &mut Random| u8::try_from(1 + random.below(most)).unwrap_or(1);
    let open = Conduct::OPEN;
    match fault {
        Fault::Slow => Conduct {
            delay: millis(150, random),
            jitter: millis(100, random),
            ..open
        },
        Fault::Lossy | Fault::ClientsLossy => Conduct {
            loss: percent(30, random),
            ..open
        },
        Fault::Duplicate => Conduct {
            duplicate: percent(50, random),
            ..open
        },
        Fault::Reorder => Conduct {
            reorder: percent(40, random),
            jitter: millis(20, random),
            ..open
        },
        Fault::Corrupt => Conduct {
            corrupt: percent(30, random),
            ..open
        },
        Fault::Narrow => Conduct {
            bytes_per_second: Some(50_000 + u32::try_from(random.below(500_000)).unwrap_or(0)),
            ..open
        },
        _ => Conduct::CUT,
    }
}

fn name(node: usize) -> String {
    format!("node{}", node + 1)
}

/// How often the nemesis looks around.
const TICK: Duration = Duration::from_millis(20);

/// How long a flapping link stays as it is.
const FLAP_MILLIS: u128 = 120;

/// How long the cluster may take to be whole again.
const PATIENCE: Duration = Duration::from_secs(120);
