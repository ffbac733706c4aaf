//! The requests of OCI distribution-spec v1.1.1, answered strictly: what real registries let pass, and
//! a client should not send, is refused here.
//!
//! <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md>

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use axum::http::request::Parts;
use axum::http::{HeaderName, Method};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use crate::auth::{self, Auth, Grant};
use crate::contents;
use crate::fault::Fault;
use crate::fixture::{Deletes, Locations, Record, Recorded, Shared};
use crate::incoming::Incoming;
use crate::reply::{self, Refusal, header, reply};

const MAX_MANIFEST: usize = 4 << 20;
pub(crate) const OCTETS: &str = "application/octet-stream";

/// What a path names.
enum Target {
    Base,
    Token,
    Catalog,
    Tags { name: String },
    Referrers { name: String, digest: String },
    Manifest { name: String, reference: String },
    Blob { name: String, digest: String },
    Uploads { name: String },
    Upload { name: String, id: String },
}

impl Target {
    fn parse(path: &str) -> Option<Self> {
        let rest = match path {
            "/token" => return Some(Self::Token),
            "/v2/" | "/v2" => return Some(Self::Base),
            "/v2/_catalog" => return Some(Self::Catalog),
            path => path.strip_prefix("/v2/")?,
        };
        let own = str::to_owned;
        if let Some((name, id)) = rest.rsplit_once("/blobs/uploads/") {
            return Some(match id {
                "" => Self::Uploads { name: own(name) },
                id => Self::Upload { name: own(name), id: own(id) },
            });
        }
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Some(Self::Tags { name: own(name) });
        }
        let (head, last) = rest.rsplit_once('/')?;
        let (name, kind) = head.rsplit_once('/')?;
        match kind {
            "manifests" => Some(Self::Manifest { name: own(name), reference: own(last) }),
            "blobs" => Some(Self::Blob { name: own(name), digest: own(last) }),
            "referrers" => Some(Self::Referrers { name: own(name), digest: own(last) }),
            _ => None,
        }
    }

    fn name(&self) -> Option<&str> {
        match self {
            Self::Base | Self::Token | Self::Catalog => None,
            Self::Tags { name }
            | Self::Referrers { name, .. }
            | Self::Manifest { name, .. }
            | Self::Blob { name, .. }
            | Self::Uploads { name }
            | Self::Upload { name, .. } => Some(name),
        }
    }
}

/// A request under way.
pub(crate) struct Exchange {
    pub(crate) shared: Arc<Shared>,
    pub(crate) parts: Parts,
    query: Vec<(String, String)>,
    pub(crate) body: Incoming,
    ignore_range: bool,
}

/// Answers one request: records it, lets its faults happen, carries it out.
pub(crate) async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let record = Record::new(Recorded {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers.clone(),
        body_len: 0,
        status: 0,
    });
    let faults = {
        let mut state = shared.state();
        state.requests.push(record.clone());
        state.script.next(parts.method.as_str(), parts.uri.path())
    };
    let query = Query::try_from_uri(&parts.uri).map(|Query(query)| query).unwrap_or_default();
    let mut body = Incoming::new(body, record.clone());
    if let Some(time) = shared.options.deadline {
        body.break_off_after(time);
    }
    let mut exchange = Exchange { shared, parts, query, body, ignore_range: false };

    let response = match exchange.spoil(&faults) {
        Some(response) => response,
        None => exchange.route().await.unwrap_or_else(IntoResponse::into_response),
    };
    exchange.body.drain().await;
    if exchange.body.is_broken() {
        return reply::hang_up();
    }
    let Some(mut response) = spoil_reply(response, &faults).await else { return reply::hang_up() };

    record.change(|record| record.status = response.status().as_u16());
    if exchange.parts.method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

/// Lets `faults` happen to a reply; `None` when they leave none.
pub(crate) async fn spoil_reply(mut response: Response, faults: &[Fault]) -> Option<Response> {
    for fault in faults {
        match fault {
            Fault::LoseReply => return None,
            Fault::Delay(time) => tokio::time::sleep(*time).await,
            Fault::DropReply { after } | Fault::Stall { after } | Fault::Truncate { after } => {
                let (parts, body) = response.into_parts();
                let mut bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
                bytes.truncate(*after);
                response = Response::from_parts(parts, Body::empty());
                response = match fault {
                    Fault::DropReply { .. } => reply::cut(response, bytes),
                    Fault::Stall { .. } => reply::stall(response, bytes),
                    _ => {
                        response.headers_mut().insert(CONTENT_LENGTH, bytes.len().into());
                        *response.body_mut() = Body::from(bytes);
                        response
                    }
                };
            }
            Fault::FlipBit { at } => {
                let (parts, body) = response.into_parts();
                let mut bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default().to_vec();
                if let Some(byte) = bytes.get_mut(*at) {
                    *byte ^= 1;
                }
                response = Response::from_parts(parts, Body::from(bytes));
            }
            Fault::LyingDigest => {
                let other = contents::digest(b"something else");
                response.headers_mut().insert("docker-content-digest", header(&other));
            }
            Fault::ContentType(media_type) => {
                response.headers_mut().insert(CONTENT_TYPE, header(media_type));
            }
            Fault::ContentRange(range) => {
                response.headers_mut().insert(CONTENT_RANGE, header(range));
            }
            Fault::Instead(code) => *response.status_mut() = reply::status(*code),
            Fault::Endless => response = reply::endless(response),
            Fault::MissingLocation => {
                response.headers_mut().remove(LOCATION);
            }
            Fault::Location(location) => {
                response.headers_mut().insert(LOCATION, header(location));
            }
            Fault::Header(name, value) => {
                response.headers_mut().insert(*name, header(value));
            }
            _ => {}
        }
    }
    Some(response)
}

pub(crate) type Answer = Result<Response, Refusal>;

impl Exchange {
    /// Lets `faults` happen to the request; returns the reply when they answer it.
    fn spoil(&mut self, faults: &[Fault]) -> Option<Response> {
        let mut answer = None;
        for fault in faults {
            match fault {
                Fault::Status { code, retry_after, body } => {
                    let mut response = reply(*code, &[], body.clone());
                    if let Some(seconds) = retry_after {
                        response.headers_mut().insert("retry-after", (*seconds).into());
                    }
                    answer = Some(response);
                }
                Fault::RedirectTo(host) => {
                    let path = self.parts.uri.path_and_query().map_or("/", |path| path.as_str());
                    answer = Some(reply(307, &[("location", &format!("http://{host}{path}"))], Bytes::new()));
                }
                Fault::DropRequest { after } => self.body.break_after(*after),
                Fault::ExpiredToken => self.shared.state().tokens.expire(&self.parts.headers),
                Fault::ForgetUpload => {
                    if let Some(Target::Upload { id, .. }) = Target::parse(self.parts.uri.path()) {
                        self.shared.state().uploads.remove(&id);
                    }
                }
                Fault::LoseTail { bytes } => {
                    if let Some(Target::Upload { id, .. }) = Target::parse(self.parts.uri.path())
                        && let Some(upload) = self.shared.state().uploads.get_mut(&id)
                    {
                        upload.bytes.truncate(upload.bytes.len().saturating_sub(*bytes));
                    }
                }
                Fault::TakeOnly { bytes } => self.body.take_only(*bytes),
                Fault::IgnoreRange => self.ignore_range = true,
                _ => {}
            }
        }
        answer
    }

    async fn route(&mut self) -> Answer {
        let target = Target::parse(self.parts.uri.path())
            .ok_or_else(|| Refusal::new(404, "UNSUPPORTED", "no such part of the API"))?;
        if let Target::Token = target {
            return self.token().await;
        }
        self.authorize(&target)?;
        if target.name().is_some_and(|name| !contents::is_repository(name)) {
            return Err(Refusal::new(400, "NAME_INVALID", "not a repository's name"));
        }
        let method = self.parts.method.as_str().to_owned();
        match (method.as_str(), target) {
            ("GET" | "HEAD", Target::Base) => Ok(reply::json(&serde_json::json!({}))),
            ("GET", Target::Catalog) if self.shared.options.catalog => self.catalog(),
            ("GET", Target::Tags { name }) => self.tags(&name),
            ("GET", Target::Referrers { name, digest }) if self.shared.options.referrers => {
                self.referrers(&name, &digest)
            }
            ("GET", Target::Referrers { .. }) => {
                Ok(reply(404, &[("content-type", "text/plain")], "404 page not found\n"))
            }
            ("GET" | "HEAD", Target::Manifest { name, reference }) => self.get_manifest(&name, &reference),
            ("PUT", Target::Manifest { name, reference }) => self.put_manifest(&name, &reference).await,
            ("GET" | "HEAD", Target::Blob { name, digest }) => self.get_blob(&name, &digest),
            ("DELETE", target @ (Target::Manifest { .. } | Target::Blob { .. }))
                if self.shared.options.deletes != Deletes::Nothing =>
            {
                self.delete(target)
            }
            ("POST", Target::Uploads { name }) => self.begin_upload(&name).await,
            ("GET", Target::Upload { name, id }) => self.upload_status(&name, &id),
            ("PATCH", Target::Upload { name, id }) => self.patch_upload(&name, &id).await,
            ("PUT", Target::Upload { name, id }) => self.finish_upload(&name, &id).await,
            ("DELETE", Target::Upload { name, id }) => {
                self.upload(&name, &id, None)?;
                self.shared.state().uploads.remove(&id);
                Ok(reply(204, &[], Bytes::new()))
            }
            _ => Err(Refusal::new(405, "UNSUPPORTED", format!("{method} is not supported here"))),
        }
    }

    // ---- who asks ----

    fn authorize(&self, target: &Target) -> Result<(), Refusal> {
        let mut wanted = Vec::new();
        if let Target::Catalog = target {
            wanted.push(Grant::catalog());
        }
        if let Some(name) = target.name() {
            wanted.push(match (&self.parts.method, target) {
                (&Method::DELETE, Target::Manifest { .. } | Target::Blob { .. }) => Grant::new(name, &["delete"]),
                (&Method::GET, Target::Upload { .. }) => Grant::new(name, &["pull", "push"]),
                (&Method::GET | &Method::HEAD, _) => Grant::new(name, &["pull"]),
                _ => Grant::new(name, &["pull", "push"]),
            });
        }
        if let (Target::Uploads { .. }, Some(from)) = (target, self.parameter("from")) {
            wanted.push(Grant::new(from, &["pull"]));
        }
        let realm = format!("http://{}/token", self.shared.host);
        self.shared.state().tokens.check(&self.shared.options.auth, &self.parts.headers, &wanted, &realm)
    }

    /// The token endpoint: GET with Basic credentials, or the OAuth 2 form in a POST.
    async fn token(&mut self) -> Answer {
        let Auth::Bearer(bearer) = self.shared.options.auth.clone() else {
            return Err(Refusal::new(404, "UNSUPPORTED", "there are no tokens here"));
        };
        let form = if self.parts.method == Method::POST {
            let form = String::from_utf8_lossy(&self.body.all(1 << 16).await?).into_owned();
            let uri = format!("/?{form}").parse().map_err(|_| Refusal::new(400, "UNKNOWN", "not a form"))?;
            Query::<Vec<(String, String)>>::try_from_uri(&uri).map(|form| form.0).unwrap_or_default()
        } else {
            self.query.clone()
        };
        let value = |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        if value("service") != Some(auth::SERVICE) {
            return Err(Refusal::new(400, "UNKNOWN", "the service is not the one of the challenge"));
        }
        let identity = bearer.identity_token.as_deref();
        let known = if self.parts.method == Method::POST {
            match value("grant_type") {
                Some("refresh_token") => identity.is_some() && value("refresh_token") == identity,
                Some("password") => {
                    value("username") == Some(&bearer.user) && value("password") == Some(&bearer.password)
                }
                _ => return Err(Refusal::new(400, "UNKNOWN", "no grant_type of the specification")),
            }
        } else {
            match auth::basic_of(&self.parts.headers) {
                Some(sent) if sent == (bearer.user, bearer.password) => true,
                Some(_) => return Err(Refusal::new(401, "UNAUTHORIZED", "another user or password")),
                None => false,
            }
        };
        if !known && (self.parts.method == Method::POST || !bearer.anonymous_pull) {
            return Err(Refusal::new(401, "UNAUTHORIZED", "who are you?"));
        }
        let scopes = form.iter().filter(|(key, _)| key == "scope").map(|(_, scope)| scope.as_str());
        let mut grants = Grant::parse(scopes);
        if !known {
            grants.iter_mut().for_each(|grant| grant.actions.retain(|action| action == "pull"));
        }
        let token = self.shared.state().tokens.issue(grants, bearer.lifetime);
        let key = if self.parts.method == Method::POST { "access_token" } else { "token" };
        Ok(reply::json(&serde_json::json!({ key: token, "expires_in": bearer.lifetime.as_secs() })))
    }

    // ---- reading ----

    fn get_manifest(&self, name: &str, reference: &str) -> Answer {
        let unknown = |message: &str| Refusal::new(404, "MANIFEST_UNKNOWN", message);
        let state = self.shared.state();
        let repository = state.repositories.get(name);
        let (digest, stored) = repository
            .and_then(|repository| repository.manifest(reference))
            .ok_or_else(|| unknown("no such manifest"))?;
        let accepted = self.parts.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).any(|value| {
            value.split(',').any(|item| item.split(';').next().is_some_and(|item| item.trim() == stored.media_type))
        });
        if !accepted {
            // As docker-registry answers for OCI manifests: `*/*` is not enough.
            return Err(unknown(&format!("a manifest was found, but Accept does not list {}", stored.media_type)));
        }
        let headers = [("content-type", stored.media_type.as_str()), ("docker-content-digest", digest)];
        Ok(reply(200, &headers, stored.bytes.clone()))
    }

    fn get_blob(&self, name: &str, digest: &str) -> Answer {
        if !contents::is_digest(digest) {
            return Err(Refusal::new(400, "DIGEST_INVALID", "not a digest"));
        }
        let state = self.shared.state();
        let blob = state.repositories.get(name).and_then(|repository| repository.blobs.get(digest));
        let blob = blob.ok_or_else(|| Refusal::new(404, "BLOB_UNKNOWN", "no such blob in this repository"))?.clone();
        let headers = [("content-type", OCTETS), ("docker-content-digest", digest)];
        let range = self.header(RANGE).filter(|_| self.shared.options.ranges && !self.ignore_range);
        match range.and_then(|range| byte_range(range, blob.len())) {
            _ if self.parts.method == Method::HEAD => Ok(reply(200, &headers, blob)),
            None => Ok(reply(200, &headers, blob)),
            Some(None) => {
                let unsatisfied = format!("bytes */{}", blob.len());
                Err(Refusal::new(416, "RANGE_INVALID", "outside the blob").with("content-range", unsatisfied))
            }
            Some(Some((first, last))) => {
                let content_range = format!("bytes {first}-{last}/{}", blob.len());
                let [content_type, content_digest] = headers;
                let headers = [content_type, content_digest, ("content-range", content_range.as_str())];
                Ok(reply(206, &headers, blob.slice(first..=last)))
            }
        }
    }

    // ---- writing ----

    async fn put_manifest(&mut self, name: &str, reference: &str) -> Answer {
        let media_type = self.header(CONTENT_TYPE).map(str::to_owned);
        let media_type = media_type.ok_or_else(|| Refusal::new(400, "MANIFEST_INVALID", "no Content-Type"))?;
        let bytes = self.body.all(MAX_MANIFEST).await?;
        if self.body.is_broken() {
            return Err(Refusal::new(400, "MANIFEST_INVALID", "the body broke off"));
        }
        let mut state = self.shared.state();
        let repository = state.repositories.entry(name.to_owned()).or_default();
        let (digest, subject) = repository.put_manifest(reference, &media_type, bytes)?;
        let location = self.location(&format!("/v2/{name}/manifests/{digest}"));
        let mut response = reply(201, &[("location", &location), ("docker-content-digest", &digest)], Bytes::new());
        if let Some(subject) = subject.filter(|_| self.shared.options.referrers) {
            response.headers_mut().insert("oci-subject", header(&subject));
        }
        Ok(response)
    }

    fn delete(&self, target: Target) -> Answer {
        if let (Deletes::ByDigest, Target::Manifest { reference, .. }) = (self.shared.options.deletes, &target)
            && !contents::is_digest(reference)
        {
            return Err(Refusal::new(400, "DIGEST_INVALID", "provided digest did not match uploaded content"));
        }
        let mut state = self.shared.state();
        let was_there = match &target {
            Target::Manifest { name, reference } => {
                state.repositories.get_mut(name).is_some_and(|repository| repository.delete_manifest(reference))
            }
            Target::Blob { name, digest } => {
                state.repositories.get_mut(name).is_some_and(|repository| repository.blobs.remove(digest).is_some())
            }
            _ => false,
        };
        match (was_there, target) {
            (true, _) => Ok(reply(202, &[], Bytes::new())),
            (false, Target::Blob { .. }) => Err(Refusal::new(404, "BLOB_UNKNOWN", "no such blob")),
            (false, _) => Err(Refusal::new(404, "MANIFEST_UNKNOWN", "no such manifest")),
        }
    }

    // ---- the small parts ----

    pub(crate) fn location(&self, path: &str) -> String {
        match self.shared.options.locations {
            Locations::Absolute => format!("http://{}{path}", self.shared.host),
            Locations::WithoutScheme => format!("//{}{path}", self.shared.host),
            Locations::Relative => path.to_owned(),
        }
    }

    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn header(&self, name: HeaderName) -> Option<&str> {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(crate) fn content_length(&self) -> Result<u64, Refusal> {
        let length = self.header(CONTENT_LENGTH).and_then(|length| length.parse().ok());
        length.ok_or_else(|| Refusal::new(411, "SIZE_INVALID", "Content-Length is missing"))
    }
}

/// The first and last offset of a `Range` header in content of `length` bytes: `None` for a header to
/// ignore (RFC 9110, section 14.2), `Some(None)` for a range that cannot be satisfied.
pub(crate) fn byte_range(header: &str, length: usize) -> Option<Option<(usize, usize)>> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| text.parse::<usize>().ok();
    match (first, last) {
        ("", last) => {
            let suffix = number(last)?.min(length);
            Some((suffix > 0).then(|| (length - suffix, length - 1)))
        }
        (first, last) => {
            let first = number(first)?;
            let last = if last.is_empty() { usize::MAX } else { number(last).filter(|&last| last >= first)? };
            Some((first < length).then(|| (first, last.min(length - 1))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        for (header, range) in [
            ("bytes=0-0", Some(Some((0, 0)))),
            ("bytes=3-", Some(Some((3, 9)))),
            ("bytes=3-99", Some(Some((3, 9)))),
            ("bytes=-4", Some(Some((6, 9)))),
            ("bytes=10-", Some(None)),
            ("bytes=-0", Some(None)),
            ("bytes=5-4", None),
            ("bytes=0-1,3-4", None),
            ("lines=0-1", None),
        ] {
            assert_eq!(byte_range(header, 10), range, "{header}");
        }
    }

    #[test]
    fn the_last_words_of_a_path_decide() {
        assert!(matches!(
            Target::parse("/v2/a/blobs/uploads/blobs/x"),
            Some(Target::Upload { name, id }) if name == "a" && id == "blobs/x"
        ));
        assert!(matches!(
            Target::parse("/v2/a/tags/manifests/list"),
            Some(Target::Manifest { name, reference }) if name == "a/tags" && reference == "list"
        ));
        assert!(Target::parse("/v1/a").is_none() && Target::parse("/v2/a").is_none());
    }
}
