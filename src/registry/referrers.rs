//! What refers to a manifest. A registry of today lists it; for an older one the clients keep an index under a tag
//! that the subject's digest gives, and nobody keeps them from writing at the same time.
//!
//! OCI distribution-spec v1.1.1, "Listing Referrers" and "Pushing Manifests with Subject":
//! <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-referrers>.

use std::collections::BTreeMap;
use std::time::Instant;

use backon::BackoffBuilder as _;
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{StatusCode, Url};
use serde_json::{Value, json};

use super::auth::Access;
use super::failure::Failure;
use super::pages::Pages;
use super::{Remote, Repository};
use crate::error::{Error, ErrorKind, Result};
use crate::json;
use crate::oci::{Digest, MediaType, Referrer};

/// A list of referrers is an index.
const INDEX: HeaderValue = HeaderValue::from_static("application/vnd.oci.image.index.v1+json");
/// Which filters the registry has applied.
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
/// How often the index under a tag is written for one change.
const ATTEMPTS: usize = 10;

/// What an index of referrers has: each under its digest, so that there is one order and none stands twice.
type Entries = BTreeMap<String, Value>;

impl Remote {
    /// What refers to `subject`, whether that is there or not, in the order of digests: all, or what is of
    /// `artifact_type`.
    ///
    /// # Errors
    /// [`ErrorKind::Unauthorized`] or [`ErrorKind::Registry`] when the registry does not say.
    pub async fn referrers(&self, subject: &Digest, artifact_type: Option<&MediaType>) -> Result<Vec<Referrer>> {
        let entries = match self.0.listed_referrers(subject, artifact_type).await? {
            Some(entries) => entries,
            None => {
                let index = self.0.index_of_referrers(subject).await?.unwrap_or_else(empty_index);
                // What stands under the tag and is no index is somebody's own.
                let mut entries = entries_of(&index).unwrap_or_default();
                entries.retain(|_, entry| is_of(entry, artifact_type));
                entries
            }
        };
        // A digest of an algorithm that we do not know can be in no reference of ours either.
        Ok(entries.into_values().filter_map(|entry| serde_json::from_value(entry).ok()).collect())
    }
}

impl Repository {
    /// What the registry lists itself; `None` when it does not list referrers.
    async fn listed_referrers(&self, subject: &Digest, wanted: Option<&MediaType>) -> Result<Option<Entries>> {
        let mut url = self.url(&format!("referrers/{subject}")).await?;
        if let Some(wanted) = wanted {
            url.query_pairs_mut().append_pair("artifactType", wanted.as_str());
        }
        Ok(self.walk_referrers(url, wanted).await?)
    }

    async fn walk_referrers(&self, url: Url, wanted: Option<&MediaType>) -> Result<Option<Entries>, Failure> {
        let mut entries = Entries::new();
        let mut pages = Pages::new(&self.client, url, Access::Pull, INDEX);
        loop {
            let page = match pages.next().await {
                Ok(Some(page)) => page,
                Ok(None) => return Ok(Some(entries)),
                Err(failure) if entries.is_empty() && is_unknown(&failure) => return Ok(None),
                Err(failure) => return Err(failure),
            };
            let Some(mut listed) = json::parse(&page.bytes).ok().and_then(|index| entries_of(&index)) else {
                // Some answer every address with something, but do not call it a list.
                if page.headers.get(CONTENT_TYPE) != Some(&INDEX) {
                    return Ok(None);
                }
                let message = format!("The registry `{}` sent a list of referrers that is none", self.client.host());
                return Err(Error::new(ErrorKind::Registry, message).into());
            };
            if listed.keys().all(|digest| entries.contains_key(digest)) && !listed.is_empty() && pages.has_next() {
                return Err(pages.endless().into());
            }
            if !is_filtered(&page.headers) {
                listed.retain(|_, entry| is_of(entry, wanted));
            }
            entries.append(&mut listed);
        }
    }

    /// Whether the registry lists referrers itself.
    async fn lists_referrers(&self, subject: &Digest) -> Result<bool> {
        Ok(self.listed_referrers(subject, None).await?.is_some())
    }

    /// What stands under the tag for the referrers of `subject`.
    async fn index_of_referrers(&self, subject: &Digest) -> Result<Option<Value>> {
        let Some((_, bytes)) = self.manifest(&Referrer::tag(subject)).await? else { return Ok(None) };
        Ok(json::parse(&bytes).ok())
    }

    /// Puts `referrer` into the index under the tag for `subject`.
    pub(super) async fn list_referrer(&self, subject: &Digest, referrer: &Referrer) -> Result<()> {
        let (digest, entry) = (referrer.descriptor.digest.to_string(), json!(referrer));
        self.revise(subject, |entries| entries.insert(digest.clone(), entry.clone()).is_none()).await
    }

    /// Takes the manifest `digest` out of the index under the tag for `subject`, where the registry does not list
    /// referrers itself.
    pub(super) async fn unlist_referrer(&self, subject: &Digest, digest: &Digest) -> Result<()> {
        if self.lists_referrers(subject).await? {
            return Ok(());
        }
        self.revise(subject, |entries| entries.remove(&digest.to_string()).is_some()).await
    }

    /// Changes the index under the tag for `subject` until it is read as it should be: whoever read it before we wrote
    /// has written it without our change. `change` says whether there is something to change.
    async fn revise(&self, subject: &Digest, change: impl Fn(&mut Entries) -> bool) -> Result<()> {
        let mut pauses = self.client.pauses().with_max_times(ATTEMPTS).build();
        for attempt in 0..=ATTEMPTS {
            let begun = Instant::now();
            let mut index = self.index_of_referrers(subject).await?.unwrap_or_else(empty_index);
            let mut entries = entries_of(&index).ok_or_else(|| {
                let tag = Referrer::tag(subject);
                Error::new(ErrorKind::Registry, format!("`{self}:{tag}` should list referrers, and is no such list"))
            })?;
            if !change(&mut entries) {
                return Ok(());
            }
            if attempt == ATTEMPTS {
                break;
            }
            let stored = self.store_index(subject, &mut index, entries.clone()).await;
            match stored {
                // The registry insists on having what is listed, and something has been removed there.
                Err(missing) if missing.kind() == ErrorKind::NotFound => {
                    let present = self.present(entries).await?;
                    self.store_index(subject, &mut index, present).await?;
                }
                stored => stored?,
            }
            // Whoever read what was there before has written by then, and pauses differ.
            let jitter = if attempt == 0 { None } else { pauses.next() };
            tokio::time::sleep(begun.elapsed() * 2 + jitter.unwrap_or_default()).await;
        }
        let message = format!("The list of what refers to `{self}@{subject}` is changed by others all the time");
        Err(Error::new(ErrorKind::Registry, message))
    }

    async fn store_index(&self, subject: &Digest, index: &mut Value, entries: Entries) -> Result<()> {
        index["manifests"] = entries.into_values().collect();
        let bytes = Bytes::from(json::to_canonical(index));
        self.store_manifest(&Referrer::tag(subject), &MediaType::OCI_INDEX, &bytes).await.map(|_| ())
    }

    /// Those of `entries` that the registry still has.
    async fn present(&self, mut entries: Entries) -> Result<Entries> {
        for (digest, entry) in entries.clone() {
            let Ok(referrer) = serde_json::from_value::<Referrer>(entry) else { continue };
            if !self.client.persist(|| self.is_present(&referrer.descriptor)).await? {
                entries.remove(&digest);
            }
        }
        Ok(entries)
    }
}

fn empty_index() -> Value {
    json!({ "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": [] })
}

/// The entries of an index of referrers, as others wrote them; `None` when it is none.
fn entries_of(index: &Value) -> Option<Entries> {
    if index.get("mediaType").is_some_and(|media_type| media_type != MediaType::OCI_INDEX.as_str()) {
        return None;
    }
    let entries = index.get("manifests")?.as_array()?.iter();
    entries.map(|entry| Some((entry.get("digest")?.as_str()?.to_owned(), entry.clone()))).collect()
}

/// Whether an entry is of the type `wanted`, if one is.
fn is_of(entry: &Value, wanted: Option<&MediaType>) -> bool {
    wanted.is_none_or(|wanted| entry["artifactType"] == wanted.as_str())
}

/// Whether the registry has left out what is of other types.
fn is_filtered(reply: &HeaderMap) -> bool {
    let filters = reply.get_all(FILTERS_APPLIED).iter().filter_map(|value| value.to_str().ok());
    filters.flat_map(|filters| filters.split(',')).any(|filter| filter.trim() == "artifactType")
}

/// Whether the registry does not know lists of referrers.
fn is_unknown(failure: &Failure) -> bool {
    match failure.status() {
        Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED) => true,
        Some(StatusCode::BAD_REQUEST) => failure.has_code("UNSUPPORTED"),
        _ => false,
    }
}
