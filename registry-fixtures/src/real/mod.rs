//! The launchers of a real registry: Debian's `docker-registry`, with a configuration of `configs/`.
//!
//! A program that is missing is an error, never a reason to skip: a test that could not run has not
//! passed. Everything a registry keeps is in a temporary directory that goes with it.

mod token;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

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
    _process: Process,
    host: String,
    certificate: Option<PathBuf>,
    _token_server: Option<Server>,
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
        let mut process = Process::start(&program, directory.path())?;
        let host = process
            .wait_until_it_listens(directory.path())
            .map_err(|problem| format!("{problem}; its log:\n{}", log(directory.path())))?;
        Ok(Self {
            _process: process,
            host,
            certificate: setup.certificate,
            _token_server: setup.token_server,
            directory,
        })
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The certificate to trust, in PEM; `None` without TLS. It lies alone in its directory as
    /// `ca.crt`, as `skopeo --dest-cert-dir` wants it.
    pub fn ca_path(&self) -> Option<&Path> {
        self.certificate.as_deref()
    }

    /// Where the registry keeps its files.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// What the registry has logged.
    pub fn log(&self) -> String {
        log(self.directory.path())
    }
}

fn log(directory: &Path) -> String {
    fs::read_to_string(directory.join("registry.log")).unwrap_or_default()
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
struct Setup {
    certificate: Option<PathBuf>,
    token_server: Option<Server>,
}

impl Setup {
    /// Writes the configuration of `kind`, and what it names, into `directory`.
    fn prepare(kind: &Kind, directory: &Path) -> Result<Self, String> {
        let text = |path: &Path| path.display().to_string();
        let mut values = vec![("${ROOT}", text(&directory.join("root")))];
        let mut setup = Self { certificate: None, token_server: None };
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

/// The registry's process.
#[derive(Debug)]
struct Process(Child);

impl Process {
    fn start(program: &Path, directory: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("`{}` could not be started: {error}", program.display());
        let log = fs::File::create(directory.join("registry.log")).map_err(failed)?;
        let child = Command::new(program)
            .arg("serve")
            .arg(directory.join("config.yml"))
            // Every setting may also come from a variable, and must not come from ours.
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            .spawn()
            .map_err(failed)?;
        Ok(Self(child))
    }

    /// Waits for the line in which the registry logs the port that the system gave it.
    fn wait_until_it_listens(&mut self, directory: &Path) -> Result<String, String> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let log = log(directory);
            let port = log.split_once(LISTENING).and_then(|(_, rest)| {
                // Up to the end of the number: the line may not be all there yet.
                rest.find(|character: char| !character.is_ascii_digit()).map(|end| &rest[..end])
            });
            if let Some(port) = port {
                return Ok(format!("127.0.0.1:{port}"));
            }
            if let Ok(Some(status)) = self.0.try_wait() {
                return Err(format!("`docker-registry` ended at once: {status}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(format!("`docker-registry` did not listen within {} seconds", PATIENCE.as_secs()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
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
