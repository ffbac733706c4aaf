//! Serving the store as a registry.

use std::fs;
use std::future::Future;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::serve::{Auth, ServeOptions, TlsIdentity, Users, serve as run};
use crate::store::Store;

/// How much of such a file is read.
const MAX_FILE: u64 = 16 << 20;

/// The files that a server is set up with.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Users and their passwords, as `htpasswd -B` writes them.
    pub htpasswd: Option<PathBuf>,
    /// Whether users get tokens at `/token`, instead of sending their password with every request.
    pub tokens: bool,
    /// A certificate and its key, both in PEM.
    pub tls: Option<(PathBuf, PathBuf)>,
}

impl Files {
    /// Reads them into `options`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when one cannot be read or is not what it should be.
    pub fn read_into(&self, options: &mut ServeOptions) -> Result<()> {
        if let Some(path) = &self.htpasswd {
            let users = read(path).and_then(|text| Users::parse(&String::from_utf8_lossy(&text)));
            let users = users.map_err(|cause| {
                let message = format!("Not a file of users: `{}`", path.display());
                Error::new(ErrorKind::Usage, message)
                    .caused_by(cause)
                    .hint("make it with `htpasswd -B -c FILE USER`, which asks for the password")
            })?;
            options.auth = Some(if self.tokens { Auth::Token(users) } else { Auth::Basic(users) });
        }
        if let Some((certificate, key)) = &self.tls {
            options.tls = Some(TlsIdentity::from_pem(&read(certificate)?, &read(key)?).map_err(|cause| {
                let message = format!(
                    "Could not use the certificate `{}` with the key `{}`",
                    certificate.display(),
                    key.display()
                );
                Error::new(ErrorKind::Usage, message).caused_by(cause)
            })?);
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes))
        .map_err(|cause| Error::io(ErrorKind::Usage, "read", path, cause))?;
    Ok(bytes)
}

/// Serves `store` at `address` until `shutdown`; `ready` is called with the address once it is bound.
///
/// # Errors
/// [`ErrorKind::Usage`] when the address cannot be bound.
pub async fn serve(
    store: Store,
    address: SocketAddr,
    options: ServeOptions,
    ready: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let failed = |cause| Error::new(ErrorKind::Usage, format!("Could not listen on `{address}`")).caused_by(cause);
    let listener = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
    ready(listener.local_addr().map_err(failed)?);
    run(Arc::new(store), listener, options, shutdown).await
}
