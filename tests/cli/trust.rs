//! `kiln sign`, `kiln attest` and what `kiln verify` makes of them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use insta::assert_snapshot;
use registry_fixtures::{Fixture, Options};
use serde_json::{Value, json};

use crate::place::Place;
use crate::shell::help;

/// A model that is pushed to a registry, with keys beside it.
struct Scene {
    place: Place,
    registry: Fixture,
    model: String,
}

impl Scene {
    fn new() -> Self {
        let place = Place::new();
        place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
        keys(&place);
        let registry = Fixture::start_with(Options { referrers: true, ..Options::default() });
        let model = format!("{}/team/demo:int4", registry.host());
        place.kiln(&format!("create {model} checkpoint --quantize int4")).expect(0);
        place.kiln(&format!("push {model}")).expect(0);
        Self { place, registry, model }
    }

    fn verify(&self, options: &str, code: i32) -> Value {
        let run = self.place.kiln(&format!("verify {} --json --progress off {options}", self.model));
        run.expect(code).last_object()
    }
}

/// Keys of the tests, which only their owner may read.
fn keys(place: &Place) {
    for key in ["ed25519", "p256"] {
        for file in [format!("{key}.pem"), format!("{key}.pub.pem")] {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys").join(&file);
            fs::copy(from, place.path(&file)).unwrap();
            fs::set_permissions(place.path(&file), fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
}

#[test]
fn help_says_what_they_take() {
    assert_snapshot!(help("sign"), @r"
    Sign a model in a registry

    Usage: kiln sign [OPTIONS] --key <FILE> <NAME> [REFERENCE]

    Arguments:
      <NAME>       The model, in the store or a registry
      [REFERENCE]  Where it is published, as in `registry.example/team/llama:int4` [default: NAME]

    Options:
          --key <FILE>  The private key: ed25519 or P-256, in PEM (PKCS #8) without a passphrase
      -h, --help        Print help (see more with '--help')

    Registry options: …

    Global options: …

    Examples:
      kiln sign registry.example/team/llama:int4 --key release.pem
      kiln sign llama:int4 registry.example/team/llama:int4 --key release.pem

    A key of one's own:
      openssl genpkey -algorithm ed25519 -out release.pem && chmod 600 release.pem
      openssl pkey -in release.pem -pubout -out release.pub.pem
    ");
    assert_snapshot!(help("attest"), @r"
    State how a model was made

    Usage: kiln attest [OPTIONS] <NAME> [REFERENCE]

    Arguments:
      <NAME>       The model's name in the store
      [REFERENCE]  Where it is published, as in `registry.example/team/llama:int4` [default: NAME]

    Options:
          --key <FILE>     The private key to sign it with: ed25519 or P-256, in PEM (PKCS #8) without a
                           passphrase
          --builder <URI>  Who made the model, as a URI [default: urn:kiln:builder:local]
          --output <FILE>  Write the statement to a file, or to standard output with `-`, and attach
                           nothing
      -h, --help           Print help (see more with '--help')

    Registry options: …

    Global options: …

    Examples:
      kiln attest llama:int4 registry.example/team/llama:int4 --key release.pem
      kiln attest registry.example/team/llama:int4 --builder https://ci.example/models
      kiln attest llama:int4 --output statement.json
    ");
}

#[test]
fn what_is_signed_is_trusted_by_its_key_and_by_no_other() {
    let scene = Scene::new();
    let unsigned = scene.verify("--key ed25519.pub.pem", 10);
    assert_eq!((&unsigned["result"], &unsigned["level"]), (&json!("not-trusted"), &json!("trust")));
    for key in ["ed25519", "p256"] {
        let other = if key == "p256" { "ed25519" } else { "p256" };
        let scene = Scene::new();
        scene.place.kiln(&format!("sign {} --key {key}.pem", scene.model)).expect(0);
        let trusted = scene.verify(&format!("--key {key}.pub.pem"), 0);
        assert_eq!(trusted["notChecked"], json!(["rebuild"]));
        assert_eq!(trusted["trust"]["accepted"][0]["key"], format!("{key}.pub.pem"));
        let refused = scene.verify(&format!("--key {other}.pub.pem"), 10);
        let cause = refused["findings"][0]["cause"].as_str().unwrap();
        assert!(cause.contains("No signature is one of a key that is trusted"), "{cause}");
        scene.verify(&format!("--key {other}.pub.pem --key {key}.pub.pem --level trust"), 0);
    }
}

#[test]
fn the_report_says_what_it_did_not_check() {
    let scene = Scene::new();
    scene.place.kiln(&format!("sign {} --key ed25519.pem", scene.model)).expect(0);
    assert_snapshot!(scene.place.kiln(&format!("verify {} --key ed25519.pub.pem", scene.model)), @r"
    exit: 0
    --- stdout ---
    127.0.0.1:[PORT]/team/demo:int4 sha256:[DIGEST]
    checked: structure, digests, tensors, trust (23 blobs)
    trusted: signed, by the key `ed25519.pub.pem` (sha256:[DIGEST])
    not checked: who made the model: the policy names no builder
    not checked: what it was made from: the policy names no source
    not checked: when it was signed, and whether the key was withdrawn since: no log is asked
    not checked: whether the name should mean a newer model by now
    not checked: rebuild (creating it again from its source gives the same bytes)
    result: ok
    --- stderr ---
    verify: 22 blobs, [SIZE]
    ");
    let nobody = scene.place.kiln(&format!("verify {} --level trust", scene.model));
    assert_snapshot!(nobody, @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: Nobody is trusted: no key is named

    hint: name one with `--key FILE`, or a policy with `--policy FILE`
    ");
    assert_snapshot!(scene.place.kiln(&format!("verify {} --key p256.pub.pem", scene.model)), @r"
    exit: 10
    --- stdout ---
    127.0.0.1:[PORT]/team/demo:int4 sha256:[DIGEST]
    checked: structure, digests, tensors, trust (23 blobs)
    not-trusted: No signature of a key that is trusted stands for the model
      cause: `sha256:[DIGEST]`: No signature is one of a key that is trusted
    not checked: who made the model: the policy names no builder
    not checked: what it was made from: the policy names no source
    not checked: when it was signed, and whether the key was withdrawn since: no log is asked
    not checked: whether the name should mean a newer model by now
    not checked: rebuild (creating it again from its source gives the same bytes)
    result: not-trusted
    --- stderr ---
    verify: 22 blobs, [SIZE]
    ");
}

#[test]
fn a_signature_is_the_same_each_time_and_is_over_what_the_store_has() {
    let scene = Scene::new();
    let sign = format!("sign {} --key ed25519.pem --json --progress off", scene.model);
    let first = scene.place.kiln(&sign).expect(0).last_object();
    assert_eq!(scene.place.kiln(&sign).expect(0).last_object(), first);
    assert_eq!(first["subject"], json!(scene.place.digest(&format!("show {}", scene.model))));
    assert_eq!(first["predicateType"], "https://sigstore.dev/cosign/sign/v1");
    // Another model under the name in the registry is not what is signed.
    scene.place.kiln("create other:v1 checkpoint --quantize int8").expect(0);
    scene.place.kiln(&format!("push other:v1 {}", scene.model)).expect(0);
    assert_eq!(scene.place.kiln(&sign).expect(0).last_object(), first);
    // Without a store it is what the registry has.
    let there = scene.place.kiln(&format!("{sign} --store nowhere")).expect(0).last_object();
    assert_eq!(there["subject"], json!(scene.place.digest("show other:v1")));
    assert!(!scene.place.path("nowhere").exists());
}

#[test]
fn a_key_that_others_may_read_signs_nothing() {
    let scene = Scene::new();
    fs::set_permissions(scene.place.path("p256.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_snapshot!(scene.place.kiln(&format!("sign {} --key p256.pem", scene.model)), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: Others may read the private key: `p256.pem`

    hint: chmod 600 p256.pem
    ");
    assert_snapshot!(scene.place.kiln(&format!("sign {} --key ed25519.pub.pem", scene.model)), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: The key `ed25519.pub.pem` cannot be used
    caused by: The file has no `PRIVATE KEY`

    hint: `openssl genpkey -algorithm ed25519 -out KEY` makes one that can be used
    ");
    scene.place.kiln("sign demo:int4 --key ed25519.pem").expect(2);
    let absent = format!("{}/team/demo:absent", scene.registry.host());
    scene.place.kiln(&format!("sign {absent} --key ed25519.pem")).expect(6);
}

#[test]
fn an_attestation_says_how_the_model_was_made() {
    let scene = Scene::new();
    let Scene { place, model, .. } = &scene;
    let run = place.kiln(&format!("attest {model} --output - --builder https://ci.example/models"));
    let statement: Value = serde_json::from_str(&run.expect(0).stdout).unwrap();
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
    let digest = place.digest(&format!("show {model}"));
    assert_eq!(statement["subject"][0]["digest"]["sha256"], digest["sha256:".len()..]);
    let predicate = &statement["predicate"];
    assert_eq!(
        predicate["buildDefinition"]["externalParameters"],
        json!({ "dialect": "ollama", "profile": "ollama", "scheme": "int4", "source": "file:checkpoint" })
    );
    let dependencies = predicate["buildDefinition"]["resolvedDependencies"].as_array().unwrap();
    let mut files: Vec<&str> = dependencies.iter().map(|file| file["name"].as_str().unwrap()).collect();
    files.sort_unstable();
    let shards = fs::read_dir(place.path("checkpoint")).unwrap().map(|it| it.unwrap().file_name());
    let shards = shards.filter(|name| name.to_str().unwrap().ends_with(".safetensors")).count();
    assert_eq!(files.iter().filter(|name| name.ends_with(".safetensors")).count(), shards);
    for file in dependencies {
        let bytes = fs::read(place.path("checkpoint").join(file["name"].as_str().unwrap())).unwrap();
        assert_eq!(file["digest"]["sha256"], registry_fixtures::digest(&bytes)["sha256:".len()..]);
    }
    let details = &predicate["runDetails"];
    assert_eq!(details["builder"]["id"], "https://ci.example/models");
    assert_eq!(details["builder"]["version"]["kiln"], env!("CARGO_PKG_VERSION"));
    assert!(details["metadata"]["startedOn"].as_str().unwrap() < details["metadata"]["finishedOn"].as_str().unwrap());
    assert_eq!(details["metadata"]["invocationId"].as_str().unwrap().len(), 32);
    let text = run.stdout.clone();
    assert!(!text.contains(place.path("").to_str().unwrap()), "no directory of this machine: {text}");
    // The same model from the same place gives a note of its own run, and the same definition.
    place.kiln(&format!("attest {model} --output again.json --builder https://ci.example/models")).expect(0);
    let again: Value = serde_json::from_slice(&fs::read(place.path("again.json")).unwrap()).unwrap();
    assert_eq!(again, statement);
}

#[test]
fn an_unsigned_attestation_is_found_and_counts_for_nothing() {
    let scene = Scene::new();
    scene.place.kiln(&format!("attest {}", scene.model)).expect(0);
    let listed = scene.place.kiln(&format!("referrers {} --json", scene.model)).expect(0).last_object();
    assert_eq!(listed["referrers"][0]["artifactType"], "application/vnd.in-toto+json");
    scene.verify("--key ed25519.pub.pem", 10);
}

#[test]
fn files_that_changed_since_are_not_told() {
    let scene = Scene::new();
    let config = scene.place.path("checkpoint/config.json");
    fs::write(&config, fs::read(&config).unwrap()).unwrap();
    let run = scene.place.kiln(&format!("attest {} --output -", scene.model));
    run.expect(0);
    assert!(run.stderr.contains("`config.json` has changed since the model was made"), "{run}");
    let statement: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(statement["predicate"]["buildDefinition"]["resolvedDependencies"], json!([]));
}

#[test]
fn a_model_that_was_made_elsewhere_is_not_attested_here() {
    let scene = Scene::new();
    let pull = format!("pull {} --store elsewhere", scene.model);
    scene.place.kiln(&pull).expect(0);
    scene.place.kiln(&format!("attest {} --store elsewhere", scene.model)).expect(5);
    scene.place.kiln(&format!("sign {} --key p256.pem --store elsewhere", scene.model)).expect(0);
    let verify = format!("verify {} --store elsewhere --key p256.pub.pem", scene.model);
    scene.place.kiln(&verify).expect(0);
}

#[test]
fn a_policy_names_keys_builders_and_sources() {
    let scene = Scene::new();
    let Scene { place, model, .. } = &scene;
    fs::create_dir_all(place.path("home/.config/kiln")).unwrap();
    let policy = |text: &str| fs::write(place.path("policy.toml"), text).unwrap();
    place.kiln(&format!("sign {model} --key ed25519.pem")).expect(0);
    policy("keys = [\"ed25519.pub.pem\"]\nbuilders = [\"https://ci.example/models\"]\n");
    // A signature alone does not say who made it.
    let unmade = scene.verify("--policy policy.toml", 10);
    let message = unmade["findings"][0]["message"].as_str().unwrap();
    assert!(message.contains("No statement that is trusted says how the model was made"), "{message}");
    place.kiln(&format!("attest {model} --key ed25519.pem --builder https://ci.example/models")).expect(0);
    let trusted = scene.verify("--policy policy.toml", 0);
    assert!(trusted["trust"]["accepted"].as_array().unwrap().iter().any(|it| it["source"] == "file:checkpoint"));
    for (text, code) in [
        ("keys = [\"ed25519.pub.pem\"]\nbuilders = [\"https://other.example\"]\n", 10),
        ("keys = [\"ed25519.pub.pem\"]\nsources = [\"file:check*\"]\n", 0),
        ("keys = [\"ed25519.pub.pem\"]\nsources = [\"hf://*\"]\n", 10),
        ("keys = [\"p256.pub.pem\"]\n", 10),
        ("keys = []\n", 2),
        ("keys = [\"ed25519.pub.pem\"]\nbuilder = []\n", 2),
        ("keys = [\"absent.pem\"]\n", 6),
    ] {
        policy(text);
        let run = place.kiln(&format!("verify {model} --policy policy.toml"));
        assert_eq!(run.code(), code, "{text}: {run}");
    }
    // A key beside it does not make up for a policy without one.
    policy("keys = []\n");
    let run = place.kiln(&format!("verify {model} --policy policy.toml --key ed25519.pub.pem"));
    assert!(run.expect(2).stderr.contains("names no key"), "{run}");
    // Beside the configuration file it is the policy that is meant.
    fs::copy(place.path("ed25519.pub.pem"), place.path("home/.config/kiln/release.pem")).unwrap();
    fs::write(place.path("home/.config/kiln/trust.toml"), "keys = [\"release.pem\"]\n").unwrap();
    scene.verify("--level trust", 0);
    // Whoever names a key means that one alone.
    scene.verify("--level trust --key p256.pub.pem", 10);
    // It is asked when trust is, and not otherwise.
    let usual = scene.verify("", 0);
    assert_eq!(usual["notChecked"], json!(["rebuild", "trust"]));
}

#[test]
fn of_what_is_damaged_nobody_asks_who_stands_for_it() {
    let scene = Scene::new();
    let Scene { place, model, registry } = &scene;
    place.kiln(&format!("sign {model} --key ed25519.pem")).expect(0);
    let layer = place.kiln(&format!("show {model} --json")).expect(0).last_object()["layers"][0]["digest"].clone();
    place.damage(layer.as_str().unwrap(), 10);
    registry.clear_requests();
    let verified = scene.verify("--level trust --key ed25519.pub.pem", 3);
    assert_eq!((&verified["trust"], &verified["level"]), (&Value::Null, &json!("trust")));
    assert!(verified["notChecked"].as_array().unwrap().contains(&json!("trust")), "{verified}");
    assert!(registry.requests().is_empty());
}

#[test]
fn a_rebuild_is_published_only_when_it_was_shown() {
    let scene = Scene::new();
    let Scene { place, model, .. } = &scene;
    let attests = format!("verify {model} --attest --attest-key p256.pem --verifier https://rebuilder.example");
    place.kiln(&attests).expect(0);
    let listed = place.kiln(&format!("referrers {model} --json")).expect(0).last_object();
    assert_eq!(listed["referrers"].as_array().unwrap().len(), 1);
    let kind = &listed["referrers"][0]["annotations"]["dev.sigstore.bundle.predicateType"];
    assert_eq!(kind, "https://in-toto.io/attestation/svr/v0.2");
    // Whoever made it again does not stand for it.
    let verified = scene.verify("--key p256.pub.pem", 10);
    assert_eq!(verified["trust"]["accepted"][0]["predicateType"], "https://in-toto.io/attestation/svr/v0.2");
    place.kiln(&format!("sign {model} --key p256.pem")).expect(0);
    let run = place.kiln(&format!("verify {model} --key p256.pub.pem"));
    assert!(run.expect(0).stdout.contains("trusted: KILN_LAYERS_REPRODUCED, by the key `p256.pub.pem`"), "{run}");
    // What is not the source of the model, or gone, shows nothing.
    place.checkpoint("llama-8l-bf16", "other");
    let count = || {
        let listed = place.kiln(&format!("referrers {model} --json")).expect(0).last_object();
        listed["referrers"].as_array().unwrap().len()
    };
    let before = count();
    for (words, code) in [("--source other", 4), ("--source absent", 5)] {
        let run = place.kiln(&format!("{attests} {words}"));
        assert!(run.stderr.contains("nothing is published"), "{run}");
        assert_eq!((run.code(), count()), (code, before), "{run}");
    }
    place.kiln(&format!("{attests} --level digests")).expect(2);
}

#[test]
fn the_files_that_were_attested_are_those_that_are_rebuilt_from() {
    let scene = Scene::new();
    let Scene { place, model, .. } = &scene;
    place.kiln(&format!("attest {model} --output statement.json")).expect(0);
    place.kiln(&format!("verify {model} --level rebuild")).expect(0);
    // The same tensors, and another file.
    let config = place.path("checkpoint/config.json");
    let mut text = fs::read(&config).unwrap();
    text.push(b'\n');
    fs::write(&config, text).unwrap();
    let run = place.kiln(&format!("verify {model} --level rebuild"));
    assert!(
        run.expect(5).stdout.contains("`config.json` of the source is not the one that the model was made of"),
        "{run}"
    );
    fs::remove_file(&config).unwrap();
    place.kiln(&format!("verify {model} --level rebuild")).expect(5);
}

#[test]
fn a_source_of_the_hub_is_told_by_its_commit_and_found_by_it_again() {
    const COMMIT: &str = "233aeac2ded397627419c0730c82feb48f9dcc9a";
    let place = crate::sources::with_cache();
    place.kiln("create tiny:v1 acme/tiny-llama").expect(0);
    let run = place.kiln("attest tiny:v1 --output -");
    let statement: Value = serde_json::from_str(&run.expect(0).stdout).unwrap();
    let definition = &statement["predicate"]["buildDefinition"];
    assert_eq!(definition["externalParameters"]["source"], "hf://acme/tiny-llama");
    assert_eq!(definition["externalParameters"]["revision"], COMMIT);
    let repository = json!({
        "uri": format!("pkg:huggingface/acme/tiny-llama@{COMMIT}"), "digest": { "gitCommit": COMMIT },
    });
    assert_eq!(definition["resolvedDependencies"][0], repository);
    let file = &definition["resolvedDependencies"][1];
    let name = file["name"].as_str().unwrap();
    assert_eq!(file["uri"], format!("https://huggingface.co/acme/tiny-llama/resolve/{COMMIT}/{name}"));
    // The cache is elsewhere now: the commit and the digests of the files decide.
    fs::rename(place.path("home/.cache/huggingface"), place.path("moved")).unwrap();
    place.kiln("verify tiny:v1 --level rebuild").expect(5);
    let mut command = place.command("verify tiny:v1 --level rebuild");
    command.env("HF_HUB_CACHE", place.path("moved/hub"));
    let run = place.run(command);
    assert!(run.expect(0).stderr.contains("is gone: its commit is taken from the cache"), "{run}");
    let snapshot = place.path("moved/hub/models--acme--tiny-llama/snapshots").join(COMMIT);
    let config = fs::canonicalize(snapshot.join("config.json")).unwrap();
    let mut text = fs::read(&config).unwrap();
    text.push(b'\n');
    fs::remove_file(&config).unwrap();
    fs::write(&config, text).unwrap();
    let mut command = place.command("verify tiny:v1 --level rebuild");
    command.env("HF_HUB_CACHE", place.path("moved/hub"));
    let run = place.run(command);
    assert!(run.expect(5).stdout.contains("is not the one that the model was made of"), "{run}");
}

#[test]
fn a_registry_that_cannot_be_asked_leaves_it_open() {
    let scene = Scene::new();
    let Scene { place, model, .. } = &scene;
    place.kiln(&format!("sign {model} --key ed25519.pem")).expect(0);
    place.kiln(&format!("tag {model} local:v1")).expect(0);
    // It was seen to have the model when that was pushed.
    place.kiln("verify local:v1 --key ed25519.pub.pem").expect(0);
    place.kiln("create never:pushed checkpoint").expect(0);
    let run = place.kiln("verify never:pushed --key ed25519.pub.pem");
    assert!(run.expect(5).stdout.contains("name it with `--signatures REFERENCE`"), "{run}");
    let gone = format!("verify {model} --key ed25519.pub.pem --signatures 127.0.0.1:1/team/demo --connect-timeout 1");
    place.kiln(&gone).expect(5);
}
