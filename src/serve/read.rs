//! Pull: blobs and parts of them, manifests.

use axum::body::Body;
use axum::http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use axum::http::{HeaderValue, Method, StatusCode};
use futures_util::TryStreamExt as _;

use super::refusal::{Code, Refusal};
use super::route::Part;
use super::{Answer, DOCKER_CONTENT_DIGEST, Exchange, OCTETS, Served, digest_value, reply, value};
use crate::oci::{Descriptor, Digest, MediaType, Reference};

impl<S: Served> Exchange<'_, S> {
    /// HEAD and GET of a blob, whole or in part. Its bytes are as the store has them: the client that
    /// keeps them checks them.
    pub(super) async fn blob(&self, digest: &Digest) -> Answer {
        let unknown = || Refusal::not_found(Code::BlobUnknown, format!("Not in this registry: `{digest}`"));
        let size = self.server.store.size_of(digest).await?.ok_or_else(unknown)?;
        let (status, start, length) = match Part::parse(self.header(RANGE), size) {
            Part::Range { first, length } if self.parts.method == Method::GET => {
                (StatusCode::PARTIAL_CONTENT, first, length)
            }
            Part::Outside if self.parts.method == Method::GET => {
                let message = format!("The content has only {size} bytes");
                return Err(Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, Code::SizeInvalid, message)
                    .with(CONTENT_RANGE, value(format!("bytes */{size}")))
                    .into());
            }
            _ => (StatusCode::OK, 0, size),
        };
        let mut response = reply(
            status,
            [
                (CONTENT_LENGTH, length.into()),
                (CONTENT_TYPE, OCTETS),
                (ACCEPT_RANGES, HeaderValue::from_static("bytes")),
                (DOCKER_CONTENT_DIGEST, digest_value(digest)),
            ],
        );
        if status == StatusCode::PARTIAL_CONTENT {
            let range = format!("bytes {start}-{}/{size}", start + length - 1);
            response.headers_mut().insert(CONTENT_RANGE, value(range));
        }
        if self.parts.method == Method::GET {
            let target = Descriptor::new(MediaType::KILN_FILE, *digest, size);
            let stream = self.server.store.fetch(&target, start..start + length).await?.ok_or_else(unknown)?;
            let (progress, digest) = (self.server.options.progress.clone(), *digest);
            let noted = stream.inspect_err(move |error| {
                progress.note(format!("Sending `{digest}` broke off: {}", error.chain()));
            });
            *response.body_mut() = Body::from_stream(noted);
        }
        Ok(response)
    }

    /// HEAD and GET of a manifest, in its own type whatever `Accept` says: there is no other form of it.
    pub(super) async fn manifest(&self, reference: &Reference) -> Answer {
        let (target, bytes) =
            self.server.store.resolve(reference).await?.ok_or_else(|| {
                Refusal::not_found(Code::ManifestUnknown, format!("Not in this registry: `{reference}`"))
            })?;
        let mut response = reply(
            StatusCode::OK,
            [
                (CONTENT_LENGTH, bytes.len().into()),
                (CONTENT_TYPE, value(target.media_type.as_str())),
                (DOCKER_CONTENT_DIGEST, digest_value(&target.digest)),
            ],
        );
        if self.parts.method == Method::GET {
            *response.body_mut() = Body::from(bytes);
        }
        Ok(response)
    }
}
