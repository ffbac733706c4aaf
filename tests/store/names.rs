//! Names point only at what is stored, and no update is lost.

use super::*;

#[test]
fn a_model_is_found_by_tag_and_by_digest() {
    let (_directory, store) = open();
    let (_, target, _) = import(&store, "registry.example/team/llama:int4", &[b"x"]);
    let digest = target.digest;
    let other = Digest::of(b"other");
    for (reference, found) in [
        ("registry.example/team/llama:int4".to_owned(), true),
        (format!("registry.example/team/llama:int4@{digest}"), true),
        (format!("registry.example/team/llama@{digest}"), true),
        (format!("registry.example/team/llama:int4@{other}"), false),
        (format!("registry.example/team/llama@{other}"), false),
        (format!("registry.example/team/llama:int8@{digest}"), false),
        (format!("registry.example/team/other@{digest}"), false),
        (format!("team/llama@{digest}"), false),
        ("registry.example/team/llama".to_owned(), false),
        ("team/llama:int4".to_owned(), false),
    ] {
        assert_eq!(store.find(&name(&reference)).unwrap(), found.then(|| target.clone()), "{reference}");
    }
}

#[test]
fn names_are_kept_sorted_moved_and_removed() {
    let (_directory, store) = open();
    let (_, first, _) = import(&store, "b:1", &[b"first"]);
    let (_, second, _) = import(&store, "a:1", &[b"second"]);
    let pinned = format!("c@{}", first.digest);
    store.set_ref(&name(&pinned), &first).unwrap();
    store.set_ref(&name(&format!("d:1@{}", first.digest)), &first).unwrap();
    let text = fs::read_to_string(store.root().join("index.json")).unwrap();
    let at = |name: &str| text.find(&format!(r#""org.opencontainers.image.ref.name":"{name}""#)).unwrap();
    assert!(at("a:1") < at("b:1") && at("b:1") < at(&pinned) && at(&pinned) < at("d:1"), "{text}");

    store.set_ref(&name("b:1"), &second).unwrap();
    assert_eq!(store.find(&name("b:1")).unwrap(), Some(second.clone()));
    assert_eq!(store.remove_ref(&name(&format!("b:1@{}", first.digest))).unwrap(), None);
    assert_eq!(store.remove_ref(&name("b:1")).unwrap(), Some(second));
    assert_eq!(store.remove_ref(&name("b:1")).unwrap(), None);
    assert_eq!(store.remove_ref(&name(&pinned)).unwrap(), Some(first));
    assert_eq!(store.refs().unwrap().into_keys().collect::<Vec<_>>(), ["a:1", "d:1"]);
}

#[test]
fn a_name_points_only_at_what_is_stored() {
    let (_directory, store) = open();
    let absent = Descriptor::of(MediaType::OCI_MANIFEST, b"absent");
    assert_eq!(store.set_ref(&name("a"), &absent).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(store.refs().unwrap().is_empty());
}

#[test]
fn no_update_is_lost() {
    let (_directory, store) = open();
    let (_, target, _) = import(&store, "a", &[b"x"]);
    thread::scope(|scope| {
        for writer in 0..4 {
            let store = if writer % 2 == 0 { store.clone() } else { Store::open(store.root()).unwrap() };
            let target = &target;
            scope.spawn(move || {
                for round in 0..10 {
                    store.set_ref(&name(&format!("w{writer}:{round}")), target).unwrap();
                    if round % 2 == 1 {
                        store.remove_ref(&name(&format!("w{writer}:{round}"))).unwrap().unwrap();
                    }
                }
            });
        }
    });
    let expected = (0..4).flat_map(|writer| (0..10).step_by(2).map(move |round| format!("w{writer}:{round}")));
    let expected: BTreeSet<String> = expected.chain(["a:latest".to_owned()]).collect();
    assert_eq!(store.refs().unwrap().into_keys().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn a_damaged_index_is_not_an_empty_one() {
    let (_directory, store) = open();
    import(&store, "a", &[b"x"]);
    let index = store.root().join("index.json");
    let count = blobs(&store).len();
    for text in [&b""[..], b"{", br#"{"schemaVersion":1,"manifests":[]}"#, br#"{"schemaVersion":2}"#] {
        fs::write(&index, text).unwrap();
        assert_eq!(store.refs().unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(Store::gc(store.root(), true).unwrap_err().kind(), ErrorKind::Corrupt);
    }
    fs::remove_file(&index).unwrap();
    assert!(store.refs().is_err());
    let root = store.root().to_owned();
    drop(store);
    assert!(Store::gc(&root, false).is_err());
    assert_eq!(blobs(&Store::open(&root).unwrap()).len(), count);
}

#[test]
fn notes_stay_beside_the_content() {
    let (_directory, store) = open();
    let (_, target, _) = import(&store, "a", &[b"x"]);
    assert_eq!(store.note(&target.digest).unwrap(), None);
    for revision in ["first", "second"] {
        let note = serde_json::json!({ "source": { "revision": revision } });
        store.set_note(&target.digest, &note).unwrap();
        assert_eq!(store.note(&target.digest).unwrap(), Some(note));
    }
}
