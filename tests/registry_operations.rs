//! What kiln asks of a registry besides transfers: lists and removals, however registries differ in them.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

use std::sync::Arc;
use std::time::Duration;

use kiln::copy::{Direction, copy};
use kiln::oci::{Algorithm, Descriptor, Digest, MediaType, Reference};
use kiln::registry::{Anonymous, Credential, Keychain, Options as Transport, Remote, catalog};
use kiln::storage::Refs as _;
use kiln::{Error, ErrorKind, Progress, Result};
use registry_fixtures::{Auth, Deletes, Fault, Fixture, Listing, Options, Recorded, Trigger};

const REPOSITORY: &str = "team/model";
const LAYER: &[u8] = b"one layer";

/// The credentials of the one user that fixtures with passwords know.
struct Alice;

impl Keychain for Alice {
    fn credential(&self, _host: &str) -> Result<Option<Credential>> {
        Ok(Some(Credential::Basic { user: "alice".to_owned(), password: "s3cret".to_owned() }))
    }
}

fn transport() -> Transport {
    Transport { first_pause: Duration::from_millis(5), ..Transport::default() }
}

fn reference(registry: &Fixture, name: &str) -> Reference {
    format!("{}/{REPOSITORY}{name}", registry.host()).parse().unwrap()
}

fn remote(registry: &Fixture) -> Remote {
    Remote::new(&reference(registry, ""), Arc::new(Alice), &transport()).unwrap()
}

/// Puts a manifest under these tags; gives its digest.
fn keep(registry: &Fixture, tags: &[&str]) -> Digest {
    const TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
    let config = registry.put_blob(REPOSITORY, "{}");
    let layer = registry.put_blob(REPOSITORY, LAYER);
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{TYPE}","config":{{"mediaType":"application/json","digest":"{config}","size":2}},"layers":[{{"mediaType":"text/plain","digest":"{layer}","size":{}}}],"annotations":{{"first":"{}"}}}}"#,
        LAYER.len(),
        tags[0],
    );
    let put = |tag: &&str| registry.put_manifest(REPOSITORY, tag, TYPE, manifest.clone());
    let digests: Vec<String> = tags.iter().map(put).collect();
    digests[0].parse().unwrap()
}

/// A registry with the tags `v0` to `v4`.
fn five_tags(options: Options) -> Fixture {
    let registry = Fixture::start_with(options);
    keep(&registry, &["v0", "v1", "v2", "v3", "v4"]);
    registry
}

const FIVE: [&str; 5] = ["v0", "v1", "v2", "v3", "v4"];

fn lists(registry: &Fixture) -> Vec<Recorded> {
    registry.requests().into_iter().filter(|request| request.path.contains("/tags/list")).collect()
}

/// The causes of an error and itself, as one text.
fn told(error: &Error) -> String {
    error.chain()
}

async fn ended<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.unwrap()
}

#[tokio::test]
async fn tags_come_page_by_page_in_order() {
    let registry = five_tags(Options { page: 2, ..Options::default() });
    assert_eq!(remote(&registry).tags().await.unwrap(), FIVE);
    let asked: Vec<String> = lists(&registry).into_iter().map(|request| request.query).collect();
    assert_eq!(asked, ["n=1000", "n=2&last=v1", "n=2&last=v3"]);
}

#[tokio::test]
async fn a_registry_that_gives_all_tags_at_once_is_asked_once() {
    let registry = five_tags(Options { listing: Listing::Whole, ..Options::default() });
    assert_eq!(remote(&registry).tags().await.unwrap(), FIVE);
    assert_eq!(lists(&registry).len(), 1);
}

#[tokio::test]
async fn a_full_page_without_a_link_may_not_be_the_last() {
    for listing in [Listing::Unlinked, Listing::Whole] {
        let registry = Fixture::start_with(Options { listing, ..Options::default() });
        let tags: Vec<String> = (0..1001).map(|number| format!("v{number:04}")).collect();
        keep(&registry, &tags.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(remote(&registry).tags().await.unwrap(), tags, "{listing:?}");
        assert_eq!(lists(&registry).len(), 2);
        assert!(lists(&registry)[1].query.starts_with("n=1000&last=v"));
    }
}

#[tokio::test]
async fn a_registry_that_refuses_so_many_at_once_gives_what_it_likes() {
    let refusal = || Fault::Status {
        code: 400,
        retry_after: None,
        body: r#"{"errors":[{"code":"PAGINATION_NUMBER_INVALID"}]}"#.to_owned(),
    };
    let registry = five_tags(Options::default().fault(Trigger::on("GET", "/tags/list"), refusal()));
    assert_eq!(remote(&registry).tags().await.unwrap(), FIVE);
    assert_eq!(lists(&registry)[1].query, "");
    let registry = five_tags(Options::default().fault(Trigger::on("GET", "/tags/list").always(), refusal()));
    assert_eq!(remote(&registry).tags().await.unwrap_err().kind(), ErrorKind::Registry);
}

#[tokio::test]
async fn a_repository_without_tags_is_no_error_and_one_that_is_not_there_is() {
    let null = r#"{"name":"team/model","tags":null}"#;
    for body in [null, r#"{"name":"team/model"}"#, r#"{"name":"team/model","tags":[]}"#] {
        let answer = Fault::Status { code: 200, retry_after: None, body: body.to_owned() };
        let registry = Fixture::start_with(Options::default().fault(Trigger::on("GET", "/tags/list"), answer));
        assert!(remote(&registry).tags().await.unwrap().is_empty(), "{body}");
    }
    let error = remote(&Fixture::start()).tags().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().starts_with("There is no repository `127.0.0.1:"), "{error}");
    let login_page = Fault::Status { code: 200, retry_after: None, body: "<html>log in</html>".to_owned() };
    let registry = five_tags(Options::default().fault(Trigger::on("GET", "/tags/list"), login_page));
    let error = remote(&registry).tags().await.unwrap_err();
    assert!(error.to_string().contains("something else than a list of tags"), "{error}");
}

#[tokio::test]
async fn the_next_page_is_where_the_link_leads() {
    let links: [fn(&str) -> String; 4] = [
        |_| r#"</v2/team/model/tags/list?last=v1>; rel="next""#.to_owned(),
        |host| format!(r#"<http://{host}/v2/team/model/tags/list?last=v1>; rel="next""#),
        |_| "</v2/team/model/tags/list?last=v1>; rel=next".to_owned(),
        |_| r#"<list?last=v1>; title="more, and more"; rel="next""#.to_owned(),
    ];
    for link in links {
        let registry = five_tags(Options::default());
        let link = link(&registry.host());
        registry.inject(Trigger::on("GET", "/tags/list"), Fault::Header("link", link.clone()));
        assert_eq!(remote(&registry).tags().await.unwrap(), FIVE, "{link}");
        let asked: Vec<String> = lists(&registry).into_iter().map(|request| request.query).collect();
        assert_eq!(asked, ["n=1000", "last=v1"], "{link}");
    }
}

#[tokio::test]
async fn a_list_does_not_go_on_at_another_registry() {
    let other = Fixture::start();
    let registry = five_tags(Options::default().auth(Auth::basic("alice", "s3cret")));
    let link = format!(r#"<http://{}/v2/team/model/tags/list?last=v1>; rel="next""#, other.host());
    registry.inject(Trigger::on("GET", "/tags/list").always(), Fault::Header("link", link));
    let error = remote(&registry).tags().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    assert!(error.to_string().contains(&format!("elsewhere: `http://{}/v2/", other.host())), "{error}");
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn a_list_without_an_end_is_left() {
    // The same page over and over, and the same tags on pages that are always others.
    let registry = five_tags(Options::default());
    let same = r#"</v2/team/model/tags/list?n=1000>; rel="next""#.to_owned();
    registry.inject(Trigger::on("GET", "/tags/list").always(), Fault::Header("link", same));
    let error = ended(remote(&registry).tags()).await.unwrap_err();
    assert!(error.to_string().contains("a list that does not end"), "{error}");
    assert_eq!(lists(&registry).len(), 1);

    let registry = five_tags(Options::default());
    for turn in 1..9 {
        let other = format!(r#"</v2/team/model/tags/list?turn={turn}>; rel="next""#);
        registry.inject(Trigger::on("GET", "/tags/list").nth(turn), Fault::Header("link", other));
    }
    let error = ended(remote(&registry).tags()).await.unwrap_err();
    assert!(error.to_string().contains("a list that does not end"), "{error}");
    assert_eq!(lists(&registry).len(), 2);

    // Always others, but too many.
    let registry = Fixture::start_with(Options { page: 1, ..Options::default() });
    let tags: Vec<String> = (0..2001).map(|number| format!("v{number}")).collect();
    keep(&registry, &tags.iter().map(String::as_str).collect::<Vec<_>>());
    let error = ended(remote(&registry).tags()).await.unwrap_err();
    assert!(error.to_string().contains("a list that does not end"), "{error}");
    assert_eq!(lists(&registry).len(), 2000);

    // Empty pages may be filtered ones, but not so many.
    let registry = five_tags(Options::default());
    let nothing = Fault::Status { code: 200, retry_after: None, body: r#"{"tags":[]}"#.to_owned() };
    registry.inject(Trigger::on("GET", "/tags/list").nth(2).times(2), nothing);
    for turn in 1..4 {
        let other = format!(r#"</v2/team/model/tags/list?last=v{turn}>; rel="next""#);
        registry.inject(Trigger::on("GET", "/tags/list").nth(turn), Fault::Header("link", other));
    }
    assert_eq!(ended(remote(&registry).tags()).await.unwrap(), FIVE);
    assert_eq!(lists(&registry).len(), 4);
}

#[tokio::test]
async fn a_page_is_not_read_beyond_its_bound() {
    let page = format!(r#"{{"tags":["{}"]}}"#, "a".repeat(17 << 20));
    let answer = Fault::Status { code: 200, retry_after: None, body: page };
    let registry = Fixture::start_with(Options::default().fault(Trigger::on("GET", "/tags/list"), answer));
    let error = ended(remote(&registry).tags()).await.unwrap_err();
    assert!(told(&error).contains("larger than 16777216 bytes"), "{}", told(&error));
}

#[tokio::test]
async fn repositories_are_listed_to_whoever_may_see_them() {
    for auth in [Auth::None, Auth::basic("alice", "s3cret"), Auth::bearer("alice", "s3cret")] {
        let registry = Fixture::start_with(Options { page: 1, ..Options::default().auth(auth) });
        keep(&registry, &["v0"]);
        registry.put_blob("a", "{}");
        registry.put_blob("z/z", "{}");
        let listed = catalog(&registry.host(), Arc::new(Alice), &transport()).await.unwrap();
        assert_eq!(listed, ["a", REPOSITORY, "z/z"]);
    }
}

#[tokio::test]
async fn a_registry_that_does_not_list_its_repositories_is_told_from_a_broken_one() {
    let ask = |registry: Fixture| async move {
        let asked = catalog(&registry.host(), Arc::new(Anonymous), &transport()).await;
        (asked.unwrap_err(), registry.host())
    };
    for (code, kind) in [
        (401, ErrorKind::Unauthorized),
        (403, ErrorKind::Unauthorized),
        (404, ErrorKind::Registry),
        (405, ErrorKind::Registry),
        (501, ErrorKind::Registry),
    ] {
        let answer = Fault::Status { code, retry_after: None, body: String::new() };
        let trigger = Trigger::on("GET", "/_catalog").always();
        let (error, host) = ask(Fixture::start_with(Options::default().fault(trigger, answer))).await;
        assert_eq!(error.kind(), kind, "{code}");
        assert!(error.to_string().contains(&format!("`{host}` does not list its repositories")), "{error}");
        let hint = error.hint_text().unwrap();
        assert!(hint.ends_with(&format!("`kiln tags {host}/team/llama`")), "{hint}");
        assert_eq!(hint.contains("kiln login"), kind == ErrorKind::Unauthorized, "{hint}");
    }
    let answer = Fault::Status { code: 418, retry_after: None, body: String::new() };
    let trigger = Trigger::on("GET", "/_catalog").always();
    let (error, _) = ask(Fixture::start_with(Options::default().fault(trigger, answer))).await;
    assert!(error.to_string().contains("answered 418"), "{error}");
}

#[tokio::test]
async fn a_tag_goes_alone_and_a_digest_takes_its_tags_along() {
    for auth in [Auth::None, Auth::bearer("alice", "s3cret")] {
        let registry = Fixture::start_with(Options::default().auth(auth));
        let (one, other) = (keep(&registry, &["v0", "v1"]), keep(&registry, &["v2"]));
        let removed = remote(&registry).delete(&reference(&registry, ":v0")).await.unwrap();
        assert_eq!(removed, Some(one));
        assert_eq!(registry.tags(REPOSITORY), ["v1", "v2"]);
        let removed = remote(&registry).delete(&reference(&registry, &format!("@{other}"))).await.unwrap();
        assert_eq!(removed, Some(other));
        assert_eq!(registry.tags(REPOSITORY), ["v1"]);
        assert_eq!(registry.blobs(REPOSITORY).len(), 2);
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_removed() {
    let registry = Fixture::start();
    let digest = keep(&registry, &["v0"]);
    let other = Digest::of(b"other");
    for (name, says) in [
        (":v1".to_owned(), "There is no model"),
        (format!("@{other}"), "There is no model"),
        (format!(":v0@{other}"), "points at another manifest"),
    ] {
        let error = remote(&registry).delete(&reference(&registry, &name)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{name}");
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(registry.requests().iter().all(|request| request.method != "DELETE"));
    let pinned = reference(&registry, &format!(":v0@{digest}"));
    assert_eq!(remote(&registry).delete(&pinned).await.unwrap(), Some(digest));
    assert!(registry.manifest(REPOSITORY, &digest.to_string()).is_some(), "the tag alone");
}

#[tokio::test]
async fn a_manifest_is_never_removed_in_place_of_a_tag() {
    for (code, body) in [
        (400, r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#),
        (400, r#"{"errors":[{"code":"UNSUPPORTED"}]}"#),
        (405, ""),
        (405, r#"{"errors":[{"code":"UNSUPPORTED"}]}"#),
        (501, ""),
    ] {
        let registry = Fixture::start();
        let digest = keep(&registry, &["v0", "v1"]);
        let answer = Fault::Status { code, retry_after: None, body: body.to_owned() };
        registry.inject(Trigger::on("DELETE", "/manifests/").always(), answer);
        let error = remote(&registry).delete(&reference(&registry, ":v0")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Registry, "{code} {body}");
        assert!(error.to_string().contains("does not remove the tag"), "{error}");
        let command = format!("`kiln rm --remote {}/{REPOSITORY}@{digest}`", registry.host());
        assert!(error.hint_text().unwrap().starts_with(&command), "{:?}", error.hint_text());
        let asked: Vec<_> = registry.requests().into_iter().filter(|request| request.method == "DELETE").collect();
        assert_eq!(asked.len(), 1);
        assert!(asked[0].path.ends_with("/manifests/v0"));
    }
    let registry = Fixture::start_with(Options { deletes: Deletes::ByDigest, ..Options::default() });
    keep(&registry, &["v0", "v1"]);
    remote(&registry).delete(&reference(&registry, ":v0")).await.unwrap_err();
    assert_eq!(registry.tags(REPOSITORY), ["v0", "v1"]);
}

#[tokio::test]
async fn a_registry_that_removes_nothing_says_so() {
    let registry = Fixture::start_with(Options { deletes: Deletes::Nothing, ..Options::default() });
    let digest = keep(&registry, &["v0"]);
    let error = remote(&registry).delete(&reference(&registry, &format!("@{digest}"))).await.unwrap_err();
    assert!(error.to_string().contains("does not remove the manifest"), "{error}");
    assert!(error.hint_text().unwrap().contains("REGISTRY_STORAGE_DELETE_ENABLED"), "{:?}", error.hint_text());
}

#[tokio::test]
async fn every_way_to_say_that_it_is_gone_is_understood() {
    for code in [200, 202, 204] {
        let answer = Fault::Status { code, retry_after: None, body: String::new() };
        let registry = five_tags(Options::default().fault(Trigger::on("DELETE", "/manifests/"), answer));
        remote(&registry).delete(&reference(&registry, ":v0")).await.unwrap();
    }
    // The answer is lost, and the second attempt finds nothing left.
    let registry = five_tags(Options::default().fault(Trigger::on("DELETE", "/manifests/"), Fault::LoseReply));
    remote(&registry).delete(&reference(&registry, ":v0")).await.unwrap();
    assert_eq!(registry.tags(REPOSITORY).len(), 4);
    // A proxy that knows no DELETE has nothing removed.
    let answer = Fault::Status { code: 404, retry_after: None, body: String::new() };
    let registry = five_tags(Options::default().fault(Trigger::on("DELETE", "/manifests/").always(), answer));
    let error = remote(&registry).delete(&reference(&registry, ":v0")).await.unwrap_err();
    assert!(error.to_string().contains("does not remove the tag"), "{error}");
}

#[tokio::test]
async fn what_is_damaged_can_be_removed() {
    let registry = five_tags(Options::default().fault(Trigger::on("GET", "/manifests/"), Fault::FlipBit { at: 20 }));
    assert_eq!(remote(&registry).delete(&reference(&registry, ":v0")).await.unwrap(), None);
    assert_eq!(registry.tags(REPOSITORY).len(), 4);
}

#[tokio::test]
async fn a_manifest_is_held_to_the_algorithm_that_it_is_promised_by() {
    let registry = five_tags(Options::default());
    let bytes = registry.manifest(REPOSITORY, "v0").unwrap();
    let promised = Algorithm::Sha512.digest(&bytes);
    let by_digest = reference(&registry, &format!("@{promised}"));
    // The fixture knows SHA-256 only.
    let answer = || Fault::Status { code: 200, retry_after: None, body: String::from_utf8(bytes.to_vec()).unwrap() };
    let asked = || Trigger::on("GET", "/manifests/sha512:");
    registry.inject(asked(), answer());
    let (target, received) = remote(&registry).resolve(&by_digest).await.unwrap().unwrap();
    assert_eq!((target.digest, received), (promised, bytes.clone()));

    registry.inject(asked(), answer());
    registry.inject(asked(), Fault::FlipBit { at: 40 });
    let error = remote(&registry).resolve(&by_digest).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(&format!("than its name says, `{promised}`")), "{error}");

    // What the registry says besides is held to its own algorithm too.
    let by_tag = reference(&registry, ":v0");
    let says = |digest: &Digest| Fault::Header("docker-content-digest", digest.to_string());
    registry.inject(Trigger::on("GET", "/manifests/v0"), says(&promised));
    assert_eq!(remote(&registry).resolve(&by_tag).await.unwrap().unwrap().0.digest, promised);
    registry.inject(Trigger::on("GET", "/manifests/v0"), says(&Algorithm::Sha512.digest(b"other")));
    let error = remote(&registry).resolve(&by_tag).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    registry.inject(Trigger::on("GET", "/manifests/v0"), Fault::Header("docker-content-digest", "md5:00".to_owned()));
    assert_eq!(remote(&registry).resolve(&by_tag).await.unwrap().unwrap().0.digest, Digest::of(&bytes));
}

#[tokio::test]
async fn what_was_promised_by_sha_512_is_copied() {
    let (registry, other) = (five_tags(Options::default()), Fixture::start());
    let bytes = registry.manifest(REPOSITORY, "v0").unwrap();
    let answer = Fault::Status { code: 200, retry_after: None, body: String::from_utf8(bytes.to_vec()).unwrap() };
    registry.inject(Trigger::on("GET", "/manifests/sha512:").always(), answer);
    let from = reference(&registry, &format!("@{}", Algorithm::Sha512.digest(&bytes)));
    let to = reference(&other, ":copy");
    let (source, destination) = (remote(&registry), remote(&other));
    let report = copy(Direction::Mirror, &source, &from, &destination, &to, 1, &Progress::silent()).await.unwrap();
    assert_eq!(Some(&report.digest), from.digest());
    assert_eq!(other.manifest(REPOSITORY, "copy").unwrap(), bytes);
}

#[tokio::test]
async fn a_form_that_one_side_does_not_know_is_told() {
    let status = |code| Fault::Status { code, retry_after: None, body: String::new() };
    let registry = five_tags(Options::default().fault(Trigger::on("GET", "/manifests/"), status(406)));
    let error = remote(&registry).resolve(&reference(&registry, ":v0")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    assert!(error.to_string().contains("in a form only that kiln does not know"), "{error}");

    let bytes = registry.manifest(REPOSITORY, "v0").unwrap();
    for (media_type, hint) in [(MediaType::OCI_MANIFEST, false), (MediaType::DOCKER_MANIFEST, true)] {
        registry.inject(Trigger::on("PUT", "/manifests/"), status(415));
        let target = Descriptor::of(media_type.clone(), &bytes);
        let error = remote(&registry).tag(&reference(&registry, ":v9"), &target, &bytes).await.unwrap_err();
        assert!(error.to_string().ends_with(&format!("does not take a manifest of `{media_type}`")), "{error}");
        assert_eq!(error.hint_text().is_some(), hint);
    }
}
