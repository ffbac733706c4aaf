//! Paths and byte ranges: what a request names, before anything is looked up.

use axum::http::Method;

use crate::oci::{Digest, Reference};

use super::refusal::{Code, Refusal};

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route {
    Base,
    /// Whether the server lives.
    Health,
    /// What it has counted.
    Metrics,
    /// Where tokens are given.
    Token,
    Catalog,
    Tags(Repository),
    /// The manifests that refer to one.
    Referrers(Repository, Digest),
    /// A tag or a digest within a repository.
    Manifest(Repository, Reference),
    Blob(Repository, Digest),
    Uploads(Repository),
    Upload(Repository, String),
}

/// A repository's name as the store has it: with a first component that could be a registry's host, it
/// is what was pulled from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Repository {
    name: String,
    reference: Reference,
}

impl Repository {
    fn parse(name: &str) -> Result<Self, Refusal> {
        let invalid = || Refusal::bad_request(Code::NameInvalid, format!("Not a repository's name: `{name}`"));
        // A reference could have a port, a tag or a digest; a repository has none of them.
        let plain = (!name.contains([':', '@'])).then_some(name).ok_or_else(invalid)?;
        Ok(Self { name: name.to_owned(), reference: plain.parse().map_err(|_| invalid())? })
    }

    /// The name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether `reference` is a name in this repository, with or without a tag.
    pub(super) fn has(&self, reference: &Reference) -> bool {
        (reference.host(), reference.path()) == (self.reference.host(), self.reference.path())
    }

    fn manifest(self, reference: &str) -> Result<Route, Refusal> {
        let separator = if reference.contains(':') { '@' } else { ':' };
        let full = format!("{}{separator}{reference}", self.name).parse::<Reference>();
        let full = full.map_err(|_| {
            let message = format!("Neither a tag nor a digest: `{reference}`");
            match separator {
                '@' => Refusal::bad_request(Code::DigestInvalid, message),
                _ => Refusal::bad_request(Code::ManifestInvalid, message),
            }
        })?;
        Ok(Route::Manifest(self, full))
    }
}

/// The name of the repository that `reference` is in.
pub(super) fn repository_name(reference: &Reference) -> String {
    match reference.host() {
        Some(host) => format!("{host}/{}", reference.path()),
        None => reference.path().to_owned(),
    }
}

impl Route {
    /// The methods that it takes, where deletion is allowed or not.
    pub(super) fn methods(&self, deletes: bool) -> &'static str {
        match self {
            Self::Token => "GET",
            Self::Manifest(..) if deletes => "GET, HEAD, PUT, DELETE",
            Self::Manifest(..) => "GET, HEAD, PUT",
            Self::Blob(..) if deletes => "GET, HEAD, DELETE",
            Self::Uploads(_) => "POST",
            Self::Upload(..) => "GET, PATCH, PUT, DELETE",
            Self::Base
            | Self::Health
            | Self::Metrics
            | Self::Catalog
            | Self::Tags(_)
            | Self::Referrers(..)
            | Self::Blob(..) => "GET, HEAD",
        }
    }

    /// What a request needs to be allowed: a resource as token services name it, and an action.
    pub(super) fn scope(&self, method: &Method) -> Option<(String, &'static str)> {
        let reads = [Method::GET, Method::HEAD].contains(method);
        let (repository, action) = match self {
            Self::Base | Self::Health | Self::Metrics | Self::Token => return None,
            Self::Catalog => return Some(("registry:catalog".to_owned(), "*")),
            Self::Upload(repository, _) | Self::Uploads(repository) => (repository, "push"),
            Self::Manifest(repository, _) | Self::Blob(repository, _) if *method == Method::DELETE => {
                (repository, "delete")
            }
            Self::Tags(repository)
            | Self::Referrers(repository, _)
            | Self::Manifest(repository, _)
            | Self::Blob(repository, _) => (repository, if reads { "pull" } else { "push" }),
        };
        Some((format!("repository:{}", repository.name()), action))
    }

    /// Reads a path of OCI distribution-spec v1.1.1, "API":
    /// <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#api>. The last words
    /// decide, because a repository may be called `blobs/uploads`.
    pub(super) fn parse(path: &str) -> Result<Self, Refusal> {
        let nowhere = || Refusal::not_found(Code::Unsupported, format!("Not a part of the API: `{path}`"));
        let rest = match path {
            "/v2" | "/v2/" => return Ok(Self::Base),
            "/v2/_catalog" => return Ok(Self::Catalog),
            "/healthz" => return Ok(Self::Health),
            "/metrics" => return Ok(Self::Metrics),
            "/token" => return Ok(Self::Token),
            path => path.strip_prefix("/v2/").ok_or_else(nowhere)?,
        };
        if let Some((name, session)) = rest.rsplit_once("/blobs/uploads/") {
            let repository = Repository::parse(name)?;
            return Ok(match session {
                "" => Self::Uploads(repository),
                session => Self::Upload(repository, session.to_owned()),
            });
        }
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Ok(Self::Tags(Repository::parse(name)?));
        }
        let (head, last) = rest.rsplit_once('/').ok_or_else(nowhere)?;
        let (name, kind) = head.rsplit_once('/').ok_or_else(nowhere)?;
        match kind {
            "manifests" => Repository::parse(name)?.manifest(last),
            "referrers" => Ok(Self::Referrers(Repository::parse(name)?, digest(last)?)),
            "blobs" => Ok(Self::Blob(Repository::parse(name)?, digest(last)?)),
            _ => Err(nowhere()),
        }
    }
}

/// Reads a digest that a request names.
pub(super) fn digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|_| Refusal::bad_request(Code::DigestInvalid, format!("Not a digest: `{text}`")))
}

/// The part of a content that a `Range` header asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it: there is no header, or one that may be ignored (RFC 9110, section 14.2), as several
    /// ranges at once are here.
    Whole,
    /// `length` bytes from `first` on.
    Range { first: u64, length: u64 },
    /// None of the content is in the range.
    Outside,
}

impl Part {
    pub(super) fn parse(header: Option<&str>, size: u64) -> Self {
        Self::range(header, size).unwrap_or(Self::Whole)
    }

    fn range(header: Option<&str>, size: u64) -> Option<Self> {
        let (first, last) = header?.strip_prefix("bytes=")?.split_once('-')?;
        if first.is_empty() {
            let length = number(last)?.min(size);
            return Some(if length == 0 { Self::Outside } else { Self::Range { first: size - length, length } });
        }
        let first = number(first)?;
        let last = if last.is_empty() { u64::MAX } else { number(last)? };
        // A range that ends before it begins may be ignored or refused (RFC 9110, section 14.2).
        Some(if first >= size || last < first {
            Self::Outside
        } else {
            Self::Range { first, length: last.min(size - 1) - first + 1 }
        })
    }
}

/// The bounds of a chunk's `Content-Range`, which is `<first>-<last>` without a unit: the offset of
/// the first byte and the length.
pub fn chunk_range(header: &str) -> Option<(u64, u64)> {
    let (first, last) = header.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    Some((first, last.checked_sub(first)?.checked_add(1)?))
}

/// A number of digits only, where `parse` alone would take a sign too.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_a_path_decide() {
        let repository = |name: &str| Repository::parse(name).unwrap();
        let digest = Digest::of(b"");
        for (path, route) in [
            ("/v2/", Route::Base),
            ("/v2/a/tags/list", Route::Tags(repository("a"))),
            ("/v2/a/b/manifests/v1", Route::Manifest(repository("a/b"), "a/b:v1".parse().unwrap())),
            (
                &format!("/v2/a/manifests/{digest}"),
                Route::Manifest(repository("a"), format!("a@{digest}").parse().unwrap()),
            ),
            (&format!("/v2/registry.example/a/blobs/{digest}"), Route::Blob(repository("registry.example/a"), digest)),
            ("/v2/_catalog", Route::Catalog),
            (&format!("/v2/a/referrers/{digest}"), Route::Referrers(repository("a"), digest)),
            ("/v2/a/blobs/uploads/", Route::Uploads(repository("a"))),
            ("/v2/blobs/uploads/blobs/uploads/7", Route::Upload(repository("blobs/uploads"), "7".to_owned())),
        ] {
            assert_eq!(Route::parse(path).unwrap(), route, "{path}");
        }
    }

    #[test]
    fn what_cannot_be_named_is_refused() {
        for path in [
            "/",
            "/v1/",
            "/v2/a",
            "/v2/a/referrers/x",
            "/v2/_catalog/x",
            "/v2/UPPER/tags/list",
            "/v2/a:5000/b/tags/list",
            "/v2/a//b/tags/list",
            "/v2/../a/tags/list",
            "/v2/a%2Fb/tags/list",
            "/v2/a@b/manifests/v1",
            "/v2/a/manifests/.v1",
            "/v2/a/manifests/sha256:00",
            "/v2/a/manifests/v1@sha256:00",
            "/v2/a/blobs/sha256:../../x",
        ] {
            assert!(Route::parse(path).is_err(), "{path}");
        }
    }

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        let range = |first, length| Part::Range { first, length };
        for (header, part) in [
            ("bytes=0-0", range(0, 1)),
            ("bytes=3-", range(3, 7)),
            ("bytes=3-99", range(3, 7)),
            ("bytes=-4", range(6, 4)),
            ("bytes=-99", range(0, 10)),
            ("bytes=10-", Part::Outside),
            ("bytes=-0", Part::Outside),
            ("bytes=5-4", Part::Outside),
            ("bytes=+1-2", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("bytes=99999999999999999999-", Part::Whole),
            ("lines=0-1", Part::Whole),
        ] {
            assert_eq!(Part::parse(Some(header), 10), part, "{header}");
        }
        assert_eq!(Part::parse(None, 10), Part::Whole);
        assert_eq!(Part::parse(Some("bytes=0-"), 0), Part::Outside);
    }

    #[test]
    fn a_chunk_says_where_it_belongs() {
        assert_eq!(chunk_range("0-0"), Some((0, 1)));
        assert_eq!(chunk_range("5-9"), Some((5, 5)));
        for wrong in ["", "5", "9-5", "bytes 0-1", "0-1/2", "0-18446744073709551615", "-1-2"] {
            assert_eq!(chunk_range(wrong), None, "{wrong}");
        }
    }
}
