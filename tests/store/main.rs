//! What the local store promises: all or nothing, no lost names, nothing deleted that is named, and
//! damage found.

#![allow(clippy::unwrap_used)] // in functions that tests share

mod collecting;
mod damage;
mod full;
mod importing;
mod names;
mod opening;
mod stamps;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use kiln::oci::{Descriptor, Digest, Manifest, MediaType, Reference};
use kiln::store::{Damage, Import, ImportReport, Store};
use kiln::{Error, ErrorKind, Event, Progress};
use tempfile::TempDir;

fn open() -> (TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    (directory, store)
}

fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

/// Stages a model of one config and `layers`, and gives its manifest.
fn stage(import: &Import<'_>, layers: &[&[u8]]) -> (Manifest, Descriptor) {
    let manifest = Manifest {
        schema_version: 2,
        media_type: MediaType::OCI_MANIFEST,
        artifact_type: None,
        config: import.stage_bytes(MediaType::KILN_FILE, b"{}").unwrap(),
        layers: layers.iter().map(|layer| import.stage_bytes(MediaType::OLLAMA_TENSOR, layer).unwrap()).collect(),
        subject: None,
        annotations: BTreeMap::new(),
    };
    let target = import.stage_bytes(MediaType::OCI_MANIFEST, &kiln::json::to_canonical(&manifest)).unwrap();
    (manifest, target)
}

fn import(store: &Store, reference: &str, layers: &[&[u8]]) -> (Manifest, Descriptor, ImportReport) {
    let import = store.begin_import().unwrap();
    let (manifest, target) = stage(&import, layers);
    let report = import.commit(&name(reference), &target).unwrap();
    (manifest, target, report)
}

/// Every path below `root` with its mode and content.
fn listing(root: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let content = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            if metadata.is_dir() {
                waiting.push(path.clone());
            }
            found.insert(path.strip_prefix(root).unwrap().display().to_string(), (metadata.mode(), content));
        }
    }
    found
}

fn blobs(store: &Store) -> BTreeSet<String> {
    let entries = fs::read_dir(store.root().join("blobs/sha256")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Replaces the bytes of a blob, as a failing disk would.
fn damage(store: &Store, digest: &Digest, change: impl FnOnce(&mut Vec<u8>)) {
    let path = store.blob_path(digest);
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
}

#[test]
fn a_store_that_cannot_be_written_is_still_read() {
    let (_directory, store) = open();
    let (manifest, target, _) = import(&store, "a", &[b"layer"]);
    let root = store.root().to_owned();
    drop(store);
    let directories = ["", "blobs", "blobs/sha256", "ingest", "locks", "notes", "quarantine"];
    for directory in directories {
        fs::set_permissions(root.join(directory), Permissions::from_mode(0o555)).unwrap();
    }
    let store = Store::open(&root).unwrap();
    assert_eq!(store.find(&name("a")).unwrap(), Some(target.clone()));
    assert_eq!(store.read_blob(&manifest.layers[0]).unwrap(), b"layer");
    assert_eq!(store.check(&target, &Progress::silent()).unwrap(), Ok(()));
    // The superuser writes where the mode forbids it; everyone else is told at once.
    if !rustix::process::geteuid().is_root() {
        let error = store.begin_import().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Store);
        assert!(error.hint_text().unwrap().contains("--store"), "{error}");
        assert_eq!(store.set_ref(&name("b"), &target).unwrap_err().kind(), ErrorKind::Store);
    }
    for directory in directories {
        fs::set_permissions(root.join(directory), Permissions::from_mode(0o755)).unwrap();
    }
}
