//! The requests of OCI distribution-spec v1.1.1, one after the other, to a server over a store on disk:
//! <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#endpoints>. What the answers
//! must be is the text's; what data are tried is what its conformance program tries, at the commit
//! 967efdc079b91785ad18c77cc4f8991a47feefbf.

use kiln::oci::{Algorithm, Digest};
use kiln::serve::ServeOptions;
use kiln::store::Store;
use reqwest::Response;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::served::{OCI, Served, header, refusal};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

struct Registry {
    served: Served<Store>,
    _directory: TempDir,
}

impl Registry {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let options = ServeOptions { allow_delete: true, ..ServeOptions::default() };
        Self { served: Served::start(store, options).await, _directory: directory }
    }

    async fn status(&self, method: &str, path: &str) -> u16 {
        self.served.ask(method, path).await.status().as_u16()
    }

    async fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&self.served.ask("GET", path).await.bytes().await.unwrap()).unwrap()
    }

    /// POST of a session, by its Location.
    async fn session(&self, repository: &str) -> String {
        let begun = self.served.ask("POST", &format!("/v2/{repository}/blobs/uploads/")).await;
        assert_eq!(begun.status(), 202);
        assert!(header(&begun, "oci-chunk-min-length").parse::<u64>().is_ok());
        header(&begun, "location").to_owned()
    }

    async fn push(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let put = self.served.request("POST", &path).body(bytes.to_vec()).send().await.unwrap();
        assert_eq!(put.status(), 201);
        digest
    }

    /// A blob as a descriptor, pushed.
    async fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = self.push("a", bytes).await;
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    async fn put(&self, reference: &str, media_type: &str, bytes: &str) -> Response {
        self.served.put_manifest(&format!("/v2/a/manifests/{reference}"), media_type, bytes).await
    }

    /// HEAD and GET of a manifest, of exactly these bytes.
    async fn expect_manifest(&self, reference: &str, media_type: &str, bytes: &str, digest: &Digest) {
        for method in ["HEAD", "GET"] {
            let got = self.served.ask(method, &format!("/v2/a/manifests/{reference}")).await;
            assert_eq!(got.status(), 200, "{method} {reference}");
            assert_eq!(header(&got, "content-type"), media_type);
            assert_eq!(header(&got, "content-length"), bytes.len().to_string());
            assert_eq!(header(&got, "docker-content-digest"), digest.to_string());
            let expected = if method == "GET" { bytes } else { "" };
            assert!(got.text().await.unwrap() == expected, "{method} {reference}");
        }
    }

    /// HEAD and GET of a blob, of exactly these bytes.
    async fn expect_blob(&self, repository: &str, digest: &Digest, bytes: &[u8]) {
        for method in ["HEAD", "GET"] {
            let got = self.served.ask(method, &format!("/v2/{repository}/blobs/{digest}")).await;
            assert_eq!(got.status(), 200, "{method} {digest}");
            assert_eq!(header(&got, "content-length"), bytes.len().to_string());
            assert_eq!(header(&got, "docker-content-digest"), digest.to_string());
            let expected = if method == "GET" { bytes } else { b"" };
            assert!(got.bytes().await.unwrap() == expected, "{method} {digest}");
        }
    }
}

/// Bytes of a kind of their own.
fn bytes(seed: &str) -> Vec<u8> {
    seed.bytes().cycle().zip(0..3000_u32).map(|(byte, at)| byte ^ (at / 13) as u8).collect()
}

fn created(response: &Response, location: &str, digest: &Digest) {
    assert_eq!(response.status(), 201);
    assert_eq!(header(response, "location"), location);
    assert_eq!(header(response, "docker-content-digest"), digest.to_string());
}

#[tokio::test]
async fn it_says_that_it_is_a_registry() {
    let registry = Registry::start().await;
    for method in ["GET", "HEAD"] {
        assert_eq!(registry.status(method, "/v2/").await, 200);
    }
    assert_eq!(registry.status("GET", "/v2/a/tags/list").await, 404);
    let none = registry.json(&format!("/v2/a/referrers/{}", Digest::of(b"nothing"))).await;
    assert_eq!(none, json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] }));
}

#[tokio::test]
async fn every_way_to_push_a_blob_leads_to_the_same() {
    let registry = Registry::start().await;
    let served = &registry.served;
    for algorithm in Algorithm::ALL {
        let name = algorithm.as_str();
        let ways = ["post", "post, put", "one chunk", "chunks", "chunks, the last with put", "stream", "empty"];
        for way in ways {
            let blob = if way == "empty" { Vec::new() } else { bytes(&format!("{name} {way}")) };
            let digest = algorithm.digest(&blob);
            assert_eq!(registry.status("HEAD", &format!("/v2/a/blobs/{digest}")).await, 404, "{way}");
            let end = |location: &str| format!("{location}?digest={digest}");
            let last = match way {
                "post" => {
                    let path = format!("/v2/a/blobs/uploads/?digest={digest}");
                    served.request("POST", &path).body(blob.clone())
                }
                "post, put" | "empty" => {
                    let location = registry.session("a").await;
                    served.request("PUT", &end(&location)).body(blob.clone())
                }
                "stream" => {
                    let location = registry.session("a").await;
                    let stream = futures_util::stream::iter([Ok::<_, std::io::Error>(blob.clone())]);
                    let patch = served.request("PATCH", &location).body(reqwest::Body::wrap_stream(stream));
                    let patched = patch.send().await.unwrap();
                    assert_eq!(patched.status(), 202);
                    served.request("PUT", &end(header(&patched, "location")))
                }
                _ => {
                    let mut location = registry.session("a").await;
                    let (length, mut at) = (if way == "one chunk" { 3000 } else { 1024 }, 0);
                    let put_last = way == "chunks, the last with put";
                    while at < blob.len() && !(put_last && at + length >= blob.len()) {
                        let chunk = &blob[at..(at + length).min(blob.len())];
                        let range = format!("{at}-{}", at + chunk.len() - 1);
                        let patched = served.patch(&location, &range, chunk.to_vec()).await;
                        assert_eq!(patched.status(), 202, "{way}");
                        at += chunk.len();
                        assert_eq!(header(&patched, "range"), format!("0-{}", at - 1));
                        location = header(&patched, "location").to_owned();
                        let status = served.ask("GET", &location).await;
                        assert_eq!(
                            (status.status().as_u16(), header(&status, "range")),
                            (204, &*format!("0-{}", at - 1))
                        );
                    }
                    let put = served.request("PUT", &end(&location)).body(blob[at..].to_vec());
                    if at < blob.len() { put.header("content-range", format!("{at}-{}", blob.len() - 1)) } else { put }
                }
            };
            created(&last.send().await.unwrap(), &format!("/v2/a/blobs/{digest}"), &digest);
            registry.expect_blob("a", &digest, &blob).await;
            assert_eq!(registry.status("DELETE", &format!("/v2/a/blobs/{digest}")).await, 202, "{way}");
            assert_eq!(registry.status("HEAD", &format!("/v2/a/blobs/{digest}")).await, 404, "{way}");
        }
    }
}

#[tokio::test]
async fn chunks_out_of_order_are_refused_and_the_right_ones_taken_after_them() {
    let registry = Registry::start().await;
    let served = &registry.served;
    let blob = bytes("out of order");
    let location = registry.session("a").await;
    assert_eq!(served.patch(&location, "1024-2047", blob[1024..2048].to_vec()).await.status(), 416);
    assert_eq!(served.patch(&location, "0-1023", blob[..1024].to_vec()).await.status(), 202);
    for (range, part) in [("0-1023", &blob[..1024]), ("2048-2999", &blob[2048..]), ("1023-2046", &blob[1023..2047])] {
        let refused = served.patch(&location, range, part.to_vec()).await;
        assert_eq!((refused.status().as_u16(), header(&refused, "range")), (416, "0-1023"), "{range}");
    }
    let put = format!("{location}?digest={}", Digest::of(&blob));
    let early = served.request("PUT", &put).header("content-range", "2048-2999").body(blob[2048..].to_vec());
    assert_eq!(early.send().await.unwrap().status(), 416);
    assert_eq!(served.patch(&location, "1024-2999", blob[1024..].to_vec()).await.status(), 202);
    assert_eq!(registry.status("PUT", &put).await, 201);
    registry.expect_blob("a", &Digest::of(&blob), &blob).await;
}

#[tokio::test]
async fn a_blob_of_another_digest_is_never_there() {
    let registry = Registry::start().await;
    let served = &registry.served;
    for algorithm in Algorithm::ALL {
        let digest = algorithm.digest(b"right");
        let wrong = || b"wrong".to_vec();
        let post = served.request("POST", &format!("/v2/a/blobs/uploads/?digest={digest}")).body(wrong());
        let put = served.request("PUT", &format!("{}?digest={digest}", registry.session("a").await)).body(wrong());
        let location = registry.session("a").await;
        assert_eq!(served.patch(&location, "0-4", wrong()).await.status(), 202);
        let end = served.request("PUT", &format!("{location}?digest={digest}"));
        for (way, request) in [("post", post), ("put", put), ("end", end)] {
            let refused = request.send().await.unwrap();
            assert_eq!(refusal(refused).await, (400, "DIGEST_INVALID".to_owned()), "{way}");
            assert_eq!(registry.status("GET", &format!("/v2/a/blobs/{digest}")).await, 404, "{way}");
        }
    }
    let location = registry.session("a").await;
    assert_eq!(registry.status("PUT", &format!("{location}?digest=sha256:short")).await, 400);
    assert_eq!(registry.status("DELETE", &location).await, 204);
    assert_eq!(refusal(served.ask("GET", &location).await).await, (404, "BLOB_UPLOAD_UNKNOWN".to_owned()));
}

#[tokio::test]
async fn a_blob_is_mounted_from_another_repository_or_from_anywhere() {
    let registry = Registry::start().await;
    let blob = bytes("mounted");
    let digest = registry.push("b", &blob).await;
    for from in ["&from=b", ""] {
        let mounted = registry.served.ask("POST", &format!("/v2/a/blobs/uploads/?mount={digest}{from}")).await;
        created(&mounted, &format!("/v2/a/blobs/{digest}"), &digest);
        registry.expect_blob("a", &digest, &blob).await;
    }
    let absent = Digest::of(b"absent");
    for from in ["&from=b", ""] {
        let session = registry.served.ask("POST", &format!("/v2/a/blobs/uploads/?mount={absent}{from}")).await;
        assert_eq!(session.status(), 202);
        assert!(header(&session, "location").starts_with("/v2/a/blobs/uploads/"));
    }
}

#[tokio::test]
async fn a_blob_is_read_in_parts() {
    let registry = Registry::start().await;
    let blob = bytes("parts");
    let digest = registry.push("a", &blob).await;
    for (range, part, content_range) in [
        ("bytes=500-1499", &blob[500..1500], "bytes 500-1499/3000"),
        ("bytes=500-", &blob[500..], "bytes 500-2999/3000"),
        ("bytes=-500", &blob[2500..], "bytes 2500-2999/3000"),
        ("bytes=2900-5000", &blob[2900..], "bytes 2900-2999/3000"),
    ] {
        let got = registry.served.request("GET", &format!("/v2/a/blobs/{digest}")).header("range", range);
        let got = got.send().await.unwrap();
        assert_eq!((got.status().as_u16(), header(&got, "content-range")), (206, content_range));
        assert_eq!(header(&got, "content-length"), part.len().to_string());
        assert!(got.bytes().await.unwrap() == part, "{range}");
    }
    for range in ["bytes=500-0", "bytes=5000-10000", "bytes=3000-"] {
        let got = registry.served.request("GET", &format!("/v2/a/blobs/{digest}")).header("range", range);
        assert_eq!(got.send().await.unwrap().status(), 416, "{range}");
    }
}

#[tokio::test]
async fn every_kind_of_manifest_is_kept_byte_for_byte() {
    let registry = Registry::start().await;
    let config = registry.blob("application/vnd.oci.image.config.v1+json", b"{\"config\":1}").await;
    let layer = registry.blob("application/vnd.oci.image.layer.v1.tar", &bytes("layer")).await;
    let empty = registry.blob(EMPTY, b"{}").await;
    let foreign = json!({
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "digest": Digest::of(b"elsewhere"), "size": 123_456, "urls": ["https://store.example/blob"],
    });
    let mut with_data = empty.clone();
    with_data["data"] = "e30=".into();
    let image = json!({ "schemaVersion": 2, "mediaType": OCI, "config": config, "layers": [layer] });
    let image_text = image.to_string();
    let child = json!({ "mediaType": OCI, "digest": Digest::of(image_text.as_bytes()), "size": image_text.len() });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [child] });
    let index_text = index.to_string();
    let nested = json!({ "mediaType": INDEX, "digest": Digest::of(index_text.as_bytes()), "size": index_text.len() });
    let annotations = (0..390).map(|at| (format!("large-{at}"), "A".repeat(10_000).into()));
    let annotations = annotations.collect::<serde_json::Map<_, _>>();
    for (kind, media_type, document) in [
        ("image", OCI, image),
        ("index", INDEX, index),
        ("nested", INDEX, json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [nested] })),
        ("empty-index", INDEX, json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] })),
        (
            "artifact-index",
            INDEX,
            json!({
                "schemaVersion": 2, "mediaType": INDEX, "artifactType": "text/x", "manifests": [child],
            }),
        ),
        (
            "artifact",
            OCI,
            json!({
                "schemaVersion": 2, "mediaType": OCI, "artifactType": "text/x", "config": empty, "layers": [empty],
            }),
        ),
        ("no-layers", OCI, json!({ "schemaVersion": 2, "mediaType": OCI, "config": config, "layers": [] })),
        ("data", OCI, json!({ "schemaVersion": 2, "mediaType": OCI, "config": with_data, "layers": [layer] })),
        ("foreign", OCI, json!({ "schemaVersion": 2, "mediaType": OCI, "config": config, "layers": [foreign, layer] })),
        ("untyped", OCI, json!({ "schemaVersion": 2, "config": config, "layers": [layer] })),
        (
            "custom",
            OCI,
            json!({
                "schemaVersion": 2, "mediaType": OCI, "config": config, "layers": [layer], "org.example": { "x": [1] },
            }),
        ),
        (
            "large",
            OCI,
            json!({
                "schemaVersion": 2, "mediaType": OCI, "config": config, "layers": [layer], "annotations": annotations,
            }),
        ),
        (
            "docker",
            "application/vnd.docker.distribution.manifest.v2+json",
            json!({
                "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "config": config, "layers": [layer],
            }),
        ),
    ] {
        let text = format!("{document}\n ");
        // Where another document names it, its bytes are those of its digest there.
        let text = if ["image", "index"].contains(&kind) { document.to_string() } else { text };
        let digest = Digest::of(text.as_bytes());
        for reference in [digest.to_string(), kind.to_owned()] {
            let put = registry.put(&reference, media_type, &text).await;
            created(&put, &format!("/v2/a/manifests/{digest}"), &digest);
            assert_eq!(header(&put, "oci-subject"), "");
            registry.expect_manifest(&reference, media_type, &text, &digest).await;
        }
        let long = Algorithm::Sha512.digest(text.as_bytes());
        let put = registry.put(&long.to_string(), media_type, &text).await;
        created(&put, &format!("/v2/a/manifests/{long}"), &long);
        registry.expect_manifest(&long.to_string(), media_type, &text, &long).await;
        registry.expect_manifest(kind, media_type, &text, &digest).await;
    }
}

#[tokio::test]
async fn a_manifest_that_cannot_be_kept_is_refused() {
    let registry = Registry::start().await;
    let config = registry.blob(EMPTY, b"{}").await;
    let good = json!({ "schemaVersion": 2, "mediaType": OCI, "config": config, "layers": [] }).to_string();
    let absent = json!({ "mediaType": EMPTY, "digest": Digest::of(b"absent"), "size": 6 });
    let missing = json!({ "schemaVersion": 2, "mediaType": OCI, "config": absent, "layers": [] }).to_string();
    let childless = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [absent] }).to_string();
    let digest = Digest::of(good.as_bytes());
    for (reference, media_type, text, code) in [
        ("sha256:baddigeststring", OCI, &good, "DIGEST_INVALID"),
        (&digest.to_string(), OCI, &format!("{good}  "), "DIGEST_INVALID"),
        ("missing", OCI, &missing, "MANIFEST_BLOB_UNKNOWN"),
        ("childless", INDEX, &childless, "MANIFEST_BLOB_UNKNOWN"),
        ("mistyped", INDEX, &good, "MANIFEST_INVALID"),
        ("text", "text/plain", &good, "MANIFEST_INVALID"),
    ] {
        assert_eq!(
            refusal(registry.put(reference, media_type, text).await).await,
            (400, code.to_owned()),
            "{reference}"
        );
        let got = registry.status("GET", &format!("/v2/a/manifests/{reference}")).await;
        assert!([400, 404].contains(&got), "{reference}: {got}");
    }
    let absent = registry.served.ask("GET", &format!("/v2/a/manifests/{}", Digest::of(b"absent"))).await;
    assert_eq!(refusal(absent).await, (404, "MANIFEST_UNKNOWN".to_owned()));
}

#[tokio::test]
async fn what_refers_to_a_manifest_is_listed_whether_that_is_there_or_not() {
    let registry = Registry::start().await;
    let empty = registry.blob(EMPTY, b"{}").await;
    let config = registry.blob("text/config", b"{ }").await;
    let image = json!({ "schemaVersion": 2, "mediaType": OCI, "config": config, "layers": [] }).to_string();
    let subject = json!({ "mediaType": OCI, "digest": Digest::of(image.as_bytes()), "size": image.len() });
    let annotations = json!({ "org.example": "hello" });
    let referring = [
        (OCI, "text/config", json!({ "schemaVersion": 2, "config": config, "layers": [] })),
        (
            OCI,
            "text/one",
            json!({ "schemaVersion": 2, "artifactType": "text/one", "config": empty, "layers": [empty] }),
        ),
        (
            OCI,
            "text/a+b",
            json!({ "schemaVersion": 2, "artifactType": "text/a+b", "config": empty, "layers": [empty] }),
        ),
        (INDEX, "text/one", json!({ "schemaVersion": 2, "artifactType": "text/one", "manifests": [] })),
    ];
    let path = format!("/v2/a/referrers/{}", subject["digest"].as_str().unwrap());
    let mut expected = Vec::new();
    for (number, (media_type, artifact_type, mut document)) in referring.into_iter().enumerate() {
        document["mediaType"] = media_type.into();
        document["subject"] = subject.clone();
        document["annotations"] = annotations.clone();
        let text = document.to_string();
        let digest = Digest::of(text.as_bytes());
        // The subject itself comes in the middle; one is pushed under a tag.
        if number == 2 {
            assert_eq!(registry.put("image", OCI, &image).await.status(), 201);
        }
        let reference = if number == 1 { "tagged".to_owned() } else { digest.to_string() };
        let put = registry.put(&reference, media_type, &text).await;
        assert_eq!((put.status().as_u16(), header(&put, "oci-subject")), (201, subject["digest"].as_str().unwrap()));
        expected.push(json!({
            "mediaType": media_type, "digest": digest, "size": text.len(), "artifactType": artifact_type,
            "annotations": annotations,
        }));
        let listed = registry.json(&path).await["manifests"].as_array().unwrap().clone();
        assert_eq!(listed.len(), expected.len());
        assert!(expected.iter().all(|one| listed.contains(one)), "{listed:?}");
    }
    for (filter, artifact_type) in [("text/one", "text/one"), ("text/a%2Bb", "text/a+b"), ("text/none", "text/none")] {
        let got = registry.served.ask("GET", &format!("{path}?artifactType={filter}")).await;
        assert_eq!(header(&got, "oci-filters-applied"), "artifactType");
        assert_eq!(header(&got, "content-type"), INDEX);
        let body: Value = serde_json::from_slice(&got.bytes().await.unwrap()).unwrap();
        let wanted = expected.iter().filter(|one| one["artifactType"] == artifact_type).count();
        assert_eq!(body["manifests"].as_array().unwrap().len(), wanted, "{filter}");
    }
    assert_eq!(registry.status("HEAD", &path).await, 200);
    assert_eq!(registry.status("GET", "/v2/a/referrers/sha256:short").await, 400);
    // Elsewhere nothing refers to it, and what is deleted refers no more.
    assert_eq!(registry.json(&path.replace("/a/", "/b/")).await["manifests"], json!([]));
    let gone = format!("/v2/a/manifests/{}", expected[0]["digest"].as_str().unwrap());
    assert_eq!(registry.status("DELETE", &gone).await, 202);
    assert_eq!(registry.json(&path).await["manifests"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_long_list_of_referrers_comes_in_parts() {
    let registry = Registry::start().await;
    let empty = registry.blob(EMPTY, b"{}").await;
    let subject = json!({ "mediaType": OCI, "digest": Digest::of(b"absent"), "size": 6 });
    for number in 0..3 {
        let document = json!({
            "schemaVersion": 2, "mediaType": OCI, "artifactType": "text/a+b", "config": empty, "layers": [],
            "subject": subject, "annotations": { "large": number.to_string().repeat(3 << 20) },
        });
        let text = document.to_string();
        assert_eq!(registry.put(&Digest::of(text.as_bytes()).to_string(), OCI, &text).await.status(), 201);
    }
    let mut next = Some(format!("/v2/a/referrers/{}?artifactType=text/a%2Bb", Digest::of(b"absent")));
    let (mut parts, mut found) = (0, std::collections::BTreeSet::new());
    while let Some(path) = next {
        let got = registry.served.ask("GET", &path).await;
        assert_eq!(header(&got, "oci-filters-applied"), "artifactType");
        next = header(&got, "link")
            .strip_prefix('<')
            .and_then(|link| link.strip_suffix(r#">; rel="next""#))
            .map(str::to_owned);
        let body: Value = serde_json::from_slice(&got.bytes().await.unwrap()).unwrap();
        let listed = body["manifests"].as_array().unwrap();
        found.extend(listed.iter().map(|one| one["digest"].as_str().unwrap().to_owned()));
        parts += 1;
        assert!(parts < 10, "the list does not end");
    }
    assert_eq!((parts, found.len()), (3, 3));
}

#[tokio::test]
async fn tags_and_repositories_are_listed_in_pages() {
    let registry = Registry::start().await;
    let config = registry.blob(EMPTY, b"{}").await;
    let text = json!({ "schemaVersion": 2, "mediaType": OCI, "config": config, "layers": [] }).to_string();
    for name in ["a/manifests/t3", "a/manifests/t1", "a/manifests/t2", "b/c/manifests/t1"] {
        assert_eq!(registry.served.put_manifest(&format!("/v2/{name}"), OCI, &text).await.status(), 201);
    }
    let untagged = format!("/v2/d/manifests/{}", Digest::of(text.as_bytes()));
    assert_eq!(registry.served.put_manifest(&untagged, OCI, &text).await.status(), 201);
    for (path, member, all) in [
        ("/v2/a/tags/list", "tags", &["t1", "t2", "t3"][..]),
        ("/v2/d/tags/list", "tags", &[]),
        ("/v2/_catalog", "repositories", &["a", "b/c", "d"]),
    ] {
        assert_eq!(registry.json(path).await[member], json!(all), "{path}");
        assert_eq!(registry.status("HEAD", path).await, 200);
        let mut next = Some(format!("{path}?n=1"));
        let mut found = Vec::new();
        while let Some(page) = next {
            let got = registry.served.ask("GET", &page).await;
            let link = header(&got, "link").to_owned();
            let body: Value = serde_json::from_slice(&got.bytes().await.unwrap()).unwrap();
            found.extend(body[member].as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()));
            next = link.strip_prefix('<').and_then(|link| link.strip_suffix(r#">; rel="next""#)).map(str::to_owned);
            assert!(found.len() <= all.len(), "the list does not end");
        }
        assert_eq!(found, all, "{path}");
    }
    assert_eq!(registry.json("/v2/a/tags/list?last=t1").await["tags"], json!(["t2", "t3"]));
    assert_eq!(registry.json("/v2/a/tags/list?n=0").await["tags"], json!([]));
    assert_eq!(registry.status("GET", "/v2/a/tags/list?n=x").await, 400);
}

#[tokio::test]
async fn what_is_deleted_is_gone_and_what_is_needed_stays() {
    let registry = Registry::start().await;
    let config = registry.blob(EMPTY, b"{}").await;
    let text = json!({ "schemaVersion": 2, "mediaType": OCI, "config": config, "layers": [] }).to_string();
    let digest = Digest::of(text.as_bytes());
    let manifest = format!("/v2/a/manifests/{digest}");
    let blob = format!("/v2/a/blobs/{}", Digest::of(b"{}"));
    for reference in [digest.to_string(), "t1".to_owned(), "t2".to_owned()] {
        assert_eq!(registry.put(&reference, OCI, &text).await.status(), 201);
    }
    // A tag goes alone.
    assert_eq!(registry.status("DELETE", "/v2/a/manifests/t1").await, 202);
    assert_eq!(registry.status("GET", "/v2/a/manifests/t1").await, 404);
    assert_eq!(registry.status("DELETE", "/v2/a/manifests/t1").await, 404);
    registry.expect_manifest(&digest.to_string(), OCI, &text, &digest).await;
    registry.expect_manifest("t2", OCI, &text, &digest).await;
    // A blob that a manifest needs stays.
    assert_eq!(refusal(registry.served.ask("DELETE", &blob).await).await, (405, "UNSUPPORTED".to_owned()));
    assert_eq!(registry.status("HEAD", &blob).await, 200);
    // A digest takes its tags along.
    assert_eq!(registry.status("DELETE", &manifest).await, 202);
    for path in [manifest.as_str(), "/v2/a/manifests/t2", "/v2/a/tags/list"] {
        assert_eq!(registry.status("GET", path).await, 404, "{path}");
    }
    assert_eq!(registry.status("DELETE", &manifest).await, 404);
    assert_eq!(registry.status("DELETE", &blob).await, 202);
    assert_eq!(registry.status("HEAD", &blob).await, 404);
    assert_eq!(registry.status("DELETE", &blob).await, 404);
    // And comes again.
    registry.push("a", b"{}").await;
    assert_eq!(registry.put("t1", OCI, &text).await.status(), 201);
    registry.expect_manifest("t1", OCI, &text, &digest).await;
}
