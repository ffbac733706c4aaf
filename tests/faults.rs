//! What goes wrong between kiln and a registry, and what comes of it: a registry that lies is found out
//! and changes nothing; one that stumbles is asked again; credentials go nowhere else; the tag comes last.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

#[path = "cli/place.rs"]
#[allow(dead_code, reason = "the tests of the command line use all of it")]
mod place;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use kiln::registry::{Anonymous, Options as Transport, Remote};
use kiln::storage::conformance;
use registry_fixtures::{Auth, Fault, Fixture, Options, Recorded, Trigger};

use place::{Place, Run};

/// The layers of `demo:int4` and its config.
const BLOBS: u64 = 22;
const CREDENTIALS: (&str, &str) = ("ada", "s3cret-word");

/// A registry, a place with `demo:int4` in its store, and what the model is called in the registry.
struct Scene {
    registry: Fixture,
    place: Place,
    remote: String,
}

impl Scene {
    fn new() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        let (registry, place) = (Fixture::start_with(options), Place::with_model());
        let remote = format!("{}/team/demo:int4", registry.host());
        Self { registry, place, remote }
    }

    /// A scene with the model in the registry, and in the store `other` all of it but the layer `lm_head.weight`
    /// and the name.
    fn with_all_but_one() -> Self {
        let scene = Self::new();
        scene.push().expect(0);
        scene.pull("here").expect(0);
        scene.place.kiln("rm here --store other").expect(0);
        let missing = scene.place.layer("lm_head.weight");
        let hexadecimal = missing.strip_prefix("sha256:").unwrap();
        fs::remove_file(scene.place.path("other/blobs/sha256").join(hexadecimal)).unwrap();
        scene.registry.clear_requests();
        scene
    }

    fn log_in(&self) {
        let (user, password) = CREDENTIALS;
        fs::write(self.place.path("password"), password).unwrap();
        let mut command = self.place.command(&format!("login {} -u {user} --password-stdin", self.registry.host()));
        command.stdin(fs::File::open(self.place.path("password")).unwrap());
        self.place.run(command).expect(0);
    }

    fn push(&self) -> Run {
        self.place.kiln(&format!("push demo:int4 {} --json", self.remote))
    }

    fn pull(&self, name: &str) -> Run {
        self.place.kiln(&format!("pull {} {name} --store other --json", self.remote))
    }

    /// Pulls, and checks that what came is sound and the same.
    fn pull_well(&self) -> Run {
        let run = self.pull("here");
        run.expect(0);
        let place = &self.place;
        assert_eq!(place.digest("show here --store other"), place.digest("show demo:int4"));
        place.kiln("verify here --store other").expect(0);
        run
    }
}

/// Every file below `directory` with its bytes.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap()) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.display().to_string(), fs::read(&path).unwrap());
        }
    }
    found
}

fn index(requests: &[Recorded], is: impl Fn(&Recorded) -> bool) -> Vec<usize> {
    requests.iter().enumerate().filter(|(_, request)| is(request)).map(|(index, _)| index).collect()
}

#[test]
fn a_registry_that_lies_about_a_blob_changes_nothing() {
    let scene = Scene::with_all_but_one();
    let layer = scene.place.layer("lm_head.weight");
    let store = scene.place.path("other");
    let before = files(&store);
    for fault in [
        Fault::FlipBit { at: 0 },
        Fault::FlipBit { at: 4000 },
        Fault::Truncate { after: 0 },
        Fault::Truncate { after: 4000 },
    ] {
        scene.registry.inject(Trigger::on("GET", &layer), fault.clone());
        let run = scene.pull("here");
        run.expect(3);
        assert!(run.last_object()["message"].as_str().unwrap().contains("lm_head.weight"), "{fault:?}: {run}");
        assert_eq!(files(&store), before, "{fault:?}");
    }
    let run = scene.pull_well();
    assert_eq!(run.last_object()["blobs_fetched"], 1);
}

#[test]
fn a_registry_that_stores_another_manifest_is_not_believed() {
    let scene = Scene::new();
    scene.registry.inject(Trigger::on("PUT", "/manifests/"), Fault::LyingDigest);
    let run = scene.push();
    assert_eq!(run.code(), 3, "{run}");
    assert!(run.stderr.contains("was stored as another one, `sha256:"), "{run}");
    scene.push().expect(0);
}

#[test]
fn a_registry_that_lies_about_a_manifest_changes_nothing() {
    let scene = Scene::new();
    scene.push().expect(0);
    scene.place.kiln("list --store other").expect(0);
    let store = scene.place.path("other");
    let before = files(&store);
    let digest = scene.place.digest("show demo:int4");
    let pinned = format!("{}/team/demo@{digest}", scene.registry.host());
    // The last byte that is flipped is one of a layer's name: it is a manifest still, and another one.
    let manifest = scene.registry.manifest("team/demo", "int4").unwrap();
    let in_a_name = manifest.windows(7).position(|window| window == b"lm_head").unwrap();
    for fault in [
        Fault::LyingDigest,
        Fault::Truncate { after: 100 },
        Fault::FlipBit { at: 0 },
        Fault::FlipBit { at: in_a_name },
        Fault::ContentType("application/vnd.oci.image.manifest.v1+json"),
    ] {
        for reference in [&scene.remote, &pinned] {
            scene.registry.inject(Trigger::on("GET", "/manifests/"), fault.clone());
            let run = scene.place.kiln(&format!("pull {reference} here --store other"));
            assert_eq!(run.code(), 3, "{fault:?} {reference}: {run}");
            assert_eq!(files(&store), before, "{fault:?} {reference}");
        }
    }
    scene.pull_well();
}

#[test]
fn a_wrong_digest_in_a_header_does_not_harm_the_right_bytes() {
    let scene = Scene::with_all_but_one();
    scene.registry.inject(Trigger::on("GET", "/blobs/").always(), Fault::LyingDigest);
    scene.pull_well();
}

#[test]
fn a_busy_registry_is_asked_again() {
    let busy = |code, retry_after| Fault::Status { code, retry_after, body: String::new() };
    for (fault, times) in [(busy(429, Some(1)), 1), (busy(503, None), 2)] {
        let scene = Scene::new();
        for (method, path) in
            [("POST", "/uploads/"), ("PUT", "/manifests/"), ("GET", "/manifests/"), ("GET", "/blobs/")]
        {
            scene.registry.inject(Trigger::on(method, path).times(times), fault.clone());
        }
        let sent = scene.push().expect(0).last_object();
        assert_eq!(sent["blobs_sent"], BLOBS, "{fault:?}");
        scene.pull_well();
        let refused = index(&scene.registry.requests(), |request| [429, 503].contains(&request.status));
        assert_eq!(refused.len(), 4 * times, "{fault:?}");
    }
}

#[test]
fn a_connection_that_drops_in_the_middle_is_made_again() {
    let scene = Scene::new();
    let layer = scene.place.layer("lm_head.weight");
    let size = scene.place.blob(&layer).metadata().unwrap().len();
    for (nth, after) in [(1, 0), (5, 1), (9, 100)] {
        scene.registry.inject(Trigger::on("PUT", "/blobs/uploads/").nth(nth), Fault::DropRequest { after });
    }
    scene.registry.inject(Trigger::on("PUT", "/manifests/"), Fault::LoseReply);
    scene.push().expect(0);
    // Three blobs and the manifest had to be sent twice.
    assert_eq!(index(&scene.registry.requests(), |request| request.status == 0).len(), 4);
    for after in [0, 1, 4000] {
        scene.registry.inject(Trigger::on("GET", &layer), Fault::DropReply { after });
    }
    scene.registry.clear_requests();
    scene.pull_well();
    let requests = scene.registry.requests();
    let asked = index(&requests, |request| request.method == "GET" && request.path.contains(&layer));
    let ranges: Vec<_> = asked.iter().map(|&index| requests[index].header("range")).collect();
    assert!(ranges.len() > 1, "{ranges:?}");
    assert_eq!(ranges[0], None);
    let end = format!("-{}", size - 1);
    assert!(ranges.iter().flatten().all(|range| range.starts_with("bytes=") && range.ends_with(&end)), "{ranges:?}");
}

#[test]
fn a_token_that_expires_on_the_way_is_replaced() {
    let (user, password) = CREDENTIALS;
    let scene = Scene::with(Options::default().auth(Auth::bearer(user, password)));
    scene.log_in();
    for (method, path, nth) in [("PUT", "/uploads/", 5), ("PUT", "/manifests/", 1), ("GET", "/blobs/", 7)] {
        scene.registry.inject(Trigger::on(method, path).nth(nth), Fault::ExpiredToken);
    }
    scene.push().expect(0);
    scene.pull_well();
    let requests = scene.registry.requests();
    let tokens = index(&requests, |request| request.path == "/token");
    // One for the login, one each for push and pull, and one for each that expired.
    assert!(tokens.len() >= 5, "{tokens:?}");
}

#[test]
fn a_redirect_takes_no_credentials_to_another_host() {
    let (user, password) = CREDENTIALS;
    let scene = Scene::with(Options::default().auth(Auth::basic(user, password)));
    scene.log_in();
    scene.push().expect(0);
    let elsewhere = Fixture::start();
    for digest in scene.registry.blobs("team/demo") {
        elsewhere.put_blob("team/demo", scene.registry.blob("team/demo", &digest).unwrap());
    }
    scene.registry.inject(Trigger::on("GET", "/blobs/").always(), Fault::RedirectTo(elsewhere.host()));
    scene.pull_well();
    let requests = elsewhere.requests();
    assert_eq!(requests.len() as u64, BLOBS);
    for request in requests {
        assert_eq!((request.header("authorization"), request.header("cookie")), (None, None), "{request:?}");
        let secrets: Vec<_> =
            request.headers.values().filter(|value| value.to_str().unwrap().contains(password)).collect();
        assert!(secrets.is_empty() && request.query.is_empty(), "{request:?}");
    }
}

#[test]
fn the_tag_comes_after_everything_else() {
    let scene = Scene::new();
    // One blob is slow, and the manifest waits for it.
    scene.registry.inject(Trigger::on("PUT", "/uploads/").nth(3), Fault::Delay(std::time::Duration::from_millis(300)));
    scene.push().expect(0);
    let requests = scene.registry.requests();
    let blobs = index(&requests, |request| request.method == "PUT" && request.path.contains("/blobs/"));
    let manifests = index(&requests, |request| request.method == "PUT" && request.path.contains("/manifests/"));
    assert_eq!(blobs.len() as u64, BLOBS);
    assert_eq!(manifests, [requests.len() - 1]);
    assert!(requests.iter().all(|request| request.status < 400 || request.method == "HEAD"), "{requests:?}");
    assert_eq!(scene.registry.open_uploads(), 0);
}

#[test]
fn a_push_that_fails_leaves_no_tag() {
    let scene = Scene::new();
    let refusal = Fault::Status { code: 403, retry_after: None, body: String::new() };
    scene.registry.inject(Trigger::on("PUT", "/uploads/").nth(BLOBS as usize).always(), refusal);
    scene.push().expect(7);
    assert!(scene.registry.tags("team/demo").is_empty());
    let requests = scene.registry.requests();
    assert!(index(&requests, |request| request.path.contains("/manifests/")).is_empty(), "{requests:?}");
}

#[tokio::test]
async fn a_registry_keeps_the_laws_of_storage() {
    let registry = Fixture::start();
    let repository = format!("{}/laws/model", registry.host());
    let reference = format!("{repository}:any").parse().unwrap();
    let remote = Remote::new(&reference, Arc::new(Anonymous), &Transport::default()).unwrap();
    if let Err(error) = conformance::uphold(&remote, &repository).await {
        panic!("{error}: {:?}", error.source().map(ToString::to_string));
    }
    assert_eq!(registry.open_uploads(), 0, "uploads stayed open");
    let requests = registry.requests();
    let mistagged = index(&requests, |request| request.method == "PUT" && request.path.ends_with("/mistagged"));
    assert!(mistagged.is_empty(), "other bytes than the target's were sent");
}
