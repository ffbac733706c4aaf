//! Commands beside each other on one store: nothing that one of them needs goes, nothing is there twice, and a dead one
//! holds up nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use kiln::oci::Digest;

use crate::place::{Run, Running};
use crate::scene::{Chance, Scene, rounds, violations};

/// How many rounds there are of each, unless `KILN_BESIDE_ROUNDS` says otherwise.
const ROUNDS: u64 = 5;
/// How long one of two commands may begin behind the other; they take some tenths of a second.
const SHIFT: u64 = 150_000;

/// A store with whose models something is done at the same time.
struct Beside {
    scene: Scene,
    chance: Chance,
    rounds: u64,
}

impl Beside {
    fn new() -> Self {
        Self { scene: Scene::new(2), chance: Chance(2), rounds: rounds("KILN_BESIDE_ROUNDS", ROUNDS) }
    }

    fn start(&self, words: &str) -> Running {
        self.scene.place.start(&mut self.scene.place.command(words))
    }

    fn run(&self, words: &str) -> Run {
        self.scene.place.kiln(words)
    }

    /// Runs both, one of them a moment behind the other.
    fn both(&mut self, one: &str, other: &str) -> [Run; 2] {
        let (moment, is_first) = (Duration::from_micros(self.chance.below(SHIFT)), self.chance.below(2) == 0);
        let (first, second) = if is_first { (one, other) } else { (other, one) };
        let first = self.start(first);
        sleep(moment);
        let second = self.start(second).wait();
        let first = first.wait();
        if is_first { [first, second] } else { [second, first] }
    }

    fn both_end_well(&mut self, one: &str, other: &str) {
        for run in self.both(one, other) {
            run.expect(0);
        }
    }

    /// No name, and no content but what nobody needs.
    fn forget(&self) {
        let store = self.scene.store();
        for name in store.refs().unwrap().keys() {
            store.remove_ref(&name.parse().unwrap()).unwrap();
        }
    }

    fn names(&self) -> BTreeMap<String, Digest> {
        self.scene.store().refs().unwrap().into_iter().map(|(name, target)| (name, target.digest)).collect()
    }

    fn blobs(&self) -> usize {
        fs::read_dir(self.scene.root().join("blobs/sha256")).unwrap().count()
    }

    fn expect_names(&self, names: &[(&str, usize)], context: &str) {
        let expected: BTreeMap<_, _> =
            names.iter().map(|(name, model)| ((*name).to_owned(), self.scene.models[*model])).collect();
        assert_eq!(self.names(), expected, "{context}");
        assert_eq!(violations(&self.scene.root()), Vec::<String>::new(), "{context}");
    }
}

#[test]
fn a_collection_beside_a_creation_takes_nothing_of_it() {
    let mut beside = Beside::new();
    for round in 0..beside.rounds {
        // Half of the content is there, and unneeded until the creation has come to its end.
        beside.run(&Scene::create("old:1", 1)).expect(0);
        beside.forget();
        beside.both_end_well(&Scene::create("new:0", 0), "gc");
        beside.expect_names(&[("new:0", 0)], &format!("round {round}"));
    }
}

#[test]
fn a_collection_beside_a_pull_takes_nothing_of_it() {
    let mut beside = Beside::new();
    for round in 0..beside.rounds {
        beside.run(&Scene::create("old:1", 1)).expect(0);
        beside.forget();
        let pull = beside.scene.pull("new:0", 0);
        beside.both_end_well(&pull, "gc");
        beside.expect_names(&[("new:0", 0)], &format!("round {round}"));
    }
}

#[test]
fn a_collection_beside_an_export_takes_nothing_from_under_it() {
    let mut beside = Beside::new();
    for round in 0..beside.rounds {
        let context = format!("round {round}");
        beside.run(&Scene::create("demo:0", 0)).expect(0);
        let (way, to) = match round % 2 {
            0 => (format!("export demo:0 --to ollama --dir ollama-{round}"), "exported"),
            _ => (format!("checkout demo:0 out-{round}"), "checked out"),
        };
        let export = beside.start(&way);
        sleep(Duration::from_micros(beside.chance.below(SHIFT)));
        // Its name goes meanwhile: what it reads is needed by nobody else.
        beside.run("rm demo:0").expect(0);
        beside.run("gc").expect(0);
        let export = export.wait();
        match export.code() {
            0 => assert!(export.stdout.starts_with(to), "{context}: {export}"),
            _ => assert!(export.expect(6).stderr.contains("No model is named"), "{context}: {export}"),
        }
        assert_eq!(beside.blobs(), 0, "{context}");
        if export.code() == 0 && to == "checked out" {
            // All of it is there: it makes the same layers.
            let place = &beside.scene.place;
            let files = fs::read_dir(place.path(&format!("out-{round}"))).unwrap().count();
            assert_eq!(files, 10, "{context}");
        }
    }
}

#[test]
fn a_store_that_is_served_is_not_collected() {
    let mut beside = Beside::new();
    beside.run(&Scene::create("demo:0", 0)).expect(0);
    let mut server = beside.start("serve --addr 127.0.0.1:0");
    let address = server.line("listening on ");
    for round in 0..beside.rounds {
        let context = format!("round {round}");
        let client = match round % 2 {
            0 => format!("pull {address}/demo:0 pulled:{round} --store client"),
            _ => format!("push m:1 {address}/pushed:1 --store library"),
        };
        let [client, gc] = beside.both(&client, "gc --wait 0");
        client.expect(0);
        assert!(gc.expect(9).stderr.contains("kiln serve"), "{context}: {gc}");
        beside.run("gc --dry-run --wait 0").expect(0);
    }
    server.signal("TERM");
    server.wait().expect(0);
    beside.run("gc --wait 0").expect(0);
    let pushed: &[_] = if beside.rounds > 1 { &[("demo:0", 0), ("pushed:1", 1)] } else { &[("demo:0", 0)] };
    beside.expect_names(pushed, "in the end");
}

#[test]
fn of_two_collections_each_blob_is_removed_by_one() {
    let mut beside = Beside::new();
    for round in 0..beside.rounds {
        let context = format!("round {round}");
        beside.run(&Scene::create("kept:0", 0)).expect(0);
        let needed = beside.blobs();
        beside.run(&Scene::create("gone:1", 1)).expect(0);
        let unneeded = beside.blobs() - needed;
        beside.run("rm gone:1").expect(0);
        let removed = beside.both("gc --json", "gc --json").map(|run| {
            let collected = run.expect(0).last_object();
            assert_eq!(collected["kept"], needed, "{context}: {collected}");
            collected["blobs"].as_u64().unwrap() as usize
        });
        assert_eq!(removed.iter().sum::<usize>(), unneeded, "{context}: {removed:?}");
        beside.expect_names(&[("kept:0", 0)], &context);
    }
}

#[test]
fn of_two_pulls_of_a_model_each_blob_is_fetched_by_one() {
    let mut beside = Beside::new();
    for round in 0..beside.rounds {
        let context = format!("round {round}");
        beside.forget();
        beside.run("gc").expect(0);
        beside.scene.registry.clear_requests();
        let (one, other) = (beside.scene.pull("one:0", 0), beside.scene.pull("other:0", 0));
        beside.both_end_well(&one, &other);
        beside.expect_names(&[("one:0", 0), ("other:0", 0)], &context);
        let requests = beside.scene.registry.requests();
        let fetched: Vec<_> = requests.iter().filter(|it| it.method == "GET" && it.path.contains("/blobs/")).collect();
        let different: BTreeSet<_> = fetched.iter().map(|it| &it.path).collect();
        assert!(!fetched.is_empty() && fetched.len() == different.len(), "{context}: {fetched:?}");
    }
}

#[test]
fn a_killed_process_holds_up_nobody() {
    let mut beside = Beside::new();
    for round in 0..beside.rounds {
        let context = format!("round {round}");
        let words = match round % 4 {
            0 => "gc".to_owned(),
            1 => Scene::create("killed:0", 0),
            2 => beside.scene.pull("killed:0", 0),
            _ => "serve --addr 127.0.0.1:0".to_owned(),
        };
        beside.start(&words).kill_after(Duration::from_micros(beside.chance.below(SHIFT)));
        // Alone, at once.
        beside.run("gc --wait 0").expect(0);
        beside.run(&Scene::create("next:1", 1)).expect(0);
        beside.run("rm next:1").expect(0);
        assert_eq!(violations(&beside.scene.root()), Vec::<String>::new(), "{context}");
        beside.forget();
    }
}
