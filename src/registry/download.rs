//! One blob out of one repository, or a range of it. A stream that breaks is taken up again where it
//! broke, with a Range request; the length the registry announces must be the descriptor's, and no
//! byte more than was asked for is given out. Whoever keeps the bytes hashes them.
//!
//! OCI distribution-spec v1.1.1, "Pulling blobs":
//! <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pulling-blobs>.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backon::BackoffBuilder as _;
use bytes::{Buf as _, Bytes};
use futures_util::stream;
use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::Repository;
use super::auth::Access;
use super::client::Call;
use super::failure::Failure;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Descriptor;
use crate::storage::{ByteStream, Reading};

/// This much progress makes up for all earlier interruptions of a stream.
const PROGRESS: u64 = 1 << 20;

/// What comes out of one repository at once.
pub(super) struct Lanes {
    count: usize,
    free: Arc<Semaphore>,
    /// Whether the registry answered the latest request for a range with that range.
    has_ranges: AtomicBool,
}

impl Lanes {
    /// As many streams as `count`, from a registry that is taken for one with ranges until it shows otherwise.
    pub(super) fn new(count: usize) -> Self {
        let count = count.clamp(1, Semaphore::MAX_PERMITS);
        Self { count, free: Arc::new(Semaphore::new(count)), has_ranges: AtomicBool::new(true) }
    }

    pub(super) fn reading(&self) -> Reading {
        if self.has_ranges.load(Ordering::Relaxed) { Reading::Anywhere(self.count) } else { Reading::InOrder }
    }

    async fn enter(&self) -> Result<OwnedSemaphorePermit> {
        let closed = |cause| Error::new(ErrorKind::Unexpected, "No more streams are opened").caused_by(cause);
        Arc::clone(&self.free).acquire_owned().await.map_err(closed)
    }
}

impl Repository {
    /// The `bytes` of the blob `target`, which has them; `None` when it is not there.
    pub(super) async fn download(
        self: &Arc<Self>,
        target: &Descriptor,
        bytes: Range<u64>,
    ) -> Result<Option<ByteStream>> {
        if bytes.is_empty() && target.size > 0 {
            // A Range request for nothing cannot be answered.
            let present = self.client.persist(|| self.is_present(target)).await?;
            return Ok(present.then(|| Box::pin(stream::empty()) as ByteStream));
        }
        let lane = self.lanes.enter().await?;
        let Some(part) = self.client.persist(|| self.part(target, &bytes)).await? else { return Ok(None) };
        let incoming = Incoming {
            _lane: lane,
            repository: Arc::clone(self),
            target: target.clone(),
            part,
            left: bytes.clone(),
            resumed_at: bytes.start,
            interruptions: 0,
        };
        Ok(Some(Box::pin(stream::try_unfold(incoming, |mut incoming| async move {
            Ok(incoming.next().await?.map(|chunk| (chunk, incoming)))
        }))))
    }

    /// Asks for `bytes` of the blob; `None` when the registry does not have it.
    async fn part(&self, target: &Descriptor, bytes: &Range<u64>) -> Result<Option<Part>, Failure> {
        let mut call = Call::new(Method::GET, self.url(&format!("blobs/{}", target.digest)).await?, Access::Pull);
        let is_part = *bytes != (0..target.size);
        if is_part {
            // With an end, because there are registries that do not understand a range without.
            let range = HeaderValue::from_str(&format!("bytes={}-{}", bytes.start, bytes.end - 1));
            call = call.header(
                RANGE,
                range.map_err(|cause| Error::new(ErrorKind::Unexpected, "Not a range").caused_by(cause))?,
            );
        }
        let response = self.client.exchange(&call).await?;
        if is_part && response.status().is_success() {
            self.lanes.has_ranges.store(response.status() == StatusCode::PARTIAL_CONTENT, Ordering::Relaxed);
        }
        let (skip, length, beyond) = match response.status() {
            // The registry does not do ranges: what is before this one is read and dropped.
            StatusCode::OK => (bytes.start, target.size, target.size - bytes.end),
            StatusCode::PARTIAL_CONTENT if is_part => {
                if let Some(size) = total(response.headers()).filter(|size| *size != target.size) {
                    return Err(self
                        .wrong_size(target, &format!("has {size} bytes where {} belong", target.size))
                        .into());
                }
                if !is_exactly(response.headers(), bytes, target.size) {
                    let message =
                        format!("The registry `{}` sent another part of `{}`", self.client.host(), target.digest);
                    return Err(Failure::passing(Error::new(ErrorKind::Registry, message)));
                }
                (0, bytes.end - bytes.start, 0)
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(self.wrong_size(target, &format!("ends before byte {}", bytes.start)).into());
            }
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(self.client.refused(&call, response).await),
        };
        if let Some(announced) = response.content_length().filter(|announced| *announced != length) {
            return Err(self.wrong_size(target, &format!("has {announced} bytes where {length} belong")).into());
        }
        Ok(Some(Part { response, skip, beyond }))
    }

    fn wrong_size(&self, target: &Descriptor, what: &str) -> Error {
        let message = format!("The blob `{}` on `{}` {what}", target.digest, self.client.host());
        Error::new(ErrorKind::Corrupt, message)
    }
}

/// Whether a 206 holds exactly `bytes` of a blob of `size` bytes.
pub(super) fn is_exactly(headers: &HeaderMap, bytes: &Range<u64>, size: u64) -> bool {
    let mut ranges = headers.get_all(CONTENT_RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else { return false };
    let expected = format!("bytes {}-{}/", bytes.start, bytes.end - 1);
    let total = range.to_str().ok().and_then(|range| range.strip_prefix(&expected));
    let is_size = |total: &str| total.bytes().all(|byte| byte.is_ascii_digit()) && total.parse() == Ok(size);
    total.is_some_and(|total| total == "*" || is_size(total))
}

/// How large the blob is that a 206 is a part of, if it says so.
fn total(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    range.rsplit_once('/')?.1.parse().ok()
}

/// One reply with bytes of the blob.
struct Part {
    response: Response,
    /// How many of its next bytes nobody asked for.
    skip: u64,
    /// How many bytes come behind those that were asked for.
    beyond: u64,
}

/// A blob on its way in.
struct Incoming {
    _lane: OwnedSemaphorePermit,
    repository: Arc<Repository>,
    target: Descriptor,
    part: Part,
    /// What is still to come.
    left: Range<u64>,
    /// Where the stream was taken up when interruptions were last forgotten.
    resumed_at: u64,
    interruptions: usize,
}

impl Incoming {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self.left.is_empty() && self.part.beyond > 0 {
                return Ok(None);
            }
            let idle = self.repository.client.idle();
            let interruption = match timeout(idle, self.part.response.chunk()).await {
                Ok(Ok(Some(mut chunk))) => {
                    self.repository.client.pace(chunk.len()).await;
                    let known = self.part.skip.min(chunk.len() as u64);
                    self.part.skip -= known;
                    // `known` is at most the length of a chunk in memory.
                    chunk.advance(known as usize);
                    let left = self.left.end - self.left.start;
                    if chunk.len() as u64 > left + self.part.beyond {
                        return Err(self.repository.wrong_size(&self.target, "has more bytes than it should"));
                    }
                    chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    self.left.start += chunk.len() as u64;
                    if chunk.is_empty() {
                        continue;
                    }
                    return Ok(Some(chunk));
                }
                // All bytes are there, however the connection ended.
                _ if self.left.is_empty() => return Ok(None),
                Ok(Ok(None)) => self.broken("ended early"),
                Ok(Err(cause)) => self.broken("broke").caused_by(cause.without_url()),
                Err(_) => self.broken(&format!("brought nothing for {} s", idle.as_secs())),
            };
            self.part = self.resume(interruption).await?;
        }
    }

    /// Takes the stream up again, unless it has been interrupted too often without progress.
    async fn resume(&mut self, interruption: Error) -> Result<Part> {
        if self.left.start - self.resumed_at >= PROGRESS {
            (self.interruptions, self.resumed_at) = (0, self.left.start);
        }
        let pause: Option<Duration> = self.repository.client.pauses().build().nth(self.interruptions);
        let Some(pause) = pause else { return Err(interruption) };
        self.interruptions += 1;
        sleep(pause).await;
        let (repository, target, left) = (&self.repository, &self.target, &self.left);
        let part = repository.client.persist(|| repository.part(target, left)).await?;
        part.ok_or(interruption)
    }

    fn broken(&self, how: &str) -> Error {
        let (target, host) = (&self.target, self.repository.client.host());
        let message = format!(
            "The transfer of `{}` from `{host}` {how}, after {} of {} bytes",
            target.digest, self.left.start, target.size
        );
        Error::new(ErrorKind::Registry, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_range_is_taken() {
        let taken = |ranges: &[&'static str]| {
            let headers = ranges.iter().map(|range| (CONTENT_RANGE, HeaderValue::from_static(range))).collect();
            is_exactly(&headers, &(100..900), 1000)
        };
        assert!(taken(&["bytes 100-899/1000"]));
        assert!(taken(&["bytes 100-899/*"]));
        for odd in ["bytes 99-899/1000", "bytes 100-898/1000", "bytes 100-900/1000", "bytes 100-899/1001"] {
            assert!(!taken(&[odd]), "{odd}");
        }
        for odd in ["100-899/1000", "bytes */1000", ""] {
            assert!(!taken(&[odd]), "{odd}");
        }
        assert!(!taken(&[]));
        assert!(!taken(&["bytes 100-899/1000", "bytes 100-899/1000"]));
    }
}
