//! Uploads: blobs in one piece and in chunks, and the sessions in which they grow.

use axum::http::Method;
use axum::http::header::{CONTENT_RANGE, CONTENT_TYPE, TRANSFER_ENCODING};
use axum::response::Response;
use bytes::Bytes;

use crate::contents;
use crate::fixture::{BrokenUpload, Upload};
use crate::registry::{Answer, Exchange, OCTETS};
use crate::reply::{Refusal, reply};

impl Exchange {
    pub(crate) async fn begin_upload(&mut self, name: &str) -> Answer {
        let digest = self.parameter("digest").map(str::to_owned);
        let length = self.content_length()?;
        if length != 0 && digest.is_none() {
            return Err(Refusal::new(400, "SIZE_INVALID", "a POST without a digest has no body"));
        }
        if let (Some(digest), Some(from)) = (self.parameter("mount"), self.parameter("from"))
            && self.shared.options.mounts
        {
            let mut state = self.shared.state();
            let blob = state.repositories.get(from).and_then(|repository| repository.blobs.get(digest)).cloned();
            if let Some(blob) = blob {
                let repository = state.repositories.entry(name.to_owned()).or_default();
                repository.blobs.insert(digest.to_owned(), blob);
                return Ok(self.created(name, digest));
            }
        }
        if let Some(digest) = digest.filter(|_| self.shared.options.single_post) {
            let bytes = self.body.all(usize::MAX).await?;
            return self.keep_blob(name, &digest, bytes, length);
        }
        let mut state = self.shared.state();
        state.uploads_begun += 1;
        let id = format!("session-{}", state.uploads_begun);
        let upload = Upload { repository: name.to_owned(), ..Upload::default() };
        let mut response = self.progress(202, &id, &upload);
        if let Some(min_chunk) = self.shared.options.min_chunk {
            response.headers_mut().insert("oci-chunk-min-length", min_chunk.into());
        }
        state.uploads.insert(id, upload);
        Ok(response)
    }

    /// Like distribution 3, answers an old `Location` too, with the new one, unless it is told not to.
    pub(crate) fn upload_status(&self, name: &str, id: &str) -> Answer {
        self.upload(name, id, None)?;
        let state = self.shared.state();
        let upload = state.uploads.get(id).ok_or_else(unknown_upload)?;
        if !self.shared.options.old_status && self.parameter("_state") != Some(upload.turn.to_string().as_str()) {
            return Err(Refusal::new(404, "BLOB_UPLOAD_INVALID", "not the latest Location"));
        }
        Ok(self.progress(204, id, upload))
    }

    pub(crate) async fn patch_upload(&mut self, name: &str, id: &str) -> Answer {
        let offset = self.upload(name, id, self.parameter("_state"))?;
        let end = self.check_chunk(id, offset)?;
        self.require_octets()?;
        let expected = end.map(|end| end - offset);
        if let Some((max, length)) = self.shared.options.max_chunk.zip(expected.or(Some(u64::MAX)))
            && length > max
        {
            return Err(Refusal::new(416, "REQUESTED_RANGE_NOT_SATISFIABLE", format!("chunks end at {max} bytes")));
        }
        if self.shared.state().uploads.get(id).is_some_and(|upload| upload.short_chunk) {
            return Err(Refusal::new(400, "SIZE_INVALID", "a chunk before this one was too short"));
        }
        self.append(id).await?;
        let mut state = self.shared.state();
        let min_chunk = self.shared.options.min_chunk;
        let upload = state.uploads.get_mut(id).ok_or_else(unknown_upload)?;
        upload.short_chunk = min_chunk.is_some_and(|min| self.body.seen() < min);
        Ok(self.progress(202, id, upload))
    }

    pub(crate) async fn finish_upload(&mut self, name: &str, id: &str) -> Answer {
        let digest = self.parameter("digest").map(str::to_owned);
        let digest = digest.ok_or_else(|| Refusal::new(400, "DIGEST_INVALID", "no digest is named"))?;
        let offset = self.upload(name, id, self.parameter("_state"))?;
        let length = self.content_length()?;
        if length > 0 {
            self.require_octets()?;
            self.check_chunk(id, offset)?;
        }
        self.append(id).await?;
        let upload = self.shared.state().uploads.remove(id).ok_or_else(unknown_upload)?;
        self.keep_blob(name, &digest, upload.bytes.into(), offset + length)
    }

    /// Checks a chunk's headers against the session; returns the offset after it, when they tell.
    fn check_chunk(&self, id: &str, offset: u64) -> Result<Option<u64>, Refusal> {
        let invalid = |message: &str| Refusal::new(400, "BLOB_UPLOAD_INVALID", message);
        let streamed = self.parts.headers.contains_key(TRANSFER_ENCODING);
        let length = if streamed { None } else { Some(self.content_length()?) };
        let Some(range) = self.header(CONTENT_RANGE) else {
            // A body in one piece needs no range; the second chunk of several does.
            return if offset == 0 || self.parts.method == Method::PUT {
                Ok(length.map(|length| offset + length))
            } else {
                Err(invalid("a chunk without Content-Range"))
            };
        };
        let bounds = range.split_once('-').and_then(|(first, last)| {
            let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?;
            Some((digits(first)?, digits(last)?))
        });
        let (first, last): (u64, u64) = bounds.ok_or_else(|| invalid("Content-Range is not `<start>-<end>`"))?;
        if length.is_some_and(|length| last.checked_sub(first).is_none_or(|span| span + 1 != length)) {
            return Err(invalid("Content-Range and Content-Length disagree"));
        }
        if first != offset && !self.shared.options.appends {
            let state = self.shared.state();
            let upload = state.uploads.get(id).ok_or_else(unknown_upload)?;
            return Err(Refusal::new(416, "RANGE_INVALID", format!("the next chunk begins at {offset}"))
                .with("location", self.upload_location(id, upload))
                .with("range", written(upload)));
        }
        Ok(Some(last + 1))
    }

    /// Appends the body to the session, byte for byte as it arrives.
    async fn append(&mut self, id: &str) -> Result<(), Refusal> {
        if let Some(upload) = self.shared.state().uploads.get_mut(id) {
            // Whatever comes of the body, the `Location` it was sent to is used up.
            upload.turn += 1;
        }
        // A session that does not survive a broken body is kept aside while there is one.
        let mut aside = match self.shared.options.broken_upload {
            BrokenUpload::Keep => None,
            BrokenUpload::Discard => Some(self.shared.state().uploads.remove(id).ok_or_else(unknown_upload)?),
        };
        while let Some(bytes) = self.body.next().await {
            match &mut aside {
                Some(upload) => upload.bytes.extend_from_slice(&bytes),
                None => {
                    let mut state = self.shared.state();
                    let upload = state.uploads.get_mut(id).ok_or_else(unknown_upload)?;
                    upload.bytes.extend_from_slice(&bytes);
                }
            }
        }
        if self.body.is_broken() {
            return Err(Refusal::new(400, "BLOB_UPLOAD_INVALID", "the body broke off"));
        }
        if let Some(upload) = aside {
            self.shared.state().uploads.insert(id.to_owned(), upload);
        }
        Ok(())
    }

    fn keep_blob(&self, name: &str, digest: &str, bytes: Bytes, length: u64) -> Answer {
        if self.body.is_broken() {
            return Err(Refusal::new(400, "BLOB_UPLOAD_INVALID", "the body broke off"));
        }
        if !contents::is_digest(digest) {
            return Err(Refusal::new(400, "DIGEST_INVALID", "not a sha256 digest"));
        }
        if bytes.len() as u64 != length {
            return Err(Refusal::new(400, "SIZE_INVALID", format!("{} bytes came, not {length}", bytes.len())));
        }
        let actual = contents::digest(&bytes);
        if actual != digest {
            return Err(Refusal::new(400, "DIGEST_INVALID", format!("the bytes have digest {actual}")));
        }
        let mut state = self.shared.state();
        state.repositories.entry(name.to_owned()).or_default().blobs.insert(digest.to_owned(), bytes);
        Ok(self.created(name, digest))
    }

    /// How many bytes the session has; checks that it is this repository's and, when `turn` is what
    /// matters, that the `Location` is the latest one.
    pub(crate) fn upload(&self, name: &str, id: &str, turn: Option<&str>) -> Result<u64, Refusal> {
        let state = self.shared.state();
        let upload = state.uploads.get(id).filter(|upload| upload.repository == name).ok_or_else(unknown_upload)?;
        let writes = [Method::PATCH, Method::PUT].contains(&self.parts.method);
        if writes && turn != Some(upload.turn.to_string().as_str()) {
            return Err(Refusal::new(416, "BLOB_UPLOAD_INVALID", "not the latest Location")
                .with("location", self.upload_location(id, upload))
                .with("range", written(upload)));
        }
        Ok(upload.bytes.len() as u64)
    }

    fn progress(&self, status: u16, id: &str, upload: &Upload) -> Response {
        let location = self.upload_location(id, upload);
        let range = written(upload);
        let headers = [("location", location.as_str()), ("range", range.as_str()), ("docker-upload-uuid", id)];
        reply(status, &headers, Bytes::new())
    }

    fn upload_location(&self, id: &str, upload: &Upload) -> String {
        self.location(&format!("/v2/{}/blobs/uploads/{id}?_state={}", upload.repository, upload.turn))
    }

    fn created(&self, name: &str, digest: &str) -> Response {
        let location = self.location(&format!("/v2/{name}/blobs/{digest}"));
        reply(201, &[("location", &location), ("docker-content-digest", digest)], Bytes::new())
    }

    fn require_octets(&self) -> Result<(), Refusal> {
        match self.header(CONTENT_TYPE) {
            Some(OCTETS) => Ok(()),
            _ => Err(Refusal::new(415, "BLOB_UPLOAD_INVALID", format!("Content-Type is not {OCTETS}"))),
        }
    }
}

fn unknown_upload() -> Refusal {
    Refusal::new(404, "BLOB_UPLOAD_UNKNOWN", "no such upload")
}

/// The session's `Range`: like real registries, `0-0` for nothing too.
fn written(upload: &Upload) -> String {
    format!("0-{}", upload.bytes.len().saturating_sub(1))
}
