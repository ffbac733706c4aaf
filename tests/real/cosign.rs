//! What kiln signs, `cosign` 3 and a few lines of Python with `openssl` check; what `cosign` signs, kiln checks; and what was
//! tampered with, nobody takes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use registry_fixtures::digest;
use registry_fixtures::real::find;
use serde_json::{Value, json};

use crate::place::{Place, Run};
use crate::registry::Registry;
use crate::skopeo::program;

const EMPTY: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

fn cosign(place: &Place, words: &str) -> Run {
    let mut command = Command::new(find("cosign", "cosign").unwrap_or_else(|problem| panic!("{problem}")));
    command
        .args(words.split_whitespace())
        .current_dir(place.path(""))
        .env_clear()
        .env("HOME", place.path("home"))
        .env("COSIGN_PASSWORD", "")
        .stdin(Stdio::null());
    place.run(command)
}

fn verify_with_cosign(place: &Place, key: &str, model: &str) -> Run {
    cosign(place, &format!("verify --key {key} --insecure-ignore-tlog --allow-http-registry {model}"))
}

fn keys(place: &Place) {
    for file in ["ed25519.pem", "ed25519.pub.pem", "p256.pem", "p256.pub.pem"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys").join(file);
        fs::copy(from, place.path(file)).unwrap();
        fs::set_permissions(place.path(file), fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// A model at `host`, pushed, with keys beside it.
fn published(host: &str) -> (Place, String, String) {
    let place = Place::new();
    place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
    keys(&place);
    let model = format!("{host}/team/demo:int4");
    place.kiln(&format!("create {model} checkpoint --quantize int4")).expect(0);
    place.kiln(&format!("push {model} --plain-http")).expect(0);
    let digest = place.digest(&format!("show {model}"));
    (place, model, digest)
}

/// The bundle of the artifact `artifact`, as a client of registries fetches it.
fn bundle(place: &Place, host: &str, artifact: &str) -> Value {
    let fetched = program(place, "crane", "crane", &format!("manifest {host}/team/demo@{artifact}"));
    let manifest: Value = serde_json::from_str(&fetched.expect(0).stdout).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let fetched = program(place, "crane", "crane", &format!("blob {host}/team/demo@{layer}"));
    serde_json::from_str(&fetched.expect(0).stdout).unwrap()
}

/// The program of `docs/trust.md`.
fn checked_by_python(place: &Place, bundle: &Value, key: &str, digest: &str) -> Run {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/trust.md")).unwrap();
    let (_, listing) = text.split_once("<!-- run by tests/real/cosign.rs -->\n```python\n").unwrap();
    fs::write(place.path("check.py"), listing.split_once("\n```").unwrap().0).unwrap();
    fs::write(place.path("bundle.json"), bundle.to_string()).unwrap();
    program(place, "python3", "python3", &format!("check.py bundle.json {key} {digest}"))
}

fn signed(place: &Place, words: &str) -> String {
    let run = place.kiln(&format!("{words} --json --progress off --plain-http"));
    run.expect(0).last_object()["digest"].as_str().unwrap().to_owned()
}

#[test]
fn cosign_and_openssl_take_what_kiln_signs_and_nothing_else() {
    let registry = Registry::plain();
    let (place, model, digest) = published(registry.host());
    let mut server = place.start(&mut place.command("serve --addr 127.0.0.1:0 --store served"));
    let served = format!("{}/team/demo:int4", server.line("listening on "));
    place.kiln(&format!("push {model} {served} --plain-http")).expect(0);
    for key in ["ed25519", "p256"] {
        let (public, other) =
            (format!("{key}.pub.pem"), if key == "p256" { "ed25519.pub.pem" } else { "p256.pub.pem" });
        for (host, at) in
            [(registry.host().to_owned(), &model), (served.split_once('/').unwrap().0.to_owned(), &served)]
        {
            if key == "ed25519" {
                assert_ne!(verify_with_cosign(&place, &public, at).code(), 0, "it is not signed yet");
            }
            let artifact = signed(&place, &format!("sign {model} {at} --key {key}.pem"));
            verify_with_cosign(&place, &public, at).expect(0);
            let bundle = bundle(&place, &host, &artifact);
            let by_python = checked_by_python(&place, &bundle, &public, &digest);
            assert!(by_python.expect(0).stdout.ends_with("https://sigstore.dev/cosign/sign/v1\n"), "{by_python}");
            assert_ne!(checked_by_python(&place, &bundle, other, &digest).code(), 0);
            assert_ne!(checked_by_python(&place, &bundle, &public, EMPTY).code(), 0);
        }
    }
    // How it was made, too.
    signed(&place, &format!("attest {model} --key p256.pem"));
    let attested = "verify-attestation --key p256.pub.pem --insecure-ignore-tlog --allow-http-registry";
    cosign(&place, &format!("{attested} --type slsaprovenance1 {model}")).expect(0);
    assert_ne!(cosign(&place, &format!("{attested} --type spdx {model}")).code(), 0);
    server.signal("TERM");
    server.wait().expect(0);
}

#[test]
fn kiln_takes_what_cosign_signs() {
    let registry = Registry::plain();
    let (place, model, _) = published(registry.host());
    fs::write(
        place.path("signing.json"),
        json!({ "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json" }).to_string(),
    )
    .unwrap();
    // It takes a key of openssl's only once that is encrypted in its own way.
    let import = "import-key-pair --key p256.pem --output-key-prefix imported -y";
    cosign(&place, import).expect(0);
    let sign = "sign --key imported.key --signing-config signing.json --allow-http-registry -y";
    cosign(&place, &format!("{sign} {model}")).expect(0);
    place.kiln(&format!("verify {model} --key imported.pub --plain-http")).expect(0);
    place.kiln(&format!("verify {model} --key p256.pub.pem --plain-http")).expect(0);
    place.kiln(&format!("verify {model} --key ed25519.pub.pem --plain-http")).expect(10);
}

#[test]
fn what_was_tampered_with_is_taken_by_nobody() {
    let registry = Registry::plain();
    let host = registry.host();
    let (place, model, subject) = published(host);
    let artifact = signed(&place, &format!("sign {model} --key p256.pem"));
    let sound = bundle(&place, host, &artifact);
    let flip = |pointer: &str| {
        let mut bundle = sound.clone();
        let text = bundle.pointer(pointer).unwrap().as_str().unwrap().to_owned();
        let at = text.len() / 2;
        let other = if text.as_bytes()[at] == b'A' { "B" } else { "A" };
        *bundle.pointer_mut(pointer).unwrap() = format!("{}{other}{}", &text[..at], &text[at + 1..]).into();
        bundle
    };
    let other_kind = {
        let mut bundle = sound.clone();
        bundle["dsseEnvelope"]["payloadType"] = "application/json".into();
        bundle
    };
    for (what, tampered) in [
        ("signature", flip("/dsseEnvelope/signatures/0/sig")),
        ("statement", flip("/dsseEnvelope/payload")),
        ("payload type", other_kind),
    ] {
        assert_ne!(checked_by_python(&place, &tampered, "p256.pub.pem", &subject).code(), 0, "{what}");
        // Each in a repository of its own, where it is all there is.
        let there = format!("{host}/{}/demo:int4", what.replace(' ', "-"));
        place.kiln(&format!("push {model} {there} --plain-http")).expect(0);
        fs::write(place.path("tampered.json"), tampered.to_string()).unwrap();
        let annotations = "--annotation dev.sigstore.bundle.content=dsse-envelope \
                           --annotation dev.sigstore.bundle.predicateType=https://sigstore.dev/cosign/sign/v1";
        let attach = format!("attach {there} --artifact-type {BUNDLE} {annotations} tampered.json:{BUNDLE}");
        place.kiln(&format!("{attach} --plain-http")).expect(0);
        let verify = format!("verify {model} --signatures {there} --key p256.pub.pem --plain-http");
        let run = place.kiln(&verify);
        assert!(!run.expect(10).stdout.contains("result: ok"), "{run}");
        assert_ne!(verify_with_cosign(&place, "p256.pub.pem", &there).code(), 0, "{what}");
        // As it was, it is taken there.
        fs::write(place.path("tampered.json"), sound.to_string()).unwrap();
        place.kiln(&format!("{attach} --plain-http")).expect(0);
        place.kiln(&verify).expect(0);
        verify_with_cosign(&place, "p256.pub.pem", &there).expect(0);
    }
    // A signature of this model says nothing of another one.
    place.kiln("create other:v1 checkpoint --quantize int8").expect(0);
    let other = format!("{host}/other/demo:v1");
    place.kiln(&format!("push other:v1 {other} --plain-http")).expect(0);
    fs::write(place.path("moved.json"), sound.to_string()).unwrap();
    place.kiln(&format!("attach {other} --artifact-type {BUNDLE} moved.json:{BUNDLE} --plain-http")).expect(0);
    let run = place.kiln(&format!("verify other:v1 --signatures {other} --key p256.pub.pem --plain-http"));
    assert!(run.expect(10).stdout.contains(&format!("The statement is about `{subject}`")), "{run}");
    assert_ne!(checked_by_python(&place, &sound, "p256.pub.pem", &digest(b"another manifest")).code(), 0);
}
