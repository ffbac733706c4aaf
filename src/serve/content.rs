//! Bytes on their way into the server, a chunk at a time: the bodies of requests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::timeout;

use crate::error::{Error, ErrorKind};
use crate::storage::ByteStream;

/// A request's body: it can be read once.
pub(super) struct Arriving {
    stream: Mutex<Option<ByteStream>>,
    received: Arc<AtomicU64>,
}

impl Arriving {
    /// A body that may be silent for as long as `patience`.
    pub(super) fn new(body: Body, patience: Duration) -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&received);
        let broken = |cause| {
            Error::new(ErrorKind::Registry, "The client stopped sending in the middle of a body").caused_by(cause)
        };
        let arriving = body.into_data_stream().map_err(broken).inspect_ok(move |bytes| {
            count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        });
        let bounded = stream::try_unfold(arriving, move |mut arriving| async move {
            match timeout(patience, arriving.next()).await {
                Ok(Some(bytes)) => bytes.map(|bytes| Some((bytes, arriving))),
                Ok(None) => Ok(None),
                Err(_) => Err(Error::new(ErrorKind::Registry, "The client fell silent in the middle of a body")),
            }
        });
        Self { stream: Mutex::new(Some(bounded.boxed())), received }
    }

    /// The stream, unless it was taken before.
    pub(super) fn take(&self) -> Option<ByteStream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// How many bytes arrived by now.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    async fn read(mut stream: ByteStream) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(bytes) = stream.next().await {
            all.extend_from_slice(&bytes.unwrap());
        }
        all
    }

    #[tokio::test]
    async fn a_request_is_read_once_and_counted() {
        let body = Arriving::new(Body::from("weights"), Duration::from_secs(20));
        assert_eq!(read(body.take().unwrap()).await, b"weights");
        assert!(body.take().is_none());
        assert_eq!(body.received(), 7);
    }

    #[tokio::test]
    async fn a_silent_client_is_left() {
        let silent = stream::pending::<std::result::Result<Bytes, std::io::Error>>();
        let mut stream = Arriving::new(Body::from_stream(silent), Duration::from_millis(20)).take().unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::Registry);
    }
}
