//! Manifests and the references to them.

use axum::http::Method;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::IntoResponse;
use bytes::Bytes;
use kiln::ErrorKind;
use kiln::oci::{Digest, MediaType};
use kiln::storage::{Fetch, Push, Refs};

use crate::scene::*;
use crate::scripted::*;
use crate::shelf::*;

#[tokio::test]
async fn a_manifest_is_what_its_digest_and_its_type_say() {
    let registry = Registry::faithful().await;
    let docker = MediaType::DOCKER_MANIFEST;
    let text = |media_type: &MediaType| Bytes::from(format!(r#"{{"mediaType":"{media_type}"}}"#));
    let keep = |name: &str, kind: &str, bytes: Bytes| {
        registry.manifests.lock().unwrap().insert(name.to_owned(), (kind.to_owned(), bytes));
    };
    let pinned = Digest::of(b"").to_string();
    keep("good", docker.as_str(), text(&docker));
    keep("mixed", docker.as_str(), text(&MediaType::OCI_MANIFEST));
    keep("unsaid", docker.as_str(), "{}".into());
    keep("text", docker.as_str(), "no".into());
    keep("huge", docker.as_str(), vec![b' '; (4 << 20) + 1].into());
    keep(&pinned, docker.as_str(), text(&docker));
    let remote = registry.remote();
    let resolve = async |name: &str| {
        let reference = format!("{}/team/model{name}", registry.host).parse().unwrap();
        within(remote.resolve(&reference)).await.map(|found| found.map(|(descriptor, _)| descriptor))
    };
    for name in [":good", ":unsaid"] {
        assert_eq!(resolve(name).await.unwrap().unwrap().media_type, docker);
    }
    assert_eq!(resolve(":absent").await.unwrap(), None);
    for name in [":mixed", ":text", &format!("@{pinned}")] {
        assert_eq!(resolve(name).await.unwrap_err().kind(), ErrorKind::Corrupt, "{name}");
    }
    let error = resolve(":huge").await.unwrap_err();
    assert!(error.to_string().contains("is larger than 4 MiB"), "{error}");
}

#[tokio::test]
async fn every_kind_of_manifest_is_asked_for_and_its_parameters_do_not_count() {
    for kind in [
        MediaType::OCI_MANIFEST,
        MediaType::DOCKER_MANIFEST,
        MediaType::parse("application/vnd.oci.image.index.v1+json"),
        MediaType::parse("application/vnd.docker.distribution.manifest.list.v2+json"),
    ] {
        let sent = kind.clone();
        let registry = Registry::start(move |seen, _| {
            let listed = seen.header(ACCEPT).split(',').any(|accepted| accepted.trim() == sent.as_str());
            (seen.path.contains("/manifests/")).then(|| {
                let manifest = with("{}".into_response(), CONTENT_TYPE, format!("{sent}; charset=utf-8"));
                Twist::Answer(if listed { manifest } else { refusal(404, "MANIFEST_UNKNOWN") })
            })
        })
        .await;
        let found = within(registry.remote().resolve(&registry.reference())).await.unwrap();
        assert_eq!(found.map(|(descriptor, _)| descriptor.media_type), Some(kind));
    }
}

#[tokio::test]
async fn a_manifest_that_is_taken_in_other_words_is_taken() {
    for status in [200, 201, 202] {
        let registry =
            Registry::start(move |seen, _| seen.is(Method::PUT, "/manifests/").then(|| Twist::Instead(answer(status))))
                .await;
        let shelf = Shelf::with_model();
        push(&shelf, &registry, &registry.remote()).await.unwrap();
        let (_, sent) = shelf.manifest.lock().unwrap().clone().unwrap();
        assert_eq!(registry.manifests.lock().unwrap()["v1"].1, sent, "{status}");
        assert_eq!(registry.seen(Method::PUT, "/manifests/").len(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_model_without_layers_is_pushed_and_pulled() {
    let (registry, shelf, other) = (Registry::faithful().await, Shelf::with_layers(|_| Vec::new()), Shelf::default());
    let remote = registry.remote();
    assert_eq!(push(&shelf, &registry, &remote).await.unwrap().blobs_transferred, 1);
    pull(&registry, &remote, &other).await.unwrap();
    assert_eq!(*other.manifest.lock().unwrap(), *shelf.manifest.lock().unwrap());
}

#[tokio::test]
async fn a_manifest_without_a_name_is_content_like_any_other() {
    let (registry, shelf) = (Registry::faithful().await, Shelf::with_model());
    let remote = registry.remote();
    push(&shelf, &registry, &remote).await.unwrap();
    let (descriptor, bytes) = shelf.manifest.lock().unwrap().clone().unwrap();
    registry.manifests.lock().unwrap().clear();
    assert!(!within(remote.exists(&descriptor)).await.unwrap());
    within(remote.push(&descriptor, &Content(bytes.clone()))).await.unwrap();
    assert!(within(remote.exists(&descriptor)).await.unwrap());
    assert_eq!(fetch(&remote, &descriptor, 10).await.unwrap(), bytes.slice(10..));
    let error = within(remote.push(&descriptor, &Content("{}".into()))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_reference_to_another_repository_is_refused() {
    let registry = Registry::faithful().await;
    for other in ["model".to_owned(), format!("{}/team/other", registry.host), "r.example/team/model".to_owned()] {
        let error = within(registry.remote().resolve(&other.parse().unwrap())).await.unwrap_err();
        assert!(error.to_string().contains("is not in the repository"), "{error}");
    }
}
