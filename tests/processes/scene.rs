//! A place with a few small models, which a registry has and whose checkpoints are there, so that each of them can be
//! created and pulled; and what must be true of a store that has some of them.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use kiln::Progress;
use kiln::oci::{Descriptor, Digest, Manifest, Reference};
use kiln::store::Store;
use registry_fixtures::{Fixture, Options};

use crate::place::Place;

/// How many weights each has.
const TENSORS: u64 = 6;
/// The rows and columns of a weight.
const SIDE: u64 = 96;

pub(crate) struct Scene {
    pub(crate) place: Place,
    pub(crate) registry: Fixture,
    /// The manifest of each model, whichever way it comes into a store.
    pub(crate) models: Vec<Digest>,
}

impl Scene {
    /// One with `count` models. Neighbours share half of their weights.
    pub(crate) fn new(count: u64) -> Self {
        let place = Place::new();
        // Nothing is spared by what another repository has.
        let registry = Fixture::start_with(Options { mounts: false, ..Options::default() });
        let mut models = Vec::new();
        for model in 0..count {
            write_checkpoint(&place.path(&format!("checkpoint-{model}")), model);
            let made = place.digest(&format!("create m:{model} checkpoint-{model} --quantize int4 --store library"));
            place.kiln(&format!("push m:{model} {}/library/m:{model} --store library", registry.host())).expect(0);
            models.push(made.parse().unwrap());
        }
        assert_eq!(models.iter().collect::<BTreeSet<_>>().len() as u64, count);
        drop(Store::open(&place.path("store")).unwrap());
        Self { place, registry, models }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.place.path("store")
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(&self.root()).unwrap()
    }

    /// The words of a creation of `model` as `name`.
    pub(crate) fn create(name: &str, model: u64) -> String {
        format!("create {name} checkpoint-{model} --quantize int4")
    }

    /// The words of a pull of `model` as `name`.
    pub(crate) fn pull(&self, name: &str, model: u64) -> String {
        format!("pull {}/library/m:{model} {name}", self.registry.host())
    }
}

/// What is wrong with a store: names that are not whole, and content that is not what it is called.
pub(crate) fn violations(root: &Path) -> Vec<String> {
    let store = Store::open(root).unwrap();
    let mut violations = Vec::new();
    for (name, target) in store.refs().unwrap() {
        match store.manifest(&target) {
            Ok((manifest, _)) => violations.extend(
                manifest.blobs().filter_map(|blob| Some(format!("{name}: {blob:?} {}", damage(&store, blob)?))),
            ),
            Err(error) => violations.push(format!("{name}: {}", error.chain())),
        }
    }
    for entry in fs::read_dir(root.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let digest = Digest::from_hex(path.file_name().unwrap().to_str().unwrap());
        if digest != Some(Digest::of(&fs::read(&path).unwrap())) {
            violations.push(format!("not what it is called: {}", path.display()));
        }
    }
    violations
}

fn damage(store: &Store, blob: &Descriptor) -> Option<String> {
    store.check(blob, &Progress::silent()).unwrap().err().map(|damage| damage.to_string())
}

/// The blobs of the model `name`.
pub(crate) fn blobs(store: &Store, name: &str) -> Vec<Descriptor> {
    let name: Reference = name.parse().unwrap();
    let (manifest, _): (Manifest, _) = store.manifest(&store.find(&name).unwrap().unwrap()).unwrap();
    manifest.blobs().cloned().collect()
}

/// A number of rounds from the environment.
pub(crate) fn rounds(variable: &str, otherwise: u64) -> u64 {
    env::var(variable).map_or(otherwise, |rounds| rounds.parse().unwrap())
}

fn write_checkpoint(directory: &Path, model: u64) {
    fs::create_dir(directory).unwrap();
    fs::write(directory.join("config.json"), br#"{"architectures":["TestModel"],"model_type":"test"}"#).unwrap();
    fs::write(directory.join("tokenizer.json"), format!(r#"{{"model":{model}}}"#)).unwrap();
    let length = SIDE * SIDE * 4;
    let entries: Vec<String> = (0..TENSORS)
        .map(|tensor| {
            let (begin, end) = (tensor * length, (tensor + 1) * length);
            format!(
                r#""layers.{tensor}.weight":{{"dtype":"F32","shape":[{SIDE},{SIDE}],"data_offsets":[{begin},{end}]}}"#
            )
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    for tensor in 0..TENSORS {
        let mut chance = Chance(1 + if tensor % 2 == 0 { model / 2 } else { 1000 + model } * TENSORS + tensor);
        file.extend((0..SIDE * SIDE).flat_map(|_| (chance.below(2001) as f32 / 1000.0 - 1.0).to_le_bytes()));
    }
    fs::write(directory.join("model.safetensors"), file).unwrap();
}

/// Numbers that look like chance and are the same in every run (Vigna's SplitMix64).
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    /// One of `all`, which are not none.
    pub(crate) fn one<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}
