//! Memory and the local store keep the same laws; the store keeps them on disk as well.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

use std::error::Error as _;
use std::fs;
use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{self, BoxFuture};
use futures_util::{FutureExt, StreamExt, stream};
use kiln::oci::{Descriptor, Digest, MediaType};
use kiln::storage::{Body, ByteStream, Fetch, Memory, Push, Pushed, Reading, conformance};
use kiln::store::Store;
use kiln::{Error, ErrorKind, Result};
use tokio::time::{sleep, timeout};

#[tokio::test]
async fn memory_keeps_the_laws() {
    let memory = Memory::new();
    report(conformance::uphold(&memory, "registry.example/laws/model").await);
    report(conformance::uphold_served(&memory, "registry.example/laws/model").await);
}

#[tokio::test]
async fn the_store_keeps_the_laws() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    report(conformance::uphold(&store, "registry.example/laws/model").await);
    report(conformance::uphold_served(&store, "registry.example/laws/model").await);
    assert_eq!(fs::read_dir(directory.path().join("ingest")).unwrap().count(), 0, "unfinished files stayed");
}

fn report(outcome: Result<()>) {
    if let Err(error) = outcome {
        panic!("{error}: {:?}", error.source().map(ToString::to_string));
    }
}

/// A body of endless chunks, or of a few and then silence.
struct Restless {
    stalls_after: Option<usize>,
}

impl Body for Restless {
    fn open(&self, _bytes: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        let chunks = stream::repeat_with(|| Ok(Bytes::from(vec![1; 1 << 16])));
        let body: ByteStream = match self.stalls_after {
            Some(count) => chunks.take(count).chain(stream::pending()).boxed(),
            None => chunks.boxed(),
        };
        future::ready(Ok(body)).boxed()
    }
}

#[tokio::test]
async fn a_push_that_is_given_up_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let ingest = directory.path().join("ingest");
    let unfinished = || fs::read_dir(&ingest).unwrap().count();
    // The last case has every byte it promised, and was still not finished.
    for (count, size) in [(0, 1 << 20), (3, 1 << 20), (3, 3 << 16)] {
        let bytes = vec![1; size];
        let target = Descriptor::of(MediaType::KILN_FILE, &bytes);
        let body = Restless { stalls_after: Some(count) };
        assert!(timeout(Duration::from_millis(100), store.push(&target, &body)).await.is_err());
        let mut left = unfinished();
        for _ in 0..500 {
            if left == 0 {
                break;
            }
            sleep(Duration::from_millis(10)).await;
            left = unfinished();
        }
        assert_eq!(left, 0, "after {count} chunks");
        assert!(!store.exists(&target).await.unwrap());
    }
}

#[tokio::test]
async fn an_endless_body_ends_where_the_promise_does() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let target = Descriptor::of(MediaType::KILN_FILE, &[1; 100_000]);
    let endless = Restless { stalls_after: None };
    for outcome in [
        timeout(Duration::from_secs(20), store.push(&target, &endless)).await.unwrap(),
        timeout(Duration::from_secs(20), Memory::new().push(&target, &endless)).await.unwrap(),
    ] {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

/// A body that breaks after some bytes, and keeps what it was asked for.
struct Brittle {
    content: Bytes,
    breaks_after: usize,
    opened: Mutex<Vec<Range<u64>>>,
}

impl Body for Brittle {
    fn open(&self, bytes: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        self.opened.lock().unwrap().push(bytes.clone());
        let part = self.content.slice(bytes.start as usize..bytes.end as usize);
        let whole = part.len() <= self.breaks_after;
        let end = (!whole).then(|| Err(Error::new(ErrorKind::Registry, "The line broke")));
        let sent = part.slice(..part.len().min(self.breaks_after));
        future::ready(Ok(stream::iter(std::iter::once(Ok(sent)).chain(end)).boxed())).boxed()
    }
}

#[tokio::test]
async fn a_push_that_breaks_is_gone_on_with() {
    const MIB: u64 = 1 << 20;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let content: Bytes = (0..7 * MIB).map(|index| (index % 251) as u8).collect::<Vec<_>>().into();
    let target = Descriptor::of(MediaType::KILN_FILE, &content);
    let body = Brittle { content, breaks_after: 3 << 20, opened: Mutex::default() };
    for ends_well in [false, false, true] {
        assert_eq!(store.push(&target, &body).await.is_ok(), ends_well);
        assert_eq!(store.exists(&target).await.unwrap(), ends_well);
    }
    assert_eq!(*body.opened.lock().unwrap(), [0..7 * MIB, 3 * MIB..7 * MIB, 6 * MIB..7 * MIB]);
    assert_eq!(fs::read_dir(directory.path().join("ingest")).unwrap().count(), 0);
}

/// A body whose first bytes never come, and whose others never end.
struct Overflowing;

impl Body for Overflowing {
    fn open(&self, bytes: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        let chunks: ByteStream = match bytes.start {
            0 => stream::pending().boxed(),
            _ => stream::repeat_with(|| Ok(Bytes::from(vec![1; 1 << 16]))).boxed(),
        };
        future::ready(Ok(chunks)).boxed()
    }

    fn reading(&self) -> Reading {
        Reading::Anywhere(4)
    }
}

#[tokio::test]
async fn a_range_that_goes_on_behind_its_end_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let target = Descriptor::new(MediaType::KILN_FILE, Digest::of(b"what never comes"), 64 << 20);
    let outcome = timeout(Duration::from_secs(60), store.push(&target, &Overflowing)).await.unwrap();
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(fs::read_dir(directory.path().join("ingest")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_push_heals_what_has_another_size() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let bytes = Bytes::from(vec![5; 3 << 20]);
    let target = Descriptor::of(MediaType::KILN_FILE, &bytes);
    fs::write(store.blob_path(&target.digest), &bytes[1..]).unwrap();
    assert!(!store.exists(&target).await.unwrap());
    assert_eq!(store.fetch(&target, 0..target.size).await.err().map(|error| error.kind()), Some(ErrorKind::Corrupt));
    assert_eq!(store.push(&target, &bytes).await.unwrap(), Pushed::Stored);
    assert_eq!(Digest::of(&fs::read(store.blob_path(&target.digest)).unwrap()), target.digest);
}

#[tokio::test]
async fn the_same_content_may_be_pushed_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let bytes = Bytes::from(vec![6; 1 << 20]);
    let target = Descriptor::of(MediaType::KILN_FILE, &bytes);
    let pushes = future::join_all((0..8).map(|_| store.push(&target, &bytes))).await;
    assert!(pushes.iter().all(Result::is_ok), "{pushes:?}");
    assert_eq!(store.read_blob(&target).unwrap(), bytes);
    assert_eq!(fs::read_dir(directory.path().join("ingest")).unwrap().count(), 0);
}
