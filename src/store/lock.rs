//! Kernel locks: `locks/store` is shared by every user of the store and exclusive to gc, `locks/refs`
//! is held while a small file is replaced. The kernel drops them with the process, so none is ever
//! stale and none is ever broken; the files are never deleted.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::disk::Disk;
use super::failed;
use crate::error::{Error, ErrorKind, Result};

/// The longest pause before a lock that is held elsewhere is tried again.
const MAX_PAUSE: Duration = Duration::from_millis(50);

/// Whoever may read the store may lock it, whatever the umask says.
const LOCK_MODE: u32 = 0o644;

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    /// `None` when the store can neither be locked nor written.
    _file: Option<File>,
}

impl Lock {
    /// Holds `path` together with others. A read-only store that lost its lock file is not locked:
    /// nothing can be swept from it through this mount either.
    pub(super) fn shared(disk: &Disk, path: &Path, patience: Duration) -> Result<Self> {
        match open(disk, path) {
            Ok(file) => Self::wait(file, path, patience, File::try_lock_shared),
            Err(cause) if is_read_only(&cause) => Ok(Self { _file: None }),
            Err(cause) => Err(failed("open the lock", path, cause)),
        }
    }

    /// Holds `path` alone.
    pub(super) fn exclusive(disk: &Disk, path: &Path, patience: Duration) -> Result<Self> {
        let file = open(disk, path).map_err(|cause| failed("open the lock", path, cause))?;
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
                    return Err(Error::new(ErrorKind::Store, message).hint(
                        "wait for the other `kiln` to finish, or stop its `kiln serve`, then run the command again",
                    ));
                }
                Err(TryLockError::Error(cause)) => return Err(failed("lock", path, cause)),
            }
        }
    }
}

/// Opens a lock file for writing, which an exclusive lock over NFS needs, else for reading.
fn open(disk: &Disk, path: &Path) -> io::Result<File> {
    match disk.open_or_create(path, LOCK_MODE) {
        Ok((handle, is_new)) => {
            if is_new {
                handle.set_mode(LOCK_MODE)?;
            }
            Ok(handle.into_file())
        }
        Err(cause) if is_read_only(&cause) => File::open(path),
        Err(cause) => Err(cause),
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
        let (directory, disk) = (tempfile::tempdir().unwrap(), Disk::default());
        let path = directory.path().join("lock");
        let brief = Duration::from_millis(50);
        let first = Lock::shared(&disk, &path, brief).unwrap();
        let second = Lock::shared(&disk, &path, brief).unwrap();
        let error = Lock::exclusive(&disk, &path, brief).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Store);
        assert!(error.to_string().contains("locked"), "{error}");
        drop((first, second));
        let alone = Lock::exclusive(&disk, &path, brief).unwrap();
        assert!(Lock::shared(&disk, &path, brief).is_err());
        drop(alone);
        assert!(Lock::shared(&disk, &path, brief).is_ok());
    }

    #[test]
    fn whoever_waits_gets_the_lock_when_it_is_free() {
        let (directory, disk) = (tempfile::tempdir().unwrap(), Disk::default());
        let path = directory.path().join("lock");
        let alone = Lock::exclusive(&disk, &path, Duration::ZERO).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| Lock::shared(&disk, &path, Duration::from_secs(20)));
            thread::sleep(Duration::from_millis(60));
            drop(alone);
            assert!(waiting.join().unwrap().is_ok());
        });
    }
}
