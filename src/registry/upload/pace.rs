//! How much of a blob one request sends: what passes in some seconds at the speed that was seen, within what
//! the registry was seen to take. A proxy in front of it may end a request after 30 s or a body after 100 MB,
//! and says neither before.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The first chunk.
const FIRST: u64 = 16 << 20;
/// No chunk that a registry refuses is cut below this: smaller ones would cost more than they save.
const SHORTEST: u64 = 1 << 20;
/// No chunk is longer, however fast the line.
const LONGEST: u64 = 512 << 20;
/// How long a chunk should be on its way.
const AIM: Duration = Duration::from_secs(10);

/// What is known about chunks at one registry.
#[derive(Debug)]
pub(in super::super) struct Pace(Mutex<Habits>);

/// What was seen of a registry's uploads, to be kept from one run to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Habits {
    /// The next chunk's length in bytes.
    next: u64,
    /// The longest that may be tried.
    longest: u64,
    takes_chunks: bool,
}

impl Default for Habits {
    fn default() -> Self {
        Self { next: FIRST, longest: LONGEST, takes_chunks: true }
    }
}

impl Pace {
    /// Goes on from what is known; `first` bytes are the first chunk, if given.
    pub(in super::super) fn new(first: Option<u64>, known: Habits) -> Self {
        let longest = known.longest.clamp(1, LONGEST).max(first.unwrap_or_default());
        // `0-0` is what registries say of an empty session: a chunk of one byte would look like none.
        let next = first.unwrap_or(known.next).clamp(2, longest.max(2));
        Self(Mutex::new(Habits { next, longest, ..known }))
    }

    /// What is known by now.
    pub(in super::super) fn habits(&self) -> Habits {
        self.known(|known| *known)
    }

    /// The length of the next chunk, of at least `shortest` bytes; `None` when the registry takes none.
    pub(super) fn chunk(&self, shortest: u64) -> Option<u64> {
        let known = self.known(|known| *known);
        (known.takes_chunks && shortest <= known.longest).then_some(known.next.max(shortest))
    }

    /// Whether a blob of `size` bytes may go, or once have gone, in more than one chunk.
    pub(super) fn may_take_several(&self, size: u64) -> bool {
        self.known(|known| known.takes_chunks && size > known.next.min(FIRST))
    }

    /// A chunk of `length` bytes was taken in `time`.
    pub(super) fn took(&self, length: u64, time: Duration) {
        let ideal = length as f64 * AIM.as_secs_f64() / time.as_secs_f64().max(0.001);
        self.known(|known| {
            // Only what was sent says something, and no step is larger than a doubling.
            if length >= known.next / 2 {
                known.next = (ideal as u64).clamp(known.next / 2, known.next * 2).clamp(1, known.longest);
            }
        });
    }

    /// A chunk of `length` bytes was too long for the registry; whether a shorter one can be tried.
    pub(super) fn too_long(&self, length: u64) -> bool {
        self.known(|known| {
            let shorter = length / 4;
            if shorter < SHORTEST.min(known.next) {
                return false;
            }
            known.longest = known.longest.min(length - 1);
            known.next = known.next.min(shorter);
            true
        })
    }

    /// A chunk of `length` bytes did not arrive: the next one is shorter, and may grow again.
    pub(super) fn broke(&self, length: u64) {
        self.known(|known| known.next = known.next.min((length / 2).max(SHORTEST)));
    }

    /// The registry takes no chunks.
    pub(super) fn takes_none(&self) {
        self.known(|known| known.takes_chunks = false);
    }

    fn known<T>(&self, change: impl FnOnce(&mut Habits) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_grows_with_the_line_and_shrinks_with_it() {
        let pace = Pace::new(None, Habits::default());
        assert_eq!(pace.chunk(0), Some(16 << 20));
        pace.took(16 << 20, Duration::from_millis(100));
        assert_eq!(pace.chunk(0), Some(32 << 20));
        for _ in 0..10 {
            pace.took(pace.chunk(0).unwrap(), Duration::from_millis(1));
        }
        assert_eq!(pace.chunk(0), Some(512 << 20));
        pace.took(512 << 20, Duration::from_secs(40));
        assert_eq!(pace.chunk(0), Some(256 << 20));
        pace.broke(256 << 20);
        assert_eq!(pace.chunk(0), Some(128 << 20));
        assert_eq!(pace.chunk(200 << 20), Some(200 << 20));
    }

    #[test]
    fn a_length_that_was_refused_is_not_tried_again() {
        let pace = Pace::new(None, Habits::default());
        assert!(pace.too_long(16 << 20));
        assert_eq!(pace.chunk(0), Some(4 << 20));
        for _ in 0..5 {
            pace.took(pace.chunk(0).unwrap(), Duration::from_millis(1));
        }
        assert_eq!(pace.chunk(0), Some((16 << 20) - 1));
        // Nor when a longer one, on its way since before that, is refused after it.
        assert!(pace.too_long(256 << 20));
        assert_eq!(pace.chunk(16 << 20), None);
        assert!(!Pace::new(None, Habits::default()).too_long(2 << 20));
        assert_eq!(pace.chunk(1 << 30), None);
        pace.takes_none();
        assert_eq!(pace.chunk(0), None);
        assert_eq!(Pace::new(None, pace.habits()).chunk(0), None, "the next run has learned it too");
    }

    #[test]
    fn what_was_kept_is_not_believed_beyond_reason() {
        for (next, longest, expected) in [(0, 0, 2), (u64::MAX, u64::MAX, LONGEST), (1 << 20, 100, 100)] {
            let pace = Pace::new(None, Habits { next, longest, takes_chunks: true });
            assert_eq!(pace.chunk(0), Some(expected));
        }
    }
}
