//! Push: blobs in one request or in several, manifests after them.

use axum::http::header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE, TRANSFER_ENCODING};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;

use super::refusal::{Code, Failure, Refusal};
use super::route::{Repository, chunk_range, digest};
use super::upload::{Session, Writer, require_room};
use super::{Answer, DOCKER_CONTENT_DIGEST, Exchange, Served, digest_value, reply, value};
use crate::error::{Error, ErrorKind};
use crate::oci::{Descriptor, Digest, Document, MAX_MANIFEST_SIZE, MediaType, Reference};
use crate::storage::Staged as _;

const DOCKER_UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const OCI_CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// The length of chunk below which requests cost more than bytes. Shorter ones are taken all the same.
const CHUNK_MIN_LENGTH: u64 = 64 << 10;

/// How much of a manifest that is too large is still taken in, so that the client, which sends it all
/// before it listens, hears why.
const PATIENCE: u64 = 8 * MAX_MANIFEST_SIZE;

impl<S: Served> Exchange<'_, S> {
    /// POST: a mount of what is here already, a whole blob, or the beginning of a session. Ollama names
    /// a digest here and sends the blob later; when that is here already, it hears so at once.
    pub(super) async fn begin_upload(&self, repository: &Repository) -> Answer {
        let mount = self.parameter("mount");
        if let Some(announced) = mount.or(self.parameter("digest")) {
            let announced = digest(announced)?;
            let body =
                self.content_length().map_or_else(|| self.header(TRANSFER_ENCODING).is_some(), |length| length > 0);
            if mount.is_none() && (body || announced == announced.algorithm().digest(b"")) {
                return self.store_body(repository, &announced).await;
            }
            // Blobs are shared: wherever it is mounted from, it is here or it is not.
            if self.server.store.size_of(&announced).await?.is_some() {
                return Ok(created(repository, &announced));
            }
        }
        let staged = self.server.store.stage().await?;
        let id = self.server.uploads.begin(repository.name(), staged).ok_or_else(|| {
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, Code::TooManyRequests, "Too many uploads are under way")
        })?;
        let mut response = progress(StatusCode::ACCEPTED, repository, &id, 0);
        response.headers_mut().insert(OCI_CHUNK_MIN_LENGTH, CHUNK_MIN_LENGTH.into());
        Ok(response)
    }

    /// GET of a session: how far it is.
    pub(super) fn upload_status(&self, repository: &Repository, id: &str) -> Answer {
        let written = self.session(repository, id)?.written();
        Ok(progress(StatusCode::NO_CONTENT, repository, id, written))
    }

    /// PATCH of a session: its next chunk, or all of it in one stream. What arrived before a connection
    /// broke stays, and GET says how much that is.
    pub(super) async fn continue_upload(&self, repository: &Repository, id: &str) -> Answer {
        let session = self.session(repository, id)?;
        let writer = self.append(&session, repository, id).await?;
        Ok(progress(StatusCode::ACCEPTED, repository, id, writer.written()))
    }

    /// PUT of a session: the digest, with the last chunk or the whole blob if nothing came before. Of a
    /// whole blob that breaks off nothing stays, for a client that sends it again. Chunks of another
    /// digest end the session: there is nothing to go on from. A broken connection does not.
    pub(super) async fn finish_upload(&self, repository: &Repository, id: &str) -> Answer {
        let missing = || Refusal::bad_request(Code::DigestInvalid, "An upload ends with `digest=`");
        let digest = digest(self.parameter("digest").ok_or_else(missing)?)?;
        let session = self.session(repository, id)?;
        if session.written() == 0 && self.header(CONTENT_RANGE).is_none() {
            let created = self.store_body(repository, &digest).await?;
            self.server.uploads.end(repository.name(), id);
            return Ok(created);
        }
        let writer = self.append(&session, repository, id).await?;
        let staged = writer.into_staged().ok_or_else(unknown_upload)?;
        self.server.uploads.end(repository.name(), id);
        detached(async move { staged.commit(&digest).await.map_err(refuse_content) }).await?;
        Ok(created(repository, &digest))
    }

    /// DELETE of a session.
    pub(super) fn cancel_upload(&self, repository: &Repository, id: &str) -> Answer {
        if self.server.uploads.end(repository.name(), id) {
            Ok(reply(StatusCode::NO_CONTENT, []))
        } else {
            Err(unknown_upload().into())
        }
    }

    /// PUT of a manifest under a tag or its digest, once everything it needs is here.
    pub(super) async fn put_manifest(&self, repository: &Repository, reference: &Reference) -> Answer {
        let invalid = |message: String| Refusal::bad_request(Code::ManifestInvalid, message);
        let missing = |digest: &Digest| {
            Refusal::bad_request(Code::ManifestBlobUnknown, format!("Not in this registry: `{digest}`"))
        };
        // Only so many at once: each is read into memory, and is several times as large when parsed.
        let _permit = self.server.large.acquire().await;
        let bytes = self.small_body().await?;
        let media_type = self.header(CONTENT_TYPE).map(MediaType::parse);
        let media_type = media_type.ok_or_else(|| invalid("A manifest is sent with its `Content-Type`".to_owned()))?;
        let document = Document::parse(&bytes, &media_type).map_err(|error| invalid(error.to_string()))?;
        let algorithm = reference.digest().map(Digest::algorithm).unwrap_or_default();
        let target = Descriptor::new(media_type, algorithm.digest(&bytes), bytes.len() as u64);
        if !reference.admits(&target.digest) {
            let message = format!("The digest of the manifest is `{}`", target.digest);
            return Err(Refusal::bad_request(Code::DigestInvalid, message).into());
        }
        for needed in document.needs() {
            match self.server.store.size_of(&needed.digest).await? {
                Some(size) if size == needed.size => {}
                Some(size) => {
                    return Err(invalid(format!("`{}` has {size} bytes, not {}", needed.digest, needed.size)).into());
                }
                None => return Err(missing(&needed.digest).into()),
            }
        }
        self.server.store.tag(reference, &target, &bytes).await.map_err(|error| match error.kind() {
            // It went a moment ago.
            ErrorKind::NotFound => Refusal::bad_request(Code::ManifestBlobUnknown, error.to_string()).into(),
            _ => Failure::from(error),
        })?;
        let subject = document.subject().map(|subject| subject.digest);
        self.server.subjects.remember(target.digest, subject);
        let location = value(format!("/v2/{}/manifests/{}", repository.name(), target.digest));
        let digest = digest_value(&target.digest);
        let mut response = reply(StatusCode::CREATED, [(LOCATION, location), (DOCKER_CONTENT_DIGEST, digest)]);
        if let Some(subject) = subject {
            response.headers_mut().insert(OCI_SUBJECT, digest_value(&subject));
        }
        Ok(response)
    }

    fn session(&self, repository: &Repository, id: &str) -> Result<Session<S::Staged>, Refusal> {
        self.server.uploads.find(repository.name(), id).ok_or_else(unknown_upload)
    }

    /// Appends the body to what a session has, if it belongs there.
    async fn append(
        &self,
        session: &Session<S::Staged>,
        repository: &Repository,
        id: &str,
    ) -> Result<Writer<S::Staged>, Failure> {
        let mut writer = session.writer().await;
        let written = writer.written();
        if let Some(header) = self.header(CONTENT_RANGE) {
            let wrong = |message: &str| Refusal::bad_request(Code::BlobUploadInvalid, message);
            let (start, length) = chunk_range(header).ok_or_else(|| wrong("Content-Range is not `<first>-<last>`"))?;
            if self.content_length().is_some_and(|actual| actual != length) {
                return Err(wrong("Content-Range and Content-Length disagree").into());
            }
            if start != written {
                let message = format!("The next chunk begins at {written}");
                let refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, Code::BlobUploadInvalid, message);
                return Err(refusal.with(LOCATION, location(repository, id)).with(RANGE, range(written)).into());
            }
        }
        let Some(body) = self.body.take() else { return Ok(writer) };
        let max = self.server.options.max_blob;
        detached(async move {
            writer.append(body, max).await.map_err(refuse_content)?.ok_or_else(unknown_upload)?;
            Ok(writer)
        })
        .await
    }

    /// Stores the body as a blob.
    async fn store_body(&self, repository: &Repository, digest: &Digest) -> Answer {
        let mut staged = self.server.store.stage().await?;
        let max = self.server.options.max_blob;
        if let Some(mut body) = self.body.take() {
            while let Some(bytes) = body.next().await {
                let bytes = bytes.map_err(refuse_content)?;
                require_room(staged.written(), bytes.len(), max).map_err(refuse_content)?;
                staged.append(bytes).await?;
            }
        }
        staged.commit(digest).await.map_err(refuse_content)?;
        Ok(created(repository, digest))
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

/// Does `work` on a session to its end, even when the connection that asked for it breaks: what half an
/// answer had written would be lost with it.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    let ended = tokio::spawn(work).await;
    ended.unwrap_or_else(|cause| {
        Err(Error::new(ErrorKind::Unexpected, "A task of the server ended early").caused_by(cause).into())
    })
}

/// Tells what is wrong with a body from what is wrong with the store.
fn refuse_content(error: Error) -> Failure {
    match error.kind() {
        ErrorKind::Corrupt => Refusal::bad_request(Code::DigestInvalid, error.to_string()).into(),
        ErrorKind::Registry => Refusal::bad_request(Code::BlobUploadInvalid, error.to_string()).into(),
        ErrorKind::Usage => Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, Code::SizeInvalid, error.to_string()).into(),
        _ => Failure::Failed(error),
    }
}

fn unknown_upload() -> Refusal {
    Refusal::not_found(Code::BlobUploadUnknown, "No such upload is under way")
}

fn created(repository: &Repository, digest: &Digest) -> Response {
    let location = value(format!("/v2/{}/blobs/{digest}", repository.name()));
    reply(StatusCode::CREATED, [(LOCATION, location), (DOCKER_CONTENT_DIGEST, digest_value(digest))])
}

fn progress(status: StatusCode, repository: &Repository, id: &str, written: u64) -> Response {
    reply(status, [(LOCATION, location(repository, id)), (RANGE, range(written)), (DOCKER_UPLOAD_UUID, value(id))])
}

fn location(repository: &Repository, id: &str) -> HeaderValue {
    value(format!("/v2/{}/blobs/uploads/{id}", repository.name()))
}

/// What a session has. There is no way to write an empty range: like other registries, `0-0`.
fn range(written: u64) -> HeaderValue {
    value(format!("0-{}", written.saturating_sub(1)))
}
