//! Finding the files of a checkpoint: the directory itself, inside a Hugging Face cache when that is
//! what was named, and in it the weights and the sidecars. Only names are judged here, plus whether
//! a link leads out of the checkpoint; contents are left to the parsers.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::{hub, is_printable};
use crate::error::{Error, ErrorKind, Result, quoted};

/// The shard index's name.
pub(super) const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// The layer that kiln adds, which other clients lay out as a file.
const LOCK: &str = "kiln.lock";
/// How many files a checkpoint may have that is kept whole.
const MAX_FILES: usize = 10_000;

/// What people name instead of a checkpoint: how its files are called, what it is, what to do.
type Instead = (fn(&str) -> bool, &'static str, &'static str);
const INSTEAD: [Instead; 7] = [
    (
        |name| name.starts_with("adapter_") && is_weights(name),
        "a LoRA adapter without the model it adapts",
        "merge the adapter into its base model first",
    ),
    (
        |name| name.starts_with("consolidated") && is_weights(name),
        "weights in Mistral's own naming",
        "use the checkpoint that has `model*.safetensors`",
    ),
    (
        |name| name == "model_index.json",
        "the description of a diffusion pipeline",
        "name the folder of one of its models",
    ),
    (
        is_weights,
        "weights that are not called `model*.safetensors`",
        "add the index of the shards, or name the weights `model.safetensors`",
    ),
    (
        |name| ends_with(name, &[".gguf"]),
        "a GGUF file",
        "use the original safetensors checkpoint: a GGUF file is quantized already",
    ),
    (
        |name| ends_with(name, &[".bin", ".pt", ".pth", ".ckpt", ".pkl"]),
        "a pickle, which runs code when it is read",
        "convert it to safetensors first, or use a revision that has them",
    ),
    (
        |name| ends_with(name, &[".h5", ".msgpack", ".onnx", ".npz", ".tflite"]),
        "weights of another framework",
        "use a revision of the model that has safetensors",
    ),
];

/// The names in a checkpoint's directory, hidden ones left out.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) files: BTreeSet<String>,
    pub(super) folders: BTreeSet<String>,
    pub(super) unusable: Vec<String>,
}

impl Listing {
    /// The files in `root` and in its folders, as paths below it: what a checkpoint has that is no trace of the tools
    /// that fetched or ran it, which are hidden, or called `__pycache__`. Folders that are links are not entered.
    ///
    /// # Errors
    /// [`ErrorKind::Input`]: a folder cannot be read, a name cannot be used, too many files.
    pub(super) fn tree(root: &Path) -> Result<BTreeSet<String>> {
        let mut files = BTreeSet::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            let listing = Self::of(&root.join(&folder))?;
            if let Some(name) = listing.unusable.first() {
                return Err(Error::input(format!("{name} is not a usable file name"))
                    .hint("rename it, or move it out of the directory"));
            }
            files.extend(listing.files.iter().map(|name| format!("{folder}{name}")));
            if files.len() > MAX_FILES {
                return Err(Error::input(format!("`{}` has more than {MAX_FILES} files", root.display())));
            }
            let inner = listing.folders.iter().filter(|name| *name != "__pycache__");
            let inner = inner.filter(|name| !root.join(&folder).join(name).is_symlink());
            folders.extend(inner.map(|name| format!("{folder}{name}/")));
        }
        // What kiln keeps beside a model is none of its files.
        files.remove(LOCK);
        Ok(files)
    }

    /// Lists `root`.
    ///
    /// # Errors
    /// [`ErrorKind::Input`]: the directory cannot be read.
    pub(super) fn of(root: &Path) -> Result<Self> {
        let failed = |e| Error::io(ErrorKind::Input, "list", root, e);
        let mut listing = Self::default();
        for entry in root.read_dir().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| is_printable(name)) else {
                listing.unusable.push(quoted(&name.to_string_lossy()));
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            // A link that leads nowhere counts as a file, so that opening it tells why.
            let folder = entry.path().metadata().is_ok_and(|metadata| metadata.is_dir());
            if folder { &mut listing.folders } else { &mut listing.files }.insert(name.to_owned());
        }
        listing.unusable.sort();
        Ok(listing)
    }

    /// The files in `root` that hold the weights when there is no index.
    ///
    /// # Errors
    /// [`ErrorKind::Input`]: none, both layouts at once, or a gap in the numbers; what there is
    /// instead of weights is named.
    pub(super) fn weights(&self, root: &Path) -> Result<Vec<&str>> {
        let weights: Vec<&str> = self
            .files
            .iter()
            .map(String::as_str)
            .filter(|name| name.starts_with("model") && is_weights(name))
            .collect();
        if weights.is_empty() {
            return Err(self.no_weights(root));
        }
        if weights.len() > 1 && weights.contains(&SINGLE) {
            let other = weights.iter().find(|name| **name != SINGLE).copied().unwrap_or_default();
            return Err(Error::input(format!("Both `{SINGLE}` and {} are there, and no index", quoted(other)))
                .hint("remove the one that does not belong to the checkpoint, or add its index"));
        }
        let numbers: Vec<_> = weights.iter().filter_map(|name| number(name)).collect();
        let Some((_, total)) = numbers.first().copied() else { return Ok(weights) };
        let fits = |(number, of): &(u64, u64)| *of == total && (1..=total).contains(number);
        let there: BTreeSet<u64> = numbers.iter().map(|(number, _)| *number).collect();
        if there.len() != weights.len() || !numbers.iter().all(fits) {
            return Err(Error::input(format!(
                "The numbers of the shards {} to {} do not fit together, and there is no index",
                quoted(weights[0]),
                quoted(weights[weights.len() - 1])
            )));
        }
        if (there.len() as u64) < total {
            // Looked for among those that are there: the total is only what a name claims.
            let missing = (1..).zip(&there).find(|(expected, number)| expected != *number);
            let missing = missing.map_or(there.len() as u64 + 1, |(expected, _)| expected);
            return Err(Error::input(format!("Shard {missing} of {total} is missing"))
                .hint("finish the download: all shards must be there"));
        }
        Ok(weights)
    }

    /// Says what is in `root` instead of `model*.safetensors`.
    fn no_weights(&self, root: &Path) -> Error {
        let root = root.display();
        for (is_it, what, hint) in INSTEAD {
            if let Some(name) = self.files.iter().find(|name| is_it(name)) {
                return Error::input(format!("`{root}` has only {what}, {}", quoted(name))).hint(hint);
            }
        }
        Error::input(format!("`{root}` has no `model*.safetensors`"))
            .hint("name the directory that has the weights and `config.json`")
    }

    /// The files that are kept as they are.
    pub(super) fn sidecars(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(String::as_str).filter(|name| is_sidecar(name))
    }
}

pub(super) fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// Whether the file is kept byte for byte: configuration, tokenizer, chat template, licence.
pub(super) fn is_sidecar(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let licence = ["LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY"].iter().any(|word| upper.starts_with(word));
    let kept = licence || ends_with(name, &[".json", ".jinja", ".model", ".txt", ".tiktoken"]);
    let never = [".safetensors", ".bin", ".gguf", ".py", ".safetensors.index.json"];
    kept && !upper.starts_with("README") && !ends_with(name, &never)
}

fn ends_with(name: &str, endings: &[&str]) -> bool {
    endings.iter().any(|ending| name.ends_with(ending))
}

/// The `X` and `N` of `model-X-of-N.safetensors`.
fn number(name: &str) -> Option<(u64, u64)> {
    let (number, total) = name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(number) || !digits(total) {
        return None;
    }
    Some((number.parse().ok()?, total.parse().ok()?))
}

/// The directory of the checkpoint that `root` names: `root`, or the snapshot of a cache entry.
///
/// # Errors
/// [`ErrorKind::NotFound`]: nothing there. [`ErrorKind::Input`]: not a directory, a cache entry
/// without the snapshot it names.
pub(super) fn resolve(root: &Path) -> Result<PathBuf> {
    let shown = root.display();
    match root.metadata() {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => {
            return Err(Error::input(format!("`{shown}` is a file, not the directory of a checkpoint"))
                .hint("name the directory that holds `config.json` and the weights"));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::new(ErrorKind::NotFound, format!("There is no checkpoint at `{shown}`")).caused_by(e));
        }
        Err(e) => return Err(Error::io(ErrorKind::Input, "open", root, e)),
    }
    if root.join("config.json").symlink_metadata().is_ok() {
        return Ok(root.to_owned());
    }
    if root.join("snapshots").is_dir() {
        return hub::snapshot(root, None);
    }
    let entries: Vec<String> = Listing::of(root)?.folders.into_iter().filter(|name| hub::is_entry(name)).collect();
    match entries.as_slice() {
        [] => Ok(root.to_owned()),
        [entry] => hub::snapshot(&root.join(entry), None),
        [first, ..] => Err(Error::input(format!("`{shown}` is a cache of several models"))
            .hint(format!("name one of them, as `{}`", root.join(first).display()))),
    }
}

/// Refuses a sidecar whose link leads out of the checkpoint: it is published byte for byte, and a
/// checkpoint from elsewhere must not be able to publish a file of this machine. Where a Hugging
/// Face cache keeps its contents, `models--*/blobs`, is not outside.
pub(super) fn check_inside(root: &Path, name: &str) -> Result<()> {
    let path = root.join(name);
    if !path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink()) {
        return Ok(());
    }
    // A link that cannot be followed is explained where the file is opened.
    let (Ok(target), Ok(root)) = (path.canonicalize(), root.canonicalize()) else { return Ok(()) };
    let cache = |target: &Path| {
        let blobs = target.parent().filter(|folder| folder.ends_with("blobs"));
        let entry = blobs.and_then(Path::parent).and_then(Path::file_name).and_then(|name| name.to_str());
        entry.is_some_and(hub::is_entry)
    };
    if target.starts_with(&root) || cache(&target) {
        return Ok(());
    }
    Err(Error::input(format!("{} is a symbolic link that leads out of the checkpoint", quoted(name)))
        .hint("replace the link by a copy of the file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(files: &[&str]) -> Listing {
        Listing { files: files.iter().map(|name| (*name).to_owned()).collect(), ..Listing::default() }
    }

    #[test]
    fn without_an_index_names_decide() {
        let table: [(&[&str], Result<usize, &str>); 15] = [
            (&["model.safetensors", "tokenizer.json", "mtp.safetensors"], Ok(1)),
            (&["model-00001-of-00001.safetensors"], Ok(1)),
            (&["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"], Ok(2)),
            (&["model-a.safetensors", "model-b.safetensors"], Ok(2)),
            (&["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"], Err("Shard 2 of 3")),
            (&["model-00001-of-00002.safetensors"], Err("Shard 2 of 2")),
            (&["model-00002-of-00002.safetensors"], Err("Shard 1 of 2")),
            (&["model-1-of-99999999999.safetensors"], Err("Shard 2 of 99999999999")),
            (&["model-00003-of-00002.safetensors"], Err("do not fit together")),
            (&["model-0-of-1.safetensors"], Err("do not fit together")),
            (&["model-1-of-1.safetensors", "model-1-of-2.safetensors"], Err("do not fit together")),
            (&["model-1-of-2.safetensors", "model-01-of-2.safetensors"], Err("do not fit together")),
            (&["model-1-of-1.safetensors", "model-x.safetensors"], Err("do not fit together")),
            (
                &["model.safetensors", "model-00001-of-00001.safetensors"],
                Err("Both `model.safetensors` and `model-00001"),
            ),
            (&["model-1-of-+1.safetensors", "model.safetensors"], Err("Both")),
        ];
        for (files, expected) in table {
            match (listing(files).weights(Path::new("there")).map(|names| names.len()), expected) {
                (Ok(count), Ok(expected)) => assert_eq!(count, expected, "{files:?}"),
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{files:?}: {error}"),
                (result, _) => panic!("{files:?}: {result:?}"),
            }
        }
    }

    #[test]
    fn what_is_there_instead_of_weights_is_named() {
        let table: [(&[&str], &str); 8] = [
            (&["adapter_model.safetensors"], "`there` has only a LoRA adapter"),
            (&["consolidated.safetensors", "params.json"], "Mistral's own naming, `consolidated.safetensors`"),
            (&["model_index.json"], "diffusion pipeline"),
            (&["pytorch_model.safetensors", "pytorch_model.bin"], "not called `model*.safetensors`"),
            (&["model-Q4_K_M.gguf"], "a GGUF file"),
            (&["pytorch_model.bin"], "a pickle"),
            (&["tf_model.h5"], "another framework"),
            (&["config.json"], "`there` has no `model*.safetensors`"),
        ];
        for (files, words) in table {
            let error = listing(files).weights(Path::new("there")).unwrap_err();
            assert!(error.to_string().contains(words) && error.hint_text().is_some(), "{files:?}: {error}");
        }
    }

    #[test]
    fn sidecars_are_what_a_runtime_or_a_lawyer_reads() {
        let kept = [
            "config.json",
            "tokenizer.model",
            "vocab.json",
            "merges.txt",
            "chat_template.jinja",
            "qwen.tiktoken",
            "LICENSE",
            "License.txt",
            "LICENCE.md",
            "USE_POLICY.md",
            "Notice",
            "COPYING.LESSER",
        ];
        let left = [
            "README.md",
            "readme.txt",
            "notes.md",
            "model.safetensors",
            "model.safetensors.index.json",
            "consolidated.safetensors.index.json",
            "pytorch_model.bin",
            "model.gguf",
            "modeling_x.py",
            "LICENSE.py",
            "config.JSON5",
        ];
        let names = [kept.as_slice(), &left].concat();
        let mut expected = kept.to_vec();
        expected.sort_unstable();
        assert_eq!(listing(&names).sidecars().collect::<Vec<_>>(), expected);
    }
}
