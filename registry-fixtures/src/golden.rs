//! What real registries answered, word for word: the exchanges of `replies/`, and the asking of them
//! again, so that the record does not rot and the [`crate::Fixture`] does not drift away from it.
//!
//! An exchange is a file with what was sent (`> `) and what came (`< `), recorded with curl. Dates are set
//! to 1970, the actions of a scope are in order, and what differs every time has a name in braces:
//! `{registry}`, `{session}` (the address of an upload that was just begun), `{uuid}`, `{token-server}`,
//! and `{token}`, good for `team/model`.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::contents::{self, OCI_MANIFEST};

/// How long a peer may be silent.
const PATIENCE: Duration = Duration::from_secs(20);
/// Who gets tokens, and with which password.
const CREDENTIALS: &str = "alice:s3cret";
/// The content of the repository `team/model`: this blob, and the manifest `v1` with it as its config.
const BLOB: &[u8] = b"0123456789";

/// One recorded exchange.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The name of its file.
    pub name: String,
    request: Request,
    /// What was answered.
    pub reply: Reply,
}

#[derive(Clone, Debug)]
struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: String,
}

/// A reply.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Exchange {
    /// The exchanges of `replies/REGISTRY/SETTING`, in the order of their names.
    ///
    /// # Panics
    /// When there is none, or one is not in the form of this module.
    pub fn recorded(registry: &str, setting: &str) -> Vec<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("replies").join(registry).join(setting);
        let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        assert!(!files.is_empty(), "{} is empty", directory.display());
        files.iter().map(|file| Self::parse(file)).collect()
    }

    fn parse(file: &Path) -> Self {
        let text = fs::read_to_string(file).expect("a readable record");
        let side = |mark: &str| -> Vec<String> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(mark));
            lines.map(|line| line.strip_prefix(' ').unwrap_or(line).to_owned()).collect()
        };
        assert!(text.lines().all(|line| line.starts_with(['>', '<'])), "{}", file.display());
        let (line, headers, body) = message(&side(">").join("\n"));
        let mut words = line.split(' ').map(str::to_owned);
        let (method, target) = words.next().zip(words.next()).expect("a request line");
        let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
        let request = Request { method, target, headers, body };
        Self { name, request, reply: Reply::parse(&side("<").join("\n")) }
    }
}

impl Reply {
    fn parse(text: &str) -> Self {
        let (line, headers, body) = message(text);
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
        Self { status, headers, body }
    }

    /// A header's text; `None` when it was not sent.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The codes of an error reply, in the words of distribution-spec v1.1.1, "Error Codes"; empty for any
    /// other reply.
    pub fn codes(&self) -> Vec<String> {
        let body: serde_json::Value = serde_json::from_str(&self.body).unwrap_or_default();
        let errors = body["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().filter_map(|error| error["code"].as_str().map(str::to_owned)).collect()
    }

    /// The body, without white space at its end.
    pub fn body(&self) -> &str {
        self.body.trim_end()
    }
}

/// The first line, the headers and the body of `text`.
fn message(text: &str) -> (String, Vec<(String, String)>, String) {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let line = lines.next().unwrap_or_default().to_owned();
    let headers = lines.filter_map(|line| line.split_once(": "));
    (line, headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(), body.to_owned())
}

/// A registry to ask.
#[derive(Clone, Debug)]
pub struct Peer {
    host: String,
    /// The certificate to trust, and TLS with it.
    certificate: Option<PathBuf>,
}

impl Peer {
    /// The registry at `host`, over TLS when there is a certificate to trust.
    pub fn new(host: &str, certificate: Option<&Path>) -> Self {
        Self { host: host.to_owned(), certificate: certificate.map(Path::to_owned) }
    }

    /// Puts the content there that the recorded exchanges are about.
    ///
    /// # Panics
    /// When the registry does not take it.
    pub fn furnish(&self) {
        let digest = contents::digest(BLOB);
        let config = format!(
            r#"{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":{}}}"#,
            BLOB.len()
        );
        let manifest = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{config},"layers":[]}}"#);
        let blob = String::from_utf8_lossy(BLOB).into_owned();
        let puts = [
            (format!("{{session}}&digest={digest}"), "application/octet-stream", blob),
            ("/v2/team/model/manifests/v1".to_owned(), OCI_MANIFEST, manifest),
        ];
        for (target, media_type, body) in puts {
            let headers = vec![("content-type".to_owned(), media_type.to_owned())];
            let reply = self.exchange(&Request { method: "PUT".to_owned(), target, headers, body });
            assert_eq!(reply.status, 201, "{reply:?}");
        }
    }

    /// Asks again what was asked when `exchange` was recorded. What differs every time has its name in
    /// braces in the answer, too.
    pub fn ask(&self, exchange: &Exchange) -> Reply {
        let mut reply = self.exchange(&exchange.request);
        for (name, value) in &mut reply.headers {
            let renamed = match name.to_ascii_lowercase().as_str() {
                "location" if value.contains("/blobs/uploads/") => "{session}".to_owned(),
                "location" => value.replace(&self.origin(), "{registry}"),
                "docker-upload-uuid" => "{uuid}".to_owned(),
                "www-authenticate" => challenge_without_address(value),
                _ => continue,
            };
            *value = renamed;
        }
        reply
    }

    fn exchange(&self, request: &Request) -> Reply {
        let mut target = request.target.clone();
        if target.contains("{session}") {
            target = target.replace("{session}", &self.session());
        }
        let mut headers = request.headers.clone();
        for (_, value) in headers.iter_mut().filter(|(_, value)| value.contains("{token}")) {
            *value = value.replace("{token}", &self.token());
        }
        self.send(&Request { target, headers, ..request.clone() })
    }

    fn origin(&self) -> String {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.host)
    }

    fn begin(&self) -> Reply {
        let target = "/v2/team/model/blobs/uploads/".to_owned();
        let headers = vec![("content-length".to_owned(), "0".to_owned())];
        self.send(&Request { method: "POST".to_owned(), target, headers, body: String::new() })
    }

    /// The path and query of a new upload.
    fn session(&self) -> String {
        let reply = self.begin();
        let location = reply.header("location").unwrap_or_else(|| panic!("no session: {reply:?}"));
        location.strip_prefix(&self.origin()).unwrap_or(location).to_owned()
    }

    /// A token for pushing to `team/model`, from where the registry says.
    fn token(&self) -> String {
        let reply = self.begin();
        let challenge = reply.header("www-authenticate").unwrap_or_else(|| panic!("no challenge: {reply:?}"));
        let parameter = |name: &str| {
            let value = challenge.split(&format!("{name}=\"")).nth(1).and_then(|rest| rest.split('"').next());
            value.unwrap_or_else(|| panic!("no {name} in {challenge}"))
        };
        let (host, path) =
            parameter("realm").strip_prefix("http://").and_then(|realm| realm.split_once('/')).expect("a URL");
        let target = format!("/{path}?service={}&scope={}", parameter("service"), parameter("scope"));
        let headers = vec![("authorization".to_owned(), format!("Basic {}", STANDARD.encode(CREDENTIALS)))];
        let granted =
            Self::new(host, None).send(&Request { method: "GET".to_owned(), target, headers, body: String::new() });
        let body: serde_json::Value = serde_json::from_str(&granted.body).expect("JSON");
        body["token"].as_str().expect("a token").to_owned()
    }

    /// Sends exactly these headers, `Host`, `Connection: close` and, for a body, its length.
    fn send(&self, request: &Request) -> Reply {
        let mut text = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", request.method, request.target, self.host);
        text.push_str("connection: close\r\n");
        if !request.body.is_empty() {
            text.push_str(&format!("content-length: {}\r\n", request.body.len()));
        }
        for (name, value) in &request.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.push_str(&request.body);
        let bytes = self.converse(text.as_bytes());
        Reply::parse(&String::from_utf8(bytes).expect("text").replace("\r\n", "\n"))
    }

    fn converse(&self, request: &[u8]) -> Vec<u8> {
        let mut socket = TcpStream::connect(&self.host).expect("a registry that listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        let mut reply = Vec::new();
        let Some(certificate) = &self.certificate else {
            socket.write_all(request).expect("a registry that reads");
            socket.read_to_end(&mut reply).expect("a registry that answers");
            return reply;
        };
        let mut trusted = RootCertStore::empty();
        trusted.add(CertificateDer::from_pem_file(certificate).expect("a certificate")).expect("a usable one");
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("TLS 1.2 or 1.3")
            .with_root_certificates(trusted)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a connection");
        let mut stream = StreamOwned::new(connection, socket);
        stream.write_all(request).expect("a registry that reads");
        stream.read_to_end(&mut reply).expect("a registry that answers");
        reply
    }
}

/// A challenge whose realm has no port, and whose scope its actions in order: a registry changes both.
fn challenge_without_address(challenge: &str) -> String {
    let mut parts: Vec<String> = challenge.split("http://").map(str::to_owned).collect();
    for part in parts.iter_mut().skip(1) {
        if let Some((_, path)) = part.split_once('/') {
            *part = format!("{{token-server}}/{path}");
        }
    }
    parts.join("http://").replace(":push,pull\"", ":pull,push\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_the_same_on_every_port() {
        for (challenge, same) in [
            ("Basic realm=\"a\"", "Basic realm=\"a\""),
            (
                "Bearer realm=\"http://127.0.0.1:43/token\",service=\"s\",scope=\"repository:a:push,pull\"",
                "Bearer realm=\"http://{token-server}/token\",service=\"s\",scope=\"repository:a:pull,push\"",
            ),
        ] {
            assert_eq!(challenge_without_address(challenge), same);
        }
    }

    #[test]
    fn a_message_is_a_line_headers_and_a_body() {
        let reply = Reply::parse("HTTP/1.1 404 Not Found\nContent-Type: a/b\n\n{\"errors\":[{\"code\":\"X\"}]}\n");
        assert_eq!((reply.status, reply.header("content-type")), (404, Some("a/b")));
        assert_eq!(reply.codes(), ["X"]);
        assert!(Reply::parse("HTTP/1.1 200 OK\n\n{}").codes().is_empty());
    }
}
