//! A served place and a client of it.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kiln::oci::{Digest, MediaType};
use kiln::serve::{self, ServeOptions};
use kiln::storage::Memory;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use tokio::net::TcpListener;

pub(crate) const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

pub(crate) struct Served<S = Memory> {
    pub(crate) place: Arc<S>,
    pub(crate) address: SocketAddr,
    pub(crate) client: Client,
    scheme: &'static str,
}

impl<S: serve::Served> Served<S> {
    pub(crate) async fn start(place: S, options: ServeOptions) -> Self {
        Self::start_for(place, options, |client| client.tls_certs_only([])).await
    }

    pub(crate) async fn start_for(
        place: S,
        options: ServeOptions,
        client: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (place, address) = (Arc::new(place), listener.local_addr().unwrap());
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        tokio::spawn(serve::serve(Arc::clone(&place), listener, options, pending()));
        // The second test to come here finds a provider installed, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = client(Client::builder().no_proxy().timeout(Duration::from_secs(20)));
        Self { place, address, client: client.build().unwrap(), scheme }
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        self.client.request(method, format!("{}://{}{path}", self.scheme, self.address))
    }

    pub(crate) async fn ask(&self, method: &str, path: &str) -> Response {
        self.request(method, path).send().await.unwrap()
    }

    pub(crate) async fn begin(&self) -> String {
        let begun = self.ask("POST", "/v2/a/blobs/uploads/").await;
        assert_eq!(begun.status(), StatusCode::ACCEPTED);
        header(&begun, "location").to_owned()
    }

    pub(crate) async fn patch(&self, location: &str, range: &str, bytes: impl Into<reqwest::Body>) -> Response {
        self.request("PATCH", location).header("content-range", range).body(bytes).send().await.unwrap()
    }

    pub(crate) async fn put_manifest(&self, path: &str, media_type: &str, text: &str) -> Response {
        self.request("PUT", path).header("content-type", media_type).body(text.to_owned()).send().await.unwrap()
    }
}

impl Served {
    pub(crate) async fn plain() -> Self {
        Self::start(Memory::new(), ServeOptions::default()).await
    }

    pub(crate) fn put(&self, bytes: impl Into<Bytes>) -> Digest {
        self.place.insert(MediaType::KILN_FILE, bytes).digest
    }
}

pub(crate) fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// The status and the code of an error.
pub(crate) async fn refusal(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: serde_json::Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    (status, body["errors"][0]["code"].as_str().unwrap().to_owned())
}

pub(crate) fn manifest(config: &Digest, size: usize) -> String {
    let config = format!(r#"{{"mediaType":"application/json","digest":"{config}","size":{size}}}"#);
    format!(r#"{{"schemaVersion":2,"mediaType":"{OCI}","config":{config},"layers":[]}}"#)
}
