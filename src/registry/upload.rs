//! One blob into one repository. A session is opened, the bytes are sent, and when the answer to the last
//! request is lost, the registry is asked whether it has the blob before any are sent again.
//!
//! A blob of one chunk goes with one PUT. A larger one goes in chunks, so that a connection that breaks
//! costs one of them: how far the session is, is the registry's word and never assumed. A registry that
//! takes no chunks gets the whole, and is not tried again.
//!
//! OCI distribution-spec v1.1.1, "Pushing blobs":
//! <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pushing-blobs>.

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
use crate::storage::{Body, Pushed, Verifier};
pub(super) use pace::Pace;
use session::{Patched, Session};

impl Repository {
    /// Sends `body` as the blob `expected`.
    pub(super) async fn upload(&self, expected: &Descriptor, body: &dyn Body) -> Result<Pushed> {
        let sent_before = AtomicBool::new(false);
        let outcome = self
            .client
            .persist(|| async {
                if sent_before.load(Ordering::Relaxed) && self.is_present(expected).await? {
                    return Ok(());
                }
                let mut session = self.begin().await?;
                sent_before.store(true, Ordering::Relaxed);
                let sent = match self.pace.chunk(session.shortest_chunk) {
                    Some(chunk) if chunk < expected.size => self.send_in_chunks(&mut session, expected, body).await,
                    _ => self.send_whole(&session, expected, body).await,
                };
                if sent.as_ref().is_err_and(|failure| !failure.may_pass()) {
                    self.abandon(&session).await;
                }
                sent
            })
            .await;
        match outcome {
            Err(failure) if failure.may_pass() && sent_before.into_inner() => {
                if self.is_present(expected).await.unwrap_or(false) { Ok(Pushed::Stored) } else { Err(failure.into()) }
            }
            outcome => Ok(outcome.map(|()| Pushed::Stored)?),
        }
    }

    async fn send_whole(&self, session: &Session, expected: &Descriptor, body: &dyn Body) -> Result<(), Failure> {
        self.finish(session, expected, Some(&Part::whole(expected, body))).await
    }

    /// Sends all chunks, and goes on where the registry is after one that failed. An error that may
    /// pass calls for another session.
    async fn send_in_chunks(
        &self,
        session: &mut Session,
        expected: &Descriptor,
        body: &dyn Body,
    ) -> Result<(), Failure> {
        let mut verifier = Verifier::new(expected);
        let (mut pauses, mut furthest) = (self.client.pauses().build(), 0);
        while verifier.seen() < expected.size {
            let before = verifier.seen();
            let Some(chunk) = self.pace.chunk(session.shortest_chunk) else {
                return Err(self.takes_no_chunks(session).await);
            };
            let part = Part::new(verifier.clone(), body, before.saturating_add(chunk).min(expected.size));
            let reached = match self.patch(session, before, &part).await {
                Ok(Patched::Reached(reached)) => reached,
                Ok(Patched::Refused) => return Err(self.takes_no_chunks(session).await),
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
                        _ => return Err(failure),
                    }
                }
            };
            verifier = match part.after() {
                Some(after) if after.seen() == reached => after,
                _ => checked_up_to(reached, expected, body).await?,
            };
            // A registry that keeps losing what it took is not asked for ever.
            if reached > furthest {
                (pauses, furthest) = (self.client.pauses().build(), reached);
            }
        }
        verifier.finish()?;
        self.finish(session, expected, None).await
    }
}

/// The check of the first `offset` bytes of `body`.
async fn checked_up_to(offset: u64, expected: &Descriptor, body: &dyn Body) -> Result<Verifier> {
    let mut verifier = Verifier::new(expected);
    if offset == 0 {
        return Ok(verifier);
    }
    let mut chunks = body.open(0).await?;
    while let Some(chunk) = chunks.try_next().await? {
        let left = usize::try_from(offset - verifier.seen()).unwrap_or(usize::MAX);
        verifier.update(&chunk[..chunk.len().min(left)])?;
        if verifier.seen() == offset {
            return Ok(verifier);
        }
    }
    // A source that is shorter than its descriptor says.
    verifier.clone().finish()?;
    Ok(verifier)
}
