//! The one transfer: a model from one place to another. Blobs first, several at once, those that are
//! there already skipped; the tag last, so that nobody ever sees a model whose blobs are missing.
//! Push, pull and mirror are calls to [`copy`]; whoever keeps the bytes hashes them on the way in. A push
//! reads what it skips, too: no model is published from a store that has rotted.

mod plan;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

pub use plan::{CopyPlan, PlannedBlob, plan};

use crate::error::{Error, ErrorKind, Result, quoted};
use crate::oci::{Descriptor, Digest, Manifest, Reference};
use crate::progress::{Event, Progress};
use crate::storage::{Body, ByteStream, Coverage, Fetch, Push, Pushed, Reading, Refs, Verifier};

/// Which way a copy goes, for those who watch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the store to a registry.
    Push,
    /// From a registry to the store.
    Pull,
    /// From a registry to a registry.
    Mirror,
}

/// What a copy did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyReport {
    /// The digest of the manifest, the same on both sides.
    pub digest: Digest,
    /// How many blobs were sent.
    pub blobs_transferred: u64,
    /// How many bytes of them passed, each counted once: less than their sizes when some were there already.
    pub bytes_transferred: u64,
    /// How many blobs were there before.
    pub blobs_skipped: u64,
    /// How many blobs the destination linked from another of its repositories.
    pub blobs_mounted: u64,
}

/// Copies the model `from` in `source` to `to` in `destination`, at most `concurrency` blobs at once.
///
/// # Errors
/// [`ErrorKind::NotFound`] when the source lacks the model, or a registry one of its blobs;
/// [`ErrorKind::Corrupt`] when the bytes are not those of their digest, in which case the destination keeps
/// none of them, or when the store lacks a blob;
/// [`ErrorKind::Usage`] when `to` is pinned to another digest; else what the two places say.
pub async fn copy<S: Fetch + Refs, D: Push + Refs>(
    direction: Direction,
    source: &S,
    from: &Reference,
    destination: &D,
    to: &Reference,
    concurrency: usize,
    progress: &Progress,
) -> Result<CopyReport> {
    let (target, manifest) = resolve(source, from).await?;
    to.require_agreement(&target.digest)?;
    let blobs = distinct(Manifest::parse(&manifest)?.blobs(), progress)?;
    let bytes = blobs.iter().fold(0, |sum: u64, blob| sum.saturating_add(blob.descriptor.size));
    progress.report(Event::Started { task: direction.task(), blobs: blobs.len() as u64, bytes });

    let transfer = Transfer { direction, source, from, destination, concurrency, progress };
    let mut outcomes = transfer.blobs(&blobs).await?;
    match destination.tag(to, &target, &manifest).await {
        // A blob that was there a moment ago is gone, or was there only for HEAD: look again, once.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let repaired = transfer.blobs(&blobs).await?;
            outcomes.extend(repaired.into_iter().filter(|(_, pushed)| *pushed != Pushed::AlreadyPresent));
            destination.tag(to, &target, &manifest).await?;
        }
        tagged => tagged?,
    }
    let outcome = |blob: &Blob| outcomes.get(&blob.descriptor.digest).copied().unwrap_or(Pushed::AlreadyPresent);
    Ok(CopyReport::new(target.digest, blobs.iter().map(|blob| (blob.gauge.counts().passed.len(), outcome(blob)))))
}

/// Brings `blobs`, which are of the model `from` in `source`, to `destination`, and gives them no name.
///
/// # Errors
/// As [`copy`], for blobs.
pub async fn bring<S: Fetch, D: Push>(
    direction: Direction,
    source: &S,
    from: &Reference,
    blobs: impl IntoIterator<Item = &Descriptor>,
    destination: &D,
    concurrency: usize,
    progress: &Progress,
) -> Result<()> {
    let blobs = distinct(blobs, progress)?;
    Transfer { direction, source, from, destination, concurrency, progress }.blobs(&blobs).await.map(drop)
}

/// The manifest that `from` names, with bytes that are those of its digest.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is none, [`ErrorKind::Corrupt`] when its bytes are others.
pub async fn resolve<S: Refs>(source: &S, from: &Reference) -> Result<(Descriptor, Bytes)> {
    let found = source.resolve(from).await?;
    let (target, manifest) =
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("There is no model `{from}`")))?;
    for promised in std::iter::once(&target.digest).chain(from.digest()) {
        let actual = promised.algorithm().digest(&manifest);
        if actual != *promised {
            let message = format!("The manifest of `{from}` has the digest `{actual}` instead of `{promised}`");
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
    }
    Ok((target, manifest))
}

/// `descriptors` in their order, each once.
fn distinct<'a>(descriptors: impl IntoIterator<Item = &'a Descriptor>, progress: &Progress) -> Result<Vec<Blob>> {
    let mut sizes = BTreeMap::new();
    let mut blobs = Vec::new();
    for descriptor in descriptors {
        match sizes.insert(descriptor.digest, descriptor.size) {
            None => {
                let gauge = Gauge { counts: Mutex::default(), progress: progress.clone() };
                blobs.push(Blob { descriptor: descriptor.clone(), gauge: Arc::new(gauge) });
            }
            Some(size) if size == descriptor.size => {}
            Some(_) => {
                let message = format!("The manifest gives two sizes for `{}`", descriptor.digest);
                return Err(Error::new(ErrorKind::Corrupt, message));
            }
        }
    }
    Ok(blobs)
}

/// A blob to copy.
struct Blob {
    descriptor: Descriptor,
    gauge: Arc<Gauge>,
}

impl Blob {
    fn name(&self) -> String {
        self.descriptor.layer_name().map_or_else(|| self.descriptor.digest.to_string(), str::to_owned)
    }
}

/// How far a blob has got. Bytes that are sent a second time are not counted again.
struct Gauge {
    counts: Mutex<Counts>,
    progress: Progress,
}

#[derive(Default)]
struct Counts {
    passed: Coverage,
    reported: Coverage,
}

impl Gauge {
    /// `bytes` passed.
    fn pass(&self, bytes: Range<u64>) {
        self.count(|counts| {
            counts.passed.add(bytes.clone());
            counts.reported.add(bytes)
        });
    }

    /// All of the `size` bytes are there, whether they passed or not.
    fn complete(&self, size: u64) {
        self.count(|counts| counts.reported.add(0..size));
    }

    fn count(&self, count: impl FnOnce(&mut Counts) -> u64) {
        let new = count(&mut self.counts());
        if new > 0 {
            self.progress.advance(new);
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Transfer<'a, S, D> {
    direction: Direction,
    source: &'a S,
    from: &'a Reference,
    destination: &'a D,
    concurrency: usize,
    progress: &'a Progress,
}

impl<S: Fetch, D: Push> Transfer<'_, S, D> {
    /// Brings all `blobs` to the destination, or fails with the first that cannot be brought.
    async fn blobs(&self, blobs: &[Blob]) -> Result<BTreeMap<Digest, Pushed>> {
        // Collected, because a stream that holds the closure itself is not `Send` to the compiler.
        let transfers: Vec<_> = blobs.iter().map(|blob| self.reported(blob)).collect();
        stream::iter(transfers).buffer_unordered(self.concurrency.max(1)).try_collect().await
    }

    /// Brings one blob, and tells that it is there.
    async fn reported(&self, blob: &Blob) -> Result<(Digest, Pushed)> {
        let pushed = self.blob(blob).await?;
        blob.gauge.complete(blob.descriptor.size);
        self.progress.report(Event::Blob {
            name: blob.name(),
            digest: blob.descriptor.digest,
            size: blob.descriptor.size,
            outcome: self.direction.outcome(pushed),
        });
        Ok((blob.descriptor.digest, pushed))
    }

    async fn blob(&self, blob: &Blob) -> Result<Pushed> {
        self.brought(blob).await.map_err(|error| match error.kind() {
            ErrorKind::Corrupt => {
                let message = format!("{} of `{}` is not what its manifest promises", quoted(&blob.name()), self.from);
                let error = Error::new(ErrorKind::Corrupt, message).caused_by(error);
                match self.direction {
                    Direction::Push => error.hint(format!("`kiln verify {} --repair` brings it again", self.from)),
                    Direction::Pull | Direction::Mirror => error,
                }
            }
            _ => error,
        })
    }

    async fn brought(&self, blob: &Blob) -> Result<Pushed> {
        let missing = self.direction.missing();
        let mut body = SourceBody { source: self.source, from: self.from, blob, missing, is_vouched_for: false };
        let pushed = match self.destination.exists(&blob.descriptor).await? {
            true => Pushed::AlreadyPresent,
            false => {
                body.is_vouched_for = self.source.vouches(&blob.descriptor).await?;
                self.destination.push(&blob.descriptor, &body).await?
            }
        };
        // What rotted here is found by every push, also when the other side has a sound copy.
        if pushed != Pushed::Stored && self.direction == Direction::Push {
            read_to_end(&blob.descriptor, &body).await?;
        }
        Ok(pushed)
    }
}

/// Reads all of a blob that is not sent, and checks that it has the bytes its digest promises.
async fn read_to_end(target: &Descriptor, body: &dyn Body) -> Result<()> {
    let mut verifier = Verifier::new(target);
    let mut chunks = body.open(0..target.size).await?;
    while let Some(chunk) = chunks.try_next().await? {
        verifier.update(&chunk)?;
    }
    verifier.finish()
}

/// A blob of the source, as the body of a push: it opens again in any range.
struct SourceBody<'a, S> {
    source: &'a S,
    from: &'a Reference,
    blob: &'a Blob,
    /// What it means when it is not there.
    missing: ErrorKind,
    is_vouched_for: bool,
}

impl<S: Fetch> Body for SourceBody<'_, S> {
    fn open(&self, bytes: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        Box::pin(async move {
            let mut position = bytes.start;
            let chunks = self.source.fetch(&self.blob.descriptor, bytes).await?;
            let chunks = chunks.ok_or_else(|| {
                let message = format!("{} of `{}` is missing", quoted(&self.blob.name()), self.from);
                Error::new(self.missing, message)
            })?;
            let gauge = Arc::clone(&self.blob.gauge);
            Ok(Box::pin(chunks.inspect_ok(move |chunk| {
                let start = position;
                position += chunk.len() as u64;
                gauge.pass(start..position);
            })) as ByteStream)
        })
    }

    fn is_vouched_for(&self) -> bool {
        self.is_vouched_for
    }

    fn reading(&self) -> Reading {
        self.source.reading()
    }
}

impl Direction {
    fn task(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Pull => "pull",
            Self::Mirror => "copy",
        }
    }

    /// A store without a blob of its own model is damaged; a registry may never have had it.
    fn missing(self) -> ErrorKind {
        match self {
            Self::Push => ErrorKind::Corrupt,
            Self::Pull | Self::Mirror => ErrorKind::NotFound,
        }
    }

    fn outcome(self, pushed: Pushed) -> &'static str {
        match (pushed, self) {
            (Pushed::Stored, Self::Pull) => "fetched",
            (Pushed::Stored, Self::Push | Self::Mirror) => "sent",
            (Pushed::AlreadyPresent, _) => "present",
            (Pushed::Mounted, _) => "mounted",
        }
    }
}

impl CopyReport {
    /// Of blobs of which so many bytes passed.
    fn new(digest: Digest, outcomes: impl Iterator<Item = (u64, Pushed)>) -> Self {
        let mut report =
            Self { digest, blobs_transferred: 0, bytes_transferred: 0, blobs_skipped: 0, blobs_mounted: 0 };
        for (bytes, outcome) in outcomes {
            match outcome {
                Pushed::Stored => {
                    report.blobs_transferred += 1;
                    report.bytes_transferred = report.bytes_transferred.saturating_add(bytes);
                }
                Pushed::Mounted => report.blobs_mounted += 1,
                Pushed::AlreadyPresent => report.blobs_skipped += 1,
            }
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::oci::MediaType;

    /// A place in memory that keeps a diary. `hollow` digests are claimed to be there and are not.
    #[derive(Default)]
    struct Place {
        blobs: Mutex<BTreeMap<Digest, Bytes>>,
        names: Mutex<BTreeMap<String, (Descriptor, Bytes)>>,
        hollow: Mutex<Vec<Digest>>,
        diary: Mutex<Vec<String>>,
        opens: u64,
    }

    impl Place {
        fn write(&self, entry: String) {
            self.diary.lock().unwrap().push(entry);
        }

        fn keep(&self, content: &'static [u8]) -> Descriptor {
            let descriptor = Descriptor::of(MediaType::OLLAMA_TENSOR, content);
            self.blobs.lock().unwrap().insert(descriptor.digest, Bytes::from_static(content));
            descriptor
        }

        fn name(&self, name: &str, manifest: &Manifest) -> Descriptor {
            let bytes = Bytes::from(crate::json::to_canonical(manifest));
            let descriptor = Descriptor::of(MediaType::DOCKER_MANIFEST, &bytes);
            self.names.lock().unwrap().insert(reference(name).to_string(), (descriptor.clone(), bytes));
            descriptor
        }
    }

    impl Fetch for Place {
        async fn exists(&self, target: &Descriptor) -> Result<bool> {
            let claimed = self.hollow.lock().unwrap().contains(&target.digest);
            Ok(claimed || self.blobs.lock().unwrap().contains_key(&target.digest))
        }

        async fn fetch(&self, target: &Descriptor, range: Range<u64>) -> Result<Option<ByteStream>> {
            let blob = self.blobs.lock().unwrap().get(&target.digest).cloned();
            Ok(blob.map(|blob| {
                let part = blob.slice(range.start as usize..blob.len().min(range.end as usize));
                let bytes: Vec<_> = part.chunks(3).map(Bytes::copy_from_slice).map(Ok).collect();
                Box::pin(stream::iter(bytes)) as ByteStream
            }))
        }
    }

    impl Push for Place {
        async fn push(&self, expected: &Descriptor, body: &dyn Body) -> Result<Pushed> {
            let mut verifier = Verifier::new(expected);
            let mut bytes = Vec::new();
            for _ in 0..self.opens {
                body.open(0..expected.size).await?.try_next().await?;
            }
            let mut chunks = body.open(0..expected.size).await?;
            while let Some(chunk) = chunks.try_next().await? {
                verifier.update(&chunk)?;
                bytes.extend_from_slice(&chunk);
            }
            verifier.finish()?;
            self.write(format!("blob {}", String::from_utf8_lossy(&bytes)));
            self.blobs.lock().unwrap().insert(expected.digest, bytes.into());
            Ok(Pushed::Stored)
        }
    }

    impl Refs for Place {
        async fn resolve(&self, reference: &Reference) -> Result<Option<(Descriptor, Bytes)>> {
            Ok(self.names.lock().unwrap().get(&reference.to_string()).cloned())
        }

        async fn tag(&self, reference: &Reference, target: &Descriptor, manifest: &Bytes) -> Result<()> {
            let hollow = std::mem::take(&mut *self.hollow.lock().unwrap());
            if !hollow.is_empty() {
                return Err(Error::new(ErrorKind::NotFound, "A blob is unknown"));
            }
            self.write(format!("tag {reference}"));
            self.names.lock().unwrap().insert(reference.to_string(), (target.clone(), manifest.clone()));
            Ok(())
        }
    }

    fn reference(name: &str) -> Reference {
        name.parse().unwrap()
    }

    fn manifest(config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
        Manifest {
            schema_version: 2,
            media_type: MediaType::DOCKER_MANIFEST,
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// A source with the model `a`: config `{}`, layers `one`, `three` and, once more, `one`.
    fn source() -> (Place, Descriptor) {
        let place = Place::default();
        let one = place.keep(b"one").named("first");
        let layers = vec![one.clone(), place.keep(b"three"), one.named("again")];
        let target = place.name("a", &manifest(place.keep(b"{}"), layers));
        (place, target)
    }

    async fn push(source: &Place, destination: &Place, to: &str, progress: &Progress) -> Result<CopyReport> {
        let (from, to) = (reference("a"), reference(to));
        // As on a runtime with threads: the whole transfer has to be `Send`.
        fn spawnable<T: Send>(future: T) -> T {
            future
        }
        spawnable(copy(Direction::Push, source, &from, destination, &to, 1, progress)).await
    }

    #[tokio::test]
    async fn blobs_come_first_each_once_and_the_tag_last() {
        let ((source, target), destination) = (source(), Place::default());
        let report = push(&source, &destination, "b", &Progress::silent()).await.unwrap();
        assert_eq!(*destination.diary.lock().unwrap(), ["blob {}", "blob one", "blob three", "tag b:latest"]);
        let expected = CopyReport {
            digest: target.digest,
            blobs_transferred: 3,
            bytes_transferred: 10,
            blobs_skipped: 0,
            blobs_mounted: 0,
        };
        assert_eq!(report, expected);
        let again = push(&source, &destination, "b", &Progress::silent()).await.unwrap();
        assert_eq!((again.blobs_transferred, again.bytes_transferred, again.blobs_skipped), (0, 0, 3));
    }

    #[tokio::test]
    async fn progress_adds_up_however_often_a_blob_is_sent() {
        let (source, _) = source();
        let destination = Place { opens: 2, ..Place::default() };
        destination.keep(b"three");
        let events = Arc::new(Mutex::new((0, 0, Vec::new())));
        let seen = Arc::clone(&events);
        let progress = Progress::new(move |event| {
            let mut seen = seen.lock().unwrap();
            match event {
                Event::Started { task, blobs, bytes } => {
                    assert_eq!((task, blobs), ("push", 3));
                    seen.0 = bytes;
                }
                Event::Advanced { bytes } => seen.1 += bytes,
                Event::Blob { name, outcome, .. } => seen.2.push(format!("{name} {outcome}")),
                Event::Note { .. } => {}
            }
        });
        push(&source, &destination, "b", &progress).await.unwrap();
        let (announced, advanced, blobs) = &*events.lock().unwrap();
        assert_eq!((announced, advanced), (&10, &10));
        let (config, three) = (Digest::of(b"{}"), Digest::of(b"three"));
        assert_eq!(*blobs, [format!("{config} sent"), "first sent".to_owned(), format!("{three} present")]);
    }

    #[tokio::test]
    async fn a_blob_that_only_seemed_to_be_there_is_sent_after_all() {
        let ((source, _), destination) = (source(), Place::default());
        destination.hollow.lock().unwrap().push(Digest::of(b"three"));
        let report = push(&source, &destination, "b", &Progress::silent()).await.unwrap();
        assert_eq!(*destination.diary.lock().unwrap(), ["blob {}", "blob one", "blob three", "tag b:latest"]);
        assert_eq!((report.blobs_transferred, report.blobs_skipped), (3, 0));
    }

    #[tokio::test]
    async fn what_is_wrong_leaves_no_tag() {
        type Damage = fn(&Place);
        let damages: [(Damage, ErrorKind, &str); 5] = [
            (
                |place| drop(place.blobs.lock().unwrap().insert(Digest::of(b"three"), Bytes::from_static(b"thrEe"))),
                ErrorKind::Corrupt,
                "of `a:latest` is not what its manifest promises",
            ),
            (
                |place| drop(place.blobs.lock().unwrap().remove(&Digest::of(b"three"))),
                ErrorKind::Corrupt,
                "of `a:latest` is not what its manifest promises",
            ),
            (|place| place.names.lock().unwrap().clear(), ErrorKind::NotFound, "There is no model `a:latest`"),
            (
                |place| {
                    let mut names = place.names.lock().unwrap();
                    names.values_mut().for_each(|(target, _)| target.digest = Digest::of(b""));
                },
                ErrorKind::Corrupt,
                "The manifest of `a:latest` has the digest",
            ),
            (
                |place| {
                    let mut liar = place.keep(b"one");
                    liar.size += 1;
                    place.name("a", &manifest(place.keep(b"one"), vec![liar]));
                },
                ErrorKind::Corrupt,
                "The manifest gives two sizes",
            ),
        ];
        for (damage, kind, says) in damages {
            let ((source, _), destination) = (source(), Place::default());
            damage(&source);
            let error = push(&source, &destination, "b", &Progress::silent()).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(says), "{error}");
            assert!(destination.names.lock().unwrap().is_empty());
            assert!(!destination.blobs.lock().unwrap().contains_key(&Digest::of(b"three")));
        }
    }

    #[tokio::test]
    async fn a_push_finds_what_is_damaged_though_the_other_side_has_it() {
        for damaged in ["thrEe", "thre"] {
            let ((source, _), destination) = (source(), Place::default());
            push(&source, &destination, "b", &Progress::silent()).await.unwrap();
            source.blobs.lock().unwrap().insert(Digest::of(b"three"), damaged.into());
            let error = push(&source, &destination, "c", &Progress::silent()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(!destination.names.lock().unwrap().contains_key("c:latest"));
        }
    }

    #[tokio::test]
    async fn a_pinned_destination_takes_only_its_own_digest() {
        let ((source, target), destination) = (source(), Place::default());
        let error =
            push(&source, &destination, &format!("b@{}", Digest::of(b"")), &Progress::silent()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(destination.diary.lock().unwrap().is_empty());
        push(&source, &destination, &format!("b@{}", target.digest), &Progress::silent()).await.unwrap();
    }
}
