//! Serving the store as a registry.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::serve::{ServeOptions, serve as run};
use crate::store::Store;

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
