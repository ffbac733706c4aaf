//! The files that layers are in a directory. The names are those of whoever wrote the manifest: one that leads
//! anywhere but below the directory is refused, and so are two that could be one file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde_json::json;

use super::Content;
use crate::error::{Error, Result, is_printable, quoted};
use crate::json;
use crate::oci::{Descriptor, Manifest};

/// The longest path and the longest name in it, in bytes.
const MAX_PATH: usize = 1024;
const MAX_NAME: usize = 255;
/// How the file of a layer with tensors ends.
pub(super) const SAFETENSORS: &str = ".safetensors";
/// How `oras` says that a layer is a directory in an archive.
const UNPACK: &str = "io.deis.oras.content.unpack";

/// A relative path that may be made below any directory: names apart by `/`, none of which means another place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FilePath(String);

impl FilePath {
    /// Reads a path.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Input`] when it is not one of a file below a directory, the same on every system.
    pub fn parse(text: &str) -> Result<Self> {
        let is_name = |name: &str| {
            !["", ".", ".."].contains(&name)
                // What is in a `.git` is run by whoever looks at the directory with git.
                && !name.eq_ignore_ascii_case(".git")
                && name.len() <= MAX_NAME
                && name.chars().all(|character| is_printable(character) && !['\\', ':'].contains(&character))
        };
        if text.len() <= MAX_PATH && text.split('/').all(is_name) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::input(format!("{} is not a path that may be made in a directory", quoted(text))))
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The folders it is in, the outermost first.
    pub fn folders(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').map(|(end, _)| &self.0[..end])
    }
}

impl AsRef<Path> for FilePath {
    fn as_ref(&self) -> &Path {
        self.0.as_ref()
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a layer that goes by `name` in the plan is called in a directory.
pub(super) fn name_of(content: Content, name: &str) -> String {
    match content {
        Content::Tensors if !name.ends_with(SAFETENSORS) => format!("{name}{SAFETENSORS}"),
        _ => name.to_owned(),
    }
}

/// The layers of `manifest` that have a name, in its order, each with the file it is in a directory.
///
/// # Errors
/// As [`paths`]; also for a layer that is an archive.
pub fn files(manifest: &Manifest) -> Result<Vec<(FilePath, &Descriptor)>> {
    let mut named = Vec::new();
    for layer in &manifest.layers {
        let Some(name) = layer.layer_name() else { continue };
        if is_archive(layer) {
            return Err(Error::input(format!("The layer {} is an archive, and no file", quoted(name)))
                .hint("have the model pushed with a layer for each file"));
        }
        named.push((name_of(Content::of(layer), name), layer));
    }
    let paths = paths(named.iter().map(|(name, _)| name.as_str()))?;
    Ok(paths.into_iter().zip(named).map(|(path, (_, layer))| (path, layer)).collect())
}

/// The paths of files that are to lie in one directory, in their order.
///
/// # Errors
/// [`crate::ErrorKind::Input`]: a name that is no [`FilePath`], two that are one file where case does not count.
pub fn paths<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Vec<FilePath>> {
    // Every file, and every folder with a slash, by what it is where case does not count.
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    let mut add = |name: &str| {
        let path = FilePath::parse(name)?;
        for folder in path.folders() {
            let there = taken.entry(folder.to_lowercase()).or_insert_with(|| format!("{folder}/"));
            if there.strip_suffix('/') != Some(folder) {
                return Err(one_file(there, name));
            }
        }
        match taken.insert(name.to_lowercase(), name.to_owned()) {
            Some(there) => Err(one_file(&there, name)),
            None => Ok(path),
        }
    };
    names.into_iter().map(&mut add).collect()
}

/// The index of shards: for each tensor the file that has it, as `transformers` writes it but compact.
///
/// `total` is the size of all tensors in bytes.
pub fn shard_index(total: u64, tensors: &BTreeMap<String, &str>) -> Vec<u8> {
    json::to_canonical(&json!({"metadata": {"total_size": total}, "weight_map": tensors}))
}

fn one_file(there: &str, name: &str) -> Error {
    Error::input(format!("{} and {} would be one file", quoted(there), quoted(name)))
}

fn is_archive(layer: &Descriptor) -> bool {
    let media_type = layer.media_type.as_str();
    let packed = ["tar", "tar+gzip", "tar+zstd"].iter().any(|end| media_type.ends_with(&format!(".v1.{end}")));
    // `oras` calls plain files tar archives, too, and tells them apart by an annotation.
    (media_type.starts_with("application/vnd.cncf.model.") && packed)
        || layer.annotations.get(UNPACK).is_some_and(|unpack| unpack == "true")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::MediaType;

    #[test]
    fn a_path_stays_below_its_directory_on_every_system() {
        for good in ["config.json", "1_Pooling/config.json", ".gitattributes", "a b", "größe", "...", "con"] {
            assert_eq!(FilePath::parse(good).unwrap().as_str(), good);
        }
        let long = "a".repeat(256);
        let deep = "a/".repeat(600) + "a";
        let bad = [
            "",
            "/",
            "/etc/passwd",
            "a/",
            "a//b",
            ".",
            "..",
            "../a",
            "a/../b",
            "a/./b",
            "a\\b",
            "C:a",
            "a\0b",
            "a\nb",
            "a\u{202e}b",
            ".git",
            ".GIT/config",
            "a/.Git/hooks",
            &long,
            &deep,
        ];
        for bad in bad {
            assert!(FilePath::parse(bad).is_err(), "{bad:?}");
        }
    }

    fn manifest(names: &[&str]) -> Manifest {
        let layer = |name: &&str| {
            let mut layer = Descriptor::of(MediaType::KILN_FILE, name.as_bytes());
            layer.annotations.insert(Descriptor::TITLE.to_owned(), (*name).to_owned());
            layer
        };
        Manifest {
            schema_version: 2,
            media_type: MediaType::OCI_MANIFEST,
            artifact_type: None,
            config: Descriptor::of(MediaType::DOCKER_CONFIG, b"{}"),
            layers: names.iter().map(layer).collect(),
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn no_two_layers_are_one_file() {
        let good = manifest(&["a/b", "a/c", "b", "c/d/e", "c/d/f"]);
        assert_eq!(files(&good).unwrap().len(), 5);
        for names in
            [["a", "a"], ["a", "A"], ["a", "a/b"], ["a/b", "a"], ["a/b", "A/c"], ["d/É", "d/é"], ["a/b/c", "a/B/d"]]
        {
            assert!(files(&manifest(&names)).unwrap_err().to_string().ends_with("would be one file"), "{names:?}");
        }
    }

    #[test]
    fn an_archive_is_not_taken_for_a_file() {
        let with = |media_type: &'static str, unpack: Option<&str>| {
            let mut manifest = manifest(&["onnx"]);
            manifest.layers[0].media_type = MediaType::of(media_type);
            manifest.layers[0].annotations.extend(unpack.map(|value| (UNPACK.to_owned(), value.to_owned())));
            files(&manifest).is_ok()
        };
        assert!(with("application/vnd.oci.image.layer.v1.tar", None), "what `oras push` calls a file");
        assert!(with("application/vnd.cncf.model.weight.v1.raw", None));
        assert!(!with("application/vnd.oci.image.layer.v1.tar+gzip", Some("true")));
        assert!(!with("application/vnd.cncf.model.weight.v1.tar", None));
        assert!(!with("application/vnd.cncf.model.code.v1.tar+zstd", None));
    }
}
