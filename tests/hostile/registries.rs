//! Manifests, and registries that are not what they should be. Each row has a registry of its own, which serves one
//! model and says something else where the row says so.

use std::convert::Infallible;
use std::io::Write as _;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{
    CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, LINK, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::{HeaderName, Method};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use kiln::oci::Digest;
use serde_json::{Value, json};

use crate::scripted::{Seen, Server, answer, refusal, with};
use crate::trial::{Effect, Row};

const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const TENSOR: &str = "application/vnd.ollama.image.tensor";
const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const LAYER: &[u8] = &[7; 5000];

type Twist = dyn Fn(&Seen, usize) -> Option<Response> + Send + Sync;

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()})
}

/// The manifest that is served where a row has no other.
fn manifest() -> Value {
    let mut layer = descriptor(TENSOR, LAYER);
    layer["name"] = json!("w.weight");
    json!({"schemaVersion": 2, "mediaType": DOCKER, "config": descriptor("application/vnd.docker.container.image.v1+json", b"{}"), "layers": [layer]})
}

fn changed(change: impl FnOnce(&mut Value)) -> Bytes {
    let mut manifest = manifest();
    change(&mut manifest);
    manifest.to_string().into()
}

fn body(status: u16, bytes: impl Into<Bytes>) -> Response {
    Response::builder().status(status).body(Body::from(bytes.into())).unwrap()
}

fn endless(status: u16) -> Response {
    let chunks = stream::repeat(Ok::<_, Infallible>(Bytes::from_static(&[b' '; 16 << 10])));
    Response::builder().status(status).body(Body::from_stream(chunks)).unwrap()
}

/// A registry with this manifest, and with other answers where `twist` has some.
async fn registry(manifest: Bytes, media_type: &'static str, twist: Arc<Twist>) -> Server {
    Server::start(move |seen, before| {
        if let Some(reply) = twist(seen, before) {
            return reply;
        }
        let path = seen.path.as_str();
        let put = [Method::POST, Method::PUT, Method::PATCH].contains(&seen.method);
        if path == "/v2/" {
            answer(200)
        } else if path.contains("/manifests/") && !put {
            let reply = with(body(200, manifest.clone()), CONTENT_TYPE, media_type);
            with(reply, DIGEST, Digest::of(&manifest).to_string())
        } else if path.ends_with(&Digest::of(LAYER).to_string()) {
            part(seen, LAYER)
        } else if path.ends_with(&Digest::of(b"{}").to_string()) {
            part(seen, b"{}")
        } else {
            refusal(404, "BLOB_UNKNOWN")
        }
    })
    .await
}

/// A blob, or the part of it that is asked for.
fn part(seen: &Seen, blob: &'static [u8]) -> Response {
    let asked = seen.header(RANGE).strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let Some((first, last)) =
        asked.and_then(|(first, last)| Some((first.parse().ok()?, last.parse().unwrap_or(blob.len() - 1))))
    else {
        return body(200, blob);
    };
    let last: usize = last.min(blob.len() - 1);
    let range = format!("bytes {first}-{last}/{}", blob.len());
    with(body(206, &blob[first..=last]), CONTENT_RANGE, range)
}

/// Pulling this manifest ends so.
async fn pull(id: &'static str, what: &str, code: i32, manifest: Bytes, media_type: &'static str) -> Row {
    twisted(id, what, code, manifest, media_type, |_, _| None).await
}

async fn twisted(
    id: &'static str,
    what: &str,
    code: i32,
    manifest: Bytes,
    media_type: &'static str,
    twist: impl Fn(&Seen, usize) -> Option<Response> + Send + Sync + 'static,
) -> Row {
    let server = registry(manifest, media_type, Arc::new(twist)).await;
    Row::new(id, what, format!("pull {}/team/model:v1 evil --timeout 2", server.host()), code).effect(Effect::Unnamed)
}

/// Pulling the model ends so, when some answers are others.
async fn lying(
    id: &'static str,
    what: &str,
    code: i32,
    twist: impl Fn(&Seen, usize) -> Option<Response> + Send + Sync + 'static,
) -> Row {
    let server = registry(manifest().to_string().into(), DOCKER, Arc::new(twist)).await;
    Row::new(id, what, format!("pull {}/team/model:v1 evil --timeout 2", server.host()), code).effect(Effect::Unnamed)
}

/// Any command ends so.
async fn asked(
    id: &'static str,
    what: &str,
    words: &str,
    code: i32,
    twist: impl Fn(&Seen, usize) -> Option<Response> + Send + Sync + 'static,
) -> Row {
    let server = registry(manifest().to_string().into(), DOCKER, Arc::new(twist)).await;
    Row::new(id, what, format!("{} --timeout 2", words.replace("HOST", server.host())), code).effect(Effect::Unnamed)
}

fn is_layer(seen: &Seen) -> bool {
    seen.method == Method::GET && seen.path.ends_with(&Digest::of(LAYER).to_string())
}

fn is_manifest(seen: &Seen) -> bool {
    seen.path.contains("/manifests/")
}

pub(crate) async fn rows() -> Vec<Row> {
    let mut rows = manifests().await;
    rows.extend(bodies().await);
    rows.extend(protocol().await);
    rows.extend(pushes().await);
    rows
}

async fn manifests() -> Vec<Row> {
    let mut rows = Vec::new();
    let hex = "a".repeat(64);
    for digest in [
        "../../etc/x".to_owned(),
        format!("sha256:{}", &hex[1..]),
        format!("sha256:{hex}a"),
        format!("sha256:{}", hex.to_uppercase()),
        format!("sha256-{hex}"),
        format!("sha256:../{}", &hex[3..]),
        format!("SHA256:{hex}"),
        format!("sha512:{hex}"),
        format!("md5:{}", &hex[32..]),
        format!("sha256:{hex}\0"),
        "sha256:".to_owned(),
        String::new(),
    ] {
        let layer = changed(|manifest| manifest["layers"][0]["digest"] = json!(digest));
        rows.push(pull("M1", &format!("a layer {digest:?}"), 3, layer, DOCKER).await);
        let config = changed(|manifest| manifest["config"]["digest"] = json!(digest));
        rows.push(pull("M1", &format!("a config {digest:?}"), 3, config, DOCKER).await);
    }
    rows.push(
        pull(
            "M1",
            "a digest that is a number",
            3,
            changed(|manifest| manifest["layers"][0]["digest"] = json!(1)),
            DOCKER,
        )
        .await,
    );
    let both = changed(|manifest| manifest["manifests"] = json!([]));
    rows.push(pull("M2", "both", 3, both, DOCKER).await.says(["exactly one of `layers` and `manifests`"]));
    let neither = changed(|manifest| drop(manifest.as_object_mut().unwrap().remove("layers")));
    rows.push(pull("M2", "neither", 3, neither, DOCKER).await);
    rows.push(pull("M2", "another Content-Type", 3, changed(|_| {}), OCI).await);
    rows.push(pull("M2", "an index as Content-Type", 3, changed(|_| {}), INDEX).await);
    // What is no manifest's type says nothing of its kind: Ollama's registry sends all of its manifests as text/plain.
    let odd = pull("M2", "a Content-Type of no manifest", 0, changed(|_| {}), "text/html").await;
    rows.push(odd.effect(Effect::Any));
    rows.push(pull("M3", "version 1", 3, changed(|manifest| manifest["schemaVersion"] = json!(1)), DOCKER).await);
    rows.push(pull("M3", "version 3", 3, changed(|manifest| manifest["schemaVersion"] = json!(3)), DOCKER).await);
    rows.push(
        pull("M3", "a version that is a text", 3, changed(|manifest| manifest["schemaVersion"] = json!("2")), DOCKER)
            .await,
    );
    rows.push(
        pull("M3", "5 MB of space", 3, vec![b' '; 5_000_000].into(), DOCKER)
            .await
            .says(["The manifest `v1`", "is larger than 4 MiB"]),
    );
    rows.push(
        pull("M3", "2 million values", 3, format!("{{\"layers\":[{}0]}}", "0,".repeat(2_000_000)).into(), DOCKER).await,
    );
    let layers = changed(|manifest| manifest["layers"] = json!(vec![json!({}); 500_000]));
    rows.push(pull("M3", "half a million layers", 3, layers, DOCKER).await);
    let twice = manifest().to_string().replacen('{', "{\"schemaVersion\":2,", 1);
    rows.push(pull("M3", "a key twice", 3, twice.into(), DOCKER).await.says(["duplicate key `schemaVersion`"]));
    for text in ["", "null", "[]", "{", "{} {}", "\u{feff}{}", "<html>"] {
        rows.push(pull("M3", &format!("{text:?}"), 3, text.to_owned().into(), DOCKER).await);
    }
    rows.push(pull("M3", "100,000 deep", 3, "[".repeat(100_000).into(), DOCKER).await);
    for size in [
        json!(4999),
        json!(5001),
        json!(0),
        json!(-1),
        json!(1u64 << 63),
        json!(u64::MAX),
        json!(5000.5),
        json!("5000"),
    ] {
        let sized = changed(|manifest| manifest["layers"][0]["size"] = size.clone());
        rows.push(pull("M4", &format!("a layer of {size}"), 3, sized, DOCKER).await);
    }
    let other = changed(|manifest| {
        let mut layer = manifest["layers"][0].clone();
        layer["size"] = json!(17);
        manifest["layers"].as_array_mut().unwrap().push(layer);
    });
    rows.push(pull("M12", "5000 and 17", 3, other, DOCKER).await);
    let urls = changed(|manifest| manifest["layers"][0]["urls"] = json!(["http://169.254.169.254/secret"]));
    rows.push(pull("M8", "are not followed", 0, urls, DOCKER).await.effect(Effect::Any));
    let data = changed(|manifest| manifest["layers"][0]["data"] = json!("ZXZpbA=="));
    rows.push(pull("M9", "the blob decides", 0, data, DOCKER).await.effect(Effect::Any));
    for name in ["../x", "/etc/kiln-x", "a/../../x", "..", ".", "a\\..\\x", "a\0b", "\u{1b}[2J", "CON", "a:b", "a.", ""]
    {
        let named = changed(|manifest| manifest["layers"][0]["name"] = json!(name));
        let server = registry(named, DOCKER, Arc::new(|_: &Seen, _: usize| None::<Response>)).await;
        let id = if ["CON", "a:b", "a."].contains(&name) { "M11" } else { "M10" };
        let host = server.host().to_owned();
        // It is content like any other: laid out, it stays inside of its directory.
        rows.push(Row::new(id, format!("{name:?}"), "list", 0).effect(Effect::Any).check(move |place, _| {
            let pulled = place.kiln(&format!("pull {host}/team/model:v1 evil"));
            assert!([0, 3].contains(&pulled.code()), "{name:?}: {pulled}");
            let before = crate::trial::tree(&place.path(""));
            let laid = place.kiln("checkout evil inner/out");
            assert!(laid.code() != 1, "{name:?}: {laid}");
            let after = crate::trial::tree(&place.path(""));
            let strange = after
                .keys()
                .filter(|path| !before.contains_key(*path) && !path.starts_with(place.path("inner")))
                .filter(|path| !path.starts_with(place.path("store")));
            assert_eq!(strange.collect::<Vec<_>>(), Vec::<&std::path::PathBuf>::new(), "{name:?}");
            assert!(!std::path::Path::new("/etc/kiln-x").exists());
        }));
    }
    let twins = changed(|manifest| {
        let layer = manifest["layers"][0].clone();
        manifest["layers"].as_array_mut().unwrap().push(layer);
    });
    rows.push(pull("M11", "the same layer twice", 0, twins, DOCKER).await.effect(Effect::Any));
    // Indexes.
    let index = |manifests: Value| {
        Bytes::from(json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).to_string())
    };
    let of_it = json!({"mediaType": DOCKER, "digest": Digest::of(b"x"), "size": 1});
    rows.push(pull("M7", "an index in place of a model", 3, index(json!([of_it])), INDEX).await);
    rows.push(pull("M7", "an empty index", 3, index(json!([])), INDEX).await);
    let own = json!({"mediaType": INDEX, "digest": Digest::of(b"y"), "size": 400});
    rows.push(pull("M7", "an index of indexes", 3, index(json!(vec![own; 10_000])), INDEX).await);
    rows
}

async fn bodies() -> Vec<Row> {
    let mut rows = vec![
        lying("M4", "a body that is shorter", 3, |seen, _| is_layer(seen).then(|| body(200, &LAYER[..4000]))).await,
        lying("M4", "a body that is longer", 3, |seen, _| is_layer(seen).then(|| body(200, vec![7_u8; 5001]))).await,
        lying("M4", "a body without an end", 3, |seen, _| is_layer(seen).then(|| endless(200))).await,
        lying("M4", "a manifest without an end", 3, |seen, _| {
            is_manifest(seen).then(|| with(endless(200), CONTENT_TYPE, DOCKER))
        })
        .await,
        lying("M5", "another body", 3, |seen, _| is_layer(seen).then(|| body(200, vec![8_u8; 5000])))
            .await
            .says(["w.weight"]),
        lying("M5", "a header of another manifest", 3, |seen, _| {
            let reply = with(body(200, manifest().to_string()), CONTENT_TYPE, DOCKER);
            is_manifest(seen).then(|| with(reply, DIGEST, Digest::of(b"other").to_string()))
        })
        .await,
        lying("M5", "a header that is no digest", 3, |seen, _| {
            let reply = with(body(200, manifest().to_string()), CONTENT_TYPE, DOCKER);
            is_manifest(seen).then(|| with(reply, DIGEST, "sha256:../../x"))
        })
        .await,
        lying("M6", "to another manifest with every request", 0, |seen, before| {
            is_manifest(seen).then(|| {
                let bytes = changed(|manifest| manifest["annotations"] = json!({"n": before.to_string()}));
                let reply = with(body(200, bytes.clone()), CONTENT_TYPE, DOCKER);
                with(reply, DIGEST, Digest::of(&bytes).to_string())
            })
        })
        .await
        .effect(Effect::Any),
    ];
    let zipped = {
        let path = tempfile::NamedTempFile::new().unwrap();
        let mut child = std::process::Command::new("gzip")
            .arg("-9")
            .stdin(std::process::Stdio::piped())
            .stdout(path.reopen().unwrap())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        (0..100).for_each(|_| stdin.write_all(&[b' '; 1 << 20]).unwrap());
        drop(stdin);
        assert!(child.wait().unwrap().success());
        Bytes::from(std::fs::read(path.path()).unwrap())
    };
    for encoding in ["gzip", "zstd", "br"] {
        for what in ["/manifests/", "/blobs/", "/token"] {
            let zipped = zipped.clone();
            let code = if what == "/token" { 8 } else { 3 };
            rows.push(
                lying("M13", &format!("{encoding} of {what}"), code, move |seen, _| match seen.path.contains(what) {
                    true => {
                        Some(with(with(body(200, zipped.clone()), CONTENT_ENCODING, encoding), CONTENT_TYPE, DOCKER))
                    }
                    false if what == "/token" && seen.path != "/token" && seen.path != "/v2/" => Some(challenged(seen)),
                    false => None,
                })
                .await,
            );
        }
    }
    for k in [0, 1, 63, 64, 2500, 4998, 4999] {
        rows.push(
            lying("M22", &format!("byte {k}"), 3, move |seen, _| {
                is_layer(seen).then(|| {
                    let mut bytes = LAYER.to_vec();
                    bytes[k] ^= 1;
                    body(200, bytes)
                })
            })
            .await
            .says(["w.weight"]),
        );
    }
    rows
}

/// A 401 that sends to a token service on the same host.
fn challenged(seen: &Seen) -> Response {
    let host = seen.header(axum::http::header::HOST).to_owned();
    with(refusal(401, "UNAUTHORIZED"), WWW_AUTHENTICATE, format!(r#"Bearer realm="http://{host}/token",service="a""#))
}

async fn protocol() -> Vec<Row> {
    let redirect =
        |to: &'static str| move |seen: &Seen, _: usize| is_layer(seen).then(|| with(answer(307), LOCATION, to));
    // Where the registry answers against the protocol, the exit code is that of the registry; where it says that a blob
    // is another one, that of damage.
    let mut rows = vec![
        lying("M14", "a token without an end", 8, |seen, _| match seen.path.as_str() {
            "/token" => Some(endless(200)),
            "/v2/" => None,
            _ => Some(challenged(seen)),
        })
        .await,
        asked("M14", "tags without an end", "tags HOST/team/model", 8, |seen, _| {
            seen.path.ends_with("/tags/list").then(|| endless(200))
        })
        .await,
        asked("M14", "pages that lead to the next for ever", "tags HOST/team/model", 8, |seen, _| {
            let page = body(200, r#"{"name":"team/model","tags":[]}"#);
            seen.path
                .ends_with("/tags/list")
                .then(|| with(page, LINK, "</v2/team/model/tags/list?last=a>; rel=\"next\""))
        })
        .await,
        asked("M14", "a page on another host", "tags HOST/team/model", 8, |seen, _| {
            let page = body(200, r#"{"name":"team/model","tags":["a"]}"#);
            seen.path
                .ends_with("/tags/list")
                .then(|| with(page, LINK, "<http://169.254.169.254/latest/meta-data>; rel=\"next\""))
        })
        .await
        .says(["169.254.169.254"]),
        asked("M14", "tags that move the cursor", "tags HOST/team/model", 0, |seen, _| {
            seen.path.ends_with("/tags/list").then(|| body(200, r#"{"name":"team/model","tags":["\u001b[2J","a\nb"]}"#))
        })
        .await,
        asked("M15", "in one reply of 16 MB", "referrers HOST/team/model:v1", 8, |seen, _| {
            seen.path.contains("/referrers/").then(|| with(endless(200), CONTENT_TYPE, INDEX))
        })
        .await,
        asked("M21", "a tag that is no list", "referrers HOST/team/model:v1", 0, |seen, _| {
            seen.path.contains("/referrers/").then(|| refusal(404, "NOT_FOUND"))
        })
        .await,
        asked("M21", "a list that is no JSON", "referrers HOST/team/model:v1", 8, |seen, _| {
            seen.path.contains("/referrers/").then(|| with(body(200, "<html>"), CONTENT_TYPE, INDEX))
        })
        .await,
        lying("M16", "the machine's own metadata", 8, |seen, _| {
            let challenge = with(
                refusal(401, "UNAUTHORIZED"),
                WWW_AUTHENTICATE,
                r#"Bearer realm="http://169.254.169.254/token",service="a""#,
            );
            (seen.path != "/v2/").then_some(challenge)
        })
        .await
        .says(["169.254.169.254"]),
        lying("M16", "a file", 8, |seen, _| {
            (seen.path != "/v2/")
                .then(|| with(refusal(401, "UNAUTHORIZED"), WWW_AUTHENTICATE, r#"Bearer realm="file:///etc/passwd""#))
        })
        .await,
        lying("M16", "no address", 8, |seen, _| {
            (seen.path != "/v2/").then(|| with(refusal(401, "UNAUTHORIZED"), WWW_AUTHENTICATE, r#"Bearer realm="""#))
        })
        .await,
        lying("M16", "a challenge that is none", 7, |seen, _| {
            (seen.path != "/v2/").then(|| with(refusal(401, "UNAUTHORIZED"), WWW_AUTHENTICATE, "Bearer realm=\"a"))
        })
        .await,
        lying("M17", "to a file", 8, redirect("file:///etc/passwd")).await,
        lying("M17", "to no address", 8, redirect("http://")).await,
        lying("M17", "to a port that is off", 8, redirect("http://127.0.0.1:1/x")).await,
        lying("M18", "a circle", 8, |seen, _| is_layer(seen).then(|| with(answer(307), LOCATION, seen.path.clone())))
            .await,
        lying("M18", "a 206 that nobody asked for", 8, |seen, _| {
            is_layer(seen).then(|| with(body(206, &LAYER[1..]), CONTENT_RANGE, "bytes 1-4999/5000"))
        })
        .await,
        lying("M18", "a 206 without a range", 8, |seen, _| is_layer(seen).then(|| body(206, LAYER))).await,
        lying("M18", "416", 3, |seen, _| is_layer(seen).then(|| answer(416))).await,
        lying("M18", "429 for a day", 8, |seen, _| {
            is_manifest(seen).then(|| with(refusal(429, "TOOMANYREQUESTS"), RETRY_AFTER, "86400"))
        })
        .await,
        lying("M18", "a wait of 2^64 s", 8, |seen, _| {
            is_manifest(seen).then(|| with(refusal(429, "TOOMANYREQUESTS"), RETRY_AFTER, "18446744073709551615"))
        })
        .await,
        lying("M18", "a status that nobody knows", 8, |seen, _| is_manifest(seen).then(|| answer(799))).await,
        lying("M18", "a reset at 99 %", 8, |seen, _| {
            is_layer(seen).then(|| {
                let start = stream::iter([Ok(Bytes::from_static(&LAYER[..4950])), Err(std::io::Error::other("reset"))]);
                with(Response::new(Body::from_stream(start)), axum::http::header::CONTENT_LENGTH, "5000")
            })
        })
        .await,
        lying("M18", "silence", 8, |seen, _| {
            is_layer(seen).then(|| {
                let start = stream::iter([Ok::<_, Infallible>(Bytes::from_static(&LAYER[..10]))]);
                Response::new(Body::from_stream(start.chain(stream::pending())))
            })
        })
        .await,
    ];
    for code in [401, 403] {
        rows.push(
            lying("M16", &format!("{code} without a challenge"), 7, move |seen, _| {
                is_manifest(seen).then(|| refusal(code, "DENIED"))
            })
            .await,
        );
    }
    rows.push(
        lying("M16", "an error that moves the cursor and has no end", 8, |seen, _| {
            is_manifest(seen).then(|| {
                body(400, format!(r#"{{"errors":[{{"code":"X","message":"\u001b[2J{}"}}]}}"#, "x".repeat(100_000)))
            })
        })
        .await,
    );
    rows
}

/// Takes every blob.
pub(crate) fn taking(seen: &Seen) -> Option<Response> {
    match seen.method {
        Method::HEAD => Some(answer(404)),
        Method::POST => Some(with(answer(202), LOCATION, "/v2/team/model/blobs/uploads/1")),
        Method::PATCH => Some(with(answer(202), LOCATION, seen.path.clone())),
        Method::PUT if seen.path.contains("/uploads/") => Some(with(answer(201), LOCATION, "/v2/x")),
        _ => None,
    }
}

async fn pushes() -> Vec<Row> {
    let session = |to: &'static str| {
        move |seen: &Seen, _: usize| match seen.method {
            Method::HEAD => Some(answer(404)),
            Method::POST => Some(with(answer(202), LOCATION, to)),
            _ => None,
        }
    };
    let words = "push demo:int4 HOST/team/model:v1";
    vec![
        asked("M17", "an upload to a file", words, 8, session("file:///tmp/x")).await,
        asked("M17", "an upload to no address", words, 8, session("http://")).await,
        asked("M17", "an upload without an address", words, 8, |seen, _| match seen.method {
            Method::HEAD => Some(answer(404)),
            Method::POST => Some(answer(202)),
            _ => None,
        })
        .await,
        // What a registry never had is not there, as a model is not there.
        asked("M19", "a blob that is there and is not", "pull HOST/team/model:v1 evil", 6, |seen, _| {
            is_layer(seen).then(|| refusal(404, "BLOB_UNKNOWN"))
        })
        .await
        .says(["`w.weight`", "is missing"]),
        asked("M19", "an upload with another digest", words, 3, move |seen, _| {
            if seen.method == Method::PUT && seen.path.contains("/uploads/") {
                return Some(with(with(answer(201), LOCATION, "/v2/x"), DIGEST, Digest::of(b"other").to_string()));
            }
            taking(seen)
        })
        .await,
        asked("M20", "a manifest that is another then", words, 3, move |seen, _| {
            if seen.method == Method::PUT && is_manifest(seen) {
                return Some(with(with(answer(201), LOCATION, "/v2/x"), DIGEST, Digest::of(b"other").to_string()));
            }
            taking(seen)
        })
        .await,
        asked("M20", "a manifest that is refused", words, 8, move |seen, _| {
            (seen.method == Method::PUT && is_manifest(seen))
                .then(|| refusal(400, "MANIFEST_INVALID"))
                .or_else(|| taking(seen))
        })
        .await,
    ]
}
