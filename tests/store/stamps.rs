//! Stamps save a push from hashing what this store has hashed, and nobody else from anything.

use std::fs::{File, FileTimes, OpenOptions};
use std::os::unix::fs::FileExt as _;

use kiln::storage::Fetch as _;

use super::*;

const LARGE: usize = 2 << 20;

fn vouches(store: &Store, target: &Descriptor) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(store.vouches(target)).unwrap()
}

/// As a later process does.
fn vouches_later(root: &Path, manifest: &Descriptor, target: &Descriptor) -> bool {
    let store = Store::open(root).unwrap();
    assert!(!vouches(&store, target), "nothing was recalled yet");
    store.recall_stamps(&manifest.digest);
    vouches(&store, target)
}

/// A store with a model of a large and a small layer, its manifest, and both.
fn stamped() -> (TempDir, Store, Descriptor, [Descriptor; 2]) {
    let (directory, store) = open();
    let (manifest, target, _) = import(&store, "a", &[&vec![7; LARGE], b"small"]);
    (directory, store, target, [manifest.layers[0].clone(), manifest.layers[1].clone()])
}

fn stamps(store: &Store, manifest: &Descriptor) -> std::path::PathBuf {
    store.root().join("stamps").join(format!("{}.json", manifest.digest.hex()))
}

#[test]
fn what_an_import_wrote_is_vouched_for_if_it_is_large() {
    let (_directory, store, manifest, [large, small]) = stamped();
    assert!(vouches(&store, &large) && !vouches(&store, &small));
    assert!(vouches_later(store.root(), &manifest, &large));
    assert!(!vouches_later(store.root(), &manifest, &small));
    let other = Descriptor { size: large.size - 1, ..large.clone() };
    assert!(!vouches(&store, &other));
    // So is what was there already, and was hashed for that.
    fs::remove_dir_all(store.root().join("stamps")).unwrap();
    let (_, again, _) = import(&Store::open(store.root()).unwrap(), "b", &[&vec![7; LARGE]]);
    assert!(vouches_later(store.root(), &again, &large));
}

#[test]
fn a_file_that_changed_in_any_way_is_not_vouched_for() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 8] = [
        ("mode", |path| fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap()),
        ("one byte, with the old times", |path| {
            let before = fs::metadata(path).unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
            let file = OpenOptions::new().write(true).open(path).unwrap();
            file.write_all_at(&[8], 5000).unwrap();
            file.set_times(FileTimes::new().set_modified(before.modified().unwrap())).unwrap();
        }),
        ("times", |path| File::open(path).unwrap().set_modified(SystemTime::now()).unwrap()),
        ("size", |path| {
            fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
            OpenOptions::new().write(true).open(path).unwrap().set_len(LARGE as u64 - 1).unwrap();
        }),
        ("another file", |path| {
            let copy = path.with_extension("copy");
            fs::copy(path, &copy).unwrap();
            fs::rename(copy, path).unwrap();
        }),
        ("a symlink", |path| {
            fs::rename(path, path.with_extension("there")).unwrap();
            symlink(path.with_extension("there"), path).unwrap();
        }),
        ("another name", |path| fs::hard_link(path, path.with_extension("link")).unwrap()),
        ("none", |path| fs::remove_file(path).unwrap()),
    ];
    for (what, change) in changes {
        let (_directory, store, manifest, [large, _]) = stamped();
        change(&store.blob_path(&large.digest));
        assert!(!vouches(&store, &large), "{what}");
        assert!(!vouches_later(store.root(), &manifest, &large), "{what}");
    }
}

#[test]
fn half_a_file_of_stamps_and_one_of_another_form_are_none() {
    let (_directory, store, manifest, [large, _]) = stamped();
    let path = stamps(&store, &manifest);
    let whole = fs::read(&path).unwrap();
    let mut wrong: Vec<Vec<u8>> = (0..whole.len()).map(|length| whole[..length].to_vec()).collect();
    let text = String::from_utf8(whole.clone()).unwrap();
    wrong.push(vec![0; whole.len()]);
    wrong.push(b"[]".to_vec());
    wrong.push(text.replace("\"dev\"", "\"device\"").into());
    wrong.push(text.replace("\"dev\"", "\"verified\":true,\"dev\"").into());
    wrong.push(text.replace("\"ino\":", "\"ino\":1").into());
    wrong.push([&whole[..], &vec![b' '; 16 << 20]].concat());
    for bytes in wrong {
        fs::write(&path, &bytes).unwrap();
        assert!(
            !vouches_later(store.root(), &manifest, &large),
            "{}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(300)])
        );
    }
    fs::write(&path, whole).unwrap();
    assert!(vouches_later(store.root(), &manifest, &large));
}

#[test]
fn a_stamp_that_lies_is_believed_by_nothing_that_checks() {
    let (_directory, store, manifest, [large, _]) = stamped();
    damage(&store, &large.digest, |bytes| bytes[5000] ^= 1);
    let found = fs::metadata(store.blob_path(&large.digest)).unwrap();
    let forged = serde_json::json!({ large.digest.to_string(): {
        "dev": found.dev(), "ino": found.ino(), "size": found.size(),
        "mtime": [found.mtime(), found.mtime_nsec()], "ctime": [found.ctime(), found.ctime_nsec()],
    }});
    fs::write(stamps(&store, &manifest), forged.to_string()).unwrap();
    assert!(vouches_later(store.root(), &manifest, &large), "or this test shows nothing");
    let store = Store::open(store.root()).unwrap();
    store.recall_stamps(&manifest.digest);
    assert!(matches!(store.check(&large, &Progress::silent()).unwrap(), Err(Damage::Digest { .. })));
    let (_, _, report) = import(&store, "a", &[&vec![7; LARGE], b"small"]);
    assert!(report.written.contains(&large.digest), "an import heals");
    assert_eq!(store.check(&large, &Progress::silent()).unwrap(), Ok(()));
}

#[test]
fn stamps_go_with_their_manifest_and_nothing_else_goes() {
    let (_directory, store, manifest, _) = stamped();
    let (_, gone, _) = import(&store, "gone", &[&vec![8; LARGE]]);
    store.remove_ref(&name("gone")).unwrap();
    let root = store.root().to_owned();
    fs::write(root.join("stamps/README.json"), "mine").unwrap();
    let (kept, swept) = (stamps(&store, &manifest), stamps(&store, &gone));
    let before = store.usage().unwrap().other.files;
    assert!(kept.exists() && swept.exists());
    drop(store);
    Store::gc(&root, true).unwrap();
    assert!(swept.exists(), "a dry run");
    Store::gc(&root, false).unwrap();
    assert!(kept.exists() && !swept.exists() && root.join("stamps/README.json").exists());
    assert_eq!(Store::open(&root).unwrap().usage().unwrap().other.files, before - 1);
}

#[test]
fn where_no_stamps_can_be_kept_nothing_else_fails() {
    let (_directory, store) = open();
    fs::write(store.root().join("stamps"), "in the way").unwrap();
    let (_, target, report) = import(&store, "a", &[&vec![7; LARGE]]);
    assert_eq!((report.written.len(), store.find(&name("a")).unwrap()), (3, Some(target)));
    assert_eq!(fs::read_dir(store.root().join("ingest")).unwrap().count(), 0);
}
