//! What a directory must be to be taken for a store, and how one is made.

use super::*;

#[test]
fn a_new_store_is_an_image_layout() {
    let (_directory, store) = open();
    let read = |file: &str| fs::read_to_string(store.root().join(file)).unwrap();
    assert_eq!(read("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#);
    assert_eq!(
        read("index.json"),
        r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#
    );
    assert_eq!(read("kiln.json"), r#"{"format":1,"compatible":[],"incompatible":[]}"#);
    assert!(store.refs().unwrap().is_empty());
    let before = listing(store.root());
    Store::open(store.root()).unwrap();
    assert_eq!(listing(store.root()), before);
}

#[test]
fn another_directory_is_left_alone() {
    let (_elsewhere, foreign_layout) = open();
    fs::remove_file(foreign_layout.root().join("kiln.json")).unwrap();
    fs::remove_dir_all(foreign_layout.root().join("locks")).unwrap();
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("thesis.txt"), "years of work").unwrap();
    for root in [home.path(), foreign_layout.root()] {
        let before = listing(root);
        for error in [Store::open(root).unwrap_err(), Store::gc(root, false).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Store, "{error}");
            assert!(error.to_string().contains("Not a kiln store"), "{error}");
        }
        assert_eq!(listing(root), before);
    }
}

#[test]
fn a_creation_that_was_cut_short_is_finished() {
    let (_directory, whole) = open();
    for missing in [&["kiln.json"][..], &["kiln.json", "index.json"], &["kiln.json", "index.json", "oci-layout"]] {
        let root = tempfile::tempdir().unwrap();
        for directory in ["locks", "blobs", "blobs/sha256", "ingest"] {
            fs::create_dir(root.path().join(directory)).unwrap();
        }
        for file in ["kiln.json", "index.json", "oci-layout"].iter().filter(|file| !missing.contains(file)) {
            fs::copy(whole.root().join(file), root.path().join(file)).unwrap();
        }
        import(&Store::open(root.path()).unwrap(), "a", &[b"x"]);
    }
}

#[test]
fn threads_may_create_the_same_store() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("deep/store");
    thread::scope(|scope| {
        let opened: Vec<_> = (0..8).map(|_| scope.spawn(|| Store::open(&root))).collect();
        for store in opened {
            store.join().unwrap().unwrap();
        }
    });
}

#[test]
fn a_store_of_another_version_is_refused() {
    let (_directory, store) = open();
    for (format, says) in [
        (r#"{"format":2,"compatible":[],"incompatible":[]}"#, Some("`format 2`")),
        (r#"{"format":1,"compatible":[],"incompatible":["packed"]}"#, Some("`packed`")),
        (r#"{"format":1,"format":1}"#, Some("Not the format file")),
        ("", Some("Not the format file")),
        (r#"{"format":1,"compatible":["stamps"],"incompatible":[],"later":1}"#, None),
    ] {
        fs::write(store.root().join("kiln.json"), format).unwrap();
        match (Store::open(store.root()), says) {
            (Ok(_), None) => {}
            (Err(error), Some(says)) => {
                assert_eq!(error.kind(), ErrorKind::Store);
                assert!(error.to_string().contains(says), "{error}");
                assert!(error.hint_text().is_some(), "{error}");
            }
            (outcome, _) => panic!("{format}: {outcome:?}"),
        }
    }
}

#[test]
fn a_store_that_everybody_may_change_is_refused() {
    let (_directory, store) = open();
    let root = store.root().to_owned();
    drop(store);
    fs::set_permissions(&root, Permissions::from_mode(0o777)).unwrap();
    for error in [Store::open(&root).unwrap_err(), Store::gc(&root, false).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Store);
        assert!(error.hint_text().unwrap().contains("chmod o-w"), "{error}");
    }
    fs::set_permissions(&root, Permissions::from_mode(0o770)).unwrap();
    assert!(Store::open(&root).is_ok());
}
