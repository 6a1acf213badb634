//! Frames over one QUIC stream.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use tokio::sync::OwnedSemaphorePermit;

use super::TransportError;
use super::client::Priority;
use super::error::EndCode;
use super::frame::{Decoder, Frame, Header, Progress, Role, encode_header};
use super::limits::{FRAME_HEADER_BYTES, READ_BYTES_MAX};

/// The sending half of a long-lived stream.
///
/// Dropping it without [`FrameWriter::finish`] resets the stream: the reader then sees
/// [`TransportError::Closed`], not a clean end, and frames under way may be lost.
pub struct FrameWriter {
    stream: SendStream,
    addr: Arc<str>,
    number: u64,
    /// A frame was begun and not ended, so nothing that follows could be understood.
    inside_frame: bool,
    finished: bool,
    _place: Option<Arc<OwnedSemaphorePermit>>,
}

impl FrameWriter {
    pub(super) const fn new(stream: SendStream, addr: Arc<str>) -> Self {
        Self {
            stream,
            addr,
            number: 0,
            inside_frame: false,
            finished: false,
            _place: None,
        }
    }

    /// Keeps a place among the long-lived streams taken until this half is dropped.
    pub(super) fn occupying(mut self, place: Arc<OwnedSemaphorePermit>) -> Self {
        self._place = Some(place);
        self
    }

    /// Sends `head` and then `body` as one frame. `head` is copied, the pieces of `body` are
    /// shared until the peer has acknowledged them. Waits while the peer does not read.
    ///
    /// A call that is given up before it returns (a dropped future) makes the stream useless; the
    /// next call says so.
    ///
    /// # Errors
    /// [`TransportError::TooLong`] before anything is sent; [`TransportError::Closed`] or
    /// [`TransportError::Overloaded`] if the peer or the connection ended the stream.
    pub async fn send(&mut self, head: &[u8], body: &[Bytes]) -> Result<(), TransportError> {
        self.send_as(Role::Body, 0, Priority::Control, head, body)
            .await
    }

    /// Ends the stream after the frames sent so far. They are delivered even if the writer is
    /// dropped now.
    pub fn finish(mut self) {
        if !self.inside_frame {
            self.finished = true;
            // It fails only if the peer no longer wants the stream; then there is nothing to end.
            let _ = self.stream.finish();
        }
    }

    pub(super) async fn send_as(
        &mut self,
        role: Role,
        kind: u8,
        priority: Priority,
        head: &[u8],
        body: &[Bytes],
    ) -> Result<(), TransportError> {
        if self.inside_frame {
            return Err(TransportError::Closed {
                addr: self.addr.to_string(),
                reason: "an earlier frame was not sent to its end".to_owned(),
            });
        }
        let mut bytes = head.len() as u64;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(head);
        for piece in body {
            bytes += piece.len() as u64;
            hasher.update(piece);
        }
        let bytes_max = role.bytes_max();
        let payload_bytes = match u32::try_from(bytes) {
            Ok(payload_bytes) if payload_bytes <= bytes_max => payload_bytes,
            _ => return Err(TransportError::TooLong { bytes, bytes_max }),
        };
        let header = Header {
            role,
            kind,
            priority,
            payload_bytes,
            payload_checksum: hasher.finalize(),
        };
        let mut first = BytesMut::with_capacity(FRAME_HEADER_BYTES + head.len());
        first.extend_from_slice(&encode_header(&header, self.number));
        first.extend_from_slice(head);
        let mut pieces = Vec::with_capacity(1 + body.len());
        pieces.push(first.freeze());
        pieces.extend(body.iter().filter(|piece| !piece.is_empty()).cloned());
        self.inside_frame = true;
        self.stream
            .write_all_chunks(&mut pieces)
            .await
            .map_err(|error| TransportError::writing(&self.addr, &error))?;
        self.inside_frame = false;
        self.number += 1;
        Ok(())
    }

    pub(super) fn set_priority(&self, priority: Priority) {
        // It fails only on a stream that has ended, whose priority no longer matters.
        let _ = self.stream.set_priority(priority.level());
    }

    /// Resolves when the peer has given up this direction of the stream or the connection is lost;
    /// never after a clean end.
    pub(super) fn abandoned(&self) -> impl Future<Output = ()> + Send + use<> {
        let stopped = self.stream.stopped();
        async move {
            if matches!(stopped.await, Ok(None)) {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Resolves when the peer has received everything, or never will.
    pub(super) fn delivered(&self) -> impl Future<Output = ()> + Send + use<> {
        let stopped = self.stream.stopped();
        async move {
            let _ = stopped.await;
        }
    }

    pub(super) fn reset(mut self, code: EndCode) {
        self.finished = true;
        // It fails only on a stream that has ended already.
        let _ = self.stream.reset(code.into());
    }
}

impl Drop for FrameWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Without this quinn would end the stream cleanly, and the reader could not tell a
            // crash from an end. It fails only on a stream that has ended already.
            let _ = self.stream.reset(EndCode::Cancelled.into());
        }
    }
}

/// The receiving half of a long-lived stream. Dropping it tells the sender to stop.
pub struct FrameReader {
    stream: RecvStream,
    addr: Arc<str>,
    decoder: Decoder,
    pending: Bytes,
    failed: Option<TransportError>,
    _place: Option<Arc<OwnedSemaphorePermit>>,
}

impl FrameReader {
    pub(super) fn new(stream: RecvStream, addr: Arc<str>, expected: &'static [Role]) -> Self {
        Self {
            stream,
            addr,
            decoder: Decoder::new(expected),
            pending: Bytes::new(),
            failed: None,
            _place: None,
        }
    }

    /// Keeps a place among the long-lived streams taken until this half is dropped.
    pub(super) fn occupying(mut self, place: Arc<OwnedSemaphorePermit>) -> Self {
        self._place = Some(place);
        self
    }

    /// The next frame's payload; `None` after the sender's [`FrameWriter::finish`]. May be given up
    /// and called again without losing anything.
    ///
    /// # Errors
    /// [`TransportError::Damaged`] or [`TransportError::Closed`]; the same again on every later
    /// call.
    pub async fn next(&mut self) -> Result<Option<Bytes>, TransportError> {
        let frame = self.next_frame().await?;
        Ok(frame.map(|frame| frame.payload))
    }

    /// After the first frame, only frames of the body may come.
    pub(super) const fn expect_body(&mut self) {
        self.decoder.expect(&[Role::Body]);
    }

    pub(super) async fn next_frame(&mut self) -> Result<Option<Frame>, TransportError> {
        loop {
            match self.advance().await? {
                Some(Progress::Frame(frame)) => return Ok(Some(frame)),
                Some(Progress::Header(_) | Progress::Starved) => {}
                None => return Ok(None),
            }
        }
    }

    /// The next header, before its payload is waited for; `next_frame` then gives the frame.
    pub(super) async fn next_header(&mut self) -> Result<Option<Header>, TransportError> {
        loop {
            match self.advance().await? {
                Some(Progress::Header(header)) => return Ok(Some(header)),
                Some(Progress::Frame(_) | Progress::Starved) => {}
                None => return Ok(None),
            }
        }
    }

    pub(super) fn stop(mut self, code: EndCode) {
        // It fails only on a stream that has ended already.
        let _ = self.stream.stop(code.into());
    }

    /// One step: through the pending bytes first, then more from the stream. `None` at the end.
    async fn advance(&mut self) -> Result<Option<Progress>, TransportError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.try_advance().await;
        if let Err(error) = &result {
            self.failed = Some(error.clone());
            if matches!(error, TransportError::Damaged { .. }) {
                // It fails only on a stream that has ended already.
                let _ = self.stream.stop(EndCode::Damaged.into());
            }
        }
        result
    }

    async fn try_advance(&mut self) -> Result<Option<Progress>, TransportError> {
        let progress = self.decoder.feed(&mut self.pending)?;
        if progress != Progress::Starved {
            return Ok(Some(progress));
        }
        let chunk = self.stream.read_chunk(READ_BYTES_MAX, true).await;
        match chunk.map_err(|error| TransportError::reading(&self.addr, &error))? {
            Some(chunk) => {
                self.pending = chunk.bytes;
                Ok(Some(Progress::Starved))
            }
            None => {
                self.decoder.end()?;
                Ok(None)
            }
        }
    }
}
