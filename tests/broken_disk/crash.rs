//! After every operation of every command the power may fail. What was said to be done is there then, and nothing
//! else is broken; and each fsync and each order of two steps is needed for that.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln::Result;
use kiln::store::Store;
use tempfile::TempDir;

use super::commands::{CREATED, PULLED, Scene, TAGGED};
use super::model::{Disk, Random, lay_out};
use super::record::{Promise, Recorder, Step};
use super::sound::Promised;

/// The store, below directories that are made with it.
const ROOT: &str = "home/models/store";

/// A store whose operations are written down.
struct Recorded<'a> {
    scene: &'a Scene,
    place: TempDir,
    recorder: Arc<Recorder>,
}

impl<'a> Recorded<'a> {
    fn new(scene: &'a Scene) -> Self {
        let place = super::place();
        let recorder = Recorder::new(place.path());
        Self { scene, place, recorder }
    }

    fn root(&self) -> PathBuf {
        self.place.path().join(ROOT)
    }

    /// Writes down that `promises` are made, and kept when `work` is done. Says whether it was.
    fn promise(&self, promises: &[Promise], work: impl FnOnce() -> Result<()>) -> bool {
        promises.iter().for_each(|promise| self.recorder.push(Step::Begun(promise.clone())));
        let outcome = work();
        assert!(outcome.is_ok() || self.recorder.is_dead(), "{}", outcome.unwrap_err().chain());
        if outcome.is_ok() {
            promises.iter().for_each(|promise| self.recorder.push(Step::Kept(promise.clone())));
        }
        outcome.is_ok()
    }

    fn run(&self, command: Command) -> bool {
        let Scene { created, pulled, layers, sent, .. } = self.scene;
        let open = || Store::open_on(self.recorder.disk(), &self.root());
        let names = |name: &str, target| vec![Promise::Name(name.to_owned(), target)];
        match command {
            Command::Open => self.promise(&[], || open().map(drop)),
            Command::Create => {
                let promises = [names(CREATED, Some(*created)), vec![Promise::Note(*created)]].concat();
                self.promise(&promises, || self.scene.create(&open()?))
            }
            Command::Pull => self.promise(&names(PULLED, Some(pulled.digest)), || self.scene.pull(&open()?, PULLED)),
            Command::PushState => self.promise(&[], || {
                self.scene.push_state(&open()?);
                Ok(())
            }),
            Command::Tag => self.promise(&names(TAGGED, Some(*created)), || Scene::tag(&open()?)),
            Command::Remove(name) => self.promise(&names(name, None), || Scene::remove(&open()?, name)),
            Command::Serve => self.promise(&[Promise::Content(*sent)], || self.scene.serve(&open()?)),
            Command::Forget => self.promise(&[Promise::Unneeded], || self.scene.forget(&open()?, &layers[0].digest)),
            Command::Collect => self.promise(&[Promise::Unneeded], || Scene::gc(self.recorder.disk(), &self.root())),
            Command::Quarantine => {
                let layer = layers[0].digest;
                // The disk rots: nobody wrote this, and it is durable.
                let path = open().unwrap().blob_path(&layer);
                let at = path.strip_prefix(self.place.path()).unwrap().to_owned();
                self.recorder.push(Step::Begun(Promise::Rotten(layer)));
                self.recorder.push(Step::Write(at.clone(), 5, b"rot".to_vec()));
                self.recorder.push(Step::Sync(at));
                let mut bytes = fs::read(&path).unwrap();
                bytes[5..8].copy_from_slice(b"rot");
                fs::remove_file(&path).unwrap();
                fs::write(&path, bytes).unwrap();
                self.promise(&[Promise::Aside(layer)], || open()?.quarantine(&layer).map(drop))
            }
            Command::Repair => self.promise(&[Promise::Mended(layers[0].digest)], || self.scene.repair(&open()?)),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Command {
    Open,
    Create,
    Pull,
    PushState,
    Tag,
    Remove(&'static str),
    Serve,
    Forget,
    Collect,
    Quarantine,
    Repair,
}

/// One of each, and what one makes possible for the next.
const ALL: [Command; 14] = [
    Command::Open,
    Command::Create,
    Command::PushState,
    Command::Tag,
    Command::Serve,
    Command::Pull,
    Command::Quarantine,
    Command::Repair,
    Command::Remove(CREATED),
    Command::Collect,
    Command::Remove(PULLED),
    Command::Forget,
    Command::Collect,
    Command::Create,
];

fn recorded(scene: &Scene, commands: &[Command]) -> Vec<Step> {
    let recorded = Recorded::new(scene);
    for command in commands {
        assert!(recorded.run(*command), "{command:?}");
    }
    recorded.recorder.log()
}

/// Makes the states after a crash, and looks at each of them once.
struct Replay {
    place: TempDir,
    /// Those that were looked at, with what was promised.
    seen: HashSet<u64>,
    violation: Option<String>,
}

impl Replay {
    fn new() -> Self {
        Self { place: super::place(), seen: HashSet::new(), violation: None }
    }

    /// Goes through `log` until something is wrong. Crashes come behind its first `from` steps.
    fn go(&mut self, log: &[Step], from: usize) {
        let (mut disk, mut promised) = (Disk::new(), Promised::default());
        for (index, step) in log.iter().enumerate() {
            disk.apply(step);
            promised.hear(step);
            // Nothing that can be lost comes with a promise that is made.
            if index >= from && !matches!(step, Step::Begun(_)) {
                self.crash(&disk, &promised, || format!("after step {index}, {step:?}"));
            }
            if self.violation.is_some() {
                return;
            }
        }
    }

    fn crash(&mut self, disk: &Disk, promised: &Promised, when: impl Fn() -> String) {
        for remains in disk.crashes(&mut Random(5)) {
            let mut hasher = DefaultHasher::new();
            (&remains, promised).hash(&mut hasher);
            let state = hasher.finish();
            if !self.seen.insert(state) {
                continue;
            }
            let place = tempfile::tempdir_in(self.place.path()).unwrap();
            lay_out(&remains, place.path());
            if let Err(violation) = promised.check(&place.path().join(ROOT)) {
                let there: Vec<_> = remains.iter().map(|(path, it)| (path, it.as_ref().map(Vec::len))).collect();
                self.seen.remove(&state);
                self.violation = Some(format!("{violation}\n{}\n{there:#?}", when()));
                return;
            }
        }
    }

    fn expect_none(self, fewest: usize) {
        assert_eq!(self.violation, None);
        assert!(self.seen.len() >= fewest, "only {} states", self.seen.len());
    }
}

#[test]
fn no_crash_of_any_command_breaks_a_promise() {
    let scene = Scene::new();
    let mut replay = Replay::new();
    replay.go(&recorded(&scene, &ALL), 0);
    replay.expect_none(3000);
}

/// What one process leaves that is killed is as good as done for the next, until the power fails.
#[test]
fn what_a_killed_process_left_is_not_taken_for_durable() {
    let scene = Scene::new();
    let mut replay = Replay::new();
    // With `KILN_CRASH_STATES=all` after each operation, which are 40,000 states; else after some.
    let stride = if env::var_os("KILN_CRASH_STATES").is_some_and(|states| states == "all") { 1 } else { 7 };
    for (before, killed, then) in DIED {
        for life in (0..).step_by(stride) {
            let (log, from) = survived(&scene, before, *killed, life, then);
            replay.go(&log, from);
            if replay.violation.is_some() || from == 0 {
                break;
            }
        }
    }
    replay.expect_none(3000);
}

/// What is done, then what is killed at some moment, then what is done after it.
const DIED: &[(&[Command], Command, &[Command])] = &[
    (&[], Command::Open, &[Command::Open, Command::Create]),
    (&[Command::Open], Command::Create, &[Command::Create]),
    (&[Command::Open], Command::Pull, &[Command::Pull]),
    (&[Command::Open], Command::Serve, &[Command::Serve]),
    (&[Command::Open, Command::Create], Command::Tag, &[Command::Tag]),
    (&[Command::Open, Command::Pull], Command::Remove(PULLED), &[Command::Collect]),
    (&[Command::Open, Command::Pull], Command::Remove(PULLED), &[Command::Forget]),
    (&[Command::Open, Command::Pull, Command::Remove(PULLED)], Command::Collect, &[Command::Collect, Command::Pull]),
];

/// The log of all that, with the number of steps before what was done in the end; zero when nothing was left to kill.
fn survived(scene: &Scene, before: &[Command], killed: Command, life: usize, then: &[Command]) -> (Vec<Step>, usize) {
    let recorded = Recorded::new(scene);
    for command in before {
        assert!(recorded.run(*command), "{command:?}");
    }
    recorded.recorder.live(Some(life));
    let is_done = recorded.run(killed);
    recorded.recorder.live(None);
    let from = recorded.recorder.log().len();
    for command in then {
        assert!(recorded.run(*command), "{command:?} after {life} operations of {killed:?}");
    }
    (recorded.recorder.log(), if is_done { 0 } else { from })
}

// --- without one step -------------------------------------------------------------------------

/// Whether `path` is this one in the store, or with a slash in front this one where the store is made.
fn is(path: &Path, there: &str) -> bool {
    match there.strip_prefix('/') {
        Some(above) => path == Path::new(above),
        None => path == Path::new(ROOT).join(there),
    }
}

fn is_in(path: &Path, there: &str) -> bool {
    path.parent().is_some_and(|parent| is(parent, there))
}

fn is_blob(path: &Path) -> bool {
    is_in(path, "blobs/sha256") || is_in(path, "blobs/sha512")
}

/// Without the fsyncs of files that then go from a name to another one, both of which are `such`.
fn without_syncs_of_files(log: &[Step], such: impl Fn(&Path, &Path) -> bool) -> Vec<Step> {
    let is_such = |index: usize, path: &Path| {
        let next = log[index..].iter().find_map(|step| match step {
            Step::Rename(from, to) if from == path => Some(such(from, to)),
            Step::Create(other) | Step::Remove(other) if other == path => Some(false),
            _ => None,
        });
        next == Some(true)
    };
    let stays = |(index, step): &(usize, &Step)| !matches!(step, Step::Sync(path) if is_such(*index, path));
    log.iter().enumerate().filter(stays).map(|(_, step)| step.clone()).collect()
}

/// Without those fsyncs of the directory `there` before which the last other step is `such`.
fn without_syncs_after(log: &[Step], there: &str, such: impl Fn(&Step) -> bool) -> Vec<Step> {
    let (mut kept, mut is_such) = (Vec::new(), false);
    for step in log {
        match step {
            Step::SyncDirectory(path) if is(path, there) && is_such => continue,
            Step::SyncDirectory(_) | Step::Begun(_) | Step::Kept(_) => {}
            other => is_such = such(other),
        }
        kept.push(step.clone());
    }
    kept
}

/// With the last step that is `early` before the first that is `late` behind that one.
fn reordered(log: &[Step], early: impl Fn(&Step) -> bool, late: impl Fn(&Step) -> bool) -> Vec<Step> {
    let mut log = log.to_vec();
    let last = log.iter().position(late).unwrap();
    let first = log[..last].iter().rposition(early).unwrap();
    log[first..=last].rotate_left(1);
    log
}

/// A step that is left out or moved.
type Change<'a> = Box<dyn Fn(&[Step]) -> Vec<Step> + 'a>;

#[test]
fn without_any_one_step_a_crash_breaks_a_promise() {
    let scene = Scene::new();
    let log = recorded(&scene, &ALL);
    let manifests = [scene.created, scene.pulled.digest].map(|digest| digest.hex());
    let is_manifest = |path: &Path| is_blob(path) && manifests.iter().any(|manifest| path.ends_with(manifest));
    let renamed = |such: &dyn Fn(&Path) -> bool, step: &Step| matches!(step, Step::Rename(_, to) if such(to));
    let to = |there: &'static str| move |step: &Step| matches!(step, Step::Rename(_, to) if is(to, there));
    let made = |there: &'static str| move |step: &Step| matches!(step, Step::MakeDirectory(path) if is(path, there));
    let arrives = |from: &Path| from.extension().is_some_and(|extension| extension == "partial");
    let file = |such: &'static (dyn Fn(&Path) -> bool + Sync)| -> Change<'static> {
        Box::new(move |log| without_syncs_of_files(log, |_, to| such(to)))
    };
    let changes: Vec<(&str, Change<'_>)> = vec![
        (
            "fsync of a blob that is made",
            Box::new(|log| without_syncs_of_files(log, |from, to| is_blob(to) && !is_manifest(to) && !arrives(from))),
        ),
        (
            "fsync of a blob that arrives",
            Box::new(|log| without_syncs_of_files(log, |from, to| is_blob(to) && arrives(from))),
        ),
        ("fsync of a manifest", Box::new(|log| without_syncs_of_files(log, |_, to| is_manifest(to)))),
        ("fsync of the index", file(&|to| is(to, "index.json"))),
        ("fsync of the format", file(&|to| is(to, "kiln.json"))),
        ("fsync of the layout", file(&|to| is(to, "oci-layout"))),
        ("fsync of a note", file(&|to| is_in(to, "notes"))),
        ("fsync of what a registry has", file(&|to| is_in(to, "registries"))),
        (
            "fsync of the blobs' names",
            Box::new(|log| {
                let is_blobs = |to: &Path| is_blob(to) && !is_manifest(to);
                without_syncs_after(log, "blobs/sha256", |step| renamed(&is_blobs, step))
            }),
        ),
        (
            "fsync of the other blobs' names",
            Box::new(|log| without_syncs_after(log, "blobs/sha512", |step| renamed(&is_blob, step))),
        ),
        (
            "fsync of the manifest's name before its reference",
            Box::new(|log| without_syncs_after(log, "blobs/sha256", |step| renamed(&is_manifest, step))),
        ),
        ("fsync of the names' names", Box::new(|log| without_syncs_after(log, "", to("index.json")))),
        (
            "fsync of the notes' names",
            Box::new(|log| without_syncs_after(log, "notes", |step| renamed(&|to| is_in(to, "notes"), step))),
        ),
        ("fsync of the name of the store", Box::new(|log| without_syncs_after(log, "/home/models", |_| true))),
        ("fsync of the name of the directory above", Box::new(|log| without_syncs_after(log, "/home", |_| true))),
        ("fsync of the name of the first directory", Box::new(|log| without_syncs_after(log, "/", |_| true))),
        ("fsync of the name of the locks", Box::new(|log| without_syncs_after(log, "", made("locks")))),
        ("fsync of the names in a new store", Box::new(|log| without_syncs_after(log, "blobs", made("notes")))),
        (
            "fsync of the name of a directory of other blobs",
            Box::new(|log| without_syncs_after(log, "blobs", made("blobs/sha512"))),
        ),
        ("fsync of the quarantine", Box::new(|log| without_syncs_after(log, "quarantine", |_| true))),
        (
            "fsync of what is no more, but in quarantine",
            Box::new(|log| {
                without_syncs_after(log, "blobs/sha256", |step| renamed(&|to| is_in(to, "quarantine"), step))
            }),
        ),
        (
            "a blob before its manifest",
            Box::new(|log| {
                reordered(
                    log,
                    |step| renamed(&|to| is_blob(to) && !is_manifest(to), step),
                    |step| renamed(&is_manifest, step),
                )
            }),
        ),
        (
            "a manifest before its name",
            Box::new(|log| {
                let made = log.iter().position(|step| renamed(&is_manifest, step)).unwrap();
                let named = reordered(&log[made..], |step| renamed(&is_manifest, step), to("index.json"));
                [&log[..made], &named].concat()
            }),
        ),
        (
            "a name goes before its content",
            Box::new(|log| {
                reordered(log, to("index.json"), |step| matches!(step, Step::Remove(path) if is_blob(path)))
            }),
        ),
        ("the index before the format", Box::new(|log| reordered(log, to("index.json"), to("kiln.json")))),
    ];
    let mut replay = Replay::new();
    replay.go(&log, 0);
    assert_eq!(replay.violation, None);
    for (step, change) in changes {
        let changed = change(&log);
        assert_ne!(changed, log, "{step}");
        replay.go(&changed, 0);
        assert!(replay.violation.take().is_some(), "nothing needs: {step}");
    }
}

/// What a killed process had not waited for, the next one waits for.
#[test]
fn without_another_fsync_after_a_kill_a_crash_breaks_a_promise() {
    let scene = Scene::new();
    let mut replay = Replay::new();
    let renewals: [(&str, usize, &str); 7] = [
        ("the name of the store", 0, "/home/models"),
        ("the name of the directory above", 0, "/home"),
        ("the name of the first directory", 0, "/"),
        ("the blobs before their name", 2, "blobs/sha256"),
        ("a directory of other blobs", 3, "blobs"),
        ("the names before a collection", 5, ""),
        ("the names before content goes", 6, ""),
    ];
    for (what, scenario, there) in renewals {
        let (before, killed, then) = &DIED[scenario];
        let found = (0..).find_map(|life| {
            let (log, from) = survived(&scene, before, *killed, life, then);
            let changed = [&log[..from], &without_syncs_after(&log[from..], there, |_| true)].concat();
            replay.go(&changed, from);
            match replay.violation.take() {
                Some(_) => Some(true),
                None if from == 0 => Some(false),
                None => None,
            }
        });
        assert_eq!(found, Some(true), "nothing needs another fsync of {what}");
    }
}
