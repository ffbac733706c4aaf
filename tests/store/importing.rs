//! An import is all or nothing, and writes nothing twice.

use super::*;

#[test]
fn a_model_comes_back_byte_for_byte() {
    let (_directory, store) = open();
    let (manifest, target, report) = import(&store, "team/llama:int4", &[b"first", b"second"]);
    assert_eq!(report.written.len(), 4);
    assert!(report.written.contains(&target.digest) && report.present.is_empty());
    let size: u64 = manifest.blobs().map(|blob| blob.size).sum();
    assert_eq!(report.bytes_written, size + target.size);

    assert_eq!(store.refs().unwrap(), BTreeMap::from([("team/llama:int4".to_owned(), target.clone())]));
    let (parsed, bytes) = store.manifest(&target).unwrap();
    assert_eq!((parsed, Digest::of(&bytes)), (manifest.clone(), target.digest));
    assert_eq!(store.read_blob(&manifest.layers[1]).unwrap(), b"second");
    let mut streamed = Vec::new();
    store.open_blob(&manifest.layers[0]).unwrap().unwrap().read_to_end(&mut streamed).unwrap();
    assert_eq!(streamed, b"first");
}

#[test]
fn a_second_import_writes_nothing() {
    let (_directory, store) = open();
    let large = vec![7; 3 << 20];
    let (_, _, first) = import(&store, "a:1", &[b"layer", &large]);
    let inode = |digest: &Digest| fs::metadata(store.blob_path(digest)).unwrap().ino();
    let inodes: Vec<_> = first.written.iter().map(inode).collect();
    let (_, _, second) = import(&store, "a:2", &[b"layer", &large]);
    assert_eq!((second.written.len(), second.bytes_written), (0, 0));
    assert_eq!(second.present, first.written);
    assert_eq!(first.written.iter().map(inode).collect::<Vec<_>>(), inodes);
}

#[test]
fn a_failed_or_dropped_import_changes_nothing() {
    let (_directory, store) = open();
    import(&store, "kept", &[b"kept"]);
    let before = listing(store.root());

    let import = store.begin_import().unwrap();
    import.stage_bytes(MediaType::KILN_FILE, b"staged").unwrap();
    let failure = import.stage(MediaType::KILN_FILE, |out| {
        out.write_all(&vec![1; 3 << 20]).unwrap();
        Err::<(), _>(Error::input("The shard ends early"))
    });
    assert_eq!(failure.unwrap_err().to_string(), "The shard ends early");
    assert!(fs::read_dir(store.root().join("ingest")).unwrap().count() == 1, "only what was staged is there");
    drop(import);
    assert_eq!(listing(store.root()), before, "dropped");

    let import = store.begin_import().unwrap();
    let (_, staged) = stage(&import, &[b"one", b"two"]);
    let other = Digest::of(b"another");
    let error = import.commit(&name(&format!("kept:latest@{other}")), &staged).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert_eq!(listing(store.root()), before, "a reference that pins another digest");

    let import = store.begin_import().unwrap();
    let (mut manifest, _) = stage(&import, &[b"one", b"two"]);
    manifest.layers.push(Descriptor::of(MediaType::OLLAMA_TENSOR, b"nobody staged this"));
    let incomplete = kiln::json::to_canonical(&manifest);
    let incomplete = import.stage_bytes(MediaType::OCI_MANIFEST, &incomplete).unwrap();
    assert_eq!(import.commit(&name("kept"), &incomplete).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(listing(store.root()), before, "a manifest that needs more than is there");

    let import = store.begin_import().unwrap();
    stage(&import, &[b"one"]);
    let stranger = Descriptor::of(MediaType::OCI_MANIFEST, b"never staged");
    assert_eq!(import.commit(&name("kept"), &stranger).unwrap_err().kind(), ErrorKind::Unexpected);
    assert_eq!(listing(store.root()), before, "a manifest nobody staged");

    let import = store.begin_import().unwrap();
    let no_manifest = import.stage_bytes(MediaType::OCI_MANIFEST, b"[]").unwrap();
    assert_eq!(import.commit(&name("kept"), &no_manifest).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(listing(store.root()), before, "a manifest that is none");
}

#[test]
fn a_commit_that_fails_on_the_way_names_nothing() {
    let (_directory, store) = open();
    import(&store, "a", &[b"old"]);
    let index = fs::read(store.root().join("index.json")).unwrap();
    // A directory where the blob belongs is something no rename replaces.
    fs::create_dir(store.blob_path(&Digest::of(b"new"))).unwrap();
    let import = store.begin_import().unwrap();
    let (_, target) = stage(&import, &[b"new", b"newer"]);
    assert_eq!(import.commit(&name("a"), &target).unwrap_err().kind(), ErrorKind::Store);
    assert_eq!(fs::read(store.root().join("index.json")).unwrap(), index);
    assert_eq!(fs::read_dir(store.root().join("ingest")).unwrap().count(), 0);
    assert!(store.open_blob(&target).unwrap().is_none(), "the manifest came before its blobs");
}

#[test]
fn nothing_is_visible_before_the_commit() {
    let (_directory, store) = open();
    let import = store.begin_import().unwrap();
    let (manifest, target) = stage(&import, &[b"layer"]);
    assert!(blobs(&store).is_empty());
    assert!(store.open_blob(&manifest.layers[0]).unwrap().is_none());
    assert!(store.refs().unwrap().is_empty());
    import.commit(&name("a"), &target).unwrap();
    assert_eq!(blobs(&store).len(), 3);
    assert_eq!(fs::read_dir(store.root().join("ingest")).unwrap().count(), 0);
}

#[test]
fn the_writer_may_write_in_any_pieces() {
    let (_directory, store) = open();
    let import = store.begin_import().unwrap();
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|at| (at % 251) as u8).collect();
    for piece in [1 << 12, 65_537, 5_000_000] {
        let (staged, pieces) = import
            .stage(MediaType::KILN_FILE, |out| {
                for chunk in bytes.chunks(piece) {
                    out.write_all(chunk).unwrap();
                }
                Ok(bytes.len().div_ceil(piece))
            })
            .unwrap();
        assert_eq!(staged, Descriptor::of(MediaType::KILN_FILE, &bytes));
        assert_eq!(pieces, bytes.len().div_ceil(piece));
    }
}

#[test]
fn threads_may_stage_and_import_the_same() {
    let (_directory, store) = open();
    let layers: Vec<Vec<u8>> = (0..16).map(|layer| vec![layer; 10_000]).collect();
    let shared = store.begin_import().unwrap();
    thread::scope(|scope| {
        for layer in &layers {
            scope.spawn(|| shared.stage_bytes(MediaType::OLLAMA_TENSOR, layer).unwrap());
        }
    });
    let slices: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let (_, target) = stage(&shared, &slices);
    thread::scope(|scope| {
        for copy in 0..4 {
            let (store, slices) = (Store::open(store.root()).unwrap(), &slices);
            scope.spawn(move || import(&store, &format!("copy:{copy}"), slices));
        }
        scope.spawn(|| shared.commit(&name("shared"), &target).unwrap());
    });
    let refs = store.refs().unwrap();
    assert_eq!(refs.len(), 5);
    for target in refs.values() {
        let (manifest, _) = store.manifest(target).unwrap();
        for blob in manifest.blobs() {
            assert_eq!(store.check(blob, &Progress::silent()).unwrap(), Ok(()));
        }
    }
    assert_eq!(fs::read_dir(store.root().join("ingest")).unwrap().count(), 0);
}

#[test]
fn bytes_of_another_size_are_replaced() {
    let (_directory, store) = open();
    let large = vec![9; 3 << 20];
    let (manifest, _, _) = import(&store, "a", &[&large, b"small"]);
    damage(&store, &manifest.layers[0].digest, |bytes| bytes.truncate(10));
    damage(&store, &manifest.layers[1].digest, |bytes| bytes[0] ^= 1);
    let (_, _, report) = import(&store, "a", &[&large, b"small"]);
    assert_eq!(report.written, manifest.layers.iter().map(|layer| layer.digest).collect());
    for layer in &manifest.layers {
        assert_eq!(store.check(layer, &Progress::silent()).unwrap(), Ok(()));
    }
}
