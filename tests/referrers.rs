//! What is attached to a manifest is found again: where a registry lists referrers, and where the clients keep the list.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kiln::oci::{Descriptor, Digest, MediaType, Reference, Referrer};
use kiln::ops::attach::{self, Artifact, Attached, Blob};
use kiln::ops::remote;
use kiln::ops::transfer::Access;
use kiln::registry::{Credential, Keychain, Options as Transport, Remote};
use kiln::{Error, ErrorKind, Progress, Result};
use registry_fixtures::{Auth, Fault, Fixture, Options, Trigger};
use serde_json::{Value, json};

const REPOSITORY: &str = "team/model";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

struct Alice;

impl Keychain for Alice {
    fn credential(&self, _host: &str) -> Result<Option<Credential>> {
        Ok(Some(Credential::Basic { user: "alice".to_owned(), password: "s3cret".to_owned() }))
    }
}

fn access() -> Access {
    let options = Transport { first_pause: Duration::from_millis(5), ..Transport::default() };
    Access { keychain: Arc::new(Alice), options }
}

/// A registry with a model under the tag `v1`.
struct Scene {
    registry: Fixture,
    subject: Digest,
}

impl Scene {
    fn new(options: Options) -> Self {
        let registry = Fixture::start_with(options);
        let config = registry.put_blob(REPOSITORY, "{}");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
            "config": { "mediaType": "application/json", "digest": config, "size": 2 },
        });
        let subject = registry.put_manifest(REPOSITORY, "v1", MANIFEST, manifest.to_string()).parse().unwrap();
        Self { registry, subject }
    }

    /// One that lists referrers.
    fn listing() -> Self {
        Self::new(Options { referrers: true, ..Options::default() })
    }

    fn reference(&self, name: &str) -> Reference {
        format!("{}/{REPOSITORY}{name}", self.registry.host()).parse().unwrap()
    }

    async fn attach(&self, kind: &'static str, content: &'static str) -> Result<Attached> {
        let blob = Blob::bytes(MediaType::of("text/plain"), Bytes::from_static(content.as_bytes()));
        let annotations = BTreeMap::from([("says".to_owned(), content.to_owned())]);
        let artifact = Artifact { artifact_type: MediaType::of(kind), blobs: vec![blob], annotations };
        let (subject, access, progress) = (self.reference(":v1"), access(), Progress::silent());
        let attach = attach::attach(&subject, &artifact, &access, &progress);
        tokio::time::timeout(Duration::from_secs(60), attach).await.unwrap()
    }

    async fn referrers(&self, wanted: Option<&'static str>) -> Result<Vec<Referrer>> {
        let wanted = wanted.map(MediaType::of);
        Ok(attach::referrers(&self.reference(":v1"), wanted.as_ref(), &access()).await?.referrers)
    }

    async fn digests(&self, wanted: Option<&'static str>) -> Vec<Digest> {
        self.referrers(wanted).await.unwrap().iter().map(|referrer| referrer.descriptor.digest).collect()
    }

    fn tag(&self) -> String {
        Referrer::tag(&self.subject)
    }

    /// The list that the clients keep.
    fn index(&self) -> Option<Value> {
        Some(serde_json::from_slice(&self.registry.manifest(REPOSITORY, &self.tag())?).unwrap())
    }

    fn keep_index(&self, entries: Value) {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
        self.registry.put_manifest(REPOSITORY, &self.tag(), INDEX, index.to_string());
    }
}

fn sorted(mut digests: Vec<Digest>) -> Vec<Digest> {
    digests.sort();
    digests
}

#[tokio::test]
async fn what_is_attached_is_found_whoever_keeps_the_list() {
    for (referrers, auth) in [
        (true, Auth::None),
        (false, Auth::None),
        (true, Auth::bearer("alice", "s3cret")),
        (false, Auth::bearer("alice", "s3cret")),
    ] {
        let scene = Scene::new(Options { referrers, ..Options::default().auth(auth) });
        assert_eq!(scene.digests(None).await, []);
        let note = scene.attach("application/x-note", "good").await.unwrap();
        let other = scene.attach("application/x-other", "bad").await.unwrap();
        assert_eq!((note.subject, note.blobs_sent, note.bytes_sent), (scene.subject, 1, 4));
        assert_eq!(scene.digests(None).await, sorted(vec![note.digest, other.digest]));
        let found = scene.referrers(Some("application/x-note")).await.unwrap();
        assert_eq!(found.len(), 1);
        let Referrer { descriptor, artifact_type } = &found[0];
        assert_eq!((descriptor.digest, artifact_type.as_ref().unwrap().as_str()), (note.digest, "application/x-note"));
        assert_eq!(descriptor.annotations["says"], "good");
        assert_eq!(scene.digests(Some("application/x-nothing")).await, []);

        let manifest = scene.registry.manifest(REPOSITORY, &note.digest.to_string()).unwrap();
        assert_eq!(manifest.len() as u64, descriptor.size);
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["subject"]["digest"], scene.subject.to_string());
        assert_eq!(scene.index().is_some(), !referrers, "an index of our own only where there is none");

        let again = scene.attach("application/x-note", "good").await.unwrap();
        assert_eq!((again.digest, again.blobs_sent, again.blobs_skipped), (note.digest, 0, 2));
        assert_eq!(scene.digests(None).await.len(), 2);
    }
}

#[tokio::test]
async fn what_a_registry_does_not_filter_is_filtered_here() {
    let scene = Scene::new(Options { referrers: true, filters: false, ..Options::default() });
    let note = scene.attach("application/x-note", "good").await.unwrap();
    scene.attach("application/x-other", "bad").await.unwrap();
    assert_eq!(scene.digests(Some("application/x-note")).await, [note.digest]);
    let asked = scene.registry.requests().pop().unwrap();
    assert_eq!(asked.query, "artifactType=application%2Fx-note");
}

#[tokio::test]
async fn a_long_list_of_referrers_is_read_to_its_end() {
    let scene = Scene::new(Options { referrers: true, page: 1, ..Options::default() });
    let mut attached = Vec::new();
    for content in ["one", "two", "three"] {
        attached.push(scene.attach("application/x-note", content).await.unwrap().digest);
    }
    assert_eq!(scene.digests(Some("application/x-note")).await, sorted(attached));
    let turns = format!("</v2/{REPOSITORY}/referrers/{}?turn=", scene.subject);
    for turn in 1..5 {
        let link = Fault::Header("link", format!(r#"{turns}{turn}>; rel="next""#));
        scene.registry.inject(Trigger::on("GET", "/referrers/").nth(turn), link);
    }
    let error = scene.referrers(None).await.unwrap_err();
    assert!(error.to_string().contains("a list that does not end"), "{error}");
}

#[tokio::test]
async fn a_registry_that_knows_no_referrers_is_recognized_and_one_that_refuses_is_not_mistaken_for_it() {
    let asked = || Trigger::on("GET", "/referrers/").always();
    for (code, body) in [
        (404, "404 page not found\n"),
        (404, r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#),
        (405, ""),
        (501, ""),
        (400, r#"{"errors":[{"code":"UNSUPPORTED"}]}"#),
        (200, "<html>welcome</html>"),
        (200, "{}"),
    ] {
        let scene = Scene::new(Options::default());
        let note = scene.attach("application/x-note", "good").await.unwrap();
        scene.registry.inject(asked(), Fault::Status { code, retry_after: None, body: body.to_owned() });
        assert_eq!(scene.digests(None).await, [note.digest], "{code} {body}");
    }
    for (code, kind) in [(403, ErrorKind::Unauthorized), (400, ErrorKind::Registry), (418, ErrorKind::Registry)] {
        let scene = Scene::new(Options::default());
        scene.registry.inject(asked(), Fault::Status { code, retry_after: None, body: String::new() });
        assert_eq!(scene.referrers(None).await.unwrap_err().kind(), kind, "{code}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_lost_from_a_list_that_many_write_at_once() {
    let scene = Scene::new(Options::default());
    let attached = ["one", "two", "three", "four", "five", "six"].map(|content| scene.attach("a/b", content));
    let attached = futures_util::future::join_all(attached).await;
    let attached = attached.into_iter().map(|attached| attached.unwrap().digest).collect();
    assert_eq!(scene.digests(None).await, sorted(attached));
}

#[tokio::test]
async fn a_change_that_was_overwritten_is_made_again() {
    let scene = Scene::new(Options::default());
    let first = scene.attach("a/b", "first").await.unwrap();
    // The registry takes the index and forgets it, as if somebody wrote another one over it.
    let lost = Fault::Status { code: 201, retry_after: None, body: String::new() };
    scene.registry.inject(Trigger::on("PUT", "/manifests/sha256-").times(2), lost);
    let second = scene.attach("a/b", "second").await.unwrap();
    assert_eq!(scene.digests(None).await, sorted(vec![first.digest, second.digest]));
    // And one that always forgets is found out.
    let lost = Fault::Status { code: 201, retry_after: None, body: String::new() };
    scene.registry.inject(Trigger::on("PUT", "/manifests/sha256-").always(), lost);
    let error = scene.attach("a/b", "third").await.unwrap_err();
    assert!(error.to_string().contains("changed by others all the time"), "{error}");
}

#[tokio::test]
async fn what_others_wrote_into_the_list_stays_as_it_is() {
    let scene = Scene::new(Options::default());
    let theirs = scene.attach("a/b", "theirs").await.unwrap();
    let size = scene.registry.manifest(REPOSITORY, &theirs.digest.to_string()).unwrap().len();
    let entry = json!({
        "mediaType": MANIFEST, "digest": theirs.digest, "size": size, "artifactType": "a/b", "urls": ["x"], "new": {"field": 1},
    });
    scene.keep_index(json!([entry, entry]));
    let ours = scene.attach("a/b", "ours").await.unwrap();
    let index = scene.index().unwrap();
    let entries = index["manifests"].as_array().unwrap();
    assert!(entries.contains(&entry), "{index}");
    let digests: Vec<Digest> = entries.iter().map(|entry| entry["digest"].as_str().unwrap().parse().unwrap()).collect();
    assert_eq!(digests, sorted(vec![theirs.digest, ours.digest]));
}

#[tokio::test]
async fn a_tag_that_is_no_list_is_left_alone() {
    let scene = Scene::new(Options::default());
    let model = scene.registry.manifest(REPOSITORY, "v1").unwrap();
    scene.registry.put_manifest(REPOSITORY, &scene.tag(), MANIFEST, model.clone());
    assert_eq!(scene.digests(None).await, []);
    let error = scene.attach("a/b", "note").await.unwrap_err();
    assert!(error.to_string().contains("should list referrers, and is no such list"), "{error}");
    assert_eq!(scene.registry.manifest(REPOSITORY, &scene.tag()).unwrap(), model);
}

#[tokio::test]
async fn a_list_that_names_what_is_gone_is_mended() {
    let scene = Scene::new(Options::default());
    let gone = scene.attach("a/b", "gone").await.unwrap();
    let stays = scene.attach("a/b", "stays").await.unwrap();
    assert!(scene.registry.remove_manifest(REPOSITORY, &gone.digest.to_string()));
    let new = scene.attach("a/b", "new").await.unwrap();
    assert_eq!(scene.digests(None).await, sorted(vec![stays.digest, new.digest]));
}

#[tokio::test]
async fn what_is_removed_is_off_the_list() {
    for referrers in [true, false] {
        let scene = Scene::new(Options { referrers, ..Options::default() });
        let note = scene.attach("a/b", "note").await.unwrap();
        let stays = scene.attach("a/b", "stays").await.unwrap();
        remote::delete(&scene.reference(&format!("@{}", note.digest)), &access()).await.unwrap();
        assert_eq!(scene.digests(None).await, [stays.digest]);
        assert_eq!(scene.index().is_some(), !referrers);
    }
}

#[tokio::test]
async fn a_subject_has_to_be_there_to_be_attached_to_and_not_to_be_asked_for() {
    let scene = Scene::listing();
    let artifact = Artifact { artifact_type: MediaType::of("a/b"), blobs: vec![], annotations: BTreeMap::new() };
    let absent = |error: Error| assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let nothing = scene.reference(&format!("@{}", Digest::of(b"nothing")));
    for subject in [&nothing, &scene.reference(":v2")] {
        absent(attach::attach(subject, &artifact, &access(), &Progress::silent()).await.unwrap_err());
    }
    absent(attach::referrers(&scene.reference(":v2"), None, &access()).await.unwrap_err());
    assert_eq!(attach::referrers(&nothing, None, &access()).await.unwrap().referrers, []);
}

#[tokio::test]
async fn a_file_that_changed_meanwhile_is_not_attached() {
    let scene = Scene::listing();
    let place = tempfile::TempDir::new().unwrap();
    let path = place.path().join("note.txt");
    std::fs::write(&path, "as it was").unwrap();
    let blob = Blob::file(MediaType::of("text/plain"), &path).unwrap();
    assert_eq!(blob.descriptor().annotations[Descriptor::TITLE], "note.txt");
    let artifact = |blobs| Artifact { artifact_type: MediaType::of("a/b"), blobs, annotations: BTreeMap::new() };
    let subject = scene.reference(":v1");
    let twice = artifact(vec![blob.clone(), blob.clone()]);
    let error = attach::attach(&subject, &twice, &access(), &Progress::silent()).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Usage, "Two files are named `note.txt`"));

    std::fs::write(&path, "as it is!").unwrap();
    let error = attach::attach(&subject, &artifact(vec![blob]), &access(), &Progress::silent()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(scene.digests(None).await, []);
    assert_eq!(scene.registry.open_uploads(), 0);

    let sound = artifact(vec![Blob::file(MediaType::of("text/plain"), &path).unwrap()]);
    let attached = attach::attach(&subject, &sound, &access(), &Progress::silent()).await.unwrap();
    assert_eq!(scene.digests(None).await, [attached.digest]);
    let content = scene.registry.blob(REPOSITORY, &Digest::of(b"as it is!").to_string()).unwrap();
    assert_eq!(content, "as it is!");
}

#[tokio::test]
async fn a_manifest_with_a_subject_is_listed_however_it_came_to_the_registry() {
    use kiln::copy::{Direction, copy};
    let (from, to) = (Scene::listing(), Scene::new(Options::default()));
    let note = from.attach("application/x-note", "good").await.unwrap();
    let name = format!("@{}", note.digest);
    let (source, destination) = (from.reference(&name), to.reference(&name));
    let remote = |reference: &Reference| Remote::new(reference, access().keychain, &access().options).unwrap();
    let (a, b) = (remote(&source), remote(&destination));
    copy(Direction::Mirror, &a, &source, &b, &destination, 1, &Progress::silent()).await.unwrap();
    let listed = to.referrers(Some("application/x-note")).await.unwrap();
    assert_eq!(listed, from.referrers(None).await.unwrap());
}
