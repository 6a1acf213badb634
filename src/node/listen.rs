//! Where a node listens for the others, and how they prove who they are.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use super::error::Error;
use super::identity::Identity;
use super::options::NodeOptions;
use crate::transport::{ClusterKey, Endpoint, EndpointOptions, Security};

/// Opens the node's Raft address.
pub(super) fn listen(options: &NodeOptions, identity: &Identity) -> Result<Endpoint, Error> {
    let security = match (&options.cluster_key, &options.node_certificates) {
        (Some(file), _) => Security::Key(ClusterKey::read(file)?),
        (None, Some(certificates)) => Security::Certificates(certificates.clone()),
        (None, None) if options.insecure_cluster => Security::Insecure,
        (None, None) => Security::Loopback,
    };
    let bind = resolve(&options.raft_addr)?;
    if let Security::Certificates(certificates) = &security
        && !certificates.verify_client
        && !bind.ip().is_loopback()
    {
        tracing::warn!(
            raft_addr = options.raft_addr,
            "without -node-verify-client anyone who can reach this address can act as a node of \
             the cluster, and read and change the database"
        );
    }
    let opened = EndpointOptions {
        bind,
        security,
        node: identity.raft_id,
        cluster: identity.cluster,
        keep_alive: options.heartbeat(),
        idle_timeout: options.election_max().max(IDLE_MIN),
        connect_timeout: options.election_min(),
    };
    Ok(Endpoint::bind_over(options.sockets.as_ref(), &opened)?)
}

fn resolve(addr: &str) -> Result<SocketAddr, Error> {
    let wrong = |why: String| {
        Error::Configuration(format!(
            "-raft-addr {addr:?} is not an address to listen on: {why}"
        ))
    };
    let mut addrs = addr
        .to_socket_addrs()
        .map_err(|error| wrong(error.to_string()))?;
    addrs
        .next()
        .ok_or_else(|| wrong("it has no address".to_owned()))
}

/// A busy machine may not run us for this long; dropping the connection would cost more.
const IDLE_MIN: Duration = Duration::from_millis(800);
