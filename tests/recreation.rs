//! A model that is created again: what did not change is compared with what the store has, and only what did is written.

#![allow(clippy::unwrap_used)] // in functions that tests share

use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln::manifest::Dialect;
use kiln::oci::{Digest, MediaType};
use kiln::ops::create::{self, Created, Options};
use kiln::plan::{Profile, Request};
use kiln::store::{Disk, Operation, Store, Watch};
use kiln::{Error, Progress};
use tempfile::TempDir;

/// A disk that counts the bytes of content that are written to it.
#[derive(Debug, Default)]
struct Counting(AtomicU64);

impl Counting {
    fn taken(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

impl Watch for Counting {
    fn around(&self, operation: &Operation<'_>, perform: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        if let Operation::Write(_, _, bytes) = operation {
            self.0.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        perform()
    }
}

struct Scene {
    place: TempDir,
    disk: Arc<Counting>,
    store: Store,
}

impl Scene {
    fn new() -> Self {
        let place = TempDir::new().unwrap();
        fs::create_dir(place.path().join("checkpoint")).unwrap();
        let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints/qwen3-moe-12e-bf16");
        for entry in fs::read_dir(original).unwrap().map(|entry| entry.unwrap()) {
            fs::copy(entry.path(), place.path().join("checkpoint").join(entry.file_name())).unwrap();
        }
        let disk = Arc::new(Counting::default());
        let store = Store::open_on(Disk::watched(disk.clone()), &place.path().join("store")).unwrap();
        Self { place, disk, store }
    }

    fn shard(&self) -> PathBuf {
        self.place.path().join("checkpoint/model-00003-of-00005.safetensors")
    }

    fn create_in(&self, store: &Store, profile: Profile, scheme: Option<&str>, dialect: Dialect) -> Created {
        let options = Options {
            name: "model:again".parse().unwrap(),
            source: self.place.path().join("checkpoint").into(),
            request: Request { profile, scheme: scheme.map(|scheme| scheme.parse().unwrap()), ..Request::default() },
            dialect,
            threads: 2,
        };
        create::create(store, &options, &Progress::silent()).unwrap()
    }

    fn create(&self, profile: Profile, scheme: Option<&str>, dialect: Dialect) -> Created {
        self.create_in(&self.store, profile, scheme, dialect)
    }

    /// What a store that has nothing makes of the checkpoint.
    fn fresh(&self) -> Digest {
        let place = TempDir::new().unwrap();
        let store = Store::open(&place.path().join("store")).unwrap();
        self.create_in(&store, Profile::Ollama, None, Dialect::Ollama).digest
    }
}

#[test]
fn what_did_not_change_is_not_written_again() {
    for (profile, scheme, dialect) in [
        (Profile::Ollama, None, Dialect::Ollama),
        (Profile::Ollama, Some("int4"), Dialect::ModelPack),
        (Profile::Mlx, Some("nvfp4"), Dialect::ModelPack),
        (Profile::Mlx, None, Dialect::Docker),
        (Profile::Hf, None, Dialect::ModelPack),
        (Profile::Hf, None, Dialect::Docker),
    ] {
        let scene = Scene::new();
        let first = scene.create(profile, scheme, dialect);
        assert!(scene.disk.taken() > first.bytes, "{profile} {dialect:?}");
        let again = scene.create(profile, scheme, dialect);
        assert_eq!((again.digest, again.bytes_written), (first.digest, 0), "{profile} {dialect:?}");
        // The lock, the config, the manifest, the index and a note.
        let written = scene.disk.taken();
        assert!(written < first.bytes / 4, "{profile} {dialect:?}: {written} of {}", first.bytes);
    }
}

#[test]
fn what_changed_is_written_however_late_it_changes() {
    let scene = Scene::new();
    scene.create(Profile::Ollama, None, Dialect::Ollama);
    let end = fs::metadata(scene.shard()).unwrap().len();
    for at in [end - 1, end - 20_000] {
        let shard = File::options().write(true).open(scene.shard()).unwrap();
        shard.write_all_at(&[0x3C], at).unwrap();
        scene.disk.taken();
        let changed = scene.create(Profile::Ollama, None, Dialect::Ollama);
        assert!(changed.bytes_written > 0 && scene.disk.taken() < changed.bytes, "only that");
        assert_eq!(changed.digest, scene.fresh());
    }
}

#[test]
fn what_rotted_in_the_store_is_healed() {
    let scene = Scene::new();
    let created = scene.create(Profile::Ollama, None, Dialect::Ollama);
    let target = scene.store.find(&"model:again".parse().unwrap()).unwrap().unwrap();
    let (manifest, _) = scene.store.manifest(&target).unwrap();
    let layer = manifest.layers.iter().max_by_key(|layer| layer.size).unwrap();
    let path = scene.store.blob_path(&layer.digest);
    let sound = fs::read(&path).unwrap();
    let times = fs::metadata(&path).unwrap();
    for (at, bytes) in [(0, sound.len()), (0, sound.len() - 1), (sound.len() - 1, 1), (5000, 1)] {
        let mut rotten = sound.clone();
        rotten[at] ^= 1;
        rotten.truncate(bytes.max(at + 1).max(sound.len() - 1));
        fs::remove_file(&path).unwrap();
        fs::write(&path, rotten).unwrap();
        let times = FileTimes::new().set_modified(times.modified().unwrap());
        File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
        let again = scene.create(Profile::Ollama, None, Dialect::Ollama);
        assert_eq!((again.digest, again.bytes_written), (created.digest, layer.size));
        assert!(fs::read(&path).unwrap() == sound, "{at} {bytes}");
    }
}

#[test]
fn a_layer_is_what_was_written_whatever_it_was_likened_to() {
    let place = TempDir::new().unwrap();
    let store = Store::open(&place.path().join("store")).unwrap();
    let base: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    let import = store.begin_import().unwrap();
    let like = import.stage_bytes(MediaType::KILN_FILE, &base).unwrap();
    import.keep(std::slice::from_ref(&like)).unwrap();
    let changed = |at: usize| {
        let mut changed = base.clone();
        changed[at] ^= 1;
        changed
    };
    let cases = [
        base.clone(),
        changed(0),
        changed(131_072),
        changed(2_999_999),
        base[..2_999_999].to_vec(),
        Vec::new(),
        [&base[..], b"more"].concat(),
    ];
    for (case, content) in cases.iter().enumerate() {
        for piece in [4096, 131_073, 3_000_004] {
            let import = store.begin_import().unwrap().after([("layer".to_owned(), like.clone())]);
            let (staged, ()) = import
                .stage_layer("layer", MediaType::KILN_FILE, |out| {
                    content.chunks(piece).try_for_each(|chunk| {
                        out.write_all(chunk).map_err(|cause| Error::input("Not written").caused_by(cause))
                    })
                })
                .unwrap();
            assert_eq!(staged.digest, Digest::of(content), "{case} {piece}");
            let staged_files = fs::read_dir(store.root().join("ingest")).unwrap().count();
            assert_eq!(staged_files, usize::from(case != 0), "{case} {piece}");
            import.keep(std::slice::from_ref(&staged)).unwrap();
            assert!(fs::read(store.blob_path(&staged.digest)).unwrap() == *content, "{case} {piece}");
            if case != 0 {
                fs::remove_file(store.blob_path(&staged.digest)).unwrap();
            }
        }
    }
}

#[test]
fn a_blob_that_is_not_what_its_name_says_is_not_taken_for_it() {
    let place = TempDir::new().unwrap();
    let store = Store::open(&place.path().join("store")).unwrap();
    let import = store.begin_import().unwrap();
    let like = import.stage_bytes(MediaType::KILN_FILE, b"old weights").unwrap();
    import.keep(std::slice::from_ref(&like)).unwrap();
    fs::remove_file(store.blob_path(&like.digest)).unwrap();
    fs::write(store.blob_path(&like.digest), b"new weights").unwrap();
    let import = store.begin_import().unwrap().after([("layer".to_owned(), like)]);
    let write = |out: &mut dyn io::Write| out.write_all(b"new weights").map_err(|_| Error::input("Not written"));
    let (staged, ()) = import.stage_layer("layer", MediaType::KILN_FILE, write).unwrap();
    import.keep(std::slice::from_ref(&staged)).unwrap();
    assert_eq!(fs::read(store.blob_path(&Digest::of(b"new weights"))).unwrap(), b"new weights");
}
