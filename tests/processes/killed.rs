//! Each command that writes is killed at any moment, over and over, on a store that keeps what the killed ones left.
//! Whatever one of them said is so: names point where it said, everything they need is there and right, and the
//! registry has what was pushed. What was not said may be so or not, and nothing in between.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use kiln::oci::{Digest, Manifest, MediaType};
use kiln::store::Store;

use crate::place::Run;
use crate::scene::{Chance, Scene, blobs, rounds, violations};

const COMMANDS: [&str; 5] = ["create", "pull", "push", "gc", "repair"];
/// How many kills there are, unless `KILN_KILL_ROUNDS` says otherwise.
const ROUNDS: u64 = 40;
const MODELS: u64 = 4;
/// Another seed is another run.
const SEED: u64 = 1;
/// How many of the runs that came to their end tell how long the next one takes.
const MEASURED: usize = 8;

#[test]
fn what_a_command_said_is_so_whenever_it_was_killed() {
    let begun = Instant::now();
    let mut world = World::new();
    for command in COMMANDS {
        world.round(command, "to its end", false);
    }
    let rounds = rounds("KILN_KILL_ROUNDS", ROUNDS);
    for round in 0..rounds {
        world.round(COMMANDS[(round % 5) as usize], &format!("round {round}, seed {SEED}"), true);
    }
    world.end();
    let killed: u64 = world.figures.values().map(|figures| figures.killed).sum();
    println!("{rounds} rounds in {} s, {killed} killed: {:#?}", begun.elapsed().as_secs(), world.figures);
    assert!(killed * 2 > rounds, "only {killed} of {rounds} were killed before their end");
}

/// What came of one command.
#[derive(Debug, Default)]
struct Figures {
    rounds: u64,
    /// Those that SIGKILL ended,
    killed: u64,
    /// of which some had said what they did.
    said_and_killed: u64,
}

struct World {
    scene: Scene,
    chance: Chance,
    /// What each name may point at.
    names: BTreeMap<String, BTreeSet<Option<Digest>>>,
    /// What each repository's one tag may point at.
    pushed: BTreeMap<String, BTreeSet<Option<Digest>>>,
    /// How long each command took when it was left alone.
    times: BTreeMap<&'static str, Vec<Duration>>,
    figures: BTreeMap<&'static str, Figures>,
}

impl World {
    fn new() -> Self {
        Self {
            scene: Scene::new(MODELS),
            chance: Chance(SEED),
            names: BTreeMap::new(),
            pushed: BTreeMap::new(),
            times: BTreeMap::new(),
            figures: BTreeMap::new(),
        }
    }

    /// Runs `command` on something of chance's choosing, and looks what is left.
    fn round(&mut self, command: &'static str, when: &str, kill: bool) {
        let when = format!("{command}, {when}");
        match command {
            "create" | "pull" => {
                let model = self.chance.below(MODELS);
                let target = self.scene.models[model as usize];
                if self.chance.below(4) > 0 {
                    self.forget(&target);
                }
                let name = format!("{command}:{}", self.chance.below(3));
                let words =
                    if command == "create" { Scene::create(&name, model) } else { self.scene.pull(&name, model) };
                self.allow(&name, Some(target));
                let run = self.run(command, &words, kill);
                if said(&run, if command == "create" { "created" } else { "pulled" }, &when) {
                    self.names.insert(name, BTreeSet::from([Some(target)]));
                }
            }
            "push" => {
                let (name, target) = self.one_that_is_there();
                let repository = format!("pushed/number-{}", self.pushed.len());
                self.pushed.insert(repository.clone(), BTreeSet::from([None, Some(target)]));
                let run =
                    self.run(command, &format!("push {name} {}/{repository}:it", self.scene.registry.host()), kill);
                if said(&run, "pushed", &when) {
                    self.pushed.insert(repository.clone(), BTreeSet::from([Some(target)]));
                }
                self.check_pushed(&repository, &when);
            }
            "gc" => {
                for name in self.names.keys().cloned().collect::<Vec<_>>() {
                    if self.chance.below(2) == 0 {
                        self.remove(&name);
                    }
                }
                let run = self.run(command, "gc", kill);
                if said(&run, "removed", &when) {
                    let kept = self.needed();
                    let there = fs::read_dir(self.scene.root().join("blobs/sha256")).unwrap().count();
                    assert_eq!(there, kept.len(), "{when}: something is left");
                }
            }
            "repair" => self.repair(&when, kill),
            other => panic!("{other}"),
        }
        self.check(&when);
        self.scene.registry.clear_requests();
    }

    /// Has some content rot, and repairs it: the killed attempt first, then one to its end.
    fn repair(&mut self, when: &str, kill: bool) {
        let (name, _) = self.one_that_is_there();
        let store = self.scene.store();
        let mut blobs = blobs(&store, &name);
        let from = if self.chance.below(3) == 0 { " --from library" } else { "" };
        if from.is_empty() {
            // How a model was made, no source tells.
            blobs.retain(|blob| blob.media_type != MediaType::KILN_LOCK);
        }
        for number in 0..=self.chance.below(3) {
            let path = store.blob_path(&self.chance.one(&blobs).digest);
            let mut bytes = fs::read(&path).unwrap_or_default();
            let _ = fs::remove_file(&path);
            let at = self.chance.below(bytes.len().max(1) as u64) as usize;
            match self.chance.below(4) {
                0 if number > 0 => continue,
                1 => bytes.truncate(at),
                _ => bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1),
            }
            fs::write(path, bytes).unwrap();
        }
        drop(store);
        let words = format!("verify {name} --level digests --repair{from}");
        let run = self.run("repair", &words, kill);
        if run.was_killed() && !run.stdout.contains("repaired: ") {
            // What is not damaged any more need not be repaired again.
            let again = self.scene.place.kiln(&words);
            assert!([0, 3].contains(&again.code()), "{when}: {again}");
        } else {
            assert!(!run.stdout.contains("still damaged"), "{when}: {run}");
        }
    }

    /// Runs kiln, and kills it at some moment of the time that it should take and a tenth of that.
    fn run(&mut self, command: &'static str, words: &str, kill: bool) -> Run {
        let times = self.times.entry(command).or_default();
        let begun = Instant::now();
        let running = self.scene.place.start(&mut self.scene.place.command(words));
        let run = if kill {
            let mean = times.iter().sum::<Duration>() / times.len() as u32;
            let micros = mean.as_micros() as u64 * 11 / 10;
            running.kill_after(Duration::from_micros(self.chance.below(micros)))
        } else {
            running.wait()
        };
        if !run.was_killed() {
            assert_eq!(run.code(), if command == "repair" { 3 } else { 0 }, "{words}: {run}");
            times.push(begun.elapsed());
            times.drain(..times.len().saturating_sub(MEASURED));
        }
        if kill {
            let figures = self.figures.entry(command).or_default();
            figures.rounds += 1;
            figures.killed += u64::from(run.was_killed());
            figures.said_and_killed += u64::from(run.was_killed() && !run.stdout.is_empty());
        }
        run
    }

    fn allow(&mut self, name: &str, target: Option<Digest>) {
        self.names.entry(name.to_owned()).or_insert_with(|| BTreeSet::from([None])).insert(target);
    }

    fn remove(&mut self, name: &str) {
        self.scene.store().remove_ref(&name.parse().unwrap()).unwrap();
        self.names.insert(name.to_owned(), BTreeSet::from([None]));
    }

    /// Sees to it that a model has to come again.
    fn forget(&mut self, target: &Digest) {
        let names = self.names.iter().filter(|(_, targets)| targets.contains(&Some(*target)));
        for name in names.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.remove(&name);
        }
        Store::gc(&self.scene.root(), false).unwrap();
    }

    /// A name in the store, and where it points.
    fn one_that_is_there(&mut self) -> (String, Digest) {
        let mut there = self.there();
        if there.is_empty() {
            self.round("create", "for another command", false);
            there = self.there();
        }
        self.chance.one(&there).clone()
    }

    fn there(&self) -> Vec<(String, Digest)> {
        let refs = self.scene.store().refs().unwrap();
        refs.into_iter().map(|(name, target)| (name, target.digest)).collect()
    }

    /// The content that a name needs.
    fn needed(&self) -> BTreeSet<Digest> {
        let store = self.scene.store();
        let content = self
            .there()
            .into_iter()
            .flat_map(|(name, target)| blobs(&store, &name).into_iter().map(|blob| blob.digest).chain([target]));
        content.collect()
    }

    /// Looks at the store. From here on what there is has to stay.
    fn check(&mut self, when: &str) {
        assert_eq!(violations(&self.scene.root()), Vec::<String>::new(), "{when}");
        let there: BTreeMap<_, _> = self.there().into_iter().collect();
        for name in there.keys() {
            assert!(self.names.contains_key(name), "{when}: nobody gave the name {name}");
        }
        for (name, allowed) in &mut self.names {
            let target = there.get(name).copied();
            assert!(allowed.contains(&target), "{when}: {name} points at {target:?}, not at one of {allowed:?}");
            *allowed = BTreeSet::from([target]);
        }
    }

    /// Looks at what was pushed: all of it or nothing.
    fn check_pushed(&mut self, repository: &str, when: &str) {
        let registry = &self.scene.registry;
        let manifest = registry.manifest(repository, "it");
        let target = manifest.as_ref().map(|bytes| Digest::of(bytes));
        let allowed = self.pushed.get_mut(repository).unwrap();
        assert!(allowed.contains(&target), "{when}: {repository} has {target:?}, not one of {allowed:?}");
        *allowed = BTreeSet::from([target]);
        for blob in
            manifest.iter().flat_map(|bytes| Manifest::parse(bytes).unwrap().blobs().cloned().collect::<Vec<_>>())
        {
            let bytes = registry.blob(repository, &blob.digest.to_string());
            assert!(
                bytes.is_some_and(|bytes| Digest::of(&bytes) == blob.digest),
                "{when}: {repository} lacks {blob:?}"
            );
        }
    }

    /// In the end the registry has all that was ever pushed, each model verifies, and nothing is left over.
    fn end(&mut self) {
        for repository in self.pushed.keys().cloned().collect::<Vec<_>>() {
            self.check_pushed(&repository, "in the end");
        }
        for (name, _) in self.there() {
            self.scene.place.kiln(&format!("verify {name} --level tensors")).expect(0);
        }
        self.scene.place.kiln("gc --quarantine").expect(0);
        assert_eq!(fs::read_dir(self.scene.root().join("quarantine")).unwrap().count(), 0);
        let left: Vec<_> =
            fs::read_dir(self.scene.root().join("ingest")).unwrap().map(|entry| entry.unwrap()).collect();
        assert!(left.is_empty(), "{left:?}");
        self.check("in the end");
    }
}

/// Whether it said that it was done, killed afterwards or not.
fn said(run: &Run, word: &str, when: &str) -> bool {
    let said = run.stdout.lines().any(|line| line.starts_with(word));
    assert!(said || run.was_killed(), "{when}: {run}");
    said
}
