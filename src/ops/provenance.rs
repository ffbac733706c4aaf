//! How a model was made: what a run leaves in its note, and what a statement makes of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::create::{Part, Prepared};
use super::inspect::{find, lock};
use super::parallel;
use super::source::{Places, Source};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::manifest::{
    BuildDefinition, Builder, Content, Dependency, Dialect, DraftParameters, Lock, Metadata, Parameters, Provenance,
    RunDetails, Statement,
};
use crate::oci::{Descriptor, Digest, Hasher, MediaType, Reference, hex};
use crate::plan::{Plan, Profile};
use crate::progress::{Event, Progress};
use crate::quant::Instructions;
use crate::source::{Checkpoint, HubOrigin, SourceFile};
use crate::store::Store;

/// What a store remembers about the run that made a model. Never part of a digest; what earlier kilns did not write may be
/// missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Note {
    /// Where the draft lay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) draft: Option<String>,
    /// The SHA-256 of each file of the source, in hex, once somebody has asked for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) files: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instructions: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invocation: Option<String>,
    kiln: String,
    /// The repository on the hub that the source is of, and its commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) repository: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) revision: Option<String>,
    /// Where the source lay, as `kiln create` takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// What others keep there, such as how far the model was read.
    #[serde(flatten)]
    others: serde_json::Map<String, serde_json::Value>,
}

/// A run that makes a model.
pub(super) struct Run {
    started: OffsetDateTime,
}

impl Run {
    /// It begins now.
    pub(super) fn begin() -> Self {
        Self { started: OffsetDateTime::now_utc() }
    }

    /// The note of a run that ends now.
    pub(super) fn note(&self, prepared: &Prepared) -> Note {
        let root = |part: &Part| {
            let root = part.checkpoint.root();
            std::path::absolute(root).unwrap_or_else(|_| root.to_owned()).to_string_lossy().into_owned()
        };
        let origin = match &prepared.source {
            Source::Directory(_) => prepared.model.checkpoint.hub_origin(),
            _ => None,
        };
        let (repository, revision) = origin.map(|HubOrigin { repository, revision }| (repository, revision)).unzip();
        let source = match &prepared.source {
            // The snapshot, when it is an entry of a cache: what is downloaded later is another one.
            Source::Directory(_) => root(&prepared.model),
            other => other.to_string(),
        };
        Note {
            draft: prepared.draft.as_ref().map(root),
            files: None,
            finished: Some(rfc3339(OffsetDateTime::now_utc())),
            instructions: Instructions::available().last().map(|set| set.to_string()),
            invocation: invocation(),
            kiln: env!("CARGO_PKG_VERSION").to_owned(),
            repository,
            revision,
            source: Some(source),
            started: Some(rfc3339(self.started)),
            target: Some(format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)),
            others: serde_json::Map::new(),
        }
    }
}

impl Note {
    /// What the store remembers of `manifest`; nothing when it remembers nothing.
    ///
    /// # Errors
    /// As [`Store::note`].
    pub(super) fn read(store: &Store, manifest: &Digest) -> Result<Option<Self>> {
        Ok(store.note(manifest)?.and_then(|note| serde_json::from_value(note).ok()))
    }

    /// The source as it can be found now: where it lay, or, when it is gone from there, the same commit in the Hugging
    /// Face cache.
    pub(super) fn find_source(&self, places: &Places, progress: &Progress) -> Option<PathBuf> {
        let source = self.source.as_deref().map(PathBuf::from)?;
        let (Some(repository), Some(revision)) = (&self.repository, &self.revision) else { return Some(source) };
        if source.symlink_metadata().is_ok() {
            return Some(source);
        }
        let pinned = PathBuf::from(format!("hf:{repository}@{revision}"));
        if Source::find(&pinned, places).is_err() {
            return Some(source);
        }
        progress.note(format!("`{}` is gone: its commit is taken from the cache", source.display()));
        Some(pinned)
    }

    /// Keeps it.
    ///
    /// # Errors
    /// As [`Store::set_note`].
    pub(super) fn write(&self, store: &Store, manifest: &Digest) -> Result<()> {
        store.set_note(manifest, &serde_json::to_value(self).unwrap_or_default())
    }

    /// The source, as a person names it who has not this machine's directories.
    fn published_source(&self, source: &str) -> String {
        match &self.repository {
            Some(repository) => format!("hf://{repository}"),
            None => published(source),
        }
    }
}

/// Of a path, the last name: the others say something about a machine and nothing about a model.
fn published(source: &str) -> String {
    if is_model(source) {
        return source.to_owned();
    }
    let name = Path::new(source).file_name().map(|name| name.to_string_lossy().into_owned());
    format!("file:{}", name.unwrap_or_default())
}

/// Whether a source is a model that was published already.
fn is_model(source: &str) -> bool {
    source.starts_with("ref:") || source.starts_with("ollama:")
}

/// Now, as RFC 3339 has it.
pub(super) fn now() -> String {
    rfc3339(OffsetDateTime::now_utc())
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

fn invocation() -> Option<String> {
    let mut random = [0; 16];
    SystemRandom::new().fill(&mut random).ok()?;
    Some(hex(&random))
}

/// A statement on how a model was made.
#[derive(Clone, Debug)]
pub struct Attestation {
    /// The statement.
    pub statement: Statement,
    /// How many files of the source it names.
    pub files: u64,
    /// Why it names none, when it could.
    pub unhashed: Option<String>,
}

/// How to make a statement on how a model was made.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model.
    pub name: Reference,
    /// Who made it; [`Provenance::LOCAL_BUILDER`] when nobody is named.
    pub builder: Option<String>,
    /// What the statement calls the model.
    pub called: String,
    /// Where the source is looked for.
    pub places: Places,
    /// How many threads hash.
    pub threads: usize,
}

/// States how the model was made, from what the store remembers of that run. The files of the source are hashed if none has
/// changed since the run began, and remembered.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is no such model, [`ErrorKind::CouldNotCheck`] when it was not made here.
pub fn attest(store: &Store, options: &Options, progress: &Progress) -> Result<Attestation> {
    let (target, manifest) = find(store, &options.name)?;
    let unknown = |message: &str| {
        Error::new(ErrorKind::CouldNotCheck, message.to_owned())
            .hint("make the statement where the model was created: `kiln attest` there")
    };
    let lock =
        lock(store, &manifest)?.ok_or_else(|| unknown("The model has no `kiln.lock`: how it was made is not known"))?;
    let mut note = Note::read(store, &target.digest)?.ok_or_else(|| unknown("The model was not created here"))?;
    let source = note.source.clone().ok_or_else(|| unknown("Where the model came from is not known here"))?;
    let hashed = match &note.files {
        Some(files) => Ok(files.clone()),
        None => hash_source(&source, note.draft.as_deref(), &lock, note.started.as_deref(), options, progress),
    };
    let (files, unhashed) = match hashed {
        Ok(files) => (files, None),
        Err(error) => (BTreeMap::new(), Some(error.chain())),
    };
    if unhashed.is_none() && note.files.is_none() {
        note.files = Some(files.clone());
        note.write(store, &target.digest)?;
    }
    let lock_layer = manifest.layers.iter().find(|layer| Content::of(layer) == Content::Lock);
    let provenance = provenance(&note, &source, &lock, lock_layer, Dialect::of(&manifest), &files, options);
    let predicate = serde_json::to_value(provenance).unwrap_or_default();
    let statement = Statement::new(&target.digest, Some(options.called.clone()), Provenance::PREDICATE_TYPE, predicate);
    Ok(Attestation { statement, files: files.len() as u64, unhashed })
}

/// The SHA-256 of every file of the source and its draft.
fn hash_source(
    source: &str,
    draft: Option<&str>,
    lock: &Lock,
    started: Option<&str>,
    options: &Options,
    progress: &Progress,
) -> Result<BTreeMap<String, String>> {
    let Source::Directory(root) = Source::find(Path::new(source), &options.places)? else { return Ok(BTreeMap::new()) };
    let begun = started.and_then(|started| OffsetDateTime::parse(started, &Rfc3339).ok());
    let begun = begun.ok_or_else(|| Error::new(ErrorKind::CouldNotCheck, "When the model was made is not known"))?;
    let open = |root: &Path| match lock.profile == Profile::Hf.name() {
        true => Checkpoint::open_whole(root),
        false => Checkpoint::open(root),
    };
    let mut files = BTreeMap::new();
    for (prefix, root) in [("", Some(root)), (Plan::DRAFT_FILES, draft.map(PathBuf::from))] {
        let Some(root) = root else { continue };
        let checkpoint = open(&root)?;
        for file in checkpoint.files() {
            if file.changed() > (begun.unix_timestamp(), i64::from(begun.nanosecond())) {
                let message = format!("{} has changed since the model was made", quoted(file.name()));
                return Err(Error::new(ErrorKind::CouldNotCheck, message));
            }
        }
        let hashed = hash_files(&checkpoint, options.threads, progress)?;
        files.extend(hashed.into_iter().map(|(name, digest)| (format!("{prefix}{name}"), digest)));
    }
    Ok(files)
}

/// The SHA-256 of each file of a checkpoint, in hex, by name.
fn hash_files(checkpoint: &Checkpoint, threads: usize, progress: &Progress) -> Result<BTreeMap<String, String>> {
    let files = checkpoint.files();
    progress.report(Event::Started {
        task: "hash",
        blobs: files.len() as u64,
        bytes: files.iter().map(SourceFile::size).sum(),
    });
    let hashed = parallel::each(&files, threads, |file| {
        let mut hasher = Hasher::default();
        file.each_chunk(|chunk| {
            hasher.update(chunk);
            progress.advance(chunk.len() as u64);
        })?;
        Ok((file.name().to_owned(), hasher.finish().hex()))
    })?;
    Ok(hashed.into_iter().collect())
}

/// Holds the files of a source against those that a model was made of, as its note or a statement has them.
///
/// # Errors
/// [`ErrorKind::CouldNotCheck`] when one is another, missing, or more.
pub(super) fn check_files(
    recorded: &BTreeMap<String, String>,
    prepared: &Prepared,
    threads: usize,
    progress: &Progress,
) -> Result<()> {
    let mut found = hash_files(&prepared.model.checkpoint, threads, progress)?;
    if let Some(draft) = &prepared.draft {
        let draft = hash_files(&draft.checkpoint, threads, progress)?;
        found.extend(draft.into_iter().map(|(name, digest)| (format!("{}{name}", Plan::DRAFT_FILES), digest)));
    }
    let other = |name: &str, what: &str| {
        Err(Error::new(ErrorKind::CouldNotCheck, format!("The file {} of the source {what}", quoted(name))))
    };
    for (name, digest) in recorded {
        match found.remove(name) {
            None => return other(name, "is not there, and the model was made of it"),
            Some(actual) if actual != *digest => return other(name, "is not the one that the model was made of"),
            Some(_) => {}
        }
    }
    match found.keys().next() {
        Some(name) => other(name, "is none of those that the model was made of"),
        None => Ok(()),
    }
}

fn provenance(
    note: &Note,
    source: &str,
    lock: &Lock,
    lock_layer: Option<&Descriptor>,
    dialect: Dialect,
    files: &BTreeMap<String, String>,
    options: &Options,
) -> Provenance {
    let sha256 = |hex: &str| BTreeMap::from([("sha256".to_owned(), hex.to_owned())]);
    let map = |entries: Vec<(&str, Option<String>)>| -> BTreeMap<String, String> {
        entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    };
    let origin = note.repository.as_ref().zip(note.revision.as_ref());
    let repository = origin.map(|(repository, revision)| Dependency {
        digest: BTreeMap::from([("gitCommit".to_owned(), revision.clone())]),
        media_type: None,
        name: None,
        uri: Some(format!("pkg:huggingface/{repository}@{revision}")),
    });
    // A model that was published already: its manifest names all its content.
    let pinned = source.rsplit_once('@').filter(|_| is_model(source));
    let model = pinned.and_then(|(_, digest)| digest.parse::<Digest>().ok()).map(|digest| Dependency {
        digest: BTreeMap::from([(digest.algorithm().as_str().to_owned(), digest.hex())]),
        media_type: None,
        name: None,
        uri: Some(source.to_owned()),
    });
    let files = files.iter().map(|(name, digest)| Dependency {
        digest: sha256(digest),
        media_type: None,
        name: Some(name.clone()),
        uri: origin
            .filter(|_| !name.starts_with(Plan::DRAFT_FILES))
            .map(|(repository, revision)| format!("https://huggingface.co/{repository}/resolve/{revision}/{name}")),
    });
    let lock_digest = lock_layer.map(|layer| layer.digest);
    Provenance {
        build_definition: BuildDefinition {
            build_type: Provenance::BUILD_TYPE.to_owned(),
            external_parameters: Parameters {
                dialect: dialect.name().to_owned(),
                draft: lock.draft.as_ref().map(|draft| DraftParameters {
                    scheme: draft.scheme.clone(),
                    source: published(note.draft.as_deref().unwrap_or_default()),
                }),
                modelfile: lock.modelfile.clone(),
                policy: lock.policy.clone(),
                profile: lock.profile.clone(),
                revision: note.revision.clone(),
                scheme: lock.scheme.clone(),
                source: note.published_source(source),
            },
            internal_parameters: map(vec![
                ("epoch", Some(lock.epoch.to_string())),
                ("lock", lock_digest.map(|digest| digest.to_string())),
                ("numerics", Some(lock.numerics.clone())),
            ]),
            resolved_dependencies: repository.into_iter().chain(model).chain(files).collect(),
        },
        run_details: RunDetails {
            builder: Builder {
                id: options.builder.clone().unwrap_or_else(|| Provenance::LOCAL_BUILDER.to_owned()),
                version: map(vec![
                    ("instructions", note.instructions.clone()),
                    ("kiln", Some(note.kiln.clone())),
                    ("target", note.target.clone()),
                ]),
            },
            byproducts: lock_digest
                .map(|digest| Dependency {
                    digest: sha256(&digest.hex()),
                    media_type: Some(MediaType::KILN_LOCK.as_str().to_owned()),
                    name: Some(Lock::NAME.to_owned()),
                    uri: None,
                })
                .into_iter()
                .collect(),
            metadata: Metadata {
                finished_on: note.finished.clone(),
                invocation_id: note.invocation.clone(),
                started_on: note.started.clone(),
            },
        },
    }
}
