//! Uploads that take several requests: each is a session with content that grows, and that is gone
//! when nobody comes back for it.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use tokio::sync::{OwnedMutexGuard, watch};

use super::ServeOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{ByteStream, Staged};

/// The sessions under way.
#[derive(Debug)]
pub(super) struct Uploads<T> {
    sessions: Mutex<HashMap<String, Session<T>>>,
    max: usize,
    lifetime: Duration,
}

/// One session.
#[derive(Debug)]
pub(super) struct Session<T> {
    repository: String,
    /// Held by the request that writes, and empty once the upload came to its end.
    staged: Arc<tokio::sync::Mutex<Option<T>>>,
    written: Arc<AtomicU64>,
    /// Whose turn it is to write: the last request that came. An earlier one may hang on a connection
    /// that its client has long given up.
    turn: watch::Sender<u64>,
    last_used: Instant,
}

impl<T> Clone for Session<T> {
    fn clone(&self) -> Self {
        Self {
            repository: self.repository.clone(),
            staged: Arc::clone(&self.staged),
            written: Arc::clone(&self.written),
            turn: self.turn.clone(),
            last_used: self.last_used,
        }
    }
}

/// The one request that may write to a session.
pub(super) struct Writer<T> {
    staged: OwnedMutexGuard<Option<T>>,
    written: Arc<AtomicU64>,
    turn: watch::Receiver<u64>,
    mine: u64,
}

impl<T: Staged> Session<T> {
    /// How many bytes it has; one that is being written to has more a moment later.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Takes the turn from whoever writes.
    pub(super) async fn writer(&self) -> Writer<T> {
        let mut mine = 0;
        self.turn.send_modify(|turn| {
            *turn += 1;
            mine = *turn;
        });
        let turn = self.turn.subscribe();
        let staged = Arc::clone(&self.staged).lock_owned().await;
        Writer { staged, written: Arc::clone(&self.written), turn, mine }
    }
}

impl<T: Staged> Writer<T> {
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Appends what `body` brings, of which what came before an error stays. `None` when the session
    /// came to its end meanwhile.
    pub(super) async fn append(&mut self, mut body: ByteStream, max: u64) -> Result<Option<()>> {
        let Some(staged) = self.staged.as_mut() else { return Ok(None) };
        let mine = self.mine;
        loop {
            let bytes = tokio::select! {
                next = body.next() => match next {
                    Some(bytes) => bytes?,
                    None => return Ok(Some(())),
                },
                _ = self.turn.wait_for(|turn| *turn != mine) => {
                    let message = "Another request went on with this upload";
                    return Err(Error::new(ErrorKind::Registry, message));
                }
            };
            require_room(staged.written(), bytes.len(), max)?;
            staged.append(bytes).await?;
            self.written.store(staged.written(), Ordering::Release);
        }
    }

    /// Takes the content out of the session, which is at its end.
    pub(super) fn into_staged(mut self) -> Option<T> {
        self.staged.take()
    }
}

/// Fails when `more` bytes after `written` are too many for a blob.
pub(super) fn require_room(written: u64, more: usize, max: u64) -> Result<()> {
    if written.saturating_add(more as u64) > max {
        return Err(Error::new(ErrorKind::Usage, format!("A blob has at most {max} bytes here")));
    }
    Ok(())
}

impl<T: Staged> Uploads<T> {
    pub(super) fn new(options: &ServeOptions) -> Self {
        Self { sessions: Mutex::default(), max: options.max_uploads, lifetime: options.upload_lifetime }
    }

    /// How many are under way.
    pub(super) fn count(&self) -> usize {
        self.live().len()
    }

    /// Begins a session for `repository` and gives its id; `None` when there are too many.
    pub(super) fn begin(&self, repository: &str, staged: T) -> Option<String> {
        let mut sessions = self.live();
        if sessions.len() >= self.max {
            return None;
        }
        let session = Session {
            repository: repository.to_owned(),
            staged: Arc::new(tokio::sync::Mutex::new(Some(staged))),
            written: Arc::default(),
            turn: watch::Sender::new(0),
            last_used: Instant::now(),
        };
        // Each of the two is a random number of its own, seeded by the system.
        let [left, right] = [(); 2].map(|()| RandomState::new().hash_one(()));
        let id = format!("{left:016x}{right:016x}");
        sessions.insert(id.clone(), session);
        Some(id)
    }

    /// The session `id` of `repository`, whose time begins anew.
    pub(super) fn find(&self, repository: &str, id: &str) -> Option<Session<T>> {
        let mut sessions = self.live();
        let session = sessions.get_mut(id).filter(|session| session.repository == repository)?;
        session.last_used = Instant::now();
        Some(session.clone())
    }

    /// Ends a session; says whether it was there.
    pub(super) fn end(&self, repository: &str, id: &str) -> bool {
        let mut sessions = self.live();
        let found = sessions.get(id).is_some_and(|session| session.repository == repository);
        found && sessions.remove(id).is_some()
    }

    /// The sessions, without those that nobody came back for. One that is being written to is in use,
    /// however long that takes.
    fn live(&self) -> MutexGuard<'_, HashMap<String, Session<T>>> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions
            .retain(|_, session| session.last_used.elapsed() < self.lifetime || Arc::strong_count(&session.staged) > 1);
        sessions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Memory, Stage as _};
    use bytes::Bytes;
    use futures_util::stream;

    async fn uploads(options: ServeOptions) -> (Uploads<<Memory as crate::storage::Stage>::Staged>, Memory) {
        (Uploads::new(&options), Memory::new())
    }

    #[tokio::test]
    async fn a_session_belongs_to_its_repository_and_ends() {
        let (uploads, place) = uploads(ServeOptions { max_uploads: 1, ..ServeOptions::default() }).await;
        let id = uploads.begin("a", place.stage().await.unwrap()).unwrap();
        assert_eq!(uploads.begin("a", place.stage().await.unwrap()), None, "one too many");
        assert!(uploads.find("a", &id).is_some() && uploads.find("b", &id).is_none());
        assert!(!uploads.end("b", &id) && uploads.end("a", &id) && !uploads.end("a", &id));
        assert!(uploads.begin("a", place.stage().await.unwrap()).is_some());
    }

    #[tokio::test]
    async fn a_session_that_nobody_came_back_for_is_gone() {
        let (uploads, place) =
            uploads(ServeOptions { upload_lifetime: Duration::ZERO, ..ServeOptions::default() }).await;
        let id = uploads.begin("a", place.stage().await.unwrap()).unwrap();
        assert!(uploads.find("a", &id).is_none());
    }

    #[tokio::test]
    async fn a_request_that_hangs_gives_way_to_the_next() {
        let (uploads, place) = uploads(ServeOptions::default()).await;
        let id = uploads.begin("a", place.stage().await.unwrap()).unwrap();
        let session = uploads.find("a", &id).unwrap();
        let mut hanging = session.writer().await;
        let body = stream::iter([Ok(Bytes::from("wei"))]).chain(stream::pending()).boxed();
        let hangs = tokio::spawn(async move { hanging.append(body, u64::MAX).await });
        while session.written() < 3 {
            tokio::task::yield_now().await;
        }
        let mut next = tokio::time::timeout(Duration::from_secs(20), session.writer()).await.unwrap();
        assert_eq!(hangs.await.unwrap().unwrap_err().kind(), ErrorKind::Registry);
        assert_eq!(next.written(), 3);
        let rest = stream::iter([Ok(Bytes::from("ghts"))]).boxed();
        assert_eq!(next.append(rest, 7).await.unwrap(), Some(()));
        let more = stream::iter([Ok(Bytes::from("x"))]).boxed();
        assert!(next.append(more, 7).await.is_err(), "there is a limit");
        let digest = crate::oci::Digest::of(b"weights");
        next.into_staged().unwrap().commit(&digest).await.unwrap();
        assert_eq!(place.get(&digest).unwrap(), "weights");
    }
}
