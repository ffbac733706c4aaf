//! Manifests and the references to them.

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
    assert!(error.to_string().contains("larger than 4194304 bytes"), "{error}");
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
