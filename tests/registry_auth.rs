//! Who a registry takes us for, and who never gets to know: tokens that run out or allow too little, entries for
//! single repositories, and addresses on another port.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

#[path = "cli/place.rs"]
#[allow(dead_code, reason = "the tests of the command line use all of it")]
mod place;
#[path = "registry_auth/scripted.rs"]
mod scripted;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::header::{AUTHORIZATION, HOST, LOCATION, WWW_AUTHENTICATE};
use axum::response::IntoResponse as _;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use kiln::oci::{Descriptor, MediaType};
use kiln::registry::{Credential, Keychain, Options, Remote};
use kiln::storage::{Body, ByteStream, Fetch as _, Push as _};
use kiln::{ErrorKind, Result};
use place::Place;
use registry_fixtures::{Auth, Bearer, Fixture, Options as Registry};
use scripted::{Seen, Server, answer, refusal, with, within};

/// `alice:s3cret`.
const BASIC: &str = "Basic YWxpY2U6czNjcmV0";

struct Alice;

impl Keychain for Alice {
    fn credential(&self, _host: &str) -> Result<Option<Credential>> {
        Ok(Some(Credential::Basic { user: "alice".into(), password: "s3cret".into() }))
    }
}

struct Content(&'static [u8]);

impl Body for Content {
    fn open(&self, bytes: std::ops::Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        let rest = Bytes::from_static(&self.0[bytes.start as usize..bytes.end as usize]);
        Box::pin(async move { Ok(Box::pin(futures_util::stream::iter([Ok(rest)])) as ByteStream) })
    }
}

fn small() -> Descriptor {
    Descriptor::of(MediaType::OLLAMA_TENSOR, b"small")
}

fn remote(server: &Server) -> Remote {
    let reference = format!("{}/team/model:v1", server.host()).parse().unwrap();
    let options = Options { first_pause: Duration::from_millis(5), ..Options::default() };
    Remote::new(&reference, Arc::new(Alice), &options).unwrap()
}

#[test]
fn tokens_that_live_two_seconds_are_enough_for_a_transfer_that_takes_longer() {
    let Auth::Bearer(bearer) = Auth::bearer("ada", "secret") else { unreachable!() };
    let auth = Auth::Bearer(Bearer { lifetime: Duration::from_secs(2), ..bearer });
    let registry = Fixture::start_with(Registry::default().auth(auth));
    let place = Place::with_model();
    let remote = format!("{}/demo:int4", registry.host());
    fs::create_dir_all(place.path("home/.docker")).unwrap();
    // `ada:secret`.
    let entry = format!(r#"{{"auths":{{"{}":{{"auth":"YWRhOnNlY3JldA=="}}}}}}"#, registry.host());
    fs::write(place.path("home/.docker/config.json"), entry).unwrap();
    for words in [format!("push demo:int4 {remote}"), format!("pull {remote} --store other")] {
        registry.clear_requests();
        let start = Instant::now();
        place.kiln(&format!("{words} --limit-rate 40K --concurrency 1")).expect(0);
        let seconds = start.elapsed().as_secs() as usize;
        let tokens = registry.requests().iter().filter(|request| request.path == "/token").count();
        // A token is renewed at half its life. A push begins with one to pull.
        assert!(tokens >= 2 && tokens <= seconds + 3, "{tokens} tokens in {seconds} s: {words}");
    }
}

/// A registry whose token allows too little until it was asked for `repository:team/model:pull,delete`, which it says
/// with `status`.
async fn grudging(status: u16, gives_in: bool) -> Server {
    Server::start(move |seen: &Seen, _| {
        let challenge = |more: &str| {
            format!(
                r#"Bearer realm="http://{}/token",service="s",scope="repository:team/model:{more}""#,
                seen.header(HOST)
            )
        };
        match (seen.path.as_str(), seen.header(AUTHORIZATION)) {
            ("/v2/", _) => answer(200),
            ("/token", _) if seen.query.contains("delete") => r#"{"token":"wide"}"#.into_response(),
            ("/token", _) => r#"{"token":"narrow"}"#.into_response(),
            (_, "Bearer wide") if gives_in => "small".into_response(),
            (_, "") => with(refusal(401, "UNAUTHORIZED"), WWW_AUTHENTICATE, challenge("pull")),
            _ => with(refusal(status, "DENIED"), WWW_AUTHENTICATE, challenge("pull,delete")),
        }
    })
    .await
}

#[tokio::test]
async fn a_registry_that_wants_another_scope_is_answered_once_more() {
    for status in [401, 403] {
        let server = grudging(status, true).await;
        let remote = remote(&server);
        assert!(within(remote.exists(&small())).await.unwrap());
        let asked = server.seen("/token");
        assert_eq!(asked.len(), 2, "{asked:?}");
        assert!(
            asked[1]
                .query
                .ends_with("scope=repository%3Ateam%2Fmodel%3Apull&scope=repository%3Ateam%2Fmodel%3Apull%2Cdelete")
        );
        // What was learned holds for what comes after.
        assert!(within(remote.exists(&small())).await.unwrap());
        assert_eq!((server.seen("/token").len(), server.seen("/blobs/").len()), (2, 4));
    }
}

#[tokio::test]
async fn a_scope_that_does_not_help_is_not_asked_for_again() {
    for status in [401, 403] {
        let server = grudging(status, false).await;
        let error = within(remote(&server).fetch(&small(), 0..small().size)).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
        assert_eq!((server.seen("/token").len(), server.seen("/blobs/").len()), (2, 3));
    }
}

/// A server on another port that wants to be told who we are.
async fn greedy() -> Server {
    Server::start(|seen, _| {
        let challenge = format!(r#"Bearer realm="http://{}/token", Basic realm="x""#, seen.header(HOST));
        with(answer(401), WWW_AUTHENTICATE, challenge)
    })
    .await
}

/// A registry for Alice alone, which answers her with `reply`.
async fn of_alice(reply: impl Fn(&Seen) -> axum::response::Response + Send + Sync + 'static) -> Server {
    Server::start(move |seen, _| match seen.header(AUTHORIZATION) {
        _ if seen.path == "/v2/" => answer(200),
        BASIC => reply(seen),
        _ => with(answer(401), WWW_AUTHENTICATE, r#"Basic realm="x""#),
    })
    .await
}

fn assert_saw_no_credential(server: &Server) {
    let seen = server.seen("");
    assert!(!seen.is_empty(), "nobody came");
    for request in seen {
        assert!(request.header(AUTHORIZATION).is_empty(), "{request:?}");
        assert!(!request.path.contains("token"), "{request:?}");
    }
}

#[tokio::test]
async fn a_redirect_to_another_port_carries_no_credential_and_no_answer() {
    let thief = greedy().await;
    let location = format!("http://{}/blob", thief.host());
    let registry = of_alice(move |_| with(answer(307), LOCATION, &location)).await;
    assert!(within(remote(&registry).fetch(&small(), 0..small().size)).await.is_err());
    assert_saw_no_credential(&thief);
}

#[tokio::test]
async fn an_upload_location_on_another_port_carries_no_credential_and_no_answer() {
    let thief = greedy().await;
    let location = format!("http://{}/upload", thief.host());
    let registry = of_alice(move |seen| match seen.method.as_str() {
        "POST" => with(answer(202), LOCATION, &location),
        _ => refusal(404, "BLOB_UNKNOWN"),
    })
    .await;
    assert!(within(remote(&registry).push(&small(), &Content(b"small"))).await.is_err());
    assert_saw_no_credential(&thief);
}

#[tokio::test]
async fn a_token_service_cannot_send_a_password_on_to_another_port() {
    let thief = greedy().await;
    let location = format!("http://{}/keep", thief.host());
    let registry = Server::start(move |seen, _| match seen.path.as_str() {
        "/v2/" => answer(200),
        "/token" => with(answer(307), LOCATION, &location),
        _ => {
            let challenge = format!(r#"Bearer realm="http://{}/token""#, seen.header(HOST));
            with(answer(401), WWW_AUTHENTICATE, challenge)
        }
    })
    .await;
    assert!(within(remote(&registry).fetch(&small(), 0..small().size)).await.is_err());
    assert_eq!(registry.seen("/token")[0].header(AUTHORIZATION), BASIC);
    assert_saw_no_credential(&thief);
}

#[tokio::test]
async fn a_token_goes_to_the_registry_and_not_to_the_service_that_gave_it() {
    let service = Server::start(|_, _| r#"{"token":"t"}"#.into_response()).await;
    let realm = format!(r#"Bearer realm="http://{}/token""#, service.host());
    let registry = Server::start(move |seen, _| match (seen.path.as_str(), seen.header(AUTHORIZATION)) {
        ("/v2/", _) => answer(200),
        (_, "Bearer t") => "small".into_response(),
        _ => with(answer(401), WWW_AUTHENTICATE, &realm),
    })
    .await;
    let remote = remote(&registry);
    for _ in 0..2 {
        assert!(within(remote.exists(&small())).await.unwrap());
    }
    // The service on another port is the registry's word: it gets the password, and the registry the token.
    let asked = service.seen("");
    assert_eq!(asked.iter().map(|seen| seen.header(AUTHORIZATION)).collect::<Vec<_>>(), [BASIC]);
    let told: Vec<_> = registry.seen("/blobs/").iter().map(|seen| seen.header(AUTHORIZATION).to_owned()).collect();
    assert_eq!(told, ["", "Bearer t", "Bearer t"]);
}

#[test]
fn podmans_credentials_are_used_for_the_repository_they_are_for() {
    let registry = Fixture::start_with(Registry::default().auth(Auth::basic("ada", "secret")));
    let place = Place::with_model();
    let host = registry.host();
    let entries = |team: &str| {
        format!(
            r#"{{"auths":{{"{host}":{{"auth":"b3RoZXI6d3Jvbmc="}},"{host}/{team}":{{"auth":"YWRhOnNlY3JldA=="}}}}}}"#
        )
    };
    let push = |variables: &[(&str, &str)]| {
        let mut command = place.command(&format!("push demo:int4 {host}/team/demo:int4"));
        command.envs(variables.iter().copied());
        place.run(command)
    };
    push(&[]).expect(7);
    fs::create_dir_all(place.path("home/.config/containers")).unwrap();
    fs::write(place.path("home/.config/containers/auth.json"), entries("other")).unwrap();
    push(&[]).expect(7);
    fs::write(place.path("home/.config/containers/auth.json"), entries("team")).unwrap();
    push(&[]).expect(0);
    fs::write(place.path("named.json"), entries("other")).unwrap();
    push(&[("REGISTRY_AUTH_FILE", "named.json")]).expect(7);
}
