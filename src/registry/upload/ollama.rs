//! One blob past Ollama's registry, into the storage behind it. The registry is told the digest and says
//! where the bytes go: all of them to one address, or in parts, each to an address of its own, several at
//! once. Such an address is signed and knows no other credentials. At the end the registry is told that the
//! storage has everything; until then nothing is published.
//!
//! The form is the one of Ollama 0.33's clients (`x/transfer/upload.go`, and `server/upload.go`, which sends
//! several parts at once). A registry that leads nowhere takes the parts itself, one after the other.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::BackoffBuilder as _;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use md5::{Digest as _, Md5};
use reqwest::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, COOKIE, ETAG, HOST, HeaderMap, HeaderName,
    HeaderValue, LOCATION, TRANSFER_ENCODING,
};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::time::sleep;

use super::super::Repository;
use super::super::address::{with_digest, with_query};
use super::super::auth::Access;
use super::super::client::Call;
use super::super::failure::Failure;
use super::super::outgoing::Part;
use super::read_up_to;
use super::session::{OCTETS, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, hex};
use crate::storage::{Body, ByteStream, Pushed, Verifier};

/// What the client understands: `1` that a part is redirected, `2` an address for the whole blob, too.
const REDIRECT_UPLOADS: HeaderName = HeaderName::from_static("x-redirect-uploads");
/// The blob's size, for a registry that wants to know before it names an address.
const BLOB_LENGTH: HeaderName = HeaderName::from_static("x-content-length");
/// Where the session goes on, beside a `Location` that leads to the storage.
const UPLOAD_LOCATION: HeaderName = HeaderName::from_static("docker-upload-location");
/// Where the storage takes the whole blob.
const DIRECT_URL: HeaderName = HeaderName::from_static("x-direct-upload-url");
/// What the names of headers start with that go to the storage, because its address was signed with them.
const SIGNED_HEADER: &str = "x-signed-header-";
/// Headers that the registry does not choose, because they say whose request this is and where it ends.
const OURS: [HeaderName; 6] = [AUTHORIZATION, COOKIE, HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING];

/// The shortest part but the last.
const SHORTEST_PART: u64 = 100_000_000;
/// Parts are as long as this many of them need, within the shortest and ten times that.
const USUAL_PARTS: u64 = 16;
/// How many parts of one blob are on their way at once.
const PARTS_AT_ONCE: usize = 4;
/// How long a part waits for the registry to say where it goes, before it goes to the registry itself.
const PATIENCE: Duration = Duration::from_secs(1);

/// How large blobs are cut.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Parts {
    shortest: u64,
}

/// Where the registry wants a blob.
enum Way {
    /// It has it.
    Present,
    /// All of it at one address, with these headers.
    Direct { session: Session, url: Url, headers: HeaderMap },
    /// In parts.
    Parts(Session),
}

/// A part whose turn it is.
struct Turn {
    /// The session as it was before this part.
    session: Url,
    /// The check of what is before it.
    before: Verifier,
    end: u64,
}

/// What the registry says to a part.
enum Answer {
    /// It belongs there.
    Elsewhere(Url),
    /// It took it itself.
    Taken(Box<Arrived>),
}

/// What is known of a part that arrived.
struct Arrived {
    md5: [u8; 16],
    /// The check of all up to its end.
    after: Verifier,
}

/// A part that arrived, and where it stands.
struct Sent {
    turn: Turn,
    arrived: Arrived,
    /// The session as it was after this part.
    session: Url,
}

/// How far the parts of a blob are offered to the registry.
struct Offered {
    session: Url,
    /// Where the next part begins.
    offset: u64,
    /// The check of what is before that, as far as it is known.
    check: Verifier,
    /// Whether the registry took a part itself.
    takes_parts: bool,
}

impl Parts {
    /// Parts of at least `shortest` bytes, or of at least 100 MB.
    pub(in super::super) fn new(shortest: Option<u64>) -> Self {
        Self { shortest: shortest.unwrap_or(SHORTEST_PART).max(1) }
    }

    /// The length of all parts of a blob of `size` bytes, but for the last.
    fn length(self, size: u64) -> u64 {
        (size / USUAL_PARTS).clamp(self.shortest, self.shortest.saturating_mul(10))
    }
}

impl Repository {
    /// Sends `body` as the blob `expected`. `begun` is set when the registry may have it.
    pub(super) async fn upload_to_ollama(
        &self,
        parts: Parts,
        expected: &Descriptor,
        body: &dyn Body,
        begun: &AtomicBool,
    ) -> Result<Pushed, Failure> {
        let way = self.way(expected).await?;
        begun.store(true, Ordering::Relaxed);
        let (session, sent) = match way {
            Way::Present => return Ok(Pushed::AlreadyPresent),
            Way::Direct { session, url, headers } => {
                let sent = self.send_direct(&session, url, headers, expected, body).await;
                (session, sent)
            }
            Way::Parts(session) => {
                let sent = self.send_parts(parts, &session, expected, body).await;
                (session, sent)
            }
        };
        if sent.as_ref().is_err_and(|failure| !failure.may_pass()) {
            self.abandon(&session).await;
        }
        sent.map(|()| Pushed::Stored)
    }

    async fn way(&self, expected: &Descriptor) -> Result<Way, Failure> {
        let url = with_digest(&self.url("blobs/uploads/").await?, &expected.digest);
        let call = Call::new(Method::POST, url, Access::Push)
            .header(REDIRECT_UPLOADS, HeaderValue::from_static("2"))
            .header(BLOB_LENGTH, expected.size.into());
        let response = self.client.exchange(&call).await?;
        match response.status() {
            StatusCode::CREATED => return Ok(Way::Present),
            StatusCode::ACCEPTED => {}
            _ => return Err(self.client.refused(&call, response).await),
        }
        let session = Session { url: self.session_in(&response)?, shortest_chunk: 0 };
        if !response.headers().contains_key(DIRECT_URL) {
            return Ok(Way::Parts(session));
        }
        let signed = response.headers().iter().filter_map(|(name, value)| {
            let name = HeaderName::try_from(name.as_str().strip_prefix(SIGNED_HEADER)?).ok()?;
            (!OURS.contains(&name)).then(|| (name, value.clone()))
        });
        let headers = signed.collect();
        Ok(Way::Direct { session, url: self.client.address_in(&response, &DIRECT_URL)?, headers })
    }

    /// Where the session of `response` goes on.
    fn session_in(&self, response: &Response) -> Result<Url> {
        let name = if response.headers().contains_key(UPLOAD_LOCATION) { UPLOAD_LOCATION } else { LOCATION };
        self.client.address_in(response, &name)
    }

    async fn send_direct(
        &self,
        session: &Session,
        url: Url,
        headers: HeaderMap,
        expected: &Descriptor,
        body: &dyn Body,
    ) -> Result<(), Failure> {
        let part = Part::whole(expected, body);
        self.store(url, headers, &part).await?;
        self.finish(session, expected, None).await
    }

    /// Sends `part` to the storage at `url`, which is signed.
    async fn store(&self, url: Url, mut headers: HeaderMap, part: &Part<'_>) -> Result<Response, Failure> {
        headers.entry(CONTENT_TYPE).or_insert(OCTETS);
        let call = headers
            .into_iter()
            .filter_map(|(name, value)| Some((name?, value)))
            .fold(Call::new(Method::PUT, url, Access::Push), |call, (name, value)| call.header(name, value))
            .part(part)
            .closing();
        let response = self.client.transmit(&call, None).await?;
        match response.status() {
            StatusCode::OK | StatusCode::CREATED | StatusCode::ACCEPTED | StatusCode::NO_CONTENT => Ok(response),
            status => {
                let failure = self.client.refused(&call, response).await;
                Err(if is_stale(status) { failure.passes() } else { failure })
            }
        }
    }

    async fn send_parts(
        &self,
        parts: Parts,
        session: &Session,
        expected: &Descriptor,
        body: &dyn Body,
    ) -> Result<(), Failure> {
        let length = parts.length(expected.size);
        let check = Verifier::new(expected);
        let offered = Offered { session: session.url.clone(), offset: 0, check, takes_parts: false };
        let arriving = self.arriving(offered, length, body);
        let mut sent: Vec<Sent> = arriving.try_buffer_unordered(PARTS_AT_ONCE).try_collect().await?;
        sent.sort_by_key(|part| part.turn.end);
        // The last part was checked against the digest, with what was read of those before it.
        for pair in sent.windows(2) {
            if !pair[0].arrived.after.agrees_with(&pair[1].turn.before) {
                let message = format!("The content of `{}` changed while it was sent", expected.digest);
                return Err(Error::new(ErrorKind::Corrupt, message).into());
            }
        }
        if sent.is_empty() {
            Verifier::new(expected).finish()?;
        }
        let mut etag = Md5::new();
        sent.iter().for_each(|part| etag.update(part.arrived.md5));
        let etag = format!("etag={}-{}", hex(&etag.finalize()), sent.len());
        let last = sent.last().map_or(&session.url, |last| &last.session);
        self.finish(&Session { url: with_query(last, etag), shortest_chunk: 0 }, expected, None).await
    }

    /// The parts as they come: each is read and offered when it is asked for, and then waits to be sent.
    fn arriving<'a>(
        &'a self,
        offered: Offered,
        length: u64,
        body: &'a dyn Body,
    ) -> BoxStream<'a, Result<BoxFuture<'a, Result<Sent, Failure>>, Failure>> {
        let turns = stream::try_unfold(offered, move |mut offered| async move {
            let next = self.offer_next(&mut offered, length, body).await?;
            Ok(next.map(|next| (next, offered)))
        });
        let sending = move |(turn, answer, session)| -> BoxFuture<'a, Result<Sent, Failure>> {
            Box::pin(async move {
                let arrived = self.send_part(&turn, answer, body).await?;
                Ok(Sent { turn, arrived, session })
            })
        };
        turns.map_ok(sending).boxed()
    }

    /// Offers the next part to the registry; `None` when there is none. Gives its answer, and the session after it.
    async fn offer_next(
        &self,
        offered: &mut Offered,
        length: u64,
        body: &dyn Body,
    ) -> Result<Option<(Turn, Answer, Url)>, Failure> {
        let size = offered.check.expected().size;
        if offered.offset == size {
            return Ok(None);
        }
        read_up_to(offered.offset, &mut offered.check, body).await?;
        let end = offered.offset.saturating_add(length).min(size);
        let turn = Turn { session: offered.session.clone(), before: offered.check.clone(), end };
        let patience = if offered.takes_parts { Duration::ZERO } else { PATIENCE };
        let (answer, session) = self.client.persist(|| self.offer(&turn, patience, body)).await?;
        offered.offset = end;
        offered.session.clone_from(&session);
        if let Answer::Taken(arrived) = &answer {
            (offered.takes_parts, offered.check) = (true, arrived.after.clone());
        }
        Ok(Some((turn, answer, session)))
    }

    /// Asks the registry where a part goes. After `patience` without an answer it gets the part itself.
    async fn offer(&self, turn: &Turn, patience: Duration, body: &dyn Body) -> Result<(Answer, Url), Failure> {
        let range = HeaderValue::try_from(format!("{}-{}", turn.before.seen(), turn.end - 1))
            .map_err(|cause| Error::new(ErrorKind::Unexpected, "Not the header of a part").caused_by(cause))?;
        let tap = Tap::new(patience, body);
        let part = Part::new(turn.before.clone(), &tap, turn.end);
        let call = Call::new(Method::PATCH, turn.session.clone(), Access::Push)
            .header(CONTENT_TYPE, OCTETS)
            .header(CONTENT_RANGE, range)
            .header(REDIRECT_UPLOADS, HeaderValue::from_static("1"))
            .part(&part)
            .closing()
            .stays();
        let response = self.client.exchange(&call).await?;
        match response.status() {
            StatusCode::TEMPORARY_REDIRECT => {
                let session = match response.headers().contains_key(UPLOAD_LOCATION) {
                    true => self.session_in(&response)?,
                    false => turn.session.clone(),
                };
                Ok((Answer::Elsewhere(self.client.location(&response)?), session))
            }
            StatusCode::OK | StatusCode::CREATED | StatusCode::ACCEPTED | StatusCode::NO_CONTENT => {
                let arrived = tap.arrived(&part).ok_or_else(|| self.answered_early())?;
                Ok((Answer::Taken(Box::new(arrived)), self.session_in(&response)?))
            }
            status => {
                let failure = self.client.refused(&call, response).await;
                // The session is gone, or is not where it should be; another one helps.
                let is_lost = matches!(status, StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE);
                Err(if is_lost { failure.passes() } else { failure })
            }
        }
    }

    /// Sends a part where the registry said. One that breaks is sent again, and where its address does not serve any
    /// more, to another one.
    async fn send_part(&self, turn: &Turn, mut answer: Answer, body: &dyn Body) -> Result<Arrived, Failure> {
        let mut pauses = self.client.pauses().build();
        loop {
            let failure = match answer {
                Answer::Taken(arrived) => return Ok(*arrived),
                Answer::Elsewhere(ref address) => match self.store_part(turn, address, body).await {
                    Ok(arrived) => return Ok(arrived),
                    Err(failure) => failure,
                },
            };
            let Some(pause) = pauses.next().filter(|_| failure.may_pass()) else { return Err(failure) };
            sleep(failure.after().unwrap_or_default() + pause).await;
            if failure.status().is_some_and(is_stale) {
                (answer, _) = self.client.persist(|| self.offer(turn, PATIENCE, body)).await?;
            }
        }
    }

    async fn store_part(&self, turn: &Turn, address: &Url, body: &dyn Body) -> Result<Arrived, Failure> {
        let tap = Tap::new(Duration::ZERO, body);
        let part = Part::new(turn.before.clone(), &tap, turn.end);
        let response = self.store(address.clone(), HeaderMap::new(), &part).await?;
        let arrived = tap.arrived(&part).ok_or_else(|| self.answered_early())?;
        let told = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).map(|etag| etag.trim_matches('"'));
        // A storage's ETag is the MD5 of what it has, when it looks like one.
        match told.filter(|told| told.len() == 32) {
            Some(told) if !told.eq_ignore_ascii_case(&hex(&arrived.md5)) => {
                let message = format!("The storage of `{}` has other bytes than were sent", self.client.host());
                Err(Failure::passing(Error::new(ErrorKind::Registry, message)))
            }
            _ => Ok(arrived),
        }
    }

    fn answered_early(&self) -> Failure {
        let message = format!("The registry `{}` took a part before it had all of it", self.client.host());
        Failure::passing(Error::new(ErrorKind::Registry, message))
    }
}

/// Whether the storage says that an address does not serve: its signature has expired, or what it leads to is gone.
fn is_stale(status: StatusCode) -> bool {
    matches!(status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE)
}

/// The bytes of one part on their way, which waits for `patience` before it starts.
struct Tap<'a> {
    body: &'a dyn Body,
    patience: Duration,
    md5: Arc<Mutex<Md5>>,
}

impl<'a> Tap<'a> {
    fn new(patience: Duration, body: &'a dyn Body) -> Self {
        Self { body, patience, md5: Arc::default() }
    }

    /// What was sent of `part`, if that was all.
    fn arrived(&self, part: &Part<'_>) -> Option<Arrived> {
        let after = part.after()?;
        let md5 = self.md5.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(Arrived { md5: md5.finalize().into(), after })
    }
}

impl Body for Tap<'_> {
    fn open(&self, bytes: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        Box::pin(async move {
            let (md5, patience) = (Arc::clone(&self.md5), self.patience);
            *md5.lock().unwrap_or_else(PoisonError::into_inner) = Md5::new();
            let chunks = self.body.open(bytes).await?.inspect_ok(move |chunk: &Bytes| {
                md5.lock().unwrap_or_else(PoisonError::into_inner).update(chunk);
            });
            let wait = stream::once(async move {
                sleep(patience).await;
                Ok(Bytes::new())
            });
            Ok(Box::pin(wait.chain(chunks)) as ByteStream)
        })
    }
}
