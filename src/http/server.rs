//! The listener: accepts connections up to a limit, gives each a time-out for its headers, and
//! lets those under way finish when it is told to stop.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::node::Node;

use super::router;

/// After a failed accept (usually: out of descriptors) the next attempt waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The limits of the HTTP server.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// The value of `Access-Control-Allow-Origin`; `None`: no such header.
    pub allow_origin: Option<String>,
    /// The longest request body in bytes; longer ones are answered 413.
    pub body_bytes_max: usize,
    /// How long a request body may stop arriving before the call is given up.
    pub body_pause_max: Duration,
    /// Connections served at a time; further ones wait to be accepted.
    pub connections_max: usize,
    /// How long a client may take to send the headers of a request, the wait on an idle
    /// connection included.
    pub header_time_max: Duration,
    /// The longest answer to statements in bytes.
    pub response_bytes_max: usize,
    /// How long calls under way may take to finish once the server is told to stop.
    pub stop_time_max: Duration,
    /// The longest `timeout` that a client is granted; a longer one is cut to it.
    pub timeout_max: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            allow_origin: None,
            body_bytes_max: 256 * 1024 * 1024,
            body_pause_max: Duration::from_secs(30),
            connections_max: 4096,
            header_time_max: Duration::from_secs(60),
            response_bytes_max: 256 * 1024 * 1024,
            stop_time_max: Duration::from_secs(10),
            timeout_max: Duration::from_secs(60 * 60),
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
    let bind_addr = listener.local_addr()?.to_string();
    let server = Arc::new(Server {
        node,
        options,
        bind_addr,
        started: SystemTime::now(),
    });
    let service = Router::new()
        .fallback(router::answer)
        .with_state(Arc::clone(&server));
    let options = &server.options;
    // HTTP/2 is agreed on in a TLS handshake only, as in rqlite.
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_time_max);
    let (stopping, watching) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < options.connections_max => {
                match accepted {
                    Ok((stream, _)) => {
                        let (builder, watching) = (builder.clone(), watching.clone());
                        let service = TowerToHyperService::new(service.clone());
                        connections.spawn(connection(stream, service, builder, watching));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "an HTTP connection could not be accepted");
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    }
    drop(listener);
    stopping.send_replace(true);
    let finished = async { while connections.join_next().await.is_some() {} };
    if timeout(options.stop_time_max, finished).await.is_err() {
        tracing::warn!("HTTP calls still under way were cut off");
    }
    Ok(())
}

/// Serves one connection; once the server stops, to the end of the call under way.
async fn connection(
    stream: TcpStream,
    service: TowerToHyperService<Router>,
    builder: Builder<TokioExecutor>,
    mut stopping: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "an HTTP connection was gone before it was served");
        return;
    }
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = told(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

/// Waits until the server stops. A sender that is gone means the same.
async fn told(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|&stopping| stopping).await;
}
