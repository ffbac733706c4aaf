//! A transfer of gigabytes over a slow line that is killed at twenty points: the next run finishes it, and little was
//! moved twice. `KILN_TEST_SEED` chooses other points.

use std::env;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use registry_fixtures::{Line, Proxy};

use crate::gigabytes::{Chance, checkpoint};
use crate::place::{Place, Run};
use crate::registry::{Registry, stored_manifest};

const KILLS: u64 = 20;
/// No run takes longer until it is killed.
const PATIENCE: Duration = Duration::from_secs(60);
/// The heads of all requests and replies together, and the blobs that are small.
const SMALL: u64 = 4 << 20;
/// The first chunk of an upload, and the first range of a large blob; later ones may be longer.
const CHUNK: u64 = 16 << 20;

/// A place with the model `big:v1`, of so many blobs of so many bytes.
fn place_with(blobs: u64, blob: u64) -> Place {
    let place = Place::new();
    checkpoint(&place.path("checkpoint"), (0..blobs).map(|_| blob));
    place.kiln("create big:v1 checkpoint").expect(0);
    fs::remove_dir_all(place.path("checkpoint")).unwrap();
    place
}

fn slow(host: &str) -> Proxy {
    let line = Proxy::to(host);
    line.set_line(Line { rate: Some(200 << 20), ..Line::default() });
    line
}

/// Runs `words` over `line` again and again and kills it at random points, of which twenty are spread over the `size`
/// bytes of a model as `moved` counts them; then runs it to its end. The points are counted from the first run on: what
/// passes between a point and its kill counts too, so that the model is not through before the last of them.
fn kill_often(place: &Place, words: &str, size: u64, line: &Proxy, moved: impl Fn(&Proxy) -> u64) -> Run {
    let seed = env::var("KILN_TEST_SEED").map_or(4, |seed| seed.parse().unwrap());
    let mut chance = Chance::new(seed);
    let mut points: Vec<u64> = (0..KILLS).map(|_| chance.below(size / 10 * 9)).collect();
    points.sort_unstable();
    let start = moved(line);
    for (number, point) in points.into_iter().enumerate() {
        let (begun, until) = (Instant::now(), (start + point).max(moved(line) + 1));
        let run = place.start(&mut place.command(words));
        while moved(line) < until {
            assert!(begun.elapsed() < PATIENCE, "seed {seed}, kill {number}: it does not get there");
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_millis(chance.below(5)));
        run.signal("KILL");
        assert!(run.wait().was_killed(), "seed {seed}, kill {number}: it ended before");
    }
    let run = place.kiln(words);
    assert_eq!(run.code(), 0, "seed {seed}: {run}");
    run
}

/// `docker-registry` forgets a session whose connection broke within a chunk, so that a kill costs a push the blob
/// under way: one at a time. What it is asked for it sends from any byte, in as many streams as there are by default.
#[test]
fn with_a_registry_that_forgets_a_kill_costs_a_push_one_blob_and_a_pull_one_chunk() {
    let (blobs, blob) = (32, 64 << 20);
    let (place, size) = (place_with(blobs, blob), blobs * blob);
    let registry = Registry::plain();
    let line = slow(registry.host());
    let remote = format!("{}/team/big:v1 --plain-http", line.host());
    kill_often(&place, &format!("push big:v1 {remote} --concurrency 1"), size, &line, Proxy::sent);
    assert_eq!(registry.manifest("team/big", "v1").unwrap(), stored_manifest(&place, "big:v1", "store").1);
    let twice = line.sent() - size;
    assert!(twice <= KILLS * blob + SMALL, "{twice}");

    let digest = place.digest("show big:v1");
    fs::remove_dir_all(place.path("store")).unwrap();
    let before = line.received();
    kill_often(&place, &format!("pull {remote} big:v1"), size, &line, Proxy::received);
    assert_eq!(place.digest("show big:v1"), digest);
    place.kiln("verify big:v1").expect(0);
    let twice_fetched = line.received() - before - size;
    assert!(twice_fetched <= KILLS * CHUNK + SMALL, "{twice_fetched}");
}

#[test]
fn with_a_registry_that_keeps_what_arrived_a_kill_costs_a_push_no_more_than_a_chunk() {
    let (blobs, blob) = (4, 128 << 20);
    let (place, size) = (place_with(blobs, blob), blobs * blob);
    let mut server = place.start(&mut place.command("serve --addr 127.0.0.1:0 --store served"));
    let line = slow(&server.line("listening on "));
    let remote = format!("{}/team/big:v1 --plain-http", line.host());
    kill_often(&place, &format!("push big:v1 {remote}"), size, &line, Proxy::sent);
    let twice = line.sent() - size;
    assert!(twice <= KILLS * CHUNK + SMALL, "{twice}");
    place.kiln("verify team/big:v1 --store served").expect(0);
    server.signal("TERM");
    server.wait().expect(0);
}
