use std::fs;

use registry_fixtures::Fixture;
use serde_json::{Value, json};

use crate::place::{Place, settle};

/// The last line that a person reads.
fn verdict(place: &Place, words: &str) -> String {
    let run = place.kiln(words);
    settle(run.expect(0).stdout.lines().last().unwrap())
}

/// How many blobs would end in each way.
fn outcomes(planned: &Value, outcome: &str) -> usize {
    planned["blobs"].as_array().unwrap().iter().filter(|blob| blob["outcome"] == outcome).count()
}

/// Checks that the registry was only looked at.
fn only_looked_at(registry: &Fixture) {
    let asked = registry.requests();
    assert!(!asked.is_empty());
    for request in asked {
        assert!(["GET", "HEAD"].contains(&request.method.as_str()), "{} {}", request.method, request.path);
        assert!(!request.path.contains("/blobs/") || request.method == "HEAD", "{}", request.path);
    }
    assert_eq!(registry.open_uploads(), 0);
    registry.clear_requests();
}

#[test]
fn a_push_is_told_and_not_done() {
    let (place, registry) = (Place::with_model(), Fixture::start());
    let remote = format!("{}/team/demo:int4", registry.host());
    let planned = place.kiln(&format!("push demo:int4 {remote} --dry-run"));
    let lines: Vec<&str> = planned.expect(0).stdout.lines().collect();
    assert!(lines[0].starts_with("OUTCOME  BYTES") && lines[0].ends_with("LAYER"), "{planned}");
    assert!(lines.iter().any(|line| line.starts_with("sent ") && line.ends_with("  lm_head.weight")), "{planned}");
    assert_eq!(lines.len(), 1 + 22 + 2);
    assert_eq!(
        settle(lines[24]),
        "would push demo:int4 to 127.0.0.1:[PORT]/team/demo:int4 sha256:[DIGEST] (send 22 of 22 layers and config, \
         [SIZE]; 0 present, 0 mounted)"
    );
    only_looked_at(&registry);

    place.kiln(&format!("push demo:int4 {remote}")).expect(0);
    registry.clear_requests();
    assert_eq!(
        verdict(&place, &format!("push demo:int4 {remote} --dry-run")),
        "would push demo:int4 to 127.0.0.1:[PORT]/team/demo:int4 sha256:[DIGEST] (send 0 of 22 layers and config, \
         [SIZE]; 22 present, 0 mounted); it has that name already"
    );
    only_looked_at(&registry);

    place.kiln("create other checkpoint").expect(0);
    let planned = place.kiln(&format!("push other {remote} --dry-run --json")).expect(0).last_object();
    assert_eq!(planned["replaces"], json!(place.digest("show demo:int4")));
    let (sent, present) = (outcomes(&planned, "sent"), outcomes(&planned, "present"));
    assert!(sent > 0 && present > 0, "{planned}");
    only_looked_at(&registry);
    let pushed = place.kiln(&format!("push other {remote} --json")).expect(0).last_object();
    assert_eq!((&pushed["blobs_sent"], &pushed["blobs_skipped"]), (&json!(sent), &json!(present)));
    assert_eq!(pushed["bytes_sent"], planned["bytes_transferred"]);
}

#[test]
fn a_mount_is_foreseen() {
    let (place, registry) = (Place::with_model(), Fixture::start());
    let [one, other] = ["one", "other"].map(|name| format!("{}/{name}/demo:int4", registry.host()));
    place.kiln(&format!("push demo:int4 {one}")).expect(0);
    registry.clear_requests();
    let planned = place.kiln(&format!("push demo:int4 {other} --dry-run --json")).expect(0).last_object();
    assert_eq!((&planned["event"], &planned["task"]), (&json!("planned"), &json!("push")));
    assert_eq!((outcomes(&planned, "mounted"), &planned["blobs_mounted"]), (22, &json!(22)));
    only_looked_at(&registry);
    let copied = place.kiln(&format!("copy {one} {other} --dry-run --json")).expect(0).last_object();
    assert_eq!((&copied["task"], outcomes(&copied, "mounted")), (&json!("copy"), 22));
    assert_eq!(copied["replaces"], Value::Null);
    only_looked_at(&registry);
    // A blob that is gone where it would come from has to be sent.
    registry.remove_blob("one/demo", &place.layer("lm_head.weight"));
    let planned = place.kiln(&format!("push demo:int4 {other} --dry-run --json")).expect(0).last_object();
    assert_eq!((outcomes(&planned, "mounted"), outcomes(&planned, "sent")), (21, 1));
}

#[test]
fn a_pull_is_told_and_not_done() {
    let (place, registry) = (Place::with_model(), Fixture::start());
    let remote = format!("{}/team/demo:int4", registry.host());
    place.kiln(&format!("push demo:int4 {remote}")).expect(0);
    registry.clear_requests();
    assert_eq!(
        verdict(&place, &format!("pull {remote} --store nowhere --dry-run")),
        "would pull 127.0.0.1:[PORT]/team/demo:int4 sha256:[DIGEST] (fetch 22 of 22 layers and config, [SIZE]; \
         0 present, 0 mounted)"
    );
    assert!(!place.path("nowhere").exists());
    only_looked_at(&registry);
    place.kiln("rm demo:int4").expect(0);
    let blob = place.blob(&first_layer(&registry, "team/demo", "int4"));
    fs::remove_file(blob).unwrap();
    let planned = place.kiln(&format!("pull {remote} demo:int4 --dry-run --json")).expect(0).last_object();
    assert_eq!((outcomes(&planned, "fetched"), outcomes(&planned, "present")), (1, 21));
    assert_eq!((&planned["name"], &planned["replaces"]), (&json!("demo:int4"), &Value::Null));
    only_looked_at(&registry);
    assert_eq!(place.kiln("list --json").expect(0).stdout, "");
    place.kiln(&format!("pull {}/team/other --dry-run", registry.host())).expect(6);
}

/// The digest of the first layer of a model in the registry.
fn first_layer(registry: &Fixture, repository: &str, tag: &str) -> String {
    let manifest: Value = serde_json::from_slice(&registry.manifest(repository, tag).unwrap()).unwrap();
    manifest["layers"][0]["digest"].as_str().unwrap().to_owned()
}
