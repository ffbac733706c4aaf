//! A process that is killed leaves a store in which every name is complete. The test runs its own
//! program again as the victim, kills it at a time of no one's choosing, and looks at what is left.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kiln::json;
use kiln::oci::{Manifest, MediaType};
use kiln::store::Store;
use kiln::{Progress, Result};

const VICTIM: &str = "KILN_TEST_VICTIM_STORE";
/// How many kills there are, unless `KILN_KILL_ROUNDS` says otherwise.
const ROUNDS: u64 = 25;
/// How many of the rounds do not wait until the victim has named something.
const CREATIONS: u64 = 5;

#[test]
fn every_name_is_complete_after_a_kill() {
    if let Some(root) = env::var_os(VICTIM) {
        return import_until_killed(Path::new(&root)).unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let index = || fs::read(root.join("index.json")).unwrap_or_default();
    let mut names = 0;
    let rounds = env::var("KILN_KILL_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        let mut victim = Command::new(env::current_exe().unwrap())
            .args(["--exact", "every_name_is_complete_after_a_kill"])
            .env(VICTIM, &root)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The first kills hit the creation of the store, the others every step of an import.
        if round >= CREATIONS {
            let before = index();
            let deadline = Instant::now() + Duration::from_secs(30);
            while index() == before && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
        }
        thread::sleep(Duration::from_micros(300 + round % 50 * 977));
        assert!(victim.try_wait().unwrap().is_none(), "the victim ended on its own in round {round}");
        victim.kill().unwrap();
        victim.wait().unwrap();

        let store = Store::open(&root).unwrap();
        let refs = store.refs().unwrap();
        for (name, target) in &refs {
            let (manifest, _) = store.manifest(target).unwrap();
            for blob in manifest.blobs() {
                assert_eq!(store.check(blob, &Progress::silent()).unwrap(), Ok(()), "{name} in round {round}");
            }
        }
        names = names.max(refs.len());
        drop(store);
        Store::gc(&root, false).unwrap();
        assert_eq!(fs::read_dir(root.join("ingest")).unwrap().count(), 0, "round {round}");
    }
    assert!(names > 0, "the victim never came to name anything");
}

/// Imports one model after another, under names that it also takes away again. The end is far off, and
/// only there for a victim that outlives the test.
fn import_until_killed(root: &Path) -> Result<()> {
    let store = Store::open(root)?;
    for round in 0..2_000_u32 {
        let import = store.begin_import()?;
        let layer = [round.to_le_bytes().as_slice(), &vec![0; 200_000]].concat();
        let manifest = Manifest {
            schema_version: 2,
            media_type: MediaType::OCI_MANIFEST,
            artifact_type: None,
            config: import.stage_bytes(MediaType::KILN_FILE, b"{}")?,
            layers: vec![import.stage_bytes(MediaType::OLLAMA_TENSOR, &layer)?],
            subject: None,
            annotations: BTreeMap::new(),
        };
        let target = import.stage_bytes(MediaType::OCI_MANIFEST, &json::to_canonical(&manifest))?;
        import.commit(&format!("model:{}", round % 7).parse()?, &target)?;
        store.remove_ref(&format!("model:{}", (round + 3) % 7).parse()?)?;
    }
    Ok(())
}
