//! Certificates for one registry: the authorities that vouch for it, and the one that says who we are. They are
//! named, or lie where docker and podman have them, as `certs.d/<host>/`:
//! <https://docs.docker.com/engine/security/certificates/> and containers-certs.d(5).

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use reqwest::{Certificate, Identity};

use super::Options;
use crate::error::{Error, ErrorKind, Result};

/// A certificate of our own, for registries that want one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, and those that vouch for it, in PEM.
    pub certificate: PathBuf,
    /// Its key in PEM; `None` when it is in the same file.
    pub key: Option<PathBuf>,
}

/// What a connection is made with.
#[derive(Default)]
pub(super) struct Certificates {
    /// Trusted besides the system's.
    pub(super) authorities: Vec<Certificate>,
    /// Shown to the registry, if it asks.
    pub(super) identity: Option<Identity>,
}

impl Certificates {
    /// What is named in `options`, and what is kept for `host` in the first of its directories that has something.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when a file cannot be read or used, or a certificate has no key.
    pub(super) fn read(host: &str, options: &Options) -> Result<Self> {
        let mut authorities = options.ca.as_deref().map(read_authorities).transpose()?.unwrap_or_default();
        let mut client = options.client_certificate.clone();
        for directory in &options.certificates {
            let directory = directory.join(host);
            let files = match fs::read_dir(&directory) {
                Ok(files) => files,
                Err(cause) if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    continue;
                }
                Err(cause) => return Err(unreadable(&directory, cause)),
            };
            let files: io::Result<Vec<PathBuf>> = files.map(|entry| Ok(entry?.path())).collect();
            let mut files = files.map_err(|cause| unreadable(&directory, cause))?;
            files.sort();
            for file in files.iter().filter(|file| file.extension() == Some(OsStr::new("crt"))) {
                authorities.extend(read_authorities(file)?);
            }
            client = match client {
                None => kept_pair(&files)?,
                named => named,
            };
            break;
        }
        let identity = client.as_ref().map(read_identity).transpose()?;
        Ok(Self { authorities, identity })
    }
}

/// The first certificate among `files`, with its key.
fn kept_pair(files: &[PathBuf]) -> Result<Option<ClientCertificate>> {
    let with =
        |extension: &'static str| files.iter().filter(move |file| file.extension() == Some(OsStr::new(extension)));
    for (extension, other) in [("cert", "key"), ("key", "cert")] {
        for file in with(extension) {
            let missing = file.with_extension(other);
            if !files.contains(&missing) {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("There is no `{}` beside `{}`", missing.display(), file.display()),
                )
                .hint("a certificate of your own is a pair `x.cert` and `x.key`; an authority's is `x.crt`"));
            }
        }
    }
    let pair = with("cert").next();
    Ok(pair.map(|file| ClientCertificate { certificate: file.clone(), key: Some(file.with_extension("key")) }))
}

fn read_authorities(path: &Path) -> Result<Vec<Certificate>> {
    let invalid = |message| Error::new(ErrorKind::Usage, format!("{message}: `{}`", path.display()));
    let pem = fs::read(path).map_err(|cause| unreadable(path, cause))?;
    let certificates =
        Certificate::from_pem_bundle(&pem).map_err(|cause| invalid("Not certificates in PEM").caused_by(cause))?;
    if certificates.is_empty() { Err(invalid("No certificate in PEM")) } else { Ok(certificates) }
}

fn read_identity(client: &ClientCertificate) -> Result<Identity> {
    let read = |path: &Path| fs::read(path).map_err(|cause| unreadable(path, cause));
    let mut pem = read(&client.certificate)?;
    if let Some(key) = &client.key {
        pem.push(b'\n');
        pem.extend(read(key)?);
    }
    Identity::from_pem(&pem).map_err(|cause| {
        let message = format!("Not a certificate with its key in PEM: `{}`", client.certificate.display());
        Error::new(ErrorKind::Usage, message).caused_by(cause).hint("the key may not have a password")
    })
}

fn unreadable(path: &Path, cause: io::Error) -> Error {
    Error::io(ErrorKind::Usage, "read the certificates", path, cause)
}
