//! A row of a table, and the trial of it: the program in a place of its own, watched from outside.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::place::Place;
use tempfile::TempDir;

/// No run may take more memory.
const MEMORY: u64 = 64 << 20;
/// No run may take longer, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(30);

/// What has to be as it was afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The store, to the byte.
    None,
    /// Nothing got a name and nothing that was there changed; what came before it broke is kept for the next try, and
    /// what was learned of the registry.
    Unnamed,
    /// The store got the model `evil`, which verifies.
    Stored,
    /// Nothing is asked: the row is about what the store had before, or its own check looks.
    Any,
}

type Lay = Box<dyn Fn(&Place) + Send + Sync>;
type Check = Box<dyn Fn(&Place, &Ran) + Send + Sync>;

/// One input, and what has to come of it.
pub(crate) struct Row {
    pub(crate) id: &'static str,
    what: String,
    words: String,
    code: i32,
    says: Vec<String>,
    effect: Effect,
    /// The place gets the input.
    lay: Lay,
    /// Whatever else has to hold.
    check: Option<Check>,
}

impl Row {
    /// `words` are those of a command line that ends with `code`.
    pub(crate) fn new(id: &'static str, what: impl Into<String>, words: impl Into<String>, code: i32) -> Self {
        let (what, words, effect) = (what.into(), words.into(), Effect::None);
        let lay: Lay = Box::new(|_| {});
        Self { id, what, words, code, says: Vec::new(), effect, lay, check: None }
    }

    pub(crate) fn lay(mut self, lay: impl Fn(&Place) + Send + Sync + 'static) -> Self {
        self.lay = Box::new(lay);
        self
    }

    /// Every one of these words is in what the run says.
    pub(crate) fn says<'a>(mut self, words: impl IntoIterator<Item = &'a str>) -> Self {
        self.says.extend(words.into_iter().map(str::to_owned));
        self
    }

    pub(crate) fn effect(mut self, effect: Effect) -> Self {
        self.effect = effect;
        self
    }

    pub(crate) fn check(mut self, check: impl Fn(&Place, &Ran) + Send + Sync + 'static) -> Self {
        self.check = Some(Box::new(check));
        self
    }

    /// What is wrong with the run, when something is.
    fn try_out(&self) -> Result<(), String> {
        let place = furnished();
        (self.lay)(&place);
        let before = tree(&place.path("store"));
        let ran = measured(&mut place.command(&self.words));
        let mut wrong = Vec::new();
        if ran.code != Some(self.code) {
            wrong.push(format!("ended with {:?}, not {}", ran.code, self.code));
        }
        let text = format!("{}{}", ran.stdout, ran.stderr);
        wrong.extend(self.says.iter().filter(|words| !text.contains(*words)).map(|words| format!("no `{words}`")));
        if ["panicked", "RUST_BACKTRACE", "unwrap()"].iter().any(|word| text.contains(word)) {
            wrong.push("it panicked".to_owned());
        }
        if text.contains(|letter: char| letter.is_control() && letter != '\n' || letter == '\u{202e}') {
            wrong.push("it printed what moves the cursor".to_owned());
        }
        // A list that was asked for is as long as it is.
        let said = if self.code == 0 { &ran.stderr } else { &text };
        if said.len() > 20_000 {
            wrong.push(format!("it said {} bytes", said.len()));
        }
        if self.code != 0 && text.lines().any(|line| line.starts_with("result: ok")) {
            wrong.push("it failed and said that all is well".to_owned());
        }
        if ran.memory > MEMORY {
            wrong.push(format!("it took {} KiB", ran.memory >> 10));
        }
        if ran.time > PATIENCE {
            wrong.push(format!("it took {:?}", ran.time));
        }
        match self.effect {
            Effect::None => wrong.extend(difference(&before, &tree(&place.path("store")))),
            Effect::Unnamed => {
                let mut after = tree(&place.path("store"));
                let kept = ["ingest", "blobs", "registries"].map(|name| place.path("store").join(name));
                after.retain(|path, _| before.contains_key(path) || !kept.iter().any(|kept| path.starts_with(kept)));
                wrong.extend(difference(&before, &after));
            }
            Effect::Stored => {
                let verified = measured(&mut place.command("verify evil --level tensors"));
                if verified.code != Some(0) {
                    wrong.push(format!("what it stored does not verify: {}{}", verified.stdout, verified.stderr));
                }
            }
            Effect::Any => {}
        }
        if let Some(check) = &self.check {
            check(&place, &ran);
        }
        if wrong.is_empty() {
            return Ok(());
        }
        let shown: String = text.chars().take(1500).collect();
        Err(format!("{} {}: {}\n{shown}", self.id, self.what, wrong.join("; ")))
    }
}

/// Tries all rows and tells of all that fail; more at once than there are processors, because many wait.
pub(crate) fn run_all(rows: &[Row]) {
    let only = std::env::var("KILN_HOSTILE").ok();
    let rows: Vec<&Row> = rows.iter().filter(|row| only.as_deref().is_none_or(|id| id == row.id)).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut failures = Vec::new();
        while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
            let started = Instant::now();
            failures.extend(row.try_out().err());
            if std::env::var_os("KILN_HOSTILE_TIMES").is_some() && started.elapsed() > Duration::from_secs(1) {
                failures.push(format!("{} {}: {:?} in all", row.id, row.what, started.elapsed()));
            }
        }
        failures
    };
    let failures: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(failures.is_empty(), "{} of {} rows:\n\n{}", failures.len(), rows.len(), failures.join("\n"));
}

/// How a run ended, and what it took.
#[derive(Debug)]
pub(crate) struct Ran {
    /// `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// The most it had in memory at once, in bytes.
    memory: u64,
    time: Duration,
}

/// Runs a command to its end, or kills it after a while.
pub(crate) fn measured(command: &mut Command) -> Ran {
    let (stdout, stderr) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let reopened = |file: &tempfile::NamedTempFile| File::options().append(true).open(file.path()).unwrap();
    let started = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(reopened(&stdout)).stderr(reopened(&stderr)).spawn().unwrap();
    let mut memory = 0;
    let status = loop {
        // The kernel keeps the most that the program had; only what it takes in its last moment goes unseen. What it
        // tells of a child that has ended counts in its parent, who holds the inputs of many rows.
        memory = memory.max(most_in_memory(child.id()));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > 2 * PATIENCE {
            child.kill().unwrap();
        }
        thread::sleep(Duration::from_millis(1));
    };
    let read = |file: &tempfile::NamedTempFile| String::from_utf8_lossy(&fs::read(file.path()).unwrap()).into_owned();
    Ran { code: status.code(), stdout: read(&stdout), stderr: read(&stderr), memory, time: started.elapsed() }
}

/// The most that a process has had in memory at once since it began its program, in bytes.
fn most_in_memory(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let name = "Name:\tkiln\n";
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).filter(|_| status.starts_with(name));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        .map_or(0, |kibibytes| kibibytes << 10)
}

/// A place with `demo:int4` in its store.
fn furnished() -> Place {
    static TEMPLATE: OnceLock<TempDir> = OnceLock::new();
    let template = TEMPLATE.get_or_init(|| {
        let place = Place::new();
        place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
        place.kiln("create demo:int4 checkpoint --quantize int4").expect(0);
        let template = TempDir::new().unwrap();
        copy(&place.path("store"), &template.path().join("store"));
        template
    });
    let place = Place::new();
    copy(&template.path().join("store"), &place.path("store"));
    place
}

/// Copies a directory with the modes of its files.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)
        } else {
            fs::copy(entry.path(), target).map(drop).unwrap()
        }
    }
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
}

/// Everything below `root`: kind and mode, and the bytes or, of what is large, its size and time.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let Ok(metadata) = path.symlink_metadata() else { continue };
        let content = if metadata.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            String::new()
        } else if metadata.is_symlink() {
            fs::read_link(&path).unwrap().display().to_string()
        } else if metadata.is_file() && metadata.len() < 1 << 20 {
            kiln::oci::Digest::of(&fs::read(&path).unwrap()).to_string()
        } else if path.ends_with("store/reserve") {
            // Nothing is in it, and a collection makes it anew.
            format!("{} bytes", metadata.len())
        } else {
            format!("{} bytes at {}", metadata.len(), metadata.mtime())
        };
        found.insert(path, format!("{:o} {content}", metadata.permissions().mode()));
    }
    found
}

fn difference(before: &BTreeMap<PathBuf, String>, after: &BTreeMap<PathBuf, String>) -> Option<String> {
    let changed = |(path, is): &(&PathBuf, &String)| before.get(*path) != Some(*is);
    let changed: Vec<_> = after.iter().filter(changed).map(|(path, _)| path).collect();
    let gone: Vec<_> = before.keys().filter(|path| !after.contains_key(*path)).collect();
    (!changed.is_empty() || !gone.is_empty()).then(|| format!("the store has changed: {changed:?}, without {gone:?}"))
}
