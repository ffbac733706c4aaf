//! Doing one thing to many items on several threads. The results do not show how many there were.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::{Error, ErrorKind, Result};

/// Does `work` to every item, on `threads` threads that take the items in the order in which they stand; the
/// results come in that order too. After a failure no further item is begun; of several failures the one
/// that stands first is told.
pub(super) fn each<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let results = Mutex::new(Vec::with_capacity(items.len()));
    let take = || {
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return };
            let result = work(item);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            if let Ok(mut results) = results.lock() {
                results.push((index, result));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.clamp(1, items.len().max(1)) {
            scope.spawn(take);
        }
        take();
    });
    let mut results =
        results.into_inner().map_err(|_| Error::new(ErrorKind::Unexpected, "A worker thread panicked"))?;
    results.sort_unstable_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_stand_where_their_items_stood() {
        let items: Vec<u64> = (0..100).collect();
        for threads in [1, 2, 7, 1000] {
            assert_eq!(each(&items, threads, |item| Ok(item * 2)).unwrap(), (0..200).step_by(2).collect::<Vec<_>>());
        }
        assert!(each(&[] as &[u64], 3, |item| Ok(*item)).unwrap().is_empty());
    }

    #[test]
    fn a_failure_ends_the_work() {
        let begun = AtomicUsize::new(0);
        let items: Vec<u64> = (0..1000).collect();
        let error = each(&items, 1, |item| {
            begun.fetch_add(1, Ordering::Relaxed);
            if *item == 3 { Err(Error::input("three")) } else { Ok(()) }
        });
        assert_eq!(error.unwrap_err().to_string(), "three");
        assert_eq!(begun.into_inner(), 4);
    }
}
