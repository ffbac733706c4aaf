//! Attaching to a manifest in a registry: notes, signatures, attestations. What is attached names its subject, so that
//! whoever has that finds it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use super::transfer::Access;
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::json;
use crate::manifest::{EMPTY, artifact, empty};
use crate::oci::{Descriptor, Digest, Hasher, MediaType, Reference, Referrer};
use crate::progress::{Event, Progress};
use crate::registry::Remote;
use crate::storage::{Body, ByteStream, Fetch as _, Push as _, Pushed, Refs as _};

/// How much is read from a file at once.
const CHUNK: usize = 256 << 10;

/// What is attached.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// What kind of thing it is, for those who look for one kind.
    pub artifact_type: MediaType,
    /// Its content, in order; there may be none.
    pub blobs: Vec<Blob>,
    /// What its manifest says besides.
    pub annotations: BTreeMap<String, String>,
}

/// One content of an [`Artifact`].
#[derive(Clone, Debug)]
pub struct Blob {
    descriptor: Descriptor,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Bytes(Bytes),
    File(PathBuf),
}

/// What came of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The digest of the artifact's manifest.
    pub digest: Digest,
    /// That of the manifest it refers to.
    pub subject: Digest,
    /// How many blobs were sent.
    pub blobs_sent: u64,
    /// Their sizes in bytes.
    pub bytes_sent: u64,
    /// How many blobs were there before.
    pub blobs_skipped: u64,
}

impl Blob {
    /// Content in memory.
    pub fn bytes(media_type: MediaType, content: Bytes) -> Self {
        Self { descriptor: Descriptor::of(media_type, &content), content: Content::Bytes(content) }
    }

    /// The same with an annotation.
    #[must_use]
    pub fn annotated(mut self, key: &str, value: &str) -> Self {
        self.descriptor.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The content of a file, which has to stay as it is until it is attached. The blob has the file's name.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] when the file cannot be read, or has no name in UTF-8.
    pub fn file(media_type: MediaType, path: &Path) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
            Error::input(format!("A file needs a name to be attached: {}", quoted(&path.to_string_lossy())))
        })?;
        let mut hashed = Hashed::default();
        let mut file = std::fs::File::open(path).map_err(unreadable(path))?;
        let size = io::copy(&mut file, &mut hashed).map_err(unreadable(path))?;
        let mut descriptor = Descriptor::new(media_type, hashed.0.finish(), size);
        descriptor.annotations.insert(Descriptor::TITLE.to_owned(), name.to_owned());
        Ok(Self { descriptor, content: Content::File(path.to_owned()) })
    }

    /// What a manifest says of it.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }
}

impl Body for Blob {
    fn open(&self, bytes: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        Box::pin(async move {
            match &self.content {
                Content::Bytes(content) => content.open(bytes).await,
                Content::File(path) => {
                    let mut file = tokio::fs::File::open(path).await.map_err(unreadable(path))?;
                    file.seek(SeekFrom::Start(bytes.start)).await.map_err(unreadable(path))?;
                    let part = file.take(bytes.end.saturating_sub(bytes.start));
                    let chunks = ReaderStream::with_capacity(part, CHUNK);
                    let unreadable = unreadable(path);
                    Ok(Box::pin(chunks.map(move |chunk| chunk.map_err(&unreadable))) as ByteStream)
                }
            }
        })
    }
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |cause| Error::io(ErrorKind::Input, "read", &path, cause)
}

/// Hashes what is written to it.
#[derive(Default)]
struct Hashed(Hasher);

impl io::Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Attaches `artifact` to the manifest that `subject` names in its registry. The same artifact gives the same manifest:
/// to attach it again changes nothing.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is no `subject`, [`ErrorKind::Usage`] when two files of the artifact have one
/// name, [`ErrorKind::Corrupt`] when a file has changed meanwhile, [`ErrorKind::Unauthorized`] and
/// [`ErrorKind::Registry`] for the other side.
pub async fn attach(
    subject: &Reference,
    artifact: &Artifact,
    access: &Access,
    progress: &Progress,
) -> Result<Attached> {
    require_distinct_names(&artifact.blobs)?;
    let remote = Remote::new(subject, access.keychain.clone(), &access.options)?;
    let target = resolve(&remote, subject).await?;
    let layers = artifact.blobs.iter().map(|blob| blob.descriptor.clone()).collect();
    let manifest = self::artifact(artifact.artifact_type.clone(), layers, &target, artifact.annotations.clone());
    let bytes = Bytes::from(json::to_canonical(&manifest));
    let descriptor = Descriptor::of(MediaType::OCI_MANIFEST, &bytes);

    let config = Blob { descriptor: empty(), content: Content::Bytes(Bytes::from_static(EMPTY)) };
    let mut seen = BTreeSet::new();
    let blobs: Vec<&Blob> =
        artifact.blobs.iter().chain([&config]).filter(|blob| seen.insert(blob.descriptor.digest)).collect();
    let total = blobs.iter().map(|blob| blob.descriptor.size).sum();
    progress.report(Event::Started { task: "attach", blobs: blobs.len() as u64, bytes: total });
    let mut attached =
        Attached { digest: descriptor.digest, subject: target.digest, blobs_sent: 0, bytes_sent: 0, blobs_skipped: 0 };
    for blob in blobs {
        let Descriptor { digest, size, .. } = blob.descriptor;
        let pushed = match remote.exists(&blob.descriptor).await? {
            true => Pushed::AlreadyPresent,
            false => remote.push(&blob.descriptor, blob).await?,
        };
        let outcome = if pushed == Pushed::Stored { "sent" } else { "present" };
        match pushed {
            Pushed::Stored => {
                attached.blobs_sent += 1;
                attached.bytes_sent += size;
            }
            Pushed::AlreadyPresent | Pushed::Mounted => attached.blobs_skipped += 1,
        }
        progress.advance(size);
        let name = blob.descriptor.layer_name().map_or_else(|| digest.to_string(), str::to_owned);
        progress.report(Event::Blob { name, digest, size, outcome });
    }
    remote.push(&descriptor, &Blob { descriptor: descriptor.clone(), content: Content::Bytes(bytes) }).await?;
    Ok(attached)
}

/// What refers to a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrers {
    /// The manifest's digest.
    pub subject: Digest,
    /// What refers to it, in the order of digests.
    pub referrers: Vec<Referrer>,
}

/// What refers to the manifest that `subject` names in its registry, of one type or of all. A digest is enough: its
/// manifest does not have to be there.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is no such tag, otherwise as [`Remote::referrers`].
pub async fn referrers(subject: &Reference, artifact_type: Option<&MediaType>, access: &Access) -> Result<Referrers> {
    let remote = Remote::new(subject, access.keychain.clone(), &access.options)?;
    let digest = match subject.digest() {
        Some(digest) => *digest,
        None => resolve(&remote, subject).await?.digest,
    };
    let referrers = remote.referrers(&digest, artifact_type).await?;
    Ok(Referrers { subject: digest, referrers })
}

async fn resolve(remote: &Remote, reference: &Reference) -> Result<Descriptor> {
    let found = remote.resolve(reference).await?;
    let found = found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("There is no model `{reference}`")))?;
    Ok(found.0)
}

/// Whoever lays the artifact out would lose one of two files with the same name.
fn require_distinct_names(blobs: &[Blob]) -> Result<()> {
    let mut names = BTreeSet::new();
    match blobs.iter().filter_map(|blob| blob.descriptor.layer_name()).find(|name| !names.insert(*name)) {
        Some(name) => Err(Error::new(ErrorKind::Usage, format!("Two files are named {}", quoted(name)))),
        None => Ok(()),
    }
}
