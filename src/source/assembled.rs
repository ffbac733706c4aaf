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

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    /// A safetensors file with one tensor of a byte.
    fn weights(tensor: &str, metadata: &str) -> Vec<u8> {
        let header = format!(r#"{{{metadata}"{tensor}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), b"7"].concat()
    }

    fn files(place: &TempDir, files: &[(&str, &[u8])]) -> Vec<NamedFile> {
        let write = |(at, (name, bytes)): (usize, &(&str, &[u8]))| {
            let path = place.path().join(format!("{}-{at}", files.len()));
            fs::write(&path, bytes).unwrap();
            NamedFile { name: (*name).to_owned(), path }
        };
        files.iter().enumerate().map(write).collect()
    }

    #[test]
    fn the_names_are_those_that_are_told() {
        let place = TempDir::new().unwrap();
        let (a, b) = (weights("a", ""), weights("b", r#""__metadata__":null,"#));
        let weights = files(&place, &[("one", &a), ("../two", &b)]);
        let sidecars = files(
            &place,
            &[
                ("tokenizer.json", b"{}"),
                ("config.json", br#"{"model_type":"x"}"#),
                ("../up.json", b"{}"),
                ("draft/config.json", b"{}"),
                (".hidden.json", b"{}"),
                ("README.md", b""),
                ("a\n.json", b"{}"),
            ],
        );
        let checkpoint = Checkpoint::assemble(&weights, &sidecars, || Ok(())).unwrap();
        assert_eq!(checkpoint.config()["model_type"], "x");
        let kept: Vec<&str> = checkpoint.sidecars().iter().map(|sidecar| &*sidecar.name).collect();
        assert_eq!(kept, ["config.json", "tokenizer.json"]);
        assert_eq!(checkpoint.notes().len(), 5, "{:?}", checkpoint.notes());
        assert_eq!((checkpoint.shard_of("a"), checkpoint.shard_of("b")), (Some("one"), Some("../two")));
        let mut byte = [0];
        checkpoint.read_at(&checkpoint.tensors()["b"], 0, &mut byte).unwrap();
        assert_eq!(byte, *b"7");
        assert_eq!(checkpoint.read_sidecar("tokenizer.json").unwrap(), b"{}");
    }

    #[test]
    fn two_files_of_one_name_and_two_tensors_of_one_name_are_refused() {
        let place = TempDir::new().unwrap();
        let (one, twice) = (weights("a", ""), files(&place, &[("config.json", b"{}"), ("config.json", b"{}")]));
        let weights = files(&place, &[("x", &one)]);
        let refused = |weights: &[NamedFile], sidecars: &[NamedFile]| {
            Checkpoint::assemble(weights, sidecars, || Ok(())).unwrap_err().to_string()
        };
        assert_eq!(refused(&weights, &twice), "The file `config.json` is there twice");
        let both = [weights[0].clone(), NamedFile { name: "y".to_owned(), ..weights[0].clone() }];
        assert_eq!(refused(&both, &twice[..1]), "Tensor `a` is in two shards, `x` and `y`");
        assert_eq!(refused(&weights, &[]), "`config.json` is missing");
        assert_eq!(refused(&[], &twice[..1]), "The checkpoint has no tensors");
    }

    #[test]
    fn nothing_is_used_before_it_is_verified_nor_when_it_was_changed_since() {
        let place = TempDir::new().unwrap();
        let config = files(&place, &[("config.json", b"{}")]);
        let weights = files(&place, &[("x", b"not a header"), ("y", b""), ("z", &weights("a", ""))]);
        let verdict = Checkpoint::assemble(&weights, &config, || Err(Error::input("other bytes"))).unwrap_err();
        assert_eq!(verdict.to_string(), "other bytes");
        let replace = || {
            let (at, aside) = (&weights[2].path, place.path().join("aside"));
            fs::copy(at, &aside).unwrap();
            fs::rename(aside, at).unwrap();
            Ok(())
        };
        let error = Checkpoint::assemble(&weights[2..], &config, replace).unwrap_err();
        assert!(error.to_string().ends_with("was changed while it was read"), "{error}");
    }
}
