//! What a long operation tells while it runs. The library never prints: it reports events, and the
//! command line decides whether they become a bar, a line or a JSON object.

use std::fmt;
use std::sync::Arc;

use crate::oci::Digest;

/// One thing that happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// Work of a known size begins.
    Started {
        /// What is done: `create`, `push`, `pull`, `attach`, `verify`, `repair`, `crosscheck`, `diff`, `checkout`, `export`.
        task: &'static str,
        /// How many blobs.
        blobs: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// This many more bytes are done.
    Advanced {
        /// Bytes since the last event.
        bytes: u64,
    },
    /// A blob is finished.
    Blob {
        /// The layer's name, or its digest where it has none.
        name: String,
        /// The blob's digest.
        digest: Digest,
        /// The blob's size in bytes.
        size: u64,
        /// What was done: `written`, `present`, `sent`, `fetched`, `mounted`, `checked`, `reflinked`, `hard-linked`,
        /// `copied`.
        outcome: &'static str,
    },
    /// Something the user should know that is not an error.
    Note {
        /// One sentence.
        message: String,
    },
}

/// A receiver of events, cheap to clone and safe to call from any thread.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(Event) + Send + Sync>);

impl Progress {
    /// Reports every event to `receiver`.
    pub fn new(receiver: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(receiver))
    }

    /// Reports to nobody.
    pub fn silent() -> Self {
        Self::new(|_| {})
    }

    /// Reports one event.
    pub fn report(&self, event: Event) {
        (self.0)(event);
    }

    /// Reports `bytes` more done.
    pub fn advance(&self, bytes: u64) {
        self.report(Event::Advanced { bytes });
    }

    /// Reports a sentence.
    pub fn note(&self, message: impl Into<String>) {
        self.report(Event::Note { message: message.into() });
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}
