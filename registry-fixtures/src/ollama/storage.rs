//! The storage behind the registry, on a port of its own: addresses that are signed, each for one thing, and
//! whoever comes with credentials is refused.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, COOKIE, RANGE};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use md5::{Digest as _, Md5};
use sha2::Sha256;

use super::{Shared, hex};
use crate::fault::Fault;
use crate::incoming::Incoming;
use crate::registry::{byte_range, spoil_reply};
use crate::reply::{self, Refusal, reply};

/// What a signed address is for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// To read a blob.
    Read(String),
    /// To write these bytes of an upload: the number of the part, or `None` for all of it.
    Write { upload: String, part: Option<usize>, length: u64 },
}

/// The header that an address for a whole blob is signed with, and its value.
pub(super) fn signed_header(digest: &str) -> (&'static str, String) {
    let bytes: Vec<u8> = digest.trim_start_matches("sha256:").as_bytes().chunks(2).filter_map(byte).collect();
    ("x-amz-checksum-sha256", STANDARD.encode(bytes))
}

fn byte(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

pub(super) async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let (record, faults) = shared.record(&parts, true);
    let mut body = Incoming::new(body, record.clone());
    let mut given = None;
    for fault in &faults {
        match fault {
            Fault::Status { code, body, .. } => given = Some(reply(*code, &[], body.clone())),
            Fault::DropRequest { after } => body.break_after(*after),
            _ => {}
        }
    }
    let flips = faults.iter().any(|fault| matches!(fault, Fault::FlipBit { .. }));
    let _writing = (parts.method == Method::PUT).then(|| Writing::new(&shared));
    let response = match given {
        Some(response) => response,
        None => carry_out(&shared, &parts, &mut body, flips).await.unwrap_or_else(IntoResponse::into_response),
    };
    body.drain().await;
    if body.is_broken() {
        return reply::hang_up();
    }
    let faults: Vec<Fault> = faults.into_iter().filter(|fault| !matches!(fault, Fault::FlipBit { .. })).collect();
    let Some(response) = spoil_reply(response, &faults).await else { return reply::hang_up() };
    record.change(|record| record.status = response.status().as_u16());
    response
}

/// A request that writes, while it does.
struct Writing<'a>(&'a Shared);

impl<'a> Writing<'a> {
    fn new(shared: &'a Shared) -> Self {
        let mut state = shared.state();
        state.writing += 1;
        state.most_writing = state.most_writing.max(state.writing);
        Self(shared)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.state().writing -= 1;
    }
}

impl Shared {
    /// Waits until as many write at once as must, for as long as the client does.
    async fn wait_for_company(&self) {
        while self.state().most_writing < self.options.together {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn carry_out(
    shared: &Shared,
    parts: &axum::http::request::Parts,
    body: &mut Incoming,
    flips: bool,
) -> Result<Response, Refusal> {
    let denied = |what: &str| Refusal::new(403, "AccessDenied", what);
    for secret in [AUTHORIZATION, COOKIE] {
        if parts.headers.contains_key(secret) {
            return Err(denied("only one way to prove who asks is allowed"));
        }
    }
    let address = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let purpose = shared.state().addresses.get(address).cloned().ok_or_else(|| denied("the signature has expired"))?;
    match (&parts.method, purpose) {
        (&Method::GET, Purpose::Read(digest)) => {
            let blob = shared.state().blobs.get(&digest).cloned().ok_or_else(|| denied("no such key"))?;
            let range = parts.headers.get(RANGE).and_then(|range| range.to_str().ok());
            match range.and_then(|range| byte_range(range, blob.len())) {
                None => Ok(reply(200, &[], blob)),
                Some(None) => Err(Refusal::new(416, "InvalidRange", "outside the object")),
                Some(Some((first, last))) => {
                    let range = format!("bytes {first}-{last}/{}", blob.len());
                    Ok(reply(206, &[("content-range", &range)], blob.slice(first..=last)))
                }
            }
        }
        (&Method::PUT, Purpose::Write { upload, part, length }) => {
            let announced = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
            if announced != Some(length) {
                return Err(Refusal::new(400, "IncompleteBody", format!("{length} bytes were announced")));
            }
            shared.wait_for_company().await;
            let mut bytes = body.all(usize::MAX).await?.to_vec();
            if body.is_broken() {
                return Err(Refusal::new(400, "IncompleteBody", "the body broke off"));
            }
            if part.is_none() {
                let checksum = STANDARD.encode(Sha256::digest(&bytes));
                let told = parts.headers.get(signed_header("").0).and_then(|value| value.to_str().ok());
                if told != Some(&checksum) {
                    return Err(denied("the signed checksum is missing, or not that of the body"));
                }
            }
            if flips && let Some(first) = bytes.first_mut() {
                *first ^= 1;
            }
            let etag = format!("\"{}\"", hex(&Md5::digest(&bytes)));
            let mut state = shared.state();
            let upload = state.uploads.get_mut(&upload).ok_or_else(|| denied("no such upload"))?;
            upload.stored.insert(part, bytes.into());
            Ok(reply(200, &[("etag", &etag)], Bytes::new()))
        }
        _ => Err(denied("the address was signed for another method")),
    }
}
