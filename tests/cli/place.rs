//! A place to run kiln in: a temporary directory that is its home and has its store, and an environment
//! with nothing else in it. Every run has an end.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// No command of these tests takes longer, on any machine.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Place {
    directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    /// A place with the model `demo:int4` in its store and its checkpoint in `checkpoint`.
    pub(crate) fn with_model() -> Self {
        let place = Self::new();
        place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
        place.kiln("create demo:int4 checkpoint --quantize int4").expect(0);
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Copies a checkpoint of the tests into this place.
    pub(crate) fn checkpoint(&self, checkpoint: &str, name: &str) {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(checkpoint);
        let to = self.path(name);
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }

    /// Runs kiln with these words, which are separated by spaces.
    pub(crate) fn kiln(&self, words: &str) -> Run {
        self.run(self.command(words))
    }

    /// The digest that a command printed.
    pub(crate) fn digest(&self, words: &str) -> String {
        let run = self.kiln(words);
        run.expect(0);
        let digest = run.stdout.split_whitespace().find(|word| word.starts_with("sha256:"));
        digest.unwrap_or_else(|| panic!("no digest in {run}")).to_owned()
    }

    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command
            .args(words.split_whitespace())
            .current_dir(self.directory.path())
            .env_clear()
            .env("HOME", self.path("home"))
            .env("KILN_STORE", self.path("store"))
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, mut command: Command) -> Run {
        self.start(&mut command).wait()
    }

    /// Starts a command that goes on.
    pub(crate) fn start(&self, command: &mut Command) -> Running {
        let (stdout, stderr) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
        let reopened = |file: &tempfile::NamedTempFile| File::options().append(true).open(file.path()).unwrap();
        let child = command.stdout(reopened(&stdout)).stderr(reopened(&stderr)).spawn().unwrap();
        Running { child, stdout, stderr, place: self.directory.path().to_owned() }
    }

    /// The stored file of a blob.
    pub(crate) fn blob(&self, digest: &str) -> PathBuf {
        self.path("store/blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
    }

    /// The digest of a layer of `demo:int4`.
    pub(crate) fn layer(&self, name: &str) -> String {
        let shown = self.kiln("show demo:int4 --json").last_object();
        let layers = shown["layers"].as_array().unwrap();
        let layer = layers.iter().find(|layer| layer["name"] == name).unwrap();
        layer["digest"].as_str().unwrap().to_owned()
    }

    /// Flips a bit of a stored blob.
    pub(crate) fn damage(&self, digest: &str, at: usize) {
        let path = self.blob(digest);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        // Blobs are read-only: another file takes its place.
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
    }
}

/// A process that is under way; it does not outlive this.
pub(crate) struct Running {
    child: Child,
    stdout: tempfile::NamedTempFile,
    stderr: tempfile::NamedTempFile,
    place: PathBuf,
}

impl Running {
    /// Waits until standard output has a line that starts with `start`, and gives the rest of it.
    pub(crate) fn line(&mut self, start: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stdout = fs::read_to_string(self.stdout.path()).unwrap();
            let complete = stdout.rsplit_once('\n').map_or("", |(complete, _)| complete);
            if let Some(rest) = complete.lines().find_map(|line| line.strip_prefix(start)) {
                return rest.to_owned();
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "ended with {ended:?}: {}", fs::read_to_string(self.stderr.path()).unwrap());
            assert!(Instant::now() < deadline, "no line `{start}` in {stdout}");
            sleep(Duration::from_millis(10));
        }
    }

    /// Waits until standard error has this text.
    pub(crate) fn says(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !fs::read_to_string(self.stderr.path()).unwrap().contains(text) {
            assert!(Instant::now() < deadline, "never said `{text}`");
            sleep(Duration::from_millis(10));
        }
    }

    /// The number of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Sends a signal, as `kill` names it.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success());
    }

    /// Kills it after `delay`, without any chance to tidy up, unless it has ended by then.
    pub(crate) fn kill_after(mut self, delay: Duration) -> Run {
        sleep(delay);
        self.child.kill().unwrap();
        self.wait()
    }

    pub(crate) fn wait(mut self) -> Run {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "kiln did not end within {PATIENCE:?}");
            sleep(Duration::from_millis(5));
        };
        let read = |file: &tempfile::NamedTempFile| fs::read_to_string(file.path()).unwrap();
        Run { status, stdout: read(&self.stdout), stderr: read(&self.stderr), place: self.place.clone() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a run gave. Printed, it is the same in every place and on every day.
pub(crate) struct Run {
    status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    place: PathBuf,
}

impl Run {
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {}", self.status))
    }

    /// Whether SIGKILL ended it.
    pub(crate) fn was_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }

    /// Checks the exit code, and gives the run back.
    pub(crate) fn expect(&self, code: i32) -> &Self {
        assert_eq!(self.code(), code, "{self}");
        self
    }

    /// Every line of standard output as JSON.
    pub(crate) fn objects(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|cause| panic!("{cause}: {line}"));
        self.stdout.lines().map(parse).collect()
    }

    /// The last line of standard output as JSON.
    pub(crate) fn last_object(&self) -> Value {
        self.objects().pop().unwrap_or_else(|| panic!("nothing on standard output: {self}"))
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place.display().to_string();
        let settled = |text: &str| settle(&text.replace(&place, "[PLACE]"));
        write!(
            f,
            "exit: {}\n--- stdout ---\n{}--- stderr ---\n{}",
            self.code(),
            settled(&self.stdout),
            settled(&self.stderr)
        )
    }
}

/// The text with what another version or another run may change taken out: digests, sizes, ports.
pub(crate) fn settle(text: &str) -> String {
    text.split_inclusive('\n').map(settle_line).collect()
}

fn settle_line(line: &str) -> String {
    let mut settled = String::new();
    let mut rest = line;
    while let Some(start) = rest.find(|character: char| character.is_ascii_hexdigit()) {
        settled.push_str(&rest[..start]);
        rest = &rest[start..];
        let word = &rest[..rest.find(|character: char| !character.is_ascii_alphanumeric()).unwrap_or(rest.len())];
        let hexadecimal = word.chars().all(|character| character.is_ascii_hexdigit());
        let number = word.chars().all(|character| character.is_ascii_digit());
        match word.len() {
            64 if hexadecimal => settled.push_str("[DIGEST]"),
            12 if hexadecimal => settled.push_str("[SHORT]     "),
            _ if number && settled.ends_with("127.0.0.1:") => settled.push_str("[PORT]"),
            _ if number => match size(rest) {
                Some(length) => {
                    settled.push_str("[SIZE]");
                    rest = &rest[length..];
                    continue;
                }
                None => settled.push_str(word),
            },
            _ => settled.push_str(word),
        }
        rest = &rest[word.len()..];
    }
    settled + rest
}

/// How long the size is that `text` starts with: `12 B`, `1.50 KiB`.
fn size(text: &str) -> Option<usize> {
    let unit = text.find(|character: char| !character.is_ascii_digit() && character != '.')?;
    let rest = text[unit..].strip_prefix(' ')?;
    let name = rest.find(|character: char| !character.is_ascii_alphanumeric()).unwrap_or(rest.len());
    ["B", "KiB", "MiB", "GiB"].contains(&&rest[..name]).then_some(unit + 1 + name)
}

#[test]
fn what_may_change_is_taken_out() {
    let digest = "ab".repeat(32);
    for (line, settled) in [
        (
            format!("created a:int4 sha256:{digest} (21 layers, 1.50 KiB; 0 B written)\n"),
            "created a:int4 sha256:[DIGEST] (21 layers, [SIZE]; [SIZE] written)\n",
        ),
        ("listening on 127.0.0.1:43210".to_owned(), "listening on 127.0.0.1:[PORT]"),
        ("0123456789ab  22072   lm_head".to_owned(), "[SHORT]       22072   lm_head"),
        ("4 blobs at level 3".to_owned(), "4 blobs at level 3"),
    ] {
        assert_eq!(settle(&line), settled);
    }
}
