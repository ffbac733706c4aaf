//! The launchers of a real registry: Debian's `docker-registry`, with a configuration of `configs/`, and of what it
//! keeps its files in where that is no directory.
//!
//! A program that is missing is an error, never a reason to skip: a test that could not run has not
//! passed. Everything a registry keeps is in a temporary directory that goes with it.

mod crane;
mod process;
mod seaweed;
mod token;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

pub use self::crane::CraneRegistry;
use self::process::Process;
use self::seaweed::Seaweed;
use crate::proxy::Proxy;
use crate::server::Server;

/// How long a registry may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);
/// What it logs before its port once it does.
const LISTENING: &str = "listening on 127.0.0.1:";

/// Which configuration to start.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Plain HTTP, for everybody.
    Plain,
    /// TLS with a certificate of its own for `localhost` and 127.0.0.1, and Basic authentication.
    TlsHtpasswd {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// Plain HTTP and Basic authentication; blobs are in an S3 bucket of SeaweedFS, and whoever asks for one is
    /// redirected there.
    S3 {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// Plain HTTP, and tokens from a server of its own.
    Token {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
}

/// A running `docker-registry`; killed when dropped.
#[derive(Debug)]
pub struct DockerRegistry {
    process: Process,
    host: String,
    setup: Setup,
    // Last, so that the registry is gone before its files are.
    directory: TempDir,
}

impl DockerRegistry {
    /// Starts a registry on a port that the system chooses, and waits until it listens.
    ///
    /// # Errors
    /// A sentence, with the registry's log when there is one: a program is missing, the registry ends
    /// at once, or it does not listen within 20 seconds.
    pub fn start(kind: Kind) -> Result<Self, String> {
        let program = find("docker-registry", "docker-registry")?;
        let directory = TempDir::new().map_err(|error| format!("No temporary directory could be made: {error}"))?;
        let setup = Setup::prepare(&kind, directory.path())?;
        let mut command = Command::new(&program);
        // Every setting may also come from a variable, and must not come from ours.
        command.arg("serve").arg(directory.path().join("config.yml")).env_clear();
        let mut process = Process::start(command, directory.path().join("registry.log"))?;
        // It logs the port that the system gave it.
        let host = process.wait(PATIENCE, |log| {
            let (_, rest) = log.split_once(LISTENING)?;
            // Up to the end of the number: the line may not be all there yet.
            let end = rest.find(|character: char| !character.is_ascii_digit())?;
            Some(format!("127.0.0.1:{}", &rest[..end]))
        })?;
        Ok(Self { process, host, setup, directory })
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The certificate to trust, in PEM; `None` without TLS. It lies alone in its directory as
    /// `ca.crt`, as `skopeo --dest-cert-dir` wants it.
    pub fn ca_path(&self) -> Option<&Path> {
        self.setup.certificate.as_deref()
    }

    /// Where the registry keeps its files.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// What the registry has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The way to the storage that the registry redirects to; `None` where it sends blobs itself.
    pub fn storage(&self) -> Option<&Proxy> {
        self.setup.storage.as_ref().map(|(way, _)| way)
    }
}

/// A key and the certificate that it signed for itself.
pub(crate) struct Identity {
    key_der: Vec<u8>,
    key_pem: String,
    certificate_der: Vec<u8>,
    certificate_pem: String,
}

impl Identity {
    /// A new P-256 key and its certificate for `localhost` and 127.0.0.1.
    fn new() -> Result<Self, String> {
        let failed = |error: rcgen::Error| format!("No certificate could be made: {error}");
        let key = KeyPair::generate().map_err(failed)?;
        let names = vec!["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()];
        let certificate = CertificateParams::new(names).and_then(|params| params.self_signed(&key)).map_err(failed)?;
        Ok(Self {
            key_der: key.serialize_der(),
            key_pem: key.serialize_pem(),
            certificate_der: certificate.der().to_vec(),
            certificate_pem: certificate.pem(),
        })
    }
}

/// What a configuration needs beside it.
#[derive(Debug, Default)]
struct Setup {
    certificate: Option<PathBuf>,
    token_server: Option<Server>,
    storage: Option<(Proxy, Seaweed)>,
}

impl Setup {
    /// Writes the configuration of `kind`, and what it names, into `directory`.
    fn prepare(kind: &Kind, directory: &Path) -> Result<Self, String> {
        let text = |path: &Path| path.display().to_string();
        let mut values = vec![("${ROOT}", text(&directory.join("root")))];
        let mut setup = Self::default();
        let template = match kind {
            Kind::Plain => include_str!("../../configs/plain.yml"),
            Kind::TlsHtpasswd { user, password } => {
                let identity = Identity::new()?;
                let certificate = directory.join("certs").join("ca.crt");
                let key = directory.join("key.pem");
                let htpasswd = directory.join("htpasswd");
                write(&certificate, &identity.certificate_pem)?;
                write(&key, &identity.key_pem)?;
                write(&htpasswd, &htpasswd_line(user, password)?)?;
                values.push(("${CERTIFICATE}", text(&certificate)));
                values.push(("${KEY}", text(&key)));
                values.push(("${HTPASSWD}", text(&htpasswd)));
                setup.certificate = Some(certificate);
                include_str!("../../configs/tls-htpasswd.yml")
            }
            Kind::S3 { user, password } => {
                let htpasswd = directory.join("htpasswd");
                write(&htpasswd, &htpasswd_line(user, password)?)?;
                let seaweed = Seaweed::start(&directory.join("seaweed"))?;
                let way = Proxy::to(seaweed.host());
                values.push(("${HTPASSWD}", text(&htpasswd)));
                values.push(("${S3}", format!("http://{}", way.host())));
                values.push(("${ACCESS_KEY}", seaweed::ACCESS_KEY.to_owned()));
                values.push(("${SECRET_KEY}", seaweed::SECRET_KEY.to_owned()));
                values.push(("${BUCKET}", seaweed::BUCKET.to_owned()));
                setup.storage = Some((way, seaweed));
                include_str!("../../configs/s3-htpasswd.yml")
            }
            Kind::Token { user, password } => {
                let identity = Identity::new()?;
                let certificate = directory.join("issuer.pem");
                write(&certificate, &identity.certificate_pem)?;
                let server = token::serve(user, password, &identity)?;
                values.push(("${CERTIFICATE}", text(&certificate)));
                values.push(("${REALM}", format!("http://{}/token", server.address())));
                setup.token_server = Some(server);
                include_str!("../../configs/token.yml")
            }
        };
        let config = values.iter().fold(template.to_owned(), |config, (name, value)| config.replace(name, value));
        write(&directory.join("config.yml"), &config)?;
        Ok(setup)
    }
}

/// The line of an htpasswd file, with the bcrypt hash that is the only one the registry takes.
fn htpasswd_line(user: &str, password: &str) -> Result<String, String> {
    let output = Command::new(find("htpasswd", "apache2-utils")?)
        .args(["-Bbn", user, password])
        .output()
        .map_err(|error| format!("`htpasswd` could not be started: {error}"))?;
    if !output.status.success() {
        return Err(format!("`htpasswd` failed: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    String::from_utf8(output.stdout).map_err(|error| format!("`htpasswd` printed no text: {error}"))
}

/// Where `program` is.
///
/// # Errors
/// A sentence that names the Debian `package` that has it.
pub fn find(program: &str, package: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            format!("`{program}` is not on the PATH; it comes with Debian's package: `apt-get install {package}`")
        })
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, text));
    written.map_err(|error| format!("`{}` could not be written: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = find("no-such-program", "some-package").unwrap_err();
        assert!(error.contains("`no-such-program`") && error.contains("apt-get install some-package"), "{error}");
    }
}
