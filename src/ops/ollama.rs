//! Ollama's own store, as of v0.33: `manifests/<host>/<namespace>/<model>/<tag>` and `blobs/sha256-<hex>`.
//! It is read here; `export` writes to it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result, quoted};
use crate::oci::{Digest, MAX_MANIFEST_SIZE, Manifest};
use crate::source;

/// The media type of the one file that a GGUF model is.
pub(super) const GGUF: &str = "application/vnd.ollama.image.model";

/// A model's name in Ollama: `[host/][namespace/]model[:tag]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    host: String,
    namespace: String,
    model: String,
    tag: String,
}

impl Name {
    const HOST: &str = "registry.ollama.ai";
    const NAMESPACE: &str = "library";

    /// Where the store at `root` has the model's manifest.
    pub(super) fn manifest_path(&self, root: &Path) -> PathBuf {
        let Self { host, namespace, model, tag } = self;
        root.join("manifests").join(host).join(namespace).join(model).join(tag)
    }

    /// The model's manifest and its digest, in the store at `root`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is no such model, [`ErrorKind::Corrupt`] when it is not a manifest.
    pub(super) fn manifest(&self, root: &Path) -> Result<(Manifest, Digest)> {
        let path = self.manifest_path(root);
        if path.symlink_metadata().is_err() {
            let message = format!("Ollama has no model `{self}` in `{}`", root.display());
            return Err(Error::new(ErrorKind::NotFound, message).hint("`ollama list` shows what it has"));
        }
        let bytes = source::read_file(&path, MAX_MANIFEST_SIZE)?;
        Ok((Manifest::parse(&bytes)?, Digest::of(&bytes)))
    }
}

/// Where the store at `root` has the content of `digest`.
pub(super) fn blob_path(root: &Path, digest: &Digest) -> PathBuf {
    root.join("blobs").join(format!("sha256-{}", digest.hex()))
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || {
            Error::new(ErrorKind::Usage, format!("Not the name of a model of Ollama: {}", quoted(text)))
                .hint("write `ollama:[host/][namespace/]model[:tag]`")
        };
        let (path, tag) = match text.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (text, "latest"),
        };
        let parts: Vec<&str> = path.split('/').collect();
        let (host, namespace, model) = match parts[..] {
            [model] => (Self::HOST, Self::NAMESPACE, model),
            [namespace, model] => (Self::HOST, namespace, model),
            [host, namespace, model] => (host, namespace, model),
            _ => return Err(invalid()),
        };
        // What Ollama allows; also what keeps a name from leading out of the directory.
        let is_part = |part: &str, others: &[u8], longest: usize| {
            let starts = part.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_');
            starts && part.len() <= longest && part.bytes().all(|b| b.is_ascii_alphanumeric() || others.contains(&b))
        };
        let fits = is_part(host, b"_-.:", 350)
            && is_part(namespace, b"_-", 80)
            && is_part(model, b"_-.", 80)
            && is_part(tag, b"_-.", 80);
        if !fits {
            return Err(invalid());
        }
        let [host, namespace, model, tag] = [host, namespace, model, tag].map(str::to_owned);
        Ok(Self { host, namespace, model, tag })
    }
}

/// As Ollama shows it: without what it adds by itself.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, namespace, model, tag } = self;
        if host != Self::HOST {
            write!(f, "{host}/{namespace}/")?;
        } else if namespace != Self::NAMESPACE {
            write!(f, "{namespace}/")?;
        }
        write!(f, "{model}:{tag}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_ollama_reads_them() {
        for (text, path, shown) in [
            ("qwen3.5", "registry.ollama.ai/library/qwen3.5/latest", "qwen3.5:latest"),
            ("qwen3.5:35b", "registry.ollama.ai/library/qwen3.5/35b", "qwen3.5:35b"),
            ("Ada/mine:x", "registry.ollama.ai/Ada/mine/x", "Ada/mine:x"),
            ("host.example:5000/a/b", "host.example:5000/a/b/latest", "host.example:5000/a/b:latest"),
        ] {
            let name: Name = text.parse().unwrap();
            assert_eq!(format!("{}/{}/{}/{}", name.host, name.namespace, name.model, name.tag), path);
            assert_eq!(name.to_string(), shown);
            assert_eq!(shown.parse::<Name>().unwrap(), name);
        }
    }

    #[test]
    fn a_name_does_not_lead_out_of_the_store() {
        for text in ["", "a:", ":a", "../a", "a/../b", "a/b/c/d", "/a", "a/", "..", "a:../b", "a b", "a:.b", "a\n"] {
            assert!(text.parse::<Name>().is_err(), "{text:?}");
        }
    }
}
