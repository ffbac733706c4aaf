//! A bad line between kiln and a real registry: what breaks is taken up, and what is wrong is found.

use registry_fixtures::{Line, Mishap, Proxy, Spot};

use crate::gigabytes::checkpoint;
use crate::place::Place;
use crate::registry::{Registry, stored_manifest};

const BLOBS: u64 = 4;
const BLOB: u64 = 24 << 20;
const SIZE: u64 = BLOBS * BLOB;
const MIB: u64 = 1 << 20;
/// The heads of all requests and replies together, and the blobs that are small.
const SMALL: u64 = MIB;

struct Scene {
    place: Place,
    registry: Registry,
    line: Proxy,
}

impl Scene {
    fn new() -> Self {
        let place = Place::new();
        checkpoint(&place.path("checkpoint"), (0..BLOBS).map(|_| BLOB));
        place.kiln("create big:v1 checkpoint").expect(0);
        let registry = Registry::plain();
        let line = Proxy::to(registry.host());
        Self { place, registry, line }
    }

    fn remote(&self) -> String {
        format!("{}/team/big:v1 --plain-http", self.line.host())
    }

    fn is_published(&self) -> bool {
        let published = self.registry.manifest("team/big", "v1");
        published.is_some_and(|published| published == stored_manifest(&self.place, "big:v1", "store").1)
    }

    /// Pulls and compares.
    fn verify(&self, store: &str) {
        self.place.kiln(&format!("pull {} big:v1 --store {store}", self.remote())).expect(0);
        self.place.kiln(&format!("verify big:v1 --store {store} --source checkpoint")).expect(0);
    }
}

#[test]
fn a_push_over_a_line_that_breaks_finishes() {
    let scene = Scene::new();
    let breaks = [
        (10 * MIB, Mishap::Reset),
        (30 * MIB, Mishap::Cut),
        (31 * MIB, Mishap::Reset),
        (70 * MIB, Mishap::Cut),
        (100 * MIB, Mishap::Reset),
    ];
    for (at, mishap) in breaks {
        scene.line.inject(Spot::up(at), mishap);
    }
    scene.place.kiln(&format!("push big:v1 {}", scene.remote())).expect(0);
    assert_eq!(scene.line.to_come(), 0, "not all of it happened");
    assert!(scene.is_published());
    // This registry forgets a session with the connection: a break costs a blob.
    let twice = scene.line.sent() - SIZE;
    assert!(twice <= breaks.len() as u64 * BLOB + SMALL, "{twice}");
    scene.verify("there");
}

#[test]
fn a_pull_over_a_line_that_breaks_takes_up_what_is_there() {
    let scene = Scene::new();
    scene.place.kiln(&format!("push big:v1 {}", scene.remote())).expect(0);
    let before = scene.line.received();
    let breaks = [(MIB, Mishap::Reset), (40 * MIB, Mishap::Cut), (41 * MIB, Mishap::Reset), (90 * MIB, Mishap::Cut)];
    for (at, mishap) in breaks {
        scene.line.inject(Spot::down(before + at), mishap);
    }
    scene.verify("there");
    assert_eq!(scene.line.to_come(), 0, "not all of it happened");
    // What is in the system's hands when a connection is reset may go with it.
    let twice = scene.line.received() - before - SIZE;
    assert!(twice <= breaks.len() as u64 * MIB + SMALL, "{twice}");
}

#[test]
fn a_bit_that_flips_on_its_way_is_never_published_and_never_kept() {
    let scene = Scene::new();
    scene.line.inject(Spot::up(30 * MIB), Mishap::FlipBit);
    let pushed = scene.place.kiln(&format!("push big:v1 {}", scene.remote()));
    // The registry hashes what it takes: whoever sent it may send it again.
    assert_eq!(scene.line.to_come(), 0);
    assert_eq!(scene.is_published(), pushed.code() == 0, "{pushed}");
    scene.place.kiln(&format!("push big:v1 {}", scene.remote())).expect(0);
    assert!(scene.is_published());

    scene.line.inject(Spot::down(scene.line.received() + 30 * MIB), Mishap::FlipBit);
    let pulled = scene.place.kiln(&format!("pull {} big:v1 --store there", scene.remote()));
    assert_eq!(scene.line.to_come(), 0);
    if pulled.code() != 0 {
        pulled.expect(3);
        assert_eq!(scene.place.kiln("list --store there --json").expect(0).stdout, "");
    }
    scene.verify("there");
}

#[test]
fn a_line_of_long_ways_is_used_by_several_at_once() {
    let scene = Scene::new();
    scene.line.set_line(Line { rate: None, latency: std::time::Duration::from_millis(60) });
    scene.place.kiln(&format!("push big:v1 {}", scene.remote())).expect(0);
    scene.verify("there");
    assert!(scene.line.connections() >= 2 * 4, "{}", scene.line.connections());
}
