//! The umask changes no mode and no digest. It belongs to the whole process, so this is the only test
//! of its program.

#![allow(clippy::unwrap_used)] // in functions that tests share

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kiln::json;
use kiln::oci::{Manifest, MediaType};
use kiln::store::Store;
use rustix::fs::Mode;
use rustix::process::umask;

#[test]
fn the_umask_changes_no_mode() {
    let expected = BTreeMap::from([
        ("".to_owned(), 0o755),
        ("blobs".to_owned(), 0o755),
        ("blobs/sha256".to_owned(), 0o755),
        ("index.json".to_owned(), 0o644),
        ("ingest".to_owned(), 0o755),
        ("kiln.json".to_owned(), 0o644),
        ("locks".to_owned(), 0o755),
        ("locks/refs".to_owned(), 0o644),
        ("locks/store".to_owned(), 0o644),
        ("notes".to_owned(), 0o755),
        ("oci-layout".to_owned(), 0o644),
        ("quarantine".to_owned(), 0o755),
        ("reserve".to_owned(), 0o600),
    ]);
    let mut indexes = Vec::new();
    for mask in [0o000, 0o022, 0o077] {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        umask(Mode::from_raw_mode(mask));
        let note = fill(&root);
        let mut modes = BTreeMap::new();
        collect_modes(&root, "", &mut modes);
        let (blobs, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            modes.into_iter().partition(|(path, _)| path.starts_with("blobs/sha256/"));
        assert!(blobs.len() == 2 && blobs.values().all(|mode| *mode == 0o444), "umask {mask:03o}: {blobs:?}");
        let mut expected = expected.clone();
        expected.insert(note, 0o644);
        assert_eq!(others, expected, "umask {mask:03o}");
        indexes.push(fs::read(root.join("index.json")).unwrap());
    }
    assert!(indexes.iter().all(|index| *index == indexes[0]));
}

/// Makes a store with one model, and gives the path of the model's note.
fn fill(root: &Path) -> String {
    let store = Store::open(root).unwrap();
    let import = store.begin_import().unwrap();
    let manifest = Manifest {
        schema_version: 2,
        media_type: MediaType::OCI_MANIFEST,
        artifact_type: None,
        config: import.stage_bytes(MediaType::KILN_FILE, b"{}").unwrap(),
        layers: Vec::new(),
        subject: None,
        annotations: BTreeMap::new(),
    };
    let target = import.stage_bytes(MediaType::OCI_MANIFEST, &json::to_canonical(&manifest)).unwrap();
    import.commit(&"a".parse().unwrap(), &target).unwrap();
    store.set_note(&target.digest, &serde_json::json!({})).unwrap();
    format!("notes/{}.json", target.digest.hex())
}

fn collect_modes(root: &Path, below: &str, modes: &mut BTreeMap<String, u32>) {
    let path = root.join(below);
    let metadata = path.symlink_metadata().unwrap();
    modes.insert(below.to_owned(), metadata.permissions().mode() & 0o7777);
    if metadata.is_dir() {
        for entry in fs::read_dir(&path).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            collect_modes(root, &if below.is_empty() { name } else { format!("{below}/{name}") }, modes);
        }
    }
}
