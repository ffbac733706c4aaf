//! `kiln demo`: the whole way, once. It runs this program as a user would, with real command lines on a
//! small checkpoint that is part of it, and fails when a step fails or a digest is not the same everywhere.
//!
//! Whatever happens, also when a signal comes, the processes it started and its directory are gone after it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::Session;
use super::exit::Exit;
use super::settings::{own_variables, variable};
use crate::error::{Error, ErrorKind, Result};
use crate::json;
use crate::oci::Digest;

const EXAMPLES: &str = "\
Examples:
  kiln demo
  kiln demo --json";

/// How long one command may take; on this checkpoint each takes well under a second.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it is between two looks at a command.
const PAUSE: Duration = Duration::from_millis(10);

macro_rules! checkpoint {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../tests/checkpoints/qwen3-moe-12e-bf16/", $name)))),*]
    };
}

/// A mixture of twelve experts in two layers, in five shards.
const CHECKPOINT: &[(&str, &[u8])] = checkpoint![
    "LICENSE",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model-00001-of-00005.safetensors",
    "model-00002-of-00005.safetensors",
    "model-00003-of-00005.safetensors",
    "model-00004-of-00005.safetensors",
    "model-00005-of-00005.safetensors",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Show the whole way on a small model
///
/// Creates, pushes, pulls and verifies a small mixture of experts in a temporary directory, with a registry
/// of its own, and removes everything. Fails when a step fails or the digests differ.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Demo {}

impl Demo {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let stage = Stage::set(session)?;
        let digest = stage.play().await?;
        stage.clear()?;
        if session.printer.is_json() {
            session.printer.object(&json!({"event": "demonstrated", "result": "ok", "digest": digest}));
        } else {
            session.printer.data(format_args!(
                "# Every step held. Created, pushed, pulled and created again, the model is {digest}."
            ));
        }
        Ok(Exit::Done)
    }
}

/// A directory with a checkpoint in it, and the program to run there.
struct Stage<'a> {
    session: &'a Session,
    directory: TempDir,
    program: PathBuf,
}

impl<'a> Stage<'a> {
    fn set(session: &'a Session) -> Result<Self> {
        let unexpected = |message: &'static str| {
            move |cause: std::io::Error| Error::new(ErrorKind::Unexpected, message).caused_by(cause)
        };
        let program = std::env::current_exe().map_err(unexpected("Could not find the program that is running"))?;
        let directory = tempfile::Builder::new()
            .prefix("kiln-demo-")
            .tempdir()
            .map_err(unexpected("Could not make a temporary directory"))?;
        let checkpoint = directory.path().join("checkpoint");
        fs::create_dir(&checkpoint).map_err(|cause| Error::io(ErrorKind::Unexpected, "create", &checkpoint, cause))?;
        for (name, bytes) in CHECKPOINT {
            let path = checkpoint.join(name);
            fs::write(&path, bytes).map_err(|cause| Error::io(ErrorKind::Unexpected, "write", &path, cause))?;
        }
        Ok(Self { session, directory, program })
    }

    /// Every step, in order; the digest that all of them agree on.
    async fn play(&self) -> Result<Digest> {
        self.say("# In a temporary directory, with KILN_STORE=store. A registry first:");
        let (_server, address) = self.serve().await?;
        let remote = format!("{address}/demo:int4");

        self.say("# A checkpoint becomes a model:");
        let created = digest_in(&self.kiln(&["create", "demo:int4", "checkpoint", "--quantize", "int4"]).await?)?;
        self.kiln(&["show", "demo:int4"]).await?;
        self.say("# It goes to the registry, and from there into another store:");
        let pushed = digest_in(&self.kiln(&["push", "demo:int4", &remote]).await?)?;
        let pulled = digest_in(&self.kiln(&["pull", &remote, "demo:int4", "--store", "other-store"]).await?)?;
        self.say("# There it is created again from the checkpoint, and compared:");
        let verify = ["verify", "demo:int4", "--source", "checkpoint", "--store", "other-store"];
        let verified = digest_in(&self.kiln(&verify).await?)?;
        self.say("# What the registry has is not sent again:");
        let again = self.kiln(&["push", "demo:int4", &remote, "--json", "--progress", "off"]).await?;

        let last = again.lines().last().unwrap_or_default();
        let sent =
            json::parse(last.as_bytes()).ok().and_then(|report| report.get("bytes_sent").and_then(Value::as_u64));
        if sent != Some(0) {
            return Err(failed(format!("The second push should have sent 0 bytes, and says `{last}`")));
        }
        for (step, digest) in [("push", pushed), ("pull", pulled), ("verify", verified)] {
            if digest != created {
                return Err(failed(format!("The digest should be `{created}`, and `{step}` says `{digest}`")));
            }
        }
        Ok(created)
    }

    /// Starts a registry; the address it prints.
    async fn serve(&self) -> Result<(Running, String)> {
        let words = ["serve", "--addr", "127.0.0.1:0", "--store", "registry"];
        self.say(&format!("$ kiln {} &", words.join(" ")));
        let mut server = self.start("serve", &words)?;
        let listening = async {
            loop {
                let output = server.output()?;
                if let Some(address) = output.lines().next().and_then(|line| line.strip_prefix("listening on ")) {
                    // The line may not be complete yet.
                    if output.contains('\n') {
                        return Ok(address.to_owned());
                    }
                }
                if let Some(status) = server.poll()? {
                    return Err(failed(format!("`kiln serve` ended with {status}: {}", server.complaints()?)));
                }
                sleep(PAUSE).await;
            }
        };
        let address = timeout(PATIENCE, listening)
            .await
            .map_err(|_| failed(format!("`kiln serve` did not start within {} seconds", PATIENCE.as_secs())))??;
        if !self.session.printer.is_json() {
            self.session.printer.data(format_args!("listening on {address}\n"));
        }
        Ok((server, address))
    }

    /// Runs a command to its end, shows what it says, and gives what it printed on standard output.
    async fn kiln(&self, words: &[&str]) -> Result<String> {
        let command = format!("kiln {}", words.join(" "));
        self.say(&format!("$ {command}"));
        let mut running = self.start(words.first().copied().unwrap_or_default(), words)?;
        let end = async {
            loop {
                match running.poll()? {
                    Some(status) => return Ok::<_, Error>(status),
                    None => sleep(PAUSE).await,
                }
            }
        };
        let status = timeout(PATIENCE, end)
            .await
            .map_err(|_| failed(format!("`{command}` did not end within {} seconds", PATIENCE.as_secs())))??;
        let (output, complaints) = (running.output()?, running.complaints()?);
        let printer = &self.session.printer;
        if printer.is_json() {
            printer.object(&json!({
                "event": "step",
                "command": command,
                "exitCode": status.code(),
                "stdout": output,
                "stderr": complaints,
            }));
        } else {
            if !complaints.is_empty() {
                printer.message(complaints.trim_end());
            }
            printer.data(&output);
        }
        if status.success() { Ok(output) } else { Err(failed(format!("`{command}` ended with {status}"))) }
    }

    /// Starts this program in the directory. It writes into files, which never make it wait.
    fn start(&self, label: &str, words: &[&str]) -> Result<Running> {
        let path = |suffix: &str| self.directory.path().join(format!("{label}.{suffix}"));
        let create =
            |path: &Path| File::create(path).map_err(|cause| Error::io(ErrorKind::Unexpected, "create", path, cause));
        let (output, complaints) = (path("stdout"), path("stderr"));
        let mut command = Command::new(&self.program);
        for name in own_variables() {
            command.env_remove(name);
        }
        let process = command
            .args(words)
            .current_dir(self.directory.path())
            .env(variable::STORE, "store")
            .env(variable::DOCKER_CONFIG, "docker")
            // The steps are the same for everybody, whatever is configured.
            .env(variable::CONFIG, "/dev/null")
            .stdin(Stdio::null())
            .stdout(create(&output)?)
            .stderr(create(&complaints)?)
            .spawn()
            .map_err(|cause| Error::io(ErrorKind::Unexpected, "run", &self.program, cause))?;
        Ok(Running { process, output, complaints })
    }

    fn say(&self, line: &str) {
        if !self.session.printer.is_json() {
            self.session.printer.data(line);
        }
    }

    fn clear(self) -> Result<()> {
        let path = self.directory.path().to_owned();
        self.directory.close().map_err(|cause| Error::io(ErrorKind::Unexpected, "remove", &path, cause))
    }
}

/// A process that does not outlive this.
struct Running {
    process: std::process::Child,
    output: PathBuf,
    complaints: PathBuf,
}

impl Running {
    fn poll(&mut self) -> Result<Option<ExitStatus>> {
        self.process
            .try_wait()
            .map_err(|cause| Error::new(ErrorKind::Unexpected, "Could not wait for a command").caused_by(cause))
    }

    fn output(&self) -> Result<String> {
        read(&self.output)
    }

    fn complaints(&self) -> Result<String> {
        read(&self.complaints)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It fails only when the process has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|cause| Error::io(ErrorKind::Unexpected, "read", path, cause))
}

fn failed(sentence: String) -> Error {
    Error::new(ErrorKind::Unexpected, sentence)
}

/// The first digest in `text`.
fn digest_in(text: &str) -> Result<Digest> {
    let words = text.split_whitespace();
    words
        .filter_map(|word| word.parse().ok())
        .next()
        .ok_or_else(|| failed(format!("There is no digest in `{}`", text.trim_end())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_found_among_other_words() {
        let digest = Digest::of(b"");
        assert_eq!(digest_in(&format!("created demo:int4 {digest} (3 layers)\n")).unwrap(), digest);
        assert_eq!(
            digest_in("created demo:int4").unwrap_err().to_string(),
            "There is no digest in `created demo:int4`"
        );
    }
}
