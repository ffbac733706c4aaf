//! What a push of a large blob promises: it goes in chunks, a chunk that fails costs that chunk, and a
//! registry that takes no chunks, or none so long, gets what it takes.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;
use kiln::oci::{Descriptor, MediaType};
use kiln::registry::{Anonymous, Options as Transport, Remote};
use kiln::storage::{Body, ByteStream, Push as _, Pushed};
use kiln::{ErrorKind, Result};
use registry_fixtures::{BrokenUpload, Fault, Fixture, Locations, Options, Recorded, Trigger};

const SIZE: usize = 1_000_000;
const CHUNK: u64 = 100_000;
const REPOSITORY: &str = "team/model";

/// Bytes in memory, given out in pieces.
struct Content(Bytes);

impl Body for Content {
    fn open(&self, bytes: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        let rest = self.0.slice(bytes.start as usize..bytes.end as usize);
        let pieces: Vec<_> = rest.chunks(7000).map(|piece| Ok(rest.slice_ref(piece))).collect();
        Box::pin(async move { Ok(Box::pin(stream::iter(pieces)) as ByteStream) })
    }
}

struct Scene {
    registry: Fixture,
    remote: Remote,
}

impl Scene {
    fn new(options: Options) -> Self {
        Self::beginning_with(CHUNK, options)
    }

    fn beginning_with(chunk: u64, options: Options) -> Self {
        let registry = Fixture::start_with(options);
        let reference = format!("{}/{REPOSITORY}:v1", registry.host()).parse().unwrap();
        let transport = Transport { chunk: Some(chunk), first_pause: Duration::from_millis(5), ..Transport::default() };
        let remote = Remote::new(&reference, Arc::new(Anonymous), &transport).unwrap();
        Self { registry, remote }
    }

    /// Pushes `content` and checks that the registry has it.
    async fn push(&self, content: &Bytes) {
        let expected = Descriptor::of(MediaType::OLLAMA_TENSOR, content);
        let body = Content(content.clone());
        let push = self.remote.push(&expected, &body);
        let pushed = tokio::time::timeout(Duration::from_secs(60), push).await.unwrap().unwrap();
        assert_eq!(pushed, Pushed::Stored);
        assert!(self.registry.blob(REPOSITORY, &expected.digest.to_string()).unwrap() == content);
        assert_eq!(self.registry.open_uploads(), 0);
    }

    fn requests(&self, method: &str) -> Vec<Recorded> {
        let is = |request: &Recorded| request.method == method && request.path.contains("/uploads/");
        self.registry.requests().into_iter().filter(is).collect()
    }

    /// How many bytes of blobs arrived.
    fn received(&self) -> u64 {
        self.registry.requests().iter().map(|request| request.body_len).sum()
    }

    /// The first bytes of the chunks that were sent.
    fn offsets(&self) -> Vec<u64> {
        let first = |request: &Recorded| request.header("content-range")?.split_once('-')?.0.parse().ok();
        self.requests("PATCH").iter().filter_map(first).collect()
    }
}

/// Bytes that no shift of theirs equals.
fn content(size: usize) -> Bytes {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes.into()
}

fn status(code: u16) -> Fault {
    Fault::Status { code, retry_after: None, body: String::new() }
}

#[tokio::test]
async fn a_large_blob_goes_in_chunks_and_a_small_one_whole() {
    for locations in [Locations::Absolute, Locations::Relative] {
        let scene = Scene::new(Options { locations, ..Options::default() });
        scene.push(&content(SIZE)).await;
        let chunks = scene.requests("PATCH");
        assert!(chunks.len() > 2 && chunks.iter().all(|chunk| chunk.status == 202));
        assert_eq!(chunks[0].header("content-range"), Some("0-99999"));
        assert_eq!(chunks[0].header("content-length"), Some("100000"));
        assert_eq!(scene.received(), SIZE as u64);
        scene.registry.clear_requests();
        scene.push(&content(CHUNK as usize)).await;
        assert_eq!((scene.requests("PATCH").len(), scene.requests("PUT").len()), (0, 1));
    }
}

#[tokio::test]
async fn a_chunk_that_breaks_costs_no_more_than_itself() {
    let scene =
        Scene::new(Options::default().fault(Trigger::on("PATCH", "").nth(2), Fault::DropRequest { after: 50_000 }));
    scene.push(&content(SIZE)).await;
    assert_eq!(scene.offsets()[..2], [0, CHUNK]);
    assert!(scene.offsets()[2] > CHUNK, "{:?}", scene.offsets());
    assert_eq!(scene.received(), SIZE as u64);
    assert_eq!(scene.requests("POST").len(), 1);
}

#[tokio::test]
async fn a_session_that_breaks_with_its_chunk_is_begun_anew() {
    let options = Options { broken_upload: BrokenUpload::Discard, ..Options::default() };
    let scene = Scene::new(options.fault(Trigger::on("PATCH", "").nth(2), Fault::DropRequest { after: 50_000 }));
    scene.push(&content(SIZE)).await;
    assert_eq!(scene.requests("POST").len(), 2);
    assert_eq!(scene.offsets()[..3], [0, CHUNK, 0]);
}

#[tokio::test]
async fn a_chunk_whose_answer_is_lost_is_not_sent_again() {
    let scene = Scene::new(Options::default().fault(Trigger::on("PATCH", "").nth(2), Fault::LoseReply));
    scene.push(&content(SIZE)).await;
    assert_eq!(scene.requests("POST").len(), 1);
    assert_eq!(scene.received(), SIZE as u64);
}

#[tokio::test]
async fn a_busy_registry_is_asked_where_it_is() {
    let fault = Fault::Status { code: 503, retry_after: Some(0), body: String::new() };
    let scene = Scene::new(Options::default().fault(Trigger::on("PATCH", "").nth(2).times(2), fault));
    scene.push(&content(SIZE)).await;
    assert_eq!((scene.requests("POST").len(), scene.requests("GET").len()), (1, 2));
}

#[tokio::test]
async fn a_registry_that_is_too_busy_to_say_has_not_lost_the_session() {
    let busy = |code| Fault::Status { code, retry_after: Some(0), body: String::new() };
    let options = Options::default()
        .fault(Trigger::on("PATCH", "").nth(2), busy(503))
        .fault(Trigger::on("GET", "/uploads/"), busy(429));
    let scene = Scene::new(options);
    scene.push(&content(SIZE)).await;
    assert_eq!((scene.requests("POST").len(), scene.requests("GET").len()), (1, 2));
}

#[tokio::test]
async fn a_registry_without_chunks_gets_the_whole_and_is_not_tried_again() {
    for refusal in [405, 501, 400, 411, 201] {
        let scene = Scene::new(Options::default().fault(Trigger::on("PATCH", "").always(), status(refusal)));
        scene.push(&content(SIZE)).await;
        scene.push(&content(SIZE + 1)).await;
        assert_eq!(scene.requests("PATCH").len(), 1, "{refusal}");
    }
}

#[tokio::test]
async fn a_registry_of_short_chunks_only_gets_the_whole() {
    let scene = Scene::new(Options { max_chunk: Some(CHUNK / 2), ..Options::default() });
    scene.push(&content(SIZE)).await;
    let chunks = scene.requests("PATCH");
    assert_eq!(chunks.iter().map(|chunk| chunk.status).collect::<Vec<_>>(), [416]);
}

#[tokio::test]
async fn a_chunk_that_is_too_large_for_a_proxy_is_made_shorter() {
    let first = 8 << 20;
    let scene = Scene::beginning_with(first, Options::default().fault(Trigger::on("PATCH", ""), status(413)));
    scene.push(&content(9 << 20)).await;
    let lengths: Vec<_> =
        scene.requests("PATCH").iter().map(|chunk| chunk.header("content-length").unwrap().to_owned()).collect();
    assert_eq!(lengths[..2], [first.to_string(), (first / 4).to_string()]);
}

#[tokio::test]
async fn chunks_are_as_long_as_the_registry_asks() {
    let scene = Scene::new(Options { min_chunk: Some(3 * CHUNK), ..Options::default() });
    scene.push(&content(SIZE)).await;
    assert_eq!(scene.offsets()[..2], [0, 3 * CHUNK]);
}

#[tokio::test]
async fn a_rotten_blob_is_never_finished() {
    let scene = Scene::new(Options::default());
    let sound = content(SIZE);
    let expected = Descriptor::of(MediaType::OLLAMA_TENSOR, &sound);
    for at in [0, SIZE / 2, SIZE - 1] {
        let mut rotten = sound.to_vec();
        rotten[at] ^= 1;
        let error = scene.remote.push(&expected, &Content(rotten.into())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
    assert_eq!((scene.registry.blobs(REPOSITORY), scene.registry.open_uploads()), (vec![], 0));
}
