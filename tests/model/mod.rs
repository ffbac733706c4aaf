//! A store with one model in it, whose layers can be replaced by others.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use kiln::Progress;
use kiln::manifest::{Dialect, layer_name};
use kiln::oci::{Manifest, Reference};
use kiln::ops::create::{Options, create};
use kiln::ops::inspect::find;
use kiln::plan::Request;
use kiln::source::safetensors::parse_header;
use kiln::store::Store;
use tempfile::TempDir;

pub(crate) struct Kiln {
    #[allow(dead_code, reason = "kept for its end; few tests look into it")]
    pub(crate) place: TempDir,
    pub(crate) store: Store,
    pub(crate) name: Reference,
}

impl Kiln {
    /// A store with `model:a`, created from `source`.
    pub(crate) fn holding(source: &Path, scheme: Option<&str>) -> Self {
        let scheme = scheme.map(|scheme| scheme.parse().unwrap());
        Self::created(source, Request { scheme, ..Request::default() })
    }

    pub(crate) fn created(source: &Path, request: Request) -> Self {
        let place = TempDir::new().unwrap();
        let store = Store::open(&place.path().join("store")).unwrap();
        let kiln = Self { place, store, name: "model:a".parse().unwrap() };
        let options = Options {
            name: kiln.name.clone(),
            source: source.to_owned().into(),
            request,
            dialect: Dialect::Ollama,
            threads: 2,
        };
        create(&kiln.store, &options, &Progress::silent()).unwrap();
        kiln
    }

    pub(crate) fn manifest(&self) -> Manifest {
        find(&self.store, &self.name).unwrap().1
    }

    /// Replaces a layer by other bytes, with digests to match: what no hash can notice.
    pub(crate) fn replace(&self, layer: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut manifest = self.manifest();
        let import = self.store.begin_import().unwrap();
        let target = manifest.layers.iter_mut().find(|found| layer_name(found) == layer).unwrap();
        let mut bytes = self.store.read_blob(target).unwrap();
        change(&mut bytes);
        let staged = import.stage_bytes(target.media_type.clone(), &bytes).unwrap();
        (target.digest, target.size) = (staged.digest, staged.size);
        let (media_type, bytes) = Dialect::Ollama.manifest(manifest.config, manifest.layers);
        let staged = import.stage_bytes(media_type, &bytes).unwrap();
        import.commit(&self.name, &staged).unwrap();
    }
}

/// One of the checkpoints of the tests.
pub(crate) fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(name)
}

/// Copies a checkpoint's files into the directory `target`.
pub(crate) fn copy_of(source: &Path, target: &Path) {
    for file in fs::read_dir(source).unwrap().map(|entry| entry.unwrap().path()) {
        fs::copy(&file, target.join(file.file_name().unwrap())).unwrap();
    }
}

/// The place of one array in a safetensors file.
pub(crate) fn array(bytes: &[u8], name: &str) -> Range<usize> {
    let header = parse_header(bytes, bytes.len() as u64).unwrap();
    let entry = header.tensors.iter().find(|entry| entry.name == name).unwrap();
    (header.data_start + entry.begin) as usize..(header.data_start + entry.end) as usize
}
