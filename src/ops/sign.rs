//! Statements about a model, signed or not, attached to it in a registry.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use bytes::Bytes;

use super::attach::{self, Artifact, Attached, Blob};
use super::provenance;
use super::transfer::Access;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Bundle, Statement, Svr};
use crate::oci::{Digest, MediaType, Reference};
use crate::progress::Progress;
use crate::registry::Remote;
use crate::signing::{PrivateKey, PublicKey};
use crate::source;
use crate::storage::Refs as _;
use crate::store::Store;

/// The longest file with a key that is read, in bytes.
const MAX_KEY_FILE: u64 = 64 << 10;
/// The permissions that others than its owner have on a file.
const OTHERS: u32 = 0o077;
/// The annotation that says what kind of statement a layer is, as BuildKit has it.
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";

/// A manifest, and the repository that statements about it are attached in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The manifest.
    pub digest: Digest,
    /// It, by its digest, in its repository.
    pub reference: Reference,
}

impl Target {
    /// The model `name`: the one of the store when it has one, else the one of the registry that it names. Statements are
    /// attached in the repository of `at`, or where `name` says.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when no registry is named, [`ErrorKind::NotFound`] when there is no such model, otherwise as
    /// [`Remote::new`].
    pub async fn find(
        store: Option<&Store>,
        name: &Reference,
        at: Option<&Reference>,
        access: &Access,
    ) -> Result<Self> {
        let place = at.unwrap_or(name);
        if place.host().is_none() {
            return Err(Error::new(ErrorKind::Usage, format!("No registry is named in `{place}`"))
                .hint("name it as in `registry.example/team/llama:int4`"));
        }
        let stored = store.map(|store| store.find(name)).transpose()?.flatten();
        let digest = match stored {
            Some(stored) => stored.digest,
            None if name.host().is_some() => {
                let remote = Remote::new(name, access.keychain.clone(), &access.options)?;
                let found = remote.resolve(name).await?;
                found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("There is no model `{name}`")))?.0.digest
            }
            None => {
                return Err(Error::new(ErrorKind::NotFound, format!("No model is named `{name}`"))
                    .hint("`kiln list` shows what the store holds"));
            }
        };
        Self::of(&digest, place)
    }

    /// The manifest `digest` in the repository of `place`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when `place` is none.
    pub fn of(digest: &Digest, place: &Reference) -> Result<Self> {
        Ok(Self { digest: *digest, reference: pinned(place, digest)? })
    }
}

/// The manifest `digest` in the repository of `place`.
pub(super) fn pinned(place: &Reference, digest: &Digest) -> Result<Reference> {
    format!("{}@{digest}", place.repository()).parse()
}

/// Reads a private key.
///
/// # Errors
/// [`ErrorKind::Input`] when others may read it, or as [`PrivateKey::from_pem`].
pub fn private_key(path: &Path) -> Result<PrivateKey> {
    let text = source::read_file(path, MAX_KEY_FILE)?;
    let metadata = fs::metadata(path).map_err(|cause| Error::io(ErrorKind::Input, "read", path, cause))?;
    if metadata.mode() & OTHERS != 0 {
        return Err(Error::input(format!("Others may read the private key: `{}`", path.display()))
            .hint(format!("chmod 600 {}", path.display())));
    }
    PrivateKey::from_pem(&text).map_err(|cause| unusable(path, cause))
}

/// Reads a public key.
///
/// # Errors
/// [`ErrorKind::Input`], as [`PublicKey::from_pem`].
pub fn public_key(path: &Path) -> Result<PublicKey> {
    PublicKey::from_pem(&source::read_file(path, MAX_KEY_FILE)?).map_err(|cause| unusable(path, cause))
}

fn unusable(path: &Path, cause: Error) -> Error {
    let error = Error::input(format!("The key `{}` cannot be used", path.display()));
    let error = match cause.hint_text() {
        Some(hint) => error.hint(hint),
        None => error,
    };
    error.caused_by(cause)
}

/// The statement that whoever has made every layer of `target` again gives, now.
pub fn reproduced(target: &Target, verifier: Option<String>) -> Statement {
    let verifier = verifier.unwrap_or_else(|| Svr::LOCAL_VERIFIER.to_owned());
    let svr = Svr::reproduced(verifier, provenance::now());
    let predicate = serde_json::to_value(svr).unwrap_or_default();
    Statement::new(&target.digest, Some(target.reference.repository()), Svr::PREDICATE_TYPE, predicate)
}

/// A statement as it is attached: in a bundle, when there is a key to sign it with.
///
/// # Errors
/// As [`PrivateKey::sign`].
pub fn artifact(statement: &Statement, key: Option<&PrivateKey>) -> Result<Artifact> {
    let kind = &statement.predicate_type;
    let Some(key) = key else {
        let media_type = MediaType::of(Statement::MEDIA_TYPE);
        let blob = Blob::bytes(media_type.clone(), Bytes::from(statement.to_bytes())).annotated(PREDICATE_TYPE, kind);
        return Ok(Artifact { artifact_type: media_type, blobs: vec![blob], annotations: BTreeMap::new() });
    };
    let bundle = Bundle::new(statement, &key.public().hint(), |message| key.sign(message))?;
    let (content, envelope) = Bundle::CONTENT;
    let annotations = [(content, envelope), (Bundle::PREDICATE_TYPE, kind)];
    Ok(Artifact {
        artifact_type: Bundle::MEDIA_TYPE,
        blobs: vec![Blob::bytes(Bundle::MEDIA_TYPE, Bytes::from(bundle.to_bytes()))],
        annotations: annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    })
}

/// Attaches `statement` to what it is about.
///
/// # Errors
/// As [`attach::attach`] and [`artifact`].
pub async fn publish(
    target: &Target,
    statement: &Statement,
    key: Option<&PrivateKey>,
    access: &Access,
    progress: &Progress,
) -> Result<Attached> {
    attach::attach(&target.reference, &artifact(statement, key)?, access, progress).await
}
