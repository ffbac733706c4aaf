//! The one reader of replies that are kept in memory: manifests, tokens, error texts. It stops at a
//! bound, whatever length the other side announces, and does not wait for ever, not even for one that sends a byte
//! now and then.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::Response;
use tokio::time::timeout;

use super::failure::Failure;
use crate::error::{Error, ErrorKind};

/// How many times as long as the other side may be silent it may take for a whole body.
const WHOLE: u32 = 10;

/// The whole body of `response`, at most `limit` bytes, with at most `idle` between two of its parts and ten times
/// that for all.
pub(super) async fn read(response: Response, limit: u64, idle: Duration) -> Result<Bytes, Failure> {
    match timeout(idle.saturating_mul(WHOLE), read_parts(response, limit, idle)).await {
        Ok(read) => read,
        Err(_) => Err(Failure::passing(Error::new(ErrorKind::Registry, "The registry's reply does not end"))),
    }
}

async fn read_parts(mut response: Response, limit: u64, idle: Duration) -> Result<Bytes, Failure> {
    let broken = || Error::new(ErrorKind::Registry, "The registry's reply broke off");
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(Failure::too_large(limit));
    }
    let mut body = BytesMut::new();
    loop {
        let chunk = match timeout(idle, response.chunk()).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => return Ok(body.freeze()),
            Ok(Err(cause)) => return Err(Failure::passing(broken().caused_by(cause.without_url()))),
            Err(elapsed) => return Err(Failure::passing(broken().caused_by(elapsed))),
        };
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(Failure::too_large(limit));
        }
        body.extend_from_slice(&chunk);
    }
}
