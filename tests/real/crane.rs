//! `crane` 0.20, as a client of two registries and as a registry that departs from the specification.

use registry_fixtures::real::CraneRegistry;

use crate::place::{Place, Run};
use crate::registry::{Registry, stored_manifest};
use crate::skopeo::{place_with_modelpack, program};

fn crane(place: &Place, words: &str) -> Run {
    let run = program(place, "crane", "crane", words);
    run.expect(0);
    run
}

/// Pushes by kiln, pulls and pushes by crane under another name, pulls by kiln: all with one digest.
fn round_trip(place: &Place, host: &str, digest: &str, round: &str) {
    let (pushed, by_crane) = (format!("{host}/team/demo:mp"), format!("{host}/crane/demo:mp"));
    place.kiln(&format!("push demo:mp {pushed} --plain-http")).expect(0);
    assert_eq!(crane(place, &format!("digest {pushed}")).stdout.trim(), digest);
    crane(place, &format!("pull --format oci {pushed} layout-{round}"));
    crane(place, &format!("push layout-{round} {by_crane}"));
    assert_eq!(crane(place, &format!("digest {by_crane}")).stdout.trim(), digest);
    assert_eq!(crane(place, &format!("ls {host}/crane/demo")).stdout.trim(), "mp");
    place.kiln(&format!("pull {by_crane} demo:mp --store there-{round} --plain-http")).expect(0);
    place.kiln(&format!("verify demo:mp --store there-{round} --source checkpoint")).expect(0);
}

#[test]
fn a_model_goes_by_crane_out_of_each_registry_and_back() {
    let (place, digest) = place_with_modelpack();
    let registry = Registry::plain();
    let mut server = place.start(&mut place.command("serve --addr 127.0.0.1:0 --store served"));
    let served = server.line("listening on ");
    round_trip(&place, registry.host(), &digest, "docker");
    round_trip(&place, &served, &digest, "kiln");

    // Crane copies what skopeo does not: the dialect of Ollama.
    place.kiln("create demo:int4 checkpoint --quantize int4").expect(0);
    place.kiln(&format!("push demo:int4 {}/team/demo:int4 --plain-http", registry.host())).expect(0);
    crane(&place, &format!("copy {}/team/demo:int4 {served}/copied/demo:int4", registry.host()));
    place.kiln(&format!("pull {served}/copied/demo:int4 demo:int4 --store copied --plain-http")).expect(0);
    assert_eq!(stored_manifest(&place, "demo:int4", "copied"), stored_manifest(&place, "demo:int4", "store"));
    server.signal("TERM");
    server.wait().expect(0);
}

/// It answers 204 to a chunk, 400 to the question how far a session is and 416 to a range without an end, and lists
/// blobs for all repositories.
#[test]
fn the_registry_of_crane_is_good_enough() {
    let registry = CraneRegistry::start().unwrap_or_else(|problem| panic!("{problem}"));
    let (place, digest) = place_with_modelpack();
    round_trip(&place, registry.host(), &digest, "crane");

    crate::gigabytes::checkpoint(&place.path("large"), [40 << 20].into_iter());
    place.kiln("create big:v1 large").expect(0);
    place.kiln(&format!("push big:v1 {}/team/big:v1 --plain-http", registry.host())).expect(0);
    place.kiln(&format!("pull {}/team/big:v1 big:v1 --store big --plain-http", registry.host())).expect(0);
    place.kiln("verify big:v1 --store big --source large").expect(0);
}
