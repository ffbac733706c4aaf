//! What Ollama's registry does its own way: it knows users by a key instead of a password, and takes large
//! blobs past itself, at addresses of the storage behind it. [`crate::registry`] speaks the rest to it as to
//! every other registry. Uploads are in `upload/ollama.rs`.

mod key;
mod openssh;
mod token;

use std::path::PathBuf;
use std::sync::Arc;

pub use key::SigningKey;
pub(super) use token::Question;

use super::credential::{Credential, Keychain};
use crate::error::Result;
use crate::oci::Reference;

/// Who speaks Ollama's registry protocol, and the key for it.
#[derive(Clone, Debug, Default)]
pub struct OllamaOptions {
    /// Whether the registry speaks it, whatever its name. Ollama's own always does.
    pub spoken: bool,
    /// The file that has the user's key, if there is one.
    pub key: Option<PathBuf>,
}

impl OllamaOptions {
    /// Whether the registry `host` is spoken to in Ollama's protocol.
    pub fn are_for(&self, host: &str) -> bool {
        self.spoken || Reference::OLLAMA_HOSTS.contains(&host)
    }

    fn key(&self) -> Result<Option<SigningKey>> {
        self.key.as_deref().map_or(Ok(None), SigningKey::read)
    }

    /// The keychain for a registry that speaks this protocol: `others` where it knows the host, else the key.
    pub(super) fn keychain(&self, others: Arc<dyn Keychain>) -> Arc<dyn Keychain> {
        Arc::new(Keys { options: self.clone(), others })
    }
}

/// Where a user tells Ollama which keys are theirs.
pub const OLLAMA_KEYS: &str = "https://ollama.com/settings/keys";

/// The hint for a user whose key the registry does not know, or knows as somebody else's.
pub(super) fn unknown_key(key: &SigningKey) -> String {
    format!("add your public key at {OLLAMA_KEYS}, once: {}", key.public_key())
}

struct Keys {
    options: OllamaOptions,
    others: Arc<dyn Keychain>,
}

impl Keychain for Keys {
    fn credential(&self, host: &str) -> Result<Option<Credential>> {
        match self.others.credential(host)? {
            None => Ok(self.options.key()?.map(Credential::Key)),
            known => Ok(known),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_for_ollamas_registry_and_whoever_the_user_says() {
        let options = OllamaOptions::default();
        for host in ["registry.ollama.ai", "ollama.com"] {
            assert!(options.are_for(host), "{host}");
        }
        for host in ["registry.ollama.ai.example", "ollama.com:444", "docker.io", "127.0.0.1:5000"] {
            assert!(!options.are_for(host), "{host}");
        }
        assert!(OllamaOptions { spoken: true, ..options }.are_for("127.0.0.1:5000"));
    }
}
