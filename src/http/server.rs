//! The listener: accepts connections up to a limit, and lets those under way finish when it is
//! told to stop. Beside it, users and certificates are read again when their files change.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::node::{Node, Tally};

use super::body::Budget;
use super::connection::Connections;
use super::counters::HttpCounter;
use super::origin::Origins;
use super::queue::{Queue, QueueOptions, QueueStatus};
use super::report::Report;
use super::tls::Tls;
use super::users::Users;

/// After a failed accept (usually: out of descriptors) the next attempt waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often the files of users and certificates are looked at.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// Who is served over HTTP, and within which limits.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Names, besides IP addresses and `localhost`, under which browsers may reach this node; a
    /// port behind one does not matter. `*`: any name.
    pub allow_hosts: Vec<String>,
    /// The origin whose pages may use this node, or `*`; `None`: only its own.
    pub allow_origin: Option<String>,
    /// The longest request body in bytes; longer ones are answered 413.
    pub body_bytes_max: usize,
    /// Bytes of all request bodies held at a time; beyond it they are answered 503.
    pub body_bytes_total_max: usize,
    /// How long a request body may stop arriving before the call is given up.
    pub body_pause_max: Duration,
    /// Connections served at a time; further ones wait to be accepted.
    pub connections_max: usize,
    /// How long a client may take for a TLS handshake, and to send the headers of a request once
    /// it has begun.
    pub header_time_max: Duration,
    /// How long a connection may be without a call.
    pub idle_time_max: Duration,
    /// How queued writes are batched.
    pub queue: QueueOptions,
    /// Further parts of `/status`.
    pub reports: Vec<Report>,
    /// The longest answer to statements in bytes.
    pub response_bytes_max: usize,
    /// How long calls under way may take to finish once the server is told to stop.
    pub stop_time_max: Duration,
    /// The longest `timeout` that a client is granted; a longer one is cut to it.
    pub timeout_max: Duration,
    /// Certificate and demands on clients; `None`: no TLS.
    pub tls: Option<Arc<Tls>>,
    /// The users whose file is to be looked after. Who may do what is the node's to say.
    pub users: Option<Arc<Users>>,
    /// How long a client may take nothing of what it is sent.
    pub write_pause_max: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            allow_hosts: Vec::new(),
            allow_origin: None,
            body_bytes_max: 256 * 1024 * 1024,
            body_bytes_total_max: 512 * 1024 * 1024,
            body_pause_max: Duration::from_secs(30),
            connections_max: 4096,
            header_time_max: Duration::from_secs(5),
            idle_time_max: Duration::from_secs(120),
            queue: QueueOptions::default(),
            reports: Vec::new(),
            response_bytes_max: 256 * 1024 * 1024,
            stop_time_max: Duration::from_secs(10),
            timeout_max: Duration::from_secs(60 * 60),
            tls: None,
            users: None,
            write_pause_max: Duration::from_secs(120),
        }
    }
}

/// What every call can reach.
pub(super) struct Server {
    pub(super) node: Node,
    pub(super) options: HttpOptions,
    /// The address that the listener is bound to.
    pub(super) bind_addr: String,
    pub(super) started: SystemTime,
    pub(super) counters: Tally<HttpCounter>,
    pub(super) origins: Origins,
    /// What request bodies may take together.
    pub(super) bodies: Budget,
    /// Writes that were accepted and are yet to be sent.
    pub(super) queue: Queue,
}

impl Server {
    /// How URLs of this node begin, and those of its peers: TLS is on everywhere or nowhere.
    pub(super) fn scheme(&self) -> &'static str {
        if self.options.tls.is_some() {
            "https"
        } else {
            "http"
        }
    }

    /// The URL of a node's HTTP interface, without a path.
    pub(super) fn url(&self, http_addr: &str) -> String {
        format!("{}://{http_addr}", self.scheme())
    }

    /// The state of the queue of writes.
    pub(super) fn queue_status(&self) -> QueueStatus {
        self.queue.status()
    }
}

/// Serves the HTTP interface of a node until `stop` is ready, then lets the calls under way finish
/// for [`HttpOptions::stop_time_max`] and closes what is left.
///
/// # Errors
/// The listener has no address, which means that it is not bound.
pub async fn serve(
    node: Node,
    listener: TcpListener,
    options: HttpOptions,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let bound = listener.local_addr()?;
    let hosts = options.allow_hosts.iter().map(String::as_str);
    let hosts = hosts.chain([node.http_addr()]);
    let allow_origin = options.allow_origin.as_deref();
    let server = Arc::new(Server {
        origins: Origins::new(hosts, allow_origin, bound.ip().is_loopback()),
        bodies: Budget::new(options.body_bytes_total_max),
        bind_addr: bound.to_string(),
        started: SystemTime::now(),
        counters: Tally::default(),
        queue: Queue::start(node.clone(), options.queue),
        node,
        options,
    });
    let (stopping, watching) = watch::channel(false);
    let refreshing = tokio::spawn(refresh(Arc::clone(&server)));
    let serving = Connections::new(Arc::clone(&server));
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        let is_full = connections.len() >= server.options.connections_max;
        serving.is_crowded.store(is_full, Ordering::Relaxed);
        tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if !is_full => {
                match accepted {
                    Ok((stream, _)) => {
                        let serving = Arc::clone(&serving);
                        connections.spawn(serving.serve(stream, watching.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "an HTTP connection could not be accepted");
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    }
    refreshing.abort();
    drop(listener);
    stopping.send_replace(true);
    let finished = async { while connections.join_next().await.is_some() {} };
    if timeout(server.options.stop_time_max, finished)
        .await
        .is_err()
    {
        tracing::warn!("HTTP calls still under way were cut off");
    }
    server.queue.close(server.options.stop_time_max).await;
    Ok(())
}

/// Reads users and certificates again when their files change.
async fn refresh(server: Arc<Server>) {
    if server.options.users.is_none() && server.options.tls.is_none() {
        return;
    }
    loop {
        sleep(REFRESH_INTERVAL).await;
        let server = Arc::clone(&server);
        let looking = tokio::task::spawn_blocking(move || {
            if let Some(users) = &server.options.users {
                users.refresh();
            }
            if let Some(tls) = &server.options.tls {
                tls.refresh();
            }
        });
        // Only a stop of the runtime can be in the way.
        drop(looking.await);
    }
}
