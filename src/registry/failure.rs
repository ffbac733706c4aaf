//! One failed attempt: the error a user would read, and whether another attempt may help. Nothing a
//! registry says is trusted on the way into a message: it is bounded, and control characters go.

use std::error::Error as StdError;
use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::time::timeout;

use super::bounded;
use crate::error::{Error, ErrorKind, is_printable};
use crate::json;

/// The longest wait that a registry may ask for; beyond it the user is told instead.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Longer than anybody waits: ten years.
const DISTANT: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How much of an error reply is read.
const MAX_REPLY_SIZE: u64 = 64 << 10;
/// How many requests are left of a quota: <https://docs.docker.com/docker-hub/usage/pulls/>.
const LEFT: &str = "ratelimit-remaining";
/// How many characters of a registry's own words are repeated.
const MAX_WORDS: usize = 300;

/// Why an attempt failed.
#[derive(Debug)]
pub(super) struct Failure {
    error: Error,
    again: bool,
    after: Option<Duration>,
    status: Option<StatusCode>,
    codes: Vec<String>,
    is_too_large: bool,
}

impl From<Error> for Failure {
    /// An error that another attempt would not change.
    fn from(error: Error) -> Self {
        Self { error, again: false, after: None, status: None, codes: Vec::new(), is_too_large: false }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

impl Failure {
    /// A failure of the network or the registry that may pass.
    pub(super) fn passing(error: Error) -> Self {
        Self { again: true, ..error.into() }
    }

    /// A reply of more than `limit` bytes.
    pub(super) fn too_large(limit: u64) -> Self {
        let message = format!("The registry's reply is larger than {limit} bytes");
        Self { is_too_large: true, ..Error::new(ErrorKind::Registry, message).into() }
    }

    /// A request that got no answer.
    pub(super) fn transport(method: &Method, url: &Url, cause: reqwest::Error) -> Self {
        let request = shown(method, url);
        let host = url.host_str().unwrap_or_default();
        let (message, hint) = match tls_error(&cause) {
            Some(rustls::Error::InvalidCertificate(_)) => (
                format!("The certificate of `{host}` is not trusted: {request}"),
                Some("name the file with the certificate authority of this registry (PEM)"),
            ),
            Some(rustls::Error::InvalidMessage(_)) => (
                format!("`{host}` does not speak TLS: {request}"),
                Some("if it speaks plain HTTP and you trust the network, allow `--plain-http`"),
            ),
            Some(rustls::Error::AlertReceived(_)) => (
                format!("`{host}` refused the TLS connection: {request}"),
                Some("if it wants to see a certificate of yours, name one with `--client-cert`"),
            ),
            _ if cause.is_connect() => (format!("Could not connect to `{host}`: {request}"), None),
            _ => (format!("The connection broke: {request}"), None),
        };
        let again = hint.is_none() && !cause.is_builder();
        let error = Error::new(ErrorKind::Registry, message).caused_by(cause.without_url());
        Self { again, ..hint.into_iter().fold(error, Error::hint).into() }
    }

    /// A request that waited `waited` for the other side and gave up.
    pub(super) fn stalled(method: &Method, url: &Url, waited: Duration) -> Self {
        let message = format!("No answer for {} s: {}", waited.as_secs(), shown(method, url));
        Self::passing(Error::new(ErrorKind::Registry, message))
    }

    /// An answer that is none of those the protocol has for this request.
    pub(super) async fn refused(method: &Method, host: &str, response: Response, idle: Duration) -> Self {
        let status = response.status();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let quota = header(LEFT).filter(|_| status == StatusCode::TOO_MANY_REQUESTS).and_then(used_up);
        let wait = header(RETRY_AFTER.as_str()).and_then(retry_after).or(quota);
        let is_html =
            response.headers().get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/html"));
        let request = shown(method, response.url());
        // It only explains: nobody waits for it longer than for an answer.
        let reply = timeout(idle, bounded::read(response, MAX_REPLY_SIZE, idle)).await;
        let reply = reply.map(Result::unwrap_or_default).unwrap_or_default();
        let (codes, words) = registry_words(&reply, is_html);
        Self::from_reply(status, &request, host, wait, codes, &words)
    }

    fn from_reply(
        status: StatusCode,
        request: &str,
        host: &str,
        wait: Option<Duration>,
        codes: Vec<String>,
        words: &str,
    ) -> Self {
        let kind = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::Unauthorized,
            // Without a code it is not the registry that speaks: the address is wrong.
            StatusCode::NOT_FOUND if !codes.is_empty() => ErrorKind::NotFound,
            _ if codes.iter().any(|code| code == "MANIFEST_BLOB_UNKNOWN") => ErrorKind::NotFound,
            _ => ErrorKind::Registry,
        };
        let separator = if words.is_empty() { "" } else { ", " };
        let mut error =
            Error::new(kind, format!("The registry answered {}{separator}{words}: {request}", phrase(status)));
        if kind == ErrorKind::Unauthorized {
            error = error.hint(format!("kiln login {host}"));
        }
        // 499 is a proxy's: whoever it asked for us hung up.
        let mut again = status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
            || matches!(status.as_u16(), 408 | 429 | 499);
        if again && let Some(wait) = wait.filter(|wait| *wait > LONGEST_WAIT) {
            again = false;
            // A date has four digits for the year, whatever the registry dreams of.
            let then = SystemTime::now() + wait.min(DISTANT);
            let then = httpdate::fmt_http_date(then);
            error = error.hint(match status {
                StatusCode::TOO_MANY_REQUESTS => format!(
                    "the registry's quota is used up: try again after {then}, or `kiln login {host}` for one of your own"
                ),
                _ => format!("the registry asks to try again after {then}"),
            });
        }
        Self { after: wait, again, status: Some(status), codes, ..error.into() }
    }

    /// The same failure with another hint for whoever was not let in.
    pub(super) fn remedied(self, remedy: Option<&str>) -> Self {
        match remedy {
            Some(remedy) if self.error.kind() == ErrorKind::Unauthorized => {
                Self { error: self.error.hint(remedy), ..self }
            }
            _ => self,
        }
    }

    /// Whether it is a reply that was not read to its end, because it had too much.
    pub(super) fn is_too_large(&self) -> bool {
        self.is_too_large
    }

    /// Whether another attempt may help.
    pub(super) fn may_pass(&self) -> bool {
        self.again
    }

    /// How long the registry asked to wait.
    pub(super) fn after(&self) -> Option<Duration> {
        self.after
    }

    /// The status of the answer, if there was one.
    pub(super) fn status(&self) -> Option<StatusCode> {
        self.status
    }

    /// Whether the registry says that the request was wrong, and would be again.
    pub(super) fn is_refusal(&self) -> bool {
        self.status.is_some_and(|status| status.is_client_error())
    }

    /// Whether the registry gave the error code `code` of OCI distribution-spec v1.1.1.
    pub(super) fn has_code(&self, code: &str) -> bool {
        self.codes.iter().any(|given| given == code)
    }

    /// The same failure, which may pass after all, and at once.
    pub(super) fn passes(self) -> Self {
        Self { again: true, after: None, ..self }
    }
}

/// A request as messages show it: no user, no query (it may hold a signature), no fragment.
pub(super) fn shown(method: &Method, url: &Url) -> String {
    format!("`{method} {}`", address(url))
}

/// A URL as messages show it.
pub(super) fn address(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Both fail only for URLs without a host, which no request has.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

fn phrase(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

/// The codes and the text of an error reply: `{"errors":[{"code","message"}]}` of OCI
/// distribution-spec v1.1.1, "Error Codes", or a line of plain text.
fn registry_words(reply: &[u8], is_html: bool) -> (Vec<String>, String) {
    let text = |value: &serde_json::Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    if let Ok(value) = json::parse(reply) {
        let errors = value["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
        let codes = errors.iter().map(|error| text(error, "code")).collect();
        let words = errors
            .iter()
            .map(|error| {
                let (code, message) = (text(error, "code"), text(error, "message"));
                if code.is_empty() { message } else { format!("`{code}` {message}") }
            })
            .collect::<Vec<_>>();
        return (codes, printable(&words.join("; ")));
    }
    let line = String::from_utf8_lossy(reply);
    (Vec::new(), if is_html { String::new() } else { printable(line.lines().next().unwrap_or_default()) })
}

/// Foreign text, safe for a terminal and not too long.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|letter| is_printable(*letter)).take(MAX_WORDS).collect::<String>().trim().to_owned()
}

/// RFC 9110, "Retry-After": seconds or a date. Anything else is as if it was not there.
fn retry_after(value: &str) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = httpdate::parse_http_date(value).ok()?;
    Some(then.duration_since(SystemTime::now()).unwrap_or_default())
}

/// For how long at most a quota is used up, by a header as Docker Hub has it: `0;w=21600`, none left in 21600 s.
fn used_up(left: &str) -> Option<Duration> {
    let mut parts = left.split(';').map(str::trim);
    let is_used_up = parts.next()?.parse() == Ok(0_u64);
    let window = parts.find_map(|part| part.strip_prefix("w=")?.parse().ok())?;
    is_used_up.then(|| Duration::from_secs(window))
}

/// Whether what answered is no TLS server.
pub(super) fn speaks_no_tls(error: &reqwest::Error) -> bool {
    matches!(tls_error(error), Some(rustls::Error::InvalidMessage(_)))
}

/// The TLS error behind `error`.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref() {
            return Some(error);
        }
        // An `io::Error` leaves what it wraps out of its sources.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = wrapped.map(|wrapped| wrapped as &(dyn StdError + 'static)).or_else(|| error.source());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_shows_no_user_and_no_query() {
        let url = Url::parse("https://alice:s3cret@cdn.example/v2/a?X-Amz-Signature=s3cret#s3cret").unwrap();
        assert_eq!(shown(&Method::GET, &url), "`GET https://cdn.example/v2/a`");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let later = SystemTime::now() + Duration::from_secs(3600);
        let wait = retry_after(&httpdate::fmt_http_date(later)).unwrap().as_secs();
        assert!((3590..=3600).contains(&wait), "{wait}");
        for odd in ["", "soon", "-1", "880.092µs", "1.5"] {
            assert_eq!(retry_after(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_quota_says_for_how_long_it_is_used_up() {
        assert_eq!(used_up("0;w=21600"), Some(Duration::from_secs(21600)));
        assert_eq!(used_up("0; w=60"), Some(Duration::from_secs(60)));
        for other in ["1;w=21600", "100;w=21600", "0", "", "none;w=1", "0;w=soon"] {
            assert_eq!(used_up(other), None, "{other}");
        }
    }

    #[test]
    fn the_registrys_words_are_bounded_and_printable() {
        let reply = br#"{"errors":[{"code":"DENIED","message":"no\u001b[31m"},{"message":"really"}]}"#;
        let (codes, words) = registry_words(reply, false);
        assert_eq!(codes, ["DENIED", ""]);
        assert_eq!(words, "`DENIED` no[31m; really");
        assert_eq!(registry_words(b"busy\nsecond line", false).1, "busy");
        assert_eq!(registry_words(b"<html>busy", true).1, "");
        assert_eq!(registry_words("é".repeat(1000).as_bytes(), false).1.chars().count(), MAX_WORDS);
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let coded = |status: u16, wait: Option<u64>, codes: &[&str]| {
            let status = StatusCode::from_u16(status).unwrap();
            let codes = codes.iter().map(|&code| code.to_owned()).collect();
            Failure::from_reply(status, "`GET x`", "r.example", wait.map(Duration::from_secs), codes, "")
        };
        let failure = |status, wait| coded(status, wait, &["UNKNOWN"]);
        for (status, again, kind) in [
            (400, false, ErrorKind::Registry),
            (401, false, ErrorKind::Unauthorized),
            (403, false, ErrorKind::Unauthorized),
            (404, false, ErrorKind::NotFound),
            (405, false, ErrorKind::Registry),
            (408, true, ErrorKind::Registry),
            (409, false, ErrorKind::Registry),
            (411, false, ErrorKind::Registry),
            (413, false, ErrorKind::Registry),
            (416, false, ErrorKind::Registry),
            (429, true, ErrorKind::Registry),
            (451, false, ErrorKind::Registry),
            (499, true, ErrorKind::Registry),
            (500, true, ErrorKind::Registry),
            (501, false, ErrorKind::Registry),
            (502, true, ErrorKind::Registry),
            (503, true, ErrorKind::Registry),
            (504, true, ErrorKind::Registry),
            (522, true, ErrorKind::Registry),
            (524, true, ErrorKind::Registry),
        ] {
            let failure = failure(status, None);
            assert_eq!((failure.may_pass(), failure.error.kind()), (again, kind), "{status}");
        }
        assert_eq!(coded(404, None, &[]).error.kind(), ErrorKind::Registry, "no registry speaks");
        assert_eq!(failure(401, None).error.hint_text(), Some("kiln login r.example"));
        assert!(failure(429, Some(60)).may_pass());
        for wait in [61, 6 * 3600, u64::MAX] {
            let too_long = failure(429, Some(wait));
            assert!(!too_long.may_pass());
            assert!(too_long.error.hint_text().unwrap().contains("GMT"));
        }
    }
}
