//! The headers of replies that decide where a request goes and what a body is, for `fuzz/`: their parsers as a registry
//! reaches them. No part of the interface.

use std::ops::Range;

use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};

/// The realm and the scopes of the challenge that is answered among those of `WWW-Authenticate`, where it is for a token.
pub fn challenge(value: &HeaderValue) -> Option<(String, Vec<String>)> {
    super::auth::token_service(&HeaderMap::from_iter([(WWW_AUTHENTICATE, value.clone())]))
}

/// The target of the link to the next page in `Link`.
pub fn next_page(link: &str) -> Option<&str> {
    super::pages::next_of(link)
}

/// Whether `Content-Range` says that a 206 holds exactly `bytes` of a blob of `size` bytes.
pub fn is_exactly(range: &HeaderValue, bytes: &Range<u64>, size: u64) -> bool {
    super::download::is_exactly(&HeaderMap::from_iter([(CONTENT_RANGE, range.clone())]), bytes, size)
}
