//! What is named stays; everything else that is the store's own goes.

use kiln::storage::{Unfinished as _, Upload};

use super::*;

/// A store with one named model, one whose name is gone, and files that are none of gc's business.
fn littered() -> (TempDir, Store, BTreeSet<String>) {
    let (directory, store) = open();
    let (_, gone, _) = import(&store, "gone", &[b"shared", b"only in gone"]);
    store.set_note(&gone.digest, &serde_json::json!(1)).unwrap();
    store.remove_ref(&name("gone")).unwrap().unwrap();
    let (manifest, target, _) = import(&store, "kept", &[b"shared", b"only in kept"]);
    store.set_note(&target.digest, &serde_json::json!(2)).unwrap();
    let kept = manifest.blobs().chain([&target]).map(|blob| blob.digest.hex()).collect();
    fs::write(store.root().join("ingest/123-4"), "half a pull").unwrap();
    (directory, store, kept)
}

#[test]
fn what_is_named_stays_and_the_rest_goes() {
    let (_directory, store, kept) = littered();
    let root = store.root().to_owned();
    let before = listing(&root);
    let planned = Store::gc(&root, true).unwrap();
    assert_eq!(listing(&root), before, "a dry run changes nothing");

    drop(store);
    let report = Store::gc(&root, false).unwrap();
    assert_eq!(report, planned);
    assert_eq!((report.blobs.len(), report.kept, report.unfinished, report.notes), (2, kept.len() as u64, 1, 1));
    assert!(report.blobs.contains(&(Digest::of(b"only in gone"), 12)));
    assert_eq!(report.bytes, report.blobs.iter().map(|(_, size)| size).sum::<u64>() + 11);

    let store = Store::open(&root).unwrap();
    assert_eq!(blobs(&store), kept);
    let target = store.find(&name("kept")).unwrap().unwrap();
    for blob in store.manifest(&target).unwrap().0.blobs() {
        assert_eq!(store.check(blob, &Progress::silent()).unwrap(), Ok(()));
    }
    assert_eq!(store.note(&target.digest).unwrap(), Some(serde_json::json!(2)));
    drop(store);
    let again = Store::gc(&root, false).unwrap();
    assert_eq!((again.blobs, again.bytes, again.unfinished, again.notes), (Vec::new(), 0, 0, 0));
}

#[test]
fn only_its_own_regular_files_are_removed() {
    let (directory, store, _) = littered();
    let root = store.root().to_owned();
    drop(store);
    let outside = directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join(Digest::of(b"1").hex()), "precious").unwrap();
    let blobs = root.join("blobs/sha256");
    let foreign = [
        (blobs.join(".DS_Store"), true),
        (blobs.join(Digest::of(b"2").hex().to_uppercase()), true),
        (blobs.join(format!("{}.bak", Digest::of(b"2").hex())), true),
        (root.join("ingest/notes.txt"), true),
        (root.join("notes/README.json"), true),
        (root.join("quarantine").join(format!("{}.0", Digest::of(b"3").hex())), true),
        (blobs.join(Digest::of(b"4").hex()), false),
    ];
    for (path, is_file) in &foreign {
        if *is_file { fs::write(path, "x").unwrap() } else { symlink(&outside, path).unwrap() }
    }
    fs::create_dir(blobs.join(Digest::of(b"5").hex())).unwrap();
    Store::gc(&root, false).unwrap();
    assert_eq!(fs::read(outside.join(Digest::of(b"1").hex())).unwrap(), b"precious");
    for (path, _) in &foreign {
        assert!(path.symlink_metadata().is_ok(), "{}", path.display());
    }
    assert!(blobs.join(Digest::of(b"5").hex()).is_dir());
}

#[test]
fn no_directory_is_reached_through_a_symlink() {
    for (directory, unnamed) in [
        ("blobs", format!("sha256/{}", Digest::of(b"unnamed").hex())),
        ("blobs/sha256", Digest::of(b"unnamed").hex()),
        ("ingest", "1-2".to_owned()),
        ("notes", format!("{}.json", Digest::of(b"unnamed").hex())),
    ] {
        let (outside, store, _) = littered();
        let root = store.root().to_owned();
        drop(store);
        let outside = outside.path().join("outside");
        fs::rename(root.join(directory), &outside).unwrap();
        symlink(&outside, root.join(directory)).unwrap();
        fs::write(outside.join(unnamed), "x").unwrap();
        let before = (listing(&outside), listing(&root));
        assert_eq!(Store::gc(&root, false).unwrap_err().kind(), ErrorKind::Store, "{directory}");
        assert_eq!((listing(&outside), listing(&root)), before, "{directory}");
    }
}

#[test]
fn nothing_is_swept_when_a_manifest_cannot_be_read() {
    for wound in [
        (|store: &Store, digest: &Digest| damage(store, digest, |bytes| bytes[5] ^= 1)) as fn(&Store, &Digest),
        |store, digest| damage(store, digest, |bytes| bytes.truncate(7)),
        |store, digest| fs::remove_file(store.blob_path(digest)).unwrap(),
    ] {
        let (_directory, store, _) = littered();
        let target = store.find(&name("kept")).unwrap().unwrap();
        wound(&store, &target.digest);
        let root = store.root().to_owned();
        drop(store);
        let before = listing(&root);
        for dry_run in [true, false] {
            let error = Store::gc(&root, dry_run).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.to_string().contains(&target.digest.to_string()), "{error}");
            assert!(error.hint_text().is_some());
        }
        assert_eq!(listing(&root), before);
    }
}

#[test]
fn collections_and_imports_may_run_at_once() {
    let (_directory, store) = open();
    let root = store.root().to_owned();
    drop(store);
    thread::scope(|scope| {
        for writer in 0..2 {
            let root = &root;
            scope.spawn(move || {
                for round in 0..12 {
                    let store = Store::open(root).unwrap();
                    let layers = [format!("{writer} {round}"), format!("shared {round}")];
                    import(&store, &format!("w:{writer}"), &layers.each_ref().map(|layer| layer.as_bytes()));
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..12 {
                    Store::gc(&root, false).unwrap();
                }
            });
        }
    });
    Store::gc(&root, false).unwrap();
    let store = Store::open(&root).unwrap();
    let refs = store.refs().unwrap();
    assert_eq!(refs.len(), 2);
    for target in refs.values() {
        for blob in store.manifest(target).unwrap().0.blobs() {
            assert_eq!(store.check(blob, &Progress::silent()).unwrap(), Ok(()));
        }
    }
    assert_eq!(blobs(&store).len(), 6, "two manifests, one config, three layers");
}

#[test]
fn what_a_push_left_is_remembered_for_a_week() {
    let (_directory, store) = open();
    let begun = |digest: &Digest| {
        let upload = Upload { url: "https://registry.example/1".to_owned(), reached: 1, shortest_chunk: 0 };
        store.claim("registry.example/model", digest).unwrap().keep(&upload);
    };
    let uploads = store.root().join("uploads");
    begun(&Digest::of(b"old"));
    let old = fs::read_dir(&uploads).unwrap().next().unwrap().unwrap().path();
    begun(&Digest::of(b"new"));
    let eight_days = Duration::from_secs(8 * 24 * 3600);
    fs::File::options().write(true).open(&old).unwrap().set_modified(SystemTime::now() - eight_days).unwrap();
    let root = store.root().to_owned();
    drop(store);
    assert_eq!(Store::gc(&root, false).unwrap().unfinished, 1);
    assert!(!old.exists() && fs::read_dir(&uploads).unwrap().count() == 1);
}

#[test]
fn what_a_pull_left_stays_for_a_week() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let (_directory, store) = open();
    let ingest = store.root().join("ingest");
    let leave = |what: &str, suffix: &str, age: Duration| {
        let file = fs::File::create(ingest.join(format!("{}.{suffix}", Digest::of(what.as_bytes()).hex()))).unwrap();
        file.set_len(100).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    };
    let expected: BTreeSet<_> = ["new", "six days old"]
        .iter()
        .flat_map(|what| ["partial", "ranges"].map(|suffix| format!("{}.{suffix}", Digest::of(what.as_bytes()).hex())))
        .chain(["notes.partial".to_owned()])
        .collect();
    for (what, age) in [("new", Duration::ZERO), ("six days old", 6 * DAY), ("eight days old", 8 * DAY)] {
        leave(what, "partial", age);
        leave(what, "ranges", age);
    }
    leave("without a record", "partial", Duration::ZERO);
    leave("without its bytes", "ranges", Duration::ZERO);
    fs::write(ingest.join("notes.partial"), "not ours").unwrap();

    let root = store.root().to_owned();
    let planned = Store::gc(&root, true).unwrap();
    drop(store);
    let report = Store::gc(&root, false).unwrap();
    assert_eq!((report.unfinished, report.resumable, report.bytes), (4, 2, 400));
    assert_eq!(report, planned);
    assert_eq!(listing(&ingest).into_keys().collect::<BTreeSet<_>>(), expected);
}
