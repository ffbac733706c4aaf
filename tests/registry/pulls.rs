//! Pulls: streams that break, registries that lie, and addresses elsewhere.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as HttpBody;
use axum::http::Method;
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, LOCATION, RANGE, WWW_AUTHENTICATE};
use axum::response::IntoResponse;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use kiln::ErrorKind;
use kiln::oci::{Descriptor, Digest, MediaType};
use kiln::registry::{Anonymous, Remote};
use kiln::storage::{Fetch, Push as _};

use crate::scene::*;
use crate::scripted::*;
use crate::shelf::*;

#[tokio::test]
async fn a_lying_registry_leaves_nothing() {
    let registry = Registry::faithful().await;
    let shelf = Shelf::with_model();
    push(&shelf, &registry, &registry.remote()).await.unwrap();
    let name = Digest::of(b"small").to_string();
    registry.blobs.lock().unwrap().insert(name, "smell".into());
    let other = Shelf::default();
    let error = pull(&registry, &registry.remote(), &other).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", chain(&error));
    assert!(!other.blobs.lock().unwrap().contains_key(&Digest::of(b"small")));
    assert!(other.manifest.lock().unwrap().is_none());
}

#[tokio::test]
async fn a_broken_stream_is_taken_up_where_it_broke() {
    for ranges in [true, false] {
        let blob = large();
        let registry = Registry::start(move |seen, before| {
            if !seen.is(Method::GET, "/blobs/") {
                return None;
            }
            match before {
                0 => Some(Twist::Answer(cut(&blob, 3_000_000))),
                _ if ranges => None,
                _ => Some(Twist::Answer(blob.clone().into_response())),
            }
        })
        .await;
        let target = registry.keep(large());
        assert!(fetch(&registry.remote(), &target, 0).await.unwrap() == large());
        let asked = registry.seen(Method::GET, "/blobs/");
        assert_eq!(asked.len(), 2);
        let (from, to) = range_of(&asked[1]).unwrap();
        assert_eq!(to, (8 << 20) - 1);
        assert!((1..=3_000_000).contains(&from), "{from}");
    }
}

#[tokio::test]
async fn a_stream_that_stays_silent_is_taken_up_too() {
    let registry = Registry::start(|seen, before| {
        (seen.is(Method::GET, "/blobs/") && before == 0).then(|| {
            let start = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"sma"))]);
            let body = HttpBody::from_stream(start.chain(stream::pending()));
            Twist::Answer(with(body.into_response(), CONTENT_LENGTH, "5"))
        })
    })
    .await;
    let target = registry.keep(&b"small"[..]);
    let mut options = options();
    options.idle_timeout = Duration::from_millis(200);
    let remote = Remote::new(&registry.reference(), Arc::new(Anonymous), &options).unwrap();
    assert_eq!(fetch(&remote, &target, 0).await.unwrap(), "small");
    assert_eq!(registry.seen(Method::GET, "/blobs/")[1].header(RANGE), "bytes=3-4");
}

#[tokio::test]
async fn a_stream_that_never_gets_on_is_given_up() {
    let registry = Registry::start(|seen, _| {
        let from = range_of(seen).map_or(0, |(from, _)| from);
        let left = Bytes::from(vec![7; 1000 - from]);
        let part = with(cut(&left, 1), CONTENT_RANGE, format!("bytes {from}-999/1000"));
        let status = if from == 0 { 200 } else { 206 };
        seen.is(Method::GET, "/blobs/")
            .then(|| Twist::Answer((axum::http::StatusCode::from_u16(status).unwrap(), part).into_response()))
    })
    .await;
    let target = Descriptor::of(MediaType::OLLAMA_TENSOR, &[7; 1000]);
    let error = fetch(&registry.remote(), &target, 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    assert!(error.to_string().contains("of 1000 bytes"), "{error}");
    assert_eq!(registry.seen(Method::GET, "/blobs/").len(), 5);
}

/// Eight times, and five in a row would be too many.
#[tokio::test]
async fn a_stream_that_breaks_often_and_gets_on_is_not_given_up() {
    let registry = Registry::start(|seen, _| {
        let (from, to) = range_of(seen).unwrap_or((0, (8 << 20) - 1));
        let left = large().slice(from..=to);
        let part = with(cut(&left, left.len().min(3 << 19)), CONTENT_RANGE, format!("bytes {from}-{to}/{}", 8 << 20));
        let status = axum::http::StatusCode::from_u16(if from == 0 { 200 } else { 206 }).unwrap();
        seen.is(Method::GET, "/blobs/").then(|| Twist::Answer((status, part).into_response()))
    })
    .await;
    let target = Descriptor::of(MediaType::OLLAMA_TENSOR, &large());
    assert!(fetch(&registry.remote(), &target, 0).await.unwrap() == large());
    assert!(registry.seen(Method::GET, "/blobs/").len() > 5);
}

#[tokio::test]
async fn another_part_than_the_one_asked_for_is_not_taken() {
    let registry = Registry::start(|seen, _| {
        seen.is(Method::GET, "/blobs/").then(|| {
            let part = with("all".into_response(), CONTENT_RANGE, "bytes 0-2/5");
            Twist::Answer((axum::http::StatusCode::PARTIAL_CONTENT, part).into_response())
        })
    })
    .await;
    let target = registry.keep(&b"small"[..]);
    let error = fetch(&registry.remote(), &target, 2).await.unwrap_err();
    assert!(error.to_string().contains("sent another part"), "{error}");
}

#[tokio::test]
async fn a_blob_of_another_length_is_refused_before_it_is_read() {
    for content in ["smal", "small and more"] {
        let registry = Registry::faithful().await;
        let target = registry.keep(&b"small"[..]);
        registry.blobs.lock().unwrap().insert(target.digest.to_string(), content.into());
        let opened = within(registry.remote().fetch(&target, 0..target.size)).await;
        assert_eq!(opened.err().map(|error| error.kind()), Some(ErrorKind::Corrupt), "{content}");
        assert!(!within(registry.remote().exists(&target)).await.unwrap());
    }
}

#[tokio::test]
async fn a_blob_of_unknown_length_ends_where_it_should() {
    for (content, kind) in [("small", None), ("smal", Some(ErrorKind::Corrupt)), ("small!", Some(ErrorKind::Corrupt))] {
        let registry = Registry::start(move |seen, _| {
            (seen.is(Method::GET, "/blobs/") && seen.header(RANGE).is_empty()).then(|| {
                let pieces = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(content.as_bytes()))]);
                Twist::Answer(HttpBody::from_stream(pieces).into_response())
            })
        })
        .await;
        let target = registry.keep(&b"small"[..]);
        registry.blobs.lock().unwrap().insert(target.digest.to_string(), content.into());
        let outcome = fetch(&registry.remote(), &target, 0).await;
        assert_eq!(outcome.err().map(|error| error.kind()), kind, "{content}");
    }
}

#[tokio::test]
async fn no_more_than_a_range_is_asked_for_and_given() {
    for ranges in [true, false] {
        let registry = Registry::start(move |seen, _| {
            let ignored = !ranges && seen.is(Method::GET, "/blobs/");
            ignored.then(|| Twist::Answer(b"small".as_slice().into_response()))
        })
        .await;
        let target = registry.keep(&b"small"[..]);
        let remote = registry.remote();
        for (bytes, asked, expected) in [
            (0..5, "", "small"),
            (0..2, "bytes=0-1", "sm"),
            (1..4, "bytes=1-3", "mal"),
            (2..5, "bytes=2-4", "all"),
            (3..3, "none", ""),
        ] {
            let before = registry.seen(Method::GET, "/blobs/").len();
            assert_eq!(fetch_range(&remote, &target, bytes.clone()).await.unwrap(), expected, "{bytes:?}, {ranges}");
            let requests = registry.seen(Method::GET, "/blobs/");
            assert_eq!(requests.get(before).map_or("none", |seen| seen.header(RANGE)), asked, "{bytes:?}, {ranges}");
        }
    }
}

#[tokio::test]
async fn every_offset_of_a_blob_can_be_opened() {
    let registry = Registry::faithful().await;
    let (target, empty) = (registry.keep(&b"small"[..]), registry.keep(&b""[..]));
    let remote = registry.remote();
    for from in 0..=5 {
        assert_eq!(fetch(&remote, &target, from).await.unwrap(), &b"small"[usize::try_from(from).unwrap()..]);
    }
    assert_eq!(fetch(&remote, &empty, 0).await.unwrap(), "");
    assert!(within(remote.fetch(&target, 6..6)).await.is_err());
    let absent = Descriptor::of(MediaType::OLLAMA_TENSOR, b"absent");
    assert!(within(remote.fetch(&absent, 0..6)).await.unwrap().is_none());
    assert!(!within(remote.exists(&absent)).await.unwrap());
}

#[tokio::test]
async fn a_redirect_is_followed_without_credentials_and_with_the_range() {
    let storage =
        Registry::start(|seen, before| (seen.method == Method::GET && before == 0).then(|| Twist::Answer(answer(403))))
            .await;
    let signed = format!("http://{}/v2/team/model/", storage.host);
    let registry = Registry::start(move |seen, _| match seen.header(AUTHORIZATION) {
        "" if seen.path != "/v2/" => Some(Twist::Answer(with(answer(401), WWW_AUTHENTICATE, r#"Basic realm="x""#))),
        _ if seen.path.contains("/blobs/") => {
            let rest = seen.path.strip_prefix("/v2/team/model/")?;
            Some(Twist::Answer(with(answer(307), LOCATION, format!("{signed}{rest}?X-Amz-Signature=x"))))
        }
        _ => None,
    })
    .await;
    let target = storage.keep(&b"small"[..]);
    let remote = registry.remote_for(Key(alice("s3cret")));
    assert_eq!(fetch(&remote, &target, 2).await.unwrap(), "all");
    assert!(within(remote.exists(&target)).await.unwrap(), "a HEAD is redirected too");
    let asked = storage.seen(Method::GET, "/blobs/");
    assert_eq!(asked.len(), 2, "an expired address is asked for again at the registry");
    assert!(asked.iter().all(|seen| seen.header(AUTHORIZATION).is_empty() && seen.header(RANGE) == "bytes=2-4"));
    assert_eq!(registry.seen(Method::GET, "/blobs/").len(), 3);
}

#[tokio::test]
async fn a_circle_of_redirects_ends() {
    let registry = Registry::start(|seen, _| {
        (seen.path != "/v2/").then(|| Twist::Answer(with(answer(302), LOCATION, &seen.path)))
    })
    .await;
    let target = Descriptor::of(MediaType::OLLAMA_TENSOR, b"small");
    let error = within(registry.remote().fetch(&target, 0..target.size)).await.err().unwrap();
    assert!(error.to_string().starts_with("More than 5 redirects"), "{error}");
    assert_eq!(registry.seen(Method::GET, "/blobs/").len(), 6);
}

/// 301, 302 and 303 turn a write into a read, whose answer would be taken for the write's.
#[tokio::test]
async fn a_redirect_that_may_change_the_method_leads_readers_only() {
    for status in [301, 302, 303] {
        let registry = Registry::start(move |seen, _| match seen.path.as_str() {
            "/elsewhere" => Some(Twist::Answer("small".into_response())),
            "/v2/" => None,
            _ => Some(Twist::Answer(with(answer(status), LOCATION, "/elsewhere"))),
        })
        .await;
        let target = Descriptor::of(MediaType::OLLAMA_TENSOR, b"small");
        assert_eq!(fetch(&registry.remote(), &target, 0).await.unwrap(), "small", "{status}");
        assert_eq!(registry.seen(Method::GET, "/elsewhere").len(), 1);
        let error = within(registry.remote().push(&target, &Content("small".into()))).await.unwrap_err();
        assert!(error.to_string().contains(&status.to_string()), "{error}");
        for method in [Method::GET, Method::POST] {
            assert_eq!(
                registry.seen(method.clone(), "/elsewhere").len(),
                usize::from(method == Method::GET),
                "{status}"
            );
        }
    }
}
