//! Verifying a model, level by level: structure, digests, tensors, rebuild. Each level implies those
//! before it; what was not checked is said, and "could not check" is never a pass.

mod portion;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

pub use portion::{Portion, Sample, longest_unread};

use super::again::{Again, Named};
use super::create;
use super::explain::{self, Between, Side};
pub use super::explain::{Compared, Groups, Member, Number, Place};
use super::held::Held;
use super::inspect::{lock, require};
use super::parallel;
use super::source::Places;
use crate::arch::{Family, ModelFacts};
use crate::blobs::{Entry, encode_header};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::inventory::Dtype;
use crate::manifest::{Content, Dialect, Lock, LockedTensor, layer_name};
use crate::oci::{Descriptor, Digest, Manifest, Reference};
use crate::plan::{Packed, Plan, PlannedBlob, PlannedTensor, Profile, Transform};
use crate::progress::{Event, Progress};
use crate::quant::Scheme;
use crate::source::parse_config;
use crate::store::{Damage, Store};
use portion::{Round, unread};

/// How much is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The manifest is well-formed and every blob is there with its size.
    Structure,
    /// Every blob has the bytes its digest promises.
    Digests,
    /// Every tensor layer is canonical and holds what the lock and the config say.
    Tensors,
    /// Creating the model again from its source gives the same bytes.
    Rebuild,
    /// Somebody who is trusted stands for it: [`super::trust`] checks that, where the signatures are kept.
    Trust,
}

impl Level {
    /// Every level, the cheapest first.
    pub const ALL: [Self; 5] = [Self::Structure, Self::Digests, Self::Tensors, Self::Rebuild, Self::Trust];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Structure => "structure",
            Self::Digests => "digests",
            Self::Tensors => "tensors",
            Self::Rebuild => "rebuild",
            Self::Trust => "trust",
        }
    }
}

/// What to verify, and how far.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model.
    pub name: Reference,
    /// How far to go.
    pub level: Level,
    /// How much of it is read, for level [`Level::Digests`]; the levels behind it need all.
    pub portion: Portion,
    /// What was read already and is right.
    pub sound: Sound,
    /// The source for a rebuild, as [`super::source::Source::find`] takes it; `None` takes what the store remembers.
    pub source: Option<PathBuf>,
    /// The checkpoint of the draft for a rebuild; `None` takes the place the store remembers.
    pub draft: Option<PathBuf>,
    /// Where the source is looked for besides the store itself.
    pub places: Places,
    /// How many threads hash and re-create.
    pub threads: usize,
}

impl Options {
    /// A model of the store, all of it, on one thread. A rebuild takes the source that the store remembers.
    pub fn new(name: Reference, level: Level) -> Self {
        let (portion, sound, places) = (Portion::default(), Sound::default(), Places::default());
        Self { name, level, portion, sound, source: None, draft: None, places, threads: 1 }
    }
}

/// Blobs that a run of verifications has read and found right, so that what several models share is read once. A clone
/// is the same one.
#[derive(Clone, Debug, Default)]
pub struct Sound(Arc<Mutex<BTreeSet<Digest>>>);

impl Sound {
    fn has(&self, digest: &Digest) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }

    fn add(&self, digest: Digest) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
    }
}

/// The verdict; the most severe finding decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Everything asked for was checked and holds.
    Ok,
    /// Something could not be checked.
    CouldNotCheck,
    /// The re-creation differs.
    NotReproduced,
    /// Nobody who is trusted stands for it.
    NotTrusted,
    /// Stored bytes are not what they should be.
    Corrupt,
}

impl Outcome {
    /// The most severe of `findings`.
    pub(super) fn of(findings: &[Finding]) -> Self {
        findings.iter().map(|finding| finding.outcome).max().unwrap_or(Self::Ok)
    }

    /// The word in a report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::CouldNotCheck => "could-not-check",
            Self::NotReproduced => "not-reproduced",
            Self::NotTrusted => "not-trusted",
            Self::Corrupt => "corrupt",
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What it means for the verdict.
    pub outcome: Outcome,
    /// One sentence.
    pub message: String,
    /// The layer it is in, by name.
    pub layer: Option<String>,
    /// The tensor it is in.
    pub tensor: Option<String>,
    /// Which part, the first of several: `header`, `padding`, `values`, `packed`, `scales`, `biases`, `global scale`.
    pub part: Option<&'static str>,
    /// How many bytes of this part differ.
    pub bytes: Option<u64>,
    /// The likely cause.
    pub cause: Option<String>,
    /// Every array, header or file that was compared byte by byte and differs.
    pub arrays: Vec<Compared>,
    /// The members of JSON texts that differ.
    pub members: Vec<Member>,
}

impl Finding {
    pub(super) fn new(outcome: Outcome, message: impl Into<String>) -> Self {
        let message = message.into();
        let (arrays, members) = (Vec::new(), Vec::new());
        Self { outcome, message, layer: None, tensor: None, part: None, bytes: None, cause: None, arrays, members }
    }

    /// That a blob is not what it should be.
    pub(super) fn damaged(blob: &Descriptor, damage: Damage) -> Self {
        let whose = blob.layer_name().map_or_else(|| blob.media_type.to_string(), |_| layer_name(blob));
        let message = format!("The blob `{}` of {} {damage}", blob.digest, quoted(&whose));
        Self::new(Outcome::Corrupt, message).in_layer(blob)
    }

    /// What an error says about the model; one that says nothing about it stays an error.
    pub(super) fn of(error: Error) -> Result<Self> {
        match error.kind() {
            ErrorKind::Corrupt => Ok(Self::new(Outcome::Corrupt, error.chain())),
            ErrorKind::CouldNotCheck => Ok(Self::new(Outcome::CouldNotCheck, error.chain())),
            ErrorKind::NotTrusted => Ok(Self::new(Outcome::NotTrusted, error.chain())),
            _ => Err(error),
        }
    }

    pub(super) fn in_layer(mut self, layer: &Descriptor) -> Self {
        self.layer = Some(layer_name(layer));
        self
    }
}

/// What a verification gave.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The manifest's digest.
    pub digest: Digest,
    /// The level that was asked for.
    pub level: Level,
    /// Everything that was found, in the order of the checks.
    pub findings: Vec<Finding>,
    /// How many blobs the model has, its manifest among them.
    pub blobs: u64,
    /// How many of them were not read because they were not asked for: those of other samples.
    pub left_out: u64,
    /// Levels that nothing is known about: none asked for them, an earlier one failed, or they could not be
    /// checked.
    pub not_checked: Vec<Level>,
}

impl Verified {
    fn nothing(target: &Descriptor, level: Level) -> Self {
        let (findings, not_checked) = (Vec::new(), Vec::new());
        Self { digest: target.digest, level, findings, blobs: 0, left_out: 0, not_checked }
    }

    /// What an error about the manifest itself means.
    pub(super) fn unreadable(target: &Descriptor, level: Level, error: Error) -> Result<Self> {
        let (findings, not_checked) = (vec![Finding::of(error)?], Level::ALL[1..].to_vec());
        Ok(Self { findings, not_checked, ..Self::nothing(target, level) })
    }

    /// The verdict.
    pub fn outcome(&self) -> Outcome {
        Outcome::of(&self.findings)
    }
}

/// Verifies a model.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is no such model. Damage is a finding, not an error.
pub fn verify(store: &Store, options: &Options, progress: &Progress) -> Result<Verified> {
    let target = require(store, &options.name)?;
    let manifest = match store.manifest(&target) {
        Ok((manifest, _)) => manifest,
        Err(error) => return Verified::unreadable(&target, options.level, error),
    };
    let places = Places { store: Some(store.clone()), ..options.places.clone() };
    let options = &Options { places, ..options.clone() };
    let (target, manifest, streams) = (&target, &manifest, options.threads);
    let verified = Model { held: store, notes: Some(store), target, manifest, options, streams, progress }.verify()?;
    if verified.outcome() == Outcome::Ok {
        store.keep_stamps(&target.digest, manifest.blobs());
    }
    Ok(verified)
}

/// A model that is verified.
pub(super) struct Model<'a> {
    pub(super) held: &'a dyn Held,
    /// The store that keeps how far a run came.
    pub(super) notes: Option<&'a Store>,
    pub(super) target: &'a Descriptor,
    pub(super) manifest: &'a Manifest,
    pub(super) options: &'a Options,
    /// How many blobs are looked at or read at once.
    pub(super) streams: usize,
    pub(super) progress: &'a Progress,
}

impl Model<'_> {
    pub(super) fn verify(&self) -> Result<Verified> {
        let blobs = 1 + self.manifest.blobs().count() as u64;
        let mut verified = Verified { blobs, ..Verified::nothing(self.target, self.options.level) };
        for level in Level::ALL {
            if level > self.options.level || level == Level::Trust || verified.outcome() != Outcome::Ok {
                verified.not_checked.push(level);
                continue;
            }
            let found = match level {
                Level::Structure => self.structure(),
                Level::Digests => {
                    verified.left_out =
                        self.manifest.blobs().filter(|blob| !self.options.portion.includes(blob)).count() as u64;
                    self.digests()
                }
                Level::Tensors => self.tensors(),
                // Trust is asked elsewhere, and has been passed over above.
                Level::Rebuild | Level::Trust => self.rebuild(),
            };
            let findings = found.or_else(|error| Finding::of(error).map(|finding| vec![finding]))?;
            if findings.iter().any(|finding| finding.outcome == Outcome::CouldNotCheck) {
                verified.not_checked.push(level);
            }
            verified.findings.extend(findings);
        }
        Ok(verified)
    }

    fn structure(&self) -> Result<Vec<Finding>> {
        let blobs: Vec<&Descriptor> = self.manifest.blobs().collect();
        let looked = parallel::each(&blobs, self.streams, |blob| self.held.look(blob))?;
        Ok(looked.into_iter().flatten().collect())
    }

    fn digests(&self) -> Result<Vec<Finding>> {
        let Options { portion, sound, .. } = self.options;
        let all = portion.of(self.manifest);
        let mut round =
            self.notes.filter(|_| portion.until.is_some()).map(|store| (store, Round::of(store, &self.target.digest)));
        let after = round.as_ref().and_then(|(_, round)| round.after);
        let blobs: Vec<&Descriptor> = all.iter().filter(|blob| Some(blob.digest) > after).copied().collect();
        let bytes = blobs.iter().fold(0, |sum: u64, blob| sum.saturating_add(blob.size));
        self.progress.report(Event::Started { task: "verify", blobs: blobs.len() as u64, bytes });
        let checked = parallel::each(&blobs, self.streams, |blob| {
            if sound.has(&blob.digest) {
                self.progress.advance(blob.size);
                return Ok(Some(None));
            }
            if portion.is_over() && blob.digest != blobs[0].digest {
                return Ok(None);
            }
            let found = self.held.check(blob, self.progress)?;
            if found.is_none() {
                sound.add(blob.digest);
            }
            Ok(Some(found))
        })?;
        let left = checked.iter().filter(|checked| checked.is_none()).count();
        if let Some((store, round)) = &mut round {
            let read = checked.iter().position(Option::is_none).unwrap_or(blobs.len());
            round.advance(blobs[..read].last().map(|blob| blob.digest), left == 0);
            // Where it cannot be kept, the next run begins where this one did.
            let _ = round.keep(store, &self.target.digest);
        }
        let findings = checked.into_iter().flatten().flatten();
        Ok(findings.chain((left > 0).then(|| unread(left, all.len()))).collect())
    }

    /// Every tensor layer parses, is in canonical form, and holds the arrays that the lock names; the
    /// lock's tensors agree with the config.
    fn tensors(&self) -> Result<Vec<Finding>> {
        let Some(lock) = lock(self.held, self.manifest)? else {
            return Ok(vec![Finding::new(
                Outcome::CouldNotCheck,
                "The model has no `kiln.lock`: which tensors it should have is not known",
            )]);
        };
        let Ok(profile) = lock.profile.parse() else {
            let message =
                format!("The model is of the profile {}, which this kiln does not have", quoted(&lock.profile));
            return Ok(vec![Finding::new(Outcome::CouldNotCheck, message)]);
        };
        let mut findings = Vec::new();
        let mut locked: BTreeMap<String, Vec<&LockedTensor>> = BTreeMap::new();
        for tensor in &lock.tensors {
            locked.entry(tensor.layer.clone()).or_default().push(tensor);
        }
        let layers = || self.manifest.layers.iter().filter(|layer| Content::of(layer) == Content::Tensors);
        for layer in layers() {
            let locked = locked.get(&layer_name(layer)).map(Vec::as_slice).unwrap_or_default();
            if let Err(error) = self.layer_agrees(layer, locked, profile) {
                findings.push(Finding::of(error)?.in_layer(layer));
            }
        }
        let present: BTreeSet<String> = layers().map(layer_name).collect();
        for tensor in lock.tensors.iter().filter(|tensor| !present.contains(&tensor.layer)) {
            let message = format!("The layer of {} is not in the manifest", quoted(&tensor.name));
            findings.push(Finding::new(Outcome::Corrupt, message));
        }
        findings.extend(self.config_agrees(&lock)?);
        Ok(findings)
    }

    fn layer_agrees(&self, layer: &Descriptor, locked: &[&LockedTensor], profile: Profile) -> Result<()> {
        let corrupt = |message: String| Error::new(ErrorKind::Corrupt, message);
        let name = quoted(&layer_name(layer));
        let (header, stored) = self.held.header(layer)?;
        if profile == Profile::Hf {
            return Ok(()); // the form is the source's
        }
        let entries: Vec<Entry> = header
            .tensors
            .iter()
            .map(|entry| Entry {
                name: entry.name.clone(),
                dtype: entry.dtype.name(),
                shape: entry.shape.clone(),
                data_offsets: [entry.begin, entry.end],
            })
            .collect();
        let in_order = entries.is_sorted_by(|a, b| a.name < b.name);
        if encode_header(&header.metadata, &entries) != stored || !in_order {
            return Err(corrupt(format!("The layer {name} is not in canonical form")));
        }
        let expected = planned(locked, profile)?;
        let metadata = expected.metadata();
        let parts = expected.parts();
        for ((_, part), entry) in parts.iter().zip(&entries) {
            if (&*part.name, part.dtype.name(), &part.shape) != (&*entry.name, entry.dtype, &entry.shape) {
                let found = format!("{} {} {:?}", quoted(&entry.name), entry.dtype, entry.shape);
                let locked = format!("{} {} {:?}", quoted(&part.name), part.dtype, part.shape);
                return Err(corrupt(format!("The layer {name} has {found} where the lock says {locked}")));
            }
        }
        if parts.len() != entries.len() {
            return Err(corrupt(format!(
                "The layer {name} has {} arrays where the lock says {}",
                entries.len(),
                parts.len()
            )));
        }
        if metadata != header.metadata {
            return Err(corrupt(format!("The layer {name} names another quantization than the lock")));
        }
        Ok(())
    }

    /// Holds the tensors against the config of their checkpoint: the model's, and the draft's.
    fn config_agrees(&self, lock: &Lock) -> Result<Vec<Finding>> {
        let shapes = |prefix: &'static str| {
            let tensors = lock.tensors.iter().map(|tensor| (&*tensor.name, &*tensor.shape));
            tensors.filter_map(move |(name, shape)| Some((name.strip_prefix(prefix)?, shape)))
        };
        if lock.profile == Profile::Hf.name() {
            // No tensor is locked.
            return self.config_holds("config.json", None::<std::iter::Empty<_>>);
        }
        if lock.draft.is_none() {
            return self.config_holds("config.json", Some(shapes("")));
        }
        let own = shapes("").filter(|(name, _)| !name.starts_with(Plan::DRAFT_TENSORS));
        let mut findings = self.config_holds("config.json", Some(own))?;
        let config = format!("{}config.json", Plan::DRAFT_FILES);
        findings.extend(self.config_holds(&config, Some(shapes(Plan::DRAFT_TENSORS)))?);
        Ok(findings)
    }

    /// Holds `shapes`, if they are known, against the config of this name.
    fn config_holds<'a>(
        &self,
        name: &str,
        shapes: Option<impl Iterator<Item = (&'a str, &'a [u64])>>,
    ) -> Result<Vec<Finding>> {
        let Some(layer) = self.manifest.layers.iter().find(|layer| layer_name(layer) == name) else {
            return Ok(vec![Finding::new(Outcome::Corrupt, format!("The model has no `{name}`"))]);
        };
        let config = match parse_config(&self.held.read(layer)?) {
            Ok(config) if config.is_object() => config,
            _ => {
                return Ok(vec![
                    Finding::new(Outcome::Corrupt, format!("`{name}` is not a JSON object")).in_layer(layer),
                ]);
            }
        };
        let Some(shapes) = shapes else { return Ok(Vec::new()) };
        let facts = ModelFacts::of(&config);
        let contradictions = Family::of(&facts).contradictions(&facts, shapes);
        Ok(contradictions.into_iter().map(|sentence| Finding::new(Outcome::Corrupt, sentence)).collect())
    }

    /// Creates the model again in a throw-away store and compares.
    fn rebuild(&self) -> Result<Vec<Finding>> {
        let Options { source, draft, places, threads, .. } = self.options;
        let named = Named { source: source.as_deref(), draft: draft.as_deref() };
        let again = Again::plan(self.held, self.target, self.manifest, named, places, *threads, self.progress)?;
        let place = tempfile::Builder::new().prefix("kiln-rebuild-").tempdir().map_err(|cause| {
            Error::new(ErrorKind::Store, "Could not make a directory for the re-creation").caused_by(cause)
        })?;
        let store = Store::open(place.path())?;
        let import = store.begin_import()?;
        // Not as many threads as a creation with the same settings had: how many there are must not show.
        let (dialect, other) = (Dialect::of(self.manifest), threads + 1);
        let built = create::build(&again.prepared, dialect, other, &import, self.progress)
            .map_err(|error| again.failed(error))?;
        import.commit(&self.options.name.without_digest(), &built.manifest)?;
        if built.manifest.digest == self.target.digest {
            return Ok(Vec::new());
        }
        let (manifest, _) = store.manifest(&built.manifest)?;
        let published = self.held.in_store(&store)?;
        let (ours, again) = (Side::new(&published, self.manifest), Side::new(&store, &manifest));
        Ok(explain::compare(&ours, &again, Between::Rebuild, *threads, &Progress::silent())?.findings)
    }
}

/// The layer that these locked tensors describe, as a plan would have it.
fn planned(locked: &[&LockedTensor], profile: Profile) -> Result<PlannedBlob> {
    let corrupt = |message: String| Error::new(ErrorKind::Corrupt, message);
    let tensors = locked.iter().map(|tensor| {
        let dtype: Dtype = tensor.dtype.parse()?;
        let scheme: Option<Scheme> = tensor.scheme.as_deref().map(str::parse).transpose()?;
        let columns = tensor.shape.last().copied().unwrap_or(0);
        if scheme.is_some_and(|scheme| columns % scheme.group_size() as u64 != 0) {
            return Err(corrupt(format!(
                "The lock quantizes {} in groups that do not fit its rows",
                quoted(&tensor.name)
            )));
        }
        let packed = tensor.packed.as_ref().map(|packed| Packed {
            global: packed.global_scale.clone().map(|shape| (shape, Vec::new())),
            ..Packed::default()
        });
        Ok(PlannedTensor {
            name: tensor.name.clone(),
            profile,
            dtype,
            shape: tensor.shape.clone(),
            sources: Vec::new(),
            segments: Vec::new(),
            packed,
            transform: Transform::Copy,
            steps: Vec::new(),
            scheme,
            why: "".into(),
            finite: false,
        })
    });
    let mut tensors: Vec<PlannedTensor> = tensors
        .collect::<Result<_>>()
        .map_err(|cause| corrupt("`kiln.lock` describes a tensor that cannot be".to_owned()).caused_by(cause))?;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(PlannedBlob { name: String::new(), tensors })
}
