//! The key that Ollama's registry knows a user by: ed25519, in a file of OpenSSH's format without a passphrase.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind as IoErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::Ed25519KeyPair;

use super::openssh::{KeyFile, Unusable, blob, public_line};
use crate::error::{Error, ErrorKind, Result, quoted};

/// The longest key file that is read, in bytes; one with a long comment has a thousand.
const MAX_FILE_SIZE: u64 = 64 << 10;
/// The permissions that others than its owner have on a file.
const OTHERS: u32 = 0o077;

/// A key that proves who somebody is by a signature. It is sent nowhere.
#[derive(Clone)]
pub struct SigningKey {
    pair: Arc<Ed25519KeyPair>,
    public: [u8; 32],
}

impl SigningKey {
    /// The key in the file `path`; `None` when there is no such file.
    ///
    /// # Errors
    /// [`ErrorKind::Unauthorized`] for a file that others may read, that has a passphrase, or that is no
    /// ed25519 key in OpenSSH's format.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let failed = |cause| Error::io(ErrorKind::Unauthorized, "read the key", path, cause);
        let file = match File::open(path) {
            Ok(file) => file,
            Err(cause) if cause.kind() == IoErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(failed(cause)),
        };
        if file.metadata().map_err(failed)?.mode() & OTHERS != 0 {
            return Err(unusable(path, "Others may read the private key").hint(format!("chmod 600 {}", path.display())));
        }
        let mut text = String::new();
        file.take(MAX_FILE_SIZE).read_to_string(&mut text).map_err(failed)?;
        let key = KeyFile::parse(&text).map_err(|why| match why {
            Unusable::Malformed => unusable(path, "Not a private key in OpenSSH's format"),
            Unusable::Encrypted => unusable(path, "The private key has a passphrase, which is not asked for")
                .hint(format!("ssh-keygen -p -f {} takes it away", path.display())),
            Unusable::Algorithm(name) => {
                unusable(path, &format!("The private key is one for {} instead of `ssh-ed25519`", quoted(&name)))
            }
        })?;
        Self::new(&key).map(Some).ok_or_else(|| unusable(path, "The two halves of the key do not belong together"))
    }

    /// A new key, in the new file `path`, which only its owner may read.
    ///
    /// # Errors
    /// [`ErrorKind::Unauthorized`] when it cannot be written, or there is a file.
    pub fn create(path: &Path) -> Result<Self> {
        let failed = |cause| Error::io(ErrorKind::Unauthorized, "save the key", path, cause);
        let no_luck = || Error::new(ErrorKind::Unexpected, "The system gives no random numbers");
        let (mut seed, mut check) = ([0; 32], [0; 4]);
        let random = SystemRandom::new();
        random.fill(&mut seed).and_then(|()| random.fill(&mut check)).map_err(|_| no_luck())?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| no_luck())?;
        let public = ring::signature::KeyPair::public_key(&pair).as_ref().try_into().map_err(|_| no_luck())?;
        let key = KeyFile { seed, public, check: u32::from_be_bytes(check), comment: "kiln".to_owned() };
        if let Some(directory) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        file.write_all(key.print().as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        Ok(Self { pair: Arc::new(pair), public })
    }

    fn new(key: &KeyFile) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_and_public_key(&key.seed, &key.public).ok()?;
        Some(Self { pair: Arc::new(pair), public: key.public })
    }

    /// The public key in one line, as Ollama's site takes it.
    pub fn public_key(&self) -> String {
        public_line(&self.public)
    }

    /// What stands in `Authorization` for `message`: the public key and the signature, both in Base64.
    pub(super) fn proof(&self, message: &str) -> String {
        let signature = self.pair.sign(message.as_bytes());
        format!("{}:{}", BASE64_STANDARD.encode(blob(&self.public)), BASE64_STANDARD.encode(signature))
    }
}

fn unusable(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Unauthorized, format!("{what}: `{}`", path.display()))
}

impl PartialEq for SigningKey {
    fn eq(&self, other: &Self) -> bool {
        self.public == other.public
    }
}

impl Eq for SigningKey {}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public_key())
    }
}
