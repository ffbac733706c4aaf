//! A server on its own thread with its own runtime: it answers tests that are blocking as well as
//! tests that are async, and stops, with whatever it has under way, when it is dropped.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread::JoinHandle;

use axum::Router;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;

/// A running server on a port of 127.0.0.1 that the system chose.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves what `routes` makes of the address that was found.
    pub(crate) fn start(routes: impl FnOnce(SocketAddr) -> Router) -> Self {
        let socket = Self::socket();
        let router = routes(socket.local_addr().expect("the address of a bound socket"));
        Self::run(socket, |listener| async move {
            axum::serve(listener, router).await.expect("the server runs until it is stopped");
        })
    }

    /// A socket on a port of 127.0.0.1 that the system chose.
    pub(crate) fn socket() -> TcpSocket {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port on 127.0.0.1");
        socket
    }

    /// Listens on `socket` and runs `serve`.
    pub(crate) fn run<F: Future<Output = ()>>(
        socket: TcpSocket,
        serve: impl FnOnce(TcpListener) -> F + Send + 'static,
    ) -> Self {
        let address = socket.local_addr().expect("the address of a bound socket");
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("registry-fixture")
            .enable_all()
            .build()
            .expect("a runtime");
        // It listens before anybody can ask it.
        let listener = {
            let _inside = runtime.enter();
            socket.listen(1024).expect("a socket that listens")
        };
        let thread = std::thread::spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = serve(listener) => {}
                    _ = stopped => {}
                }
            });
            // A stalled reply never ends: stopping must not wait for it.
            runtime.shutdown_background();
        });
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
