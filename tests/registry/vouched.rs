//! What its source vouches for leaves without being hashed, where the registry has shown that it hashes; nowhere else.

use std::ops::Range;

use axum::http::Method;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use kiln::oci::{Algorithm, Descriptor, MediaType};
use kiln::storage::{Body, ByteStream, Push as _};
use kiln::{ErrorKind, Result};

use crate::scene::*;
use crate::scripted::*;
use crate::shelf::*;

const LARGE: usize = 17 << 20;

/// How a registry departs from the protocol.
type Answer = fn() -> Twist;

/// Bytes that their source vouches for, rightly or not.
struct Vouched(Content);

impl Body for Vouched {
    fn open(&self, bytes: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        self.0.open(bytes)
    }

    fn is_vouched_for(&self) -> bool {
        true
    }
}

fn vouched(content: Bytes) -> Vouched {
    Vouched(Content(content))
}

fn of(byte: u8, length: usize) -> Bytes {
    vec![byte; length].into()
}

/// A blob, and other bytes in its place.
fn rotten(length: usize) -> (Descriptor, Vouched) {
    let mut bytes = vec![7; length];
    let promised = Descriptor::of(MediaType::OLLAMA_TENSOR, &bytes);
    bytes[length / 2] ^= 1;
    (promised, vouched(bytes.into()))
}

#[tokio::test]
async fn a_registry_that_checks_gets_what_was_not_hashed_and_finds_what_rotted() {
    let registry = Registry::faithful().await;
    let remote = registry.remote();
    let (promised, rotten) = rotten(LARGE);
    let error = within(remote.push(&promised, &rotten)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "it is not the registry that is wrong: {}", chain(&error));
    assert!(chain(&error).contains("has other bytes, of digest"), "{}", chain(&error));
    let refused = registry.refused.lock().unwrap().clone();
    assert!(refused.len() == 2 && refused[0] < 100 && refused[1] == LARGE, "{refused:?}");
    assert!(registry.blobs.lock().unwrap().is_empty());

    let sound = Descriptor::of(MediaType::OLLAMA_TENSOR, &of(8, LARGE));
    within(remote.push(&sound, &vouched(of(8, LARGE)))).await.unwrap();
    assert!(registry.has(&sound));
    assert_eq!(registry.refused.lock().unwrap().len(), 2, "it is asked once");
}

#[tokio::test]
async fn a_refusal_that_is_no_fault_of_the_bytes_is_the_registrys() {
    let registry = Registry::start(|seen, _| {
        let is_question = seen.header(axum::http::header::CONTENT_LENGTH).len() < 3;
        (seen.is(Method::PUT, "/blobs/") && !is_question).then(|| Twist::Instead(refusal(400, "DIGEST_INVALID")))
    })
    .await;
    let sound = Descriptor::of(MediaType::OLLAMA_TENSOR, &of(8, LARGE));
    let error = within(registry.remote().push(&sound, &vouched(of(8, LARGE)))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry, "{}", chain(&error));
}

#[tokio::test]
async fn a_registry_that_did_not_refuse_other_bytes_clearly_gets_none_that_were_not_hashed() {
    let answers: [(Answer, &str); 6] = [
        (|| Twist::Instead(answer(201)), "takes anything"),
        (|| Twist::Instead(answer(202)), "takes anything, later"),
        (|| Twist::Instead(answer(400)), "refuses without a reason"),
        (|| Twist::Instead(refusal(400, "BLOB_UPLOAD_INVALID")), "refuses for another reason"),
        (|| Twist::Instead(answer(403)), "refuses the user"),
        (|| Twist::Instead(answer(500)), "is broken"),
    ];
    for (twist, registry_that) in answers {
        // All answers but those of HEAD: were the rotten blob sent whole, it would be taken.
        let registry = Registry::start(move |seen, _| {
            let is_question = seen.header(axum::http::header::CONTENT_LENGTH).len() < 3;
            seen.is(Method::PUT, "/blobs/").then(|| if is_question { twist() } else { Twist::Instead(answer(201)) })
        })
        .await;
        let (promised, rotten) = rotten(LARGE);
        let error = within(registry.remote().push(&promised, &rotten)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{registry_that}: {}", chain(&error));
        let refused = registry.refused.lock().unwrap().clone();
        assert!(refused.iter().all(|length| *length < 100), "one that {registry_that} got {refused:?}");
    }
}

#[tokio::test]
async fn a_registry_is_not_asked_for_what_is_small_or_nobodys_word_or_named_by_another_digest() {
    let registry = Registry::faithful().await;
    let (small, small_body) = rotten(1 << 20);
    let (large, large_body) = rotten(LARGE);
    let bytes = of(7, LARGE);
    let other = Descriptor::new(MediaType::OLLAMA_TENSOR, Algorithm::Sha512.digest(&bytes), LARGE as u64);
    let cases: [(&Descriptor, &dyn Body); 3] = [(&small, &small_body), (&large, &large_body.0), (&other, &large_body)];
    for (promised, body) in cases {
        let error = within(registry.remote().push(promised, body)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", chain(&error));
    }
    assert_eq!(*registry.refused.lock().unwrap(), Vec::<usize>::new());
}
