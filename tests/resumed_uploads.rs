//! What the next run of a push knows of the one before: where an upload goes on, what the registry takes, and
//! from where it can mount. None of it is believed.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;
use kiln::Result;
use kiln::oci::{Descriptor, Digest, MediaType};
use kiln::registry::{Credential, Home, Keychain, Known, Options as Transport, Remote};
use kiln::storage::{Body, ByteStream, Claim, Push as _, Pushed, Unfinished, Upload};
use registry_fixtures::{Auth, BrokenUpload, Fault, Fixture, Options, Recorded, Trigger};

const SIZE: usize = 1_000_000;
const CHUNK: u64 = 100_000;
const REPOSITORY: &str = "team/model";
const LIMIT: Duration = Duration::from_secs(60);

/// Bytes in memory, given out in pieces.
struct Content(Bytes);

impl Body for Content {
    fn open(&self, part: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        let rest = self.0.slice(part.start as usize..part.end as usize);
        let pieces: Vec<_> = rest.chunks(7000).map(|piece| Ok(rest.slice_ref(piece))).collect();
        Box::pin(async move { Ok(Box::pin(stream::iter(pieces)) as ByteStream) })
    }
}

/// What one run leaves for the next, of one upload.
#[derive(Clone, Debug, Default)]
struct Left(Arc<Mutex<Option<Upload>>>);

impl Left {
    fn upload(&self) -> Option<Upload> {
        self.0.lock().unwrap().clone()
    }

    fn at(url: &str) -> Self {
        let upload = Upload { url: url.to_owned(), reached: CHUNK, shortest_chunk: 0 };
        Self(Arc::new(Mutex::new(Some(upload))))
    }
}

impl Unfinished for Left {
    fn claim(&self, _repository: &str, _digest: &Digest) -> Option<Box<dyn Claim>> {
        Some(Box::new(self.clone()))
    }
}

impl Claim for Left {
    fn read(&mut self) -> Option<Upload> {
        self.upload()
    }

    fn keep(&mut self, upload: &Upload) {
        *self.0.lock().unwrap() = Some(upload.clone());
    }

    fn forget(&mut self) {
        *self.0.lock().unwrap() = None;
    }
}

#[derive(Debug)]
struct Alice;

impl Keychain for Alice {
    fn credential(&self, _host: &str) -> Result<Option<Credential>> {
        Ok(Some(Credential::Basic { user: "alice".to_owned(), password: "s3cret".to_owned() }))
    }
}

fn remote(registry: &Fixture, known: Known) -> Remote {
    let reference = format!("{}/{REPOSITORY}:v1", registry.host()).parse().unwrap();
    let transport = Transport { chunk: Some(CHUNK), first_pause: Duration::from_millis(5), ..Transport::default() };
    Remote::knowing(known, &reference, Arc::new(Alice), &transport).unwrap()
}

/// Pushes `content` in a run of its own and checks that the registry has it.
async fn push(registry: &Fixture, known: Known, content: &Bytes) -> Pushed {
    let expected = Descriptor::of(MediaType::OLLAMA_TENSOR, content);
    let (remote, body) = (remote(registry, known), Content(content.clone()));
    let pushed = tokio::time::timeout(LIMIT, remote.push(&expected, &body)).await.unwrap().unwrap();
    assert!(registry.blob(REPOSITORY, &expected.digest.to_string()).unwrap() == content);
    pushed
}

/// A run that ends at its fourth chunk as a killed process does: nothing of it goes on, nothing is tidied up.
async fn killed(registry: &Fixture, left: &Left, content: &Bytes) {
    registry.inject(Trigger::on("PATCH", "").nth(4), Fault::Delay(LIMIT));
    let expected = Descriptor::of(MediaType::OLLAMA_TENSOR, content);
    let (remote, body) = (remote(registry, resuming(left)), Content(content.clone()));
    let push = tokio::spawn(async move { remote.push(&expected, &body).await });
    let fourth = async {
        while requests(registry, "PATCH").len() < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, fourth).await.unwrap();
    push.abort();
    assert!(push.await.unwrap_err().is_cancelled());
}

fn resuming(left: &Left) -> Known {
    Known { unfinished: Some(Arc::new(left.clone())), ..Known::default() }
}

fn requests(registry: &Fixture, method: &str) -> Vec<Recorded> {
    let is = |request: &Recorded| request.method == method && request.path.contains("/uploads/");
    registry.requests().into_iter().filter(is).collect()
}

fn received(registry: &Fixture) -> u64 {
    registry.requests().iter().map(|request| request.body_len).sum()
}

/// Bytes that no shift of theirs equals.
fn content(seed: u64) -> Bytes {
    let mut state = 0x2545_F491_4F6C_DD1D_u64 ^ seed;
    let mut bytes = Vec::with_capacity(SIZE + 8);
    while bytes.len() < SIZE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(SIZE);
    bytes.into()
}

#[tokio::test]
async fn a_push_goes_on_where_the_one_before_was_killed() {
    let (registry, left, content) = (Fixture::start(), Left::default(), content(1));
    killed(&registry, &left, &content).await;
    assert!(left.upload().unwrap().reached >= 2 * CHUNK);
    assert_eq!(push(&registry, resuming(&left), &content).await, Pushed::Stored);
    assert_eq!((requests(&registry, "POST").len(), requests(&registry, "GET").len()), (1, 1));
    assert_eq!(left.upload(), None);
    assert_eq!(registry.open_uploads(), 0);
    let chunk = requests(&registry, "PATCH").iter().map(|chunk| chunk.body_len).max().unwrap();
    assert!(received(&registry) <= SIZE as u64 + chunk, "{}", received(&registry));
}

#[tokio::test]
async fn a_session_that_is_gone_is_begun_anew() {
    let options = Options { broken_upload: BrokenUpload::Discard, ..Options::default() };
    let (registry, left, content) = (Fixture::start_with(options), Left::default(), content(1));
    killed(&registry, &left, &content).await;
    registry.inject(Trigger::on("GET", "/uploads/"), Fault::ForgetUpload);
    push(&registry, resuming(&left), &content).await;
    assert_eq!(requests(&registry, "POST").len(), 2);
    assert_eq!(left.upload(), None);
}

#[tokio::test]
async fn a_session_with_other_bytes_is_not_finished() {
    let (registry, left) = (Fixture::start(), Left::default());
    killed(&registry, &left, &content(2)).await;
    // The digest that the registry gives at the end is of bytes that this blob does not have.
    push(&registry, resuming(&left), &content(1)).await;
    assert_eq!(requests(&registry, "POST").len(), 2);
    assert_eq!((left.upload(), registry.open_uploads(), registry.blobs(REPOSITORY).len()), (None, 0, 1));
}

#[tokio::test]
async fn a_session_of_more_bytes_than_the_blob_has_is_not_gone_on_with() {
    let (registry, left) = (Fixture::start(), Left::default());
    killed(&registry, &left, &content(1)).await;
    push(&registry, resuming(&left), &content(1).slice(..2 * CHUNK as usize - 1)).await;
    assert_eq!(requests(&registry, "POST").len(), 2);
}

#[tokio::test]
async fn an_address_that_was_kept_leads_nowhere_unsafe() {
    let stranger = Fixture::start_with(Options::default().auth(Auth::basic("eve", "other")));
    for url in [
        "not an address".to_owned(),
        "ftp://127.0.0.1/".to_owned(),
        "http://registry.example/v2/team/model/blobs/uploads/1".to_owned(),
        "http://127.0.0.1:1/v2/team/model/blobs/uploads/1".to_owned(),
        format!("http://{}/v2/{REPOSITORY}/blobs/uploads/session-1", stranger.host()),
    ] {
        let registry = Fixture::start_with(Options::default().auth(Auth::basic("alice", "s3cret")));
        let left = Left::at(&url);
        push(&registry, resuming(&left), &content(1)).await;
        assert_eq!((left.upload(), requests(&registry, "POST").len()), (None, 2), "{url}: once without credentials");
    }
    assert_eq!(stranger.requests().len(), 1);
    assert!(stranger.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn a_registry_that_is_down_has_not_lost_the_session() {
    let (registry, left, content) = (Fixture::start(), Left::default(), content(1));
    killed(&registry, &left, &content).await;
    let busy = Fault::Status { code: 503, retry_after: Some(0), body: String::new() };
    registry.inject(Trigger::on("GET", "/uploads/").times(2), busy);
    push(&registry, resuming(&left), &content).await;
    assert_eq!((requests(&registry, "POST").len(), requests(&registry, "GET").len()), (1, 3));
}

#[tokio::test]
async fn what_was_learned_of_a_registry_is_known_to_the_next_run() {
    let refusal = Fault::Status { code: 405, retry_after: None, body: String::new() };
    let registry = Fixture::start_with(Options::default().fault(Trigger::on("PATCH", "").always(), refusal));
    let first = remote(&registry, Known::default());
    let expected = Descriptor::of(MediaType::OLLAMA_TENSOR, &content(1));
    first.push(&expected, &Content(content(1))).await.unwrap();
    let kept = serde_json::to_string(&first.habits()).unwrap();
    let known = Known { habits: serde_json::from_str(&kept).unwrap(), ..Known::default() };
    push(&registry, known, &content(2)).await;
    assert_eq!(requests(&registry, "PATCH").len(), 1);
}

fn home(repository: &str, blobs: Option<&Bytes>) -> Known {
    let blobs = blobs.map(|content| BTreeSet::from([Digest::of(content)]));
    Known { homes: vec![Home { repository: repository.to_owned(), blobs }], ..Known::default() }
}

#[tokio::test]
async fn what_the_registry_has_elsewhere_is_mounted() {
    for auth in [Auth::None, Auth::basic("alice", "s3cret"), Auth::bearer("alice", "s3cret")] {
        let registry = Fixture::start_with(Options::default().auth(auth));
        let content = content(1);
        registry.put_blob("team/base", content.clone());
        assert_eq!(push(&registry, home("team/base", Some(&content)), &content).await, Pushed::Mounted);
        assert_eq!((received(&registry), registry.open_uploads()), (0, 0));
    }
}

#[tokio::test]
async fn a_token_to_mount_is_asked_for_with_the_target_first() {
    let registry = Fixture::start_with(Options::default().auth(Auth::bearer("alice", "s3cret")));
    registry.put_blob("a/base", content(1));
    // Not all registries say which scope a token lacks: it is asked for both at once, whatever is there already.
    let (remote, blobs) = (remote(&registry, home("a/base", Some(&content(1)))), [content(2), content(1)]);
    for blob in &blobs {
        remote.push(&Descriptor::of(MediaType::OLLAMA_TENSOR, blob), &Content(blob.clone())).await.unwrap();
    }
    let refused = requests(&registry, "POST").iter().filter(|request| request.status == 401).count();
    assert_eq!(refused, 1, "only the first request, which had no token");
    let scopes: Vec<_> = registry.requests().into_iter().filter(|request| request.path.contains("token")).collect();
    let query = scopes.last().unwrap().query.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
    let at = |scope: &str| query.find(scope).unwrap_or_else(|| panic!("no {scope} in {query}"));
    assert!(at("repository:team/model:pull,push") < at("repository:a/base:pull"));
}

#[tokio::test]
async fn a_mount_that_comes_to_nothing_costs_no_session_and_no_push() {
    let content = content(1);
    // One that has it no more; one that does not mount; the repository itself; another blob's home.
    for (options, from, blobs, is_asked) in [
        (Options::default(), "team/base", None, true),
        (Options { mounts: false, ..Options::default() }, "team/base", None, true),
        (Options::default(), REPOSITORY, None, false),
        (Options::default(), "team/base", Some(&Bytes::from_static(b"other")), false),
    ] {
        let registry = Fixture::start_with(options);
        registry.put_blob("team/other", content.clone());
        assert_eq!(push(&registry, home(from, blobs), &content).await, Pushed::Stored);
        let posts = requests(&registry, "POST");
        assert_eq!((posts.len(), registry.open_uploads()), (1, 0), "{from}");
        assert_eq!(posts[0].query.contains("mount="), is_asked, "{from}");
    }
    for code in [400, 401, 403, 404, 405, 500] {
        let refusal = Fault::Status { code, retry_after: None, body: String::new() };
        let registry = Fixture::start_with(Options::default().fault(Trigger::on("POST", "/uploads/"), refusal));
        assert_eq!(push(&registry, home("team/base", None), &content).await, Pushed::Stored, "{code}");
        assert_eq!(requests(&registry, "POST").len(), 2, "{code}");
    }
}
