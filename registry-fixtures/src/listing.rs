//! What there is: tags, repositories, referrers. A registry has one of several ways to list them.

use axum::http::header::CONTENT_TYPE;

use crate::contents::{self, OCI_INDEX};
use crate::fixture::Listing;
use crate::registry::{Answer, Exchange};
use crate::reply::{self, Refusal, header};

impl Exchange {
    pub(crate) fn tags(&self, name: &str) -> Answer {
        let state = self.shared.state();
        let repository = state.repositories.get(name);
        let repository = repository.ok_or_else(|| Refusal::new(404, "NAME_UNKNOWN", "no such repository"))?;
        let tags = repository.tags.keys().cloned().collect();
        self.page(tags, &format!("/v2/{name}/tags/list"), |tags| serde_json::json!({ "name": name, "tags": tags }))
    }

    pub(crate) fn catalog(&self) -> Answer {
        let repositories = self.shared.state().repositories.keys().cloned().collect();
        self.page(repositories, "/v2/_catalog", |names| serde_json::json!({ "repositories": names }))
    }

    /// The part of `names`, which are in order, that was asked for.
    fn page(&self, mut names: Vec<String>, path: &str, body: impl FnOnce(&[String]) -> serde_json::Value) -> Answer {
        let options = &self.shared.options;
        let limit = match self.parameter("n").map(str::parse) {
            None => options.page,
            Some(Ok(limit)) => options.page.min(limit),
            Some(Err(_)) => return Err(Refusal::new(400, "UNSUPPORTED", "n is not a number")),
        };
        if options.listing == Listing::Whole {
            names.reverse();
            return Ok(reply::json(&body(&names)));
        }
        let last = self.parameter("last").unwrap_or_default();
        names.retain(|name| name.as_str() > last);
        let more = names.len() > limit;
        names.truncate(limit);
        let mut response = reply::json(&body(&names));
        if let (true, Listing::Paged, Some(last)) = (more, options.listing, names.last()) {
            let link = format!("<{path}?n={limit}&last={last}>; rel=\"next\"");
            response.headers_mut().insert("link", header(&link));
        }
        Ok(response)
    }

    pub(crate) fn referrers(&self, name: &str, digest: &str) -> Answer {
        if !contents::is_digest(digest) {
            return Err(Refusal::new(400, "DIGEST_INVALID", "not a digest"));
        }
        let state = self.shared.state();
        let mut found = state.repositories.get(name).map(|repository| repository.referrers(digest)).unwrap_or_default();
        let wanted = self.parameter("artifactType").filter(|_| self.shared.options.filters);
        let last = self.parameter("last").unwrap_or_default();
        found.retain(|descriptor| wanted.is_none_or(|wanted| descriptor["artifactType"] == wanted));
        // They are in the order of their digests.
        found.retain(|descriptor| descriptor["digest"].as_str().is_some_and(|digest| digest > last));
        let more = found.len() > self.shared.options.page;
        found.truncate(self.shared.options.page);
        let index = serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found });
        let mut response = reply::json(&index);
        response.headers_mut().insert(CONTENT_TYPE, header(OCI_INDEX));
        if wanted.is_some() {
            response.headers_mut().insert("oci-filters-applied", header("artifactType"));
        }
        if let Some(last) = found.last().filter(|_| more) {
            let filter = wanted.map(|wanted| format!("artifactType={wanted}&")).unwrap_or_default();
            let last = last["digest"].as_str().unwrap_or_default();
            let link = format!("</v2/{name}/referrers/{digest}?{filter}last={last}>; rel=\"next\"");
            response.headers_mut().insert("link", header(&link));
        }
        Ok(response)
    }
}
