//! Who a registry believes us to be: credentials, and the keychains that hold them. A secret never
//! reaches a `Debug` output, an error or a log.

use std::fmt;

use super::ollama::SigningKey;
use crate::error::Result;

/// What a registry, or its token service, accepts as proof.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user and a password, or an access token in the password's place.
    Basic {
        /// The user's name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that is traded for access tokens at the token service (OAuth 2 refresh token).
    IdentityToken(String),
    /// A key that signs what is asked of a token service: Ollama's registry knows its users by one.
    Key(SigningKey),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { user, .. } => {
                f.debug_struct("Basic").field("user", user).field("password", &"redacted").finish()
            }
            Self::IdentityToken(_) => f.write_str("IdentityToken(redacted)"),
            Self::Key(key) => f.debug_tuple("Key").field(key).finish(),
        }
    }
}

/// Where credentials come from. The call may block (it may start a program); the client makes it on
/// a thread for blocking work, once, when the registry first asks who we are.
pub trait Keychain: Send + Sync {
    /// The credential for the registry `host`, as a reference names it; `None` to go without.
    ///
    /// # Errors
    /// When a credential is configured and cannot be had.
    fn credential(&self, host: &str) -> Result<Option<Credential>>;

    /// The credential for `repository` of the registry `host`, from a keychain that tells repositories apart; that
    /// of the registry from any other.
    ///
    /// # Errors
    /// As [`Keychain::credential`].
    fn credential_for(&self, host: &str, repository: &str) -> Result<Option<Credential>> {
        let _ = repository;
        self.credential(host)
    }
}

/// Keychains one after the other: the first that has a credential gives it.
impl<K: Keychain> Keychain for Vec<K> {
    fn credential(&self, host: &str) -> Result<Option<Credential>> {
        self.iter().find_map(|keychain| keychain.credential(host).transpose()).transpose()
    }

    fn credential_for(&self, host: &str, repository: &str) -> Result<Option<Credential>> {
        self.iter().find_map(|keychain| keychain.credential_for(host, repository).transpose()).transpose()
    }
}

/// The keychain without a key.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anonymous;

impl Keychain for Anonymous {
    fn credential(&self, _host: &str) -> Result<Option<Credential>> {
        Ok(None)
    }
}

/// A keychain with the same credential for every host: what a login tries before it is saved.
#[derive(Debug)]
pub(super) struct Fixed(pub(super) Credential);

impl Keychain for Fixed {
    fn credential(&self, _host: &str) -> Result<Option<Credential>> {
        Ok(Some(self.0.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_print() {
        for credential in [
            Credential::Basic { user: "alice".into(), password: "s3cret".into() },
            Credential::IdentityToken("s3cret".into()),
        ] {
            let printed = format!("{credential:?} {:?}", Fixed(credential.clone()));
            assert!(!printed.contains("s3cret"), "{printed}");
        }
    }
}
