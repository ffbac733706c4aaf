//! `skopeo` 1.9.3 reads kiln's store as the OCI layout that it is, and speaks with `kiln serve` as with any
//! registry. The digest is the same everywhere.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::process::{Command, Stdio};

use registry_fixtures::digest;
use registry_fixtures::real::find;

use crate::place::{Place, Run};
use crate::registry::{Registry, stored_manifest};

/// Runs skopeo with these words.
pub(crate) fn skopeo(place: &Place, words: &str) -> Run {
    program(place, "skopeo", "skopeo", words)
}

/// Runs a program of a Debian package with these words.
pub(crate) fn program(place: &Place, program: &str, package: &str, words: &str) -> Run {
    let mut command = Command::new(find(program, package).unwrap_or_else(|problem| panic!("{problem}")));
    command
        .args(words.split_whitespace())
        .current_dir(place.path(""))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", place.path("home"))
        .env("TMPDIR", place.path(""))
        .stdin(Stdio::null());
    place.run(command)
}

fn copy(place: &Place, from: &str, to: &str) -> Run {
    let mut options = String::new();
    for (side, location) in [("src", from), ("dest", to)] {
        if location.starts_with("docker://") {
            options.push_str(&format!(" --{side}-tls-verify=false"));
        }
    }
    skopeo(place, &format!("--insecure-policy copy --quiet{options} {from} {to}"))
}

/// The digest of the manifest at `location`, of the very bytes.
pub(crate) fn digest_at(place: &Place, location: &str) -> String {
    let tls = if location.starts_with("docker://") { "--tls-verify=false" } else { "" };
    let run = skopeo(place, &format!("inspect --raw {tls} {location}"));
    run.expect(0);
    digest(run.stdout.as_bytes())
}

/// The blobs of the layout `layout`, by name.
fn blobs(place: &Place, layout: &str) -> BTreeMap<OsString, Vec<u8>> {
    let entries = fs::read_dir(place.path(layout).join("blobs/sha256")).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap())).collect()
}

/// A place with the model `demo:mp` in ModelPack's dialect, and its digest.
pub(crate) fn place_with_modelpack() -> (Place, String) {
    let place = Place::new();
    place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
    place.kiln("create demo:mp checkpoint --quantize int4 --dialect modelpack").expect(0);
    let digest = place.digest("show demo:mp");
    (place, digest)
}

#[test]
fn a_model_goes_by_skopeo_from_the_store_through_two_registries_and_back() {
    let (place, digest) = place_with_modelpack();
    let (first, second) = (Registry::plain(), Registry::plain());
    let places = [
        "oci:store:demo:mp".to_owned(),
        format!("docker://{}/first/demo:mp", first.host()),
        format!("docker://{}/second/demo:mp", second.host()),
        "oci:layout:demo:mp".to_owned(),
    ];
    for pair in places.windows(2) {
        copy(&place, &pair[0], &pair[1]).expect(0);
    }
    for location in &places {
        assert_eq!(digest_at(&place, location), digest, "{location}");
    }
    let remote = format!("{}/second/demo:mp", second.host());
    place.kiln(&format!("pull {remote} demo:mp --store there --plain-http")).expect(0);
    assert_eq!(stored_manifest(&place, "demo:mp", "there"), stored_manifest(&place, "demo:mp", "store"));
    place.kiln("verify demo:mp --store there --source checkpoint").expect(0);
    // The layout that skopeo wrote has the very blobs of the store.
    assert_eq!(blobs(&place, "layout"), blobs(&place, "store"));
}

#[test]
fn kiln_serve_is_a_registry_for_skopeo() {
    let (place, digest) = place_with_modelpack();
    let mut server = place.start(&mut place.command("serve --addr 127.0.0.1:0 --store served"));
    let host = server.line("listening on ");
    let served = format!("docker://{host}/team/demo:mp");
    copy(&place, "oci:store:demo:mp", &served).expect(0);
    copy(&place, &served, "oci:layout:demo:mp").expect(0);
    for location in [served.as_str(), "oci:layout:demo:mp"] {
        assert_eq!(digest_at(&place, location), digest, "{location}");
    }
    let tags = skopeo(&place, &format!("list-tags --tls-verify=false docker://{host}/team/demo"));
    assert_eq!(tags.expect(0).stdout.split_whitespace().filter(|word| *word == "\"mp\"").count(), 1, "{tags}");
    place.kiln(&format!("pull {host}/team/demo:mp demo:mp --store there --plain-http")).expect(0);
    place.kiln("verify demo:mp --store there --source checkpoint").expect(0);
    // The server's store has the model itself, under the name it was pushed as.
    place.kiln("verify team/demo:mp --store served --source checkpoint").expect(0);
    server.signal("TERM");
    server.wait().expect(0);
}

/// The limit is skopeo's: its Docker manifests know the layers of container images only. `oci:` layouts hold
/// OCI manifests for it, so that one of Docker's is as if it were not there.
#[test]
fn the_ollama_dialect_is_refused_by_skopeo_itself() {
    let registry = Registry::plain();
    let place = Place::with_model();
    place.kiln(&format!("push demo:int4 {}/team/demo:int4 --plain-http", registry.host())).expect(0);
    let remote = format!("docker://{}/team/demo:int4", registry.host());
    for (from, says) in [
        (remote.as_str(), "unsupported docker v2s2 media type: \\\"application/vnd.ollama.image."),
        ("oci:store:demo:int4", "no descriptor found for reference \\\"demo:int4\\\""),
    ] {
        let run = copy(&place, from, "oci:layout:demo:int4");
        assert_ne!(run.code(), 0, "{run}");
        assert!(run.stderr.contains(says), "{run}");
    }
    // The bytes it hands over all the same.
    assert_eq!(digest_at(&place, &remote), place.digest("show demo:int4"));
}
