//! A request's body as it arrives: counted, and broken off where a fault says.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::{Instant, timeout_at};

use crate::fixture::Record;
use crate::reply::Refusal;

/// A request's body, which may break off.
pub(crate) struct Incoming {
    stream: BodyDataStream,
    record: Record,
    seen: u64,
    /// After how many bytes a fault closes the connection.
    end: Option<u64>,
    /// After how many bytes the rest is dropped.
    taken: u64,
    /// When the connection closes.
    deadline: Option<Instant>,
    broken: bool,
}

impl Incoming {
    pub(crate) fn new(body: Body, record: Record) -> Self {
        let stream = body.into_data_stream();
        Self { stream, record, seen: 0, end: None, taken: u64::MAX, deadline: None, broken: false }
    }

    /// Lets the connection break when the body takes longer than `time`.
    pub(crate) fn break_off_after(&mut self, time: Duration) {
        self.deadline = Some(Instant::now() + time);
    }

    /// Drops what comes behind the first `bytes`.
    pub(crate) fn take_only(&mut self, bytes: u64) {
        self.taken = bytes;
    }

    /// Lets the connection break after `bytes`, or at the end of the body if that comes first.
    pub(crate) fn break_after(&mut self, bytes: u64) {
        self.end = Some(bytes);
    }

    /// Whether the connection broke.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// How many bytes arrived.
    pub(crate) fn seen(&self) -> u64 {
        self.seen
    }

    /// The next bytes; `None` at the end, and also where the connection broke.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        let left = self.end.map_or(u64::MAX, |end| end - self.seen);
        if self.broken || left == 0 {
            self.broken = true;
            return None;
        }
        let next = match self.deadline {
            None => self.stream.next().await,
            // As if the connection had closed.
            Some(deadline) => match timeout_at(deadline, self.stream.next()).await {
                Ok(next) => next,
                Err(_) => {
                    self.broken = true;
                    return None;
                }
            },
        };
        match next {
            Some(Ok(mut bytes)) => {
                bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                let wanted = self.taken.saturating_sub(self.seen);
                self.seen += bytes.len() as u64;
                self.record.change(|record| record.body_len = self.seen);
                bytes.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
                Some(bytes)
            }
            Some(Err(_)) => {
                self.broken = true;
                None
            }
            None => {
                self.broken = self.end.is_some();
                None
            }
        }
    }

    /// All bytes, or a refusal when there are more than `limit`.
    pub(crate) async fn all(&mut self, limit: usize) -> Result<Bytes, Refusal> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await {
            all.extend_from_slice(&bytes);
            if all.len() > limit {
                return Err(Refusal::new(413, "SIZE_INVALID", format!("more than {limit} bytes")));
            }
        }
        Ok(all.into())
    }

    /// Takes in and drops the rest, so that a refusal reaches a client that is still sending.
    pub(crate) async fn drain(&mut self) {
        while self.next().await.is_some() {}
    }
}
