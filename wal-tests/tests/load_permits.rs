//! A backup or a load that a follower hands on is asked about again where it is served.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wal_tests::linked::LinkedCluster;
use wallaby::node::{
    Authority, BackupForm, BackupRequest, Credentials, Node, Permission, Refusal, Served,
};

/// Lets one user do what is asked about here, until told otherwise.
#[derive(Debug)]
struct Guard(Arc<AtomicBool>);

impl Authority for Guard {
    fn permits_at_once(&self, caller: Option<&Credentials>, all: &[Permission]) -> Option<bool> {
        Some(self.permits(caller, all))
    }

    fn permits(&self, caller: Option<&Credentials>, all: &[Permission]) -> bool {
        let is_ours = all
            .iter()
            .all(|permission| matches!(permission, Permission::Backup | Permission::Load));
        let is_known = caller.is_some_and(|caller| caller.username == "ann");
        is_ours && is_known && self.0.load(Ordering::Relaxed)
    }
}

const TIMEOUT: Duration = Duration::from_secs(30);

async fn load(node: Node, caller: Option<Credentials>) -> Result<Served, Refusal> {
    let upload = node.upload().await?;
    let upload = upload.push(b"CREATE TABLE loaded(a)").await?;
    node.load(upload.finish().await?, TIMEOUT, caller).await
}

async fn back_up(node: Node, caller: Option<Credentials>) -> Result<usize, Refusal> {
    let request = BackupRequest {
        form: BackupForm::Sql(Vec::new()),
        is_compressed: false,
        is_local: false,
        timeout: TIMEOUT,
        caller,
    };
    let backup = node.backup(request).await?;
    let mut out = Vec::new();
    backup.write_to(&mut out).unwrap();
    Ok(out.len())
}

#[test]
fn the_leader_asks_its_own_authority_about_what_a_follower_hands_on() {
    let permits = Arc::new(AtomicBool::new(true));
    let guard: Arc<dyn Authority> = Arc::new(Guard(Arc::clone(&permits)));
    let cluster = LinkedCluster::start(3, 0, |options| {
        options.authority = Some(Arc::clone(&guard));
    });
    let follower = (cluster.wait_leader() + 1) % 3;
    let node = || cluster.node(follower);
    let user = |name: &str| {
        Some(Credentials {
            username: name.to_owned(),
            password: "secret".to_owned(),
        })
    };
    let refusals = || {
        let refusal = |refusal: Refusal| refusal.to_string();
        let loaded = cluster.join(cluster.spawn(load(node(), user("bob"))));
        let copied = cluster.join(cluster.spawn(back_up(node(), None)));
        let revoked = cluster.join(cluster.spawn(load(node(), None)));
        (
            loaded.map_err(refusal).unwrap_err(),
            copied.map_err(refusal).unwrap_err(),
            revoked.map_err(refusal).unwrap_err(),
        )
    };
    let expected = (
        "remote load not authorized".to_owned(),
        "remote backup not authorized".to_owned(),
        "remote load not authorized".to_owned(),
    );
    assert_eq!(refusals(), expected);
    let loaded = cluster
        .join(cluster.spawn(load(node(), user("ann"))))
        .unwrap();
    assert_eq!(loaded.reply.error, None);
    let copied = cluster
        .join(cluster.spawn(back_up(node(), user("ann"))))
        .unwrap();
    assert!(copied > "CREATE TABLE loaded(a)".len());
    permits.store(false, Ordering::Relaxed);
    let copied = cluster.join(cluster.spawn(back_up(node(), user("ann"))));
    assert_eq!(copied, Err(Refusal::NotPermitted("backup".to_owned())));
    cluster.assert_identical();
}
