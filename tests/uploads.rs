//! What a push of a large blob promises: it goes in chunks, a chunk that fails costs that chunk, and a
//! registry that takes no chunks, or none so long, gets what it takes.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;
use kiln::oci::{Descriptor, MediaType};
use kiln::registry::{Credential, Keychain, Options as Transport, Remote};
use kiln::storage::{Body, ByteStream, Fetch as _, Push as _, Pushed};
use kiln::{ErrorKind, Result};
use registry_fixtures::{
    Auth, Bearer, BrokenUpload, Fault, Fixture, Line, Locations, Options, Proxy, Recorded, Trigger,
};

const SIZE: usize = 1_000_000;
const CHUNK: u64 = 100_000;
const REPOSITORY: &str = "team/model";
const USER: &str = "ada";
const PASSWORD: &str = "s3cret-word";

/// Bytes in memory, given out in pieces.
struct Content(Bytes);

impl Body for Content {
    fn open(&self, bytes: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        let rest = self.0.slice(bytes.start as usize..bytes.end as usize);
        let pieces: Vec<_> = rest.chunks(7000).map(|piece| Ok(rest.slice_ref(piece))).collect();
        Box::pin(async move { Ok(Box::pin(stream::iter(pieces)) as ByteStream) })
    }
}

/// A keychain that knows one user. It is asked only where the registry asks.
struct Key;

impl Keychain for Key {
    fn credential(&self, _host: &str) -> Result<Option<Credential>> {
        Ok(Some(Credential::Basic { user: USER.to_owned(), password: PASSWORD.into() }))
    }
}

struct Scene {
    registry: Fixture,
    remote: Remote,
    _line: Option<Proxy>,
}

fn transport(chunk: u64) -> Transport {
    Transport { chunk: Some(chunk), first_pause: Duration::from_millis(5), ..Transport::default() }
}

fn remote(host: &str, transport: &Transport) -> Remote {
    let reference = format!("{host}/{REPOSITORY}:v1").parse().unwrap();
    Remote::new(&reference, Arc::new(Key), transport).unwrap()
}

impl Scene {
    fn new(options: Options) -> Self {
        Self::beginning_with(CHUNK, options)
    }

    fn beginning_with(chunk: u64, options: Options) -> Self {
        Self::with(transport(chunk), options)
    }

    fn with(transport: Transport, options: Options) -> Self {
        let registry = Fixture::start_with(options);
        let remote = remote(&registry.host(), &transport);
        Self { registry, remote, _line: None }
    }

    fn over_a_line(chunk: u64, options: Options, line: Line) -> Self {
        let registry = Fixture::start_with(Options { locations: Locations::Relative, ..options });
        let proxy = Proxy::to(&registry.host());
        proxy.set_line(line);
        let remote = remote(&proxy.host(), &transport(chunk));
        Self { registry, remote, _line: Some(proxy) }
    }

    /// Pushes `content` and checks that the registry has it and no session is left.
    async fn push(&self, content: &Bytes) {
        self.push_and_leave(content).await;
        assert_eq!(self.registry.open_uploads(), 0);
    }

    /// Pushes `content` and checks that the registry has it.
    async fn push_and_leave(&self, content: &Bytes) {
        let expected = Descriptor::of(MediaType::OLLAMA_TENSOR, content);
        let body = Content(content.clone());
        let push = self.remote.push(&expected, &body);
        let pushed = tokio::time::timeout(Duration::from_secs(60), push).await.unwrap().unwrap();
        assert_eq!(pushed, Pushed::Stored);
        assert!(self.registry.blob(REPOSITORY, &expected.digest.to_string()).unwrap() == content);
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
    for locations in [Locations::Absolute, Locations::WithoutScheme, Locations::Relative] {
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
async fn a_session_that_is_gone_when_its_chunk_comes_is_begun_anew() {
    let scene = Scene::new(Options::default().fault(Trigger::on("PATCH", "").nth(2), Fault::ForgetUpload));
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

#[tokio::test]
async fn a_proxy_that_waits_no_longer_gets_shorter_chunks_and_costs_no_session() {
    let first = 4 << 20;
    for code in [408, 499, 502, 504, 524] {
        let fault = Fault::Status { code, retry_after: Some(0), body: String::new() };
        let scene = Scene::beginning_with(first, Options::default().fault(Trigger::on("PATCH", ""), fault));
        scene.push(&content(5 << 20)).await;
        let lengths: Vec<_> =
            scene.requests("PATCH").iter().map(|chunk| chunk.header("content-length").unwrap().to_owned()).collect();
        assert_eq!(lengths[..2], [first.to_string(), (first / 2).to_string()], "{code}");
        assert_eq!(scene.requests("POST").len(), 1, "{code}");
    }
}

#[tokio::test]
async fn a_registry_with_a_deadline_gets_chunks_that_pass_in_time() {
    let options = Options { deadline: Some(Duration::from_secs(1)), ..Options::default() };
    let scene = Scene::over_a_line(16 << 20, options, Line { rate: Some(8 << 20), ..Line::default() });
    scene.push(&content(17 << 20)).await;
    let chunks = scene.requests("PATCH");
    let length = |chunk: &Recorded| chunk.header("content-length").unwrap().parse::<u64>().unwrap();
    // 0 is the status of a request that had no answer.
    assert_eq!((length(&chunks[0]), chunks[0].status), (16 << 20, 0));
    assert!(chunks.iter().any(|chunk| chunk.status == 202 && length(chunk) <= 8 << 20));
    assert_eq!(scene.requests("POST").len(), 1);
}

#[tokio::test]
async fn what_a_registry_did_not_take_of_a_chunk_is_sent_again() {
    let scene =
        Scene::new(Options::default().fault(Trigger::on("PATCH", "").nth(2), Fault::TakeOnly { bytes: 30_000 }));
    scene.push(&content(SIZE)).await;
    assert_eq!(scene.offsets()[..3], [0, CHUNK, CHUNK + 30_000]);
    assert_eq!((scene.requests("POST").len(), scene.requests("GET").len()), (1, 0));
}

#[tokio::test]
async fn a_registry_that_takes_nothing_of_a_chunk_and_says_0_0_is_not_believed_to_have_a_byte() {
    let scene = Scene::new(Options::default().fault(Trigger::on("PATCH", ""), Fault::TakeOnly { bytes: 0 }));
    scene.push(&content(SIZE)).await;
    assert_eq!(scene.offsets()[..2], [0, 0]);
}

#[tokio::test]
async fn a_registry_that_lost_the_end_of_a_session_says_where_to_go_on() {
    let scene =
        Scene::new(Options::default().fault(Trigger::on("PATCH", "").nth(3), Fault::LoseTail { bytes: 40_000 }));
    scene.push(&content(SIZE)).await;
    let chunks = scene.requests("PATCH");
    assert_eq!(chunks[2].status, 416);
    let offsets = scene.offsets();
    assert_eq!(offsets[3], offsets[2] - 40_000, "{offsets:?}");
    assert_eq!(scene.requests("POST").len(), 1);
}

#[tokio::test]
async fn a_registry_that_keeps_losing_what_it_took_is_given_up() {
    let lost = || Fault::LoseTail { bytes: SIZE };
    let options = Options::default()
        .fault(Trigger::on("PATCH", "").nth(2).always(), lost())
        .fault(Trigger::on("PUT", "/uploads/").always(), lost());
    let scene = Scene::new(options);
    let content = content(SIZE);
    let expected = Descriptor::of(MediaType::OLLAMA_TENSOR, &content);
    let body = Content(content);
    let push = scene.remote.push(&expected, &body);
    let error = tokio::time::timeout(Duration::from_secs(60), push).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    assert!(scene.requests("PATCH").len() < 60, "{}", scene.requests("PATCH").len());
    assert_eq!(scene.registry.blobs(REPOSITORY), Vec::<String>::new());
}

#[tokio::test]
async fn a_registry_that_takes_a_blob_up_to_the_same_place_again_and_again_is_given_up() {
    // Chunks that cannot grow any more: otherwise each round would come further than the one before.
    let first = 8 << 20;
    let options = Options::default()
        .fault(Trigger::on("PATCH", ""), status(413))
        .fault(Trigger::on("PATCH", "").nth(4).always(), Fault::LoseTail { bytes: 64 << 20 });
    let scene = Scene::beginning_with(first, options);
    let content = content(64 << 20);
    let expected = Descriptor::of(MediaType::OLLAMA_TENSOR, &content);
    let body = Content(content);
    let push = scene.remote.push(&expected, &body);
    let error = tokio::time::timeout(Duration::from_secs(60), push).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
}

#[tokio::test]
async fn a_registry_that_appends_whatever_comes_gets_no_chunk_twice() {
    let options = Options { appends: true, ..Options::default() };
    let scene = Scene::new(options.fault(Trigger::on("PATCH", "").nth(2), Fault::LoseReply));
    scene.push(&content(SIZE)).await;
    assert_eq!(scene.received(), SIZE as u64);
}

#[tokio::test]
async fn a_session_whose_address_was_lost_with_an_answer_is_begun_anew() {
    let options = Options { old_status: false, ..Options::default() };
    let scene = Scene::new(options.fault(Trigger::on("PATCH", "").nth(2), Fault::LoseReply));
    scene.push_and_leave(&content(SIZE)).await;
    assert_eq!(scene.requests("POST").len(), 2);
}

#[tokio::test]
async fn a_registry_that_does_not_tell_where_a_session_is_gets_a_new_one() {
    for code in [404, 405] {
        let options = Options::default()
            .fault(Trigger::on("PATCH", "").nth(2), Fault::DropRequest { after: 50_000 })
            .fault(Trigger::on("GET", "/uploads/"), status(code));
        let scene = Scene::new(options);
        scene.push_and_leave(&content(SIZE)).await;
        assert_eq!(scene.requests("POST").len(), 2, "{code}");
    }
}

#[tokio::test]
async fn a_registry_that_names_no_address_for_the_next_chunk_is_asked_for_it() {
    let scene = Scene::new(Options::default().fault(Trigger::on("PATCH", "").nth(2), Fault::MissingLocation));
    scene.push(&content(SIZE)).await;
    assert_eq!(scene.requests("POST").len(), 1);
    assert_eq!(scene.received(), SIZE as u64);
}

#[tokio::test]
async fn a_session_without_an_address_is_an_error() {
    let scene = Scene::new(Options::default().fault(Trigger::on("POST", "").always(), Fault::MissingLocation));
    let expected = Descriptor::of(MediaType::OLLAMA_TENSOR, b"small");
    let error = scene.remote.push(&expected, &Content("small".into())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    assert!(error.to_string().contains("names no address to go on at"), "{error}");
}

#[tokio::test]
async fn a_chunk_that_is_answered_with_204_or_200_was_taken() {
    for code in [204, 200] {
        let scene = Scene::new(Options::default().fault(Trigger::on("PATCH", "").always(), Fault::Instead(code)));
        scene.push(&content(SIZE)).await;
        assert_eq!((scene.requests("POST").len(), scene.received()), (1, SIZE as u64), "{code}");
    }
}

#[tokio::test]
async fn a_registry_that_asks_for_chunks_longer_than_any_gets_the_whole() {
    for length in ["9223372036854775808", "18446744073709551616", "-1", "much"] {
        let fault = Fault::Header("oci-chunk-min-length", length.to_owned());
        let scene = Scene::new(Options::default().fault(Trigger::on("POST", "").always(), fault));
        scene.push(&content(SIZE)).await;
        assert_eq!(scene.requests("PATCH").is_empty(), length == "9223372036854775808", "{length}");
    }
}

#[tokio::test]
async fn a_registry_that_takes_long_to_finish_is_waited_for() {
    let scene = Scene::with(
        Transport { idle_timeout: Duration::from_millis(300), ..transport(CHUNK) },
        Options::default().fault(Trigger::on("PUT", "/uploads/").always(), Fault::Delay(Duration::from_millis(1500))),
    );
    scene.push(&content(SIZE)).await;
    // The last request of a blob in chunks has no body, that of a small one has all of it.
    scene.push(&content(1000)).await;
    assert_eq!((scene.requests("POST").len(), scene.requests("PUT").len()), (2, 2));
    assert!(scene.registry.requests().iter().all(|request| request.method != "HEAD"), "its answer was not given up");
}

#[tokio::test]
async fn an_answer_that_is_lost_for_good_is_settled_by_a_look() {
    let scene = Scene::with(
        Transport { attempts: 1, ..transport(CHUNK) },
        Options::default().fault(Trigger::on("PUT", "/uploads/"), Fault::LoseReply),
    );
    scene.push(&content(SIZE)).await;
    assert_eq!(scene.requests("PUT").len(), 1);
}

#[tokio::test]
async fn who_may_write_and_not_look_can_still_push() {
    for code in [401, 403, 405] {
        let scene = Scene::new(Options::default().fault(Trigger::on("HEAD", "").always(), status(code)));
        let content = content(SIZE);
        assert!(!scene.remote.exists(&Descriptor::of(MediaType::OLLAMA_TENSOR, &content)).await.unwrap(), "{code}");
        scene.push(&content).await;
    }
}

#[tokio::test]
async fn tokens_that_last_two_seconds_last_for_a_push_that_takes_longer() {
    let lifetime = Duration::from_secs(2);
    let Auth::Bearer(bearer) = Auth::bearer(USER, PASSWORD) else { unreachable!() };
    let options = Options { auth: Auth::Bearer(Bearer { lifetime, ..bearer }), ..Options::default() };
    let scene = Scene::over_a_line(1 << 20, options, Line { rate: Some(2 << 20), ..Line::default() });
    let begun = Instant::now();
    scene.push(&content(12 << 20)).await;
    assert!(begun.elapsed() > 2 * lifetime);
    let tokens = scene.registry.requests().iter().filter(|request| request.path == "/token").count();
    assert!(tokens > 2, "{tokens}");
    assert!(scene.requests("PATCH").iter().filter(|chunk| chunk.status == 401).count() <= 1);
}
