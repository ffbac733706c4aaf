//! Uploads that did not come to their end: a small file for each under `uploads/`, locked by whoever sends, so
//! that two processes never write into one session of a registry, and a kill loses nothing.
//!
//! A file is written in place, and not waited for: it is a hint, and half of one is none. Its address may
//! let in whoever reads it, so nobody else can.

use std::fs;
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::MetadataExt as _;

use super::Store;
use super::disk::Handle;
use crate::json;
use crate::oci::Digest;
use crate::storage::{Claim, Unfinished, Upload};

/// No record is longer, but for one that something else wrote.
const MAX_SIZE: u64 = 64 << 10;

impl Unfinished for Store {
    fn claim(&self, repository: &str, digest: &Digest) -> Option<Box<dyn Claim>> {
        let directory = self.layout.uploads().ok()?;
        let name = Digest::of(format!("{repository}@{digest}").as_bytes()).hex();
        let path = directory.join(name);
        let (record, _) = self.layout.disk().open_or_create(&path, 0o600).ok()?;
        let file = record.file();
        file.try_lock().ok()?;
        // Another may have removed it between the two.
        let is_still_there = fs::symlink_metadata(&path).ok()?.ino() == file.metadata().ok()?.ino();
        is_still_there.then(|| Box::new(Record { file: record, store: self.clone() }) as Box<dyn Claim>)
    }
}

/// A record, locked.
struct Record {
    file: Handle,
    /// Keeps gc away, which would remove the file under its lock.
    store: Store,
}

impl Record {
    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        self.file.set_length(0)?;
        self.file.write_at(text, 0)
    }
}

impl Claim for Record {
    fn read(&mut self) -> Option<Upload> {
        let mut text = Vec::new();
        let mut file = self.file.file();
        file.rewind().ok()?;
        file.take(MAX_SIZE).read_to_end(&mut text).ok()?;
        json::parse_as(&text).ok()
    }

    fn keep(&mut self, upload: &Upload) {
        // Where the disk is full, none is better than half of one.
        if self.write(&json::to_canonical(upload)).is_err() {
            self.forget();
        }
    }

    fn forget(&mut self) {
        let _ = self.file.set_length(0);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let _open = &self.store;
        if self.file.file().metadata().is_ok_and(|metadata| metadata.len() == 0) {
            let _ = self.file.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn upload(reached: u64) -> Upload {
        Upload { url: "https://registry.example/v2/a/blobs/uploads/1?_state=x".to_owned(), reached, shortest_chunk: 0 }
    }

    #[test]
    fn an_upload_is_known_to_the_next_run_and_to_nobody_else() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let digest = Digest::of(b"weights");
        let claim = || store.claim("registry.example/a", &digest);
        let mut first = claim().unwrap();
        assert_eq!(first.read(), None);
        first.keep(&upload(5));
        first.keep(&upload(70));
        assert!(claim().is_none(), "two have it");
        assert!(store.claim("registry.example/b", &digest).is_some(), "another repository's is another");
        let files: Vec<_> = fs::read_dir(root.path().join("uploads")).unwrap().flatten().collect();
        let modes: Vec<_> = files.iter().map(|file| file.metadata().unwrap().permissions().mode() & 0o777).collect();
        assert_eq!(modes, [0o600], "of which one was left without a record, and is gone");
        drop(first);
        let mut second = claim().unwrap();
        assert_eq!(second.read(), Some(upload(70)));
        second.forget();
        assert_eq!(second.read(), None);
        second.keep(&upload(9));
        drop(second);
        assert_eq!(claim().unwrap().read(), Some(upload(9)));
        let mut last = claim().unwrap();
        last.forget();
        drop(last);
        assert_eq!(fs::read_dir(root.path().join("uploads")).unwrap().count(), 0);
    }

    #[test]
    fn half_a_record_is_none() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let digest = Digest::of(b"weights");
        let mut claim = store.claim("registry.example/a", &digest).unwrap();
        claim.keep(&upload(70));
        let file = fs::read_dir(root.path().join("uploads")).unwrap().next().unwrap().unwrap().path();
        let whole = fs::read(&file).unwrap();
        for length in 0..whole.len() {
            fs::write(&file, &whole[..length]).unwrap();
            assert_eq!(claim.read(), None, "{length}");
        }
        fs::write(&file, [b"\x00\xff".as_slice(), &whole].concat()).unwrap();
        assert_eq!(claim.read(), None);
    }
}
