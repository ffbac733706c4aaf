//! A checkpoint whose files lie anywhere under any name, as the layers of a published model do. The caller
//! says which file is what, and answers for the bytes before one of them is used.

use std::path::{Path, PathBuf};

use super::files::Opened;
use super::{Checkpoint, directory, is_printable};
use crate::error::{Error, Result, quoted};

/// A file of a checkpoint, wherever it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// What the checkpoint calls it. Of weights this is only told; a sidecar keeps it.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

impl Checkpoint {
    /// Opens the checkpoint that these files make up: safetensors with any tensors in each, and the files
    /// beside them, of which those are kept that would be in a directory.
    ///
    /// `verify` is called when every file was looked at and before a byte of one is used. What is written
    /// to a file from then on is noticed by [`Checkpoint::check_unchanged`].
    ///
    /// # Errors
    /// That of `verify`; otherwise as [`Checkpoint::open`], and when two sidecars have one name.
    pub fn assemble(
        weights: &[NamedFile],
        sidecars: &[NamedFile],
        verify: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let (mut kept, left): (Vec<&NamedFile>, Vec<&NamedFile>) =
            sidecars.iter().partition(|file| is_file_name(&file.name) && directory::is_sidecar(&file.name));
        kept.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        if let Some(pair) = kept.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(Error::input(format!("The file {} is there twice", quoted(&pair[0].name))));
        }
        let look = |file: &NamedFile| Opened::at(file.path.clone(), &file.name);
        let shards: Vec<Opened> = weights.iter().map(look).collect::<Result<_>>()?;
        let kept: Vec<Opened> = kept.into_iter().map(look).collect::<Result<_>>()?;
        verify()?;
        let notes = left.iter().map(|file| format!("{} is not used", quoted(&file.name)));
        let mut checkpoint = Self::new(PathBuf::new(), notes.collect());
        kept.into_iter().try_for_each(|file| checkpoint.add_sidecar(file))?;
        checkpoint.config = checkpoint.read_config()?;
        shards.into_iter().try_for_each(|file| checkpoint.add_shard(file))?;
        checkpoint.require_tensors()?;
        Ok(checkpoint)
    }
}

/// Whether this is the name of a file and no way to one.
fn is_file_name(name: &str) -> bool {
    is_printable(name) && !name.starts_with('.') && Path::new(name).file_name().is_some_and(|plain| plain == name)
}
