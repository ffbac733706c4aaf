//! The laws that every place keeps which implements [`Push`] and [`Refs`]: memory, the local store, a
//! registry; and those of a place that can be served as one. Each law is a function over a place;
//! [`uphold`] and [`uphold_served`] run them all and name the broken one.
//! A place is given empty, and every law uses content of its own. Every function fails with
//! [`ErrorKind::Unexpected`] and a sentence that begins with "But", or with the place's own error.

use std::ops::Range;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, future, stream};

use super::{Body, ByteStream, Catalog, Push, Pushed, Refs, Removal, Remove, Stage, Staged};
use crate::error::{Error, ErrorKind, Result};
use crate::json;
use crate::oci::{Algorithm, Descriptor, Digest, Index, Manifest, MediaType, Reference};

/// Runs every law over `place`, whose references are `repository` and a tag.
///
/// # Errors
/// [`ErrorKind::Unexpected`] naming the broken law, caused by what happened instead.
pub async fn uphold<T: Push + Refs>(place: &T, repository: &str) -> Result<()> {
    named("what was pushed is there", what_was_pushed_is_there(place).await)?;
    named("content is read in any range", content_is_read_in_any_range(place).await)?;
    named("empty content is content", empty_content_is_content(place).await)?;
    named("pushing again changes nothing", pushing_again_changes_nothing(place).await)?;
    named("other bytes are corrupt and leave nothing", other_bytes_leave_nothing(place).await)?;
    named("a body that fails leaves nothing", a_failing_body_leaves_nothing(place).await)?;
    named("a failed push can be repeated", a_failed_push_can_be_repeated(place).await)?;
    named("an absent name resolves to nothing", an_absent_name_resolves_to_nothing(place, repository).await)?;
    named("a tag resolves to its manifest", a_tag_resolves_to_its_manifest(place, repository).await)?;
    named("a tag can be moved", a_tag_can_be_moved(place, repository).await)?;
    named("a digest resolves with and without a tag", a_digest_resolves(place, repository).await)?;
    named("a manifest of other bytes is not tagged", other_bytes_are_not_tagged(place, repository).await)
}

/// Runs every further law of a place that can be served over `place`, as [`uphold`] does.
///
/// # Errors
/// As [`uphold`].
pub async fn uphold_served<T: Push + Catalog + Stage + Remove>(place: &T, repository: &str) -> Result<()> {
    named("what was staged is there, by either algorithm", what_was_staged_is_there(place).await)?;
    named("other bytes are not committed", other_bytes_are_not_committed(place).await)?;
    named("every name is listed", every_name_is_listed(place, repository).await)?;
    named("an index keeps its manifests", an_index_keeps_its_manifests(place, repository).await)?;
    named("a name that is removed is gone, and only it", a_removed_name_is_gone(place, repository).await)?;
    named("content that a name needs stays", needed_content_stays(place, repository).await)
}

fn named(law: &str, outcome: Result<()>) -> Result<()> {
    outcome.map_err(|cause| Error::new(ErrorKind::Unexpected, format!("Broken law: {law}")).caused_by(cause))
}

/// Content is absent before its push and there, byte for byte, after it.
pub async fn what_was_pushed_is_there<T: Push>(place: &T) -> Result<()> {
    let (target, bytes) = content("pushed");
    ensure(!place.exists(&target).await?, "it exists before the push")?;
    ensure(place.fetch(&target, 0..target.size).await?.is_none(), "it can be fetched before the push")?;
    ensure(place.push(&target, &bytes).await? == Pushed::Stored, "the push did not store it")?;
    ensure(place.exists(&target).await?, "it does not exist after the push")?;
    ensure(read(place, &target, 0..target.size).await? == Some(bytes), "it has other bytes after the push")
}

/// A fetch of a range gives its bytes and no more; of one that is not all in the content, an error.
pub async fn content_is_read_in_any_range<T: Push>(place: &T) -> Result<()> {
    let (target, bytes) = content("range");
    place.push(&target, &bytes).await?;
    let size = target.size;
    for range in [0..size, 0..1, 1..2, 7..7, 1..size, size / 2..size, size / 3..size / 2, size - 1..size, size..size] {
        let part = section(&bytes, &range);
        ensure(read(place, &target, range.clone()).await? == Some(part), &format!("other bytes in {range:?}"))?;
    }
    for range in [0..size + 1, size..size + 1, size + 1..size + 1] {
        let outcome = place.fetch(&target, range.clone()).await.err().map(|error| error.kind());
        ensure(outcome == Some(ErrorKind::Unexpected), &format!("{range:?} is not refused but {outcome:?}"))?;
    }
    Ok(())
}

/// Content of no bytes can be pushed and fetched.
pub async fn empty_content_is_content<T: Push>(place: &T) -> Result<()> {
    let target = Descriptor::of(MediaType::KILN_FILE, b"");
    place.push(&target, &Bytes::new()).await?;
    ensure(place.exists(&target).await?, "it does not exist")?;
    ensure(read(place, &target, 0..0).await? == Some(Bytes::new()), "it cannot be read")
}

/// The second push of the same content leaves it as it is. A store, which reads what it has, says that it
/// was there; a registry need not look: whoever wants to save the bytes asks [`super::Fetch::exists`] before.
pub async fn pushing_again_changes_nothing<T: Push>(place: &T) -> Result<()> {
    let (target, bytes) = content("again");
    place.push(&target, &bytes).await?;
    let again = place.push(&target, &bytes).await?;
    ensure(matches!(again, Pushed::AlreadyPresent | Pushed::Stored), &format!("it was {again:?}"))?;
    ensure(read(place, &target, 0..target.size).await? == Some(bytes), "its bytes changed")
}

/// Bytes that are fewer, more or others than promised are corrupt, and are not there afterwards.
pub async fn other_bytes_leave_nothing<T: Push>(place: &T) -> Result<()> {
    let (target, bytes) = content("other");
    let short = bytes.slice(1..);
    let long = Bytes::from([&bytes[..], b"x"].concat());
    let other = Bytes::from(vec![b'x'; bytes.len()]);
    for (what, wrong) in [("short", &short), ("long", &long), ("other", &other), ("no", &Bytes::new())] {
        match place.push(&target, &Unbounded(wrong.clone())).await {
            Ok(_) => ensure(false, &format!("{what} bytes were taken"))?,
            Err(cause) if cause.kind() == ErrorKind::Corrupt => {}
            Err(cause) => {
                let message = format!("But {what} bytes are not an error of kind `Corrupt` but `{:?}`", cause.kind());
                return Err(Error::new(ErrorKind::Unexpected, message).caused_by(cause));
            }
        }
        absent(place, &target, what).await?;
        let actual = Descriptor::of(MediaType::KILN_FILE, wrong);
        if actual.size > 0 {
            absent(place, &actual, what).await?;
        }
    }
    Ok(())
}

/// A body that cannot be opened, or fails on the way, fails the push and leaves nothing.
pub async fn a_failing_body_leaves_nothing<T: Push>(place: &T) -> Result<()> {
    let (target, bytes) = content("failing");
    for good in [None, Some(0), Some(bytes.len() / 2), Some(bytes.len() - 1)] {
        let body = Failing { bytes: bytes.clone(), good };
        ensure(place.push(&target, &body).await.is_err(), &format!("the push succeeded after {good:?} bytes"))?;
        absent(place, &target, "failing").await?;
    }
    Ok(())
}

/// What failed once can be pushed afterwards.
pub async fn a_failed_push_can_be_repeated<T: Push>(place: &T) -> Result<()> {
    let (target, bytes) = content("repeated");
    ensure(place.push(&target, &bytes.slice(1..)).await.is_err(), "short bytes were taken")?;
    ensure(place.push(&target, &bytes).await? == Pushed::Stored, "the right bytes were not stored")?;
    ensure(read(place, &target, 0..target.size).await? == Some(bytes), "it has other bytes")
}

/// A name nobody gave is `None`, not an error.
pub async fn an_absent_name_resolves_to_nothing<T: Refs>(place: &T, repository: &str) -> Result<()> {
    let digest = Digest::of(b"a manifest nobody pushed");
    for name in [format!("{repository}:absent"), format!("{repository}@{digest}")] {
        ensure(place.resolve(&name.parse()?).await?.is_none(), &format!("`{name}` resolves"))?;
    }
    Ok(())
}

/// A tag gives back the very bytes it was set with.
pub async fn a_tag_resolves_to_its_manifest<T: Push + Refs>(place: &T, repository: &str) -> Result<()> {
    let (target, manifest) = model(place, "tagged").await?;
    let reference: Reference = format!("{repository}:tagged").parse()?;
    place.tag(&reference, &target, &manifest).await?;
    resolves_to(place, &reference, &target, &manifest).await?;
    place.tag(&reference, &target, &manifest).await?;
    resolves_to(place, &reference, &target, &manifest).await
}

/// A tag set again points at the new manifest; another tag stays where it was.
pub async fn a_tag_can_be_moved<T: Push + Refs>(place: &T, repository: &str) -> Result<()> {
    let (first, first_bytes) = model(place, "first").await?;
    let (second, second_bytes) = model(place, "second").await?;
    let moved: Reference = format!("{repository}:moved").parse()?;
    let stays: Reference = format!("{repository}:stays").parse()?;
    place.tag(&moved, &first, &first_bytes).await?;
    place.tag(&stays, &first, &first_bytes).await?;
    place.tag(&moved, &second, &second_bytes).await?;
    resolves_to(place, &moved, &second, &second_bytes).await?;
    resolves_to(place, &stays, &first, &first_bytes).await
}

/// A manifest is found by its digest, whether it has a tag or not.
pub async fn a_digest_resolves<T: Push + Refs>(place: &T, repository: &str) -> Result<()> {
    let (target, manifest) = model(place, "pinned").await?;
    place.tag(&format!("{repository}:pinned").parse()?, &target, &manifest).await?;
    let by_digest: Reference = format!("{repository}@{}", target.digest).parse()?;
    resolves_to(place, &by_digest, &target, &manifest).await?;

    let (untagged, manifest) = model(place, "untagged").await?;
    let by_digest: Reference = format!("{repository}@{}", untagged.digest).parse()?;
    place.tag(&by_digest, &untagged, &manifest).await?;
    resolves_to(place, &by_digest, &untagged, &manifest).await
}

/// A manifest that is not what its descriptor says is corrupt, and the tag stays unset.
pub async fn other_bytes_are_not_tagged<T: Push + Refs>(place: &T, repository: &str) -> Result<()> {
    let (target, manifest) = model(place, "mistagged").await?;
    let reference: Reference = format!("{repository}:mistagged").parse()?;
    let longer = Bytes::from([&manifest[..], b"\n"].concat());
    match place.tag(&reference, &target, &longer).await {
        Err(cause) if cause.kind() == ErrorKind::Corrupt => {}
        outcome => return Err(Error::new(ErrorKind::Unexpected, format!("But it is not corrupt: {outcome:?}"))),
    }
    ensure(place.resolve(&reference).await?.is_none(), "the tag resolves")
}

/// Content that came in pieces is there when its digest was given, whatever the algorithm.
pub async fn what_was_staged_is_there<T: Catalog + Push + Stage>(place: &T) -> Result<()> {
    for algorithm in Algorithm::ALL {
        let (_, bytes) = content(algorithm.as_str());
        let target = Descriptor::new(MediaType::KILN_FILE, algorithm.digest(&bytes), bytes.len() as u64);
        let mut staged = place.stage().await?;
        for piece in [&bytes[..1], &bytes[1..100_000], &bytes[100_000..]] {
            staged.append(Bytes::copy_from_slice(piece)).await?;
        }
        ensure(staged.written() == target.size, "it has another number of bytes")?;
        ensure(place.size_of(&target.digest).await?.is_none(), "it is there before its end")?;
        staged.commit(&target.digest).await?;
        ensure(place.size_of(&target.digest).await? == Some(target.size), "it is not there after its end")?;
        ensure(read(place, &target, 0..target.size).await? == Some(bytes), "it has other bytes")?;
    }
    let empty = Digest::of(b"");
    place.stage().await?.commit(&empty).await?;
    ensure(place.size_of(&empty).await? == Some(0), "empty content is not there")
}

/// Bytes of another digest are corrupt, and are not there afterwards.
pub async fn other_bytes_are_not_committed<T: Catalog + Stage>(place: &T) -> Result<()> {
    let (target, bytes) = content("miscommitted");
    for wrong in [bytes.slice(1..), Bytes::new()] {
        let mut staged = place.stage().await?;
        staged.append(wrong).await?;
        match staged.commit(&target.digest).await {
            Err(cause) if cause.kind() == ErrorKind::Corrupt => {}
            outcome => return Err(Error::new(ErrorKind::Unexpected, format!("But it is not corrupt: {outcome:?}"))),
        }
        ensure(place.size_of(&target.digest).await?.is_none(), "it is there")?;
    }
    Ok(())
}

/// A name is listed with its manifest, with a tag or without.
pub async fn every_name_is_listed<T: Push + Catalog>(place: &T, repository: &str) -> Result<()> {
    let (target, manifest) = model(place, "listed").await?;
    for name in [format!("{repository}:listed"), format!("{repository}@{}", target.digest)] {
        let reference: Reference = name.parse()?;
        place.tag(&reference, &target, &manifest).await?;
        ensure(place.names().await?.contains(&(reference, target.clone())), &format!("`{name}` is not listed"))?;
    }
    Ok(())
}

/// An index resolves as a manifest does, and what its manifests need is needed.
pub async fn an_index_keeps_its_manifests<T: Push + Catalog + Remove>(place: &T, repository: &str) -> Result<()> {
    let (child, manifest) = model(place, "indexed").await?;
    let layer = Digest::of(b"the weights of indexed");
    place.tag(&format!("{repository}@{}", child.digest).parse()?, &child, &manifest).await?;
    let (index, bytes) = index_of(&child);
    let reference: Reference = format!("{repository}:index").parse()?;
    place.tag(&reference, &index, &bytes).await?;
    resolves_to(place, &reference, &index, &bytes).await?;
    place.untag(&format!("{repository}@{}", child.digest).parse()?).await?;
    for needed in [&child.digest, &layer] {
        ensure(place.remove(needed).await? == Removal::Needed, "what the index needs was removed")?;
    }
    place.untag(&reference).await?;
    ensure(place.remove(&layer).await? == Removal::Removed, "what nothing needs stayed")
}

/// A tag that is removed is gone and another stays; a digest takes every name of its repository along.
pub async fn a_removed_name_is_gone<T: Push + Remove>(place: &T, repository: &str) -> Result<()> {
    let (target, manifest) = model(place, "removed").await?;
    let [first, second, third] = ["removed", "kept", "too"].map(|tag| format!("{repository}:{tag}"));
    let elsewhere: Reference = format!("{repository}/elsewhere:removed").parse()?;
    for name in [&first, &second, &third] {
        place.tag(&name.parse()?, &target, &manifest).await?;
    }
    place.tag(&elsewhere, &target, &manifest).await?;
    ensure(place.untag(&first.parse()?).await?, "the tag was not there")?;
    ensure(!place.untag(&first.parse()?).await?, "the tag is still there")?;
    ensure(place.resolve(&first.parse()?).await?.is_none(), "a tag that is removed resolves")?;
    resolves_to(place, &second.parse()?, &target, &manifest).await?;
    let by_digest: Reference = format!("{repository}@{}", target.digest).parse()?;
    ensure(place.untag(&by_digest).await?, "the manifest was not there")?;
    for name in [&second.parse()?, &third.parse()?, &by_digest] {
        ensure(place.resolve(name).await?.is_none(), &format!("`{name}` resolves"))?;
    }
    resolves_to(place, &elsewhere, &target, &manifest).await
}

/// Content goes when it is removed, but not while a manifest with a name needs it.
pub async fn needed_content_stays<T: Push + Catalog + Remove>(place: &T, repository: &str) -> Result<()> {
    let (free, bytes) = content("unneeded");
    place.push(&free, &bytes).await?;
    ensure(place.remove(&free.digest).await? == Removal::Removed, "what nothing needs stayed")?;
    ensure(place.size_of(&free.digest).await?.is_none(), "what was removed is there")?;
    ensure(place.remove(&free.digest).await? == Removal::Absent, "what was removed was there")?;

    let (target, manifest) = model(place, "needed").await?;
    let reference: Reference = format!("{repository}:needed").parse()?;
    let layer = Digest::of(b"the weights of needed");
    place.tag(&reference, &target, &manifest).await?;
    for needed in [&layer, &target.digest] {
        ensure(place.remove(needed).await? == Removal::Needed, "what a name needs was removed")?;
        ensure(place.size_of(needed).await?.is_some(), "what a name needs is gone")?;
    }
    place.untag(&reference).await?;
    ensure(place.remove(&layer).await? == Removal::Removed, "what nothing needs any more stayed")?;
    match place.tag(&reference, &target, &manifest).await {
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(()),
        outcome => Err(Error::new(ErrorKind::Unexpected, format!("But a blob is missing: {outcome:?}"))),
    }
}

fn ensure(holds: bool, otherwise: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::new(ErrorKind::Unexpected, format!("But {otherwise}"))) }
}

async fn absent<T: Push>(place: &T, target: &Descriptor, what: &str) -> Result<()> {
    ensure(!place.exists(target).await?, &format!("it exists after {what} bytes"))?;
    ensure(place.fetch(target, 0..target.size).await?.is_none(), &format!("it can be fetched after {what} bytes"))
}

async fn resolves_to<T: Refs>(place: &T, reference: &Reference, target: &Descriptor, manifest: &Bytes) -> Result<()> {
    let Some((found, bytes)) = place.resolve(reference).await? else {
        return Err(Error::new(ErrorKind::Unexpected, format!("But `{reference}` does not resolve")));
    };
    ensure(found == *target, &format!("`{reference}` resolves to {found:?}"))?;
    ensure(bytes == *manifest, &format!("`{reference}` has other bytes"))
}

async fn read<T: Push>(place: &T, target: &Descriptor, range: Range<u64>) -> Result<Option<Bytes>> {
    let Some(mut stream) = place.fetch(target, range).await? else { return Ok(None) };
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await.transpose()? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes.into()))
}

/// Content of its own for each law, longer than one chunk of any implementation.
fn content(law: &str) -> (Descriptor, Bytes) {
    let bytes = Bytes::from(format!("{law};").repeat(100_000));
    (Descriptor::of(MediaType::KILN_FILE, &bytes), bytes)
}

/// Pushes the blobs of a small model and gives its manifest.
async fn model<T: Push>(place: &T, law: &str) -> Result<(Descriptor, Bytes)> {
    let config = Bytes::from(format!(r#"{{"law":"{law}"}}"#));
    let layer = Bytes::from(format!("the weights of {law}"));
    let manifest = Manifest {
        schema_version: 2,
        media_type: MediaType::OCI_MANIFEST,
        artifact_type: None,
        config: Descriptor::of(MediaType::of("application/vnd.oci.image.config.v1+json"), &config),
        layers: vec![Descriptor::of(MediaType::KILN_FILE, &layer)],
        subject: None,
        annotations: Default::default(),
    };
    place.push(&manifest.config, &config).await?;
    place.push(&manifest.layers[0], &layer).await?;
    let bytes = json::to_canonical(&manifest);
    Ok((Descriptor::of(MediaType::OCI_MANIFEST, &bytes), bytes.into()))
}

/// An index of one manifest.
fn index_of(child: &Descriptor) -> (Descriptor, Bytes) {
    let bytes = json::to_canonical(&Index::of(vec![child.clone()]));
    (Descriptor::of(MediaType::OCI_INDEX, &bytes), bytes.into())
}

/// A body that fails after its first `good` bytes, or cannot be opened at all.
struct Failing {
    bytes: Bytes,
    good: Option<usize>,
}

impl Body for Failing {
    fn open(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        let failure = || Error::new(ErrorKind::Input, "The body failed");
        let opened = match self.good {
            None => Err(failure()),
            Some(good) => {
                let bytes = section(&self.bytes.slice(..good), &range);
                Ok(stream::iter([Ok(bytes), Err(failure())]).boxed())
            }
        };
        future::ready(opened).boxed()
    }
}

/// A body that gives all it has from an offset on, wherever it was asked to end.
struct Unbounded(Bytes);

impl Body for Unbounded {
    fn open(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        let rest = section(&self.0, &(range.start..u64::MAX));
        future::ready(Ok(stream::iter([Ok(rest)]).boxed())).boxed()
    }
}

/// The part of `bytes` that is in `range`.
fn section(bytes: &Bytes, range: &Range<u64>) -> Bytes {
    let within = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(within(range.start)..within(range.end))
}
