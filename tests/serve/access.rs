//! Who is let in, over what, for how long, and what is told about it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln::oci::Digest;
use kiln::serve::{AccessLog, Auth, ServeOptions, TlsIdentity, Users};
use kiln::storage::Memory;
use reqwest::Certificate;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::served::{OCI, Served, header, manifest, refusal};

const PATIENCE: Duration = Duration::from_secs(20);

fn users() -> Users {
    Users::parse(&format!("ada:{}\n", bcrypt::hash("s3cret", 4).unwrap())).unwrap()
}

#[tokio::test]
async fn only_a_password_opens_and_only_health_is_for_everybody() {
    let options = ServeOptions { auth: Some(Auth::Basic(users())), allow_delete: true, ..ServeOptions::default() };
    let served = Served::start(Memory::new(), options).await;
    let digest = served.put("weights");
    assert_eq!(served.ask("GET", "/healthz").await.text().await.unwrap(), "ok\n");
    for (method, path) in [
        ("GET", "/v2/".to_owned()),
        ("GET", "/metrics".to_owned()),
        ("GET", "/token".to_owned()),
        ("GET", "/v2/_catalog".to_owned()),
        ("HEAD", format!("/v2/a/blobs/{digest}")),
        ("GET", format!("/v2/a/blobs/{digest}")),
        ("DELETE", format!("/v2/a/blobs/{digest}")),
        ("POST", "/v2/a/blobs/uploads/".to_owned()),
        ("PUT", "/v2/a/manifests/v1".to_owned()),
    ] {
        for password in [None, Some("wrong")] {
            let request = served.request(method, &path);
            let request = if password.is_some() { request.basic_auth("ada", password) } else { request };
            let refused = request.send().await.unwrap();
            assert_eq!(refused.status(), 401, "{method} {path}");
            assert_eq!(header(&refused, "www-authenticate"), "Basic realm=\"kiln\"");
        }
    }
    assert_eq!(served.place.get(&digest).unwrap(), "weights");
    for _ in 0..2 {
        let got = served.request("GET", &format!("/v2/a/blobs/{digest}")).basic_auth("ada", Some("s3cret"));
        assert_eq!(got.send().await.unwrap().text().await.unwrap(), "weights");
    }
    let unknown = served.request("GET", "/v2/").basic_auth("eve", Some("s3cret")).send().await.unwrap();
    assert_eq!(refusal(unknown).await, (401, "UNAUTHORIZED".to_owned()));
}

#[tokio::test]
async fn a_token_opens_what_it_was_given_for() {
    let options = ServeOptions { auth: Some(Auth::Token(users())), ..ServeOptions::default() };
    let served = Served::start(Memory::new(), options).await;
    let config = served.put("{}");
    let asked = served.ask("PUT", "/v2/team/model/manifests/v1").await;
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"kiln\"", served.address);
    let challenge = format!("{realm},scope=\"repository:team/model:pull,push\"");
    assert_eq!((asked.status().as_u16(), header(&asked, "www-authenticate")), (401, challenge.as_str()));

    let token = async |password: &str, scope: &str| {
        let path = format!("/token?service=kiln&scope={scope}");
        served.request("GET", &path).basic_auth("ada", Some(password)).send().await.unwrap()
    };
    let wrong = token("wrong", "repository:team/model:pull").await;
    assert_eq!((wrong.status().as_u16(), header(&wrong, "www-authenticate")), (401, "Basic realm=\"kiln\""));
    let given = async |scope: &str| {
        let reply = token("s3cret", scope).await;
        assert_eq!(reply.status(), 200);
        let reply: serde_json::Value = serde_json::from_slice(&reply.bytes().await.unwrap()).unwrap();
        assert_eq!(reply["expires_in"], 300);
        reply["token"].as_str().unwrap().to_owned()
    };
    let (pull, push) = (given("repository:team/model:pull").await, given("repository:team/model:pull,push").await);
    let blob = format!("/v2/team/model/blobs/{config}");
    for (method, path, token, expected) in [
        ("GET", "/v2/", &pull, 200),
        ("GET", &blob, &pull, 200),
        ("GET", "/v2/team/other/tags/list", &push, 401),
        ("GET", "/v2/_catalog", &push, 401),
        ("POST", "/v2/team/model/blobs/uploads/", &pull, 401),
        ("POST", "/v2/team/model/blobs/uploads/", &push, 202),
        ("DELETE", &blob, &push, 401),
        ("GET", &blob, &format!("{pull}0"), 401),
    ] {
        let got = served.request(method, path).bearer_auth(token).send().await.unwrap();
        assert_eq!(got.status(), expected, "{method} {path}");
        if expected == 401 {
            let error =
                if token.len() == pull.len() || *token == push { "insufficient_scope" } else { "invalid_token" };
            assert!(header(&got, "www-authenticate").ends_with(&format!(",error=\"{error}\"")), "{method} {path}");
        }
    }
    let put = served.request("PUT", "/v2/team/model/manifests/v1").bearer_auth(&push).header("content-type", OCI);
    assert_eq!(put.body(manifest(&config, 2)).send().await.unwrap().status(), 201);
    // A password will do as well, for what asks for no token.
    let basic = served.request("GET", &blob).basic_auth("ada", Some("s3cret")).send().await.unwrap();
    assert_eq!(basic.status(), 200);
}

#[tokio::test]
async fn with_a_certificate_it_speaks_https_only() {
    let issued = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (issued.cert.pem(), issued.signing_key.serialize_pem());
    let identity = TlsIdentity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
    for (certificate, key) in [("", key.as_str()), (&certificate, ""), (&key, &key), (&certificate, &certificate)] {
        assert!(TlsIdentity::from_pem(certificate.as_bytes(), key.as_bytes()).is_err());
    }
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let foreign = other.signing_key.serialize_pem();
    assert!(TlsIdentity::from_pem(certificate.as_bytes(), foreign.as_bytes()).is_err(), "a key of another");

    let options = ServeOptions { tls: Some(identity), auth: Some(Auth::Token(users())), ..ServeOptions::default() };
    let trusted = Certificate::from_pem(certificate.as_bytes()).unwrap();
    let served = Served::start_for(Memory::new(), options, |client| client.tls_certs_only([trusted])).await;
    let digest = served.put(vec![7; 3 << 20]);
    let got = served.request("GET", &format!("/v2/a/blobs/{digest}")).basic_auth("ada", Some("s3cret"));
    assert!(got.send().await.unwrap().bytes().await.unwrap() == vec![7; 3 << 20]);
    let refused = served.ask("GET", "/v2/").await;
    let realm = format!("Bearer realm=\"https://{}/token\",service=\"kiln\"", served.address);
    assert_eq!(header(&refused, "www-authenticate"), realm);
    let plain = reqwest::Client::builder().no_proxy().timeout(PATIENCE).tls_certs_only([]).build().unwrap();
    assert!(plain.get(format!("http://{}/v2/", served.address)).send().await.is_err());
    assert!(plain.get(format!("https://{}/v2/", served.address)).send().await.is_err(), "an unknown certificate");
}

#[tokio::test]
async fn every_request_is_counted_and_told() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&told);
    let access_log = AccessLog::new(move |access| {
        let path = access.path.to_string();
        log.lock().unwrap().push((
            access.user.clone(),
            access.method.to_string(),
            path,
            access.status,
            access.received,
            access.sent,
        ));
    });
    let options =
        ServeOptions { auth: Some(Auth::Basic(users())), access_log: Some(access_log), ..ServeOptions::default() };
    let served = Served::start(Memory::new(), options).await;
    let digest = Digest::of(b"weights");
    let post = format!("/v2/a/blobs/uploads/?digest={digest}");
    let blob = format!("/v2/a/blobs/{digest}");
    let posted = served.request("POST", &post).basic_auth("ada", Some("s3cret")).body("weights").send().await.unwrap();
    assert_eq!(posted.status(), 201);
    let got = served.request("GET", &blob).basic_auth("ada", Some("s3cret")).send().await.unwrap();
    assert_eq!(got.bytes().await.unwrap(), "weights");
    assert_eq!(served.ask("GET", "/v2/").await.status(), 401);
    let counted = async || {
        let got = served.request("GET", "/metrics").basic_auth("ada", Some("s3cret")).send().await.unwrap();
        assert!(header(&got, "content-type").starts_with("text/plain; version=0.0.4"));
        got.text().await.unwrap()
    };
    // An answer is counted when its last byte is gone, which may be after it arrived.
    let text = timeout(PATIENCE, async {
        loop {
            let text = counted().await;
            if text.contains("status=\"401\"} 1") && text.contains("method=\"GET\",status=\"200\"}") {
                return text;
            }
        }
    });
    let text = text.await.unwrap();
    for line in [
        "# TYPE kiln_http_requests_total counter",
        "kiln_http_requests_total{method=\"POST\",status=\"201\"} 1",
        "kiln_received_bytes_total 7",
        "kiln_uploads 0",
        "kiln_connections 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("kiln_") && value.parse::<f64>().is_ok(), "{line}");
    }
    let told = told.lock().unwrap();
    let ada = Some("ada".to_owned());
    assert_eq!(told[0], (ada.clone(), "POST".to_owned(), post, 201, 7, 0));
    assert_eq!((&told[1].0, &told[1].2, told[1].3, told[1].5), (&ada, &blob, 200, 7));
    assert_eq!((&told[2].0, told[2].3), (&None, 401));
}

#[tokio::test]
async fn whoever_is_silent_is_left() {
    let short = Duration::from_millis(100);
    let options = ServeOptions { idle: short, silence: short, ..ServeOptions::default() };
    let served = Served::start(Memory::new(), options).await;
    let large = served.put(vec![7; 64 << 20]);
    let location = served.begin().await;
    let body = format!("PATCH {location} HTTP/1.1\r\nhost: a\r\ncontent-length: 7\r\n\r\nwe");
    let reads_not = format!("GET /v2/a/blobs/{large} HTTP/1.1\r\nhost: a\r\n\r\n");
    for (what, request) in [("nothing", ""), ("half a header", "GET /v2/ HT"), ("half a body", body.as_str())] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = Vec::new();
        let closed = timeout(PATIENCE, stream.read_to_end(&mut reply)).await;
        assert!(closed.is_ok(), "a connection with {what} stays open");
    }
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    stream.write_all(reads_not.as_bytes()).await.unwrap();
    tokio::time::sleep(short * 6).await;
    let mut reply = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut reply)).await.expect("a reply that nobody read goes on");
    assert!(reply.len() < 64 << 20, "it waited for a reader");
    // What arrived before the silence is kept.
    let status = served.ask("GET", &location).await;
    assert_eq!((status.status().as_u16(), header(&status, "range")), (204, "0-1"));
}

#[tokio::test]
async fn only_so_many_connections_are_answered_at_once() {
    let options = ServeOptions { max_connections: 2, ..ServeOptions::default() };
    let served = Served::start(Memory::new(), options).await;
    let open = [TcpStream::connect(served.address).await.unwrap(), TcpStream::connect(served.address).await.unwrap()];
    // Both are accepted before a third comes.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let third = served.ask("GET", "/v2/");
    tokio::pin!(third);
    assert!(timeout(Duration::from_millis(200), &mut third).await.is_err(), "a third is answered");
    drop(open);
    assert_eq!(timeout(PATIENCE, third).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_blob_has_a_limit() {
    let served = Served::start(Memory::new(), ServeOptions { max_blob: 5, ..ServeOptions::default() }).await;
    let post = format!("/v2/a/blobs/uploads/?digest={}", Digest::of(b"weights"));
    let refused = served.request("POST", &post).body("weights").send().await.unwrap();
    assert_eq!(refusal(refused).await, (413, "SIZE_INVALID".to_owned()));
    let location = served.begin().await;
    assert_eq!(served.patch(&location, "0-2", "wei").await.status(), 202);
    assert_eq!(served.patch(&location, "3-6", "ghts").await.status(), 413);
}
