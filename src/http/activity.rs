//! What a connection is doing, so that one that does nothing, or too slowly, can be ended.
//!
//! | State | Ends after |
//! |---|---|
//! | some bytes of a request's head have arrived, and not all | `header_time_max` |
//! | no call under way, and nothing on its way out | `idle_time_max` |
//! | the client does not take what is sent to it | `write_pause_max` |
//!
//! The body of a request has its own limit, where it is read. Over HTTP/2 bytes between calls may
//! be anything, so there only the others count; and a client can keep a response back there without
//! keeping the stream, so it is also asked when a response last went on.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::http::Response;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::server::HttpOptions;

/// Shared by a connection's stream, its calls, and whoever watches it.
#[derive(Debug)]
pub(super) struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Calls under way, and those of them whose response has begun.
    calls: usize,
    answering: usize,
    /// When a response last went on.
    answered_at: Instant,
    /// When the last call ended, or when the stream last took something after that.
    idle_since: Instant,
    head_since: Option<Instant>,
    blocked_since: Option<Instant>,
    is_h2: bool,
}

impl Activity {
    /// A connection that was just accepted.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            calls: 0,
            answering: 0,
            answered_at: Instant::now(),
            idle_since: Instant::now(),
            head_since: None,
            blocked_since: None,
            is_h2: false,
        })))
    }

    /// The protocol was agreed on.
    pub(super) fn speaks_h2(&self) {
        self.state().is_h2 = true;
    }

    /// Why the connection should end now, if it should. `is_crowded`: others wait to be accepted,
    /// so an idle one has no more time than it would have for a head.
    pub(super) fn overdue(&self, options: &HttpOptions, is_crowded: bool) -> Option<&'static str> {
        let state = self.state();
        let idle_time_max = if is_crowded {
            options.idle_time_max.min(options.header_time_max)
        } else {
            options.idle_time_max
        };
        let longer = |since: Option<Instant>, max| since.is_some_and(|at| at.elapsed() > max);
        let is_idle = state.calls == 0 && state.blocked_since.is_none();
        let idle_since = is_idle.then_some(state.idle_since);
        let is_held = state.is_h2 && state.answering > 0 && state.answering == state.calls;
        let held_since = is_held.then_some(state.answered_at);
        if longer(state.head_since, options.header_time_max) {
            Some("the head of a request did not arrive in time")
        } else if longer(state.blocked_since, options.write_pause_max)
            || longer(held_since, options.write_pause_max)
        {
            Some("the client does not read what it is sent")
        } else if longer(idle_since, idle_time_max) {
            Some("idle for too long")
        } else {
            None
        }
    }

    /// A call begins; it lasts until what is returned is dropped.
    pub(super) fn call(self: &Arc<Self>) -> Call {
        let mut state = self.state();
        state.calls += 1;
        state.head_since = None;
        Call {
            activity: Arc::clone(self),
            is_answering: false,
        }
    }

    fn received(&self) {
        let mut state = self.state();
        if state.calls == 0 && !state.is_h2 && state.head_since.is_none() {
            state.head_since = Some(Instant::now());
        }
    }

    /// Something was sent, or everything is out.
    fn sent(&self, bytes: usize) {
        let mut state = self.state();
        let was_blocked = state.blocked_since.take().is_some();
        if was_blocked || bytes > 0 {
            state.idle_since = Instant::now();
        }
    }

    fn blocked(&self) {
        let mut state = self.state();
        state.blocked_since.get_or_insert_with(Instant::now);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call under way.
#[derive(Debug)]
pub(super) struct Call {
    activity: Arc<Activity>,
    is_answering: bool,
}

impl Call {
    /// Lasts until the response is handed over to be sent.
    pub(super) fn until_sent(mut self, response: Response<Body>) -> Response<Body> {
        self.is_answering = true;
        let mut state = self.activity.state();
        state.answering += 1;
        state.answered_at = Instant::now();
        drop(state);
        response.map(|body| Body::new(Answering { body, call: self }))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        state.calls -= 1;
        state.answering -= usize::from(self.is_answering);
        state.idle_since = Instant::now();
    }
}

/// The body of a response, and the call that it ends.
struct Answering {
    body: Body,
    call: Call,
}

impl http_body::Body for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_ready() {
            self.call.activity.state().answered_at = Instant::now();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection's stream that notes what passes.
pub(super) struct Noted<S> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S> Noted<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>) -> Self {
        Self { stream, activity }
    }

    /// Notes an attempt to write so many bytes, or to flush.
    fn noted<T>(
        &self,
        written: Poll<io::Result<T>>,
        bytes: impl Fn(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        match &written {
            Poll::Pending => self.activity.blocked(),
            Poll::Ready(Ok(written)) => self.activity.sent(bytes(written)),
            Poll::Ready(Err(_)) => {}
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.received();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.noted(written, |bytes| *bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.noted(flushed, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.stream).poll_shutdown(context);
        self.noted(ended, |()| 0)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.noted(written, |bytes| *bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
