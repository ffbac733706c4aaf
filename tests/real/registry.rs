//! A real registry with what kiln needs to reach it, and what a test wants to know about it.

use std::fs;
use std::path::Path;

use registry_fixtures::Proxy;
use registry_fixtures::real::{DockerRegistry, Kind};
use serde_json::Value;

use crate::place::{Place, Run};

pub(crate) const USER: &str = "alice";
pub(crate) const PASSWORD: &str = "s3cret-w0rd";

/// A running registry.
pub(crate) struct Registry(DockerRegistry);

impl Registry {
    pub(crate) fn start(kind: Kind) -> Self {
        Self(DockerRegistry::start(kind).unwrap_or_else(|problem| panic!("{problem}")))
    }

    pub(crate) fn plain() -> Self {
        Self::start(Kind::Plain)
    }

    pub(crate) fn host(&self) -> &str {
        self.0.host()
    }

    pub(crate) fn ca(&self) -> Option<&Path> {
        self.0.ca_path()
    }

    pub(crate) fn log(&self) -> String {
        self.0.log()
    }

    /// The way to the bucket that it keeps its blobs in.
    pub(crate) fn storage(&self) -> &Proxy {
        self.0.storage().unwrap()
    }

    /// The options with which kiln reaches it.
    pub(crate) fn transport(&self) -> String {
        match self.ca() {
            Some(certificate) => format!("--ca {}", certificate.display()),
            None => "--plain-http".to_owned(),
        }
    }

    /// Logs in, with the password from standard input.
    pub(crate) fn log_in(&self, place: &Place, password: &str) -> Run {
        let file = place.path("password");
        fs::write(&file, format!("{password}\n")).unwrap();
        let words = format!("login {} -u {USER} --password-stdin {}", self.host(), self.transport());
        let mut command = place.command(&words);
        command.stdin(fs::File::open(&file).unwrap());
        let run = place.run(command);
        fs::remove_file(file).unwrap();
        run
    }

    /// The manifest of `repository` under `tag`, from a registry over plain HTTP that is for everybody, as another
    /// client gets it; `None` when there is no such tag.
    pub(crate) fn manifest(&self, repository: &str, tag: &str) -> Option<Vec<u8>> {
        const ACCEPT: &str =
            "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.host());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = reqwest::Client::builder().no_proxy().timeout(std::time::Duration::from_secs(20));
            // A provider has to be there although nothing is encrypted.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let reply = client.tls_certs_only([]).build().unwrap().get(url).header("accept", ACCEPT).send().await;
            let reply = reply.unwrap();
            match reply.status().as_u16() {
                200 => Some(reply.bytes().await.unwrap().to_vec()),
                404 => None,
                status => panic!("{status}: {:?}", reply.bytes().await),
            }
        })
    }
}

/// The digest of the model `name` in the place's store `store`, and the bytes of its manifest.
pub(crate) fn stored_manifest(place: &Place, name: &str, store: &str) -> (String, Vec<u8>) {
    let digest = place.digest(&format!("show {name} --store {store}"));
    let file = place.path(store).join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap());
    (digest, fs::read(file).unwrap())
}

/// The digest of the layer `layer` of the model `name`.
pub(crate) fn layer(place: &Place, name: &str, layer: &str) -> String {
    let shown = place.kiln(&format!("show {name} --json")).last_object();
    let layers = shown["layers"].as_array().unwrap();
    let found = layers.iter().find(|shown| shown["name"] == layer);
    found.unwrap_or_else(|| panic!("no layer {layer} in {shown}"))["digest"].as_str().unwrap().to_owned()
}

/// The digest of the config of the model `name`.
pub(crate) fn config(place: &Place, name: &str) -> String {
    let manifest: Value = serde_json::from_slice(&stored_manifest(place, name, "store").1).unwrap();
    manifest["config"]["digest"].as_str().unwrap().to_owned()
}
