//! Names: the entries of `index.json`, each a manifest descriptor annotated with the full reference.
//! The file is replaced as a whole under an exclusive lock, so that no update is lost.

use std::collections::BTreeMap;
use std::fs;

use super::durable::{replace, sync_directory};
use super::layout::INDEX_FILE;
use super::lock::Lock;
use super::reserve::is_full;
use super::{PATIENCE, Store, failed};
use crate::error::{Error, ErrorKind, Result};
use crate::json;
use crate::oci::{Descriptor, Index, MediaType, Reference};

impl Store {
    /// Every name in the store, and the manifest it points at.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when `index.json` is missing or not an index.
    pub fn refs(&self) -> Result<BTreeMap<String, Descriptor>> {
        let named = self.index()?.manifests.into_iter();
        Ok(named.filter_map(|mut entry| Some((entry.annotations.remove(Descriptor::REF_NAME)?, entry))).collect())
    }

    /// The manifest that `reference` names. A digest without a tag is found under any tag of the same
    /// repository; a digest beside a tag must be the one the tag points at.
    ///
    /// # Errors
    /// As [`Store::refs`].
    pub fn find(&self, reference: &Reference) -> Result<Option<Descriptor>> {
        let mut refs = self.refs()?;
        let admitted = |target: &Descriptor| reference.admits(&target.digest);
        if reference.tag().is_some() {
            return Ok(refs.remove(&name_of(reference)).filter(admitted));
        }
        let found = refs.into_iter().find(|(name, target)| admitted(target) && is_in_repository(name, reference));
        Ok(found.map(|(_, target)| target))
    }

    /// Points `reference` at the stored manifest `target`, atomically and durably.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the manifest is not stored, [`ErrorKind::Usage`] when `reference`
    /// pins another digest, [`ErrorKind::Store`] when the index cannot be written.
    pub fn set_ref(&self, reference: &Reference, target: &Descriptor) -> Result<()> {
        self.set_ref_if(reference, target, || Ok(()))
    }

    /// As [`Store::set_ref`], when `holds` says so while nobody removes anything.
    pub(super) fn set_ref_if(
        &self,
        reference: &Reference,
        target: &Descriptor,
        holds: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        reference.require_agreement(&target.digest)?;
        if !self.has_size(target)? {
            let message = format!("The manifest `{}` is not in the store", target.digest);
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        self.sync_blobs()?;
        let name = name_of(reference);
        let mut entry = Descriptor { name: None, ..target.clone() };
        entry.annotations.insert(Descriptor::REF_NAME.to_owned(), name.clone());
        self.update_index(|index| {
            index.manifests.retain(|old| ref_name(old) != Some(&name));
            index.manifests.push(entry);
            holds().map(|()| true)
        })
    }

    /// Waits until the names of all content are on disk. What was found present may have got its own a moment ago, from
    /// a process that died before its fsync.
    pub(super) fn sync_blobs(&self) -> Result<()> {
        self.layout.blob_directories().try_for_each(|directory| sync_directory(self.layout.disk(), &directory))
    }

    /// Removes the name `reference` and gives the manifest it pointed at; its content stays until
    /// [`Store::gc`]. A pinned digest must be the one the name points at.
    ///
    /// # Errors
    /// As [`Store::refs`], and [`ErrorKind::Store`] when the index cannot be written.
    pub fn remove_ref(&self, reference: &Reference) -> Result<Option<Descriptor>> {
        let name = name_of(reference);
        let meant = |entry: &Descriptor| ref_name(entry) == Some(&name) && reference.admits(&entry.digest);
        let mut removed = Vec::new();
        self.update_index(|index| {
            removed = index.manifests.extract_if(.., |old| meant(old)).collect();
            Ok(!removed.is_empty())
        })?;
        Ok(removed.pop().map(|mut entry| {
            entry.annotations.remove(Descriptor::REF_NAME);
            entry
        }))
    }

    /// Removes every name that `reference` means: with a digest alone all names of that manifest in its
    /// repository, else as [`Store::remove_ref`]. Says whether there was one.
    ///
    /// # Errors
    /// As [`Store::remove_ref`].
    pub fn remove_refs(&self, reference: &Reference) -> Result<bool> {
        if reference.tag().is_some() {
            return self.remove_ref(reference).map(|removed| removed.is_some());
        }
        let mut found = false;
        self.update_index(|index| {
            index.manifests.retain(|entry| {
                let meant = reference.admits(&entry.digest)
                    && ref_name(entry).is_some_and(|name| is_in_repository(name, reference));
                found |= meant;
                !meant
            });
            Ok(found)
        })?;
        Ok(found)
    }

    /// The index as it is on disk. One that is missing is damage, not an empty store: gc would sweep
    /// everything.
    pub(super) fn index(&self) -> Result<Index> {
        let path = self.layout.index();
        let text = fs::read(&path).map_err(|cause| failed("read", &path, cause))?;
        let corrupt = || {
            Error::new(ErrorKind::Corrupt, format!("Not an index of manifests: `{}`", path.display()))
                .hint("restore the file; the content in `blobs` is still there")
        };
        let index: Index = json::parse_as(&text).map_err(|cause| corrupt().caused_by(cause))?;
        if index.schema_version != 2 || index.media_type != MediaType::OCI_INDEX {
            return Err(corrupt());
        }
        Ok(index)
    }

    /// Applies `change` to the index, and writes it when that says so.
    fn update_index(&self, change: impl FnOnce(&mut Index) -> Result<bool>) -> Result<()> {
        let _lock = Lock::exclusive(self.layout.disk(), &self.layout.refs_lock(), PATIENCE)?;
        let mut index = self.index()?;
        let before = index.manifests.len();
        if !change(&mut index)? {
            return Ok(());
        }
        index.manifests.sort_by(|left, right| ref_name(left).cmp(&ref_name(right)));
        let text = json::to_canonical(&index);
        let write = || replace(self.layout.disk(), &self.layout.ingest(), self.root(), INDEX_FILE, &text);
        match write() {
            // Without names that go, no room can be made.
            Err(cause) if index.manifests.len() < before && is_full(&cause) && self.layout.spend_reserve() => write(),
            outcome => outcome,
        }
    }
}

fn is_in_repository(name: &str, reference: &Reference) -> bool {
    name.parse::<Reference>().is_ok_and(|named| (named.host(), named.path()) == (reference.host(), reference.path()))
}

fn ref_name(entry: &Descriptor) -> Option<&String> {
    entry.annotations.get(Descriptor::REF_NAME)
}

/// The name under which `reference` is kept: without the digest, unless that is all it has.
fn name_of(reference: &Reference) -> String {
    let full = reference.to_string();
    match (reference.tag(), full.split_once('@')) {
        (Some(_), Some((name, _))) => name.to_owned(),
        _ => full,
    }
}
