//! A disk on which there is no space left: what it takes to make room still works, and what cannot fit is refused before
//! it begins.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln::store::{Disk, Operation, Watch};

use super::*;

/// A disk of so many bytes, as far as the sizes of files tell.
#[derive(Debug)]
struct Small {
    size: u64,
    used: AtomicU64,
}

impl Small {
    fn new(size: u64) -> Arc<Self> {
        Arc::new(Self { size, used: AtomicU64::new(0) })
    }

    fn left(&self) -> u64 {
        self.size - self.used.load(Ordering::Relaxed)
    }

    /// Takes all that is left but `bytes`.
    fn fill_up_to(&self, bytes: u64) {
        self.used.store(self.size - bytes, Ordering::Relaxed);
    }
}

impl Watch for Small {
    fn around(&self, operation: &Operation<'_>, perform: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let size_of = |path: &Path| path.symlink_metadata().map_or(0, |metadata| metadata.len());
        let (path, length) = match *operation {
            Operation::Write(path, offset, bytes) => (path, size_of(path).max(offset + bytes.len() as u64)),
            Operation::Allocate(path, length) | Operation::SetLength(path, length) => (path, length),
            Operation::Rename(_, path) | Operation::Remove(path) => (path, 0),
            _ => return perform(),
        };
        let before = size_of(path);
        if length.saturating_sub(before) > self.left() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        perform()?;
        self.used.fetch_add(length, Ordering::Relaxed);
        self.used.fetch_sub(before, Ordering::Relaxed);
        Ok(())
    }

    fn available(&self) -> Option<u64> {
        Some(self.left())
    }
}

const MIB: u64 = 1 << 20;

fn small(size: u64) -> (TempDir, Arc<Small>, Disk) {
    let disk = Small::new(size);
    (tempfile::tempdir().unwrap(), disk.clone(), Disk::watched(disk))
}

#[test]
fn on_a_full_disk_names_and_content_can_be_removed() {
    let (directory, small, disk) = small(20 * MIB);
    let root = directory.path().join("store");
    let store = Store::open_on(disk.clone(), &root).unwrap();
    assert!(small.left() < 12 * MIB, "8 MiB are reserved");
    import(&store, "a", &[&[1; 300_000]]);
    import(&store, "b", &[&[2; 300_000]]);
    small.fill_up_to(0);
    let error = store.set_ref(&name("c"), &store.find(&name("a")).unwrap().unwrap()).unwrap_err();
    assert!(error.hint_text().unwrap().contains("kiln gc"), "{error}");
    assert_eq!(store.refs().unwrap().len(), 2, "nothing but a removal takes the reserve");
    assert_eq!(fs::metadata(root.join("reserve")).unwrap().len(), 8 * MIB);

    store.remove_ref(&name("a")).unwrap().unwrap();
    assert_eq!(store.refs().unwrap().into_keys().collect::<Vec<_>>(), ["b:latest"]);
    drop(store);
    // Somebody else takes what came free.
    small.fill_up_to(0);
    assert_eq!(Store::gc_on(disk.clone(), &root, false).unwrap().blobs.len(), 2);
    assert!(!root.join("reserve").exists(), "there is no space for it");
    small.fill_up_to(9 * MIB);
    Store::gc_on(disk.clone(), &root, false).unwrap();
    assert_eq!(fs::metadata(root.join("reserve")).unwrap().len(), 8 * MIB, "made again when there is");
    assert!(small.left() < 2 * MIB);
    let store = Store::open_on(disk, &root).unwrap();
    for (_, target) in store.refs().unwrap() {
        assert_eq!(store.check(&target, &Progress::silent()).unwrap(), Ok(()));
    }
}

#[test]
fn without_a_reserve_a_removal_fails_and_changes_nothing() {
    let (directory, small, disk) = small(20 * MIB);
    let root = directory.path().join("store");
    let store = Store::open_on(disk, &root).unwrap();
    import(&store, "a", &[b"layer"]);
    fs::remove_file(root.join("reserve")).unwrap();
    small.fill_up_to(0);
    let error = store.remove_ref(&name("a")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Store);
    assert_eq!(store.refs().unwrap().len(), 1);
}

#[test]
fn what_cannot_get_space_is_refused_before_it_begins() {
    let (directory, small, disk) = small(20 * MIB);
    let store = Store::open_on(disk, &directory.path().join("store")).unwrap();
    import(&store, "a", &[&[1; 300_000], &[2; 300_000]]);
    small.fill_up_to(400_000);
    store.require_space([300_000, 100_000]).unwrap();
    store.require_space([300_000, 300_000, 300_000]).unwrap_or_else(|error| panic!("two may be there: {error}"));
    for sizes in [vec![400_001], vec![300_000; 4 + 8 * MIB as usize / 300_000], vec![u64::MAX, u64::MAX]] {
        let error = store.require_space(sizes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Store);
        assert!(error.to_string().starts_with("There are 400000 bytes left for the store"), "{error}");
        assert!(error.hint_text().unwrap().contains("kiln gc"), "{error}");
    }
}
