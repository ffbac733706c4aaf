//! The requests of one upload session. The address is always the one of the latest answer: it may carry the
//! registry's state.

use std::time::{Duration, Instant};

use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::time::timeout;

use super::super::address::with_digest;
use super::super::auth::Access;
use super::super::client::Call;
use super::super::failure::Failure;
use super::super::manifests::CONTENT_DIGEST;
use super::super::outgoing::Part;
use super::super::{Home, Repository};
use crate::error::{Error, ErrorKind};
use crate::oci::{Descriptor, Digest};
use crate::storage::Upload;

/// The least that all chunks but the last must have, in the answer that opens a session: OCI distribution-spec
/// v1.1.1, "Pushing a blob in chunks".
const CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");
/// What a blob's bytes are sent as.
pub(super) const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
/// How long a session that is of no more use may take to be thrown away.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(5);

/// An upload under way.
pub(super) struct Session {
    pub(super) url: Url,
    /// The least that a chunk must have, in bytes.
    pub(super) shortest_chunk: u64,
}

impl Session {
    /// What is kept of it when the registry has `reached` bytes.
    pub(super) fn kept(&self, reached: u64) -> Upload {
        Upload { url: self.url.to_string(), reached, shortest_chunk: self.shortest_chunk }
    }
}

/// What became of the wish to mount a blob.
pub(super) enum Mounted {
    /// It is there.
    Blob,
    /// It has to be sent.
    Not(Session),
}

/// What became of a chunk.
pub(super) enum Patched {
    /// The registry has the blob up to this offset.
    Reached(u64),
    /// It takes no chunks.
    Refused,
}

impl Repository {
    /// Opens a session.
    pub(super) async fn begin(&self) -> Result<Session, Failure> {
        let call = Call::new(Method::POST, self.url("blobs/uploads/").await?, Access::Push);
        let response = self.client.exchange(&call).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(self.client.refused(&call, response).await);
        }
        self.opened(&response)
    }

    /// Asks the registry to take `expected` from another of its repositories: OCI distribution-spec v1.1.1,
    /// "Mounting a blob from another repository". `None` when it was not asked, or does not hear of it.
    pub(super) async fn mount(&self, expected: &Descriptor) -> Option<Mounted> {
        let home = self.home(expected)?;
        let mut url = self.url("blobs/uploads/").await.ok()?;
        let digest = expected.digest.to_string();
        url.query_pairs_mut().append_pair("mount", &digest).append_pair("from", &home.repository);
        let call = Call::new(Method::POST, url, Access::Mount(home.repository.clone()));
        let response = self.client.exchange(&call).await.ok()?;
        match response.status() {
            StatusCode::CREATED => Some(Mounted::Blob),
            // An ordinary session, which would be lost if it were not used.
            StatusCode::ACCEPTED => self.opened(&response).ok().map(Mounted::Not),
            _ => None,
        }
    }

    /// A repository that may have `target`.
    fn home(&self, target: &Descriptor) -> Option<&Home> {
        let has = |home: &&Home| home.blobs.as_ref().is_none_or(|blobs| blobs.contains(&target.digest));
        self.homes.iter().filter(|home| home.repository != self.path).find(has)
    }

    /// Whether the repository that `target` would be mounted from has it.
    pub(in super::super) async fn is_mountable(&self, target: &Descriptor) -> Result<bool, Failure> {
        let Some(Home { repository, .. }) = self.home(target) else { return Ok(false) };
        let path = format!("{repository}/blobs/{}", target.digest);
        let Ok(url) = self.client.base().await?.join(&path) else { return Ok(false) };
        let call = Call::new(Method::HEAD, url, Access::Mount(repository.clone()));
        Ok(self.client.exchange(&call).await?.status() == StatusCode::OK)
    }

    fn opened(&self, response: &Response) -> Result<Session, Failure> {
        let shortest = response.headers().get(CHUNK_MIN_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Session { url: self.client.location(response)?, shortest_chunk: shortest.unwrap_or(0) })
    }

    /// Sends the chunk `part`, whose first byte is at `offset`.
    pub(super) async fn patch(&self, session: &mut Session, offset: u64, part: &Part<'_>) -> Result<Patched, Failure> {
        let (length, end) = (part.length(), offset + part.length());
        let range = HeaderValue::try_from(format!("{offset}-{}", end - 1))
            .map_err(|cause| Error::new(ErrorKind::Unexpected, "Not the header of a chunk").caused_by(cause))?;
        let call = Call::new(Method::PATCH, session.url.clone(), Access::Push)
            .header(CONTENT_TYPE, OCTETS)
            .header(CONTENT_RANGE, range)
            .part(part)
            .closing();
        let begun = Instant::now();
        let response = match self.client.exchange(&call).await {
            Ok(response) => response,
            Err(failure) => {
                if failure.may_pass() {
                    self.pace.broke(length);
                }
                return Err(failure);
            }
        };
        match response.status() {
            StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::OK => {
                self.pace.took(length, begun.elapsed());
                if response.headers().contains_key(LOCATION) {
                    session.url = self.client.location(&response)?;
                } else if let Ok(Some((url, _))) = self.reached(session).await {
                    // The one before may be used up.
                    session.url = url;
                }
                match reached(&response) {
                    None => Ok(Patched::Reached(end)),
                    Some(reached) if offset < reached && reached <= end => Ok(Patched::Reached(reached)),
                    Some(_) => Err(self.disagrees()),
                }
            }
            _ => self.refused_chunk(session, offset, length, &call, response).await,
        }
    }

    /// What the answer to a chunk means that was not taken: an error that may pass calls for a look at the session.
    async fn refused_chunk(
        &self,
        session: &Session,
        offset: u64,
        length: u64,
        call: &Call<'_>,
        response: Response,
    ) -> Result<Patched, Failure> {
        let status = response.status();
        let failure = self.client.refused(call, response).await;
        match status {
            // It took one chunk for the whole.
            StatusCode::CREATED => Ok(Patched::Refused),
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED | StatusCode::LENGTH_REQUIRED => {
                Ok(Patched::Refused)
            }
            StatusCode::BAD_REQUEST if offset == 0 => Ok(Patched::Refused),
            StatusCode::PAYLOAD_TOO_LARGE if self.pace.too_long(length) => Err(failure.passes()),
            StatusCode::PAYLOAD_TOO_LARGE => Ok(Patched::Refused),
            // Some say with it that the chunk is too long, most that it does not begin where it should.
            StatusCode::RANGE_NOT_SATISFIABLE => match self.reached(session).await? {
                Some((_, reached)) if reached == offset => Ok(Patched::Refused),
                _ => Err(failure.passes()),
            },
            // The session is gone, by a restart or its age.
            StatusCode::NOT_FOUND => Err(failure.passes()),
            // Those of a proxy that waited no longer.
            _ if matches!(status.as_u16(), 408 | 499 | 502 | 504 | 524) => {
                self.pace.broke(length);
                Err(failure.passes())
            }
            _ => Err(failure),
        }
    }

    /// Where the next chunk goes, and the offset of its first byte; `None` when the session is gone or
    /// the registry does not tell.
    pub(super) async fn reached(&self, session: &Session) -> Result<Option<(Url, u64)>, Failure> {
        let call = Call::new(Method::GET, session.url.clone(), Access::Push);
        let response = self.client.exchange(&call).await?;
        match response.status() {
            StatusCode::NO_CONTENT | StatusCode::OK | StatusCode::ACCEPTED => {}
            // One that is busy, or wants other credentials, has not said that the session is gone.
            StatusCode::UNAUTHORIZED | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                return Err(self.client.refused(&call, response).await);
            }
            status if status.is_client_error() => return Ok(None),
            _ => return Err(self.client.refused(&call, response).await),
        }
        let url = match response.headers().contains_key(LOCATION) {
            true => self.client.location(&response)?,
            false => session.url.clone(),
        };
        Ok(reached(&response).map(|reached| (url, reached)))
    }

    /// Closes the session of `expected`, with `rest` as the bytes that are still to come.
    pub(super) async fn finish(
        &self,
        session: &Session,
        expected: &Descriptor,
        rest: Option<&Part<'_>>,
    ) -> Result<(), Failure> {
        let call = Call::new(Method::PUT, with_digest(&session.url, &expected.digest), Access::Push).closing();
        let call = match rest {
            Some(part) => call.header(CONTENT_TYPE, OCTETS).part(part),
            None => call,
        };
        let response = self.client.exchange(&call).await?;
        match response.status() {
            StatusCode::CREATED => {
                let told = response.headers().get(CONTENT_DIGEST).and_then(|told| told.to_str().ok()?.parse().ok());
                let is_other =
                    |told: &Digest| told.algorithm() == expected.digest.algorithm() && *told != expected.digest;
                match told.filter(is_other) {
                    Some(other) => {
                        let host = self.client.host();
                        let message =
                            format!("The registry `{host}` stored `{}` as another blob, `{other}`", expected.digest);
                        Err(Error::new(ErrorKind::Corrupt, message).into())
                    }
                    None => Ok(()),
                }
            }
            // Some registries say so when they have stored it, some when they have not.
            StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NO_CONTENT => {
                if self.is_present(expected).await? {
                    return Ok(());
                }
                let message =
                    format!("The registry `{}` took `{}` and does not have it", self.client.host(), expected.digest);
                Err(Failure::passing(Error::new(ErrorKind::Registry, message)))
            }
            _ => {
                let failure = self.client.refused(&call, response).await;
                // The session is gone, by a restart or its age; the next one may live longer.
                if failure.has_code("BLOB_UPLOAD_UNKNOWN") { Err(failure.passes()) } else { Err(failure) }
            }
        }
    }

    /// Tells the registry that a session is of no more use. It finds out by itself if this fails.
    pub(super) async fn abandon(&self, session: &Session) {
        let call = Call::new(Method::DELETE, session.url.clone(), Access::Push);
        let _ = timeout(ABANDON_TIMEOUT, self.client.exchange(&call)).await;
    }

    /// The registry takes no chunks, which is remembered: the next session gets the blob whole.
    pub(super) async fn takes_no_chunks(&self, session: &Session) -> Failure {
        self.pace.takes_none();
        self.abandon(session).await;
        let message = format!("The registry `{}` takes no blob in chunks", self.client.host());
        Failure::passing(Error::new(ErrorKind::Registry, message))
    }

    fn disagrees(&self) -> Failure {
        let message = format!("The registry `{}` says that it has other bytes than were sent", self.client.host());
        Failure::passing(Error::new(ErrorKind::Registry, message))
    }
}

/// The offset behind the last byte that the registry has, in `Range: 0-<last>`. `0-0` is what registries
/// say of an empty session, so no chunk is one byte long.
fn reached(response: &Response) -> Option<u64> {
    let range = response.headers().get(RANGE)?.to_str().ok()?;
    let (first, last) = range.strip_prefix("bytes=").unwrap_or(range).split_once('-')?;
    match (first.parse().ok()?, last.parse().ok()?) {
        (0_u64, 0_u64) => Some(0),
        (0, last) => last.checked_add(1),
        _ => None,
    }
}
