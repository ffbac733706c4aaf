//! Trust: whether somebody whose key is known stands for a model, who made it, and of what. Only what is signed counts, and
//! of that only what is about the very manifest. Whatever a registry lists is a claim until its signature is checked, and
//! there may be any number of claims: some are looked at, and no more.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Deserialize;

use super::sign::{pinned, public_key};
use super::transfer::Access;
use super::verify::{Finding, Outcome};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::manifest::{Bundle, Provenance, Statement, Svr};
use crate::oci::{Descriptor, Digest, Manifest, MediaType, Reference, Referrer};
use crate::registry::Remote;
use crate::signing::PublicKey;
use crate::source;
use crate::storage::{Fetch as _, Refs as _, Verifier};

/// How many signatures of a model are looked at, in the order of their digests.
pub const MAX_SIGNATURES: usize = 128;
/// The largest manifest and the largest bundle that are read, in bytes.
const MAX_REFERRER: u64 = 64 << 10;
const MAX_BUNDLE: u64 = 1 << 20;
/// The longest policy that is read, in bytes.
const MAX_POLICY: u64 = 1 << 20;
/// How many of the refused are told.
const TOLD: usize = 5;

/// Whom to trust.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Keys of those who may stand for a model.
    pub keys: Vec<TrustedKey>,
    /// Who may have made it; anybody when there are none.
    pub builders: Vec<String>,
    /// What it may have been made from: sources as statements have them, or how they begin, before a `*`. Anything when
    /// there are none.
    pub sources: Vec<String>,
}

/// A key, and what it is called.
#[derive(Clone, Debug)]
pub struct TrustedKey {
    /// The file it was read from.
    pub name: String,
    /// The key.
    pub key: PublicKey,
}

/// A policy's file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    keys: Vec<PathBuf>,
    #[serde(default)]
    builders: Vec<String>,
    #[serde(default)]
    sources: Vec<String>,
}

impl Policy {
    /// Reads the TOML file `path`; the keys that it names lie beside it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when it is not understood or names no key, [`ErrorKind::Input`] when a file cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |what: &str| Error::new(ErrorKind::Usage, format!("The policy `{}` {what}", path.display()));
        let bytes = source::read_file(path, MAX_POLICY)?;
        let text = std::str::from_utf8(&bytes).map_err(|cause| wrong("is not UTF-8").caused_by(cause))?;
        let PolicyFile { keys, builders, sources } =
            toml::from_str(text).map_err(|cause| wrong("is not understood").caused_by(cause.message().to_owned()))?;
        if keys.is_empty() {
            return Err(wrong("names no key: nobody would be trusted"));
        }
        let beside = path.parent().unwrap_or(Path::new(""));
        let mut policy = Self { keys: Vec::new(), builders, sources };
        keys.iter().try_for_each(|key| policy.trust(&beside.join(key)))?;
        Ok(policy)
    }

    /// Trusts the key in the file `path`, too.
    ///
    /// # Errors
    /// As [`public_key`].
    pub fn trust(&mut self, path: &Path) -> Result<()> {
        self.keys.push(TrustedKey { name: path.display().to_string(), key: public_key(path)? });
        Ok(())
    }

    fn wants_provenance(&self) -> bool {
        !self.builders.is_empty() || !self.sources.is_empty()
    }
}

/// What came of the question whom to trust.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// What is wrong; nothing when the model is trusted.
    pub findings: Vec<Finding>,
    /// What is trusted, in the order of digests.
    pub accepted: Vec<Accepted>,
    /// What was there and is not trusted, with the reason.
    pub refused: Vec<(Digest, String)>,
    /// What nobody has checked, or could.
    pub not_checked: Vec<String>,
}

/// A statement that is trusted.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// The artifact that has it.
    pub digest: Digest,
    /// The name of the key.
    pub key: String,
    /// The statement.
    pub statement: Statement,
    /// What it says when it is on how the model was made.
    pub provenance: Option<Provenance>,
}

/// A bundle that a registry has for a manifest, or why it is none.
type Claim = (Digest, Result<Bundle>);

/// Checks whether `policy` trusts the manifest `subject` by what is attached to it in the repositories `places`: the first
/// that has something which counts is enough.
///
/// # Errors
/// [`ErrorKind::Usage`] when the policy has no key. What cannot be asked is a finding.
pub async fn check(subject: &Digest, places: &[Reference], policy: &Policy, access: &Access) -> Result<Trust> {
    if policy.keys.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "Nobody is trusted: no key is named")
            .hint("name one with `--key FILE`, or a policy with `--policy FILE`"));
    }
    let mut last = None;
    for place in places {
        let trust = match claims(subject, place, access).await {
            Ok((claims, passed_over)) => judge(subject, claims, passed_over, policy),
            Err(error) => {
                let message = format!("The signatures in `{}` cannot be read: {}", place.repository(), error.chain());
                Trust { findings: vec![Finding::new(Outcome::CouldNotCheck, message)], ..Trust::default() }
            }
        };
        if trust.findings.is_empty() {
            return Ok(trust);
        }
        last = Some(trust);
    }
    Ok(last.unwrap_or_else(|| {
        let message = "No registry is known to have signatures of the model: name it with `--signatures REFERENCE`";
        Trust { findings: vec![Finding::new(Outcome::CouldNotCheck, message)], ..Trust::default() }
    }))
}

/// The bundles that the repository of `place` has for `subject`, and how many it has besides those that are looked at.
async fn claims(subject: &Digest, place: &Reference, access: &Access) -> Result<(Vec<Claim>, usize)> {
    let remote = Remote::new(place, access.keychain.clone(), &access.options)?;
    let mut candidates = remote.referrers(subject, None).await?;
    candidates.retain(may_be_bundle);
    let passed_over = candidates.len().saturating_sub(MAX_SIGNATURES);
    candidates.truncate(MAX_SIGNATURES);
    let claims = candidates.into_iter().map(|candidate| {
        let (remote, digest) = (&remote, candidate.descriptor.digest);
        async move {
            match bundle(remote, place, subject, &candidate.descriptor).await {
                // Nobody can tell what it says.
                Err(error) if matches!(error.kind(), ErrorKind::Registry | ErrorKind::Unauthorized) => Err(error),
                Ok(None) => Ok(None),
                Ok(Some(bundle)) => Ok(Some((digest, Ok(bundle)))),
                Err(error) => Ok(Some((digest, Err(error)))),
            }
        }
    });
    let concurrency = access.options.concurrency.max(1);
    let claims: Vec<Option<Claim>> = stream::iter(claims).buffered(concurrency).try_collect().await?;
    Ok((claims.into_iter().flatten().collect(), passed_over))
}

/// Whether an entry of a list can be a bundle. Lists that `cosign` keeps under a tag have the type of the config in the place
/// of the artifact's.
fn may_be_bundle(referrer: &Referrer) -> bool {
    const EMPTY: &str = "application/vnd.oci.empty.v1+json";
    let is_bundle = |it: &MediaType| Bundle::is_media_type(it) || it.as_str() == EMPTY;
    referrer.artifact_type.as_ref().is_none_or(is_bundle)
}

/// The bundle in the artifact `target`; `None` when that is something else.
async fn bundle(remote: &Remote, place: &Reference, subject: &Digest, target: &Descriptor) -> Result<Option<Bundle>> {
    let odd = |message: String| Error::new(ErrorKind::NotTrusted, message);
    if target.size > MAX_REFERRER {
        return Err(odd(format!("Its manifest has {} bytes, more than are read", target.size)));
    }
    let found = remote.resolve(&pinned(place, &target.digest)?).await?;
    let (_, bytes) = found.ok_or_else(|| odd("It is listed and not there".to_owned()))?;
    let manifest = Manifest::parse(&bytes).map_err(|cause| odd("It is no artifact".to_owned()).caused_by(cause))?;
    let is_bundle = |it: &MediaType| Bundle::is_media_type(it);
    let Some(layer) = manifest.layers.iter().find(|layer| is_bundle(&layer.media_type)) else { return Ok(None) };
    let refers_to = manifest.subject.as_ref().map(|subject| subject.digest);
    if refers_to != Some(*subject) {
        return Err(odd("It is listed here and attached to another manifest".to_owned()));
    }
    if layer.size > MAX_BUNDLE {
        return Err(odd(format!("Its bundle has {} bytes, more than are read", layer.size)));
    }
    let content = remote.fetch(layer, 0..layer.size).await?;
    let mut content = content.ok_or_else(|| odd("Its bundle is not there".to_owned()))?;
    let (mut verifier, mut bundle) = (Verifier::new(layer), Vec::new());
    while let Some(chunk) = content.try_next().await? {
        verifier.update(&chunk)?;
        bundle.extend_from_slice(&chunk);
    }
    verifier.finish()?;
    Bundle::parse(&bundle).map(Some)
}

/// Holds what a registry has against the policy.
fn judge(subject: &Digest, claims: Vec<Claim>, passed_over: usize, policy: &Policy) -> Trust {
    let mut trust = Trust { not_checked: not_checked(policy), ..Trust::default() };
    if passed_over > 0 {
        let message = format!("{passed_over} more signatures: {MAX_SIGNATURES} are looked at");
        trust.not_checked.push(message);
    }
    for (digest, bundle) in claims {
        match bundle.and_then(|bundle| accept(digest, &bundle, subject, policy)) {
            Ok(accepted) => trust.accepted.push(accepted),
            Err(error) => trust.refused.push((digest, error.chain())),
        }
    }
    if let Some(message) = wrong(&trust.accepted, policy) {
        let mut finding = Finding::new(Outcome::NotTrusted, message);
        let reasons = trust.refused.iter().take(TOLD).map(|(digest, reason)| format!("`{digest}`: {reason}"));
        let reasons: Vec<String> = reasons.collect();
        finding.cause = (!reasons.is_empty()).then(|| reasons.join("; "));
        trust.findings.push(finding);
    }
    trust
}

/// What a signature cannot say, and what the policy does not ask.
fn not_checked(policy: &Policy) -> Vec<String> {
    let says = |what: &str| what.to_owned();
    let builders = policy.builders.is_empty().then(|| says("who made the model: the policy names no builder"));
    let sources = policy.sources.is_empty().then(|| says("what it was made from: the policy names no source"));
    let always = [
        says("when it was signed, and whether the key was withdrawn since: no log is asked"),
        says("whether the name should mean a newer model by now"),
    ];
    builders.into_iter().chain(sources).chain(always).collect()
}

/// Why what is accepted is not enough.
fn wrong(accepted: &[Accepted], policy: &Policy) -> Option<String> {
    let mut provenances = accepted.iter().filter_map(|it| Some((it.digest, it.provenance.as_ref()?)));
    if let Some((first, provenance)) = provenances.next() {
        let other = provenances.find(|(_, other)| other.build_definition != provenance.build_definition);
        if let Some((other, _)) = other {
            return Some(format!("Two statements disagree on how the model was made: `{first}` and `{other}`"));
        }
    } else if policy.wants_provenance() {
        return Some("No statement that is trusted says how the model was made, as the policy asks".to_owned());
    }
    // That somebody has made it again is worth knowing, and is not somebody who stands for it.
    let stands = accepted.iter().any(|it| it.statement.predicate_type != Svr::PREDICATE_TYPE);
    (!stands).then(|| "No signature of a key that is trusted stands for the model".to_owned())
}

/// What a bundle says, when the policy trusts it.
fn accept(digest: Digest, bundle: &Bundle, subject: &Digest, policy: &Policy) -> Result<Accepted> {
    let signer = Cell::new(None);
    let statement = bundle.dsse_envelope.open(|message, signature| {
        let key = policy.keys.iter().find(|it| it.key.verify(message, signature));
        signer.set(key);
        key.is_some()
    })?;
    statement.require_about(subject)?;
    let provenance = match statement.predicate_type.as_str() {
        Statement::SIGNATURE | Svr::PREDICATE_TYPE => None,
        Provenance::PREDICATE_TYPE => Some(Provenance::parse(&statement.predicate)?),
        other => {
            let message = format!("The statement is of the unknown kind {}", quoted(other));
            return Err(Error::new(ErrorKind::NotTrusted, message));
        }
    };
    if let Some(provenance) = &provenance {
        allows(provenance, policy)?;
    }
    let key = signer.get().map(|key| key.name.clone()).unwrap_or_default();
    Ok(Accepted { digest, key, statement, provenance })
}

/// Fails when the model was made by another builder or from another source than the policy names.
fn allows(provenance: &Provenance, policy: &Policy) -> Result<()> {
    let builder = &provenance.run_details.builder.id;
    let source = &provenance.build_definition.external_parameters.source;
    let is_like = |pattern: &String| match pattern.strip_suffix('*') {
        Some(beginning) => source.starts_with(beginning),
        None => source == pattern,
    };
    let message = if !policy.builders.is_empty() && !policy.builders.contains(builder) {
        format!("The builder {} is none of the policy's", quoted(builder))
    } else if !policy.sources.is_empty() && !policy.sources.iter().any(is_like) {
        format!("The source {} is none of the policy's", quoted(source))
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::NotTrusted, message))
}
