//! The launchers really start the registry, in every configuration: it answers, it asks for what it
//! should, and it is gone afterwards.
#![cfg(feature = "real")]

use std::fs;
use std::net::TcpStream;
use std::time::Duration;

use registry_fixtures::digest;
use registry_fixtures::real::{DockerRegistry, Kind};
use reqwest::{Certificate, Client, StatusCode};

fn client() -> reqwest::ClientBuilder {
    // The second test to come here finds a provider installed, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().timeout(Duration::from_secs(20)).tls_certs_only([])
}

#[tokio::test]
async fn plain_takes_a_blob() {
    let registry = DockerRegistry::start(Kind::Plain).unwrap();
    let client = client().build().unwrap();
    let base = format!("http://{}/v2/team/model/blobs", registry.host());
    let begun = client.post(format!("{base}/uploads/")).header("content-length", 0).send().await.unwrap();
    assert_eq!(begun.status(), StatusCode::ACCEPTED);
    let location = begun.headers()["location"].to_str().unwrap();
    let digest = digest(b"weights");
    let put = client.put(format!("{location}&digest={digest}")).body("weights").send().await.unwrap();
    assert_eq!(put.status(), StatusCode::CREATED);
    let got = client.get(format!("{base}/{digest}")).send().await.unwrap();
    assert_eq!(got.bytes().await.unwrap(), "weights");
    assert!(registry.root().is_dir());

    let host = registry.host().to_owned();
    drop(registry);
    assert!(TcpStream::connect(host).is_err(), "the registry is still there");
}

#[tokio::test]
async fn tls_wants_the_password_and_shows_its_own_certificate() {
    let kind = Kind::TlsHtpasswd { user: "alice".to_owned(), password: "s3cret".to_owned() };
    let registry = DockerRegistry::start(kind).unwrap();
    let pem = fs::read(registry.ca_path().unwrap()).unwrap();
    let trusting = client().tls_certs_only([Certificate::from_pem(&pem).unwrap()]).build().unwrap();
    let port = registry.host().rsplit_once(':').unwrap().1;
    for url in [format!("https://127.0.0.1:{port}/v2/"), format!("https://localhost:{port}/v2/")] {
        let ask = |password: Option<&str>| {
            let request = trusting.get(&url);
            match password {
                None => request.send(),
                Some(password) => request.basic_auth("alice", Some(password)).send(),
            }
        };
        let challenge = ask(None).await.unwrap();
        assert_eq!(challenge.status(), StatusCode::UNAUTHORIZED);
        assert!(challenge.headers()["www-authenticate"].to_str().unwrap().starts_with("Basic realm="));
        assert_eq!(ask(Some("wrong")).await.unwrap().status(), StatusCode::UNAUTHORIZED);
        assert_eq!(ask(Some("s3cret")).await.unwrap().status(), StatusCode::OK);
    }
    let distrusting = client().build().unwrap();
    assert!(distrusting.get(format!("https://localhost:{port}/v2/")).send().await.unwrap_err().is_connect());
}

#[tokio::test]
async fn tokens_of_the_launcher_are_believed_and_bounded() {
    let kind = Kind::Token { user: "alice".to_owned(), password: "s3cret".to_owned() };
    let registry = DockerRegistry::start(kind).unwrap();
    let client = client().build().unwrap();
    let uploads = |repository: &str| format!("http://{}/v2/{repository}/blobs/uploads/", registry.host());

    let asked = client.post(uploads("team/model")).header("content-length", 0).send().await.unwrap();
    assert_eq!(asked.status(), StatusCode::UNAUTHORIZED);
    let challenge = asked.headers()["www-authenticate"].to_str().unwrap().to_owned();
    let parameter = |name: &str| challenge.split(&format!("{name}=\"")).nth(1).unwrap().split('"').next().unwrap();
    let token_url = format!("{}?service={}&scope={}", parameter("realm"), parameter("service"), parameter("scope"));
    // In which order the actions come is different every time.
    assert!(
        ["pull,push", "push,pull"]
            .map(|both| format!("repository:team/model:{both}"))
            .contains(&parameter("scope").to_owned())
    );

    let refused = client.get(&token_url).basic_auth("alice", Some("wrong")).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    let granted = client.get(&token_url).basic_auth("alice", Some("s3cret")).send().await.unwrap();
    let reply: serde_json::Value = serde_json::from_slice(&granted.bytes().await.unwrap()).unwrap();
    let token = reply["token"].as_str().unwrap();

    let begin =
        |repository: &str| client.post(uploads(repository)).bearer_auth(token).header("content-length", 0).send();
    assert_eq!(begin("team/model").await.unwrap().status(), StatusCode::ACCEPTED);
    let elsewhere = begin("team/other").await.unwrap();
    assert_eq!(elsewhere.status(), StatusCode::UNAUTHORIZED);
    assert!(elsewhere.headers()["www-authenticate"].to_str().unwrap().contains("insufficient_scope"));
}

#[tokio::test]
async fn a_bucket_is_where_it_redirects_to() {
    let registry = DockerRegistry::start(Kind::S3 { user: "alice".to_owned(), password: "s3cret".to_owned() }).unwrap();
    let client = client().build().unwrap();
    let base = format!("http://{}/v2/team/model/blobs", registry.host());
    let post = client.post(format!("{base}/uploads/")).header("content-length", 0);
    let begun = post.basic_auth("alice", Some("s3cret")).send().await.unwrap();
    assert_eq!(begun.status(), StatusCode::ACCEPTED);
    let location = begun.headers()["location"].to_str().unwrap();
    let digest = digest(b"weights");
    let put = client.put(format!("{location}&digest={digest}")).basic_auth("alice", Some("s3cret")).body("weights");
    assert_eq!(put.send().await.unwrap().status(), StatusCode::CREATED);
    let got = client.get(format!("{base}/{digest}")).basic_auth("alice", Some("s3cret")).send().await.unwrap();
    assert_eq!(got.url().authority(), registry.storage().unwrap().host());
    assert_eq!(got.bytes().await.unwrap(), "weights");
}
