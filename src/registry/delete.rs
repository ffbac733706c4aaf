//! Removing from a registry: a tag, or a manifest with every tag that points at it. A registry that cannot do the
//! former is never asked for the latter in its place.
//!
//! OCI distribution-spec v1.1.1, "Content Management":
//! <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#content-management>.

use reqwest::{Method, StatusCode};

use super::auth::Access;
use super::client::Call;
use super::failure::Failure;
use super::{Remote, Repository};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Digest, Document, Reference};

/// What a registry did with a request to remove something.
enum Answer {
    Removed,
    Absent,
}

impl Remote {
    /// Removes the tag of `reference`; when it names a digest alone, that manifest and every tag that points at it.
    /// Gives the manifest's digest, or `None` when what the tag points at is damaged.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it is not there, or the tag points at another manifest than the digest that
    /// stands with it; [`ErrorKind::Registry`] when the registry does not remove such things.
    pub async fn delete(&self, reference: &Reference) -> Result<Option<Digest>> {
        self.require_own(reference)?;
        let name = match (reference.tag(), reference.digest()) {
            (Some(tag), _) => tag.to_owned(),
            (None, Some(digest)) => digest.to_string(),
            (None, None) => return Err(absent(reference)),
        };
        let manifest = match self.0.manifest(&name).await {
            Err(damaged) if damaged.kind() == ErrorKind::Corrupt => None,
            manifest => Some(manifest?.ok_or_else(|| absent(reference))?),
        };
        let found = manifest.as_ref().map(|(target, _)| target.digest);
        if let (Some(found), Some(_)) = (found, reference.tag())
            && !reference.admits(&found)
        {
            let message = format!("`{}` points at another manifest, `{found}`", reference.without_digest());
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        match self.0.client.persist(|| self.0.remove_manifest(&name)).await {
            Ok(Answer::Removed) => {}
            // Somebody else removed it, or our own attempt whose answer was lost.
            Ok(Answer::Absent) if self.0.manifest(&name).await.is_ok_and(|left| left.is_none()) => {}
            Ok(Answer::Absent) => return Err(refused(reference, found)),
            Err(failure) if is_unsupported(&failure) => {
                return Err(refused(reference, found).caused_by(Error::from(failure)));
            }
            Err(failure) => return Err(failure.into()),
        }
        // A tag that goes leaves the manifest, and what that refers to.
        if let (None, Some((target, bytes))) = (reference.tag(), manifest)
            && let Ok(document) = Document::parse(&bytes, &target.media_type)
            && let Some(subject) = document.subject()
        {
            self.0.unlist_referrer(&subject.digest, &target.digest).await?;
        }
        Ok(found)
    }
}

impl Repository {
    async fn remove_manifest(&self, name: &str) -> Result<Answer, Failure> {
        let call = Call::new(Method::DELETE, self.url(&format!("manifests/{name}")).await?, Access::Push);
        let response = self.client.exchange(&call).await?;
        match response.status() {
            StatusCode::ACCEPTED | StatusCode::OK | StatusCode::NO_CONTENT => Ok(Answer::Removed),
            StatusCode::NOT_FOUND => Ok(Answer::Absent),
            _ => Err(self.client.refused(&call, response).await),
        }
    }
}

/// Whether it is the request that the registry does not know, and not who sends it: docker-registry 2.8 takes a tag for
/// a digest that is wrong.
fn is_unsupported(failure: &Failure) -> bool {
    let unsupported = [StatusCode::BAD_REQUEST, StatusCode::METHOD_NOT_ALLOWED, StatusCode::NOT_IMPLEMENTED];
    failure.has_code("UNSUPPORTED") || failure.status().is_some_and(|status| unsupported.contains(&status))
}

fn absent(reference: &Reference) -> Error {
    Error::new(ErrorKind::NotFound, format!("There is no model `{reference}`"))
}

fn refused(reference: &Reference, digest: Option<Digest>) -> Error {
    if reference.tag().is_none() {
        let message = format!("The registry does not remove the manifest `{reference}`");
        return Error::new(ErrorKind::Registry, message).hint(
            "deletion may be switched off there: docker-registry needs `REGISTRY_STORAGE_DELETE_ENABLED=true`, \
             `kiln serve` `--allow-delete`",
        );
    }
    let message = format!("The registry does not remove the tag `{reference}` alone");
    let error = Error::new(ErrorKind::Registry, message);
    match digest {
        Some(digest) => error.hint(format!(
            "`kiln rm --remote {}@{digest}` removes its manifest, and every other tag of that",
            reference.repository()
        )),
        None => error,
    }
}
