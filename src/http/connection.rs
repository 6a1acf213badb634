//! One connection, from the handshake to its end.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::activity::{Activity, Noted};
use super::router;
use super::server::Server;
use super::tls::H2;

/// What all connections of a server have in common.
pub(super) struct Connections {
    pub(super) server: Arc<Server>,
    /// As many connections as there may be: idle ones go sooner.
    pub(super) is_crowded: AtomicBool,
    http1: Builder<TokioExecutor>,
    http2: Builder<TokioExecutor>,
}

impl Connections {
    pub(super) fn new(server: Arc<Server>) -> Arc<Self> {
        let http1 = Builder::new(TokioExecutor::new()).http1_only();
        let mut http2 = Builder::new(TokioExecutor::new()).http2_only();
        // What a client may have under way or cause at a time. The library's own bounds on resets
        // and on continuations hold too.
        http2
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_BYTES_MAX)
            .max_pending_accept_reset_streams(RESETS_MAX)
            .max_local_error_reset_streams(ERRORS_MAX)
            .max_send_buf_size(SEND_BYTES_MAX);
        Arc::new(Self {
            server,
            is_crowded: AtomicBool::new(false),
            http1,
            http2,
        })
    }

    /// Serves one connection; once the server stops, to the end of the call under way.
    pub(super) async fn serve(self: Arc<Self>, stream: TcpStream, stopping: watch::Receiver<bool>) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "an HTTP connection was gone before it was served");
            return;
        }
        let Some(tls) = &self.server.options.tls else {
            return self.exchange(stream, false, stopping).await;
        };
        let handshake = TlsAcceptor::from(tls.config()).accept(stream);
        match timeout(self.server.options.header_time_max, handshake).await {
            Ok(Ok(stream)) => {
                let is_h2 = stream.get_ref().1.alpn_protocol() == Some(H2);
                self.exchange(stream, is_h2, stopping).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    /// Requests and responses over a stream that is ready for them.
    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        is_h2: bool,
        mut stopping: watch::Receiver<bool>,
    ) {
        let activity = Activity::new();
        if is_h2 {
            activity.speaks_h2();
        }
        let builder = if is_h2 { &self.http2 } else { &self.http1 };
        let stream = TokioIo::new(Noted::new(stream, Arc::clone(&activity)));
        let service = service_fn(|request: Request<Incoming>| {
            let (server, call) = (Arc::clone(&self.server), activity.call());
            async move {
                let response = router::answer(&server, request.map(Body::new)).await;
                Ok::<_, Infallible>(call.until_sent(response))
            }
        });
        let connection = builder.serve_connection(stream, service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            why = self.overdue(&activity) => {
                tracing::debug!(why, "an HTTP connection is ended");
                return;
            }
            () = told(&mut stopping) => {
                connection.as_mut().graceful_shutdown();
                connection.as_mut().await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an HTTP connection ended early");
        }
    }

    /// Ready when the connection should end, with the reason.
    async fn overdue(&self, activity: &Activity) -> &'static str {
        loop {
            sleep(LOOK_INTERVAL).await;
            let is_crowded = self.is_crowded.load(Ordering::Relaxed);
            if let Some(why) = activity.overdue(&self.server.options, is_crowded) {
                return why;
            }
        }
    }
}

/// Waits until the server stops. A sender that is gone means the same.
async fn told(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|&stopping| stopping).await;
}

/// How often a connection is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Calls at a time over one HTTP/2 connection, as Go's server has it.
const STREAMS_MAX: u32 = 250;
/// Bytes of the headers of one HTTP/2 request; a statement may be in its path.
const HEAD_BYTES_MAX: u32 = 256 << 10;
/// Calls that a client takes back before they were begun, and errors of its own making.
const RESETS_MAX: usize = 50;
const ERRORS_MAX: usize = 100;
/// Bytes of one HTTP/2 response that wait to be sent.
const SEND_BYTES_MAX: usize = 256 << 10;
