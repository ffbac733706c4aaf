//! What kiln asks of a real registry besides transfers.

use std::fs;

use registry_fixtures::real::Kind;
use serde_json::Value;

use crate::place::{Place, Run};
use crate::registry::{PASSWORD, Registry, USER};
use crate::skopeo::program;

fn oras(place: &Place, words: &str) -> Run {
    program(place, "oras", "oras", words)
}

/// The digests in a list of referrers, kiln's or that of `oras`.
fn digests(listed: &Value, member: &str) -> Vec<String> {
    let mut digests: Vec<String> =
        listed[member].as_array().unwrap().iter().map(|entry| entry["digest"].as_str().unwrap().to_owned()).collect();
    digests.sort();
    digests
}

#[test]
fn what_a_registry_has_is_listed_and_removed() {
    let (user, password) = (USER.to_owned(), PASSWORD.to_owned());
    let kinds = [
        Kind::Plain,
        Kind::TlsHtpasswd { user: user.clone(), password: password.clone() },
        Kind::Token { user, password },
    ];
    for kind in kinds {
        let (place, registry) = (Place::with_model(), Registry::start(kind.clone()));
        let (host, transport) = (registry.host().to_owned(), registry.transport());
        if !matches!(kind, Kind::Plain) {
            place.kiln(&format!("tags {host}/team/demo {transport}")).expect(7);
            registry.log_in(&place, PASSWORD).expect(0);
        }
        for tag in ["b", "a"] {
            place.kiln(&format!("push demo:int4 {host}/team/demo:{tag} {transport}")).expect(0);
        }
        let tags = || place.kiln(&format!("tags {host}/team/demo {transport}"));
        assert_eq!(tags().expect(0).stdout, "a\nb\n", "{kind:?}");
        assert_eq!(place.kiln(&format!("catalog {host} {transport}")).expect(0).stdout, "team/demo\n", "{kind:?}");
        place.kiln(&format!("tags {host}/team/nothing {transport}")).expect(6);

        // It takes a tag for a wrong digest.
        let refused = place.kiln(&format!("rm --remote {host}/team/demo:a {transport}"));
        let digest = place.digest("show demo:int4");
        let hint = format!("kiln rm --remote {host}/team/demo@{digest}");
        assert!(refused.expect(8).stderr.contains(&hint), "{refused}");
        assert_eq!(tags().expect(0).stdout, "a\nb\n");
        place.kiln(&format!("rm --remote {host}/team/demo@{digest} {transport}")).expect(0);
        place.kiln(&format!("pull {host}/team/demo:a gone {transport}")).expect(6);
    }
}

#[test]
fn what_is_attached_is_found_by_oras_and_what_oras_attached_by_kiln() {
    let place = Place::with_model();
    fs::write(place.path("card.md"), "# A model").unwrap();
    fs::write(place.path("review.txt"), "looks good").unwrap();
    let registry = Registry::plain();
    let mut server = place.start(&mut place.command("serve --addr 127.0.0.1:0 --store served --allow-delete"));
    let mut attached = Vec::new();
    for host in [registry.host().to_owned(), server.line("listening on ")] {
        let model = format!("{host}/team/demo:int4");
        place.kiln(&format!("push demo:int4 {model} --plain-http")).expect(0);
        let words =
            format!("attach {model} card.md:text/markdown --artifact-type application/x-card --plain-http --json");
        let card = place.kiln(&words).expect(0).last_object();
        oras(
            &place,
            &format!("attach --plain-http --artifact-type application/x-review {model} review.txt:text/plain"),
        )
        .expect(0);

        let listed = place.kiln(&format!("referrers {model} --plain-http --json")).expect(0).last_object();
        let discovered = oras(&place, &format!("discover --plain-http --format json {model}"));
        let discovered: Value = serde_json::from_str(&discovered.expect(0).stdout).unwrap();
        assert_eq!(digests(&listed, "referrers").len(), 2, "{listed}");
        assert_eq!(digests(&listed, "referrers"), digests(&discovered, "manifests"));
        let digest = card["digest"].as_str().unwrap();
        let only = place.kiln(&format!("referrers {model} --artifact-type application/x-card --plain-http --json"));
        assert_eq!(digests(&only.expect(0).last_object(), "referrers"), [digest]);
        oras(&place, &format!("pull --plain-http --output back-{digest} {host}/team/demo@{digest}")).expect(0);
        assert_eq!(fs::read_to_string(place.path(&format!("back-{digest}/card.md"))).unwrap(), "# A model");

        place.kiln(&format!("rm --remote {host}/team/demo@{digest} --plain-http")).expect(0);
        let left = oras(&place, &format!("discover --plain-http --format json {model}"));
        let left: Value = serde_json::from_str(&left.expect(0).stdout).unwrap();
        assert_eq!(digests(&left, "manifests").len(), 1, "{left}");
        attached.push(digest.to_owned());
    }
    assert_eq!(attached[0], attached[1], "the same files for the same model");
    server.signal("TERM");
    server.wait().expect(0);
}
