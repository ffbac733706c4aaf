//! Whether a blob has to be hashed on its way out. Not when it is known to be right and the registry hashes it, too, which
//! a registry shows by refusing a few bytes under a digest that is not theirs. What it may say in words counts for
//! nothing, and one that takes them, or answers unclearly, gets no byte that was not hashed here.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;

use super::super::Repository;
use super::super::failure::Failure;
use super::super::outgoing::Part;
use super::session::Patched;
use crate::error::Result;
use crate::oci::{Algorithm, Descriptor, Digest, MediaType};
use crate::storage::{Body, ByteStream, Verifier};

/// What is shorter is hashed sooner than a registry is asked.
const WORTH_ASKING: u64 = 16 << 20;
/// What is sent to ask, under the digest of no bytes at all that anybody has.
const QUESTION: &[u8] = b"kiln asks whether this registry checks digests";

/// Bytes in memory.
struct Bare(&'static [u8]);

impl Body for Bare {
    fn open(&self, bytes: std::ops::Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        let part = self.0.get(bytes.start as usize..bytes.end as usize).unwrap_or_default();
        Box::pin(async move { Ok(Box::pin(stream::iter([Ok(Bytes::from_static(part))])) as ByteStream) })
    }
}

impl Repository {
    /// The check of `body` on its way out as `expected`.
    pub(super) async fn check_of(&self, expected: &Descriptor, body: &dyn Body) -> Verifier {
        let may_be = body.is_vouched_for()
            // Behind Ollama's registry there is a storage that knows no digest, and one that is asked for another algorithm
            // may hash by its own.
            && self.parts.is_none()
            && expected.digest.algorithm() == Algorithm::Sha256;
        let is_checked = match self.checks_digests.get() {
            Some(known) => may_be && *known,
            None if may_be && expected.size >= WORTH_ASKING => {
                *self.checks_digests.get_or_init(|| self.refuses_other_bytes()).await
            }
            None => false,
        };
        if is_checked { Verifier::of_size(expected) } else { Verifier::new(expected) }
    }

    /// Whether it refuses bytes under the digest of others, sent as a blob is sent.
    async fn refuses_other_bytes(&self) -> bool {
        // Once more, as a whole, where it takes no chunks.
        let mut answer = self.answer_to_other_bytes().await;
        if answer.as_ref().is_err_and(Failure::may_pass) {
            answer = self.answer_to_other_bytes().await;
        }
        answer.is_err_and(|failure| failure.has_code("DIGEST_INVALID"))
    }

    async fn answer_to_other_bytes(&self) -> Result<(), Failure> {
        let other = Digest::of(&[QUESTION, b"?"].concat());
        let claimed = Descriptor::new(MediaType::KILN_FILE, other, QUESTION.len() as u64);
        let mut session = self.begin().await?;
        let part = Part::new(Verifier::of_size(&claimed), &Bare(QUESTION), claimed.size);
        let answer = match self.pace.chunk(session.shortest_chunk) {
            Some(_) => match self.patch(&mut session, 0, &part).await {
                Ok(Patched::Reached(_)) => self.finish(&session, &claimed, None).await,
                Ok(Patched::Refused) => return Err(self.takes_no_chunks(&session).await),
                Err(failure) => Err(failure),
            },
            None => self.finish(&session, &claimed, Some(&part)).await,
        };
        if answer.is_err() {
            self.abandon(&session).await;
        }
        answer
    }
}
