//! Whoever may write to a registry may attach anything to a model: what of it is trusted, and what is not.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kiln::manifest::{Bundle, Provenance, Statement, Svr};
use kiln::oci::{Digest, Reference};
use kiln::ops::sign::{Target, artifact, private_key, publish, reproduced};
use kiln::ops::transfer::Access;
use kiln::ops::trust::{MAX_SIGNATURES, Policy, Trust, check};
use kiln::ops::verify::Outcome;
use kiln::registry::{Anonymous, Options as Transport};
use kiln::signing::{PrivateKey, PublicKey};
use kiln::{ErrorKind, Progress};
use registry_fixtures::{Fixture, Options};
use serde_json::{Value, json};

const REPOSITORY: &str = "team/model";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const SOURCE: &str = "hf://acme/tiny";
const BUILDER: &str = "https://ci.example/models";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys").join(name)
}

fn key(name: &str) -> PrivateKey {
    PrivateKey::from_pem(&std::fs::read(file(name)).unwrap()).unwrap()
}

fn access() -> Access {
    let options = Transport { first_pause: Duration::from_millis(5), ..Transport::default() };
    Access { keychain: Arc::new(Anonymous), options }
}

/// A policy that trusts the ed25519 key of the tests.
fn policy() -> Policy {
    let mut policy = Policy::default();
    policy.trust(&file("ed25519.pub.pem")).unwrap();
    policy
}

/// A registry with a manifest.
struct Scene {
    registry: Fixture,
    subject: Digest,
    key: PrivateKey,
}

impl Scene {
    fn new() -> Self {
        Self::of(Fixture::start_with(Options { referrers: true, ..Options::default() }))
    }

    fn of(registry: Fixture) -> Self {
        let config = registry.put_blob(REPOSITORY, "{}");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
            "config": { "mediaType": "application/json", "digest": config, "size": 2 },
        });
        let subject = registry.put_manifest(REPOSITORY, "v1", MANIFEST, manifest.to_string()).parse().unwrap();
        Self { registry, subject, key: key("ed25519.pem") }
    }

    fn reference(&self) -> Reference {
        format!("{}/{REPOSITORY}", self.registry.host()).parse().unwrap()
    }

    /// Attaches `bundle`, whatever it is.
    fn attach(&self, bundle: impl Into<Vec<u8>>) -> String {
        let bundle: Vec<u8> = bundle.into();
        let size = bundle.len();
        let layer = self.registry.put_blob(REPOSITORY, bundle);
        self.attach_layer(&layer, size)
    }

    fn attach_layer(&self, layer: &str, size: usize) -> String {
        self.attach_changed(layer, size, |_| {}).0
    }

    /// Attaches what `change` makes of an artifact, and gives its digest and its size.
    fn attach_changed(&self, layer: &str, size: usize, change: impl FnOnce(&mut Value)) -> (String, usize) {
        let config = self.registry.put_blob(REPOSITORY, "{}");
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": BUNDLE,
            "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2 },
            "layers": [{ "mediaType": BUNDLE, "digest": layer, "size": size }],
            "subject": { "mediaType": MANIFEST, "digest": self.subject, "size": 1 },
        });
        change(&mut manifest);
        let manifest = manifest.to_string();
        let (digest, size) = (registry_fixtures::digest(manifest.as_bytes()), manifest.len());
        (self.registry.put_manifest(REPOSITORY, &digest, MANIFEST, manifest), size)
    }

    fn signed(&self, statement: &Statement) -> Vec<u8> {
        Bundle::new(statement, "hint", |message| self.key.sign(message)).unwrap().to_bytes()
    }

    async fn check(&self, policy: &Policy) -> Trust {
        let (place, access) = (self.reference(), access());
        let places = [place];
        let check = check(&self.subject, &places, policy, &access);
        tokio::time::timeout(Duration::from_secs(60), check).await.unwrap().unwrap()
    }

    /// Why the only thing that is attached is not trusted.
    async fn refusal(&self) -> String {
        let trust = self.check(&policy()).await;
        assert_eq!(trust.findings.len(), 1, "{trust:?}");
        assert_eq!(trust.findings[0].outcome, Outcome::NotTrusted);
        assert_eq!((trust.accepted.len(), trust.refused.len()), (0, 1), "{trust:?}");
        let reason = trust.refused[0].1.clone();
        assert!(trust.findings[0].cause.as_ref().unwrap().contains(&reason));
        reason
    }

    fn provenance(&self, source: &str, change: impl FnOnce(&mut Value)) -> Statement {
        let mut predicate = json!({
            "buildDefinition": {
                "buildType": Provenance::BUILD_TYPE,
                "externalParameters": { "dialect": "ollama", "profile": "ollama", "source": source },
                "internalParameters": { "epoch": "1" },
                "resolvedDependencies": [],
            },
            "runDetails": { "builder": { "id": BUILDER } },
        });
        change(&mut predicate);
        Statement::new(&self.subject, None, Provenance::PREDICATE_TYPE, predicate)
    }
}

/// An envelope of any payload type, signed as it should be.
fn envelope(key: &PrivateKey, kind: &str, payload: &[u8]) -> String {
    let signed = [format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).as_bytes(), payload].concat();
    json!({
        "mediaType": BUNDLE,
        "verificationMaterial": { "publicKey": { "hint": "hint" } },
        "dsseEnvelope": {
            "payload": BASE64_STANDARD.encode(payload), "payloadType": kind,
            "signatures": [{ "sig": BASE64_STANDARD.encode(key.sign(&signed).unwrap()) }],
        },
    })
    .to_string()
}

#[tokio::test]
async fn a_signature_of_a_key_that_is_trusted_is_enough_whatever_else_there_is() {
    let scene = Scene::new();
    let nothing = scene.check(&policy()).await;
    assert_eq!(nothing.findings[0].outcome, Outcome::NotTrusted);
    assert_eq!(nothing.findings[0].cause, None);
    scene.attach("no bundle");
    let other =
        Bundle::new(&Statement::signature(&scene.subject), "", |message| key("p256.pem").sign(message)).unwrap();
    scene.attach(other.to_bytes());
    let good = scene.attach(scene.signed(&Statement::signature(&scene.subject)));
    let trust = scene.check(&policy()).await;
    assert!(trust.findings.is_empty(), "{trust:?}");
    assert_eq!((trust.accepted.len(), trust.refused.len()), (1, 2));
    assert_eq!(trust.accepted[0].digest.to_string(), good);
    assert!(trust.accepted[0].key.ends_with("ed25519.pub.pem"));
    let mut both = policy();
    both.trust(&file("p256.pub.pem")).unwrap();
    assert_eq!(scene.check(&both).await.accepted.len(), 2);
}

#[tokio::test]
async fn a_statement_about_another_model_is_refused() {
    let scene = Scene::new();
    let other = Digest::of(b"another manifest");
    scene.attach(scene.signed(&Statement::signature(&other)));
    assert_eq!(scene.refusal().await, format!("The statement is about `{other}`, not about `{}`", scene.subject));
}

#[tokio::test]
async fn a_subject_by_another_algorithm_only_is_refused() {
    let scene = Scene::new();
    let mut statement = Statement::signature(&scene.subject);
    statement.subject[0].digest = BTreeMap::from([("sha512".to_owned(), scene.subject.hex().repeat(2))]);
    scene.attach(scene.signed(&statement));
    assert!(scene.refusal().await.contains("The statement is about `sha512:"));
}

#[tokio::test]
async fn another_payload_type_is_refused_though_it_is_signed() {
    let scene = Scene::new();
    let payload = Statement::signature(&scene.subject).to_bytes();
    let sound = envelope(&scene.key, "application/vnd.in-toto+json", &payload);
    scene.attach(envelope(&scene.key, "application/json", &payload));
    assert!(scene.refusal().await.contains("of the type `application/json`"));
    // Nor does it help to say that it is another.
    let renamed = Scene::new();
    let signed = envelope(&renamed.key, "application/json", &Statement::signature(&renamed.subject).to_bytes());
    renamed.attach(signed.replace("\"application/json\"", "\"application/vnd.in-toto+json\""));
    assert!(renamed.refusal().await.contains("No signature is one of a key that is trusted"));
    scene.attach(sound);
    assert!(scene.check(&policy()).await.findings.is_empty());
}

#[tokio::test]
async fn two_statements_that_disagree_are_a_finding() {
    let scene = Scene::new();
    let first = scene.provenance(SOURCE, |_| ());
    scene.attach(scene.signed(&first));
    // Another run of the same is no disagreement.
    let again = scene.provenance(SOURCE, |predicate| {
        predicate["runDetails"]["metadata"] = json!({ "invocationId": "again" });
    });
    scene.attach(scene.signed(&again));
    let agreed = scene.check(&policy()).await;
    assert!(agreed.findings.is_empty(), "{agreed:?}");
    assert_eq!(agreed.accepted[0].provenance.as_ref().unwrap().build_definition.external_parameters.source, SOURCE);
    scene.attach(scene.signed(&scene.provenance("hf://acme/other", |_| ())));
    let trust = scene.check(&policy()).await;
    assert_eq!(trust.findings[0].outcome, Outcome::NotTrusted);
    assert!(trust.findings[0].message.starts_with("Two statements disagree"), "{trust:?}");
    // A policy that takes one source only is not asked about the other.
    let narrow = Policy { sources: vec![SOURCE.to_owned()], ..policy() };
    assert!(scene.check(&narrow).await.findings.is_empty());
}

#[tokio::test]
async fn a_policy_of_builders_and_sources_holds_for_what_is_said() {
    let scene = Scene::new();
    scene.attach(scene.signed(&scene.provenance(SOURCE, |_| ())));
    let with = |builders: &[&str], sources: &[&str]| {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Policy { builders: owned(builders), sources: owned(sources), ..policy() }
    };
    for (policy, is_trusted) in [
        (with(&[], &[]), true),
        (with(&[BUILDER], &[SOURCE]), true),
        (with(&["https://ci.example"], &[]), false),
        (with(&[BUILDER], &["hf://acme/*"]), true),
        (with(&[], &["hf://acme"]), false),
        (with(&[], &["hf://acm/*", "*"]), true),
    ] {
        assert_eq!(scene.check(&policy).await.findings.is_empty(), is_trusted, "{policy:?}");
    }
}

#[tokio::test]
async fn a_parameter_or_a_kind_that_is_not_known_is_refused() {
    let scene = Scene::new();
    let more = scene.provenance(SOURCE, |predicate| {
        predicate["buildDefinition"]["externalParameters"]["merge"] = "hf://acme/other".into();
    });
    scene.attach(scene.signed(&more));
    assert!(scene.refusal().await.contains("unknown field `merge`"));
    let scene = Scene::new();
    let kind = Statement::new(&scene.subject, None, "https://x.example/approved/v1", json!({}));
    scene.attach(scene.signed(&kind));
    assert!(scene.refusal().await.contains("unknown kind `https://x.example/approved/v1`"));
}

#[tokio::test]
async fn whoever_has_rebuilt_it_does_not_stand_for_it() {
    let scene = Scene::new();
    let target = Target::of(&scene.subject, &scene.reference()).unwrap();
    let statement = reproduced(&target, None);
    assert_eq!(statement.predicate["properties"], json!(["KILN_LAYERS_REPRODUCED"]));
    publish(&target, &statement, Some(&scene.key), &access(), &Progress::silent()).await.unwrap();
    let trust = scene.check(&policy()).await;
    assert_eq!(trust.findings[0].outcome, Outcome::NotTrusted);
    assert_eq!(trust.accepted[0].statement.predicate_type, Svr::PREDICATE_TYPE);
}

#[tokio::test]
async fn what_is_not_signed_is_not_even_looked_at() {
    let scene = Scene::new();
    let target = Target::of(&scene.subject, &scene.reference()).unwrap();
    let statement = Statement::signature(&scene.subject);
    publish(&target, &statement, None, &access(), &Progress::silent()).await.unwrap();
    scene.registry.clear_requests();
    let trust = scene.check(&policy()).await;
    assert_eq!((trust.accepted.len(), trust.refused.len(), trust.findings.len()), (0, 0, 1));
    assert!(
        scene.registry.requests().iter().all(|request| request.path.contains("/referrers/") || request.path == "/v2/")
    );
    assert_eq!(artifact(&statement, None).unwrap().artifact_type.as_str(), Statement::MEDIA_TYPE);
}

#[tokio::test]
async fn what_is_too_large_or_not_there_is_refused_by_itself() {
    let scene = Scene::new();
    let good = scene.attach(scene.signed(&Statement::signature(&scene.subject)));
    let huge = scene.attach(vec![b' '; (1 << 20) + 1]);
    let absent = scene.attach(vec![b'['; 100]);
    scene.registry.remove_blob(REPOSITORY, &registry_fixtures::digest(&[b'['; 100]));
    let deep = scene.attach("[".repeat(1000));
    scene.registry.clear_requests();
    let trust = scene.check(&policy()).await;
    assert!(trust.findings.is_empty(), "{trust:?}");
    assert_eq!(trust.accepted[0].digest.to_string(), good);
    let reasons: BTreeMap<String, &str> =
        trust.refused.iter().map(|(digest, reason)| (digest.to_string(), reason.as_str())).collect();
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    assert!(reasons[&huge].contains("1048577 bytes, more than are read"));
    assert!(reasons[&absent].contains("not there"));
    assert!(reasons[&deep].contains("no bundle"));
    let huge = registry_fixtures::digest(&vec![b' '; (1 << 20) + 1]);
    assert!(!scene.registry.requests().iter().any(|request| request.path.contains(&huge)), "it is not fetched");
}

#[tokio::test]
async fn a_manifest_that_is_too_large_is_not_fetched() {
    let scene = Scene::new();
    let bundle = scene.signed(&Statement::signature(&scene.subject));
    let layer = scene.registry.put_blob(REPOSITORY, bundle.clone());
    let pad = |manifest: &mut Value| manifest["annotations"] = json!({ "pad": "x".repeat(64 << 10) });
    let (huge, _) = scene.attach_changed(&layer, bundle.len(), pad);
    scene.registry.clear_requests();
    assert!(scene.refusal().await.contains("bytes, more than are read"));
    assert!(!scene.registry.requests().iter().any(|request| request.path.contains(&huge)));
}

#[tokio::test]
async fn what_is_listed_here_and_attached_elsewhere_is_refused() {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    // Whoever may write to the repository writes the list.
    let scene = Scene::of(Fixture::start_with(Options { referrers: false, ..Options::default() }));
    let bundle = scene.signed(&Statement::signature(&scene.subject));
    let layer = scene.registry.put_blob(REPOSITORY, bundle.clone());
    let elsewhere = |manifest: &mut Value| manifest["subject"]["digest"] = json!(Digest::of(b"another"));
    let (digest, size) = scene.attach_changed(&layer, bundle.len(), elsewhere);
    let list = json!({
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [{ "mediaType": MANIFEST, "artifactType": BUNDLE, "digest": digest, "size": size }],
    });
    let tag = scene.subject.to_string().replace(':', "-");
    scene.registry.put_manifest(REPOSITORY, &tag, INDEX, list.to_string());
    assert!(scene.refusal().await.contains("attached to another manifest"));
}

#[tokio::test]
async fn ten_thousand_signatures_are_not_all_looked_at() {
    const MANY: usize = 10_000;
    let scene = Scene::new();
    for number in 0..MANY {
        scene.attach(number.to_string());
    }
    scene.registry.clear_requests();
    let begun = Instant::now();
    let trust = scene.check(&policy()).await;
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert_eq!(trust.findings[0].outcome, Outcome::NotTrusted);
    assert_eq!(trust.refused.len(), MAX_SIGNATURES);
    let more = format!("{} more signatures: {MAX_SIGNATURES} are looked at", MANY - MAX_SIGNATURES);
    assert!(trust.not_checked.contains(&more), "{:?}", trust.not_checked);
    let fetched = scene.registry.requests().iter().filter(|request| !request.path.contains("/referrers/")).count();
    assert!(fetched <= 2 * MAX_SIGNATURES + 4, "{fetched}");
    let cause = trust.findings[0].cause.as_ref().unwrap();
    assert!(cause.len() < 2000, "{cause}");
}

#[tokio::test]
async fn a_registry_that_does_not_answer_leaves_it_open() {
    let scene = Scene::new();
    let nowhere: Reference = "127.0.0.1:1/team/model".parse().unwrap();
    let mut access = access();
    access.options.attempts = 1;
    let trust = check(&scene.subject, std::slice::from_ref(&nowhere), &policy(), &access).await.unwrap();
    assert_eq!(trust.findings[0].outcome, Outcome::CouldNotCheck);
    let trust = check(&scene.subject, &[], &policy(), &access).await.unwrap();
    assert_eq!(trust.findings[0].outcome, Outcome::CouldNotCheck);
    // The next place is asked.
    scene.attach(scene.signed(&Statement::signature(&scene.subject)));
    let trust = check(&scene.subject, &[nowhere, scene.reference()], &policy(), &access).await.unwrap();
    assert!(trust.findings.is_empty(), "{trust:?}");
    let nobody = check(&scene.subject, &[], &Policy::default(), &access).await.unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::Usage);
}

#[test]
fn what_cosign_signed_opens_with_its_key_and_with_no_other() {
    let bundle = Bundle::parse(&std::fs::read(file("cosign.bundle.json")).unwrap()).unwrap();
    let open = |key: &str| {
        let key = PublicKey::from_pem(&std::fs::read(file(key)).unwrap()).unwrap();
        bundle.dsse_envelope.open(|message, signature| key.verify(message, signature))
    };
    let statement = open("cosign.pub.pem").unwrap();
    let subject = "sha256:b1257df985049ad5b860f684e37994cd896350fad089d9c86855c2268548c715";
    statement.require_about(&subject.parse().unwrap()).unwrap();
    assert_eq!(open("p256.pub.pem").unwrap_err().kind(), ErrorKind::NotTrusted);
}

#[test]
fn a_private_key_is_its_owners() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("key.pem");
    std::fs::copy(file("ed25519.pem"), &path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = private_key(&path).unwrap_err();
    assert!(error.hint_text().unwrap().starts_with("chmod 600"), "{error}");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    private_key(&path).unwrap();
}
