//! Uploads that take several requests: each is a session with a file that grows, and that is gone
//! when nobody comes back for it.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ServeOptions;
use super::content::Spool;
use crate::error::Result;

/// The sessions under way.
#[derive(Debug)]
pub(super) struct Uploads {
    sessions: Mutex<HashMap<String, Session>>,
    directory: PathBuf,
    max: usize,
    lifetime: Duration,
}

/// One session.
#[derive(Clone, Debug)]
pub(super) struct Session {
    repository: String,
    /// Held by the request that writes: chunks of one blob come one after the other.
    pub(super) spool: Arc<tokio::sync::Mutex<Spool>>,
    last_used: Instant,
}

impl Uploads {
    pub(super) fn new(options: &ServeOptions) -> Self {
        Self {
            sessions: Mutex::default(),
            directory: options.upload_directory.clone(),
            max: options.max_uploads,
            lifetime: options.upload_lifetime,
        }
    }

    /// Begins a session for `repository` and gives its id; `None` when there are too many.
    pub(super) async fn begin(&self, repository: &str) -> Result<Option<String>> {
        if self.live().len() >= self.max {
            return Ok(None);
        }
        let spool = Arc::new(tokio::sync::Mutex::new(Spool::create(&self.directory).await?));
        let session = Session { repository: repository.to_owned(), spool, last_used: Instant::now() };
        // Each of the two is a random number of its own, seeded by the system.
        let [left, right] = [(); 2].map(|()| RandomState::new().hash_one(()));
        let id = format!("{left:016x}{right:016x}");
        self.live().insert(id.clone(), session);
        Ok(Some(id))
    }

    /// The session `id` of `repository`, whose time begins anew.
    pub(super) fn find(&self, repository: &str, id: &str) -> Option<Session> {
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
    fn live(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions
            .retain(|_, session| session.last_used.elapsed() < self.lifetime || Arc::strong_count(&session.spool) > 1);
        sessions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_session_belongs_to_its_repository_and_ends() {
        let uploads = Uploads::new(&ServeOptions { max_uploads: 1, ..ServeOptions::default() });
        let id = uploads.begin("a").await.unwrap().unwrap();
        assert_eq!(uploads.begin("a").await.unwrap(), None, "one too many");
        assert!(uploads.find("a", &id).is_some() && uploads.find("b", &id).is_none());
        assert!(!uploads.end("b", &id) && uploads.end("a", &id) && !uploads.end("a", &id));
        assert!(uploads.begin("a").await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_session_that_nobody_came_back_for_is_gone() {
        let uploads = Uploads::new(&ServeOptions { upload_lifetime: Duration::ZERO, ..ServeOptions::default() });
        let id = uploads.begin("a").await.unwrap().unwrap();
        assert!(uploads.find("a", &id).is_none());
    }
}
