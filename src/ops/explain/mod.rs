//! Explaining a difference between two models: from the manifest over config, layer, header and tensor down to groups
//! and bytes, and no further than to the level that explains it. Layers and tensors are matched by their digests before
//! their names, so that what was moved or put in another order is told as that.

mod bytes;
mod cause;
mod document;
mod header;
mod layer;
mod number;
mod order;
mod pair;
mod tensors;

use std::collections::BTreeMap;
use std::fs::File;

pub use bytes::{Compared, Groups, Place};
pub use document::Member;
pub use number::Number;
pub use pair::{Change, LayerChange};

use super::inspect::lock;
use super::parallel;
use super::verify::{Finding, Outcome};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::json;
use crate::manifest::{Content, Lock, LockedTensor, layer_name};
use crate::oci::{Descriptor, Manifest};
use crate::plan::Profile;
use crate::progress::{Event, Progress};
use crate::store::Store;
use layer::Layer;
use tensors::Tensors;

/// How many layers are compared byte by byte; the rest are counted.
const MOST_LAYERS: usize = 8;
/// How many findings there are in all; the rest are counted.
const MOST_FINDINGS: usize = 64;
/// The largest file that is compared as a text, in bytes.
const LONGEST_TEXT: u64 = 4 << 20;

/// One of the two models.
pub(super) struct Side<'a> {
    store: &'a Store,
    manifest: &'a Manifest,
    lock: Option<Lock>,
    /// The place of each tensor in the lock.
    places: BTreeMap<String, usize>,
}

impl<'a> Side<'a> {
    /// A model. A lock that cannot be read is as none: it is asked for causes only.
    pub(super) fn new(store: &'a Store, manifest: &'a Manifest) -> Self {
        let lock = lock(store, manifest).ok().flatten();
        let tensors = lock.iter().flat_map(|lock| &lock.tensors).enumerate();
        let places = tensors.map(|(place, tensor)| (tensor.name.clone(), place)).collect();
        Self { store, manifest, lock, places }
    }

    /// The layers in their order.
    pub(super) fn layers(&self) -> &[Descriptor] {
        &self.manifest.layers
    }

    /// What the lock says about a tensor.
    fn locked(&self, name: &str) -> Option<&LockedTensor> {
        self.lock.as_ref()?.tensors.get(*self.places.get(name)?)
    }

    fn are_files(&self) -> bool {
        self.lock.as_ref().is_some_and(|lock| lock.profile == Profile::Hf.name())
    }
}

/// What the second model is to the first, which is how it is spoken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Between {
    /// Its re-creation.
    Rebuild,
    /// Another one.
    Models,
}

impl Between {
    fn other(self) -> &'static str {
        match self {
            Self::Rebuild => "The re-creation",
            Self::Models => "The second model",
        }
    }

    fn there(self) -> &'static str {
        match self {
            Self::Rebuild => "again",
            Self::Models => "there",
        }
    }

    fn file_cause(self) -> Option<String> {
        (self == Self::Rebuild).then(|| "the source has another version of this file".to_owned())
    }
}

/// What two models have in common, and every difference between them.
pub(super) struct Comparison {
    /// The first model's layers in its order, then those that only the second has.
    pub(super) layers: Vec<LayerChange>,
    /// From the cause to the consequence: layers, and only when they agree lock, config, manifest.
    pub(super) findings: Vec<Finding>,
}

/// Compares two models.
///
/// # Errors
/// [`ErrorKind::Store`] when a layer cannot be read, [`ErrorKind::Corrupt`] when one of another model is damaged. What
/// is compared with its re-creation was checked before.
pub(super) fn compare(
    ours: &Side<'_>,
    theirs: &Side<'_>,
    between: Between,
    threads: usize,
    progress: &Progress,
) -> Result<Comparison> {
    let layers = pair::pair(&ours.manifest.layers, &theirs.manifest.layers);
    let differing = |change: &&LayerChange| !matches!(change.change, Change::Shared | Change::Moved);
    let is_tensors = |layer: &&Descriptor| Content::of(layer) == Content::Tensors;
    let ours_of = layers.iter().filter(differing).filter_map(|change| change.ours.as_ref()).filter(is_tensors);
    let theirs_of = layers.iter().filter(differing).filter_map(|change| change.theirs.as_ref()).filter(is_tensors);
    let wanted: Vec<_> = ours_of.map(|layer| (ours, layer)).chain(theirs_of.map(|layer| (theirs, layer))).collect();
    let number = wanted.iter().filter(|(side, _)| std::ptr::eq(*side, ours)).count();
    if between == Between::Models && !wanted.is_empty() {
        let bytes = wanted.iter().fold(0, |sum: u64, (_, layer)| sum.saturating_add(layer.size));
        progress.report(Event::Started { task: "diff", blobs: wanted.len() as u64, bytes });
        parallel::each(&wanted, threads, |(side, layer)| sound(side, layer, progress))?;
    }
    let mut read = parallel::each(&wanted, threads, |(side, layer)| Layer::read(side, layer))?;
    let mut their_layers = read.split_off(number);
    let mut our_layers = read;
    header::set_aside_unreadable(&mut our_layers, &mut their_layers);
    let tensors = Tensors::matched((ours, &our_layers), (theirs, &their_layers), between);

    let is_lock = |change: &LayerChange| change.ours.as_ref().is_some_and(|layer| Content::of(layer) == Content::Lock);
    let mut findings = Vec::new();
    let mut compared = 0;
    let mut more = 0;
    for change in &layers {
        let found = match &change {
            LayerChange { change: Change::Shared, .. } => continue,
            LayerChange { change: Change::Moved, ours: Some(layer), theirs: Some(other), .. } => {
                let (from, to) = (quoted(&layer_name(layer)), quoted(&layer_name(other)));
                let message = format!("The layer {from} is called {to} {}", between.there());
                vec![Finding {
                    cause: Some("the same bytes under another name".to_owned()),
                    ..Finding::new(Outcome::NotReproduced, message).in_layer(layer)
                }]
            }
            LayerChange { ours: Some(layer), theirs, .. } if is_tensors(&layer) => {
                let name = layer_name(layer);
                let mut found = tensors.moved(&name);
                if tensors.is_changed(&name) {
                    compared += 1;
                    if compared > MOST_LAYERS {
                        more += 1;
                    } else {
                        found.extend(tensors.changed(&name)?);
                    }
                }
                found.extend(tensors.lost(&name));
                found.extend(theirs.as_ref().and_then(|theirs| tensors.gained(&layer_name(theirs))));
                if found.is_empty() && !tensors.explains(&name) {
                    let named = |layers: &[Layer<'_>]| layers.iter().position(|layer| layer.name == name);
                    found.push(match (named(&our_layers), named(&their_layers)) {
                        (Some(here), Some(there)) => header::differs(&our_layers[here], &their_layers[there])?,
                        _ => missing(layer, between),
                    });
                }
                found
            }
            LayerChange { ours: Some(_), theirs: Some(_), .. } if is_lock(change) => continue,
            LayerChange { ours: Some(layer), theirs: Some(other), .. } => {
                vec![file(ours, layer, theirs, other, between)?]
            }
            LayerChange { ours: Some(layer), theirs: None, .. } => vec![missing(layer, between)],
            LayerChange { ours: None, theirs: Some(layer), .. } => {
                let name = layer_name(layer);
                let another = || {
                    let message = format!("{} has another layer, {}", between.other(), quoted(&name));
                    Finding::new(Outcome::NotReproduced, message).in_layer(layer)
                };
                let is_told = is_tensors(&layer) && tensors.explains(&name);
                tensors.gained(&name).or_else(|| (!is_told).then(another)).into_iter().collect()
            }
            LayerChange { ours: None, theirs: None, .. } => continue,
        };
        findings.extend(found);
    }
    let layers = layers.iter().map(|change| tensors.traced(change)).collect();
    if more > 0 {
        findings.push(Finding::new(Outcome::NotReproduced, format!("{more} more layers differ")));
    }
    if findings.is_empty() {
        findings = consequences(ours, theirs, between)?;
    }
    if findings.len() > MOST_FINDINGS {
        let more = findings.split_off(MOST_FINDINGS).len();
        findings.push(Finding::new(Outcome::NotReproduced, format!("{more} more differences")));
    }
    Ok(Comparison { layers, findings })
}

/// Checks that a layer has the bytes its digest promises: others would be told as the model's.
fn sound(side: &Side<'_>, layer: &Descriptor, progress: &Progress) -> Result<()> {
    side.store.check(layer, progress)?.map_err(|damage| {
        let message = format!("The blob `{}` of {} {damage}", layer.digest, quoted(&layer_name(layer)));
        Error::new(ErrorKind::Corrupt, message).hint("`kiln verify` says what else of the model is damaged")
    })
}

/// The stored file of a layer.
pub(super) fn open(store: &Store, layer: &Descriptor) -> Result<File> {
    let path = store.blob_path(&layer.digest);
    File::open(&path).map_err(|cause| Error::io(ErrorKind::Store, "open", &path, cause))
}

/// A layer without tensors that the second model does not have.
fn missing(layer: &Descriptor, between: Between) -> Finding {
    let message = format!("{} has no layer {}", between.other(), quoted(&layer_name(layer)));
    let cause = (between == Between::Rebuild).then(|| "the source lacks this file".to_owned());
    Finding { cause, ..Finding::new(Outcome::NotReproduced, message).in_layer(layer) }
}

/// Two files of the same name.
fn file(
    ours: &Side<'_>,
    layer: &Descriptor,
    theirs: &Side<'_>,
    other: &Descriptor,
    between: Between,
) -> Result<Finding> {
    let name = quoted(&layer_name(layer));
    let finding = |message: String, cause: Option<String>| Finding {
        cause,
        ..Finding::new(Outcome::NotReproduced, message).in_layer(layer)
    };
    if layer.size.max(other.size) > LONGEST_TEXT {
        return Ok(finding(format!("The file {name} differs"), between.file_cause()));
    }
    let (here, there) = (ours.store.read_blob(layer)?, theirs.store.read_blob(other)?);
    if let (Ok(a), Ok(b)) = (json::parse(&here), json::parse(&there)) {
        let members = document::members(&a, &b);
        if members.is_empty() {
            let cause = "the same JSON in another spelling".to_owned();
            return Ok(finding(format!("The file {name} differs"), Some(cause)));
        }
        let told = members.iter().map(|member| quoted(&member.path)).collect::<Vec<_>>().join(", ");
        let finding = finding(format!("The file {name} differs in {told}"), between.file_cause());
        return Ok(Finding { members, ..finding });
    }
    let compared = bytes::texts("file", 0, &here, &there);
    let line = 1 + here[..compared.first as usize].iter().filter(|byte| **byte == b'\n').count();
    let message = format!("The file {name} differs from byte {} on, in line {line}", compared.first);
    Ok(Finding { arrays: vec![compared], ..finding(message, between.file_cause()) })
}

/// All layers but the lock agree, yet the manifests do not.
fn consequences(ours: &Side<'_>, theirs: &Side<'_>, between: Between) -> Result<Vec<Finding>> {
    let mut findings: Vec<Finding> = lock_differs(ours, theirs, between).into_iter().collect();
    let (ours, theirs) = ((ours.store, ours.manifest), (theirs.store, theirs.manifest));
    if ours.1.config.digest != theirs.1.config.digest {
        let read = |(store, manifest): (&Store, &Manifest)| store.read_blob(&manifest.config);
        let members = match (json::parse(&read(ours)?), json::parse(&read(theirs)?)) {
            (Ok(a), Ok(b)) => document::members(&a, &b),
            _ => Vec::new(),
        };
        findings.push(Finding {
            cause: Some("another kiln wrote it, or it was edited".to_owned()),
            members,
            ..Finding::new(Outcome::NotReproduced, "The config blobs differ")
        });
    }
    if findings.is_empty() && ours.1 != theirs.1 {
        let value = |manifest: &Manifest| serde_json::to_value(manifest).unwrap_or_default();
        findings.push(Finding {
            cause: Some("the layers are the same, in another order or with other annotations".to_owned()),
            members: document::members(&value(ours.1), &value(theirs.1)),
            ..Finding::new(Outcome::NotReproduced, "The manifests differ")
        });
    }
    Ok(findings)
}

/// How the locks of two models differ whose other layers are the same.
fn lock_differs(ours: &Side<'_>, theirs: &Side<'_>, between: Between) -> Option<Finding> {
    let (here, there) = (ours.lock.as_ref()?, theirs.lock.as_ref()?);
    if here == there {
        return None;
    }
    let value = |lock: &Lock| serde_json::to_value(lock).unwrap_or_default();
    let members = document::members(&value(here), &value(there));
    let changed = here.tensors.iter().find(|tensor| theirs.locked(&tensor.name) != Some(tensor));
    if let Some(tensor) = changed {
        let locked = (Some(tensor), theirs.locked(&tensor.name));
        return Some(Finding {
            layer: Some(tensor.layer.clone()),
            tensor: Some(tensor.name.clone()),
            cause: cause::of_bytes(locked, &[], false, between),
            members,
            ..Finding::new(
                Outcome::NotReproduced,
                format!("The locks differ about {}, though its bytes agree", quoted(&tensor.name)),
            )
        });
    }
    let cause = if here.tensors.len() != there.tensors.len() {
        format!("{} has more tensors", between.other().replace("The", "the"))
    } else if here.epoch != there.epoch {
        format!("another epoch: {} here, {} {}", here.epoch, there.epoch, between.there())
    } else if here.numerics != there.numerics {
        format!("other numerics: {} here, {} {}", quoted(&here.numerics), quoted(&there.numerics), between.there())
    } else {
        "another parameter of the creation".to_owned()
    };
    Some(Finding { cause: Some(cause), members, ..Finding::new(Outcome::NotReproduced, "The locks differ") })
}
