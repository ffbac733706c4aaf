//! How fast blobs may move. One limit is shared by all connections, in both directions.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// What was not used is saved up for so long, so that a late start does not cost speed.
const BURST: Duration = Duration::from_millis(100);

/// A limit in bytes per second: a token bucket, kept as the moment at which it will be empty.
#[derive(Debug)]
pub struct Rate {
    bytes_per_second: NonZeroU64,
    empty_at: Mutex<Option<Instant>>,
}

impl Rate {
    /// A limit of this many bytes per second.
    pub fn new(bytes_per_second: NonZeroU64) -> Self {
        Self { bytes_per_second, empty_at: Mutex::default() }
    }

    /// Waits until `bytes` more may pass. Whoever asks first goes first.
    pub(super) async fn pass(&self, bytes: usize) {
        let until = {
            let mut empty_at = self.empty_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            let until = empty_at.map_or(earliest, |at| at.max(earliest)) + self.time_for(bytes);
            *empty_at.insert(until)
        };
        sleep_until(until).await;
    }

    /// The most bytes that should pass at once: more would come as bursts with long silence between them.
    pub(super) fn piece(&self) -> usize {
        let piece = u128::from(self.bytes_per_second.get()) * BURST.as_millis() / 1000;
        usize::try_from(piece).unwrap_or(usize::MAX).max(1)
    }

    fn time_for(&self, bytes: usize) -> Duration {
        let nanoseconds = bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_second.get());
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(bytes_per_second: u64) -> Rate {
        Rate::new(NonZeroU64::new(bytes_per_second).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn all_connections_together_keep_the_limit() {
        let (rate, start) = (rate(1000), Instant::now());
        let connection = || async {
            for _ in 0..10 {
                rate.pass(50).await;
            }
        };
        tokio::join!(connection(), connection(), connection(), connection());
        // 2000 bytes, of which a tenth of a second's were saved up.
        let taken = start.elapsed().as_millis();
        assert!((1900..=1910).contains(&taken), "{taken} ms");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_not_made_up_for() {
        let rate = rate(1000);
        rate.pass(1000).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        rate.pass(1000).await;
        assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    }

    #[test]
    fn a_slow_limit_has_small_pieces() {
        assert_eq!([1, 10_000, 1 << 30].map(|limit| rate(limit).piece()), [1, 1000, 107_374_182]);
    }
}
