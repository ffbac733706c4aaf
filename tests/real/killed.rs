//! A transfer that is killed leaves nothing that looks finished, and the next one finishes it.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::place::Place;
use crate::registry::{Registry, stored_manifest};

const PATIENCE: Duration = Duration::from_secs(60);
/// The layers of `demo:int4` and its config.
const BLOBS: usize = 22;

/// Runs kiln and kills it, without any chance to tidy up, once it has moved `blobs` blobs.
fn kill_after(place: &Place, words: &str, blobs: usize) -> ExitStatus {
    let output = place.path("output");
    let file = fs::File::create(&output).unwrap();
    let mut command = place.command(&format!("{words} --json --concurrency 1"));
    let mut child = command.stdout(file).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let moved = fs::read_to_string(&output).unwrap().matches("\"event\":\"blob\"").count();
        if moved >= blobs || Instant::now() > deadline {
            break;
        }
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap()
}

fn killed(status: ExitStatus) -> bool {
    status.signal() == Some(9)
}

#[test]
fn a_killed_push_is_finished_by_the_next_one() {
    let place = Place::with_model();
    let registry = Registry::plain();
    let mut kills = 0;
    for round in [0, 1, 5, 12, 20] {
        let repository = format!("round-{round}/demo");
        let words = format!("push demo:int4 {}/{repository}:int4 --plain-http", registry.host());
        if killed(kill_after(&place, &words, round)) {
            kills += 1;
            assert_eq!(registry.manifest(&repository, "int4"), None, "round {round}: it looks finished");
        }
        let report = place.kiln(&format!("{words} --json")).expect(0).last_object();
        let (sent, skipped) = (report["blobs_sent"].as_u64().unwrap(), report["blobs_skipped"].as_u64().unwrap());
        assert_eq!((sent + skipped) as usize, BLOBS, "{report}");
        assert!(skipped as usize >= round, "round {round}: sent again: {report}");
        assert_eq!(registry.manifest(&repository, "int4").unwrap(), stored_manifest(&place, "demo:int4", "store").1);
        let there = format!("there-{round}");
        place
            .kiln(&format!("pull {}/{repository}:int4 demo:int4 --plain-http --store {there}", registry.host()))
            .expect(0);
        place.kiln(&format!("verify demo:int4 --source checkpoint --store {there}")).expect(0);
        // Or the next round would mount everything.
        std::fs::remove_dir_all(place.path("store/registries")).unwrap();
    }
    assert!(kills >= 3, "only {kills} of 5 were killed in time");
}

#[test]
fn a_killed_pull_is_finished_by_the_next_one() {
    let place = Place::with_model();
    let registry = Registry::plain();
    let remote = format!("{}/team/demo:int4", registry.host());
    place.kiln(&format!("push demo:int4 {remote} --plain-http")).expect(0);
    let mut kills = 0;
    for round in [0, 1, 5, 12, 20] {
        let words = format!("pull {remote} demo:int4 --plain-http --store there-{round}");
        if killed(kill_after(&place, &words, round)) {
            kills += 1;
            let names: Vec<Value> = place.kiln(&format!("list --json --store there-{round}")).expect(0).objects();
            assert!(names.is_empty(), "round {round}: it looks finished: {names:?}");
        }
        let report = place.kiln(&format!("{words} --json")).expect(0).last_object();
        let skipped = report["blobs_skipped"].as_u64().unwrap();
        assert!(skipped as usize >= round, "round {round}: fetched again: {report}");
        place.kiln(&format!("verify demo:int4 --source checkpoint --store there-{round}")).expect(0);
        // What the killed one left behind goes with the next collection.
        place.kiln(&format!("gc --store there-{round}")).expect(0);
        assert_eq!(fs::read_dir(place.path(&format!("there-{round}/ingest"))).unwrap().count(), 0);
    }
    assert!(kills >= 3, "only {kills} of 5 were killed in time");
}
