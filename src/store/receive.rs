//! A transfer into the store: what is missing of some content is asked for, as several ranges at once where the
//! source has them and there is much of it, and written by one thread in the order in which it comes.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::Store;
use super::partial::{Partial, SAVE_AFTER, Take};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Descriptor;
use crate::storage::{Body, ByteStream, Pushed, Reading};

/// How many chunks may wait to be written; what bounds the memory of a transfer.
const WAITING: usize = 8;
/// Content of this size is worth several requests.
const LARGE: u64 = 64 << 20;
/// The shortest and the longest range that is asked for when there are several. Those behind the first wait in
/// the page cache until it is there and their turn to be hashed comes.
const RANGES: (u64, u64) = (16 << 20, 64 << 20);
/// How many ranges each of the streams should get, so that a slow one is made up for by the others.
const TURNS: u64 = 4;
/// The waits before another look at content that somebody else is bringing.
const LOOKS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Bytes and the offset of the first, or the end of the transfer.
type Arrival = Option<(u64, Bytes)>;

/// How the bytes that came were written.
enum Written {
    /// They are the content, and it has its name.
    Stored,
    /// They were wrong, with those of an earlier transfer among them, and are gone.
    Stale(Box<Partial>),
    /// They are not all, and wait for the others.
    Unfinished(Box<Partial>),
}

impl Store {
    /// Brings what is missing of `expected` from `body`. When another process is at it, that one is waited for.
    pub(super) async fn receive(&self, expected: &Descriptor, body: &dyn Body) -> Result<Pushed> {
        let Some(mut partial) = self.take_in_turn(expected).await? else { return Ok(Pushed::AlreadyPresent) };
        // A second time only for content that an earlier transfer spoiled; the second begins with nothing.
        while let Some(emptied) = self.fill(partial, expected, body).await? {
            partial = emptied;
        }
        Ok(Pushed::Stored)
    }

    /// `None` when the content is there, by now.
    async fn take_in_turn(&self, expected: &Descriptor) -> Result<Option<Box<Partial>>> {
        let mut pause = LOOKS.0;
        loop {
            let wanted = expected.clone();
            match self.blocking(move |store| store.take_partial(&wanted)).await? {
                Take::Present => return Ok(None),
                Take::Partial(partial) => return Ok(Some(partial)),
                Take::Elsewhere => sleep(pause).await,
            }
            pause = LOOKS.1.min(pause * 2);
        }
    }

    /// Brings all that is missing, and gives the content its name; or gives back what was wrong for another
    /// reason than `body`, without its bytes.
    async fn fill(
        &self,
        partial: Box<Partial>,
        expected: &Descriptor,
        body: &dyn Body,
    ) -> Result<Option<Box<Partial>>> {
        let missing = partial.missing();
        let (sender, arriving) = mpsc::channel(WAITING);
        let write = self.blocking(move |store| store.write(partial, arriving));
        let send = async move {
            let arrivals = Arrivals { expected, body, sender };
            arrivals.bring(missing).await?;
            arrivals.send(None).await;
            Ok(())
        };
        match tokio::join!(send, write) {
            (Ok(()), Ok(Written::Stored)) => Ok(None),
            (Ok(()), Ok(Written::Stale(partial))) => Ok(Some(partial)),
            (Err(cause), Ok(Written::Unfinished(mut partial))) if cause.kind() == ErrorKind::Corrupt => {
                self.blocking(move |_| {
                    partial.discard();
                    Ok(())
                })
                .await?;
                Err(cause)
            }
            (Err(cause), _) | (Ok(()), Err(cause)) => Err(cause),
            (Ok(()), Ok(Written::Unfinished(_))) => {
                Err(Error::new(ErrorKind::Unexpected, format!("The transfer of `{}` was given up", expected.digest)))
            }
        }
    }

    /// Writes what arrives. When the sender is gone without having said that this was all, the transfer was
    /// given up; what has come by then is kept.
    fn write(&self, mut partial: Box<Partial>, mut arriving: mpsc::Receiver<Arrival>) -> Result<Written> {
        let runtime = Handle::current();
        loop {
            match runtime.block_on(timeout(SAVE_AFTER, arriving.recv())) {
                Ok(Some(Some((offset, bytes)))) => partial.write(offset, &bytes)?,
                Ok(Some(None)) => {
                    return Ok(self.complete(partial)?.map_or(Written::Stored, Written::Stale));
                }
                Ok(None) => {
                    partial.save()?;
                    return Ok(Written::Unfinished(partial));
                }
                // A line that fell silent may be one that never speaks again.
                Err(_) => partial.save()?,
            }
        }
    }
}

/// The streams of one transfer.
struct Arrivals<'a> {
    expected: &'a Descriptor,
    body: &'a dyn Body,
    sender: mpsc::Sender<Arrival>,
}

impl Arrivals<'_> {
    /// Sends on all bytes of `missing`.
    async fn bring(&self, missing: Vec<Range<u64>>) -> Result<()> {
        let mut ranges = divided(missing, self.expected.size, self.body.reading()).into_iter();
        let Some(first) = ranges.next() else { return Ok(()) };
        // How the source answers it tells what it can do.
        let opened = self.body.open(first.clone()).await?;
        let streams = match self.body.reading() {
            Reading::Anywhere(streams) => streams,
            Reading::InOrder if first.end == self.expected.size => 1,
            Reading::InOrder => {
                // All that is behind comes along.
                drop(opened);
                let rest = first.start..self.expected.size;
                let opened = self.body.open(rest.clone()).await?;
                return self.forward(rest, opened).await;
            }
        };
        let first: BoxFuture<'_, Result<()>> = self.forward(first, opened).boxed();
        let others = ranges.map(|range| {
            async move {
                let opened = self.body.open(range.clone()).await?;
                self.forward(range, opened).await
            }
            .boxed()
        });
        let all: Vec<_> = std::iter::once(first).chain(others).collect();
        stream::iter(all).buffer_unordered(streams.max(1)).try_collect().await
    }

    /// Sends on what `opened` has, which are the bytes of `range`.
    async fn forward(&self, range: Range<u64>, mut opened: ByteStream) -> Result<()> {
        let corrupt =
            |what| Error::new(ErrorKind::Corrupt, format!("The content of `{}` {what}", self.expected.digest));
        let mut position = range.start;
        while let Some(bytes) = opened.try_next().await? {
            let offset = position;
            position += bytes.len() as u64;
            if position > range.end {
                return Err(corrupt(format!("has more bytes than the {} up to its end", range.end)));
            }
            if !self.send(Some((offset, bytes))).await {
                return Ok(());
            }
        }
        if position < range.end {
            return Err(corrupt(format!("ends after {position} bytes, before {}", range.end)));
        }
        Ok(())
    }

    /// Whether there is somebody who writes. One who is gone has failed, and says why.
    async fn send(&self, arrival: Arrival) -> bool {
        self.sender.send(arrival).await.is_ok()
    }
}

/// How many ranges there are at most, about: a manifest may claim any size.
const MOST: u64 = 10_000;

/// The ranges to ask for, of content of `size` bytes.
fn divided(missing: Vec<Range<u64>>, size: u64, reading: Reading) -> Vec<Range<u64>> {
    let longest = match reading {
        Reading::InOrder => {
            return missing.first().map(|first| first.start..size).into_iter().collect();
        }
        Reading::Anywhere(streams) if streams > 1 && size >= LARGE => {
            let bytes: u64 = missing.iter().map(|range| range.end - range.start).sum();
            (bytes / (streams as u64 * TURNS)).clamp(RANGES.0, RANGES.1).max(bytes / MOST)
        }
        Reading::Anywhere(_) => size.max(1),
    };
    let split = |range: Range<u64>| {
        let starts = range.clone().step_by(usize::try_from(longest).unwrap_or(usize::MAX));
        starts.map(move |start| start..range.end.min(start.saturating_add(longest)))
    };
    missing.into_iter().flat_map(split).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Coverage;

    #[test]
    fn a_size_that_no_disk_has_is_no_reason_for_as_many_ranges() {
        for size in [1 << 63, u64::MAX] {
            let ranges = divided(std::iter::once(0..size).collect(), size, Reading::Anywhere(4));
            assert!((1..=10_001).contains(&ranges.len()), "{}", ranges.len());
            assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, size));
        }
    }

    #[test]
    fn only_much_that_can_be_had_at_once_is_divided() {
        const MIB: u64 = 1 << 20;
        let divide = |missing: &[Range<u64>], size, reading| {
            let ranges = divided(missing.to_vec(), size * MIB, reading);
            ranges.into_iter().map(|range| (range.start / MIB, range.end / MIB)).collect::<Vec<_>>()
        };
        let all = |size, reading| divide(&Coverage::new().holes(0..size * MIB), size, reading);
        assert_eq!(all(63, Reading::Anywhere(4)), [(0, 63)]);
        assert_eq!(all(65, Reading::Anywhere(4)), [(0, 16), (16, 32), (32, 48), (48, 64), (64, 65)]);
        assert_eq!(all(65, Reading::Anywhere(1)), [(0, 65)]);
        assert_eq!(all(65, Reading::InOrder), [(0, 65)]);
        assert_eq!(all(4096, Reading::Anywhere(4)).len(), 64);
        let holes = [MIB..2 * MIB, 5 * MIB..30 * MIB];
        assert_eq!(divide(&holes, 65, Reading::Anywhere(4)), [(1, 2), (5, 21), (21, 30)]);
        assert_eq!(divide(&holes, 63, Reading::Anywhere(4)), [(1, 2), (5, 30)]);
        assert_eq!(divide(&holes, 65, Reading::InOrder), [(1, 65)]);
        assert_eq!(divide(&[], 65, Reading::InOrder), []);
    }
}
