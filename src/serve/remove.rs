//! Deletion, where it is allowed: names go, and content that no name needs.

use axum::http::StatusCode;

use super::refusal::{Code, Refusal};
use super::{Answer, Exchange, Served, reply};
use crate::oci::{Digest, Reference};
use crate::storage::Removal;

impl<S: Served> Exchange<'_, S> {
    /// DELETE of a manifest or a tag: the names go, the content stays for whoever shares it.
    pub(super) async fn remove_manifest(&self, reference: &Reference) -> Answer {
        if self.server.store.untag(reference).await? {
            return Ok(reply(StatusCode::ACCEPTED, []));
        }
        Err(Refusal::not_found(Code::ManifestUnknown, format!("Not in this registry: `{reference}`")).into())
    }

    /// DELETE of a blob, which is in all repositories or in none.
    pub(super) async fn remove_blob(&self, digest: &Digest) -> Answer {
        match self.server.store.remove(digest).await? {
            Removal::Removed => Ok(reply(StatusCode::ACCEPTED, [])),
            Removal::Absent => {
                Err(Refusal::not_found(Code::BlobUnknown, format!("Not in this registry: `{digest}`")).into())
            }
            Removal::Needed => {
                let message = format!("A manifest needs `{digest}`");
                Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported, message).into())
            }
        }
    }
}
