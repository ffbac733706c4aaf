//! One blob into one repository. A session is opened, the bytes are sent, and when the answer to the last
//! request is lost, the registry is asked whether it has the blob before any are sent again.
//!
//! A blob of one chunk goes with one PUT. A larger one goes in chunks, so that a connection that breaks
//! costs one of them: how far the session is, is the registry's word and never assumed. Where it goes on is
//! kept, so that the next run does too when this one is killed. A registry that takes no chunks gets the
//! whole, and is not tried again. What it has in another repository it is asked to mount first.
//!
//! OCI distribution-spec v1.1.1, "Pushing blobs":
//! <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pushing-blobs>.

mod bookmark;
mod check;
mod ollama;
mod pace;
mod session;

use std::sync::atomic::{AtomicBool, Ordering};

use backon::BackoffBuilder as _;
use futures_util::TryStreamExt as _;

use super::Repository;
use super::failure::Failure;
use super::outgoing::Part;
use crate::error::Result;
use crate::oci::Descriptor;
use crate::storage::{Body, Pushed, Upload, Verifier};
use bookmark::Bookmark;
pub(super) use ollama::Parts;
pub use pace::Habits;
pub(super) use pace::Pace;
use session::{Mounted, Patched, Session};

impl Repository {
    /// Sends `body` as the blob `expected`.
    pub(super) async fn upload(&self, expected: &Descriptor, body: &dyn Body) -> Result<Pushed> {
        let sent_before = AtomicBool::new(false);
        let claim = || self.unfinished.as_ref()?.claim(&self.to_string(), &expected.digest);
        let keeps = self.parts.is_none() && self.pace.may_take_several(expected.size);
        let bookmark = Bookmark::new(keeps.then(claim).flatten());
        let check = self.check_of(expected, body).await;
        let outcome = self.client.persist(|| self.attempt(&check, body, &bookmark, &sent_before)).await;
        match outcome {
            // It may be that the registry hashed what nobody here did.
            Err(failure) if !check.is_of_digest() && failure.is_refusal() => {
                checked_up_to(expected.size, Verifier::new(expected), body).await?.finish()?;
                Err(failure.into())
            }
            Err(failure) if failure.may_pass() && sent_before.into_inner() => {
                if self.is_present(expected).await.unwrap_or(false) { Ok(Pushed::Stored) } else { Err(failure.into()) }
            }
            outcome => Ok(outcome?),
        }
    }

    async fn attempt(
        &self,
        check: &Verifier,
        body: &dyn Body,
        bookmark: &Bookmark,
        sent_before: &AtomicBool,
    ) -> Result<Pushed, Failure> {
        let expected = check.expected();
        if sent_before.load(Ordering::Relaxed) && self.is_present(expected).await? {
            return Ok(Pushed::Stored);
        }
        if let Some(parts) = self.parts {
            return self.upload_to_ollama(parts, expected, body, sent_before).await;
        }
        let (mut session, done) = match self.resumed(check, body, bookmark).await? {
            Some(resumed) => resumed,
            None => match self.mount(expected).await {
                Some(Mounted::Blob) => return Ok(Pushed::Mounted),
                Some(Mounted::Not(session)) => (session, check.clone()),
                None => (self.begin().await?, check.clone()),
            },
        };
        sent_before.store(true, Ordering::Relaxed);
        let resumes = done.seen() > 0;
        let sent = match self.pace.chunk(session.shortest_chunk) {
            Some(chunk) if resumes || chunk < expected.size => {
                self.send_in_chunks(&mut session, done, body, bookmark).await
            }
            _ => self.send_whole(&session, check, body).await,
        };
        match sent {
            Ok(()) => {
                bookmark.forget();
                Ok(Pushed::Stored)
            }
            Err(failure) if failure.may_pass() => Err(failure),
            Err(failure) => {
                bookmark.forget();
                self.abandon(&session).await;
                // What an earlier run left in it may not be what it should: without that it may go well.
                if resumes && failure.is_refusal() { Err(failure.passes()) } else { Err(failure) }
            }
        }
    }

    /// The session that the bookmark is in, with the check of what the registry has of it.
    async fn resumed(
        &self,
        check: &Verifier,
        body: &dyn Body,
        bookmark: &Bookmark,
    ) -> Result<Option<(Session, Verifier)>, Failure> {
        let Some(Upload { url, shortest_chunk, .. }) = bookmark.read() else { return Ok(None) };
        if let Ok(url) = self.client.remembered(&url).await {
            let mut session = Session { url, shortest_chunk };
            match self.reached(&session).await {
                // A session of more bytes than the blob has is not this blob's.
                Ok(Some((url, reached))) if (1..=check.expected().size).contains(&reached) => {
                    session.url = url;
                    return Ok(Some((session, checked_up_to(reached, check.clone(), body).await?)));
                }
                Ok(_) => {}
                // If it is the registry that fails, another session would fare no better.
                Err(failure) if self.client.is_own(&session.url) => return Err(failure),
                Err(_) => {}
            }
        }
        bookmark.forget();
        Ok(None)
    }

    async fn send_whole(&self, session: &Session, check: &Verifier, body: &dyn Body) -> Result<(), Failure> {
        let expected = check.expected();
        self.finish(session, expected, Some(&Part::new(check.clone(), body, expected.size))).await
    }

    /// Sends all chunks behind those that are `done`, and goes on where the registry is after one that failed. An
    /// error that may pass calls for another attempt.
    async fn send_in_chunks(
        &self,
        session: &mut Session,
        done: Verifier,
        body: &dyn Body,
        bookmark: &Bookmark,
    ) -> Result<(), Failure> {
        let (expected, start) = (done.expected().clone(), done.restarted());
        let mut verifier = done;
        let (mut pauses, mut furthest) = (self.client.pauses().build(), verifier.seen());
        while verifier.seen() < expected.size {
            let before = verifier.seen();
            let Some(chunk) = self.pace.chunk(session.shortest_chunk) else {
                bookmark.forget();
                return Err(self.takes_no_chunks(session).await);
            };
            bookmark.keep(session.kept(before));
            let part = Part::new(verifier.clone(), body, before.saturating_add(chunk).min(expected.size));
            let reached = match self.patch(session, before, &part).await {
                Ok(Patched::Reached(reached)) => reached,
                Ok(Patched::Refused) => {
                    bookmark.forget();
                    return Err(self.takes_no_chunks(session).await);
                }
                Err(failure) if !failure.may_pass() => return Err(failure),
                Err(failure) => {
                    let Some(pause) = pauses.next() else { return Err(failure) };
                    tokio::time::sleep(failure.after().unwrap_or_default() + pause).await;
                    match self.client.persist(|| self.reached(session)).await? {
                        // A session of more bytes than the blob has is not this blob's.
                        Some((url, reached)) if reached <= expected.size => {
                            session.url = url;
                            reached
                        }
                        _ => {
                            bookmark.forget();
                            return Err(failure);
                        }
                    }
                }
            };
            verifier = match part.after() {
                Some(after) if after.seen() == reached => after,
                _ => checked_up_to(reached, start.clone(), body).await?,
            };
            // A registry that keeps losing what it took is not asked for ever.
            if reached > furthest {
                (pauses, furthest) = (self.client.pauses().build(), reached);
            }
        }
        verifier.finish()?;
        bookmark.keep(session.kept(expected.size));
        self.finish(session, &expected, None).await
    }
}

/// `check`, which has seen nothing, of the first `offset` bytes of `body`.
async fn checked_up_to(offset: u64, mut check: Verifier, body: &dyn Body) -> Result<Verifier> {
    read_up_to(offset, &mut check, body).await?;
    Ok(check)
}

/// Takes the bytes of `body` up to `offset` into `check`.
async fn read_up_to(offset: u64, check: &mut Verifier, body: &dyn Body) -> Result<()> {
    if check.seen() == offset {
        return Ok(());
    }
    let mut chunks = body.open(check.seen()..offset).await?;
    while let Some(chunk) = chunks.try_next().await? {
        check.update(&chunk)?;
    }
    // A source that is shorter than its descriptor says.
    if check.seen() < offset { check.clone().finish() } else { Ok(()) }
}
