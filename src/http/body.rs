//! Reads the body of a call, within limits of size and patience.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use axum::http::{Request, StatusCode};
use futures_util::StreamExt;
use tokio::time::timeout;

/// Reserved at most before a byte has arrived, whatever length a client announces.
const RESERVED_BYTES_MAX: usize = 64 * 1024;

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
    /// Longer than the limit, in bytes.
    #[error("request body larger than {0} bytes; raise -http-max-body or send smaller batches")]
    TooLarge(usize),
}

impl BodyError {
    /// The status that tells the client.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Broken(_) => StatusCode::BAD_REQUEST,
            Self::Stalled(_) => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }
}

/// Reads a whole body. An announced length beyond the limit is refused before anything is kept;
/// the bytes are counted as well, because a chunked body announces nothing.
pub(super) async fn read(
    request: Request<Body>,
    bytes_max: usize,
    pause_max: Duration,
) -> Result<Vec<u8>, BodyError> {
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
    loop {
        let next = timeout(pause_max, stream.next()).await;
        let chunk = match next.map_err(|_| BodyError::Stalled(pause_max))? {
            None => return Ok(bytes),
            Some(Err(error)) => return Err(BodyError::Broken(error.to_string())),
            Some(Ok(chunk)) => chunk,
        };
        if chunk.len() > bytes_max - bytes.len() {
            // Not kept while the rest is thrown away.
            drop(bytes);
            discard(&mut stream).await;
            return Err(BodyError::TooLarge(bytes_max));
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
