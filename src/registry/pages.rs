//! Lists that come in pages, each of which names the next: tags, repositories, referrers. A registry decides how
//! many pages there are, and we how many are read: so many, so long, and none twice.

use std::collections::BTreeSet;

use bytes::Bytes;
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, LINK};
use reqwest::{Method, Response, StatusCode, Url};

use super::auth::Access;
use super::bounded;
use super::client::{Call, Client};
use super::failure::{Failure, address};
use crate::error::{Error, ErrorKind, Result};

/// How many pages are read.
const MAX_PAGES: usize = 2_000;
/// How many bytes of one page are read: a registry without pages lists 100,000 tags in one.
const MAX_PAGE_SIZE: u64 = 16 << 20;
/// How many bytes of all pages are read.
const MAX_LIST_SIZE: u64 = 64 << 20;

/// A page as it came.
pub(super) struct Page {
    pub(super) headers: HeaderMap,
    pub(super) bytes: Bytes,
}

/// A walk from page to page.
pub(super) struct Pages<'a> {
    client: &'a Client,
    access: Access,
    accept: HeaderValue,
    next: Option<Url>,
    seen: BTreeSet<Url>,
    left: u64,
}

impl<'a> Pages<'a> {
    pub(super) fn new(client: &'a Client, first: Url, access: Access, accept: HeaderValue) -> Self {
        Self { client, access, accept, next: Some(first), seen: BTreeSet::new(), left: MAX_LIST_SIZE }
    }

    /// The next page; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Page>, Failure> {
        let Some(url) = self.next.take() else { return Ok(None) };
        if self.seen.len() == MAX_PAGES || !self.seen.insert(url.clone()) {
            return Err(self.endless().into());
        }
        let (page, next) = self.client.persist(|| self.page(&url)).await?;
        self.left -= page.bytes.len() as u64;
        self.next = next;
        Ok(Some(page))
    }

    /// Whether the registry named a next page.
    pub(super) fn has_next(&self) -> bool {
        self.next.is_some()
    }

    /// Goes on at a page that the registry did not name.
    pub(super) fn go_on_at(&mut self, url: Url) {
        self.next = Some(url);
    }

    /// The error for pages that bring nothing new.
    pub(super) fn endless(&self) -> Error {
        let message = format!("The registry `{}` gives a list that does not end", self.client.host());
        Error::new(ErrorKind::Registry, message)
    }

    async fn page(&self, url: &Url) -> Result<(Page, Option<Url>), Failure> {
        let call = Call::new(Method::GET, url.clone(), self.access.clone()).header(ACCEPT, self.accept.clone());
        let response = self.client.exchange(&call).await?;
        if response.status() != StatusCode::OK {
            return Err(self.client.refused(&call, response).await);
        }
        let next = self.link(&response).await?;
        let headers = response.headers().clone();
        let bytes = bounded::read(response, MAX_PAGE_SIZE.min(self.left), self.client.idle()).await?;
        Ok((Page { headers, bytes }, next))
    }

    /// The address of the page after `response`: of this registry, or it is an error.
    async fn link(&self, response: &Response) -> Result<Option<Url>, Failure> {
        let links = response.headers().get_all(LINK).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        let Some(target) = links.into_iter().find_map(|links| next_of(&links).map(str::to_owned)) else {
            return Ok(None);
        };
        let url = self.client.follow(response, &target)?;
        if url.origin() == self.client.base().await?.origin() {
            return Ok(Some(url));
        }
        let message = format!("The registry `{}` goes on with a list elsewhere", self.client.host());
        Err(Error::new(ErrorKind::Registry, format!("{message}: `{}`", address(&url))).into())
    }
}

/// The target of the link with the relation `next` in a `Link` header, of RFC 8288, section 3.
pub(super) fn next_of(header: &str) -> Option<&str> {
    let mut rest = header;
    loop {
        let (target, after) = rest.split_once('<')?.1.split_once('>')?;
        let mut quoted = false;
        let end = after.find(|letter| {
            quoted ^= letter == '"';
            letter == ',' && !quoted
        });
        let (parameters, others) = after.split_at(end.unwrap_or(after.len()));
        if parameters.split(';').filter_map(|parameter| parameter.split_once('=')).any(is_next) {
            return Some(target);
        }
        rest = others;
    }
}

/// Whether the parameter of a link says that it leads to the next page.
fn is_next((name, value): (&str, &str)) -> bool {
    let mut relations = value.trim().trim_matches('"').split_ascii_whitespace();
    name.trim().eq_ignore_ascii_case("rel") && relations.any(|relation| relation.eq_ignore_ascii_case("next"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_however_it_is_written() {
        for (header, target) in [
            (r#"</v2/a/tags/list?n=2&last=b>; rel="next""#, Some("/v2/a/tags/list?n=2&last=b")),
            ("</p?last=a,b>; rel=next", Some("/p?last=a,b")),
            (r#"<https://r.example/p>;REL="prev Next""#, Some("https://r.example/p")),
            (r#"</first>; rel=first; title="a, <b>", </p>; title=c; rel="next""#, Some("/p")),
            ("<>; rel=next", Some("")),
            (r#"</p>; rel="prev""#, None),
            ("</p>; rel=nextish", None),
            ("</p>", None),
            ("</p; rel=next", None),
            ("rel=next", None),
            ("", None),
        ] {
            assert_eq!(next_of(header), target, "{header}");
        }
    }
}
