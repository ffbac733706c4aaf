//! Notes: what this machine knows about a manifest beyond its content, such as where it came from.
//! They are not content, enter no digest, and go when their manifest goes.

use std::fs;
use std::io;

use super::durable::replace;
use super::{Store, failed};
use crate::error::{Error, ErrorKind, Result};
use crate::json;
use crate::oci::Digest;

impl Store {
    /// Keeps `note` with the manifest `manifest`, in place of an earlier one.
    ///
    /// # Errors
    /// [`ErrorKind::Store`] when it cannot be written.
    pub fn set_note(&self, manifest: &Digest, note: &serde_json::Value) -> Result<()> {
        replace(
            self.layout.disk(),
            &self.layout.ingest(),
            &self.layout.notes(),
            &file_name(manifest),
            &json::to_canonical(note),
        )
    }

    /// The note kept with the manifest `manifest`.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it is not JSON, [`ErrorKind::Store`] when it cannot be read.
    pub fn note(&self, manifest: &Digest) -> Result<Option<serde_json::Value>> {
        let path = self.layout.notes().join(file_name(manifest));
        match fs::read(&path) {
            Ok(text) => json::parse(&text).map(Some).map_err(|cause| {
                Error::new(ErrorKind::Corrupt, format!("The note is not JSON: `{}`", path.display())).caused_by(cause)
            }),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(failed("read", &path, cause)),
        }
    }
}

/// The name of the file that is kept with `manifest`.
pub(super) fn file_name(manifest: &Digest) -> String {
    format!("{}.json", manifest.hex())
}

/// The manifest that a file of such a name belongs to.
pub(super) fn manifest_of(file_name: &str) -> Option<Digest> {
    Digest::from_hex(file_name.strip_suffix(".json")?)
}
