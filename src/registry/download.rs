//! One blob out of one repository, from any offset. A stream that breaks is taken up again where it
//! broke, with a Range request; the length the registry announces must be the descriptor's, and no
//! byte more than that is read. Whoever keeps the bytes hashes them.
//!
//! OCI distribution-spec v1.1.1, "Pulling blobs":
//! <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pulling-blobs>.

use std::sync::Arc;
use std::time::Duration;

use backon::BackoffBuilder as _;
use bytes::{Buf as _, Bytes};
use futures_util::stream;
use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode};
use tokio::time::{sleep, timeout};

use super::Repository;
use super::auth::Access;
use super::client::Call;
use super::failure::Failure;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Descriptor;
use crate::storage::ByteStream;

/// This much progress makes up for all earlier interruptions of a stream.
const PROGRESS: u64 = 1 << 20;

impl Repository {
    /// The bytes of the blob `target` from offset `from` on; `None` when it is not there.
    pub(super) async fn download(self: &Arc<Self>, target: &Descriptor, from: u64) -> Result<Option<ByteStream>> {
        if from > target.size {
            let message = format!("The blob `{}` has no byte {from}", target.digest);
            return Err(Error::new(ErrorKind::Unexpected, message));
        }
        if from == target.size && from > 0 {
            // A Range request for nothing cannot be answered.
            let present = self.client.persist(|| self.is_present(target)).await?;
            return Ok(present.then(|| Box::pin(stream::empty()) as ByteStream));
        }
        let Some(part) = self.client.persist(|| self.part(target, from)).await? else { return Ok(None) };
        let incoming = Incoming {
            repository: Arc::clone(self),
            target: target.clone(),
            part,
            position: from,
            resumed_at: from,
            interruptions: 0,
        };
        Ok(Some(Box::pin(stream::try_unfold(incoming, |mut incoming| async move {
            Ok(incoming.next().await?.map(|chunk| (chunk, incoming)))
        }))))
    }

    /// Opens the blob at offset `from`; `None` when the registry does not have it.
    async fn part(&self, target: &Descriptor, from: u64) -> Result<Option<Part>, Failure> {
        let mut call = Call::new(Method::GET, self.url(&format!("blobs/{}", target.digest)).await?, Access::Pull);
        if from > 0 {
            // With an end, because there are registries that do not understand a range without.
            let range = HeaderValue::from_str(&format!("bytes={from}-{}", target.size - 1));
            call = call.header(
                RANGE,
                range.map_err(|cause| Error::new(ErrorKind::Unexpected, "Not a range").caused_by(cause))?,
            );
        }
        let response = self.client.exchange(&call).await?;
        let (skip, length) = match response.status() {
            // The registry does not do ranges: what we have is read again and dropped.
            StatusCode::OK => (from, target.size),
            StatusCode::PARTIAL_CONTENT if from > 0 => {
                if !is_rest(response.headers(), from, target.size) {
                    let message =
                        format!("The registry `{}` sent another part of `{}`", self.client.host(), target.digest);
                    return Err(Failure::passing(Error::new(ErrorKind::Registry, message)));
                }
                (0, target.size - from)
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(self.wrong_size(target, &format!("ends before byte {from}")).into());
            }
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(self.client.refused(&call, response).await),
        };
        if let Some(announced) = response.content_length().filter(|announced| *announced != length) {
            return Err(self.wrong_size(target, &format!("has {announced} bytes where {length} belong")).into());
        }
        Ok(Some(Part { response, skip }))
    }

    fn wrong_size(&self, target: &Descriptor, what: &str) -> Error {
        let message = format!("The blob `{}` on `{}` {what}", target.digest, self.client.host());
        Error::new(ErrorKind::Corrupt, message)
    }
}

/// Whether a 206 holds exactly the bytes from `from` to the end of a blob of `size` bytes.
fn is_rest(headers: &HeaderMap, from: u64, size: u64) -> bool {
    let mut ranges = headers.get_all(CONTENT_RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else { return false };
    let expected = format!("bytes {from}-{}/", size - 1);
    let total = range.to_str().ok().and_then(|range| range.strip_prefix(&expected));
    total.is_some_and(|total| total == "*" || total.parse() == Ok(size))
}

/// One reply with bytes of the blob, of which the first `skip` are known already.
struct Part {
    response: Response,
    skip: u64,
}

/// A blob on its way in.
struct Incoming {
    repository: Arc<Repository>,
    target: Descriptor,
    part: Part,
    /// The offset of the next byte.
    position: u64,
    /// Where the stream was taken up when interruptions were last forgotten.
    resumed_at: u64,
    interruptions: usize,
}

impl Incoming {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let idle = self.repository.client.idle();
            let interruption = match timeout(idle, self.part.response.chunk()).await {
                Ok(Ok(Some(mut chunk))) => {
                    let known = self.part.skip.min(chunk.len() as u64);
                    self.part.skip -= known;
                    // `known` is at most the length of a chunk in memory.
                    chunk.advance(known as usize);
                    self.position += chunk.len() as u64;
                    if self.position > self.target.size {
                        return Err(self.repository.wrong_size(&self.target, "has more bytes than it should"));
                    }
                    if chunk.is_empty() {
                        continue;
                    }
                    return Ok(Some(chunk));
                }
                // All bytes are there, however the connection ended.
                _ if self.position == self.target.size => return Ok(None),
                Ok(Ok(None)) => self.broken("ended early"),
                Ok(Err(cause)) => self.broken("broke").caused_by(cause.without_url()),
                Err(_) => self.broken(&format!("brought nothing for {} s", idle.as_secs())),
            };
            self.part = self.resume(interruption).await?;
        }
    }

    /// Takes the stream up again, unless it has been interrupted too often without progress.
    async fn resume(&mut self, interruption: Error) -> Result<Part> {
        if self.position - self.resumed_at >= PROGRESS {
            (self.interruptions, self.resumed_at) = (0, self.position);
        }
        let pause: Option<Duration> = self.repository.client.pauses().build().nth(self.interruptions);
        let Some(pause) = pause else { return Err(interruption) };
        self.interruptions += 1;
        sleep(pause).await;
        let (repository, target, position) = (&self.repository, &self.target, self.position);
        let part = repository.client.persist(|| repository.part(target, position)).await?;
        part.ok_or(interruption)
    }

    fn broken(&self, how: &str) -> Error {
        let (target, host) = (&self.target, self.repository.client.host());
        let message = format!(
            "The transfer of `{}` from `{host}` {how}, after {} of {} bytes",
            target.digest, self.position, target.size
        );
        Error::new(ErrorKind::Registry, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_rest_is_taken() {
        let rest = |ranges: &[&'static str]| {
            let headers = ranges.iter().map(|range| (CONTENT_RANGE, HeaderValue::from_static(range))).collect();
            is_rest(&headers, 100, 1000)
        };
        assert!(rest(&["bytes 100-999/1000"]));
        assert!(rest(&["bytes 100-999/*"]));
        for odd in ["bytes 99-999/1000", "bytes 100-998/1000", "bytes 100-999/1001", "100-999/1000", "bytes */1000", ""]
        {
            assert!(!rest(&[odd]), "{odd}");
        }
        assert!(!rest(&[]));
        assert!(!rest(&["bytes 100-999/1000", "bytes 100-999/1000"]));
    }
}
