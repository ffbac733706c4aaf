//! Pushes from a store on disk that has hashed its layers: they are sent as they are to a registry that hashes, and what
//! rotted behind the store's back is found by it, and told as what it is.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use kiln::copy::CopyReport;
use kiln::json;
use kiln::oci::{Descriptor, Manifest, MediaType, Reference};
use kiln::ops::transfer::{Access, push};
use kiln::ops::verify::{self, Level, Outcome};
use kiln::registry::{Anonymous, Options};
use kiln::store::Store;
use kiln::{ErrorKind, Progress, Result};
use registry_fixtures::{Fixture, Recorded};
use tempfile::TempDir;

struct Scene {
    _place: TempDir,
    store: Store,
    target: Descriptor,
    layers: Vec<Descriptor>,
    registry: Fixture,
}

fn name() -> Reference {
    "model:v1".parse().unwrap()
}

impl Scene {
    /// A store with a model of two layers of 17 MiB, open as a later process has it, and an empty registry.
    fn new() -> Self {
        let place = TempDir::new().unwrap();
        let root = place.path().join("store");
        let store = Store::open(&root).unwrap();
        let import = store.begin_import().unwrap();
        let stage = |bytes: &[u8]| import.stage_bytes(MediaType::OLLAMA_TENSOR, bytes).unwrap();
        let layers = vec![stage(&vec![1; 17 << 20]), stage(&vec![2; 17 << 20])];
        let manifest = Manifest {
            schema_version: 2,
            media_type: MediaType::DOCKER_MANIFEST,
            artifact_type: None,
            config: stage(b"{}"),
            layers: layers.clone(),
            subject: None,
            annotations: BTreeMap::new(),
        };
        let target = import.stage_bytes(MediaType::DOCKER_MANIFEST, &json::to_canonical(&manifest)).unwrap();
        import.commit(&name(), &target).unwrap();
        let store = Store::open(&root).unwrap();
        Self { _place: place, store, target, layers, registry: Fixture::start() }
    }

    async fn push(&self) -> Result<CopyReport> {
        let to = format!("{}/team/model:v1", self.registry.host()).parse().unwrap();
        let options = Options { first_pause: Duration::from_millis(5), ..Options::default() };
        let access = Access { keychain: Arc::new(Anonymous), options };
        push(&self.store, &name(), &to, &access, &Progress::silent()).await
    }

    /// How often the registry was asked whether it checks digests.
    fn questions(&self) -> usize {
        let is_refused = |it: &&Recorded| it.method == "PUT" && it.path.contains("/uploads/") && it.status == 400;
        self.registry.requests().iter().filter(is_refused).count()
    }

    /// The first layer with a changed byte, under a stamp that is right for its file.
    fn rot_behind_the_stamp(&self) {
        let path = self.store.blob_path(&self.layers[0].digest);
        let mut bytes = fs::read(&path).unwrap();
        bytes[9 << 20] ^= 1;
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let found = fs::metadata(&path).unwrap();
        let stamps = self.store.root().join(format!("stamps/{}.json", self.target.digest.hex()));
        let mut forged: serde_json::Value = serde_json::from_slice(&fs::read(&stamps).unwrap()).unwrap();
        forged[self.layers[0].digest.to_string()] = serde_json::json!({
            "dev": found.dev(), "ino": found.ino(), "size": found.size(),
            "mtime": [found.mtime(), found.mtime_nsec()], "ctime": [found.ctime(), found.ctime_nsec()],
        });
        fs::write(&stamps, forged.to_string()).unwrap();
    }
}

#[tokio::test]
async fn a_model_with_stamps_arrives_and_its_registry_is_asked_once() {
    let scene = Scene::new();
    scene.push().await.unwrap();
    assert_eq!(scene.questions(), 1);
    for layer in &scene.layers {
        let arrived = scene.registry.blob("team/model", &layer.digest.to_string()).unwrap();
        assert_eq!(Descriptor::of(MediaType::OLLAMA_TENSOR, &arrived).digest, layer.digest);
    }
    assert_eq!(scene.registry.open_uploads(), 0, "what was asked with is given back");
}

#[tokio::test]
async fn a_model_without_stamps_arrives_and_no_registry_is_asked() {
    let scene = Scene::new();
    fs::remove_dir_all(scene.store.root().join("stamps")).unwrap();
    scene.push().await.unwrap();
    assert_eq!(scene.questions(), 0);
}

#[tokio::test]
async fn what_rotted_behind_its_stamp_is_found_by_the_registry_and_is_damage_of_the_store() {
    let scene = Scene::new();
    scene.rot_behind_the_stamp();
    let error = scene.push().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
    assert!(error.hint_text().unwrap().contains("kiln verify model:v1 --repair"), "{error}");
    assert!(scene.questions() > 1, "it was sent as it was, and refused");
    assert!(scene.registry.manifest("team/model", "v1").is_none());
    assert!(scene.registry.blob("team/model", &scene.layers[0].digest.to_string()).is_none());

    let options = verify::Options::new(name(), Level::Digests);
    let verified = verify::verify(&scene.store, &options, &Progress::silent()).unwrap();
    assert_eq!(verified.outcome(), Outcome::Corrupt, "no stamp says otherwise");
}

#[tokio::test]
async fn a_verification_makes_the_stamps_that_are_missing() {
    let scene = Scene::new();
    let stamps = scene.store.root().join("stamps");
    fs::remove_dir_all(&stamps).unwrap();
    for (level, expected) in [(Level::Structure, 0), (Level::Digests, 1)] {
        let options = verify::Options::new(name(), level);
        verify::verify(&scene.store, &options, &Progress::silent()).unwrap();
        assert_eq!(fs::read_dir(&stamps).map_or(0, Iterator::count), expected);
    }
    scene.push().await.unwrap();
    assert_eq!(scene.questions(), 1);
}
