//! Push: blobs in one request or in several, manifests after them.

use axum::http::header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::sync::MutexGuard;

use super::content::Spool;
use super::refusal::{Code, Failure, Refusal};
use super::route::{Repository, chunk_range, digest};
use super::upload::Session;
use super::{Answer, DOCKER_CONTENT_DIGEST, Exchange, digest_value, reply, value};
use crate::error::{Error, ErrorKind};
use crate::oci::{Descriptor, Digest, MAX_MANIFEST_SIZE, Manifest, MediaType, Reference};
use crate::storage::{Body, Catalog, Push, Pushed, Verifier};

const DOCKER_UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// How much of a manifest that is too large is still taken in, so that the client, which sends it all
/// before it listens, hears why.
const PATIENCE: u64 = 8 * MAX_MANIFEST_SIZE;

impl<S> Exchange<'_, S>
where
    S: Push + Catalog + 'static,
{
    /// POST: a mount of what is here already, a whole blob, or the beginning of a session. Ollama names
    /// a digest here and sends the blob later; when that is here already, it hears so at once.
    pub(super) async fn begin_upload(&self, repository: &Repository) -> Answer {
        let mount = self.parameter("mount");
        if let Some(announced) = mount.or(self.parameter("digest")) {
            let (announced, length) = (digest(announced)?, self.content_length().unwrap_or(0));
            let comes_along = length > 0 || announced == Digest::of(b"");
            if mount.is_none() && comes_along {
                return self.store_body(repository, &announced, length).await;
            }
            // Blobs are shared: wherever it is mounted from, it is here or it is not.
            if self.server.store.size_of(&announced).await?.is_some() {
                return Ok(created(repository, &announced));
            }
        }
        let id = self.server.uploads.begin(repository.name()).await?.ok_or_else(|| {
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, Code::TooManyRequests, "Too many uploads are under way")
        })?;
        Ok(progress(StatusCode::ACCEPTED, repository, &id, 0))
    }

    /// GET of a session: how far it is.
    pub(super) async fn upload_status(&self, repository: &Repository, id: &str) -> Answer {
        let session = self.session(repository, id)?;
        let written = session.spool.lock().await.written();
        Ok(progress(StatusCode::NO_CONTENT, repository, id, written))
    }

    /// PATCH of a session: its next chunk, or all of it in one stream. What arrived before a connection
    /// broke stays, and GET says how much that is.
    pub(super) async fn continue_upload(&self, repository: &Repository, id: &str) -> Answer {
        let session = self.session(repository, id)?;
        let mut spool = session.spool.lock().await;
        self.append(&mut spool, repository, id).await?;
        Ok(progress(StatusCode::ACCEPTED, repository, id, spool.written()))
    }

    /// PUT of a session: the digest, with the last chunk or the whole blob if nothing came before.
    pub(super) async fn finish_upload(&self, repository: &Repository, id: &str) -> Answer {
        let missing = || Refusal::bad_request(Code::DigestInvalid, "An upload ends with `digest=`");
        let digest = digest(self.parameter("digest").ok_or_else(missing)?)?;
        let session = self.session(repository, id)?;
        let mut spool = session.spool.lock().await;
        let stored = match self.content_length() {
            // A whole blob goes straight into the store.
            Some(length) if length > 0 && spool.written() == 0 && self.header(CONTENT_RANGE).is_none() => {
                self.store_body(repository, &digest, length).await
            }
            _ => {
                self.append(&mut spool, repository, id).await?;
                self.store(repository, &digest, spool.written(), &*spool).await.map(|(response, _)| response)
            }
        };
        // After wrong bytes there is nothing to go on from; after a broken connection there is.
        let over = match &stored {
            Ok(_) => true,
            Err(Failure::Refused(refusal)) => refusal.code() == Code::DigestInvalid,
            Err(Failure::Failed(_)) => false,
        };
        if over {
            self.server.uploads.end(repository.name(), id);
        }
        stored
    }

    /// DELETE of a session.
    pub(super) fn cancel_upload(&self, repository: &Repository, id: &str) -> Answer {
        if self.server.uploads.end(repository.name(), id) {
            Ok(reply(StatusCode::NO_CONTENT, []))
        } else {
            Err(unknown_upload().into())
        }
    }

    /// PUT of a manifest under a tag or its digest, once every blob it names is here.
    pub(super) async fn put_manifest(&self, repository: &Repository, reference: &Reference) -> Answer {
        let invalid = |message: String| Refusal::bad_request(Code::ManifestInvalid, message);
        let bytes = self.small_body().await?;
        let manifest = Manifest::parse(&bytes).map_err(|error| invalid(error.to_string()))?;
        let sent_as = self.header(CONTENT_TYPE).map(MediaType::parse);
        if sent_as.as_ref() != Some(&manifest.media_type) {
            let sent_as = sent_as.map_or("nothing".to_owned(), |sent_as| format!("`{sent_as}`"));
            let message = format!("The manifest says it is `{}`, Content-Type says {sent_as}", manifest.media_type);
            return Err(invalid(message).into());
        }
        let target = Descriptor::of(manifest.media_type.clone(), &bytes);
        if !reference.admits(&target.digest) {
            let message = format!("The digest of the manifest is `{}`", target.digest);
            return Err(Refusal::bad_request(Code::DigestInvalid, message).into());
        }
        for blob in manifest.blobs() {
            match self.server.store.size_of(&blob.digest).await? {
                Some(size) if size == blob.size => {}
                Some(size) => {
                    return Err(invalid(format!("`{}` has {size} bytes, not {}", blob.digest, blob.size)).into());
                }
                None => {
                    let message = format!("Not in this registry: `{}`", blob.digest);
                    return Err(Refusal::bad_request(Code::ManifestBlobUnknown, message).into());
                }
            }
        }
        self.server.store.tag(reference, &target, &bytes).await?;
        let location = value(format!("/v2/{}/manifests/{}", repository.name(), target.digest));
        let digest = digest_value(&target.digest);
        Ok(reply(StatusCode::CREATED, [(LOCATION, location), (DOCKER_CONTENT_DIGEST, digest)]))
    }

    fn session(&self, repository: &Repository, id: &str) -> Result<Session, Refusal> {
        self.server.uploads.find(repository.name(), id).ok_or_else(unknown_upload)
    }

    /// Appends the body to what a session has, if it belongs there.
    async fn append(
        &self,
        spool: &mut MutexGuard<'_, Spool>,
        repository: &Repository,
        id: &str,
    ) -> Result<(), Failure> {
        let written = spool.written();
        if let Some(header) = self.header(CONTENT_RANGE) {
            let wrong = |message: &str| Refusal::bad_request(Code::BlobUploadInvalid, message);
            let (start, length) = chunk_range(header).ok_or_else(|| wrong("Content-Range is not `<first>-<last>`"))?;
            if self.content_length().is_some_and(|actual| actual != length) {
                return Err(wrong("Content-Range and Content-Length disagree").into());
            }
            if start != written {
                let message = format!("The next chunk begins at {written}");
                let refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, Code::BlobUploadInvalid, message);
                return Err(refusal.with(LOCATION, session(repository, id)).with(RANGE, range(written)).into());
            }
        }
        let Some(mut body) = self.body.take() else { return Ok(()) };
        while let Some(bytes) = body.next().await {
            spool.append(bytes.map_err(refuse_content)?).await?;
        }
        Ok(())
    }

    /// Stores the body, of `length` bytes, as a blob while it arrives.
    async fn store_body(&self, repository: &Repository, digest: &Digest, length: u64) -> Answer {
        let (response, pushed) = self.store(repository, digest, length, &self.body).await?;
        // A store that has the blob does not read the body, but the client sends it and counts on an
        // answer about what it sent.
        if let Some(mut rest) = self.body.take().filter(|_| pushed == Pushed::AlreadyPresent) {
            let mut verifier = Verifier::new(&blob(digest, length));
            while let Some(bytes) = rest.next().await {
                bytes.and_then(|bytes| verifier.update(&bytes)).map_err(refuse_content)?;
            }
            verifier.finish().map_err(refuse_content)?;
        }
        Ok(response)
    }

    /// Stores `body` as a blob.
    async fn store(
        &self,
        repository: &Repository,
        digest: &Digest,
        length: u64,
        body: &dyn Body,
    ) -> Result<(Response, Pushed), Failure> {
        let pushed = self.server.store.push(&blob(digest, length), body).await.map_err(refuse_content)?;
        Ok((created(repository, digest), pushed))
    }

    /// The body of a manifest.
    async fn small_body(&self) -> Result<Bytes, Failure> {
        let (mut all, mut seen) = (BytesMut::new(), 0);
        let Some(mut body) = self.body.take() else { return Ok(Bytes::new()) };
        while let Some(bytes) = body.next().await {
            let bytes = bytes.map_err(refuse_content)?;
            seen += bytes.len() as u64;
            if seen <= MAX_MANIFEST_SIZE {
                all.extend_from_slice(&bytes);
            } else if seen > PATIENCE {
                break;
            }
        }
        if seen > MAX_MANIFEST_SIZE {
            let message = "A manifest has at most 4 MiB";
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, Code::ManifestInvalid, message).into());
        }
        Ok(all.freeze())
    }
}

/// Tells what is wrong with a body from what is wrong with the store.
fn refuse_content(error: Error) -> Failure {
    match error.kind() {
        ErrorKind::Corrupt => Refusal::bad_request(Code::DigestInvalid, error.to_string()).into(),
        ErrorKind::Registry => Refusal::bad_request(Code::BlobUploadInvalid, error.to_string()).into(),
        _ => Failure::Failed(error),
    }
}

fn unknown_upload() -> Refusal {
    Refusal::not_found(Code::BlobUploadUnknown, "No such upload is under way")
}

fn blob(digest: &Digest, length: u64) -> Descriptor {
    Descriptor::new(MediaType::KILN_FILE, *digest, length)
}

fn created(repository: &Repository, digest: &Digest) -> Response {
    let location = value(format!("/v2/{}/blobs/{digest}", repository.name()));
    reply(StatusCode::CREATED, [(LOCATION, location), (DOCKER_CONTENT_DIGEST, digest_value(digest))])
}

fn progress(status: StatusCode, repository: &Repository, id: &str, written: u64) -> Response {
    let location = session(repository, id);
    reply(status, [(LOCATION, location), (RANGE, range(written)), (DOCKER_UPLOAD_UUID, value(id))])
}

fn session(repository: &Repository, id: &str) -> HeaderValue {
    value(format!("/v2/{}/blobs/uploads/{id}", repository.name()))
}

/// What a session has. There is no way to write an empty range: like other registries, `0-0`.
fn range(written: u64) -> HeaderValue {
    value(format!("0-{}", written.saturating_sub(1)))
}
