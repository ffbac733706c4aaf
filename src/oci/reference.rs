//! References: how a person names a model.

use std::fmt;
use std::str::FromStr;

use super::Digest;
use crate::error::{Error, ErrorKind, Result, quoted};

/// A model's name: `[host[:port]/]path[:tag][@sha256:…]`.
///
/// Path and tag have the grammar of OCI distribution-spec v1.1.1, "Pulling manifests":
/// <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pulling-manifests>; what is a host is
/// Docker's rule. Unlike Docker, a name without a host stays without one: it lives in the local store. Names at Ollama's
/// registry have the grammar of that.
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

    /// `text` with the grammar of the distribution specification.
    fn at_registry(text: &str) -> Option<Self> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse().ok()?)),
            None => (text, None),
        };
        // Docker's rule: the first component is a host when it has a dot or a port, or is `localhost`.
        let (host, name) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
            _ => (None, name),
        };
        let (path, tag) = match name.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (name, None),
        };
        let is_path = path.len() <= MAX_PATH && path.split('/').all(is_component);
        let is_reference = host.is_none_or(is_host) && is_path && tag.is_none_or(is_tag);
        is_reference.then(|| Self {
            host: host.map(str::to_owned),
            path: path.to_owned(),
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

/// How many bytes a repository's path may have.
const MAX_PATH: usize = 255;

/// A name of DNS or an address of IPv4, with a port where one is written.
fn is_host(text: &str) -> bool {
    let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    let is_label = |label: &str| {
        let is_letter = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.chars().all(is_letter)
    };
    // Digits alone, because a number may be written with a sign.
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    name.len() <= 253 && name.split('.').all(is_label) && port.is_none_or(is_port)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_component(text: &str) -> bool {
    let is_word = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let is_separator = |between: &str| matches!(between, "." | "_" | "__") || between.bytes().all(|byte| byte == b'-');
    text.starts_with(is_word) && text.ends_with(is_word) && text.split(is_word).all(is_separator)
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
fn is_tag(text: &str) -> bool {
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    text.len() <= 128
        && text.starts_with(is_word)
        && text.chars().all(|letter| is_word(letter) || letter == '.' || letter == '-')
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
        Self::at_registry(text).ok_or_else(invalid)
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
    use proptest::prelude::*;

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
        let (long, tag) = ("x".repeat(MAX_PATH + 1), format!("a:{}", "x".repeat(129)));
        for text in
            ["a.example:65536/a", "a.example:+1/a", "[::1]:5000/a", "-a.example/a", "a..b/c", "a.b:/c", &long, &tag]
        {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    proptest! {
        // Docker's grammar as the crate `oci-spec` has it, which takes letters of any script for a tag and capitals
        // for a repository's first part.
        #[test]
        fn the_grammar_is_the_one_of_the_specification(
            text in "([a-zA-Z0-9]{1,3}[.:_-]{0,3}[a-z0-9]{0,4}/)?[a-z0-9]{1,2}([._/-]{1,3}[a-z0-9A-Z]{0,2}){0,3}(:[a-zA-Z0-9._/:-]{0,4})?",
        ) {
            let first = text.split('/').next().unwrap();
            let has_host = text.contains('/') && (first.contains(['.', ':']) || first == "localhost");
            let ours = text.parse::<Reference>();
            let theirs = text.parse::<oci_spec::distribution::Reference>();
            // A host may have an underscore here, as those of containers have, and its port is one that there is.
            let port = first.split_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_ok());
            let is_same = !has_host && first.chars().any(|letter| letter.is_ascii_uppercase())
                || has_host && (first.contains('_') || !port)
                || ours.is_ok() == theirs.is_ok();
            prop_assert!(is_same, "{}: {:?} {:?}", text, ours, theirs);
            if let (Ok(ours), Ok(theirs)) = (ours, theirs) {
                prop_assert!(theirs.repository().ends_with(ours.path()));
                prop_assert_eq!(theirs.tag(), ours.tag());
            }
        }
    }
}
