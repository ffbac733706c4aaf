//! Where the content of a model is that is looked at: in the store, or at a registry (`distant`).

use std::io::Read;

use super::verify::Finding;
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::manifest::layer_name;
use crate::oci::Descriptor;
use crate::progress::Progress;
use crate::source::safetensors::{Header, data_start, parse_header};
use crate::store::{Damage, Store};

/// The content of a model. What it gives was verified.
pub(super) trait Held: Sync {
    /// Whether `blob` is there with its size, as far as can be told without reading it.
    ///
    /// # Errors
    /// When the question cannot be answered.
    fn look(&self, blob: &Descriptor) -> Result<Option<Finding>>;

    /// Reads and hashes `blob`, reporting every chunk to `progress`.
    ///
    /// # Errors
    /// As [`Held::look`].
    fn check(&self, blob: &Descriptor, progress: &Progress) -> Result<Option<Finding>>;

    /// All of `blob`, which must be small.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it is absent or damaged, [`ErrorKind::CouldNotCheck`] when it is larger than 64 MiB.
    fn read(&self, blob: &Descriptor) -> Result<Vec<u8>>;

    /// The header of a tensor layer that was checked, with the bytes that spell it.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it is not that of a safetensors file.
    fn header(&self, layer: &Descriptor) -> Result<(Header, Vec<u8>)>;

    /// A store with all of the model. What is not in a store is brought into `beside`.
    ///
    /// # Errors
    /// When it cannot be brought.
    fn in_store(&self, beside: &Store) -> Result<Store>;
}

impl Held for Store {
    fn look(&self, blob: &Descriptor) -> Result<Option<Finding>> {
        let damage = match std::fs::symlink_metadata(self.blob_path(&blob.digest)) {
            Ok(metadata) if metadata.is_file() && metadata.len() == blob.size => return Ok(None),
            Ok(metadata) => Damage::Size { actual: metadata.len() },
            Err(_) => Damage::Missing,
        };
        Ok(Some(Finding::damaged(blob, damage)))
    }

    fn check(&self, blob: &Descriptor, progress: &Progress) -> Result<Option<Finding>> {
        Ok(Store::check(self, blob, progress)?.err().map(|damage| Finding::damaged(blob, damage)))
    }

    fn read(&self, blob: &Descriptor) -> Result<Vec<u8>> {
        self.read_blob(blob)
    }

    /// The data behind it is not read.
    fn header(&self, layer: &Descriptor) -> Result<(Header, Vec<u8>)> {
        let io = |cause| Error::io(ErrorKind::Store, "read", &self.blob_path(&layer.digest), cause);
        let mut file = self.require_blob(layer)?;
        let mut bytes = Vec::new();
        file.by_ref().take(layer.size.min(8)).read_to_end(&mut bytes).map_err(io)?;
        if let Some(prefix) = bytes.first_chunk() {
            let start = data_start(*prefix, layer.size).map_err(|cause| no_safetensors(layer, cause))?;
            file.take(start - 8).read_to_end(&mut bytes).map_err(io)?;
        }
        parsed(layer, bytes)
    }

    fn in_store(&self, _: &Store) -> Result<Store> {
        Ok(self.clone())
    }
}

/// The header that `bytes` spell.
pub(super) fn parsed(layer: &Descriptor, bytes: Vec<u8>) -> Result<(Header, Vec<u8>)> {
    Ok((parse_header(&bytes, layer.size).map_err(|cause| no_safetensors(layer, cause))?, bytes))
}

fn no_safetensors(layer: &Descriptor, cause: Error) -> Error {
    let message = format!("The layer {} is not a safetensors file", quoted(&layer_name(layer)));
    Error::new(ErrorKind::Corrupt, message).caused_by(cause)
}
