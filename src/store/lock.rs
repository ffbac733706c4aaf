//! Kernel locks: `locks/store` is shared by every user of the store and exclusive to gc, `locks/refs`
//! is held while a small file is replaced. The kernel drops them with the process, so none is ever
//! stale and none is ever broken; the files are never deleted.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::failed;
use crate::error::{Error, ErrorKind, Result};

/// The longest pause before a lock that is held elsewhere is tried again.
const MAX_PAUSE: Duration = Duration::from_millis(50);

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    /// `None` when the store can neither be locked nor written.
    _file: Option<File>,
}

impl Lock {
    /// Holds `path` together with others. A read-only store that lost its lock file is not locked:
    /// nothing can be swept from it through this mount either.
    pub(super) fn shared(path: &Path, patience: Duration) -> Result<Self> {
        match open(path) {
            Ok(file) => Self::wait(file, path, patience, File::try_lock_shared),
            Err(cause) if is_read_only(&cause) => Ok(Self { _file: None }),
            Err(cause) => Err(failed("open the lock", path, cause)),
        }
    }

    /// Holds `path` alone.
    pub(super) fn exclusive(path: &Path, patience: Duration) -> Result<Self> {
        let file = open(path).map_err(|cause| failed("open the lock", path, cause))?;
        Self::wait(file, path, patience, File::try_lock)
    }

    fn wait(
        file: File,
        path: &Path,
        patience: Duration,
        attempt: impl Fn(&File) -> Result<(), TryLockError>,
    ) -> Result<Self> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_millis(1);
        loop {
            match attempt(&file) {
                Ok(()) => return Ok(Self { _file: Some(file) }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    thread::sleep(pause);
                    pause = MAX_PAUSE.min(pause * 2);
                }
                Err(TryLockError::WouldBlock) => {
                    let message = format!("The store is locked by another process: `{}`", path.display());
                    return Err(Error::new(ErrorKind::Store, message)
                        .hint("wait for the other `kiln` to finish, then run the command again"));
                }
                Err(TryLockError::Error(cause)) => return Err(failed("lock", path, cause)),
            }
        }
    }
}

/// Opens a lock file for writing, which an exclusive lock over NFS needs, else for reading.
fn open(path: &Path) -> io::Result<File> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(path)?;
            file.set_permissions(Permissions::from_mode(0o644))?;
            Ok(file)
        }
        Err(cause) if is_read_only(&cause) => File::open(path),
        outcome => outcome,
    }
}

fn is_read_only(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sharers_exclude_the_one_who_wants_it_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let brief = Duration::from_millis(50);
        let first = Lock::shared(&path, brief).unwrap();
        let second = Lock::shared(&path, brief).unwrap();
        let error = Lock::exclusive(&path, brief).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Store);
        assert!(error.to_string().contains("locked"), "{error}");
        drop((first, second));
        let alone = Lock::exclusive(&path, brief).unwrap();
        assert!(Lock::shared(&path, brief).is_err());
        drop(alone);
        assert!(Lock::shared(&path, brief).is_ok());
    }

    #[test]
    fn whoever_waits_gets_the_lock_when_it_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let alone = Lock::exclusive(&path, Duration::ZERO).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| Lock::shared(&path, Duration::from_secs(20)));
            thread::sleep(Duration::from_millis(60));
            drop(alone);
            assert!(waiting.join().unwrap().is_ok());
        });
    }
}
