//! What a copy would do, found out by looking only.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{CopyReport, Direction, distinct, resolve};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest, Manifest, Reference};
use crate::progress::Progress;
use crate::storage::{Fetch, Pushed, Refs};

/// What a copy would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyPlan {
    /// The digest of the manifest.
    pub digest: Digest,
    /// The digest of the manifest that has the name in the destination now.
    pub replaces: Option<Digest>,
    /// The blobs in the manifest's order, each once.
    pub blobs: Vec<PlannedBlob>,
}

/// What a copy would do with one blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedBlob {
    /// The blob.
    pub descriptor: Descriptor,
    /// How its push would end.
    pub pushed: Pushed,
}

impl CopyPlan {
    /// What the copy would report.
    pub fn report(&self) -> CopyReport {
        let outcomes = self.blobs.iter().map(|blob| (blob.descriptor.size, blob.pushed));
        CopyReport::new(self.digest, outcomes)
    }
}

impl PlannedBlob {
    /// The word for what would be done, as the events of a copy in `direction` have it.
    pub fn outcome(&self, direction: Direction) -> &'static str {
        direction.outcome(self.pushed)
    }
}

/// What [`super::copy`] would do. Nothing is written, and no blob of the source is read.
///
/// # Errors
/// As [`super::copy`], as far as it is seen from the manifest.
pub async fn plan<S: Refs, D: Fetch + Refs>(
    source: &S,
    from: &Reference,
    destination: &D,
    to: &Reference,
    concurrency: usize,
) -> Result<CopyPlan> {
    let (target, manifest) = resolve(source, from).await?;
    to.require_agreement(&target.digest)?;
    let blobs = distinct(Manifest::parse(&manifest)?.blobs(), &Progress::silent())?;
    let replaces = match destination.resolve(to).await {
        // A push puts another one in its place.
        Err(damaged) if damaged.kind() == ErrorKind::Corrupt => None,
        replaced => replaced?.map(|(target, _)| target.digest),
    };
    let looks: Vec<_> = blobs
        .into_iter()
        .map(|blob| async move {
            let there = destination.exists(&blob.descriptor).await?;
            let pushed = if there { Pushed::AlreadyPresent } else { Pushed::Stored };
            Ok::<_, Error>(PlannedBlob { descriptor: blob.descriptor, pushed })
        })
        .collect();
    let blobs = stream::iter(looks).buffered(concurrency.max(1)).try_collect().await?;
    Ok(CopyPlan { digest: target.digest, replaces, blobs })
}
