//! Finding a cluster, starting one, joining one, and taking others in.
//!
//! A node without a cluster greets the addresses it was given. It adopts the cluster of a peer that
//! has one, or agrees with enough peers in the same position to start one: the node with the
//! smallest Raft id draws the cluster id, has every other one adopt it for good, and only then
//! initialises Raft. A node never belongs to two clusters, so two starts at once cannot split it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver as _;
use tokio::sync::watch;

use super::Raft;
use super::error::Error;
use super::health::Health;
use super::identity::{Identity, random_u64};
use super::wire::{
    self, Adopted, Adoption, Greeting, Introduction, Joined, Joining, MemberMirror, kind,
};
use crate::raft::Member;
use crate::transport::{Endpoint, Priority, TransportError};
use crate::wal::ClusterId;

/// What this node knows of its own and of others' membership.
pub(crate) struct Membership {
    dir: PathBuf,
    identity: Mutex<Identity>,
    pub(crate) member: Member,
    join: Vec<String>,
    bootstrap_expect: u64,
    raft: Arc<OnceLock<Raft>>,
    /// Nodes that want to start a cluster, by Raft id.
    heard: Mutex<BTreeMap<u64, MemberMirror>>,
    assigned: watch::Sender<Option<ClusterId>>,
    /// One membership change at a time.
    changing: tokio::sync::Mutex<()>,
    health: Arc<Health>,
}

/// What [`Membership::settle`] found.
pub(crate) enum Settled {
    /// This node is to initialise Raft with these members.
    Initialise(BTreeMap<u64, Member>),
    /// The cluster exists, or another node will initialise it.
    Wait,
}

impl Membership {
    pub(crate) fn new(
        dir: PathBuf,
        identity: Identity,
        member: Member,
        join: Vec<String>,
        bootstrap_expect: u64,
        raft: Arc<OnceLock<Raft>>,
        health: Arc<Health>,
    ) -> Arc<Self> {
        let assigned = watch::Sender::new(identity.cluster);
        Arc::new(Self {
            dir,
            identity: Mutex::new(identity),
            member,
            join,
            bootstrap_expect,
            raft,
            heard: Mutex::default(),
            assigned,
            changing: tokio::sync::Mutex::default(),
            health,
        })
    }

    /// Answers a greeting, and remembers who wants to start a cluster.
    pub(crate) fn introduce(&self, greeting: &Greeting) -> Introduction {
        if greeting.bootstrap_expect > 0 {
            let mut heard = lock(&self.heard);
            // Bounded: strangers must not fill our memory.
            if heard.len() < HEARD_MAX {
                heard.insert(greeting.raft_id, greeting.member.clone());
            }
        }
        let identity = lock(&self.identity);
        Introduction {
            raft_id: identity.raft_id,
            member: self.member.clone().into(),
            cluster: identity.cluster.map(|id| id.0),
            leader: self.leader_addr(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Becomes part of a peer's cluster, durably and for good.
    pub(crate) fn adopt(&self, cluster: u128) -> Adopted {
        self.belong(cluster, false)
    }

    fn belong(&self, cluster: u128, founder: bool) -> Adopted {
        if cluster == 0 {
            return Err("a cluster id is never zero".to_owned());
        }
        let cluster = ClusterId(cluster);
        let mut identity = lock(&self.identity);
        match identity.cluster {
            Some(mine) if mine == cluster => Ok(()),
            Some(mine) => Err(format!("this node belongs to cluster {mine}")),
            None => {
                let adopted = Identity {
                    cluster: Some(cluster),
                    founder,
                    ..identity.clone()
                };
                adopted.save(&self.dir).map_err(|error| error.to_string())?;
                *identity = adopted;
                drop(identity);
                tracing::info!(%cluster, "this node now belongs to a cluster");
                self.assigned.send_replace(Some(cluster));
                Ok(())
            }
        }
    }

    /// Waits until this node belongs to a cluster, and says whether it has to initialise it.
    /// `pristine`: nothing was ever written to the log.
    pub(crate) async fn settle(
        &self,
        endpoint: &Endpoint,
        pristine: bool,
    ) -> Result<(ClusterId, Settled), Error> {
        let Identity {
            cluster, founder, ..
        } = lock(&self.identity).clone();
        if let Some(cluster) = cluster
            && !(pristine && founder)
        {
            return Ok((cluster, Settled::Wait));
        }
        if self.join.is_empty() && self.bootstrap_expect <= 1 {
            let cluster = match cluster {
                Some(cluster) => cluster,
                None => self.draw()?,
            };
            let alone = BTreeMap::from([(self.raft_id(), self.member.clone())]);
            return Ok((cluster, Settled::Initialise(alone)));
        }
        tracing::info!(peers = ?self.join, "looking for a cluster");
        loop {
            let met = self.greet_all(endpoint).await;
            if let Some(found) = self.look_around(endpoint, &met).await? {
                return Ok(found);
            }
            let mut assigned = self.assigned.subscribe();
            // Either somebody adopts us, or we look again.
            let _ = tokio::time::timeout(GREETING_INTERVAL, assigned.changed()).await;
        }
    }

    /// One round of [`Membership::settle`].
    async fn look_around(
        &self,
        endpoint: &Endpoint,
        met: &Met,
    ) -> Result<Option<(ClusterId, Settled)>, Error> {
        let Identity {
            cluster: mine,
            founder,
            ..
        } = lock(&self.identity).clone();
        let founders = self.founders(&met.peers);
        let first = founders.keys().next() == Some(&self.raft_id());
        match (mine, met.cluster()) {
            (Some(mine), Some(theirs)) if mine != theirs => Err(elsewhere(mine, theirs)),
            (None, Some(theirs)) => {
                self.adopt(theirs.0).map_err(Error::Configuration)?;
                endpoint.assign(theirs)?;
                Ok(Some((theirs, Settled::Wait)))
            }
            (Some(mine), _) if !founder => {
                endpoint.assign(mine)?;
                Ok(Some((mine, Settled::Wait)))
            }
            (mine, _) if first && founders.len() as u64 >= self.bootstrap_expect.max(2) => {
                let cluster = match mine {
                    Some(cluster) => cluster,
                    None => self.draw()?,
                };
                endpoint.assign(cluster)?;
                if self.all_adopt(endpoint, cluster, &founders).await {
                    Ok(Some((cluster, Settled::Initialise(founders))))
                } else {
                    Ok(None)
                }
            }
            _ => Ok(None),
        }
    }

    /// The nodes that would start a cluster together; empty unless that was asked for.
    fn founders(&self, peers: &[Introduction]) -> BTreeMap<u64, Member> {
        if self.bootstrap_expect == 0 {
            return BTreeMap::new();
        }
        let heard = lock(&self.heard);
        let heard = heard.iter().map(|(id, member)| (*id, member.clone()));
        let met = peers.iter().map(|peer| (peer.raft_id, peer.member.clone()));
        let mine = (self.raft_id(), self.member.clone().into());
        heard
            .chain(met)
            .chain([mine])
            .map(|(id, member)| (id, member.into()))
            .collect()
    }

    /// Greets every address given by `-join` but the own one.
    async fn greet_all(&self, endpoint: &Endpoint) -> Met {
        let mine = self.raft_id();
        let greeting = Greeting {
            raft_id: mine,
            member: self.member.clone().into(),
            bootstrap_expect: self.bootstrap_expect,
        };
        let body = Bytes::from(wire::encode(&greeting));
        let mut met = Met::default();
        for addr in self
            .join
            .iter()
            .filter(|addr| **addr != self.member.raft_addr)
        {
            let peer = endpoint.peer(addr, None);
            let reply = peer.request(kind::GREETING, Priority::Control, body.clone(), PATIENCE);
            match reply.await {
                Ok(reply) => match wire::decode::<Introduction>(&reply) {
                    Ok(peer) if peer.raft_id != mine => met.peers.push(peer),
                    Ok(_) => {}
                    Err(what) => tracing::warn!(addr, what, "a peer's introduction is unreadable"),
                },
                Err(TransportError::Refused {
                    cluster: Some(theirs),
                    ..
                }) => met.elsewhere = Some(theirs),
                Err(error) => tracing::debug!(addr, %error, "no peer there yet"),
            }
        }
        met
    }

    /// A node of one cluster that is told to join another would silently stay where it is. Ends the
    /// node if that is what its flags say, and returns once a peer of its own cluster has answered.
    async fn check_targets(&self, endpoint: &Endpoint) {
        let mut pause = JOIN_INTERVAL;
        while let Some(mine) = self.cluster() {
            let met = self.greet_all(endpoint).await;
            match met.cluster() {
                Some(theirs) if theirs != mine => {
                    return self.health.fail(elsewhere(mine, theirs).to_string());
                }
                Some(_) => return,
                // Down, or still looking for a cluster: no reason to stop serving ours.
                None => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(CHECK_INTERVAL_MAX);
        }
    }

    async fn all_adopt(
        &self,
        endpoint: &Endpoint,
        cluster: ClusterId,
        founders: &BTreeMap<u64, Member>,
    ) -> bool {
        let body = Bytes::from(wire::encode(&Adoption { cluster: cluster.0 }));
        for (id, member) in founders.iter().filter(|(id, _)| **id != self.raft_id()) {
            let peer = endpoint.peer(&member.raft_addr, Some(*id));
            let reply = peer
                .request(kind::ADOPT, Priority::Control, body.clone(), PATIENCE)
                .await;
            let adopted = match reply {
                Ok(reply) => wire::decode::<Adopted>(&reply).and_then(|adopted| adopted),
                Err(error) => Err(error.to_string()),
            };
            if let Err(why) = adopted {
                tracing::warn!(peer = %member.raft_addr, why, "a founder does not agree yet");
                return false;
            }
        }
        true
    }

    /// Asks the leader, wherever it is, to make this node a member; repeats until it is one.
    pub(crate) async fn join(self: Arc<Self>, endpoint: Endpoint) {
        let checked = Arc::clone(&self);
        let checking = endpoint.clone();
        tokio::spawn(async move { checked.check_targets(&checking).await });
        let mut next = 0;
        let mut hint: Option<String> = None;
        while !self.is_member() {
            let addr = match hint.take() {
                Some(addr) => addr,
                None => match self.join.get(next % self.join.len().max(1)) {
                    Some(addr) => addr.clone(),
                    None => return,
                },
            };
            next += 1;
            match self.ask_to_join(&endpoint, &addr).await {
                Ok(Joined::Welcome) => {
                    tracing::info!(leader = addr, "joined the cluster");
                    return;
                }
                Ok(Joined::NotLeader(leader)) => hint = leader.filter(|leader| *leader != addr),
                Ok(Joined::Refused(why)) => tracing::info!(leader = addr, why, "not joined yet"),
                Err(why) => tracing::debug!(addr, why, "cannot ask to join"),
            }
            if hint.is_none() {
                tokio::time::sleep(JOIN_INTERVAL).await;
            }
        }
    }

    async fn ask_to_join(&self, endpoint: &Endpoint, addr: &str) -> Result<Joined, String> {
        let joining = Joining {
            raft_id: self.raft_id(),
            member: self.member.clone().into(),
        };
        let body = Bytes::from(wire::encode(&joining));
        let peer = endpoint.peer(addr, None);
        let reply = peer
            .request(kind::JOIN, Priority::Control, body, JOIN_PATIENCE)
            .await;
        wire::decode(&reply.map_err(|error| error.to_string())?)
    }

    /// Takes a node in: as a learner first, as a voter when it has caught up.
    pub(crate) async fn welcome(&self, joining: Joining) -> Joined {
        let Some(raft) = self.raft.get() else {
            return Joined::NotLeader(None);
        };
        if !raft.is_leader() {
            return Joined::NotLeader(self.leader_addr());
        }
        let _one = self.changing.lock().await;
        match self.take_in(raft, joining).await {
            Ok(()) => Joined::Welcome,
            Err(why) => Joined::Refused(why),
        }
    }

    async fn take_in(&self, raft: &Raft, joining: Joining) -> Result<(), String> {
        let (id, member) = (joining.raft_id, Member::from(joining.member));
        let config = raft.metrics().borrow_watched().membership_config.clone();
        let known = config.membership().get_node(&id).cloned();
        let voter = config.membership().voter_ids().any(|voter| voter == id);
        match known {
            Some(known) if known == member && voter => return Ok(()),
            Some(known) if known == member => {}
            Some(_) => {
                let nodes = BTreeMap::from([(id, member.clone())]);
                change(raft, ChangeMembers::SetNodes(nodes)).await?;
            }
            None => {
                let added = raft.add_learner(id, member.clone(), false).await;
                added.map_err(|error| error.to_string())?;
            }
        }
        if voter {
            return Ok(());
        }
        self.caught_up(raft, id).await?;
        let namesake = config
            .membership()
            .nodes()
            .find(|(other, node)| **other != id && node.name == member.name)
            .map(|(other, _)| *other);
        let mut steps = vec![ChangeMembers::AddVoterIds([id].into())];
        if let Some(old) = namesake {
            tracing::info!(
                name = member.name,
                "a node returns with an empty data directory"
            );
            steps.push(ChangeMembers::RemoveVoters([old].into()));
        }
        change(raft, ChangeMembers::Batch(steps)).await?;
        tracing::info!(
            name = member.name,
            addr = member.raft_addr,
            "a node has joined"
        );
        Ok(())
    }

    /// Waits until a learner's log is close to ours.
    async fn caught_up(&self, raft: &Raft, id: u64) -> Result<(), String> {
        let mut metrics = raft.metrics();
        let near = metrics.wait_until(|metrics| {
            let matched = metrics
                .replication
                .as_ref()
                .and_then(|peers| peers.get(&id));
            let matched = matched.copied().flatten().map_or(0, |id| id.index);
            matched + CAUGHT_UP_ENTRIES >= metrics.last_log_index.unwrap_or(0) && matched > 0
        });
        match tokio::time::timeout(CATCH_UP_PATIENCE, near).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err("it is still catching up".to_owned()),
        }
    }

    /// Draws the id of a new cluster and adopts it.
    fn draw(&self) -> Result<ClusterId, Error> {
        let cluster = u128::from(random_u64()?) << 64 | u128::from(random_u64()?);
        self.belong(cluster, true).map_err(Error::Configuration)?;
        Ok(ClusterId(cluster))
    }

    /// Whether the applied or effective membership has this node in it.
    fn is_member(&self) -> bool {
        let id = self.raft_id();
        self.health.failure().is_some()
            || self.raft.get().is_some_and(|raft| {
                let config = raft.metrics().borrow_watched().membership_config.clone();
                config.membership().voter_ids().any(|voter| voter == id)
            })
    }

    /// The cluster this node belongs to.
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        lock(&self.identity).cluster
    }

    pub(crate) fn raft_id(&self) -> u64 {
        lock(&self.identity).raft_id
    }

    /// The leader's Raft address, if it is known here.
    pub(crate) fn leader_addr(&self) -> Option<String> {
        let metrics = self.raft.get()?.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        metrics
            .membership_config
            .membership()
            .get_node(&leader)
            .map(|node| node.raft_addr.clone())
    }
}

/// Who answered the greetings.
#[derive(Default)]
struct Met {
    peers: Vec<Introduction>,
    /// The cluster of a peer that refused us because it belongs to another one than we do.
    elsewhere: Option<ClusterId>,
}

impl Met {
    /// The cluster that the peers belong to; those that talk to us decide before those that do not.
    fn cluster(&self) -> Option<ClusterId> {
        let cluster = self.peers.iter().find_map(|peer| peer.cluster);
        cluster.map(ClusterId).or(self.elsewhere)
    }
}

fn elsewhere(mine: ClusterId, theirs: ClusterId) -> Error {
    Error::Configuration(format!(
        "this node belongs to cluster {mine}, the nodes given by -join to {theirs}; start it \
         without -join, or with an empty data directory to move it"
    ))
}

async fn change(raft: &Raft, change: ChangeMembers<u64, Member>) -> Result<(), String> {
    let changed = raft.change_membership(change, false).await;
    changed.map(drop).map_err(|error| error.to_string())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const HEARD_MAX: usize = 64;
const GREETING_INTERVAL: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(1);
const JOIN_INTERVAL: Duration = Duration::from_secs(1);
const CHECK_INTERVAL_MAX: Duration = Duration::from_secs(30);
/// The leader answers a join only when the newcomer has caught up, or after this minus a margin.
const JOIN_PATIENCE: Duration = Duration::from_secs(15);
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(10);
/// Close enough to become a voter: some heartbeats' worth of groups.
const CAUGHT_UP_ENTRIES: u64 = 64;
