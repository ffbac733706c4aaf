//! The body of an upload: a blob, or a part of it, on its way from a source into a request. The last bytes
//! of a blob leave only when all were hashed and are those of the descriptor, so that a registry never gets
//! a whole blob that is rotten; and the request's owner can tell a slow source from a registry that stopped
//! reading.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use tokio::time::{Instant, sleep_until};

use super::rate::Rate;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Descriptor;
use crate::storage::{Body, ByteStream, Verifier};

/// The largest piece handed over at once: small enough that a slow line still shows progress.
const PIECE: usize = 256 << 10;

/// Some of a blob's bytes, as the body of a request that can be sent more than once.
pub(super) struct Part<'a> {
    before: Verifier,
    body: &'a dyn Body,
    end: u64,
    watch: Watch,
}

/// Bytes on their way out.
pub(super) struct Outgoing {
    source: ByteStream,
    verifier: Option<Verifier>,
    /// Where in the blob the part ends.
    end: u64,
    /// Checked bytes that wait for the check of what follows them.
    held: Bytes,
    watch: Watch,
    rate: Option<Arc<Rate>>,
    /// How many bytes are handed over at once.
    piece: usize,
}

/// What the owner of the request can see of its body.
#[derive(Clone)]
pub(super) struct Watch(Arc<Mutex<View>>);

struct View {
    stage: Stage,
    since: Instant,
    fault: Option<Error>,
    after: Option<Verifier>,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    /// Waiting for the source.
    Reading,
    /// Waiting for the registry to take what was handed over.
    Sending,
    /// All bytes are handed over; waiting for the answer.
    Sent,
}

impl<'a> Part<'a> {
    /// All of `body`, which must hold what `expected` promises.
    pub(super) fn whole(expected: &Descriptor, body: &'a dyn Body) -> Self {
        Self::new(Verifier::new(expected), body, expected.size)
    }

    /// The bytes of `body` behind those that `before` has seen, up to the offset `end`.
    pub(super) fn new(before: Verifier, body: &'a dyn Body, end: u64) -> Self {
        let view = View { stage: Stage::Sending, since: Instant::now(), fault: None, after: None };
        Self { before, body, end, watch: Watch(Arc::new(Mutex::new(view))) }
    }

    /// How many bytes it has.
    pub(super) fn length(&self) -> u64 {
        self.end - self.before.seen()
    }

    /// What the owner of the request can see.
    pub(super) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// The check of all bytes up to the end of this part; `None` when they were not all sent.
    pub(super) fn after(&self) -> Option<Verifier> {
        self.watch.view(|view| view.after.take())
    }

    /// Opens it to be sent, from its first byte, as fast as `rate` allows.
    pub(super) async fn open(&self, rate: Option<&Arc<Rate>>) -> Result<Outgoing> {
        let source = self.body.open(self.before.seen()..self.end).await?;
        self.watch.view(|view| (view.fault, view.after) = (None, None));
        self.watch.enter(Stage::Sending);
        Ok(Outgoing {
            source,
            verifier: Some(self.before.clone()),
            end: self.end,
            held: Bytes::new(),
            watch: self.watch.clone(),
            rate: rate.cloned(),
            piece: rate.map_or(PIECE, |rate| rate.piece().min(PIECE)),
        })
    }
}

impl Outgoing {
    /// The body, for a request.
    pub(super) fn into_body(self) -> reqwest::Body {
        reqwest::Body::wrap_stream(self.into_pieces())
    }

    fn into_pieces(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::try_unfold(self, |mut outgoing| async move {
            match outgoing.next().await {
                Ok(Some(piece)) => {
                    outgoing.pace(piece.len()).await;
                    Ok(Some((piece, outgoing)))
                }
                Ok(None) => Ok(None),
                Err(fault) => {
                    outgoing.watch.view(|view| view.fault = Some(fault));
                    Err(io::Error::other("the blob could not be read"))
                }
            }
        })
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.held.len() > self.piece {
            self.watch.enter(Stage::Sending);
            return Ok(Some(self.held.split_to(self.piece)));
        }
        self.watch.enter(Stage::Reading);
        while let Some(verifier) = &mut self.verifier {
            match self.source.next().await.transpose()? {
                Some(chunk) if chunk.is_empty() => {}
                Some(chunk) => {
                    verifier.update(&chunk)?;
                    if verifier.seen() > self.end {
                        let message = format!("More bytes were read than those up to {}", self.end);
                        return Err(Error::new(ErrorKind::Unexpected, message));
                    }
                    let ready = std::mem::replace(&mut self.held, chunk);
                    if !ready.is_empty() {
                        self.watch.enter(Stage::Sending);
                        return Ok(Some(ready));
                    }
                }
                None => {
                    if let Some(verifier) = self.verifier.take() {
                        let ends_here = self.end == verifier.expected().size;
                        if ends_here || verifier.seen() < self.end {
                            verifier.clone().finish()?;
                        }
                        self.watch.view(|view| view.after = Some(verifier));
                    }
                }
            }
            if self.held.len() > self.piece {
                self.watch.enter(Stage::Sending);
                return Ok(Some(self.held.split_to(self.piece)));
            }
        }
        self.watch.enter(Stage::Sent);
        let last = std::mem::take(&mut self.held);
        Ok(Some(last).filter(|last| !last.is_empty()))
    }
}

impl Outgoing {
    /// Waits until `bytes` more may leave. The registry is not to blame for that.
    async fn pace(&mut self, bytes: usize) {
        let Some(rate) = &self.rate else { return };
        let stage = self.watch.view(|view| view.stage);
        self.watch.enter(Stage::Reading);
        rate.pass(bytes).await;
        self.watch.enter(stage);
    }
}

impl Watch {
    fn view<T>(&self, look: impl FnOnce(&mut View) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn enter(&self, stage: Stage) {
        self.view(|view| (view.stage, view.since) = (stage, Instant::now()));
    }

    /// The error of the source, if it is what broke the request.
    pub(super) fn fault(&self) -> Option<Error> {
        self.view(|view| view.fault.take())
    }

    /// Waits until the registry took nothing for `idle`, or gave no answer for `closing` after it took
    /// everything; gives back which of the two it was.
    pub(super) async fn stalled(&self, idle: Duration, closing: Duration) -> Duration {
        loop {
            let (stage, since) = self.view(|view| (view.stage, view.since));
            let patience = if stage == Stage::Sent { closing } else { idle };
            let deadline = if stage == Stage::Reading { Instant::now() } else { since } + patience;
            if deadline <= Instant::now() {
                return patience;
            }
            sleep_until(deadline).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use futures_util::future::BoxFuture;

    use super::*;
    use crate::oci::MediaType;

    struct Chunks(Vec<&'static [u8]>);

    impl Body for Chunks {
        fn open(&self, _bytes: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
            let chunks: Vec<_> = self.0.iter().map(|chunk| Ok(Bytes::from_static(chunk))).collect();
            Box::pin(async move { Ok(Box::pin(stream::iter(chunks)) as ByteStream) })
        }
    }

    async fn pieces(part: &Part<'_>) -> (Vec<u8>, Option<Error>) {
        let pieces: Vec<_> = part.open(None).await.unwrap().into_pieces().collect().await;
        assert!(pieces.iter().flatten().all(|piece| !piece.is_empty() && piece.len() <= PIECE));
        (pieces.into_iter().flatten().flatten().collect(), part.watch().fault())
    }

    async fn sent(chunks: Vec<&'static [u8]>, promised: &[u8]) -> (Vec<u8>, Option<Error>) {
        pieces(&Part::whole(&Descriptor::of(MediaType::KILN_FILE, promised), &Chunks(chunks))).await
    }

    #[tokio::test]
    async fn parts_are_checked_as_one_blob() {
        for (content, is_sound) in [(&b"weights"[..], true), (b"wXights", false), (b"weightz", false)] {
            let expected = Descriptor::of(MediaType::KILN_FILE, b"weights");
            let first = Chunks(vec![&content[..2], &content[2..4]]);
            let first = Part::new(Verifier::new(&expected), &first, 4);
            assert_eq!(pieces(&first).await.0, content[..4]);
            let before = first.after().unwrap();
            let last = Chunks(vec![&content[4..]]);
            let (bytes, fault) = pieces(&Part::new(before, &last, 7)).await;
            assert_eq!((bytes == content[4..], fault.is_none()), (is_sound, is_sound), "{content:?}");
        }
    }

    #[tokio::test]
    async fn a_part_ends_where_it_was_asked_to() {
        let body = Chunks(vec![b"we", b"igh"]);
        let part = Part::new(Verifier::new(&Descriptor::of(MediaType::KILN_FILE, b"weights")), &body, 4);
        let (bytes, fault) = pieces(&part).await;
        assert!(bytes.len() <= 4 && part.after().is_none(), "{bytes:?}");
        assert_eq!(fault.unwrap().kind(), ErrorKind::Unexpected);
    }

    #[tokio::test]
    async fn what_is_promised_passes_in_small_pieces() {
        static LARGE: [u8; 3 * PIECE + 5] = [7; 3 * PIECE + 5];
        for chunks in [vec![], vec![&b""[..]], vec![b"a", b"", b"bc"], vec![&LARGE[..]], vec![b"x", &LARGE, b"y"]] {
            let promised = chunks.concat();
            let (bytes, fault) = sent(chunks, &promised).await;
            assert!(bytes == promised && fault.is_none(), "{} bytes", promised.len());
        }
    }

    #[tokio::test]
    async fn a_rotten_blob_never_leaves_whole() {
        for chunks in [vec![&b"weightz"[..]], vec![b"wei", b"ghtz"], vec![b"weight"], vec![b"weights", b"X"], vec![]] {
            let (bytes, fault) = sent(chunks, b"weights").await;
            assert!(bytes.len() < 7, "{bytes:?}");
            assert_eq!(fault.unwrap().kind(), crate::ErrorKind::Corrupt);
        }
    }

    #[tokio::test]
    async fn only_the_registry_can_stall() {
        let (idle, closing) = (Duration::from_millis(10), Duration::from_millis(30));
        for (stage, expected) in [(Stage::Reading, None), (Stage::Sending, Some(idle)), (Stage::Sent, Some(closing))] {
            let watch = Watch(Arc::new(Mutex::new(View { stage, since: Instant::now(), fault: None, after: None })));
            let stalled = tokio::time::timeout(Duration::from_millis(300), watch.stalled(idle, closing)).await;
            assert_eq!(stalled.ok(), expected);
        }
    }
}
