//! Replies: the error bodies of the distribution specification, and replies that break off.

use std::convert::Infallible;
use std::io;

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};

/// Why a request is refused, in the words of distribution-spec v1.1.1, "Error Codes":
/// <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#error-codes>.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    headers: Vec<(&'static str, String)>,
}

impl Refusal {
    pub(crate) fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(status).expect("a status code");
        Self { status, code, message: message.into(), headers: Vec::new() }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "errors": [{ "code": self.code, "message": self.message, "detail": null }] });
        let mut response = reply(self.status.as_u16(), &[("content-type", "application/json")], body.to_string());
        for (name, value) in self.headers {
            response.headers_mut().append(name, header(&value));
        }
        response
    }
}

pub(crate) fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).expect("a status code")
}

/// A reply with `headers` and a body of known length.
pub(crate) fn reply(status: u16, headers: &[(&'static str, &str)], body: impl Into<Bytes>) -> Response {
    let body = body.into();
    let mut response = Response::new(Body::empty());
    *response.status_mut() = self::status(status);
    // A 204 has no Content-Length (RFC 9110, section 8.6).
    if status != 204 {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    for (name, value) in headers {
        response.headers_mut().insert(*name, header(value));
    }
    *response.body_mut() = Body::from(body);
    response
}

/// A JSON reply.
pub(crate) fn json(value: &serde_json::Value) -> Response {
    let mut response = reply(200, &[], value.to_string());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(crate) fn header(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or_else(|_| HeaderValue::from_static("unprintable"))
}

/// No reply: the connection closes before a status line is sent, because the body fails before its
/// first byte and the head waits for the body.
pub(crate) fn hang_up() -> Response {
    Response::new(Body::from_stream(stream::once(async { Err::<Bytes, _>(io::Error::other("hung up")) })))
}

/// `response` with its head as it is and `bytes` of its body, after which the connection closes.
pub(crate) fn cut(response: Response, bytes: Bytes) -> Response {
    let (parts, _) = response.into_parts();
    // The pause lets the bytes leave before the failure discards what is still buffered.
    let end = stream::once(async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        Err(io::Error::other("cut"))
    });
    Response::from_parts(parts, Body::from_stream(stream::iter([Ok(bytes)]).chain(end)))
}

/// `response` with its head as it is and `bytes` of its body, after which nothing comes.
pub(crate) fn stall(response: Response, bytes: Bytes) -> Response {
    let (parts, _) = response.into_parts();
    let silence = stream::pending::<Result<Bytes, Infallible>>();
    Response::from_parts(parts, Body::from_stream(stream::iter([Ok(bytes)]).chain(silence)))
}

/// `response` with a body that has no end, and spaces for content.
pub(crate) fn endless(response: Response) -> Response {
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    let spaces = stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[b' '; 4096])));
    Response::from_parts(parts, Body::from_stream(spaces))
}
