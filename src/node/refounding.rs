//! Founding a cluster anew from the nodes that are left. An operator names them, on each of them
//! alike, when the majority is lost for ever or when all addresses have changed at once.
//!
//! The named nodes become **another cluster with the same history**: a new cluster id, computed
//! from the old one and from what was named, and the same entries at the same log ids. Why not the
//! same cluster with another membership: then a node that was not told would still take part by the
//! old rules, could be voted for by those that were told, and would put its own entries where they
//! have put others. A node of another cluster is refused in the handshake, as is one that was told
//! something else (its cluster id comes out differently). A forgotten node that comes back is thus
//! asked to join with an empty directory, whatever it has.
//!
//! What each node does by itself is the same function of what it has, so that nodes whose logs have
//! different lengths still agree wherever both have an entry:
//!
//! * Entries keep log id and pages. Deltas get the new cluster id in their header.
//! * **Every** membership, in the checkpoint record and in each entry of the log behind it, becomes
//!   the new one. No entry is added: two nodes of different lengths would add different ones at the
//!   same place.
//! * The uncommitted tail stays: it may have been acknowledged by nodes that are gone. The vote
//!   stays, so that nobody votes twice in one term. The durable `committed` stays too.
//!
//! **The longest log wins**, for certain and not by luck: a majority of the named nodes need not
//! have what a majority of the old members acknowledged (of five, two of the three that are left
//! may lack it). So the new membership is a joint one with each voter as a set of its own, besides
//! the set of all of them: the first leader needs the vote of *every* named voter, and nobody votes
//! for a shorter log than its own. That leader then finishes the joint configuration as it does
//! with any that it finds (`admission`), and majorities decide from there on. Until every named
//! voter has been started, nothing is served; whoever cannot be started must not be named.
//!
//! Raft ids are never reused or invented: a name must be known, in what this node has of the log,
//! as that of one node. A node that has to be named although it is unknown here can join
//! afterwards.
//!
//! Doing it again is harmless. What is named already is left alone, and naming other nodes before
//! the first leader was elected starts from the cluster before, so that it does not matter which
//! nodes were told twice. `switch` makes all of it durable at one moment.

mod switch;

pub(crate) use switch::is_refounded;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::PathBuf;

use openraft::EntryPayload;
use xxhash_rust::xxh3::xxh3_128;

use super::error::Error;
use super::identity::Identity;
use super::options::NodeOptions;
use super::rebuild;
use super::recovery::{Recovered, reconcile, recover};
use super::replay::READ_BYTES;
use crate::raft::{Member, Membership, Role};
use crate::wal::ClusterId;
use switch::Switch;

/// The nodes that are to go on as a cluster, from a file that an operator has written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Recovery {
    /// All of them, this node included.
    pub members: Vec<RecoveryMember>,
    /// Where that was read. Renamed to `peers.info` beside it when it is done.
    pub file: PathBuf,
}

/// One node that is to go on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RecoveryMember {
    /// Its name, see [`NodeOptions::name`].
    pub name: String,
    /// Its Raft address from now on, `host:port`.
    pub raft_addr: String,
    /// Whether it votes.
    pub voter: bool,
}

/// Makes this node one of the cluster that the options name, if they do, and finishes what a crash
/// has interrupted. Whatever is wrong with what they name leaves everything as it was.
pub(crate) async fn refound(options: &NodeOptions, identity: Identity) -> Result<Identity, Error> {
    let identity = blocking({
        let options = options.clone();
        move || switch::finish_interrupted(&options, identity)
    })
    .await?;
    let Some(recovery) = options.recovery.clone() else {
        return Ok(identity);
    };
    let complain = |what: String| complaint(&recovery, &what);
    recovery.check(&identity.name, options).map_err(complain)?;
    let Some(cluster) = identity.cluster else {
        return Err(complain(
            "this node has no data to go on with; remove the file, and have the node join the \
             others with -join when they run"
                .to_owned(),
        ));
    };
    let (from, raft_id) = (options.clone(), identity.raft_id);
    let recovered = blocking(move || recover(&from, cluster, raft_id)).await;
    let recovered = recovered.map_err(|error| {
        if rebuild::is_damage(&error) {
            complain(format!("{}; {DAMAGED}", rebuild::what(&error)))
        } else {
            error
        }
    })?;
    reconcile(recovered.log.clone(), recovered.fence.last_applied).await?;
    let memberships = memberships(&recovered).await?;
    let members = recovery
        .members(&memberships, &identity, options)
        .map_err(complain)?;
    let identity = if memberships
        .last()
        .is_some_and(|last| is_same(last, &members, &recovery))
    {
        tracing::info!(file = %recovery.file.display(), "these are the members already");
        close(recovered).await?;
        identity
    } else {
        let membership = unanimous(&members, &recovery).map_err(complain)?;
        let last = recovered.log.last();
        let before = switch::cluster_before(&options.data_dir, memberships.last(), last)?;
        let to = successor(before.unwrap_or(cluster), &members, &recovery);
        tracing::warn!(
            from = %cluster,
            to = %to,
            last = %last.map_or_else(String::new, |last| last.to_string()),
            "founding the cluster anew with the nodes of {}; all its {} voters must be started \
             with the same file before any of them serves",
            recovery.file.display(),
            membership.voter_ids().count()
        );
        let switch = Switch {
            from: before.unwrap_or(cluster),
            to,
            last,
            membership,
        };
        switch.prepare(options, raft_id, &recovered).await?;
        let (dir, lock) = (options.data_dir.clone(), close(recovered).await?);
        blocking(move || switch.carry_out(&dir, &lock, identity)).await?
    };
    rename(&recovery)?;
    Ok(identity)
}

impl Recovery {
    /// What can be said without looking at the log.
    fn check(&self, own_name: &str, options: &NodeOptions) -> Result<(), String> {
        let mut names = BTreeSet::new();
        let mut addrs = BTreeSet::new();
        for member in &self.members {
            if !names.insert(&member.name) {
                return Err(format!("node {:?} is in it twice", member.name));
            }
            if !addrs.insert(&member.raft_addr) {
                return Err(format!(
                    "two nodes in it have the address {}",
                    member.raft_addr
                ));
            }
        }
        if !self.members.iter().any(|member| member.voter) {
            return Err("none of the nodes in it votes; at least one has to".to_owned());
        }
        let Some(own) = self.members.iter().find(|member| member.name == own_name) else {
            return Err(format!(
                "this node, {own_name:?}, is not in it; add it, or remove the file and have the \
                 node join the others with an empty data directory"
            ));
        };
        let advertised = options.advertised_raft_addr();
        if own.raft_addr != advertised {
            return Err(format!(
                "it gives this node the address {}, but the node is started with {advertised} \
                 (-raft-adv-addr or -raft-addr); make them the same",
                own.raft_addr
            ));
        }
        Ok(())
    }

    /// The members with their Raft ids.
    fn members(
        &self,
        known: &[Membership],
        own: &Identity,
        options: &NodeOptions,
    ) -> Result<BTreeMap<u64, Member>, String> {
        let mut members = BTreeMap::new();
        for named in &self.members {
            let (id, mut member) = if named.name == own.name {
                let me = known
                    .iter()
                    .rev()
                    .find_map(|config| config.get_node(&own.raft_id));
                let mut me = me.cloned().ok_or_else(|| {
                    "this node was never a member of its cluster; remove the file, and have it \
                     join the others with -join when they run"
                        .to_owned()
                })?;
                me.http_addr.clone_from(&options.http_adv_addr);
                (own.raft_id, me)
            } else {
                find(known, &named.name)?
            };
            member.raft_addr.clone_from(&named.raft_addr);
            member.role = if named.voter {
                Role::Voter
            } else {
                Role::Replica
            };
            members.insert(id, member);
        }
        Ok(members)
    }

    fn votes(&self, name: &str) -> bool {
        self.members
            .iter()
            .any(|member| member.voter && member.name == name)
    }
}

/// The node of a name and its Raft id: by the last membership that has it.
fn find(known: &[Membership], name: &str) -> Result<(u64, Member), String> {
    for config in known.iter().rev() {
        let mut found = config.nodes().filter(|(_, member)| member.name == name);
        match (found.next(), found.next()) {
            (Some((id, member)), None) => return Ok((*id, member.clone())),
            (Some(_), Some(_)) => {
                return Err(format!(
                    "two nodes were called {name:?}, one in place of the other; leave it out, and \
                     have it join with -join and an empty data directory when the others run"
                ));
            }
            (None, _) => {}
        }
    }
    Err(format!(
        "a node called {name:?} is not known here; leave it out, and have it join with -join when \
         the others run"
    ))
}

/// Every membership from the checkpoint on, in the order of the log.
async fn memberships(recovered: &Recovered) -> Result<Vec<Membership>, Error> {
    let (settled, log) = (recovered.fence.last_applied, recovered.log.clone());
    let mut found = Vec::new();
    if recovered.membership.nodes().next().is_some() {
        found.push(recovered.membership.membership().clone());
    }
    blocking(move || {
        let mut next = settled.map_or(0, |settled| settled.index + 1);
        loop {
            let entries = log.read_blocking(next, u64::MAX, READ_BYTES)?;
            let Some(last) = entries.last() else {
                return Ok(found);
            };
            next = last.log_id.index + 1;
            found.extend(entries.into_iter().filter_map(|entry| match entry.payload {
                EntryPayload::Membership(membership) => Some(membership),
                _ => None,
            }));
        }
    })
    .await
}

/// Whether a membership says the same as the file, no matter how far it has been carried out.
fn is_same(config: &Membership, members: &BTreeMap<u64, Member>, recovery: &Recovery) -> bool {
    let voters: BTreeSet<u64> = config.voter_ids().collect();
    let addressed = |(id, member): (&u64, &Member)| (*id, member.raft_addr.clone());
    let named = |(id, member): (&u64, &Member)| recovery.votes(&member.name).then_some(*id);
    config
        .nodes()
        .map(addressed)
        .eq(members.iter().map(addressed))
        && members.iter().filter_map(named).eq(voters)
}

/// The membership under which only all voters together decide.
fn unanimous(members: &BTreeMap<u64, Member>, recovery: &Recovery) -> Result<Membership, String> {
    let voters: BTreeSet<u64> = members
        .iter()
        .filter(|(_, member)| recovery.votes(&member.name))
        .map(|(id, _)| *id)
        .collect();
    let mut sets: Vec<BTreeSet<u64>> = Vec::new();
    if voters.len() > 1 {
        sets.extend(voters.iter().map(|voter| BTreeSet::from([*voter])));
    }
    // Last, because that is what a leader makes of a joint configuration.
    sets.push(voters);
    Membership::new(sets, members.clone()).map_err(|error| error.to_string())
}

/// The id of the cluster that comes after another one with these members.
fn successor(before: ClusterId, members: &BTreeMap<u64, Member>, recovery: &Recovery) -> ClusterId {
    let mut named = b"cluster founded anew, 1".to_vec();
    named.extend_from_slice(&before.0.to_le_bytes());
    // Not the HTTP addresses: each node knows its own one best.
    for (id, member) in members {
        named.extend_from_slice(&id.to_le_bytes());
        named.push(u8::from(recovery.votes(&member.name)));
        for text in [&member.name, &member.raft_addr] {
            named.extend_from_slice(&(text.len() as u64).to_le_bytes());
            named.extend_from_slice(text.as_bytes());
        }
    }
    ClusterId(xxh3_128(&named).max(1))
}

/// Closes the log, and keeps the lock: nobody else may touch the directory meanwhile.
async fn close(recovered: Recovered) -> Result<crate::sqlite::StartLock, Error> {
    blocking(move || {
        recovered.log.close();
        Ok(recovered.lock)
    })
    .await
}

/// The file has been obeyed, and keeps its content for the operator to look at.
fn rename(recovery: &Recovery) -> Result<(), Error> {
    let file = &recovery.file;
    let rename = || {
        fs::rename(file, file.with_extension("info"))?;
        match file.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    rename().map_err(Error::io(format!(
        "rename {} to peers.info",
        file.display()
    )))
}

fn complaint(recovery: &Recovery, what: &str) -> Error {
    Error::Configuration(format!(
        "{}: {what}. Nothing was changed",
        recovery.file.display()
    ))
}

/// What to do about damage: whoever founds a cluster anew counts on what this node has, so nothing
/// is set aside.
const DAMAGED: &str = "if another of the nodes that are left has its data whole, take this one out \
     of the file on all of them, and have it join with -join and an empty data directory when they \
     run; if this is the only copy, keep the data directory as it is, and restore the last backup: \
     start the node with an empty one, and POST the backup to /db/load";

/// Runs file work off the async workers.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::Raft(error.to_string()))?
}
