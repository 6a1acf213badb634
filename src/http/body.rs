//! Reads the body of a call, within limits of size and patience.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use axum::http::{Request, StatusCode};
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Reserved at most before a byte has arrived, whatever length a client announces.
const RESERVED_BYTES_MAX: usize = 64 * 1024;

/// The unit in which the budget of all bodies is given out.
const SHARE_BYTES: usize = 64 * 1024;

/// For so long the rest of a refused body is read and thrown away. A connection closed while the
/// client is still sending is reset, and the client may never see why.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(5);

/// Why a body could not be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum BodyError {
    /// The connection broke, or the client broke the protocol.
    #[error("request body could not be read: {0}")]
    Broken(String),
    /// Nothing arrived for the time given.
    #[error("request body stopped arriving for {0:?}")]
    Stalled(Duration),
    /// Too much is held for other calls.
    #[error("too many request bodies at a time; send the request again later")]
    Crowded,
    /// Longer than the limit, in bytes.
    #[error("request body larger than {0} bytes; raise -http-max-body or send smaller batches")]
    TooLarge(usize),
}

impl BodyError {
    /// The status that tells the client.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Broken(_) => StatusCode::BAD_REQUEST,
            Self::Crowded => StatusCode::SERVICE_UNAVAILABLE,
            Self::Stalled(_) => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }
}

/// What all request bodies may take together.
#[derive(Debug)]
pub(super) struct Budget(Arc<Semaphore>);

/// A share of the budget; given back when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Share {
    held: Option<OwnedSemaphorePermit>,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        let units = bytes.div_ceil(SHARE_BYTES).min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Semaphore::new(units)))
    }
}

impl Share {
    /// Makes the share large enough for so many bytes, if there is still so much. By what has
    /// arrived, not by what was announced: announcing costs a client nothing.
    fn grow(&mut self, budget: &Budget, bytes: usize) -> Result<(), BodyError> {
        let held = self
            .held
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = bytes.div_ceil(SHARE_BYTES).saturating_sub(held);
        if missing == 0 {
            return Ok(());
        }
        let missing = u32::try_from(missing).map_err(|_| BodyError::Crowded)?;
        let more = Arc::clone(&budget.0).try_acquire_many_owned(missing);
        let more = more.map_err(|_| BodyError::Crowded)?;
        match &mut self.held {
            Some(held) => held.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

/// Reads a whole body. An announced length beyond the limit is refused before anything is kept;
/// the bytes are counted as well, because a chunked body announces nothing. The share of the budget
/// is to be kept as long as what is made of the body.
pub(super) async fn read(
    request: Request<Body>,
    bytes_max: usize,
    pause_max: Duration,
    budget: &Budget,
) -> Result<(Vec<u8>, Share), BodyError> {
    let announced = request.headers().get(CONTENT_LENGTH);
    let announced: u64 = announced
        .and_then(|length| length.to_str().ok()?.parse().ok())
        .unwrap_or(0);
    let announced = usize::try_from(announced).unwrap_or(usize::MAX);
    let waits_for_consent = request.headers().contains_key(EXPECT);
    let mut stream = request.into_body().into_data_stream();
    if announced > bytes_max {
        if !waits_for_consent {
            discard(&mut stream).await;
        }
        return Err(BodyError::TooLarge(bytes_max));
    }
    let mut bytes = Vec::with_capacity(announced.min(RESERVED_BYTES_MAX));
    let mut share = Share::default();
    loop {
        let next = timeout(pause_max, stream.next()).await;
        let chunk = match next.map_err(|_| BodyError::Stalled(pause_max))? {
            None => return Ok((bytes, share)),
            Some(Err(error)) => return Err(BodyError::Broken(error.to_string())),
            Some(Ok(chunk)) => chunk,
        };
        if chunk.len() > bytes_max - bytes.len() {
            // Not kept while the rest is thrown away.
            drop(bytes);
            discard(&mut stream).await;
            return Err(BodyError::TooLarge(bytes_max));
        }
        if let Err(crowded) = share.grow(budget, bytes.len() + chunk.len()) {
            drop((bytes, share));
            discard(&mut stream).await;
            return Err(crowded);
        }
        bytes.extend_from_slice(&chunk);
    }
}

/// Reads what is left of a refused body, for a while.
pub(super) async fn discard(stream: &mut BodyDataStream) {
    let rest = async { while let Some(Ok(_)) = stream.next().await {} };
    // Running out of time is an end like any other: the answer is the same.
    let _ = timeout(DISCARD_TIME_MAX, rest).await;
}
