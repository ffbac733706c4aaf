//! Connections: accepted as long as there is room, encrypted if there is a certificate, left when the
//! other side is silent, ended in good order.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::{Served, Server, answer};
use crate::error::{Error, ErrorKind, Result};

/// How long a client may take to agree on a key.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long nothing is accepted after the system could not, as when files run out.
const PAUSE: Duration = Duration::from_millis(100);

/// A certificate, with those that vouch for it, and its key.
#[derive(Clone, Debug)]
pub struct TlsIdentity(Arc<ServerConfig>);

impl TlsIdentity {
    /// Reads both from PEM.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when one is missing, broken, or they do not belong together.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self> {
        let wrong = |what: &str| Error::new(ErrorKind::Usage, format!("Not a {what} in PEM"));
        let certificates = CertificateDer::pem_slice_iter(certificates)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|cause| wrong("certificate").caused_by(cause))?;
        if certificates.is_empty() {
            return Err(wrong("certificate"));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|cause| wrong("private key").caused_by(cause))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map(|builder| builder.with_no_client_auth())
            .and_then(|builder| builder.with_single_cert(certificates, key))
            .map_err(|cause| {
                Error::new(ErrorKind::Usage, "The certificate and the key cannot be used").caused_by(cause)
            })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }
}

/// Serves until `shutdown`; then connections have the options' grace to come to their end.
pub(super) async fn run<S: Served>(
    server: Arc<Server<S>>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let tls = server.options.tls.as_ref().map(|TlsIdentity(config)| TlsAcceptor::from(Arc::clone(config)));
    let room = Arc::new(Semaphore::new(server.options.max_connections));
    let graceful = GracefulShutdown::new();
    // Dropped with whatever is still under way when this returns.
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = accept(&listener, &room) => accepted,
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((permit, stream, peer)) => {
                let (server, tls, watcher) = (Arc::clone(&server), tls.clone(), graceful.watcher());
                connections.spawn(async move {
                    let _permit = permit;
                    let _open = Open::new(&server.metrics.connections);
                    let stream = Patient::new(stream, server.options.silence);
                    match tls {
                        None => converse(&server, stream, peer, watcher).await,
                        Some(tls) => {
                            if let Ok(Ok(stream)) = timeout(HANDSHAKE, tls.accept(stream)).await {
                                converse(&server, stream, peer, watcher).await;
                            }
                        }
                    }
                });
            }
            Err(cause) => {
                server.options.progress.note(format!("Could not accept a connection: {cause}"));
                sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    // Whoever did not end in time is cut off.
    let _ = timeout(server.options.grace, graceful.shutdown()).await;
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(Option<OwnedSemaphorePermit>, TcpStream, SocketAddr)> {
    let permit = Arc::clone(room).acquire_owned().await.ok();
    let (stream, peer) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((permit, stream, peer))
}

/// Answers the requests of one connection. One that breaks is the client's affair.
async fn converse<S: Served>(
    server: &Arc<Server<S>>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    watcher: Watcher,
) {
    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        let server = Arc::clone(server);
        async move { Ok::<_, Infallible>(answer(&server, peer, request.map(Body::new)).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(server.options.idle)
        .serve_connection(TokioIo::new(stream), service);
    let _ = watcher.watch(connection).await;
}

/// A connection in the gauge of those that are open.
struct Open<'a>(&'a AtomicU64);

impl<'a> Open<'a> {
    fn new(gauge: &'a AtomicU64) -> Self {
        gauge.fetch_add(1, Ordering::Relaxed);
        Self(gauge)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that breaks when the other side takes nothing for too long. Reading has limits of its own.
struct Patient<T> {
    stream: T,
    silence: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<T> Patient<T> {
    fn new(stream: T, silence: Duration) -> Self {
        Self { stream, silence, waiting: None }
    }

    fn bounded<R>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if outcome.is_ready() {
            self.waiting = None;
            return outcome;
        }
        let silence = self.silence;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(silence)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.bounded(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.bounded(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.bounded(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.bounded(cx, outcome)
    }
}
