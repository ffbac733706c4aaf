//! What is promised of Ollama's registry protocol, against a registry that lets nothing else through: users
//! are known by a key that only signs, blobs go past the registry into a storage that sees no credential, and
//! what is not whole is not published.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;
use kiln::copy::{CopyReport, Direction, copy};
use kiln::oci::{Descriptor, Manifest, MediaType, Reference};
use kiln::registry::{Anonymous, Credential, Keychain, OllamaOptions, Options, Remote, SigningKey};
use kiln::storage::{Body, ByteStream, Memory, Push as _, Pushed, Refs as _};
use kiln::{Error, ErrorKind, Progress, Result};
use registry_fixtures::{
    Auth, Fault, Fixture, Ollama, OllamaOptions as Behaviour, Options as FixtureOptions, Recorded, Trigger, Uploads,
};
use tempfile::TempDir;

/// A key that `ssh-keygen` made for these tests, and its public half.
const KEY: &str = include_str!("keys/sound");
const PUBLIC_KEY: &str = include_str!("keys/sound.pub");
const SIZE: usize = 1_000_000;
const PART: u64 = 100_000;

/// Bytes in memory, given out in pieces.
struct Content(Bytes);

impl Body for Content {
    fn open(&self, bytes: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        let end = self.0.len().min(bytes.end as usize);
        let rest = self.0.slice(end.min(bytes.start as usize)..end);
        let pieces: Vec<_> = rest.chunks(7000).map(|piece| Ok(rest.slice_ref(piece))).collect();
        Box::pin(async move { Ok(Box::pin(stream::iter(pieces)) as ByteStream) })
    }
}

/// A keychain with a password.
struct Alice;

impl Keychain for Alice {
    fn credential(&self, _host: &str) -> Result<Option<Credential>> {
        Ok(Some(Credential::Basic { user: "alice".into(), password: "s3cret".into() }))
    }
}

/// Bytes of which others are sent than were read before.
struct Restless {
    bytes: Bytes,
    reads: AtomicUsize,
}

impl Body for Restless {
    fn open(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        let mut bytes = self.bytes[range.start as usize..range.end as usize].to_vec();
        // A part in the middle is opened to be offered, to be checked, and to be sent.
        if range.start == PART && self.reads.fetch_add(1, Ordering::Relaxed) == 2 {
            bytes[0] ^= 1;
        }
        Box::pin(async move { Ok(Box::pin(stream::iter([Ok(Bytes::from(bytes))])) as ByteStream) })
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

fn public_key() -> String {
    PUBLIC_KEY.rsplit_once(' ').unwrap().0.to_owned()
}

fn status(code: u16) -> Fault {
    Fault::Status { code, retry_after: None, body: String::new() }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("an end within 60 s")
}

/// A registry, a user with a key, and their client.
struct Scene {
    registry: Ollama,
    remote: Remote,
    home: TempDir,
}

impl Scene {
    /// A registry that knows the key as that of `team`.
    fn new(behaviour: Behaviour) -> Self {
        let keys = vec![(public_key(), "team".to_owned())];
        let registry = Ollama::start(Behaviour { keys, ..behaviour });
        let home = TempDir::new().unwrap();
        let key = key_file(home.path(), KEY, 0o600);
        let remote = remote(&reference(&registry, "team"), &options(Some(key)));
        Self { registry, remote, home }
    }

    fn with(uploads: Uploads) -> Self {
        Self::new(Behaviour { uploads, min_part: PART, ..Behaviour::default() })
    }

    async fn try_push(&self, expected: &Descriptor, body: &dyn Body) -> Result<Pushed> {
        within(self.remote.push(expected, body)).await
    }

    /// Pushes `content` and checks that the registry has it.
    async fn push(&self, content: &Bytes) {
        let expected = Descriptor::of(MediaType::OLLAMA_TENSOR, content);
        let pushed = self.try_push(&expected, &Content(content.clone())).await.unwrap();
        assert_eq!(pushed, Pushed::Stored);
        assert!(self.registry.blob(&expected.digest.to_string()).unwrap() == content);
    }

    fn requests(&self, method: &str) -> Vec<Recorded> {
        self.registry.requests().into_iter().filter(|request| request.method == method).collect()
    }

    /// How many uploads were begun.
    fn begun(&self) -> usize {
        self.requests("POST").iter().filter(|request| request.status == 202).count()
    }

    /// The paths in the storage that were written to, each with how often.
    fn writes(&self) -> BTreeMap<String, usize> {
        let mut writes = BTreeMap::new();
        for request in self.registry.storage_requests() {
            *writes.entry(request.path.rsplit('/').next().unwrap().to_owned()).or_default() += 1;
        }
        writes
    }

    fn tokens(&self) -> usize {
        self.requests("GET").iter().filter(|request| request.path == "/v2/token").count()
    }
}

fn reference(registry: &Ollama, namespace: &str) -> Reference {
    format!("{}/{namespace}/model:v1", registry.host()).parse().unwrap()
}

fn options(key: Option<PathBuf>) -> Options {
    Options {
        chunk: Some(PART),
        first_pause: Duration::from_millis(5),
        ollama: OllamaOptions { spoken: true, key },
        ..Options::default()
    }
}

fn remote(reference: &Reference, options: &Options) -> Remote {
    Remote::new(reference, Arc::new(Anonymous), options).unwrap()
}

fn key_file(directory: &Path, text: &str, mode: u32) -> PathBuf {
    let path = directory.join("id_ed25519");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

/// A model with one layer of `size` bytes.
async fn model(size: usize) -> Memory {
    let memory = Memory::new();
    let config = memory.insert(MediaType::DOCKER_CONFIG, "{}");
    let layer = memory.insert(MediaType::OLLAMA_TENSOR, content(size));
    let manifest = Manifest {
        schema_version: 2,
        media_type: MediaType::DOCKER_MANIFEST,
        artifact_type: None,
        config,
        layers: vec![layer],
        subject: None,
        annotations: BTreeMap::new(),
    };
    let bytes = Bytes::from(serde_json::to_vec(&manifest).unwrap());
    let target = memory.insert(MediaType::DOCKER_MANIFEST, bytes.clone());
    memory.tag(&"model".parse().unwrap(), &target, &bytes).await.unwrap();
    memory
}

async fn push_model(memory: &Memory, remote: &Remote, to: &Reference) -> Result<CopyReport> {
    let name = "model".parse().unwrap();
    within(copy(Direction::Push, memory, &name, remote, to, 4, &Progress::silent())).await
}

async fn pull_model(remote: &Remote, from: &Reference, memory: &Memory) -> Result<CopyReport> {
    let name = "model".parse().unwrap();
    within(copy(Direction::Pull, remote, from, memory, &name, 4, &Progress::silent())).await
}

#[tokio::test]
async fn what_is_pushed_is_pulled_and_nothing_is_sent_twice() {
    for uploads in [Uploads::Direct, Uploads::Parts, Uploads::Here] {
        let (scene, memory) = (Scene::with(uploads), model(SIZE).await);
        let (name, there) = ("model".parse().unwrap(), reference(&scene.registry, "team"));
        let pushed = push_model(&memory, &scene.remote, &there).await.unwrap();
        assert_eq!((pushed.blobs_transferred, pushed.blobs_skipped), (2, 0), "{uploads:?}");
        assert_eq!(scene.registry.open_uploads(), 0);
        let last = scene.registry.requests().pop().unwrap();
        assert_eq!((last.method.as_str(), last.path.as_str()), ("PUT", "/v2/team/model/manifests/v1"));

        scene.registry.clear_requests();
        let again = push_model(&memory, &scene.remote, &there).await.unwrap();
        assert_eq!((again.blobs_transferred, again.blobs_skipped), (0, 2), "{uploads:?}");
        assert_eq!((scene.requests("POST").len(), scene.registry.storage_requests().len()), (0, 0));

        let other = Memory::new();
        let pulled = pull_model(&scene.remote, &there, &other).await.unwrap();
        assert_eq!((pulled.digest, pulled.blobs_transferred), (pushed.digest, 2));
        assert_eq!(other.resolve(&name).await.unwrap(), memory.resolve(&name).await.unwrap());
        // The storage refuses whoever comes with a credential; nobody did.
        assert!(scene.registry.storage_requests().iter().all(|request| request.header("authorization").is_none()));
    }
}

#[tokio::test]
async fn a_blob_that_the_registry_finds_by_its_digest_is_not_sent() {
    let (scene, memory) = (Scene::with(Uploads::Parts), model(SIZE).await);
    let there = reference(&scene.registry, "team");
    push_model(&memory, &scene.remote, &there).await.unwrap();
    scene.registry.clear_requests();
    scene.registry.inject(Trigger::on("HEAD", "/blobs/").always(), status(404));
    let again = push_model(&memory, &scene.remote, &there).await.unwrap();
    assert_eq!((again.blobs_transferred, again.blobs_skipped), (0, 2));
    let answers: Vec<_> = scene.requests("POST").iter().map(|request| request.status).collect();
    assert_eq!((answers, scene.registry.storage_requests().len()), (vec![201, 201], 0));
}

#[tokio::test]
async fn a_large_blob_goes_in_parts_to_the_storage_and_only_there() {
    let scene = Scene::with(Uploads::Parts);
    scene.push(&content(SIZE + 1)).await;
    let offers = scene.requests("PATCH");
    assert_eq!(offers.len(), 11);
    assert_eq!(offers[0].header("content-range"), Some("0-99999"));
    assert_eq!(offers[10].header("content-range"), Some("1000000-1000000"));
    assert_eq!(offers.iter().map(|offer| offer.body_len).sum::<u64>(), 0, "the registry is sent no part");
    let stored: u64 = scene.registry.storage_requests().iter().map(|request| request.body_len).sum();
    assert_eq!(stored, SIZE as u64 + 1);
}

#[tokio::test]
async fn a_blob_of_one_part_and_one_of_none_go_too() {
    for uploads in [Uploads::Direct, Uploads::Parts, Uploads::Here] {
        let scene = Scene::with(uploads);
        scene.push(&content(PART as usize)).await;
        scene.push(&Bytes::from("tiny")).await;
        scene.push(&Bytes::new()).await;
    }
}

#[tokio::test]
async fn parts_are_long_where_a_blob_is_and_several_are_on_their_way_at_once() {
    let scene = Scene::new(Behaviour { together: 4, ..Behaviour::default() });
    scene.push(&content(32 * PART as usize)).await;
    let lengths: Vec<_> =
        scene.requests("PATCH").iter().map(|offer| offer.header("content-length").unwrap().to_owned()).collect();
    assert_eq!(lengths, vec![(2 * PART).to_string(); 16]);
}

#[tokio::test]
async fn a_registry_that_takes_a_part_in_before_it_says_where_it_belongs_gets_it() {
    let scene = Scene::new(Behaviour { reads_first: true, ..Behaviour::default() });
    scene.push(&content(PART as usize)).await;
    assert_eq!(scene.requests("PATCH")[0].body_len, PART);
}

#[tokio::test]
async fn what_the_storage_address_was_signed_with_goes_there_and_nobodys_credentials() {
    let scene = Scene::with(Uploads::Direct);
    scene.push(&content(SIZE)).await;
    let stored = scene.registry.storage_requests();
    assert_eq!((stored.len(), stored[0].status), (1, 200));
    assert!(stored[0].header("x-amz-checksum-sha256").is_some() && stored[0].header("authorization").is_none());
    assert!(scene.requests("PATCH").is_empty());
}

#[tokio::test]
async fn a_part_that_breaks_is_sent_again_and_no_other() {
    for fault in [Fault::DropRequest { after: 50_000 }, Fault::LoseReply, status(503), Fault::FlipBit { at: 0 }] {
        let scene = Scene::with(Uploads::Parts);
        scene.registry.inject_storage(Trigger::on("PUT", "/3"), fault.clone());
        scene.push(&content(SIZE)).await;
        let expected = (0..10).map(|part| (part.to_string(), if part == 3 { 2 } else { 1 })).collect();
        assert_eq!(scene.writes(), expected, "{fault:?}");
        assert_eq!((scene.begun(), scene.requests("PATCH").len()), (1, 10), "{fault:?}");
    }
}

#[tokio::test]
async fn an_address_that_expired_is_asked_for_anew() {
    let scene = Scene::with(Uploads::Parts);
    scene.registry.inject_storage(Trigger::on("PUT", "/3"), status(403));
    scene.push(&content(SIZE)).await;
    let tries: Vec<_> =
        scene.registry.storage_requests().into_iter().filter(|request| request.path.ends_with("/3")).collect();
    assert_eq!(tries.len(), 2);
    assert_ne!(tries[0].query, tries[1].query);
    assert_eq!((scene.begun(), scene.requests("PATCH").len()), (1, 11));

    let scene = Scene::with(Uploads::Direct);
    scene.registry.inject_storage(Trigger::on("PUT", "/"), status(403));
    scene.push(&content(SIZE)).await;
    assert_eq!(scene.begun(), 2);
}

#[tokio::test]
async fn a_part_that_never_arrives_ends_the_push_and_publishes_nothing() {
    let scene = Scene::with(Uploads::Parts);
    scene.registry.inject_storage(Trigger::on("PUT", "/3").always(), status(503));
    let blob = content(SIZE);
    let expected = Descriptor::of(MediaType::OLLAMA_TENSOR, &blob);
    let error = scene.try_push(&expected, &Content(blob)).await.unwrap_err();
    assert_eq!((error.kind(), scene.registry.blobs()), (ErrorKind::Registry, vec![]));
}

#[tokio::test]
async fn a_lost_answer_to_the_last_request_costs_no_second_upload() {
    for uploads in [Uploads::Direct, Uploads::Parts] {
        let scene = Scene::with(uploads);
        scene.registry.inject(Trigger::on("PUT", "/blobs/uploads/"), Fault::LoseReply);
        scene.push(&content(SIZE)).await;
        assert_eq!((scene.begun(), scene.requests("HEAD").len()), (1, 1), "{uploads:?}");
    }
}

#[tokio::test]
async fn a_rotten_blob_is_never_published() {
    for uploads in [Uploads::Direct, Uploads::Parts, Uploads::Here] {
        let scene = Scene::with(uploads);
        let sound = content(SIZE);
        let expected = Descriptor::of(MediaType::OLLAMA_TENSOR, &sound);
        for at in [0, SIZE / 2, SIZE - 1] {
            let mut rotten = sound.to_vec();
            rotten[at] ^= 1;
            let error = scene.try_push(&expected, &Content(rotten.into())).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{uploads:?} {at}");
        }
        let error = scene.try_push(&expected, &Content(sound.slice(..SIZE - 1))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{uploads:?}");
        assert_eq!((scene.registry.blobs(), scene.registry.open_uploads()), (vec![], 0), "{uploads:?}");
    }
}

#[tokio::test]
async fn a_part_that_is_not_what_was_checked_before_is_found() {
    let scene = Scene::with(Uploads::Parts);
    let bytes = content(SIZE);
    let expected = Descriptor::of(MediaType::OLLAMA_TENSOR, &bytes);
    let body = Restless { bytes, reads: AtomicUsize::new(0) };
    let error = scene.try_push(&expected, &body).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("changed while it was sent"), "{error}");
    assert_eq!((scene.registry.blobs(), scene.registry.open_uploads()), (vec![], 0));
}

#[tokio::test]
async fn a_token_that_ran_out_is_asked_for_again_in_the_middle() {
    let scene = Scene::with(Uploads::Parts);
    scene.registry.inject(Trigger::on("PATCH", "").nth(3), Fault::ExpiredToken);
    scene.registry.inject(Trigger::on("PUT", "/blobs/uploads/"), Fault::ExpiredToken);
    scene.push(&content(SIZE)).await;
    // The first, and one for each that ran out. The registry takes no question twice.
    assert_eq!(scene.tokens(), 3);
    assert_eq!(scene.begun(), 1);
    assert_eq!(scene.writes().len(), 10);
}

#[tokio::test]
async fn a_key_that_the_registry_does_not_know_is_shown_with_the_place_for_it() {
    let registry = Ollama::start(Behaviour::default());
    let home = TempDir::new().unwrap();
    let key = key_file(home.path(), KEY, 0o600);
    let there = reference(&registry, "team");
    let error = push_model(&model(10).await, &remote(&there, &options(Some(key))), &there).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    let hint = error.hint_text().unwrap();
    assert!(hint.contains("https://ollama.com/settings/keys") && hint.ends_with(&public_key()), "{hint}");
    assert!(registry.blobs().is_empty());
}

#[tokio::test]
async fn a_key_of_somebody_else_is_told_so_without_a_circle() {
    let scene = Scene::with(Uploads::Parts);
    let there = reference(&scene.registry, "others");
    let other = remote(&there, &options(Some(scene.home.path().join("id_ed25519"))));
    let error = push_model(&model(10).await, &other, &there).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(error.hint_text().unwrap().ends_with(&public_key()), "{error:?}");
    assert!(scene.tokens() <= 4, "{}", scene.tokens());
}

#[tokio::test]
async fn without_a_key_everything_can_be_pulled_and_nothing_pushed() {
    let scene = Scene::with(Uploads::Parts);
    let (memory, there) = (model(SIZE).await, reference(&scene.registry, "team"));
    push_model(&memory, &scene.remote, &there).await.unwrap();
    let nobody = remote(&there, &options(Some(scene.home.path().join("missing"))));
    pull_model(&nobody, &there, &Memory::new()).await.unwrap();

    let error = push_model(&model(10).await, &nobody, &there).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert_eq!(error.hint_text(), Some(format!("kiln login {}", scene.registry.host()).as_str()));
}

#[tokio::test]
async fn nothing_is_signed_for_a_token_service_elsewhere() {
    let elsewhere = Ollama::start(Behaviour::default());
    let realm = Some(format!("http://{}/v2/token", elsewhere.host()));
    let scene = Scene::new(Behaviour { realm, ..Behaviour::default() });
    let error = push_model(&model(10).await, &scene.remote, &reference(&scene.registry, "team")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    assert!(error.to_string().contains("wants a signature sent to another host"), "{error}");
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test]
async fn a_redirect_to_another_host_takes_no_credential_along() {
    for method in ["GET", "HEAD", "POST", "PATCH"] {
        let recorder = Ollama::start(Behaviour::default());
        let scene = Scene::with(Uploads::Parts);
        let (memory, there) = (model(10).await, reference(&scene.registry, "team"));
        push_model(&memory, &scene.remote, &there).await.unwrap();
        scene.registry.inject(Trigger::on(method, "").always(), Fault::RedirectTo(recorder.host()));
        let _ = push_model(&model(20).await, &scene.remote, &there).await;
        let _ = within(scene.remote.resolve(&there)).await;
        let seen = recorder.requests().into_iter().chain(recorder.storage_requests());
        let seen: Vec<_> = seen.filter(|request| !request.path.ends_with("/token")).collect();
        assert!(!seen.is_empty(), "{method} was redirected");
        assert!(seen.iter().all(|request| request.header("authorization").is_none()), "{method}: {seen:?}");
    }
}

#[tokio::test]
async fn a_part_does_not_go_where_everybody_can_read_along() {
    let scene = Scene::with(Uploads::Parts);
    let elsewhere = Fault::Location("http://storage.example/part".to_owned());
    scene.registry.inject(Trigger::on("PATCH", "").always(), elsewhere);
    let blob = content(10);
    let error = scene.try_push(&Descriptor::of(MediaType::OLLAMA_TENSOR, &blob), &Content(blob)).await.unwrap_err();
    assert!(error.to_string().contains("an address that is not safe: `http://storage.example/part`"), "{error}");
}

#[tokio::test]
async fn no_other_registry_is_shown_the_key_or_asked_for_addresses() {
    let home = TempDir::new().unwrap();
    let mut options = options(Some(key_file(home.path(), KEY, 0o600)));
    options.ollama.spoken = false;
    let registry = Fixture::start_with(FixtureOptions::default().auth(Auth::bearer("alice", "s3cret")));
    let there: Reference = format!("{}/team/model:v1", registry.host()).parse().unwrap();
    let error = push_model(&model(10).await, &remote(&there, &options), &there).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    let requests = registry.requests();
    assert!(requests.iter().any(|request| request.path == "/token"));
    assert!(requests.iter().all(|request| request.header("authorization").is_none()));
    assert!(requests.iter().all(|request| request.header("x-redirect-uploads").is_none()));
}

#[tokio::test]
async fn a_registry_of_the_ordinary_kind_can_be_spoken_to_all_the_same() {
    let registry = Fixture::start_with(FixtureOptions::default());
    let there: Reference = format!("{}/team/model:v1", registry.host()).parse().unwrap();
    let report = push_model(&model(SIZE).await, &remote(&there, &options(None)), &there).await.unwrap();
    assert_eq!((report.blobs_transferred, registry.blobs("team/model").len()), (2, 2));
}

#[tokio::test]
async fn a_password_for_just_this_registry_comes_before_the_key() {
    let home = TempDir::new().unwrap();
    let registry = Fixture::start_with(FixtureOptions::default().auth(Auth::basic("alice", "s3cret")));
    let there: Reference = format!("{}/team/model:v1", registry.host()).parse().unwrap();
    let options = options(Some(key_file(home.path(), KEY, 0o600)));
    let remote = Remote::new(&there, Arc::new(Alice), &options).unwrap();
    push_model(&model(10).await, &remote, &there).await.unwrap();
}

#[tokio::test]
async fn a_download_that_breaks_in_the_storage_is_taken_up_at_a_new_address() {
    let scene = Scene::with(Uploads::Parts);
    let (memory, there, name) = (model(SIZE).await, reference(&scene.registry, "team"), "model".parse().unwrap());
    push_model(&memory, &scene.remote, &there).await.unwrap();
    scene.registry.clear_requests();
    let large = content(SIZE);
    let path = Descriptor::of(MediaType::OLLAMA_TENSOR, &large).digest.to_string();
    scene.registry.inject_storage(Trigger::on("GET", &path), Fault::DropReply { after: 400_000 });
    let other = Memory::new();
    pull_model(&scene.remote, &there, &other).await.unwrap();
    assert_eq!(other.resolve(&name).await.unwrap(), memory.resolve(&name).await.unwrap());
    let reads: Vec<_> =
        scene.registry.storage_requests().into_iter().filter(|request| request.path.contains(&path)).collect();
    assert_eq!(reads.len(), 2);
    assert_eq!((reads[1].header("range"), reads[1].status), (Some("bytes=400000-999999"), 206));
    assert_ne!(reads[0].query, reads[1].query);
}

#[test]
fn a_key_file_is_used_only_if_it_is_its_owners_alone_and_what_it_should_be() {
    let home = TempDir::new().unwrap();
    let key = SigningKey::read(&key_file(home.path(), KEY, 0o600)).unwrap().unwrap();
    assert_eq!(key.public_key(), public_key());
    assert!(!format!("{key:?}").contains("OPENSSH"));
    let mismatched = {
        let mut lines: Vec<&str> = KEY.lines().collect();
        // In the fourth line there is nothing but the seed and the public key that follows it.
        let changed = lines[4].replacen('J', "K", 1);
        lines[4] = &changed;
        format!("{}\n", lines.join("\n"))
    };
    for (text, mode, says, hint) in [
        (KEY, 0o640, "Others may read the private key", Some("chmod 600 ")),
        (KEY, 0o604, "Others may read the private key", Some("chmod 600 ")),
        ("not a key", 0o600, "Not a private key in OpenSSH's format", None),
        ("", 0o600, "Not a private key in OpenSSH's format", None),
        (include_str!("keys/encrypted"), 0o600, "has a passphrase", Some("ssh-keygen -p -f ")),
        (include_str!("keys/ecdsa"), 0o600, "`ecdsa-sha2-nistp256` instead of `ssh-ed25519`", None),
        (&mismatched, 0o600, "do not belong together", None),
    ] {
        let error = SigningKey::read(&key_file(home.path(), text, mode)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized);
        assert!(error.to_string().contains(says) && error.to_string().contains("id_ed25519"), "{error}");
        assert_eq!(hint.is_some(), error.hint_text().is_some(), "{error:?}");
        assert!(hint.is_none_or(|hint| error.hint_text().unwrap().contains(hint)), "{error:?}");
    }
    assert!(SigningKey::read(&home.path().join("missing")).unwrap().is_none());
}

#[tokio::test]
async fn a_key_file_that_cannot_be_used_stops_before_anything_is_sent_with_it() {
    let scene = Scene::with(Uploads::Parts);
    key_file(scene.home.path(), KEY, 0o644);
    let error: Error =
        push_model(&model(10).await, &scene.remote, &reference(&scene.registry, "team")).await.unwrap_err();
    assert_eq!((error.kind(), scene.tokens()), (ErrorKind::Unauthorized, 0));
}

#[tokio::test]
async fn a_key_of_our_own_is_made_for_its_owner_alone_and_opens_the_registry() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("kiln/ollama/id_ed25519");
    let key = SigningKey::create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(SigningKey::read(&path).unwrap().unwrap(), key);
    assert_eq!(SigningKey::create(&path).unwrap_err().kind(), ErrorKind::Unauthorized, "a key is not overwritten");

    let registry =
        Ollama::start(Behaviour { keys: vec![(key.public_key(), "team".to_owned())], ..Behaviour::default() });
    let there = reference(&registry, "team");
    push_model(&model(10).await, &remote(&there, &options(Some(path))), &there).await.unwrap();
}
