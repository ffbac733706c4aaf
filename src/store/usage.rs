//! What takes the space of a store: the content that names need, together and each alone, what nobody needs, and what is
//! kept besides. It looks at the sizes of files and reads no content but manifests.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use super::reserve::RESERVE;
use super::{Store, failed};
use crate::error::{ErrorKind, Result};
use crate::oci::{Descriptor, Digest};

/// How many files there are of something, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// The number of files.
    pub files: u64,
    /// Their sizes together.
    pub bytes: u64,
}

impl Space {
    pub(super) fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// What takes the space of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Each name, in their order.
    pub names: Vec<NameUsage>,
    /// The content that the names need, each once.
    pub needed: Space,
    /// The content that no name needs: what [`Store::gc`] removes. `None` when a manifest cannot be read, because what
    /// that needs is unknown.
    pub unneeded: Option<Space>,
    /// What imports, pulls and pushes left that are under way or did not come to their end.
    pub unfinished: Space,
    /// What was moved aside because it was damaged.
    pub quarantined: Space,
    /// What is kept for a full disk.
    pub reserved: Space,
    /// Everything else: the index, notes, stamps, what is known of registries.
    pub other: Space,
    /// All of it.
    pub total: Space,
}

/// What the model of one name takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameUsage {
    /// The name.
    pub name: String,
    /// Its manifest's digest.
    pub digest: Digest,
    /// `None` when a manifest cannot be read.
    pub bytes: Option<NameBytes>,
}

/// The bytes of a name's content that are in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameBytes {
    /// All of them.
    pub all: u64,
    /// Those that another name needs, too. The others are free when this name is gone and [`Store::gc`] has run.
    pub shared: u64,
}

impl NameBytes {
    /// What is free when the name is gone.
    pub fn freed(self) -> u64 {
        self.all - self.shared
    }
}

impl Store {
    /// Says what takes the space of the store.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when `index.json` is, [`ErrorKind::Store`] when a directory or a manifest cannot be read.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        let content = self.content(&mut |bytes| usage.other.add(bytes))?;
        let refs = self.refs()?;
        let mut needs: BTreeMap<Digest, Option<BTreeSet<Digest>>> = BTreeMap::new();
        let mut needed_by: BTreeMap<Digest, u64> = BTreeMap::new();
        for target in refs.values() {
            if let Entry::Vacant(vacant) = needs.entry(target.digest) {
                vacant.insert(self.needs_of(target)?);
            }
            for digest in needs[&target.digest].iter().flatten() {
                *needed_by.entry(*digest).or_default() += 1;
            }
        }
        for (name, target) in refs {
            let bytes = needs[&target.digest].as_ref().map(|needs| {
                let mut bytes = NameBytes::default();
                for (digest, size) in needs.iter().filter_map(|digest| content.get_key_value(digest)) {
                    bytes.all = bytes.all.saturating_add(*size);
                    bytes.shared = bytes.shared.saturating_add(if needed_by[digest] > 1 { *size } else { 0 });
                }
                bytes
            });
            usage.names.push(NameUsage { name, digest: target.digest, bytes });
        }
        let mut unneeded = Space::default();
        for (digest, bytes) in content {
            if needed_by.contains_key(&digest) { usage.needed.add(bytes) } else { unneeded.add(bytes) }
        }
        usage.unneeded = usage.names.iter().all(|name| name.bytes.is_some()).then_some(unneeded);

        for directory in [self.layout.ingest(), self.root().join("uploads")] {
            each_file(&directory, &mut |_, bytes| usage.unfinished.add(bytes))?;
        }
        each_file(&self.layout.quarantine(), &mut |_, bytes| usage.quarantined.add(bytes))?;
        each_file(self.root(), &mut |name, bytes| {
            if name == RESERVE { usage.reserved.add(bytes) } else { usage.other.add(bytes) }
        })?;
        for directory in [self.layout.notes(), self.root().join("registries"), self.root().join("stamps")] {
            each_file(&directory, &mut |_, bytes| usage.other.add(bytes))?;
        }
        for space in [usage.needed, unneeded, usage.unfinished, usage.quarantined, usage.reserved, usage.other] {
            usage.total.files += space.files;
            usage.total.bytes = usage.total.bytes.saturating_add(space.bytes);
        }
        Ok(usage)
    }

    /// The content of the store with the sizes of its files. `other` hears of files that are none.
    pub(super) fn content(&self, other: &mut dyn FnMut(u64)) -> Result<BTreeMap<Digest, u64>> {
        let mut content = BTreeMap::new();
        for directory in self.layout.blob_directories() {
            each_file(&directory, &mut |name, bytes| match Digest::from_hex(name) {
                Some(digest) => drop(content.insert(digest, bytes)),
                None => other(bytes),
            })?;
        }
        Ok(content)
    }

    /// What `target` and the manifests that it leads to need, themselves among it; `None` when one cannot be read.
    fn needs_of(&self, target: &Descriptor) -> Result<Option<BTreeSet<Digest>>> {
        let (mut needs, mut visited, mut left) = (BTreeSet::new(), BTreeSet::new(), vec![target.clone()]);
        while let Some(target) = left.pop() {
            if !visited.insert(target.digest) {
                continue;
            }
            let document = match self.document(&target) {
                Ok((document, _)) => document,
                Err(cause) if cause.kind() == ErrorKind::Store => return Err(cause),
                Err(_) => return Ok(None),
            };
            needs.insert(target.digest);
            needs.extend(document.blobs().map(|blob| blob.digest));
            left.extend_from_slice(document.manifests());
        }
        Ok(Some(needs))
    }
}

/// Calls `see` with the name and the size of each regular file in `directory`, which need not be there.
fn each_file(directory: &Path, see: &mut dyn FnMut(&str, u64)) -> Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(failed("read the directory", directory, cause)),
    };
    for entry in entries {
        let metadata = entry.and_then(|entry| Ok((entry.file_name(), entry.metadata()?)));
        match metadata {
            Ok((name, metadata)) if metadata.is_file() => see(&name.to_string_lossy(), metadata.len()),
            Ok(_) => {}
            // Somebody else is at work, too.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(failed("read the directory", directory, cause)),
        }
    }
    Ok(())
}
