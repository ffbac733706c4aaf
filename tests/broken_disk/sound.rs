//! What has to be true of a store after a crash, whenever that came.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use kiln::json;
use kiln::oci::{Algorithm, Digest, Manifest};
use kiln::store::{Disk, Operation, Store, Watch};

use super::record::{Promise, Step};

/// What was promised, and what is under way and may be so or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Promised {
    /// What each name may point at.
    names: BTreeMap<String, BTreeSet<Option<Digest>>>,
    contents: BTreeSet<Digest>,
    notes: BTreeSet<Digest>,
    /// What may have other bytes.
    rotten: BTreeSet<Digest>,
    /// What is nowhere but in quarantine.
    aside: BTreeSet<Digest>,
    quarantined: BTreeSet<Digest>,
    /// Whether content was removed, in no order.
    removed: bool,
}

impl Promised {
    pub(crate) fn hear(&mut self, step: &Step) {
        match step {
            Step::Begun(Promise::Name(name, target)) => {
                self.names.entry(name.clone()).or_insert_with(|| BTreeSet::from([None])).insert(*target);
            }
            Step::Begun(Promise::Unneeded) => {
                (self.contents, self.notes, self.removed) = (BTreeSet::new(), BTreeSet::new(), true);
            }
            Step::Begun(Promise::Rotten(digest)) => drop(self.rotten.insert(*digest)),
            Step::Begun(Promise::Mended(digest)) => {
                self.aside.remove(digest);
                self.quarantined.remove(digest);
            }
            Step::Kept(Promise::Name(name, target)) => {
                self.names.insert(name.clone(), BTreeSet::from([*target]));
            }
            Step::Kept(Promise::Content(digest)) => drop(self.contents.insert(*digest)),
            Step::Kept(Promise::Note(digest)) => drop(self.notes.insert(*digest)),
            Step::Kept(Promise::Aside(digest)) => {
                self.aside.insert(*digest);
                self.quarantined.insert(*digest);
            }
            Step::Kept(Promise::Mended(digest)) => drop(self.rotten.remove(digest)),
            _ => {}
        }
    }

    /// Says what is wrong with the store at `root`. It is swept in the end.
    pub(crate) fn check(&self, root: &Path) -> Result<(), String> {
        let store = Store::open_on(unreserved(), root)
            .map_err(|error| format!("the store does not open: {}", error.chain()))?;
        let refs = store.refs().map_err(|error| format!("there are no names: {}", error.chain()))?;
        for (name, allowed) in &self.names {
            let actual = refs.get(name).map(|target| target.digest);
            if !allowed.contains(&actual) {
                return Err(format!("`{name}` points at {actual:?}, not at one of {allowed:?}"));
            }
        }
        if let Some(name) = refs.keys().find(|name| !self.names.contains_key(*name)) {
            return Err(format!("nobody gave the name `{name}`"));
        }
        let sound = self.sound(root)?;
        let has = |digest: &Digest| sound.contains_key(digest) || self.rotten.contains(digest);
        let mut needed = BTreeSet::new();
        for (name, target) in &refs {
            let bytes = sound.get(&target.digest).ok_or_else(|| format!("`{name}` has no manifest"))?;
            needed.insert(target.digest);
            needed.extend(Manifest::parse(bytes).map_err(|error| error.chain())?.blobs().map(|blob| blob.digest));
        }
        for bytes in sound.values().filter(|_| !self.removed) {
            needed.extend(Manifest::parse(bytes).iter().flat_map(Manifest::blobs).map(|blob| blob.digest));
        }
        needed.extend(&self.contents);
        if let Some(missing) = needed.iter().find(|digest| !has(digest)) {
            return Err(format!("`{missing}` is needed and not there"));
        }
        for digest in &self.notes {
            if !matches!(store.note(digest), Ok(Some(_))) {
                return Err(format!("there is no note of `{digest}`"));
            }
        }
        for digest in &self.aside {
            if store.blob_path(digest).exists() {
                return Err(format!("`{digest}` is back from quarantine"));
            }
        }
        for digest in &self.quarantined {
            let path = root.join("quarantine").join(format!("{}.0", digest.hex()));
            if fs::read(path).map_or(true, |bytes| bytes.is_empty() || digest.algorithm().digest(&bytes) == *digest) {
                return Err(format!("what was wrong with `{digest}` cannot be seen"));
            }
        }
        self.whole(root)?;
        drop(store);
        self.swept(root, &refs.values().map(|target| target.digest).collect())
    }

    /// The content of the store; none of it is wrong.
    fn sound(&self, root: &Path) -> Result<BTreeMap<Digest, Vec<u8>>, String> {
        let mut sound = BTreeMap::new();
        for algorithm in Algorithm::ALL {
            for (name, bytes) in files(&root.join("blobs").join(algorithm.as_str())) {
                let digest = Digest::from_hex(&name).ok_or_else(|| format!("no content has the name `{name}`"))?;
                if algorithm.digest(&bytes) == digest {
                    sound.insert(digest, bytes);
                } else if !self.rotten.contains(&digest) {
                    return Err(format!("`{digest}` has other bytes, {} of them", bytes.len()));
                }
            }
        }
        Ok(sound)
    }

    /// Nothing but what waits in `ingest/` or is a hint is half written.
    fn whole(&self, root: &Path) -> Result<(), String> {
        for folder in ["", "notes", "registries"] {
            for (name, bytes) in files(&root.join(folder)) {
                json::parse(&bytes).map_err(|error| format!("`{folder}/{name}` is half written: {error}"))?;
            }
        }
        Ok(())
    }

    /// A collection leaves all that is named, and nothing unfinished.
    fn swept(&self, root: &Path, manifests: &BTreeSet<Digest>) -> Result<(), String> {
        Store::gc_on(unreserved(), root, false).map_err(|error| format!("gc fails: {}", error.chain()))?;
        let left = self.sound(root)?;
        for manifest in manifests {
            let bytes = left.get(manifest).ok_or_else(|| format!("gc removed the manifest `{manifest}`"))?;
            for blob in Manifest::parse(bytes).map_err(|error| error.chain())?.blobs() {
                if !left.contains_key(&blob.digest) && !self.rotten.contains(&blob.digest) {
                    return Err(format!("gc removed `{}`", blob.digest));
                }
            }
        }
        match files(&root.join("ingest")).first() {
            Some((name, _)) => Err(format!("gc left `ingest/{name}`")),
            None => Ok(()),
        }
    }
}

/// A disk on which nothing can be reserved: 8 MiB for each of the states would take longer than all the rest.
fn unreserved() -> Disk {
    #[derive(Debug)]
    struct Unreserved;
    impl Watch for Unreserved {
        fn around(&self, operation: &Operation<'_>, perform: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
            if matches!(operation, Operation::Allocate(..)) {
                Err(io::ErrorKind::Unsupported.into())
            } else {
                perform()
            }
        }
    }
    Disk::watched(Arc::new(Unreserved))
}

/// The files in `directory`, which may not be there, with their bytes; without the reserve, in which there are none.
fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file() && !path.ends_with("reserve"));
    paths.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())).collect()
}
