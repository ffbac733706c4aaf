//! The registry that `crane` has built in: Debian's package `crane` has its program.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::find;
use super::process::Process;

const PATIENCE: Duration = Duration::from_secs(20);
/// What it logs before its port.
const SERVING: &str = "serving on port ";

/// A running `crane registry serve`; killed when dropped.
#[derive(Debug)]
pub struct CraneRegistry {
    _process: Process,
    host: String,
    _directory: TempDir,
}

impl CraneRegistry {
    /// Starts a registry on a port that the system chooses, and waits until it listens.
    ///
    /// # Errors
    /// A sentence, with the registry's log when there is one: the program is missing, or does not listen.
    pub fn start() -> Result<Self, String> {
        let directory = TempDir::new().map_err(|error| format!("No temporary directory could be made: {error}"))?;
        let blobs = directory.path().join("blobs");
        fs::create_dir(&blobs).map_err(|error| format!("`{}` could not be made: {error}", blobs.display()))?;
        let mut process = Process::start(command(&find("crane", "crane")?, &blobs), directory.path().join("log"))?;
        let port = process.wait(PATIENCE, |log| {
            let (_, rest) = log.split_once(SERVING)?;
            rest.find(|character: char| !character.is_ascii_digit()).map(|end| rest[..end].to_owned())
        })?;
        Ok(Self { _process: process, host: format!("127.0.0.1:{port}"), _directory: directory })
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> &str {
        &self.host
    }
}

fn command(program: &Path, blobs: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["registry", "serve", "--address", "127.0.0.1:0", "--disk"]).arg(blobs).env_clear();
    command
}
