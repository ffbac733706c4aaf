//! What a registry has, and taking it away there.

use super::transfer::Access;
use crate::error::Result;
use crate::oci::{Digest, Reference};
use crate::registry::{self, Remote};

/// The tags of `repository`, in byte order.
///
/// # Errors
/// [`crate::ErrorKind::NotFound`] when there is no such repository, [`crate::ErrorKind::Unauthorized`] and
/// [`crate::ErrorKind::Registry`] as [`Remote::tags`] gives them.
pub async fn tags(repository: &Reference, access: &Access) -> Result<Vec<String>> {
    Remote::new(repository, access.keychain.clone(), &access.options)?.tags().await
}

/// The repositories of the registry at `host`, in byte order.
///
/// # Errors
/// As [`registry::catalog`].
pub async fn catalog(host: &str, access: &Access) -> Result<Vec<String>> {
    registry::catalog(host, access.keychain.clone(), &access.options).await
}

/// Removes a tag from its registry, or with a digest alone a manifest and all its tags. Gives the digest of the
/// manifest; `None` when that is damaged.
///
/// # Errors
/// As [`Remote::delete`].
pub async fn delete(reference: &Reference, access: &Access) -> Result<Option<Digest>> {
    Remote::new(reference, access.keychain.clone(), &access.options)?.delete(reference).await
}
