//! Pushes: where a blob goes, what is never published, and what a lost answer costs.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, LOCATION, WWW_AUTHENTICATE};
use kiln::ErrorKind;
use kiln::oci::{Descriptor, MediaType};
use kiln::registry::{Anonymous, Remote};
use kiln::storage::{Push, Pushed};

use crate::scene::*;
use crate::scripted::*;
use crate::shelf::*;

#[tokio::test]
async fn what_is_pushed_is_pulled_and_nothing_is_sent_twice() {
    let (registry, shelf, other) = (Registry::faithful().await, Shelf::with_model(), Shelf::default());
    let remote = registry.remote();
    let pushed = push(&shelf, &registry, &remote).await.unwrap();
    assert_eq!((pushed.blobs_transferred, pushed.bytes_transferred, pushed.blobs_skipped), (4, (8 << 20) + 7, 0));
    let last = registry.seen.lock().unwrap().last().unwrap().clone();
    assert!(last.is(Method::PUT, "/manifests/v1"), "the tag comes last");

    let again = push(&shelf, &registry, &remote).await.unwrap();
    assert_eq!((again.blobs_transferred, again.blobs_skipped), (0, 4));
    assert_eq!(registry.seen(Method::POST, "").len(), 4);

    let pulled = pull(&registry, &remote, &other).await.unwrap();
    assert_eq!((pulled.digest, pulled.blobs_transferred), (pushed.digest, 4));
    assert_eq!(*other.blobs.lock().unwrap(), *shelf.blobs.lock().unwrap());
    assert_eq!(*other.manifest.lock().unwrap(), *shelf.manifest.lock().unwrap());
}

#[tokio::test]
async fn a_rotten_blob_is_never_published() {
    let (registry, shelf) = (Registry::faithful().await, Shelf::with_model());
    let promised = Descriptor::of(MediaType::OLLAMA_TENSOR, &large());
    let mut rotten = large().to_vec();
    rotten[4 << 20] ^= 1;
    shelf.blobs.lock().unwrap().insert(promised.digest, rotten.into());
    let error = push(&shelf, &registry, &registry.remote()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", chain(&error));
    assert!(chain(&error).contains("`large` of `model:latest`"), "{}", chain(&error));
    assert!(!registry.has(&promised));
    assert!(registry.manifests.lock().unwrap().is_empty());

    let error = within(registry.remote().push(&promised, &Content("short".into()))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(registry.seen(Method::DELETE, "/uploads/").len(), 2, "both sessions are given back");
}

#[tokio::test]
async fn an_upload_goes_where_the_registry_says_and_its_credentials_do_not() {
    let elsewhere = Registry::faithful().await;
    let location = format!("http://{}/v2/team/model/blobs/uploads/1?_state=a%2Bb%3D", elsewhere.host);
    let registry = Registry::start(move |seen, _| match seen.header(AUTHORIZATION) {
        "" if seen.path != "/v2/" => Some(Twist::Answer(with(answer(401), WWW_AUTHENTICATE, r#"Basic realm="x""#))),
        _ if seen.method == Method::POST => Some(Twist::Instead(with(answer(202), LOCATION, &location))),
        _ => None,
    })
    .await;
    let target = Descriptor::of(MediaType::OLLAMA_TENSOR, b"small");
    let pushed =
        within(registry.remote_for(Key(alice("s3cret"))).push(&target, &Content("small".into()))).await.unwrap();
    assert_eq!(pushed, Pushed::Stored);
    assert!(elsewhere.has(&target));
    assert!(elsewhere.seen(Method::PUT, "").iter().all(|seen| seen.header(AUTHORIZATION).is_empty()));
    assert_eq!(registry.seen(Method::POST, "")[1].header(AUTHORIZATION), "Basic YWxpY2U6czNjcmV0");
}

#[tokio::test]
async fn a_lost_answer_to_the_last_request_costs_no_second_upload() {
    for lost in [|| Twist::Silence, || Twist::Instead(answer(504)), || Twist::Instead(answer(204))] {
        let registry = Registry::start(move |seen, _| seen.is(Method::PUT, "/blobs/").then(lost)).await;
        let mut options = options();
        options.closing_timeout = Duration::from_millis(300);
        let remote = Remote::new(&registry.reference(), Arc::new(Anonymous), &options).unwrap();
        let target = Descriptor::of(MediaType::OLLAMA_TENSOR, b"small");
        within(remote.push(&target, &Content("small".into()))).await.unwrap();
        assert_eq!(registry.seen(Method::PUT, "/blobs/").len(), 1);
    }
}

#[tokio::test]
async fn a_registry_that_takes_a_blob_and_loses_it_is_found_out() {
    let registry = Registry::start(|seen, _| seen.is(Method::PUT, "/blobs/").then(|| Twist::Answer(answer(204)))).await;
    let target = Descriptor::of(MediaType::OLLAMA_TENSOR, b"small");
    let error = within(registry.remote().push(&target, &Content("small".into()))).await.unwrap_err();
    assert!(error.to_string().contains("does not have it"), "{error}");
    assert_eq!(registry.seen(Method::PUT, "/blobs/").len(), 5);
}

#[tokio::test]
async fn a_session_that_is_gone_is_begun_anew() {
    let registry = Registry::start(|seen, before| {
        (seen.is(Method::PUT, "/blobs/") && before == 0).then(|| Twist::Answer(refusal(404, "BLOB_UPLOAD_UNKNOWN")))
    })
    .await;
    let target = Descriptor::of(MediaType::OLLAMA_TENSOR, b"small");
    within(registry.remote().push(&target, &Content("small".into()))).await.unwrap();
    assert!(registry.has(&target));
    assert_eq!(registry.seen(Method::POST, "/uploads/").len(), 2);
}

#[tokio::test]
async fn a_registry_that_stops_reading_is_left() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = format!("http://{}/u", listener.local_addr().unwrap());
    let deaf = tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            connections.push(connection);
        }
    });
    let registry = Registry::start(move |seen, _| {
        (seen.method == Method::POST).then(|| Twist::Instead(with(answer(202), LOCATION, &location)))
    })
    .await;
    let mut options = options();
    (options.idle_timeout, options.closing_timeout) = (Duration::from_millis(100), Duration::from_secs(60));
    let remote = Remote::new(&registry.reference(), Arc::new(Anonymous), &options).unwrap();
    let target = Descriptor::of(MediaType::OLLAMA_TENSOR, &large());
    let error = within(remote.push(&target, &Content(large()))).await.unwrap_err();
    assert!(error.to_string().starts_with("No answer for 0 s"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Registry);
    deaf.abort();
}

#[tokio::test]
async fn a_manifest_whose_blob_went_away_is_mended_once() {
    let (registry, shelf) = (Registry::faithful().await, Shelf::with_model());
    let remote = registry.remote();
    push(&shelf, &registry, &remote).await.unwrap();
    // HEAD says the blob is there; the manifest's check says it is not.
    let small = Descriptor::of(MediaType::OLLAMA_TENSOR, b"small");
    let hollow = Registry::start(move |seen, before| {
        let look = seen.is(Method::HEAD, &small.digest.to_string()) && before == 0;
        look.then(|| Twist::Answer(with(answer(200), CONTENT_LENGTH, "5")))
    })
    .await;
    let report = push(&shelf, &hollow, &hollow.remote()).await.unwrap();
    assert_eq!((report.blobs_transferred, report.blobs_skipped), (4, 0));
    assert_eq!(hollow.seen(Method::PUT, "/manifests/").len(), 2);
}
