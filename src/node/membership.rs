//! Finding a cluster, starting one, and joining one.
//!
//! A node without a cluster greets the addresses it was given. It adopts the cluster of a peer that
//! has one, or agrees with enough peers in the same position to start one: the node with the
//! smallest Raft id draws the cluster id, has every other one adopt it for good, and only then
//! initialises Raft. A node never belongs to two clusters, so two starts at once cannot split it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use super::Raft;
use super::admission::{leader_addr, membership};
use super::error::Error;
use super::health::Health;
use super::identity::{Identity, random_u64};
use super::refounding::is_refounded;
use super::search::{Found, Search};
use super::wire::{self, Adopted, Adoption, Greeting, Introduction, MemberMirror, kind};
use crate::raft::{Member, Role};
use crate::transport::{Endpoint, Priority, TransportError};
use crate::wal::ClusterId;

/// What this node knows of its own and of others' membership.
pub(crate) struct Membership {
    dir: PathBuf,
    identity: Mutex<Identity>,
    pub(crate) member: Member,
    pub(crate) search: Search,
    raft: Arc<OnceLock<Raft>>,
    /// Why peers will not start a cluster with this node, by their Raft address; each is logged
    /// once.
    refused: Mutex<BTreeMap<String, String>>,
    /// Nodes that want to start a cluster, by Raft address: one that comes back with an empty
    /// directory is another node at the same address.
    heard: Mutex<BTreeMap<String, Heard>>,
    assigned: watch::Sender<Option<ClusterId>>,
    health: Arc<Health>,
    /// Set by the entry that makes this node a member. Whoever only looks now and then may miss
    /// that it was one, between its admission and its removal.
    taken_in: Arc<AtomicBool>,
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
        search: Search,
        raft: Arc<OnceLock<Raft>>,
        health: Arc<Health>,
    ) -> Arc<Self> {
        let assigned = watch::Sender::new(identity.cluster);
        Arc::new(Self {
            dir,
            identity: Mutex::new(identity),
            member,
            search,
            raft,
            refused: Mutex::default(),
            heard: Mutex::default(),
            assigned,
            health,
            taken_in: Arc::default(),
        })
    }

    /// To be set when an entry was applied after which this node is a member as it should be.
    pub(crate) fn taken_in(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.taken_in)
    }

    /// Whether such an entry was applied since this process started.
    pub(crate) fn was_taken_in(&self) -> bool {
        self.taken_in.load(Ordering::Acquire)
    }

    /// Answers a greeting, and remembers who wants to start a cluster and was not `refused`.
    pub(crate) fn introduce(&self, greeting: &Greeting, refused: Option<String>) -> Introduction {
        if greeting.bootstrap_expect > 0 && refused.is_none() {
            let mut heard = lock(&self.heard);
            heard.retain(|_, heard| heard.at.elapsed() < HEARD_FOR);
            // Bounded: strangers must not fill our memory.
            if heard.len() < HEARD_MAX {
                let addr = greeting.member.raft_addr.clone();
                let at = Instant::now();
                let (raft_id, member) = (greeting.raft_id, greeting.member.clone());
                heard.insert(
                    addr,
                    Heard {
                        raft_id,
                        member,
                        at,
                    },
                );
            }
        }
        let identity = lock(&self.identity);
        Introduction {
            raft_id: identity.raft_id,
            member: self.member.clone().into(),
            cluster: identity.cluster.map(|id| id.0),
            leader: self.raft.get().and_then(leader_addr),
            bootstrap_expect: self.search.bootstrap_expect,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            refused,
            catch_up: None,
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
        if self.search.is_alone(&self.member.raft_addr) {
            if self.member.role == Role::Replica {
                return Err(Error::Configuration(NO_START.to_owned()));
            }
            let cluster = match cluster {
                Some(cluster) => cluster,
                None => self.draw()?,
            };
            return Ok((cluster, self.alone()));
        }
        tracing::info!(peers = ?self.search.join, "looking for a cluster");
        let mut begun = Instant::now();
        loop {
            let targets = match self.search.look(true).await {
                Found::Nodes(targets) => targets,
                Found::Silence => {
                    begun = Instant::now();
                    Vec::new()
                }
                Found::Alone => match self.found()? {
                    Some(cluster) => {
                        endpoint.assign(cluster)?;
                        return Ok((cluster, self.alone()));
                    }
                    None => Vec::new(),
                },
            };
            let met = self.greet_all(endpoint, &targets).await;
            if let Some(found) = self.look_around(endpoint, &met).await? {
                return Ok(found);
            }
            if begun.elapsed() > self.search.time_max {
                return Err(self.lonely(&targets));
            }
            let mut assigned = self.assigned.subscribe();
            // Either somebody adopts us, or we look again.
            let _ = tokio::time::timeout(GREETING_INTERVAL, assigned.changed()).await;
        }
    }

    /// The cluster that this node starts, unless another one has taken it in meanwhile.
    fn found(&self) -> Result<Option<ClusterId>, Error> {
        let Identity {
            cluster, founder, ..
        } = lock(&self.identity).clone();
        match cluster {
            None => self.draw().map(Some),
            Some(mine) => Ok(founder.then_some(mine)),
        }
    }

    /// To start a cluster of this node alone.
    fn alone(&self) -> Settled {
        let alone = BTreeMap::from([(self.raft_id(), self.member.clone())]);
        Settled::Initialise(alone)
    }

    /// Why the node gives up looking for a cluster.
    fn lonely(&self, targets: &[String]) -> Error {
        let (who, flags) = if self.search.bootstrap_expect > 0 {
            ("too few nodes", "-bootstrap-expect-timeout")
        } else {
            ("no node of a cluster", "-join-attempts and -join-interval")
        };
        Error::Configuration(format!(
            "{who} answered at {} within {:?} ({flags})",
            targets.join(", "),
            self.search.time_max
        ))
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
            (mine, _) if first && founders.len() as u64 >= self.search.bootstrap_expect.max(2) => {
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
        if self.search.bootstrap_expect == 0 {
            return BTreeMap::new();
        }
        let mut by_addr = BTreeMap::new();
        for heard in lock(&self.heard).values() {
            if heard.at.elapsed() < HEARD_FOR {
                let found = (heard.raft_id, heard.member.clone());
                by_addr.insert(heard.member.raft_addr.clone(), found);
            }
        }
        let willing = |peer: &&Introduction| peer.bootstrap_expect > 0 && peer.refused.is_none();
        for peer in peers.iter().filter(willing) {
            let found = (peer.raft_id, peer.member.clone());
            by_addr.insert(peer.member.raft_addr.clone(), found);
        }
        let mine = (self.raft_id(), self.member.clone().into());
        by_addr.insert(self.member.raft_addr.clone(), mine);
        by_addr
            .into_values()
            .map(|(id, member)| (id, Member::from(member)))
            .collect()
    }

    /// Greets every address but the own one.
    async fn greet_all(&self, endpoint: &Endpoint, targets: &[String]) -> Met {
        let mine = self.raft_id();
        let greeting = Greeting {
            raft_id: mine,
            member: self.member.clone().into(),
            bootstrap_expect: self.search.bootstrap_expect,
            caller: self.search.caller.clone(),
        };
        let body = Bytes::from(wire::encode(&greeting));
        let mut met = Met::default();
        for addr in targets
            .iter()
            .filter(|addr| **addr != self.member.raft_addr)
        {
            let peer = endpoint.peer(addr, None);
            let reply = peer.request(kind::GREETING, Priority::Control, body.clone(), PATIENCE);
            match reply.await {
                Ok(reply) => match wire::decode::<Introduction>(&reply) {
                    Ok(peer) if peer.raft_id != mine => {
                        self.note_refusal(addr, peer.refused.as_deref());
                        met.peers.push(peer);
                    }
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

    /// Logs why a peer does not want this node, once per reason.
    pub(crate) fn note_refusal(&self, addr: &str, why: Option<&str>) {
        let mut refused = lock(&self.refused);
        match why {
            None => drop(refused.remove(addr)),
            Some(why) if refused.get(addr).is_some_and(|known| known == why) => {}
            Some(why) => {
                tracing::warn!(addr, why, "this node was refused");
                refused.insert(addr.to_owned(), why.to_owned());
            }
        }
    }

    /// A node of one cluster that is told to join another would silently stay where it is. Ends the
    /// node if that is what its flags say, and returns once a peer of its own cluster has answered.
    pub(crate) async fn check_targets(self: Arc<Self>, endpoint: Endpoint) {
        let mut pause = JOIN_INTERVAL;
        while let Some(mine) = self.cluster() {
            let met = self.greet_all(&endpoint, &self.search.join).await;
            match met.cluster() {
                Some(theirs) if theirs != mine => {
                    if is_refounded(&self.dir, mine).unwrap_or(false) {
                        let why = "a node given by -join was not founded anew with this one";
                        return tracing::warn!(cluster = %mine, theirs = %theirs, why);
                    }
                    let error = elsewhere(mine, theirs).to_string();
                    return self.health.fail(if self.is_alone() {
                        format!("{ALONE} ({error})")
                    } else {
                        error
                    });
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
        let body = Bytes::from(wire::encode(&Adoption {
            cluster: cluster.0,
            caller: self.search.caller.clone(),
        }));
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

    /// Draws the id of a new cluster and adopts it.
    fn draw(&self) -> Result<ClusterId, Error> {
        let cluster = u128::from(random_u64()?) << 64 | u128::from(random_u64()?);
        self.belong(cluster, true).map_err(Error::Configuration)?;
        Ok(ClusterId(cluster))
    }

    /// Whether this node is the only member of its cluster.
    fn is_alone(&self) -> bool {
        let config = self.raft.get().map(membership);
        config.is_some_and(|config| config.nodes().map(|(id, _)| *id).eq([self.raft_id()]))
    }

    /// The cluster this node belongs to.
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        lock(&self.identity).cluster
    }

    pub(crate) fn raft_id(&self) -> u64 {
        lock(&self.identity).raft_id
    }
}

/// A node that has greeted us and wants to start a cluster.
struct Heard {
    raft_id: u64,
    member: MemberMirror,
    at: Instant,
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// rqlite's words.
const ALONE: &str = "node is the only node in a single-node cluster, joining other clusters not \
                     supported";
const NO_START: &str = "cannot create a new non-voting node without joining it to an existing \
                        cluster";
const HEARD_MAX: usize = 64;
/// Whoever still wants to start a cluster greets again long before.
const HEARD_FOR: Duration = Duration::from_secs(10);
const GREETING_INTERVAL: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(1);
const JOIN_INTERVAL: Duration = Duration::from_secs(1);
const CHECK_INTERVAL_MAX: Duration = Duration::from_secs(30);
