//! Every operation of every command fails once, in every way in which it can: the command fails, no name has moved,
//! nothing is left over, the store is sound, and the same command does it the next time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kiln::oci::Descriptor;
use kiln::store::{Disk, Operation, Store, Watch};
use kiln::{ErrorKind, Progress, Result};
use rustix::io::Errno;

use super::commands::{CREATED, PULLED, Scene, TAGGED};

/// Fails one operation.
#[derive(Debug)]
struct Failing(Mutex<Countdown>);

#[derive(Debug)]
struct Countdown {
    before: usize,
    errno: Errno,
    failed: Option<String>,
    seen: usize,
}

impl Failing {
    /// Lets `before` operations that can fail like this be done, fails the next one, and lets the others be done.
    fn new(before: usize, errno: Errno) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Countdown { before, errno, failed: None, seen: 0 })))
    }
}

/// What `errno` is an answer to.
fn fits(errno: Errno, operation: &Operation<'_>) -> bool {
    match errno {
        Errno::IO => true,
        Errno::XDEV => matches!(operation, Operation::Rename(..)),
        _ => !matches!(operation, Operation::Remove(_) | Operation::SetMode(..)),
    }
}

impl Watch for Failing {
    fn around(&self, operation: &Operation<'_>, perform: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if fits(state.errno, operation) {
            state.seen += 1;
            if state.seen == state.before + 1 {
                state.failed = Some(format!("{operation:?}"));
                return Err(state.errno.into());
            }
        }
        perform()
    }
}

type Command = fn(&Scene, &Disk, &Path) -> Result<()>;

fn open(disk: &Disk, root: &Path) -> Result<Store> {
    Store::open_on(disk.clone(), root)
}

/// Each command with the name that it gives or takes.
const COMMANDS: [(&str, &str, Command); 9] = [
    ("create", CREATED, |scene, disk, root| scene.create(&open(disk, root)?)),
    ("pull", "model:again", |scene, disk, root| scene.pull(&open(disk, root)?, "model:again")),
    ("tag", TAGGED, |_, disk, root| Scene::tag(&open(disk, root)?)),
    ("rm", PULLED, |_, disk, root| Scene::remove(&open(disk, root)?, PULLED)),
    ("gc", "", |_, disk, root| Scene::gc(disk.clone(), root)),
    ("repair", PULLED, |scene, disk, root| scene.repair(&open(disk, root)?)),
    ("quarantine", "", |scene, disk, root| open(disk, root)?.quarantine(&scene.layers[0].digest).map(drop)),
    ("serve", "", |scene, disk, root| scene.serve(&open(disk, root)?)),
    ("push", "", |scene, disk, root| {
        scene.push_state(&open(disk, root)?);
        Ok(())
    }),
];

/// A store for `command` to work on.
fn prepare(scene: &Scene, command: &str, root: &Path) {
    let store = Store::open(root).unwrap();
    if command != "pull" {
        scene.pull(&store, PULLED).unwrap();
    }
    match command {
        "tag" => scene.create(&store).unwrap(),
        "gc" => {
            scene.create(&store).unwrap();
            Scene::remove(&store, CREATED).unwrap();
        }
        "repair" => {
            let path = store.blob_path(&scene.layers[0].digest);
            fs::remove_file(&path).unwrap();
            fs::write(path, "rot").unwrap();
        }
        _ => {}
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target)
        } else {
            assert!(fs::copy(entry.path(), target).is_ok())
        }
    }
}

fn names(root: &Path) -> BTreeMap<String, Descriptor> {
    Store::open(root).unwrap().refs().unwrap()
}

/// The blobs that a name needs and that are damaged.
fn damaged(root: &Path) -> BTreeSet<String> {
    let store = Store::open(root).unwrap();
    let mut damaged = BTreeSet::new();
    for target in store.refs().unwrap().values() {
        let (manifest, _) = store.manifest(target).unwrap();
        let bad = manifest.blobs().filter(|blob| store.check(blob, &Progress::silent()).unwrap().is_err());
        damaged.extend(bad.map(|blob| blob.digest.to_string()));
    }
    damaged
}

fn left(root: &Path) -> Vec<PathBuf> {
    fs::read_dir(root.join("ingest")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn whatever_fails_nothing_is_lost_or_left_over() {
    let scene = Scene::new();
    let mut faults = 0;
    for (command, name, run) in COMMANDS {
        let place = super::place();
        let base = place.path().join("base");
        prepare(&scene, command, &base);
        let (before, was_damaged) = (names(&base), damaged(&base));
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::IO, Errno::XDEV] {
            for nth in 0.. {
                let root = place.path().join(format!("{command}-{}-{nth}", errno.raw_os_error()));
                copy_tree(&base, &root);
                let watch = Failing::new(nth, errno);
                let outcome = run(&scene, &Disk::watched(watch.clone()), &root);
                let Some(failed) = watch.0.lock().unwrap().failed.take() else {
                    assert!(outcome.is_ok(), "{command}: {}", outcome.unwrap_err().chain());
                    break;
                };
                faults += 1;
                let context = format!("{command}, {errno:?} at {failed}");
                let after = names(&root);
                match &outcome {
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Store, "{context}: {}", error.chain());
                        let says = error.hint_text().unwrap_or_default();
                        let full = [Errno::NOSPC, Errno::DQUOT].contains(&errno);
                        assert!(!full || says.contains("kiln gc"), "{context}: {says}");
                    }
                    // For that there is the reserve.
                    Ok(()) if command == "rm" && errno != Errno::IO && errno != Errno::XDEV => {
                        assert!(after != before && !root.join("reserve").exists(), "{context}");
                    }
                    // What is only remembered, or tidied up, costs nothing when it fails.
                    Ok(()) => assert!(
                        ["Remove(", "uploads", "registries", "reserve"].iter().any(|hint| failed.contains(hint))
                            || command == "push",
                        "{context}: nobody heard of it"
                    ),
                }
                // A name moves in one step. Only what comes after that, the wait for it, may fail with it moved.
                let is_moved = failed.starts_with("SyncDirectory") || outcome.is_ok();
                if after != before {
                    assert!(is_moved, "{context}: a name has moved");
                    let mut others = (before.clone(), after.clone());
                    others.0.remove(name);
                    others.1.remove(name);
                    assert_eq!(others.0, others.1, "{context}: another name has moved");
                }
                if !failed.starts_with("Remove(") {
                    assert_eq!(left(&root), Vec::<PathBuf>::new(), "{context}");
                }
                assert!(damaged(&root).is_subset(&was_damaged) || command == "quarantine", "{context}");

                let again = run(&scene, &Disk::default(), &root);
                let is_done = command == "rm" && after != before || command == "quarantine";
                if let Err(error) = again
                    && !(is_done && error.kind() == ErrorKind::NotFound)
                {
                    panic!("{context}, then: {}", error.chain());
                }
                assert!(damaged(&root).is_empty() || command == "quarantine", "{context}");
                fs::remove_dir_all(&root).unwrap();
            }
        }
    }
    assert!(faults > 400, "{faults}");
}
