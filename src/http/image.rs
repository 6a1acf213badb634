//! `GET /wallaby/image`: the database as this node holds it at one applied index, page by page:
//! the main file overlaid with its WAL. Two nodes at the same index send the same bytes.
//!
//! | Header | Meaning |
//! |---|---|
//! | `X-Wallaby-Applied-Index` | index of the last entry applied |
//! | `X-Wallaby-Data-Index` | index of the last data entry that was not rejected |
//! | `X-Wallaby-Database-Hash` | the hash of all pages, 32 hexadecimal digits |
//! | `X-Wallaby-Page-Count` | pages; the body is their bytes in order |
//! | `X-Wallaby-Page-Size` | bytes per page |
//!
//! The lock-byte page is sent as zeros. A body that ends before `Content-Length` is incomplete.

use std::io;

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use futures_util::stream;

use crate::node::{ImageReader, Shape};

use super::refusal;
use super::response::{Envelope, Form};
use super::server::Server;

pub(super) async fn answer(server: &Server) -> Response<Body> {
    let reader = match server.node.image().await {
        Ok(reader) => reader,
        Err(refusal) => {
            let envelope = Envelope {
                shape: Shape::Query,
                elapsed: std::time::Duration::ZERO,
                raft_index: None,
                form: Form::default(),
            };
            return refusal::refused(&refusal, &envelope);
        }
    };
    let numbers: [(HeaderName, u64); 5] = [
        (
            HeaderName::from_static("x-wallaby-applied-index"),
            reader.applied_index(),
        ),
        (
            HeaderName::from_static("x-wallaby-data-index"),
            reader.data_index(),
        ),
        (
            HeaderName::from_static("x-wallaby-page-count"),
            u64::from(reader.page_count()),
        ),
        (
            HeaderName::from_static("x-wallaby-page-size"),
            u64::from(reader.page_size()),
        ),
        (
            CONTENT_LENGTH,
            u64::from(reader.page_count()) * u64::from(reader.page_size()),
        ),
    ];
    let hash = HeaderValue::from_str(&reader.database_hash());
    let mut response = Response::new(Body::from_stream(stream::unfold(reader, next)));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    for (name, number) in numbers {
        headers.insert(name, HeaderValue::from(number));
    }
    if let Ok(hash) = hash {
        headers.insert(HeaderName::from_static("x-wallaby-database-hash"), hash);
    }
    response
}

/// The next chunk. An error ends the connection before `Content-Length` is reached, so that a
/// client cannot take what it has for the whole.
async fn next(mut reader: ImageReader) -> Option<(io::Result<bytes::Bytes>, ImageReader)> {
    let chunk = reader.next().await?.map_err(io::Error::other);
    if let Err(error) = &chunk {
        tracing::warn!(%error, "a page image could not be read to its end");
    }
    Some((chunk, reader))
}
