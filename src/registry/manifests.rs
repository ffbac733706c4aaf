//! Manifests of one repository: small, kept in memory, and exactly the bytes the registry sent. What
//! it says about them (type, digest) is checked against the bytes: a tag promises no digest, and without
//! that of the registry a bit that flipped on the way would make another manifest.

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};

use super::Repository;
use super::auth::Access;
use super::bounded;
use super::client::Call;
use super::failure::Failure;
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::json;
use crate::oci::{Descriptor, Digest, Document, MAX_MANIFEST_SIZE, MAX_MANIFEST_VALUES, MediaType, Referrer};

/// Every kind of manifest: a registry may deny that it has one of a kind we did not name.
pub(super) const ACCEPTED: HeaderValue = HeaderValue::from_static(
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json",
);

/// The digest of the reply's content, of OCI distribution-spec v1.1.1, "Pulling manifests".
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The subject of a manifest that a registry has taken, if it lists referrers: OCI distribution-spec v1.1.1, "Pushing
/// Manifests with Subject".
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// A manifest and what the registry says that it is.
struct Reply {
    bytes: Bytes,
    media_type: Option<MediaType>,
    /// Without it, or with one of an algorithm that we do not know, nothing is promised.
    digest: Option<Digest>,
}

impl Repository {
    /// The manifest that the tag or digest `name` points at; `None` when there is none. Its digest is of the algorithm
    /// that `name`, or else the registry, has it by.
    pub(super) async fn manifest(&self, name: &str) -> Result<Option<(Descriptor, Bytes)>> {
        let reply = self.client.persist(|| self.manifest_reply(name)).await;
        let reply = reply.map_err(|failure| match failure.status() {
            Some(StatusCode::NOT_ACCEPTABLE) => {
                let message = format!("`{self}` has `{name}` in a form only that kiln does not know");
                Error::new(ErrorKind::Registry, message).caused_by(Error::from(failure))
            }
            _ => failure.into(),
        });
        let Some(Reply { bytes, media_type, digest }) = reply? else { return Ok(None) };
        let pinned = name.parse::<Digest>().ok();
        for (promised, whose) in [(pinned, "its name"), (digest, "the registry")] {
            let Some(promised) = promised else { continue };
            let actual = promised.algorithm().digest(&bytes);
            if actual != promised {
                let message = format!("has other bytes, of digest `{actual}`, than {whose} says, `{promised}`");
                return Err(self.corrupt(name, &message));
            }
        }
        let mut target = Descriptor::of(self.media_type(name, &bytes, media_type)?, &bytes);
        target.digest = pinned.or(digest).unwrap_or(target.digest);
        Ok(Some((target, bytes)))
    }

    async fn manifest_reply(&self, name: &str) -> Result<Option<Reply>, Failure> {
        let url = self.url(&format!("manifests/{name}")).await?;
        let call = Call::new(Method::GET, url, Access::Pull).header(ACCEPT, ACCEPTED);
        let response = self.client.exchange(&call).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(self.client.refused(&call, response).await),
        }
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let media_type = header(CONTENT_TYPE).map(MediaType::parse);
        let digest = response.headers().get(CONTENT_DIGEST).map(|told| self.promised(name, told)).transpose()?;
        let bytes = bounded::read(response, MAX_MANIFEST_SIZE, self.client.idle()).await;
        let bytes = bytes.map_err(|failure| match failure.is_too_large() {
            true => self.corrupt(name, "is larger than 4 MiB").caused_by(Error::from(failure)).into(),
            false => failure,
        })?;
        Ok(Some(Reply { bytes, media_type, digest: digest.flatten() }))
    }

    /// The digest that the registry promises for a manifest; `None` when it is of an algorithm that we do not know.
    fn promised(&self, name: &str, told: &HeaderValue) -> Result<Option<Digest>> {
        let text = String::from_utf8_lossy(told.as_bytes());
        match text.parse::<Digest>() {
            Ok(digest) => Ok(Some(digest)),
            Err(cause) if Digest::is_of_known_algorithm(&text) || !text.contains(':') => {
                Err(self.corrupt(name, &format!("was sent with the digest {}", quoted(&text))).caused_by(cause))
            }
            Err(_) => Ok(None),
        }
    }

    /// What the manifest is: what its bytes say, or, where they do not, what the registry says.
    fn media_type(&self, name: &str, bytes: &[u8], told: Option<MediaType>) -> Result<MediaType> {
        let value = json::parse_within(bytes, MAX_MANIFEST_VALUES)
            .map_err(|cause| self.corrupt(name, "is not JSON").caused_by(cause))?;
        let told = told.filter(MediaType::is_manifest_or_index);
        match (value["mediaType"].as_str().map(MediaType::parse), told) {
            (Some(written), Some(told)) if written != told => {
                Err(self.corrupt(name, &format!("is {} and was sent as `{told}`", quoted(written.as_str()))))
            }
            (Some(media_type), _) | (None, Some(media_type)) => Ok(media_type),
            (None, None) => Err(self.corrupt(name, "does not say what it is")),
        }
    }

    fn corrupt(&self, name: &str, what: &str) -> Error {
        Error::new(ErrorKind::Corrupt, format!("The manifest `{name}` of `{self}` {what}"))
    }

    /// Stores `bytes` under the tag or digest `name`, and has whoever looks for what refers to another manifest find it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the registry misses a blob that the manifest names.
    pub(super) async fn put_manifest(&self, name: &str, media_type: &MediaType, bytes: &Bytes) -> Result<()> {
        let listed = self.store_manifest(name, media_type, bytes).await?;
        if listed {
            return Ok(());
        }
        // A registry takes what it likes; what we cannot read has no subject that we know.
        let Ok(document) = Document::parse(bytes, media_type) else { return Ok(()) };
        let Some(subject) = document.subject() else { return Ok(()) };
        let digest = name.parse().unwrap_or_else(|_| Digest::of(bytes));
        let target = Descriptor::new(media_type.clone(), digest, bytes.len() as u64);
        self.list_referrer(&subject.digest, &Referrer::of(&target, &document)).await
    }

    /// Stores `bytes` under the tag or digest `name`; says whether the registry has seen their subject itself.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the registry misses a blob that the manifest names.
    pub(super) async fn store_manifest(&self, name: &str, media_type: &MediaType, bytes: &Bytes) -> Result<bool> {
        if bytes.len() as u64 > MAX_MANIFEST_SIZE {
            return Err(Error::new(ErrorKind::Registry, format!("The manifest for `{self}` is larger than 4 MiB")));
        }
        let content_type = HeaderValue::from_str(media_type.as_str()).map_err(|cause| {
            Error::new(ErrorKind::Usage, format!("Not a media type: {}", quoted(media_type.as_str()))).caused_by(cause)
        })?;
        let stored = self
            .client
            .persist(|| async {
                let url = self.url(&format!("manifests/{name}")).await?;
                let call = Call::new(Method::PUT, url, Access::Push)
                    .header(CONTENT_TYPE, content_type.clone())
                    .bytes(bytes.clone())
                    .closing();
                let response = self.client.exchange(&call).await?;
                match response.status() {
                    StatusCode::CREATED | StatusCode::OK | StatusCode::ACCEPTED => {
                        let told = response.headers().get(CONTENT_DIGEST).and_then(|told| told.to_str().ok());
                        let told = told.and_then(|told| told.parse::<Digest>().ok());
                        match told.filter(|told| told.algorithm().digest(bytes) != *told) {
                            // Who asks for the digest that was pushed would not find it.
                            Some(other) => {
                                Err(self.corrupt(name, &format!("was stored as another one, `{other}`")).into())
                            }
                            None => Ok(response.headers().contains_key(SUBJECT)),
                        }
                    }
                    _ => Err(self.client.refused(&call, response).await),
                }
            })
            .await;
        stored.map_err(|failure| match failure.status() {
            Some(StatusCode::UNSUPPORTED_MEDIA_TYPE) => {
                let error =
                    Error::new(ErrorKind::Registry, format!("`{self}` does not take a manifest of `{media_type}`"));
                let error = error.caused_by(Error::from(failure));
                match *media_type == MediaType::DOCKER_MANIFEST {
                    true => {
                        error.hint("it may take that of another dialect: `kiln create NAME SOURCE --dialect modelpack`")
                    }
                    false => error,
                }
            }
            _ => failure.into(),
        })
    }
}
