//! Naming and forgetting: tags, removal, garbage collection.

use std::path::Path;
use std::time::Duration;

use super::inspect::require;
use crate::error::Result;
use crate::oci::{Digest, Reference};
use crate::store::{Disk, GcReport, Space, Store};

/// Gives a stored model another name.
///
/// # Errors
/// [`crate::ErrorKind::NotFound`] when `name` is not there.
pub fn tag(store: &Store, name: &Reference, new_name: &Reference) -> Result<Digest> {
    let target = require(store, name)?;
    store.set_ref(new_name, &target)?;
    Ok(target.digest)
}

/// Removes a name. Its blobs stay until [`gc`].
///
/// # Errors
/// [`crate::ErrorKind::NotFound`] when `name` is not there.
pub fn remove(store: &Store, name: &Reference) -> Result<Digest> {
    require(store, name)?;
    let removed = store.remove_ref(name)?;
    removed.map_or_else(|| require(store, name), Ok).map(|target| target.digest)
}

/// Removes what no name reaches, and with `quarantine` also what repairs moved aside, or says what that is; waits no longer
/// than `patience` for others that use the store. A store that nobody has written to yet is empty, not an error.
///
/// # Errors
/// [`crate::ErrorKind::Store`] when the store is in use for longer, [`crate::ErrorKind::Corrupt`] when a manifest
/// cannot be read: then nothing is removed.
pub fn gc(root: &Path, dry_run: bool, quarantine: bool, patience: Duration) -> Result<(GcReport, Space)> {
    let open = || Store::open_within(Disk::default(), root, patience);
    drop(open()?);
    let report = Store::gc_within(Disk::default(), root, dry_run, patience)?;
    let aside = if quarantine { open()?.release(|_| true, dry_run)? } else { Space::default() };
    Ok((report, aside))
}
