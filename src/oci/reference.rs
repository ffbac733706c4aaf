//! References: how a person names a model.

use std::fmt;
use std::str::FromStr;

use oci_spec::distribution::Reference as Grammar;

use super::Digest;
use crate::error::{Error, ErrorKind, Result, quoted};

/// A model's name: `[host[:port]/]path[:tag][@sha256:…]`.
///
/// The grammar is the one of OCI distribution-spec v1.1.1, "Pulling manifests", as `oci-spec` parses
/// it: <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pulling-manifests>.
/// Unlike Docker, a name without a host stays without one: it lives in the local store. Names at Ollama's registry
/// have the grammar of that.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    host: Option<String>,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The names of Ollama's registry: its own, and that of the site that shows what is in it.
    pub const OLLAMA_HOSTS: [&str; 2] = ["registry.ollama.ai", "ollama.com"];

    /// `name` at Ollama's registry `host`, with the grammar of Ollama 0.33 (`types/model/name.go`): the case of letters
    /// is the owner's, and a model without a namespace is in `library`.
    fn at_ollama(host: &str, name: &str) -> Option<Self> {
        let (name, digest) = match name.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse().ok()?)),
            None => (name, None),
        };
        let (path, tag) = match name.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (name, None),
        };
        let (namespace, model) = path.split_once('/').unwrap_or(("library", path));
        let is_part = |part: &str, marks: &[char]| {
            let word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
            part.len() <= 80
                && part.starts_with(word)
                && part.chars().all(|letter| word(letter) || marks.contains(&letter))
        };
        let is_name = is_part(namespace, &['-']) && is_part(model, &['-', '.']);
        let is_tagged = tag.is_none_or(|tag| is_part(tag, &['-', '.']));
        (is_name && is_tagged).then(|| Self {
            host: Some(host.to_owned()),
            path: format!("{namespace}/{model}"),
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// The registry, with its port; `None` for a name in the local store.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The repository within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The repository with its registry, as a person writes it.
    pub fn repository(&self) -> String {
        self.host().map_or_else(|| self.path.clone(), |host| format!("{host}/{}", self.path))
    }

    /// Whether it names a repository only: neither a tag nor a digest is written.
    pub fn is_repository(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }

    /// The same name without the digest.
    #[must_use]
    pub fn without_digest(&self) -> Self {
        Self { digest: None, ..self.clone() }
    }

    /// The tag; `latest` when neither a tag nor a digest is named.
    pub fn tag(&self) -> Option<&str> {
        match (&self.tag, &self.digest) {
            (None, None) => Some("latest"),
            (tag, _) => tag.as_deref(),
        }
    }

    /// The digest, when one is pinned.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Whether it may name a manifest of this digest: any, unless another one is pinned.
    pub fn admits(&self, digest: &Digest) -> bool {
        self.digest.is_none_or(|pinned| pinned == *digest)
    }

    /// Fails unless it may name a manifest of this digest.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when it pins another one.
    pub fn require_agreement(&self, digest: &Digest) -> Result<()> {
        if self.admits(digest) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Usage, format!("`{self}` cannot name the manifest `{digest}`"))
            .hint("leave the digest out of the name"))
    }

    /// The host, or the error that says one is missing.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a name without a host.
    pub fn require_host(&self) -> Result<&str> {
        self.host().ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("No registry is named in `{self}`")).hint(format!(
                "name one, as in `registry.example/{}:{}`",
                self.path,
                self.tag().unwrap_or("latest")
            ))
        })
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || {
            Error::new(ErrorKind::Usage, format!("Not a model reference: {}", quoted(text))).hint(
                "write `[host[:port]/]path[:tag][@sha256:…]` in lower case, as in `registry.example/team/model:int4`",
            )
        };
        if let Some((host, name)) = text.split_once('/').filter(|(host, _)| Self::OLLAMA_HOSTS.contains(host)) {
            return Self::at_ollama(host, name).ok_or_else(|| {
                invalid().hint("write `ollama.com/[namespace/]model[:tag]`, as in `ollama.com/library/llama3.2:1b`")
            });
        }
        let grammar: Grammar = text.parse().map_err(|cause| invalid().caused_by(cause))?;
        // Docker's rule: the first component is a host when it has a dot or a port, or is `localhost`.
        let has_host =
            text.split_once('/').is_some_and(|(first, _)| first.contains(['.', ':']) || first == "localhost");
        // `oci-spec` puts Docker Hub's `library/` before a bare name; without a host there is no Hub.
        let path = match grammar.repository() {
            path if has_host || text.contains('/') => path,
            path => path.strip_prefix("library/").unwrap_or(path),
        };
        let digest = grammar.digest().map(str::parse).transpose()?;
        let tag_written =
            text.split('@').next().and_then(|name| name.rsplit('/').next()).is_some_and(|last| last.contains(':'));
        Ok(Self {
            host: has_host.then(|| text.split('/').next().unwrap_or_default().to_owned()),
            path: path.to_owned(),
            tag: grammar.tag().filter(|_| tag_written).map(str::to_owned),
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = &self.host {
            write!(f, "{host}/")?;
        }
        f.write_str(&self.path)?;
        if let Some(tag) = self.tag() {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_the_full_name() {
        let digest = Digest::of(b"");
        for (text, full) in [
            ("llama", "llama:latest"),
            ("llama:int4", "llama:int4"),
            ("team/llama", "team/llama:latest"),
            ("library/llama", "library/llama:latest"),
            ("localhost/llama", "localhost/llama:latest"),
            ("127.0.0.1:5000/a/b:x", "127.0.0.1:5000/a/b:x"),
            ("registry.example/a", "registry.example/a:latest"),
            (&format!("registry.example/a@{digest}"), &format!("registry.example/a@{digest}")),
            (&format!("registry.example/a:t@{digest}"), &format!("registry.example/a:t@{digest}")),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full, "{text}");
            assert_eq!(reference.to_string().parse::<Reference>().unwrap().to_string(), full);
        }
    }

    #[test]
    fn a_repository_is_what_has_no_tag_and_no_digest() {
        let digest = Digest::of(b"");
        for (text, repository, only) in [
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b", true),
            ("127.0.0.1:5000/a/b:x", "127.0.0.1:5000/a/b", false),
            (&format!("a@{digest}"), "a", false),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!((reference.repository().as_str(), reference.is_repository()), (repository, only), "{text}");
        }
        let pinned: Reference = format!("a:x@{digest}").parse().unwrap();
        assert_eq!(pinned.without_digest().to_string(), "a:x");
    }

    #[test]
    fn a_name_at_ollama_has_two_parts_in_any_case() {
        for (text, full) in [
            ("ollama.com/llama3.2", "ollama.com/library/llama3.2:latest"),
            ("registry.ollama.ai/library/llama3.2:1b", "registry.ollama.ai/library/llama3.2:1b"),
            ("ollama.com/_Team-1/Qwen--2.5:7b-Q4_K_M", "ollama.com/_Team-1/Qwen--2.5:7b-Q4_K_M"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full);
            assert_eq!(reference.to_string().parse::<Reference>().unwrap(), full.parse().unwrap());
        }
        let long = format!("ollama.com/{}", "a".repeat(81));
        let digest = format!("ollama.com/a@sha256:{}", "0".repeat(63));
        for text in [
            "ollama.com/",
            "ollama.com/a/b/c",
            "ollama.com/te.am/a",
            "ollama.com/-a",
            "ollama.com/a:",
            "ollama.com/a:-",
            "ollama.com/a/../b",
            "ollama.com/a b",
            "ollama.com/a:b:c",
            &long,
            &digest,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    #[test]
    fn tells_a_host_from_a_path() {
        let host = |text: &str| text.parse::<Reference>().unwrap().host().map(str::to_owned);
        assert_eq!(host("team/llama"), None);
        assert_eq!(host("team.io/llama").as_deref(), Some("team.io"));
        assert_eq!(host("localhost:5000/llama").as_deref(), Some("localhost:5000"));
    }

    #[test]
    fn refuses_what_no_registry_takes() {
        for text in ["", ":x", "a:", "UPPER", "a//b", "../a", "a b", "a@sha256:00", "a:t@md5:00", "/a", "a/", "a\n"] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }
}
