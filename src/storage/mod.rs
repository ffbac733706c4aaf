//! The seam between the local store and a registry: small traits, the one verifying reader, and an
//! implementation in memory that shows what the traits promise.

#[doc(hidden)]
pub mod conformance;
mod coverage;
mod memory;
mod unfinished;
mod verify;

use std::future::{Future, ready};
use std::ops::Range;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::BoxFuture;

pub use coverage::Coverage;
pub use memory::Memory;
pub use unfinished::{Claim, Unfinished, Upload};
pub use verify::{Verifier, VerifyReader};

use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest, Reference};

/// Bytes as they arrive.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

/// How content can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// From its beginning: a range costs what is before it as well.
    InOrder,
    /// In any range, and as many of them at once.
    Anywhere(usize),
}

/// Content that can be opened again, all of it or a range, so that a transfer can be repeated.
pub trait Body: Send + Sync {
    /// The bytes from offset `bytes.start` to before `bytes.end`: fewer when the content ends before, never more.
    fn open(&self, bytes: Range<u64>) -> BoxFuture<'_, Result<ByteStream>>;

    /// Whether it is known to be right, so that it need not be hashed by one who sends it to somebody who does.
    fn is_vouched_for(&self) -> bool {
        false
    }

    /// How it can be read, as far as that is known after what was opened so far.
    fn reading(&self) -> Reading {
        Reading::Anywhere(1)
    }
}

/// How a push ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// The bytes were sent and are there now.
    Stored,
    /// The content was there before.
    AlreadyPresent,
    /// The registry linked the content from another of its repositories.
    Mounted,
}

/// A place content can be read from, by digest.
pub trait Fetch: Send + Sync {
    /// Whether the content is there, so that a transfer can be skipped. A store answers after it has
    /// read the content, a registry from a HEAD request, which is no reason to trust the bytes.
    fn exists(&self, target: &Descriptor) -> impl Future<Output = Result<bool>> + Send;

    /// The content from offset `bytes.start` to before `bytes.end`, and no more of it; `None` when it is not
    /// there. The bytes are not verified: whoever keeps them passes them through a [`Verifier`].
    ///
    /// # Errors
    /// [`ErrorKind::Unexpected`] when `target` has no such bytes.
    fn fetch(&self, target: &Descriptor, bytes: Range<u64>) -> impl Future<Output = Result<Option<ByteStream>>> + Send;

    /// Whether the content is known to be right, without a look at its bytes: as far as that can be known.
    fn vouches(&self, _target: &Descriptor) -> impl Future<Output = Result<bool>> + Send {
        ready(Ok(false))
    }

    /// How content can be read here, as far as that is known after what was fetched so far.
    fn reading(&self) -> Reading {
        Reading::Anywhere(1)
    }
}

/// Fails unless `target` has all of `bytes`.
pub(crate) fn require_within(target: &Descriptor, bytes: &Range<u64>) -> Result<()> {
    if bytes.start <= bytes.end && bytes.end <= target.size {
        return Ok(());
    }
    let message = format!("The content of `{}` has no bytes {} to {}", target.digest, bytes.start, bytes.end);
    Err(Error::new(ErrorKind::Unexpected, message))
}

/// A place content can be written to.
pub trait Push: Fetch {
    /// Stores `body` as `expected`, or fails and shows nothing of it; what has arrived may be kept for another
    /// push to go on with. Bytes that do not match `expected` are [`crate::ErrorKind::Corrupt`] and are never
    /// visible under its digest.
    fn push(&self, expected: &Descriptor, body: &dyn Body) -> impl Future<Output = Result<Pushed>> + Send;
}

/// Names that point at manifests.
pub trait Refs: Send + Sync {
    /// The manifest that `reference` names, with its exact bytes; `None` when there is none.
    fn resolve(&self, reference: &Reference) -> impl Future<Output = Result<Option<(Descriptor, Bytes)>>> + Send;

    /// Makes `reference` point at `manifest`, whose blobs are all there already.
    fn tag(
        &self,
        reference: &Reference,
        target: &Descriptor,
        manifest: &Bytes,
    ) -> impl Future<Output = Result<()>> + Send;
}

/// A place that takes content before its digest is known.
pub trait Stage: Fetch {
    /// Content on its way.
    type Staged: Staged;

    /// Begins with no bytes. What is staged and dropped leaves no trace.
    fn stage(&self) -> impl Future<Output = Result<Self::Staged>> + Send;
}

/// Content that arrives in pieces and gets its name at its end.
pub trait Staged: Send + 'static {
    /// How many bytes it has.
    fn written(&self) -> u64;

    /// Writes `bytes` after those it has. When this fails it has as many as before; when it is given
    /// up under way, there is nothing to go on from.
    fn append(&mut self, bytes: Bytes) -> impl Future<Output = Result<()>> + Send;

    /// Stores what it has as the content of `digest`. Bytes that do not match are
    /// [`crate::ErrorKind::Corrupt`] and are gone.
    fn commit(self, digest: &Digest) -> impl Future<Output = Result<()>> + Send;
}

/// How the removal of content ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is gone.
    Removed,
    /// It was not there.
    Absent,
    /// A manifest that has a name needs it: it stays.
    Needed,
}

/// A place that things can be removed from.
pub trait Remove: Refs {
    /// Removes the name `reference`: a tag, or with a digest alone every name of that manifest in its
    /// repository. Says whether there was one. Content stays.
    fn untag(&self, reference: &Reference) -> impl Future<Output = Result<bool>> + Send;

    /// Removes the content of `digest`, unless a manifest that has a name needs it.
    fn remove(&self, digest: &Digest) -> impl Future<Output = Result<Removal>> + Send;
}

/// A place that can be asked as a registry is: for a digest without its size, for a name's tags.
pub trait Catalog: Fetch + Refs {
    /// The size in bytes of the content of `digest`; `None` when it is not there. As little evidence
    /// of the right bytes as [`Fetch::exists`].
    fn size_of(&self, digest: &Digest) -> impl Future<Output = Result<Option<u64>>> + Send;

    /// Every name, with or without a tag, and the manifest that it points at, in any order.
    fn names(&self) -> impl Future<Output = Result<Vec<(Reference, Descriptor)>>> + Send;
}
