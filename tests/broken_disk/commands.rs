//! What the tests do with a store: every command that writes, on a disk that is watched.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use kiln::copy::{Direction, copy};
use kiln::manifest::Dialect;
use kiln::oci::{Algorithm, Descriptor, Digest, Manifest, MediaType, Reference};
use kiln::ops::source::Places;
use kiln::ops::transfer::Access;
use kiln::ops::{create, remove, repair};
use kiln::plan::{Profile, Request};
use kiln::registry::{Anonymous, Options as Transport};
use kiln::storage::{Memory, Push as _, Refs as _, Remove as _, Stage as _, Staged as _, Unfinished as _, Upload};
use kiln::store::{Disk, Published, Store};
use kiln::{Progress, Result, json};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

pub(crate) const CREATED: &str = "model:created";
pub(crate) const PULLED: &str = "model:pulled";
pub(crate) const TAGGED: &str = "model:tagged";

/// Everything the commands work on besides the store.
pub(crate) struct Scene {
    _place: TempDir,
    checkpoint: PathBuf,
    registry: Memory,
    /// A sound store with the model that can be pulled.
    other: PathBuf,
    runtime: Runtime,
    /// The manifest that a creation makes.
    pub(crate) created: Digest,
    /// The manifest that can be pulled.
    pub(crate) pulled: Descriptor,
    /// Its layers.
    pub(crate) layers: Vec<Descriptor>,
    /// What is sent to a server.
    pub(crate) sent: Digest,
}

const SENT: &[u8] = b"content that a client sends in two pieces";

pub(crate) fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

impl Scene {
    pub(crate) fn new() -> Self {
        let place = super::place();
        let checkpoint = place.path().join("checkpoint");
        fs::create_dir(&checkpoint).unwrap();
        fs::write(checkpoint.join("config.json"), br#"{"architectures":["TestModel"],"model_type":"test"}"#).unwrap();
        let header = br#"{"w":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}        "#;
        let weights = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &[7; 64]].concat();
        fs::write(checkpoint.join("model.safetensors"), weights).unwrap();

        let runtime = Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let (registry, pulled, layers) = runtime.block_on(publish());
        let mut scene = Self {
            checkpoint,
            registry,
            other: place.path().join("other"),
            runtime,
            created: Digest::of(b""),
            pulled,
            layers,
            sent: Algorithm::Sha512.digest(SENT),
            _place: place,
        };
        let other = Store::open(&scene.other).unwrap();
        scene.pull(&other, PULLED).unwrap();
        scene.create(&other).unwrap();
        scene.created = other.find(&name(CREATED)).unwrap().unwrap().digest;
        scene
    }

    pub(crate) fn create(&self, store: &Store) -> Result<()> {
        let options = create::Options {
            name: name(CREATED),
            source: self.checkpoint.clone().into(),
            request: Request { profile: Profile::Hf, ..Request::default() },
            dialect: Dialect::ModelPack,
            threads: 1,
        };
        create::create(store, &options, &Progress::silent()).map(drop)
    }

    pub(crate) fn pull(&self, store: &Store, to: &str) -> Result<()> {
        let (from, to, progress) = (name(PULLED), name(to), Progress::silent());
        self.runtime.block_on(copy(Direction::Pull, &self.registry, &from, store, &to, 1, &progress)).map(drop)
    }

    /// What a push leaves in the store: which uploads are under way, and what the registry has.
    pub(crate) fn push_state(&self, store: &Store) {
        let url = "https://registry.example/v2/a/blobs/uploads/1".to_owned();
        if let Some(mut claim) = store.claim("registry.example/a", &self.sent) {
            claim.keep(&Upload { url: url.clone(), reached: 5, shortest_chunk: 0 });
            claim.keep(&Upload { url, reached: 70_000, shortest_chunk: 1 });
        }
        let published = Published { repository: "a".to_owned(), manifest: self.pulled.clone() };
        store.see("registry.example", |seen| seen.publish(published));
    }

    /// What a server does with content that a client sends.
    pub(crate) fn serve(&self, store: &Store) -> Result<()> {
        self.runtime.block_on(async {
            let mut staged = store.stage().await?;
            staged.append(Bytes::from_static(&SENT[..9])).await?;
            staged.append(Bytes::from_static(&SENT[9..])).await?;
            staged.commit(&self.sent).await
        })
    }

    /// What a server does when a client has it forget content.
    pub(crate) fn forget(&self, store: &Store, digest: &Digest) -> Result<()> {
        self.runtime.block_on(store.remove(digest)).map(drop)
    }

    pub(crate) fn tag(store: &Store) -> Result<()> {
        remove::tag(store, &name(CREATED), &name(TAGGED)).map(drop)
    }

    pub(crate) fn remove(store: &Store, reference: &str) -> Result<()> {
        remove::remove(store, &name(reference)).map(drop)
    }

    pub(crate) fn gc(disk: Disk, root: &Path) -> Result<()> {
        Store::gc_on(disk, root, false).map(drop)
    }

    pub(crate) fn repair(&self, store: &Store) -> Result<()> {
        let options = repair::Options {
            name: name(PULLED),
            from: Some(self.other.clone()),
            source: None,
            draft: None,
            places: Places::default(),
            threads: 1,
        };
        let access = Access { keychain: Arc::new(Anonymous), options: Transport::default() };
        let repair = self.runtime.block_on(repair::repair(store, options, &access, &Progress::silent()))?;
        repair.failed.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }
}

/// A registry with a model, one of whose layers is named by the digest that few use.
async fn publish() -> (Memory, Descriptor, Vec<Descriptor>) {
    let registry = Memory::new();
    let mut layers = vec![registry.insert(MediaType::OLLAMA_TENSOR, vec![3; 900])];
    let unusual = Bytes::from(vec![5; 300]);
    let digest = Algorithm::Sha512.digest(&unusual);
    layers.push(Descriptor::new(MediaType::OLLAMA_TENSOR, digest, unusual.len() as u64));
    registry.push(&layers[1], &unusual).await.unwrap();
    let manifest = Manifest {
        schema_version: 2,
        media_type: MediaType::OCI_MANIFEST,
        artifact_type: None,
        config: registry.insert(MediaType::KILN_FILE, b"{}".to_vec()),
        layers: layers.clone(),
        subject: None,
        annotations: BTreeMap::new(),
    };
    let manifest = Bytes::from(json::to_canonical(&manifest));
    let target = Descriptor::of(MediaType::OCI_MANIFEST, &manifest);
    registry.tag(&name(PULLED), &target, &manifest).await.unwrap();
    (registry, target, layers)
}
