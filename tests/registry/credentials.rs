//! Challenges, tokens, and where a secret goes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::Method;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, LOCATION, WWW_AUTHENTICATE};
use axum::response::IntoResponse;
use kiln::ErrorKind;
use kiln::oci::{Descriptor, MediaType};
use kiln::registry::ping;
use kiln::storage::{Fetch, Push, Refs};

use crate::scene::*;
use crate::scripted::*;
use crate::shelf::*;

/// A registry with a token service of its own: tokens `t1`, `t2`, … of which only the newest for its
/// access is good. `grant` says whether the service gives one.
async fn guarded(grant: fn(&Seen) -> bool, lifetime: u64) -> Arc<Registry> {
    let issued = Mutex::new(Vec::<String>::new());
    Registry::start(move |seen, _| {
        let mut issued = issued.lock().unwrap();
        if seen.path == "/token" {
            if !grant(seen) {
                return Some(Twist::Answer(refusal(401, "UNAUTHORIZED")));
            }
            issued.push(seen.query.clone());
            let token = format!(r#"{{"access_token":"t{}","expires_in":{lifetime}}}"#, issued.len());
            return Some(Twist::Answer(token.into_response()));
        }
        let write = !matches!(seen.method, Method::GET | Method::HEAD);
        let actions = if write { "pull,push" } else { "pull" };
        let number: usize =
            seen.header(AUTHORIZATION).strip_prefix("Bearer t").and_then(|n| n.parse().ok()).unwrap_or(0);
        let scope = number.checked_sub(1).and_then(|index| issued.get(index)).cloned().unwrap_or_default();
        if scope.contains("push") || !write && scope.contains("pull") {
            return None;
        }
        let challenge = format!(
            r#"Bearer realm="http://{}/token?tenant=1",service="reg, istry",scope="repository:team/model:{actions}""#,
            seen.header(HOST)
        );
        Some(Twist::Answer(with(refusal(401, "UNAUTHORIZED"), WWW_AUTHENTICATE, challenge)))
    })
    .await
}

#[tokio::test]
async fn one_token_serves_all_who_wait_for_it() {
    let registry = guarded(|seen| seen.header(AUTHORIZATION) == "Basic YWxpY2U6czNjcmV0", 300).await;
    let remote = registry.remote_for(Key(alice("s3cret")));
    push(&Shelf::with_model(), &registry, &remote).await.unwrap();
    let asked: Vec<_> = registry.seen(Method::GET, "/token").into_iter().map(|seen| seen.query).collect();
    let query = |actions: &str| format!("tenant=1&service=reg%2C+istry&scope=repository%3Ateam%2Fmodel%3A{actions}");
    assert_eq!(asked, [query("pull"), query("pull%2Cpush")]);
}

#[tokio::test]
async fn a_token_that_ran_out_is_renewed() {
    let registry = guarded(|_| true, 1).await;
    let remote = registry.remote();
    let target = registry.keep(&b"small"[..]);
    assert!(within(remote.exists(&target)).await.unwrap());
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(within(remote.exists(&target)).await.unwrap());
    assert_eq!(registry.seen(Method::GET, "/token").len(), 2);
    assert_eq!(registry.seen(Method::HEAD, "").len(), 3, "it is renewed before it is refused");
}

#[tokio::test]
async fn a_token_refused_in_the_middle_is_replaced_and_the_body_sent_again() {
    let registry = Registry::start(|seen, before| {
        let challenge = format!(r#"Bearer realm="http://{}/token""#, seen.header(HOST));
        match (seen.path.as_str(), seen.header(AUTHORIZATION)) {
            ("/v2/", _) => None,
            ("/token", _) => Some(Twist::Answer(format!(r#"{{"token":"t{before}"}}"#).into_response())),
            (path, "Bearer t0") if !(path.contains("/uploads/") && seen.method == Method::PUT) => None,
            (_, "Bearer t1") => None,
            // The body, of several megabytes, is not read.
            _ => Some(Twist::Answer(with(answer(401), WWW_AUTHENTICATE, challenge))),
        }
    })
    .await;
    let target = Descriptor::of(MediaType::OLLAMA_TENSOR, &large());
    within(registry.remote().push(&target, &Content(large()))).await.unwrap();
    assert!(registry.has(&target));
}

#[tokio::test]
async fn wrong_credentials_are_told_from_a_broken_registry() {
    let registry = guarded(|seen| seen.header(AUTHORIZATION) == "Basic YWxpY2U6czNjcmV0", 300).await;
    let error = push(&Shelf::with_model(), &registry, &registry.remote_for(Key(alice("wrong")))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert_eq!(error.hint_text(), Some(format!("kiln login {}", registry.host).as_str()));
    assert!(!chain(&error).contains("wrong"), "{error}");

    let error = within(ping(&registry.host, &alice("wrong"), &options())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    within(ping(&registry.host, &alice("s3cret"), &options())).await.unwrap();
}

#[tokio::test]
async fn what_a_token_does_not_allow_ends_without_a_circle() {
    let registry = Registry::start(|seen, _| {
        let challenge = format!(r#"Bearer realm="http://{}/token",error="insufficient_scope""#, seen.header(HOST));
        Some(Twist::Answer(match seen.path.as_str() {
            "/v2/" => answer(200),
            "/token" => r#"{"token":"t"}"#.into_response(),
            _ => with(refusal(401, "DENIED"), WWW_AUTHENTICATE, challenge),
        }))
    })
    .await;
    let target = Descriptor::of(MediaType::OLLAMA_TENSOR, b"small");
    let error = within(registry.remote().push(&target, &Content("small".into()))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(error.to_string().contains("`DENIED` as scripted"), "{error}");
    assert_eq!(registry.seen(Method::POST, "/uploads/").len(), 2);
}

#[tokio::test]
async fn an_identity_token_is_traded_or_used_as_a_password() {
    for refusal_of_post in [None, Some(404), Some(405)] {
        let registry = Registry::start(move |seen, _| {
            let challenge = format!(r#"Bearer realm="http://{}/token",service="s""#, seen.header(HOST));
            match (seen.method.as_str(), seen.path.as_str(), seen.header(AUTHORIZATION)) {
                (_, "/v2/", _) | (_, _, "Bearer t") => None,
                ("POST", "/token", _) if refusal_of_post.is_some() => {
                    refusal_of_post.map(|status| Twist::Answer(answer(status)))
                }
                ("POST", "/token", "") => Some(Twist::Instead(r#"{"access_token":"t"}"#.into_response())),
                ("GET", "/token", "Basic PHRva2VuPjppZDNudGl0eQ==") => {
                    Some(Twist::Answer(r#"{"token":"t"}"#.into_response()))
                }
                _ => Some(Twist::Answer(with(answer(401), WWW_AUTHENTICATE, challenge))),
            }
        })
        .await;
        let target = registry.keep(&b"small"[..]);
        assert!(within(registry.remote_for(Key(identity())).exists(&target)).await.unwrap(), "{refusal_of_post:?}");
        let traded = &registry.seen(Method::POST, "/token")[0];
        assert_eq!(traded.header(CONTENT_TYPE), "application/x-www-form-urlencoded");
    }
}

#[tokio::test]
async fn a_secret_is_not_sent_on_to_another_host() {
    let thief = Registry::faithful().await;
    let elsewhere = format!("http://{}/token", thief.host);
    let registry = Registry::start(move |seen, _| {
        let challenge = format!(r#"Bearer realm="http://{}/token""#, seen.header(HOST));
        Some(Twist::Answer(match seen.path.as_str() {
            "/v2/" => answer(200),
            "/token" => with(answer(307), LOCATION, &elsewhere),
            _ => with(answer(401), WWW_AUTHENTICATE, challenge),
        }))
    })
    .await;
    let error = within(registry.remote_for(Key(identity())).resolve(&registry.reference())).await.unwrap_err();
    assert!(error.to_string().starts_with("The secret in `POST"), "{error}");
    assert!(thief.seen(Method::POST, "").is_empty());
}
