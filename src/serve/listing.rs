//! What there is: tags, repositories, and the manifests that refer to another.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, LINK};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::response::Response;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::refusal::{Code, Refusal};
use super::route::{Repository, repository_name};
use super::{Answer, Exchange, Served, reply, value};
use crate::error::Result;
use crate::json;
use crate::oci::{Descriptor, Digest, Document, MAX_MANIFEST_SIZE, MediaType, Referrer};

const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// How many manifests' subjects are remembered.
const MAX_REMEMBERED: usize = 1 << 16;

/// Which manifest each manifest refers to, as far as anyone asked: content by its digest does not change.
#[derive(Debug, Default)]
pub(super) struct Subjects(Mutex<HashMap<Digest, Option<Digest>>>);

impl Subjects {
    fn get(&self, manifest: &Digest) -> Option<Option<Digest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(manifest).copied()
    }

    /// Keeps what `manifest` refers to.
    pub(super) fn remember(&self, manifest: Digest, subject: Option<Digest>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(manifest, subject);
    }
}

impl<S: Served> Exchange<'_, S> {
    /// The tags of a repository in byte order: all of them, or at most `n` of those after `last`.
    pub(super) async fn tags(&self, repository: &Repository) -> Answer {
        let names = self.server.store.names().await?;
        let here = names.iter().map(|(name, _)| name).filter(|name| repository.has(name)).collect::<Vec<_>>();
        if here.is_empty() {
            let message = format!("Not in this registry: `{}`", repository.name());
            return Err(Refusal::not_found(Code::NameUnknown, message).into());
        }
        let tags = here.into_iter().filter_map(|name| name.tag().map(str::to_owned)).collect();
        let path = format!("/v2/{}/tags/list", repository.name());
        self.page(tags, &path, |tags| json!({ "name": repository.name(), "tags": tags }))
    }

    /// The repositories, as [`Self::tags`] lists tags.
    pub(super) async fn catalog(&self) -> Answer {
        let names = self.server.store.names().await?;
        let repositories = names.iter().map(|(name, _)| repository_name(name));
        // A port cannot stand in a path.
        let repositories = repositories.filter(|name| !name.contains(':')).collect();
        self.page(repositories, "/v2/_catalog", |names| json!({ "repositories": names }))
    }

    /// The part of `names` that was asked for.
    fn page(&self, names: BTreeSet<String>, path: &str, body: impl FnOnce(&[String]) -> Value) -> Answer {
        let limit = match self.parameter("n") {
            None => usize::MAX,
            Some(text) => text
                .parse()
                .map_err(|_| Refusal::bad_request(Code::Unsupported, format!("Not a number of names: `{text}`")))?,
        };
        let last = self.parameter("last").unwrap_or_default();
        let mut names = names.into_iter().filter(|name| name.as_str() > last).collect::<Vec<_>>();
        let more = names.len() > limit;
        names.truncate(limit);
        let mut response = self.listed(&body(&names), HeaderValue::from_static("application/json"));
        if let Some(last) = names.last().filter(|_| more) {
            response.headers_mut().insert(LINK, link(&format!("{path}?n={limit}&last={last}")));
        }
        Ok(response)
    }

    /// The manifests of a repository that refer to `subject`, whether that is there or not, as an index.
    /// A list of more than 4 MiB, the limit of manifests, comes in parts.
    pub(super) async fn referrers(&self, repository: &Repository, subject: &Digest) -> Answer {
        let _permit = self.server.large.acquire().await;
        let wanted = self.parameter("artifactType");
        let last = self.parameter("last").and_then(|last| last.parse::<Digest>().ok());
        let names = self.server.store.names().await?.into_iter();
        let here = names.filter(|(name, _)| repository.has(name)).map(|(_, target)| (target.digest, target));
        let (mut referrers, mut size, mut next) = (Vec::new(), 0, None);
        let mut previous = None;
        for (digest, target) in here.collect::<BTreeMap<_, _>>() {
            if last.is_some_and(|last| digest <= last) {
                continue;
            }
            let Some(found) = self.referrer(&target, subject).await? else { continue };
            if wanted.is_some_and(|wanted| found["artifactType"].as_str() != Some(wanted)) {
                continue;
            }
            size += found.to_string().len() as u64;
            if size > MAX_MANIFEST_SIZE && previous.is_some() {
                next = previous;
                break;
            }
            previous = Some(digest);
            referrers.push(found);
        }
        let media_type = MediaType::OCI_INDEX;
        let index = json!({ "schemaVersion": 2, "mediaType": media_type.as_str(), "manifests": referrers });
        let mut response = self.listed(&index, value(media_type.as_str()));
        if wanted.is_some() {
            response.headers_mut().insert(OCI_FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
        }
        if let Some(last) = next {
            let filter = wanted.map(|wanted| format!("artifactType={}&", escaped(wanted))).unwrap_or_default();
            let path = format!("/v2/{}/referrers/{subject}?{filter}last={last}", repository.name());
            response.headers_mut().insert(LINK, link(&path));
        }
        Ok(response)
    }

    /// How a list of referrers describes the manifest `target`, if it refers to `subject`.
    async fn referrer(&self, target: &Descriptor, subject: &Digest) -> Result<Option<Value>> {
        let remembered = self.server.subjects.get(&target.digest);
        if remembered.is_some_and(|refers_to| refers_to != Some(*subject)) {
            return Ok(None);
        }
        // One that is damaged refers to nothing that anyone could rely on; pulling it tells.
        let Some(document) = self.document(target).await? else { return Ok(None) };
        let refers_to = document.subject().map(|subject| subject.digest);
        self.server.subjects.remember(target.digest, refers_to);
        Ok((refers_to == Some(*subject)).then(|| json!(Referrer::of(target, &document))))
    }

    async fn document(&self, target: &Descriptor) -> Result<Option<Document>> {
        if target.size > MAX_MANIFEST_SIZE {
            return Ok(None);
        }
        let Ok(Some(mut stream)) = self.server.store.fetch(target, 0..target.size).await else { return Ok(None) };
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await.transpose()? {
            bytes.extend_from_slice(&chunk);
        }
        if target.digest.algorithm().digest(&bytes) != target.digest {
            return Ok(None);
        }
        Ok(Document::parse(&bytes, &target.media_type).ok())
    }

    fn listed(&self, body: &Value, media_type: HeaderValue) -> Response {
        let body = json::to_canonical(body);
        let mut response = reply(StatusCode::OK, [(CONTENT_LENGTH, body.len().into()), (CONTENT_TYPE, media_type)]);
        if self.parts.method != Method::HEAD {
            *response.body_mut() = body.into();
        }
        response
    }
}

fn link(target: &str) -> HeaderValue {
    value(format!("<{target}>; rel=\"next\""))
}

/// `text` as a value in a query.
fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut all, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'/' => all.push(byte.into()),
            _ => all.push_str(&format!("%{byte:02X}")),
        }
        all
    })
}
