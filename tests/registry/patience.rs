//! Registries that are busy, broken or not there: who is asked again, when, and how often.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body as HttpBody;
use axum::http::Method;
use axum::http::header::{HOST, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream;
use kiln::ErrorKind;
use kiln::registry::{Anonymous, Options, Remote, ping};
use kiln::storage::{Fetch, Refs};

use crate::scene::*;
use crate::scripted::*;

#[tokio::test]
async fn a_registry_that_is_busy_is_asked_again_when_it_says() {
    let registry = Registry::start(|seen, before| {
        let busy = before < 2 && seen.path != "/v2/";
        busy.then(|| Twist::Answer(if before == 0 { with(answer(429), RETRY_AFTER, "1") } else { answer(503) }))
    })
    .await;
    let target = registry.keep(&b"small"[..]);
    let start = Instant::now();
    assert!(within(registry.remote().exists(&target)).await.unwrap());
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(registry.seen(Method::HEAD, "").len(), 3);
}

#[tokio::test]
async fn a_date_to_come_back_at_is_kept_too() {
    let registry = Registry::start(|seen, before| {
        // Dates have whole seconds: it is between one and two until then.
        let then = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(2));
        (before == 0 && seen.path != "/v2/").then(|| Twist::Answer(with(answer(429), RETRY_AFTER, then)))
    })
    .await;
    let target = registry.keep(&b"small"[..]);
    let start = Instant::now();
    assert!(within(registry.remote().exists(&target)).await.unwrap());
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_registry_that_is_busy_for_hours_is_not_waited_for() {
    let registry = Registry::start(|seen, _| {
        (seen.path != "/v2/").then(|| Twist::Answer(with(refusal(429, "TOOMANYREQUESTS"), RETRY_AFTER, "21600")))
    })
    .await;
    let error = within(registry.remote().resolve(&registry.reference())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    assert!(error.to_string().contains("429 Too Many Requests, `TOOMANYREQUESTS` as scripted"), "{error}");
    assert!(error.hint_text().unwrap().contains("try again after"), "{:?}", error.hint_text());
    assert_eq!(registry.seen(Method::GET, "/manifests/").len(), 1);
}

#[tokio::test]
async fn what_will_not_change_is_asked_once_and_what_may_five_times() {
    for (status, times, kind) in [
        (400, 1, ErrorKind::Registry),
        (403, 1, ErrorKind::Unauthorized),
        (418, 1, ErrorKind::Registry),
        (408, 5, ErrorKind::Registry),
        (502, 5, ErrorKind::Registry),
    ] {
        let registry =
            Registry::start(move |seen, _| (seen.path != "/v2/").then(|| Twist::Answer(answer(status)))).await;
        let error = within(registry.remote().resolve(&registry.reference())).await.unwrap_err();
        assert_eq!((error.kind(), registry.seen(Method::GET, "/manifests/").len()), (kind, times), "{status}");
        let url = format!("`GET http://{}/v2/team/model/manifests/v1`", registry.host);
        assert!(error.to_string().contains(&url), "{error}");
    }
}

/// A reply with this status and a body that has no end.
fn endless(status: u16) -> Response {
    let spaces = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 4096])));
    Response::builder().status(status).body(HttpBody::from_stream(spaces)).unwrap()
}

#[tokio::test]
async fn a_reply_without_an_end_is_an_error() {
    for (path, status, says) in [
        ("/v2/team/model/manifests/v1", 200, "is larger than 4 MiB"),
        // What cannot be read of a refusal is not needed: its status says enough.
        ("/v2/team/model/manifests/v1", 403, "403 Forbidden"),
        ("/token", 200, "larger than 65536 bytes"),
    ] {
        let registry = Registry::start(move |seen, _| {
            let challenge = format!(r#"Bearer realm="http://{}/token""#, seen.header(HOST));
            Some(Twist::Answer(match seen.path.as_str() {
                "/v2/" => answer(200),
                asked if asked == path => endless(status),
                _ => with(answer(401), WWW_AUTHENTICATE, challenge),
            }))
        })
        .await;
        let error = within(registry.remote().resolve(&registry.reference())).await.unwrap_err();
        assert!(chain(&error).contains(says), "{path}: {}", chain(&error));
    }
}

#[tokio::test]
async fn a_plain_registry_that_drops_the_first_connection_is_not_taken_for_a_tls_server() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let registry = tokio::spawn(async move {
        for number in 0.. {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let length = connection.read(&mut request).await.unwrap();
            if number > 0 && length > 0 {
                let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                connection.write_all(reply).await.unwrap();
            }
        }
    });
    within(ping(&host, &alice("s3cret"), &options())).await.unwrap();
    registry.abort();
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_an_error_of_the_network() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = within(ping(&host, &alice("s3cret"), &options())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    assert!(error.to_string().starts_with("Could not connect to `127.0.0.1`"), "{error}");
    let error = within(ping("not a host", &alice("s3cret"), &options())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
}

#[tokio::test]
async fn a_registry_that_takes_a_request_and_is_silent_is_left() {
    let registry = Registry::start(|seen, _| (seen.path != "/v2/").then_some(Twist::Silence)).await;
    let options = Options { idle_timeout: Duration::from_millis(100), attempts: 2, ..options() };
    let remote = Remote::new(&registry.reference(), Arc::new(Anonymous), &options).unwrap();
    let error = within(remote.resolve(&registry.reference())).await.unwrap_err();
    assert!(error.to_string().starts_with("No answer for 0 s"), "{error}");
    assert_eq!(registry.seen(Method::GET, "/manifests/").len(), 2);
}

#[tokio::test]
async fn of_an_error_page_without_an_end_little_is_read() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    let registry = Registry::start(move |seen, _| {
        let counter = counter.clone();
        let page = stream::repeat_with(move || {
            counter.fetch_add(1 << 16, Ordering::Relaxed);
            Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 1 << 16]))
        });
        let page = HttpBody::from_stream(page);
        (seen.path != "/v2/").then(|| Twist::Answer((axum::http::StatusCode::BAD_REQUEST, page).into_response()))
    })
    .await;
    let error = within(registry.remote().resolve(&registry.reference())).await.unwrap_err();
    assert!(error.to_string().starts_with("The registry answered 400 Bad Request"), "{error}");
    // What is under way in buffers is more than what is read.
    assert!(sent.load(Ordering::Relaxed) < 32 << 20, "{sent:?}");
}
