//! `docs/kiln.lock.schema.json` describes every lock that kiln writes, and refuses what kiln refuses.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

use std::fs;
use std::path::{Path, PathBuf};

use jsonschema::Validator;
use kiln::manifest::{Content, Lock};
use kiln::oci::Reference;
use kiln::ops::additions::Additions;
use kiln::ops::create::{Options, dialect_of, prepare};
use kiln::ops::inspect::find;
use kiln::plan::{Profile, Recipe, Request};
use kiln::store::Store;
use kiln::{Progress, json};
use serde_json::Value;

fn below(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn schema() -> Validator {
    let text = fs::read(below("docs/kiln.lock.schema.json")).unwrap();
    jsonschema::draft202012::new(&json::parse(&text).unwrap()).unwrap()
}

/// The lock of the model that `source` becomes; `None` when it cannot become one.
fn lock(source: &Path, request: Request, additions: &Additions) -> Option<Vec<u8>> {
    let place = tempfile::tempdir().unwrap();
    let (store, progress) = (Store::open(place.path()).unwrap(), Progress::silent());
    let name: Reference = "model:lock".parse().unwrap();
    let dialect = dialect_of(request.profile);
    let options = Options { name: name.clone(), source: source.to_owned().into(), request, dialect, threads: 2 };
    let prepared = prepare(&options.source, options.request.clone(), 2, &progress).ok()?;
    prepared.with(additions).unwrap().create(&store, &options, &progress).ok()?;
    let (_, manifest) = find(&store, &name).unwrap();
    let layer = manifest.layers.iter().find(|layer| Content::of(layer) == Content::Lock).unwrap();
    Some(store.read_blob(layer).unwrap())
}

#[track_caller]
fn assert_valid(schema: &Validator, lock: &[u8], whose: &str) {
    let value = json::parse(lock).unwrap();
    let errors: Vec<String> =
        schema.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{whose}: {errors:#?}");
    Lock::parse(lock).unwrap();
}

#[test]
fn every_lock_is_as_the_schema_says() {
    let schema = schema();
    let mut seen = 0;
    for entry in fs::read_dir(below("tests/checkpoints")).unwrap() {
        let source = entry.unwrap().path();
        for (profile, scheme) in [
            (Profile::Ollama, None),
            (Profile::Ollama, Some("int4")),
            (Profile::Mlx, Some("nvfp4")),
            (Profile::Hf, None),
        ] {
            let scheme = scheme.map(|scheme| scheme.parse().unwrap());
            let request = Request::new(profile, scheme, None).unwrap();
            if let Some(lock) = lock(&source, request, &Additions::default()) {
                assert_valid(&schema, &lock, &format!("{} {profile}", source.display()));
                seen += 1;
            }
        }
    }
    assert!(seen > 80, "{seen}");
}

/// One with everything that a lock can have.
fn full() -> Vec<u8> {
    let place = tempfile::tempdir().unwrap();
    let modelfile = place.path().join("Modelfile");
    fs::write(&modelfile, "SYSTEM s\nREQUIRES 0.33.0\n").unwrap();
    let additions = Additions {
        modelfile: Some(modelfile),
        draft: Some(below("tests/drafts/gemma4-assistant-bf16")),
        draft_scheme: Some("int4".parse().unwrap()),
    };
    let request = Request { scheme: Some("int4".parse().unwrap()), ..Request::default() };
    lock(&below("tests/checkpoints/gemma4-dense-vl-bf16"), request, &additions).unwrap()
}

#[test]
fn a_lock_with_a_draft_a_modelfile_or_a_recipe_is_as_the_schema_says() {
    let schema = schema();
    assert_valid(&schema, &full(), "with a draft and a Modelfile");
    let recipe = Recipe::built_in("mixed-3-6").unwrap();
    let request = Request::new(Profile::Ollama, None, recipe).unwrap();
    let lock = lock(&below("tests/checkpoints/llama-8l-bf16"), request, &Additions::default()).unwrap();
    assert_eq!(json::parse(&lock).unwrap()["policy"], "recipe");
    assert_valid(&schema, &lock, "with a recipe");
}

/// Both refuse the same: kiln's parser, and whoever has the schema.
#[test]
fn a_member_more_or_less_is_refused_everywhere() {
    let schema = schema();
    let sound = json::parse(&full()).unwrap();
    #[track_caller]
    fn refused(schema: &Validator, lock: &Value, what: &str) {
        assert!(!schema.is_valid(lock), "the schema takes {what}");
        assert!(Lock::parse(&json::to_canonical(lock)).is_err(), "kiln takes {what}");
    }
    for pointer in ["", "/draft", "/modelfile", "/tensors/0", "/tensors/0/sources/0"] {
        let members: Vec<String> = sound.pointer(pointer).unwrap().as_object().unwrap().keys().cloned().collect();
        let mut more = sound.clone();
        more.pointer_mut(pointer).unwrap()["more"] = 1.into();
        refused(&schema, &more, &format!("{pointer}/more"));
        let mut required = 0;
        for member in members {
            let mut less = sound.clone();
            less.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(&member);
            let is_valid = schema.is_valid(&less);
            assert_eq!(Lock::parse(&json::to_canonical(&less)).is_ok(), is_valid, "without {pointer}/{member}");
            required += usize::from(!is_valid);
            let mut other = sound.clone();
            other.pointer_mut(pointer).unwrap()[&member] = Value::Bool(true);
            refused(&schema, &other, &format!("true as {pointer}/{member}"));
        }
        assert!(required > 0, "nothing is required in `{pointer}`");
    }
}
