//! What a registry lists: the tags of a repository, and its repositories. OCI distribution-spec v1.1.1, "Listing Tags":
//! <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-tags>; repositories are
//! listed as distribution does, for want of a specification.

use std::collections::BTreeSet;
use std::sync::Arc;

use reqwest::header::HeaderValue;
use reqwest::{StatusCode, Url};

use super::auth::{Access, Authorizer};
use super::client::Client;
use super::failure::Failure;
use super::pages::Pages;
use super::{Keychain, Options, Remote};
use crate::error::{Error, ErrorKind, Result};
use crate::json;

/// How many names are asked for at once: the most that every registry gives.
const NAMES: usize = 1000;
/// What a list is.
const JSON: HeaderValue = HeaderValue::from_static("application/json");

impl Remote {
    /// The tags of the repository, in byte order.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is no such repository, though some registries then give an empty list;
    /// [`ErrorKind::Registry`] for a list that does not end or is none.
    pub async fn tags(&self) -> Result<Vec<String>> {
        let repository = &self.0;
        let listed = names(&repository.client, repository.url("tags/list").await?, Access::Pull, "tags").await;
        listed.map_err(|failure| match failure.has_code("NAME_UNKNOWN") {
            true => Error::new(ErrorKind::NotFound, format!("There is no repository `{repository}`"))
                .caused_by(Error::from(failure)),
            false => failure.into(),
        })
    }
}

/// The repositories of the registry at `host`, in byte order: those that it shows to whoever `keychain` says we are.
///
/// # Errors
/// [`ErrorKind::Unauthorized`] or [`ErrorKind::Registry`] when it shows none, as many do; otherwise as [`Remote::tags`].
pub async fn catalog(host: &str, keychain: Arc<dyn Keychain>, options: &Options) -> Result<Vec<String>> {
    let client = Client::new(host, Authorizer::new("", keychain), options)?;
    let base = client.base().await?;
    let url = base
        .join("_catalog")
        .map_err(|cause| Error::new(ErrorKind::Usage, format!("Not a registry: `{host}`")).caused_by(cause))?;
    names(&client, url, Access::Login, "repositories").await.map_err(|failure| {
        let (kind, whom) = match failure.status() {
            Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => (ErrorKind::Unauthorized, " to you"),
            Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED) => {
                (ErrorKind::Registry, "")
            }
            _ => return Error::from(failure),
        };
        let login = if kind == ErrorKind::Unauthorized { format!("kiln login {host}, or ") } else { String::new() };
        Error::new(kind, format!("The registry `{host}` does not list its repositories{whom}"))
            .caused_by(Error::from(failure))
            .hint(format!("{login}name a repository, as in `kiln tags {host}/team/llama`"))
    })
}

/// All names in the list at `url`, which has them as `member`.
async fn names(client: &Client, url: Url, access: Access, member: &str) -> Result<Vec<String>, Failure> {
    let counted = with_parameters(&url, None);
    let names = match walk(client, counted, &url, access.clone(), member).await {
        // So many at once are too many for this one.
        Err(failure) if failure.status() == Some(StatusCode::BAD_REQUEST) => {
            walk(client, url.clone(), &url, access, member).await?
        }
        walked => walked?,
    };
    Ok(names.into_iter().collect())
}

async fn walk(
    client: &Client,
    first: Url,
    list: &Url,
    access: Access,
    member: &str,
) -> Result<BTreeSet<String>, Failure> {
    let mut names = BTreeSet::new();
    let mut pages = Pages::new(client, first, access, JSON);
    while let Some(page) = pages.next().await? {
        let listed = listed(&page.bytes, member).ok_or_else(|| {
            let message =
                format!("The registry `{}` answers with something else than a list of {member}", client.host());
            Error::new(ErrorKind::Registry, message)
        })?;
        let (before, last, full) = (names.len(), listed.last().cloned(), listed.len() >= NAMES);
        names.extend(listed);
        match (names.len() > before, last) {
            (false, Some(_)) if pages.has_next() => return Err(pages.endless().into()),
            // There may be more without a word of it; a registry that has given all gives the same again.
            (true, Some(last)) if full && !pages.has_next() => pages.go_on_at(with_parameters(list, Some(&last))),
            _ => {}
        }
    }
    Ok(names)
}

/// The address of as many names as are asked for at once, of those after `last`.
fn with_parameters(list: &Url, last: Option<&str>) -> Url {
    let mut url = list.clone();
    {
        let mut query = url.query_pairs_mut();
        query.append_pair("n", &NAMES.to_string());
        query.extend_pairs(last.map(|last| ("last", last)));
    }
    url
}

/// The names that a page has as `member`: where there are none, some registries write `null`, or nothing.
fn listed(page: &[u8], member: &str) -> Option<Vec<String>> {
    let page = json::parse(page).ok()?;
    match page.as_object()?.get(member) {
        None | Some(serde_json::Value::Null) => Some(Vec::new()),
        Some(names) => names.as_array()?.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_names_are_written_in_many_ways() {
        let names = |page: &str| listed(page.as_bytes(), "tags");
        assert_eq!(names(r#"{"name":"a","tags":["b","a"]}"#), Some(vec!["b".to_owned(), "a".to_owned()]));
        for none in [r#"{"tags":null}"#, r#"{"tags":[]}"#, "{}"] {
            assert_eq!(names(none), Some(Vec::new()), "{none}");
        }
        for odd in ["", "[]", "null", r#"{"tags":"a"}"#, r#"{"tags":[1]}"#, r#"{"tags":[null]}"#, "<html>"] {
            assert_eq!(names(odd), None, "{odd}");
        }
    }
}
