//! What bounds a registry: replies that do not end, quotas that are used up, and mirrors that are asked once.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

#[path = "cli/place.rs"]
#[allow(dead_code, reason = "the tests of the command line use all of it")]
mod place;
#[path = "registry_auth/scripted.rs"]
#[allow(dead_code, reason = "the tests of credentials use all of it")]
mod scripted;

use std::convert::Infallible;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderName;
use axum::http::header::{AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use kiln::registry::{Anonymous, Options, Remote};
use kiln::storage::Refs as _;
use kiln::{Error, ErrorKind};
use place::Place;
use registry_fixtures::{Auth, Fault, Fixture, Options as Registry, Trigger};
use scripted::{Server, answer, refusal, with, within};

/// What asking `server` for a manifest ends in.
async fn refused(server: &Server) -> Error {
    let reference = format!("{}/team/model:v1", server.host()).parse().unwrap();
    let options = Options {
        first_pause: Duration::from_millis(5),
        idle_timeout: Duration::from_millis(500),
        attempts: 3,
        ..Options::default()
    };
    let remote = Remote::new(&reference, Arc::new(Anonymous), &options).unwrap();
    within(remote.resolve(&reference)).await.unwrap_err()
}

/// A reply without an end, `pause` between its chunks of `chunk` bytes.
fn endless(status: u16, chunk: usize, pause: Duration) -> Response {
    let chunks = stream::repeat(Bytes::from(vec![b' '; chunk]));
    let chunks = futures_util::StreamExt::then(chunks, move |chunk| async move {
        tokio::time::sleep(pause).await;
        Ok::<_, Infallible>(chunk)
    });
    Response::builder().status(status).body(Body::from_stream(chunks)).unwrap()
}

#[tokio::test]
async fn a_reply_without_an_end_ends_in_an_error() {
    for (chunk, pause, says) in [
        (64 << 10, Duration::ZERO, "The registry's reply is larger than"),
        // Never silent, and never done.
        (1, Duration::from_millis(100), "The registry's reply does not end"),
    ] {
        let of_manifest = Server::start(move |seen, _| match seen.path.as_str() {
            "/v2/" => answer(200),
            _ => endless(200, chunk, pause),
        })
        .await;
        let error = refused(&of_manifest).await.chain();
        assert!(error.contains(says), "{error}");

        let of_token = Server::start(move |seen, _| match seen.path.as_str() {
            "/v2/" => answer(200),
            "/token" => endless(200, chunk, pause),
            _ => {
                let realm = format!(r#"Bearer realm="http://{}/token""#, seen.header(axum::http::header::HOST));
                with(answer(401), WWW_AUTHENTICATE, realm)
            }
        })
        .await;
        let error = refused(&of_token).await;
        assert!(error.to_string().starts_with(says), "{error}");

        let of_error = Server::start(move |seen, _| match seen.path.as_str() {
            "/v2/" => answer(200),
            _ => endless(400, chunk, pause),
        })
        .await;
        let error = refused(&of_error).await;
        assert!(error.to_string().starts_with("The registry answered 400 Bad Request"), "{error}");
    }
}

const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");

#[tokio::test]
async fn a_quota_that_is_used_up_is_not_asked_again_and_says_until_when() {
    let exhausted = || refusal(429, "TOOMANYREQUESTS");
    type Reply = fn(Response) -> Response;
    let replies: [(Reply, usize); 5] = [
        (|reply| with(reply, REMAINING, "0;w=21600"), 1),
        (|reply| with(reply, RETRY_AFTER, "3600"), 1),
        (|reply| with(reply, RETRY_AFTER, "Fri, 31 Dec 2100 23:59:59 GMT"), 1),
        // It is only busy, and says for how long.
        (|reply| with(with(reply, REMAINING, "0;w=21600"), RETRY_AFTER, "0"), 3),
        (|reply| with(reply, REMAINING, "7;w=21600"), 3),
    ];
    for (reply, times) in replies {
        let server = Server::start(move |seen, _| match seen.path.as_str() {
            "/v2/" => answer(200),
            _ => reply(exhausted()),
        })
        .await;
        let error = refused(&server).await;
        assert_eq!((error.kind(), server.seen("/manifests/").len()), (ErrorKind::Registry, times), "{error}");
        let hint = error.hint_text().unwrap_or_default();
        assert_eq!(hint.contains("quota is used up: try again after") && hint.contains("GMT"), times == 1, "{hint}");
    }
}

/// A place whose configuration names these mirrors of `host`.
fn mirrored(host: &str, mirrors: &[String]) -> Place {
    let place = Place::with_model();
    let directory = place.path("home/.config/kiln");
    fs::create_dir_all(&directory).unwrap();
    let text = format!("[registry.\"{host}\"]\nmirrors = {mirrors:?}\n");
    fs::write(directory.join("config.toml"), text).unwrap();
    place
}

#[test]
fn mirrors_are_pulled_from_in_order_and_never_pushed_to() {
    let registry = Fixture::start_with(Registry::default().auth(Auth::basic("ada", "secret")));
    let (empty, lying, good, unused) = (Fixture::start(), Fixture::start(), Fixture::start(), Fixture::start());
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let mirrors = [gone, empty.host(), lying.host(), format!("{}/hub", good.host()), unused.host()];
    let place = mirrored(&registry.host(), &mirrors);
    // `ada:secret`.
    let entry = format!(r#"{{"auths":{{"{}":{{"auth":"YWRhOnNlY3JldA=="}}}}}}"#, registry.host());
    fs::create_dir_all(place.path("home/.docker")).unwrap();
    fs::write(place.path("home/.docker/config.json"), entry).unwrap();

    place.kiln(&format!("push demo:int4 {}/team/demo:int4", registry.host())).expect(0);
    for mirror in [&empty, &lying, &good, &unused] {
        assert!(mirror.requests().is_empty(), "{:?}", mirror.requests());
    }
    place.kiln(&format!("push demo:int4 {}/team/demo:int4", lying.host())).expect(0);
    lying.corrupt_blob(&place.layer("lm_head.weight"));
    place.kiln(&format!("push demo:int4 {}/hub/team/demo:int4", good.host())).expect(0);
    for fixture in [&registry, &lying, &good] {
        fixture.clear_requests();
    }

    let pulled = place.kiln(&format!("pull {}/team/demo:int4 --store other", registry.host()));
    pulled.expect(0);
    assert_eq!(pulled.stderr.matches("is passed over").count(), 3, "{pulled}");
    assert_eq!(empty.requests().iter().filter(|request| request.path.contains("/manifests/")).count(), 1);
    assert!(!lying.requests().is_empty() && !good.requests().is_empty());
    assert!(unused.requests().is_empty() && registry.requests().is_empty());
    // The registry's credentials are not the mirrors'.
    for request in [&empty, &lying, &good].iter().flat_map(|mirror| mirror.requests()) {
        assert_eq!(request.header(AUTHORIZATION.as_str()), None, "{request:?}");
    }
    place.kiln(&format!("verify {}/team/demo:int4 --store other", registry.host())).expect(0);
}

#[test]
fn without_a_mirror_that_has_it_the_registry_is_asked() {
    let (registry, empty) = (Fixture::start(), Fixture::start());
    let busy = Fault::Status { code: 503, retry_after: None, body: String::new() };
    let busy = Fixture::start_with(Registry::default().fault(Trigger::on("*", "").always(), busy));
    let place = mirrored(&registry.host(), &[busy.host(), empty.host()]);
    let remote = format!("{}/team/demo:int4", registry.host());
    place.kiln(&format!("push demo:int4 {remote}")).expect(0);
    place.kiln(&format!("pull {remote} --store other")).expect(0);
    let missing = place.kiln(&format!("pull {}/team/none:int4 --store other", registry.host()));
    missing.expect(6);
    // A model from a registry is a pull, too.
    place.kiln(&format!("create again:int4 {remote} --store third")).expect(0);
    for mirror in [&empty, &busy] {
        // One that cannot serve is asked once, and not until it can: there is another.
        let asked = mirror.requests().iter().filter(|request| request.path.contains("/manifests/")).count();
        assert_eq!(asked, 3);
    }
}
