//! `wallaby serve`: one node, from start to signal.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use wallaby::http::{HttpOptions, Report};
use wallaby::node::{Node, STACK_BYTES};
use wallaby::ops::{Discovery, DiscoveryError, PeersFileError, Reporter, Upkeep, peers_file};

use crate::cli::config::ServeConfig;
use crate::cli::extensions::{self, ExtensionsError};
use crate::cli::http_config::{self, HttpFileError, HttpParts};
use crate::cli::join::{self, JoinError, JoinTerms};
use crate::cli::logging;
use crate::cli::rqlited::WithoutEffect;

/// Why the node did not start or did not stop in order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The configuration of discovery is of no use.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    /// An extension cannot be loaded.
    #[error(transparent)]
    Extensions(#[from] ExtensionsError),
    /// A file of the HTTP interface cannot be used.
    #[error(transparent)]
    Http(#[from] HttpFileError),
    /// A node to join does not say how to.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The HTTP address cannot be listened on.
    #[error("cannot listen for HTTP on {addr}: {source}")]
    Listen {
        /// `-http-addr`.
        addr: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The node cannot open or close.
    #[error(transparent)]
    Node(#[from] wallaby::node::Error),
    /// The node went out of service for good while it ran.
    #[error("out of service: {0}")]
    OutOfService(String),
    /// The file that names the nodes that go on cannot be obeyed.
    #[error(transparent)]
    PeersFile(#[from] PeersFileError),
    /// The parent that was to be watched is not the parent, or not any more.
    #[error("the parent process {0} has ended")]
    ParentEnded(u32),
    /// Something the operating system should provide is missing.
    #[error("{what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Runs a node until SIGTERM or SIGINT, or until it goes out of service.
pub(crate) fn run(mut config: ServeConfig) -> Result<(), ServeError> {
    logging::start(config.log_level, config.raft_log_level);
    if let Some(parent) = config.die_with_parent {
        die_with(parent)?;
    }
    for WithoutEffect { flag, reason } in &config.without_effect {
        tracing::warn!(flag, reason, "this flag of rqlited has no effect here");
    }
    let mut http = config.http.load()?;
    let bearable = descriptors().saturating_sub(DESCRIPTORS_KEPT);
    let connections_max = &mut http.options.connections_max;
    if *connections_max > bearable {
        tracing::warn!(
            connections_max = bearable,
            "fewer HTTP connections than asked for are \
            served at a time; raise the limit of open files (ulimit -n)"
        );
        *connections_max = bearable.max(1);
    }
    let how = JoinTerms {
        caller: http.join_as.clone(),
        attempts: config.join_attempts,
        interval: config.join_interval,
        authorities: config.http.authorities.clone(),
    };
    let joined = join::raft_addresses(&config.join_http, &config.data_dir, &how)?;
    config.node.join.extend(joined);
    let discovery = config.discovery.take().map(Discovery::new).transpose()?;
    if let Some(discovery) = discovery.clone() {
        config.node.discovery = Some(Arc::new(discovery));
    }
    config.node.recovery = peers_file::read(&config.data_dir)?;
    config.node.extensions = extensions::open(&config.extensions, &config.data_dir)?;
    config.node.join_as.clone_from(&http.join_as);
    config.node.authority = http_config::authority(&http.options);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("wallaby-http")
        .thread_stack_size(STACK_BYTES)
        .build()
        .map_err(|source| ServeError::System {
            what: "asynchronous runtime",
            source,
        })?;
    let served = runtime.block_on(serve(config, http, discovery));
    // A file operation that hangs must not keep the process from ending.
    runtime.shutdown_background();
    served
}

/// Opens the node, serves HTTP, and takes both down in the opposite order.
async fn serve(
    config: ServeConfig,
    http: HttpParts,
    discovery: Option<Discovery>,
) -> Result<(), ServeError> {
    // Bound first: with the port taken there is nothing to undo.
    let listener = TcpListener::bind(&config.http_addr)
        .await
        .map_err(|source| ServeError::Listen {
            addr: config.http_addr.clone(),
            source,
        })?;
    let is_local = listener
        .local_addr()
        .is_ok_and(|addr| addr.ip().is_loopback());
    if let Some(warning) = http.exposure().filter(|_| !is_local) {
        tracing::warn!(http_addr = config.http_addr, "{warning}");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        data_dir = %config.data_dir.display(),
        http_addr = config.http_addr,
        raft_addr = config.node.raft_addr,
        "starting"
    );
    let node = Node::open(config.node).await?;
    let reporter = discovery
        .as_ref()
        .map(|discovery| Reporter::start(&node, discovery));
    let options = HttpOptions {
        queue: config.queue,
        reports: discovery
            .map(|discovery| Report::new("disco", move || discovery.status()))
            .into_iter()
            .collect(),
        ..http.options
    };
    let upkeep = Upkeep::start(&node, config.upkeep);
    let (signalled, failed) = (stop_signal()?, out_of_service(&node));
    let stop = async move {
        tokio::select! {
            () = signalled => {}
            () = failed => {}
        }
    };
    let served = wallaby::http::serve(node.clone(), listener, options, stop).await;
    drop((upkeep, reporter));
    // Also when HTTP failed: what the node has in flight is finished, not cut off. A disk that
    // hangs must not keep the process from being replaced.
    if timeout(CLOSE_TIME_MAX, node.close()).await.is_err() {
        tracing::warn!("the node did not close in time");
    }
    served.map_err(|source| ServeError::System {
        what: "HTTP server",
        source,
    })?;
    if let Some(why) = node.failure().borrow().clone() {
        return Err(ServeError::OutOfService(why));
    }
    tracing::info!("stopped");
    Ok(())
}

/// Ready when the node has gone out of service. Half alive it would only be in the way: whoever
/// started the process sees it end, and can start it again or call somebody.
fn out_of_service(node: &Node) -> impl Future<Output = ()> + Send + 'static {
    let mut failure = node.failure();
    async move {
        if failure.wait_for(Option::is_some).await.is_err() {
            // The node is gone without a failure, so it was closed.
            std::future::pending::<()>().await;
        }
    }
}

/// Ready when the process is asked to stop.
fn stop_signal() -> Result<impl Future<Output = ()> + Send + 'static, ServeError> {
    let failed = |source| ServeError::System {
        what: "signal handler",
        source,
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!(signal = "SIGTERM", "stopping"),
            _ = interrupt.recv() => tracing::info!(signal = "SIGINT", "stopping"),
        }
    })
}

/// How many files this process may have open, after raising that to what the system allows.
fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(_) => limit.current,
    };
    // No limit at all is none here either.
    current.map_or(usize::MAX, |current| {
        usize::try_from(current).unwrap_or(usize::MAX)
    })
}

/// Has the kernel kill this process when its parent ends, so that a demo or a test that is killed
/// leaves no nodes behind.
fn die_with(parent: u32) -> Result<(), ServeError> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).map_err(
        |error| ServeError::System {
            what: "parent death signal",
            source: error.into(),
        },
    )?;
    // The parent may have ended before the line above; then nobody would ever send the signal.
    if std::os::unix::process::parent_id() != parent {
        return Err(ServeError::ParentEnded(parent));
    }
    Ok(())
}

/// Longer than the largest group in flight and a checkpoint take on any disk that works.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(60);

/// Files that the log, the database, its readers and the other nodes may need.
const DESCRIPTORS_KEPT: usize = 512;
