//! Whatever happened to a file, the store says so and can be healed.

use super::*;

#[test]
fn whatever_happened_to_the_file() {
    let large = vec![3; 3 << 20];
    let (_directory, store) = open();
    let (manifest, _, _) = import(&store, "a", &[&large]);
    let layer = &manifest.layers[0];
    let path = store.blob_path(&layer.digest);
    let checked = || store.check(layer, &Progress::silent()).unwrap();
    assert_eq!(checked(), Ok(()));

    damage(&store, &layer.digest, |bytes| bytes[2_000_000] ^= 0x10);
    let actual = Digest::of(&fs::read(&path).unwrap());
    assert_eq!(checked(), Err(Damage::Digest { actual }));
    assert_eq!(store.read_blob(layer).unwrap_err().kind(), ErrorKind::Corrupt);

    damage(&store, &layer.digest, |bytes| bytes.fill(0));
    assert!(matches!(checked(), Err(Damage::Digest { .. })));

    for size in [0, large.len() - 1, large.len() + 1] {
        damage(&store, &layer.digest, |bytes| bytes.resize(size, 0));
        assert_eq!(checked(), Err(Damage::Size { actual: size as u64 }));
        assert_eq!(store.open_blob(layer).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    fs::remove_file(&path).unwrap();
    assert_eq!(checked(), Err(Damage::Missing));
    assert!(store.open_blob(layer).unwrap().is_none());
    let error = store.read_blob(layer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(&layer.digest.to_string()), "{error}");
    assert!(error.hint_text().unwrap().contains("kiln pull"));

    let elsewhere = store.root().join("notes/elsewhere");
    fs::write(&elsewhere, &large).unwrap();
    symlink(&elsewhere, &path).unwrap();
    assert_eq!(checked(), Err(Damage::Missing), "a symlink, even to the right bytes");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(checked(), Err(Damage::Missing), "a directory");
    fs::remove_dir(&path).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    assert_eq!(checked(), Err(Damage::Missing), "a pipe");
}

#[test]
fn every_chunk_is_reported() {
    let (_directory, store) = open();
    let (manifest, _, _) = import(&store, "a", &[&vec![3; 3_000_000]]);
    let seen = Arc::new(Mutex::new((0, 0)));
    let progress = Progress::new({
        let seen = Arc::clone(&seen);
        move |event| {
            if let Event::Advanced { bytes } = event {
                let mut seen = seen.lock().unwrap();
                *seen = (seen.0 + bytes, seen.1 + 1);
            }
        }
    });
    store.check(&manifest.layers[0], &progress).unwrap().unwrap();
    let (bytes, chunks) = *seen.lock().unwrap();
    assert_eq!(bytes, 3_000_000);
    assert!(chunks > 1, "{chunks}");
}

#[test]
fn what_is_moved_aside_can_be_written_anew() {
    let (_directory, store) = open();
    let (manifest, _, _) = import(&store, "a", &[b"layer"]);
    let layer = &manifest.layers[0];
    for attempt in 0..2 {
        damage(&store, &layer.digest, |bytes| bytes[0] ^= 1);
        let aside = store.quarantine(&layer.digest).unwrap();
        assert_eq!(aside, store.root().join(format!("quarantine/{}.{attempt}", layer.digest.hex())));
        assert_eq!(fs::read(aside).unwrap(), b"mayer");
        assert_eq!(store.quarantine(&layer.digest).unwrap_err().kind(), ErrorKind::NotFound);
        let (_, _, report) = import(&store, "a", &[b"layer"]);
        assert_eq!(report.written, BTreeSet::from([layer.digest]));
    }
}

#[test]
fn a_manifest_is_what_its_descriptor_says() {
    let (_directory, store) = open();
    let (_, target, _) = import(&store, "a", &[b"x"]);
    let docker = Descriptor { media_type: MediaType::DOCKER_MANIFEST, ..target.clone() };
    assert_eq!(store.manifest(&docker).unwrap_err().kind(), ErrorKind::Corrupt);
    let huge = Descriptor { size: 5 << 20, ..target };
    assert_eq!(store.manifest(&huge).unwrap_err().kind(), ErrorKind::Corrupt);
    let endless = Descriptor { size: u64::MAX, ..huge };
    assert_eq!(store.read_blob(&endless).unwrap_err().kind(), ErrorKind::CouldNotCheck);
}
