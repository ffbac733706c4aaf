//! A program of others that goes on until it is dropped, with its log in a file.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running program; killed when dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it prints goes to the file `log`.
    pub(super) fn start(mut command: Command, log: PathBuf) -> Result<Self, String> {
        let name = command.get_program().to_string_lossy().into_owned();
        let failed = |error: std::io::Error| format!("`{name}` could not be started: {error}");
        let file = fs::File::create(&log).map_err(failed)?;
        command.stdin(Stdio::null()).stdout(file.try_clone().map_err(failed)?).stderr(file);
        let child = command.spawn().map_err(failed)?;
        Ok(Self { child, name, log })
    }

    /// What it has printed.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `ready` finds what it looks for, given the log.
    ///
    /// # Errors
    /// A sentence and the log, when the program ends or does not get ready within `patience`.
    pub(super) fn wait<T>(&mut self, patience: Duration, ready: impl Fn(&str) -> Option<T>) -> Result<T, String> {
        let end = Instant::now() + patience;
        let problem = loop {
            if let Some(found) = ready(&self.log()) {
                return Ok(found);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                break format!("ended at once: {status}");
            }
            if Instant::now() > end {
                break format!("was not ready within {} seconds", patience.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        Err(format!("`{}` {problem}; its log:\n{}", self.name, self.log()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
