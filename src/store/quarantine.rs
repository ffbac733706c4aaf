//! What was found bad: it is moved to `quarantine/<hex>.<n>`, so that from then on it is missing, which every reader
//! sees without hashing. It stays until what is right is there, or until somebody asks for its removal.

use std::io;
use std::path::PathBuf;

use super::durable::sync_directory;
use super::gc::{Found, Swept};
use super::lock::Lock;
use super::usage::Space;
use super::{PATIENCE, Store, failed};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Digest;

impl Store {
    /// Moves the bad content of `digest` aside, where nothing uses it, and says where it is now.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is none, [`ErrorKind::Store`] when it cannot be moved.
    pub fn quarantine(&self, digest: &Digest) -> Result<PathBuf> {
        let (from, aside) = (self.blob_path(digest), self.layout.quarantine());
        // Under the lock nobody else takes the first free name.
        let _lock = Lock::exclusive(self.layout.disk(), &self.layout.refs_lock(), PATIENCE)?;
        let mut attempt = 0;
        let to = loop {
            let to = aside.join(format!("{}.{attempt}", digest.hex()));
            match to.symlink_metadata() {
                Ok(_) => attempt += 1,
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => break to,
                Err(cause) => return Err(failed("look for", &to, cause)),
            }
        };
        match self.layout.disk().rename(&from, &to) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                Err(Error::new(ErrorKind::NotFound, format!("The content of `{digest}` is not in the store")))
            }
            Err(cause) => Err(failed("move aside", &from, cause)),
            Ok(()) => {
                sync_directory(self.layout.disk(), &aside)?;
                sync_directory(self.layout.disk(), &self.layout.blobs_for(digest)?)?;
                Ok(to)
            }
        }
    }

    /// Where the bad content of `digest` is that was moved aside.
    ///
    /// # Errors
    /// [`ErrorKind::Store`] when the directory cannot be read.
    pub fn quarantined(&self, digest: &Digest) -> Result<Vec<PathBuf>> {
        let (_, found) = self.aside(|it| it == *digest)?;
        Ok(found.into_iter().map(|file| self.layout.quarantine().join(file.name)).collect())
    }

    /// Removes what was moved aside of the digests that are `wanted`, or with `dry_run` says what that is.
    ///
    /// # Errors
    /// [`ErrorKind::Store`] when it cannot be removed.
    pub fn release(&self, wanted: impl Fn(Digest) -> bool, dry_run: bool) -> Result<Space> {
        let (aside, found) = self.aside(wanted)?;
        let mut space = Space::default();
        for Found { name, size, .. } in found {
            aside.remove(&name, dry_run)?;
            space.add(size);
        }
        Ok(space)
    }

    fn aside(&self, wanted: impl Fn(Digest) -> bool) -> Result<(Swept, Vec<Found>)> {
        let aside = Swept::open(self.layout.disk(), self.root(), &["quarantine"])?;
        let found = aside.files(|name| digest_of(name).is_some_and(&wanted))?;
        Ok((aside, found))
    }
}

/// The digest whose content a file in `quarantine/` with this name should have been.
fn digest_of(name: &str) -> Option<Digest> {
    let (hex, number) = name.split_once('.')?;
    Digest::from_hex(hex).filter(|_| number.bytes().all(|byte| byte.is_ascii_digit()))
}
