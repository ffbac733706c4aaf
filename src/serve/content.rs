//! Bytes on their way through the server, a chunk at a time: request bodies, parts of replies, and the
//! nameless files in which uploads of several requests wait.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, future, stream};

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Body, ByteStream};

/// How much is read from a file at once.
const CHUNK: usize = 256 << 10;

/// A request's body: it can be read once, from its start.
pub(super) struct Arriving(Mutex<Option<ByteStream>>);

impl Arriving {
    pub(super) fn new(body: axum::body::Body) -> Self {
        let stream = body.into_data_stream().map_err(|cause| {
            Error::new(ErrorKind::Registry, "The client stopped sending in the middle of a body").caused_by(cause)
        });
        Self(Mutex::new(Some(stream.boxed())))
    }

    /// The stream, unless it was taken before.
    pub(super) fn take(&self) -> Option<ByteStream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Body for Arriving {
    fn open(&self, from: u64) -> BoxFuture<'_, Result<ByteStream>> {
        let once = || Error::new(ErrorKind::Unexpected, "The body of a request can be read only once");
        let stream = if from == 0 { self.take() } else { None };
        future::ready(stream.ok_or_else(once)).boxed()
    }
}

/// A file without a name, which the system removes however the program ends.
#[derive(Clone, Debug)]
pub(super) struct Spool {
    file: Arc<File>,
    written: u64,
}

impl Spool {
    /// An empty file on the file system of `directory`.
    pub(super) async fn create(directory: &Path) -> Result<Self> {
        let directory = directory.to_owned();
        let file = blocking(move || {
            tempfile::tempfile_in(&directory)
                .map_err(|cause| Error::io(ErrorKind::Store, "keep an upload in", &directory, cause))
        });
        Ok(Self { file: Arc::new(file.await?), written: 0 })
    }

    /// How many bytes are in it.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Writes `bytes` after those it has. When this fails, or is given up, it has as many as before.
    pub(super) async fn append(&mut self, bytes: Bytes) -> Result<()> {
        let (file, at, length) = (Arc::clone(&self.file), self.written, bytes.len() as u64);
        blocking(move || {
            file.write_all_at(&bytes, at)
                .map_err(|cause| Error::new(ErrorKind::Store, "Could not keep a part of an upload").caused_by(cause))
        })
        .await?;
        self.written += length;
        Ok(())
    }
}

impl Body for Spool {
    fn open(&self, from: u64) -> BoxFuture<'_, Result<ByteStream>> {
        let end = self.written;
        let chunks = stream::try_unfold((Arc::clone(&self.file), from), move |(file, at)| async move {
            if at >= end {
                return Ok(None);
            }
            let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(CHUNK);
            let reader = Arc::clone(&file);
            let bytes = blocking(move || {
                let mut chunk = vec![0; wanted];
                reader.read_exact_at(&mut chunk, at).map_err(|cause| {
                    Error::new(ErrorKind::Store, "Could not read a part of an upload").caused_by(cause)
                })?;
                Ok(Bytes::from(chunk))
            });
            Ok(Some((bytes.await?, (file, at + wanted as u64))))
        });
        future::ready(Ok(chunks.boxed())).boxed()
    }
}

/// The first `length` bytes of `stream`; nothing is read after them.
pub(super) fn first(stream: ByteStream, length: u64) -> ByteStream {
    stream::try_unfold((stream, length), |(mut stream, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let Some(mut bytes) = stream.next().await.transpose()? else { return Ok(None) };
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left - bytes.len() as u64;
        Ok(Some((bytes, (stream, left))))
    })
    .boxed()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|cause| Error::new(ErrorKind::Unexpected, "A task of the server ended early").caused_by(cause))?
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(mut stream: ByteStream) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(bytes) = stream.next().await {
            all.extend_from_slice(&bytes.unwrap());
        }
        all
    }

    #[tokio::test]
    async fn a_spool_gives_back_what_it_took_from_any_offset_and_more_than_once() {
        let mut spool = Spool::create(&std::env::temp_dir()).await.unwrap();
        let bytes = (0..CHUNK * 2 + 5).map(|at| at as u8).collect::<Vec<_>>();
        for part in bytes.chunks(100_000) {
            spool.append(Bytes::copy_from_slice(part)).await.unwrap();
        }
        assert_eq!(spool.written(), bytes.len() as u64);
        for from in [0, 0, 1, CHUNK, bytes.len()] {
            assert!(read(spool.open(from as u64).await.unwrap()).await == bytes[from..], "from {from}");
        }
    }

    #[tokio::test]
    async fn the_first_bytes_end_where_they_should() {
        for (length, expected) in [(0, ""), (2, "ab"), (3, "abc"), (4, "abcd"), (9, "abcdef")] {
            let parts = ["abc", "def"].map(|part| Ok(Bytes::from(part)));
            assert_eq!(read(first(stream::iter(parts).boxed(), length)).await, expected.as_bytes());
        }
    }

    #[tokio::test]
    async fn a_request_is_read_once() {
        let body = Arriving::new(axum::body::Body::from("weights"));
        assert_eq!(read(body.open(0).await.unwrap()).await, b"weights");
        assert!(body.open(0).await.is_err());
    }
}
