//! What the fixture promises to the tests that lean on it, asked in plain bytes over a socket.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use registry_fixtures::{Auth, BrokenUpload, Fault, Fixture, Locations, Options, Trigger, digest};

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");

struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The path and query of `Location`.
    fn location(&self, fixture: &Fixture) -> String {
        let location = self.header("location").expect("a Location");
        location.strip_prefix(&format!("http://{}", fixture.host())).unwrap_or(location).to_owned()
    }

    fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).expect("an error body");
        body["errors"][0]["code"].as_str().expect("a code").to_owned()
    }
}

/// Sends one request, with a `Content-Length` unless a header of that name is given; `None` when the
/// connection closes without a reply.
fn send(fixture: &Fixture, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<Reply> {
    let mut stream = TcpStream::connect(fixture.host()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut request = format!("{line} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", fixture.host());
    if !headers.iter().any(|(name, _)| *name == "content-length") {
        request.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    // The fixture may hang up before it has read everything.
    let _ = stream.write_all(&[request.as_bytes(), b"\r\n", body].concat());
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Some(Reply { status, head, body: bytes[end + 4..].to_vec() })
}

fn ask(fixture: &Fixture, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    send(fixture, line, headers, body).expect("a reply")
}

fn begin(fixture: &Fixture) -> String {
    let reply = ask(fixture, "POST /v2/a/blobs/uploads/", &[], b"");
    assert_eq!(reply.status, 202);
    reply.location(fixture)
}

fn manifest(config: &str, size: usize) -> String {
    let config = format!(r#"{{"mediaType":"application/json","digest":"{config}","size":{size}}}"#);
    format!(r#"{{"schemaVersion":2,"mediaType":"{OCI}","config":{config},"layers":[]}}"#)
}

#[test]
fn a_blob_goes_up_in_one_piece_and_comes_down_in_parts() {
    let fixture = Fixture::start();
    let digest = digest(b"0123456789");
    let put = format!("PUT {}&digest={}", begin(&fixture), digest.replace(':', "%3A"));
    let created = ask(&fixture, &put, &[OCTETS], b"0123456789");
    assert_eq!((created.status, created.header("docker-content-digest")), (201, Some(digest.as_str())));
    assert_eq!(fixture.blobs("a"), std::slice::from_ref(&digest));

    let get = |range: &str| {
        let headers: &[(&str, &str)] = if range.is_empty() { &[] } else { &[("range", range)] };
        ask(&fixture, &format!("GET /v2/a/blobs/{digest}"), headers, b"")
    };
    for (range, status, body, content_range) in [
        ("", 200, "0123456789", None),
        ("bytes=2-4", 206, "234", Some("bytes 2-4/10")),
        ("bytes=7-", 206, "789", Some("bytes 7-9/10")),
    ] {
        let reply = get(range);
        assert_eq!((reply.status, reply.body.as_slice()), (status, body.as_bytes()), "{range}");
        assert_eq!(reply.header("content-range"), content_range, "{range}");
    }
    assert_eq!((get("bytes=10-").status, get("bytes=10-").header("content-range")), (416, Some("bytes */10")));
    let head = ask(&fixture, &format!("HEAD /v2/a/blobs/{digest}"), &[], b"");
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("10"), 0));
    assert_eq!(ask(&fixture, &format!("HEAD /v2/b/blobs/{digest}"), &[], b"").status, 404);

    let methods = fixture.requests().iter().map(|request| request.method.clone()).collect::<Vec<_>>();
    assert_eq!(methods[..2], ["POST", "PUT"]);
    assert_eq!((fixture.requests()[1].body_len, fixture.requests()[1].status), (10, 201));
}

#[test]
fn chunks_are_in_order_and_go_to_the_latest_location() {
    let fixture = Fixture::start();
    let first = begin(&fixture);
    let patch = |location: &str, range: &str, body: &[u8]| {
        ask(&fixture, &format!("PATCH {location}"), &[OCTETS, ("content-range", range)], body)
    };
    let reply = patch(&first, "0-3", b"0123");
    assert_eq!((reply.status, reply.header("range")), (202, Some("0-3")));
    let second = reply.location(&fixture);
    assert_ne!(first, second);
    assert_eq!(patch(&first, "4-5", b"45").status, 416, "an old Location");
    assert_eq!(patch(&second, "5-6", b"56").status, 416, "a gap");
    assert_eq!(patch(&second, "4-6", b"45").status, 400, "another length than Content-Range says");
    assert_eq!(patch(&second, "bytes 4-5/6", b"45").status, 400, "the Content-Range of a reply");
    let status = ask(&fixture, &format!("GET {first}"), &[], b"");
    assert_eq!((status.status, status.header("range")), (204, Some("0-3")));
    let third = patch(&status.location(&fixture), "4-5", b"45").location(&fixture);

    let wrong = format!("PUT {third}&digest={}", digest(b"other"));
    let refused = ask(&fixture, &wrong, &[], b"");
    assert_eq!((refused.status, refused.code().as_str()), (400, "DIGEST_INVALID"));
    assert!(fixture.blobs("a").is_empty());
}

#[test]
fn what_a_client_must_send_is_missed() {
    let fixture = Fixture::start();
    let without_length = ask(&fixture, "POST /v2/a/blobs/uploads/", &[("content-length", "")], b"");
    assert_eq!(without_length.status, 411);
    let put = format!("PUT {}&digest={}", begin(&fixture), digest(b"x"));
    assert_eq!(ask(&fixture, &put, &[], b"x").status, 415, "no Content-Type");
    assert_eq!(ask(&fixture, "POST /v2/Upper/blobs/uploads/", &[], b"").code(), "NAME_INVALID");
    assert_eq!(ask(&fixture, "GET /v2/a/blobs/sha256:00", &[], b"").code(), "DIGEST_INVALID");
    assert_eq!(ask(&fixture, "GET /v3/", &[], b"").status, 404);
}

#[test]
fn a_manifest_comes_after_its_blobs_and_matches_them() {
    let fixture = Fixture::start();
    let config = fixture.put_blob("a", "{}");
    fixture.put_blob("b", "{ }");
    let put = |repository: &str, media_type: &str, body: &str| {
        let line = format!("PUT /v2/{repository}/manifests/v1");
        ask(&fixture, &line, &[("content-type", media_type)], body.as_bytes())
    };
    let good = manifest(&config, 2);
    assert_eq!(put("b", OCI, &good).code(), "MANIFEST_BLOB_UNKNOWN", "the blob is in another repository");
    assert_eq!(put("a", OCI, &manifest(&config, 3)).code(), "SIZE_INVALID");
    assert_eq!(put("a", "application/vnd.oci.image.index.v1+json", &good).code(), "MANIFEST_INVALID");
    assert_eq!(put("a", OCI, "{").code(), "MANIFEST_INVALID");
    assert_eq!(put("a", OCI, &" ".repeat((4 << 20) + 1)).status, 413);
    let by_digest = format!("PUT /v2/a/manifests/{config}");
    assert_eq!(ask(&fixture, &by_digest, &[("content-type", OCI)], good.as_bytes()).code(), "DIGEST_INVALID");
    assert!(fixture.tags("a").is_empty());

    assert_eq!(put("a", OCI, &good).status, 201);
    assert_eq!(fixture.manifest("a", "v1").unwrap(), good);
    for (accept, status) in
        [("", 404), ("*/*", 404), ("application/json, application/vnd.oci.image.manifest.v1+json", 200)]
    {
        let reply = ask(&fixture, "GET /v2/a/manifests/v1", &[("accept", accept)], b"");
        assert_eq!(reply.status, status, "{accept}");
    }
    let tags = ask(&fixture, "GET /v2/a/tags/list", &[], b"");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&tags.body).unwrap()["tags"][0], "v1");
}

#[test]
fn a_mount_is_seen_and_otherwise_becomes_a_session() {
    let fixture = Fixture::start();
    let digest = fixture.put_blob("a", "shared");
    let mount = |from: &str| ask(&fixture, &format!("POST /v2/b/blobs/uploads/?mount={digest}&from={from}"), &[], b"");
    assert_eq!(mount("c").status, 202);
    assert_eq!(fixture.open_uploads(), 1);
    assert_eq!(mount("a").status, 201);
    assert_eq!(fixture.blob("b", &digest).unwrap(), "shared");
}

#[test]
fn a_token_is_for_what_was_asked_and_for_its_time() {
    let fixture = Fixture::start_with(Options::default().auth(Auth::bearer("alice", "s3cret")));
    let credentials = ("authorization", "Basic YWxpY2U6czNjcmV0");
    let challenge = ask(&fixture, "POST /v2/a/blobs/uploads/", &[], b"");
    assert_eq!(challenge.status, 401);
    let expected = format!(
        r#"Bearer realm="http://{}/token",service="registry-fixture",scope="repository:a:pull,push""#,
        fixture.host()
    );
    assert_eq!(challenge.header("www-authenticate"), Some(expected.as_str()));

    let token_line = "GET /token?service=registry-fixture&scope=repository%3Aa%3Apull";
    assert_eq!(ask(&fixture, token_line, &[], b"").status, 401);
    assert_eq!(ask(&fixture, token_line, &[("authorization", "Basic YWxpY2U6bm8=")], b"").status, 401);
    let token: serde_json::Value =
        serde_json::from_slice(&ask(&fixture, token_line, &[credentials], b"").body).unwrap();
    let bearer = format!("Bearer {}", token["token"].as_str().unwrap());
    let authorization = ("authorization", bearer.as_str());
    assert_eq!(ask(&fixture, "GET /v2/", &[authorization], b"").status, 200);
    let push = ask(&fixture, "POST /v2/a/blobs/uploads/", &[authorization], b"");
    assert!(push.header("www-authenticate").unwrap().ends_with("error=\"insufficient_scope\""));

    let tags = || ask(&fixture, "GET /v2/a/tags/list", &[authorization], b"");
    assert_eq!(tags().status, 404, "allowed, but there is no repository");
    fixture.inject(Trigger::on("GET", "/tags/"), Fault::ExpiredToken);
    assert!(tags().header("www-authenticate").unwrap().ends_with("error=\"invalid_token\""));
    assert_eq!(tags().status, 401, "an expired token stays so");

    let basic = Fixture::start_with(Options::default().auth(Auth::basic("alice", "s3cret")));
    assert_eq!(ask(&basic, "GET /v2/", &[], b"").header("www-authenticate"), Some("Basic realm=\"registry-fixture\""));
    assert_eq!(ask(&basic, "GET /v2/", &[credentials], b"").status, 200);
}

#[test]
fn a_broken_chunk_is_kept_or_forgotten() {
    for (kept, status, range) in [(BrokenUpload::Keep, 204, Some("0-2")), (BrokenUpload::Discard, 404, None)] {
        let fixture = Fixture::start_with(Options { broken_upload: kept, ..Options::default() });
        let location = begin(&fixture);
        fixture.inject(Trigger::on("PATCH", "/uploads/"), Fault::DropRequest { after: 3 });
        assert!(send(&fixture, &format!("PATCH {location}"), &[OCTETS], b"0123456789").is_none());
        let reply = ask(&fixture, &format!("GET {location}"), &[], b"");
        assert_eq!((reply.status, reply.header("range")), (status, range), "{kept:?}");
        assert_eq!((fixture.requests()[1].body_len, fixture.requests()[1].status), (3, 0));
    }
}

#[test]
fn a_client_that_goes_away_breaks_its_chunk_too() {
    let fixture = Fixture::start();
    let location = begin(&fixture);
    let mut stream = TcpStream::connect(fixture.host()).unwrap();
    let head = format!(
        "PATCH {location} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\ncontent-type: application/octet-stream\r\n"
    );
    stream.write_all(format!("{head}\r\n0123").as_bytes()).unwrap();
    stream.shutdown(Shutdown::Both).unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let reply = ask(&fixture, &format!("GET {location}"), &[], b"");
        assert_eq!(reply.status, 204);
        if reply.header("range") == Some("0-3") {
            break;
        }
        assert!(Instant::now() < end, "the four bytes never came");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn faults_happen_once_and_as_they_say() {
    let fixture = Fixture::start();
    let digest = fixture.put_blob("a", "0123456789");
    let line = format!("GET /v2/a/blobs/{digest}");
    let get = |fault: Fault| {
        fixture.inject(Trigger::on("GET", "/blobs/"), fault);
        let reply = send(&fixture, &line, &[], b"");
        assert_eq!(ask(&fixture, &line, &[], b"").body, b"0123456789", "the fault goes on");
        reply
    };
    let busy = get(Fault::Status { code: 429, retry_after: Some(7), body: "<html>".to_owned() }).unwrap();
    assert_eq!((busy.status, busy.header("retry-after"), busy.body.as_slice()), (429, Some("7"), &b"<html>"[..]));
    let dropped = get(Fault::DropReply { after: 4 }).unwrap();
    assert_eq!((dropped.header("content-length"), dropped.body.as_slice()), (Some("10"), &b"0123"[..]));
    let truncated = get(Fault::Truncate { after: 4 }).unwrap();
    assert_eq!((truncated.header("content-length"), truncated.body.as_slice()), (Some("4"), &b"0123"[..]));
    assert_eq!(get(Fault::FlipBit { at: 3 }).unwrap().body, b"0122456789");
    assert_ne!(get(Fault::LyingDigest).unwrap().header("docker-content-digest"), Some(digest.as_str()));
    assert!(get(Fault::LoseReply).is_none());
    let redirect = get(Fault::RedirectTo("127.0.0.1:9".to_owned())).unwrap();
    assert_eq!(redirect.status, 307);
    assert_eq!(redirect.header("location"), Some(format!("http://127.0.0.1:9/v2/a/blobs/{digest}").as_str()));
    let before = Instant::now();
    get(Fault::Delay(Duration::from_millis(100)));
    assert!(before.elapsed() >= Duration::from_millis(100));

    fixture.corrupt_blob(&digest);
    assert_eq!(ask(&fixture, &line, &[], b"").body, b"0123446789");
}

#[test]
fn a_stalled_reply_does_not_keep_the_fixture_from_stopping() {
    let fixture = Fixture::start();
    let digest = fixture.put_blob("a", "0123456789");
    fixture.inject(Trigger::on("GET", "/blobs/"), Fault::Stall { after: 4 });
    let mut stream = TcpStream::connect(fixture.host()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    stream.write_all(format!("GET /v2/a/blobs/{digest} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).unwrap();
    let mut bytes = Vec::new();
    let stalled = stream.read_to_end(&mut bytes).unwrap_err();
    assert_eq!(stalled.kind(), std::io::ErrorKind::WouldBlock);
    assert!(bytes.ends_with(b"\r\n\r\n0123"));
    let before = Instant::now();
    drop(fixture);
    assert!(before.elapsed() < Duration::from_secs(2));
}

#[test]
fn uploads_can_be_told_to_be_difficult() {
    let difficult =
        Options { locations: Locations::Relative, max_chunk: Some(4), min_chunk: Some(2), ..Options::default() };
    let fixture = Fixture::start_with(difficult);
    let begun = ask(&fixture, "POST /v2/a/blobs/uploads/", &[], b"");
    assert!(begun.header("location").unwrap().starts_with("/v2/a/blobs/uploads/"));
    assert_eq!(begun.header("oci-chunk-min-length"), Some("2"));
    let patch = |location: &str, range: &str, body: &[u8]| {
        ask(&fixture, &format!("PATCH {location}"), &[OCTETS, ("content-range", range)], body)
    };
    let location = begun.location(&fixture);
    assert_eq!(patch(&location, "0-4", b"01234").code(), "REQUESTED_RANGE_NOT_SATISFIABLE");
    let short = patch(&location, "0-0", b"0");
    assert_eq!(short.status, 202);
    assert_eq!(patch(&short.location(&fixture), "1-2", b"12").code(), "SIZE_INVALID");

    fixture.inject(Trigger::on("POST", "/uploads/"), Fault::MissingLocation);
    assert_eq!(ask(&fixture, "POST /v2/a/blobs/uploads/", &[], b"").header("location"), None);
    let location = begin(&fixture);
    fixture.inject(Trigger::on("PATCH", "/uploads/"), Fault::ForgetUpload);
    assert_eq!(patch(&location, "0-1", b"01").code(), "BLOB_UPLOAD_UNKNOWN");
}

#[test]
fn tags_come_in_pages_and_go_with_their_manifest() {
    let fixture = Fixture::start_with(Options { page: 2, ..Options::default() });
    let config = fixture.put_blob("a", "{}");
    let text = manifest(&config, 2);
    let digest = ["v1", "v2", "v3"].map(|tag| fixture.put_manifest("a", tag, OCI, text.clone()))[0].clone();
    let page = ask(&fixture, "GET /v2/a/tags/list", &[], b"");
    assert_eq!(page.header("link"), Some("</v2/a/tags/list?n=2&last=v2>; rel=\"next\""));
    let rest = ask(&fixture, "GET /v2/a/tags/list?n=2&last=v2", &[], b"");
    assert_eq!((rest.header("link"), rest.body.ends_with(br#""tags":["v3"]}"#)), (None, true));
    assert_eq!(ask(&fixture, &format!("DELETE /v2/a/manifests/{digest}"), &[], b"").status, 202);
    assert!(fixture.tags("a").is_empty());
}

#[test]
fn a_referrer_is_listed_where_there_is_the_api() {
    for referrers in [true, false] {
        let fixture = Fixture::start_with(Options { referrers, ..Options::default() });
        let config = fixture.put_blob("a", "{}");
        let subject = fixture.put_manifest("a", "v1", OCI, manifest(&config, 2));
        let pointer = format!(r#""subject":{{"mediaType":"{OCI}","digest":"{subject}","size":1}}}}"#);
        let text = manifest(&config, 2).trim_end_matches('}').to_owned() + "," + &pointer;
        let text = text.replace(r#""layers":[],"#, r#""layers":[],"artifactType":"application/x","#);
        let put = ask(&fixture, "PUT /v2/a/manifests/v2", &[("content-type", OCI)], text.as_bytes());
        assert_eq!((put.status, put.header("oci-subject").is_some()), (201, referrers));
        let list = ask(&fixture, &format!("GET /v2/a/referrers/{subject}?artifactType=application/x"), &[], b"");
        assert_eq!(list.status, if referrers { 200 } else { 404 });
        assert_eq!(String::from_utf8_lossy(&list.body).contains(&digest(text.as_bytes())), referrers);
    }
}
