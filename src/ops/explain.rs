//! Explaining a difference between a model and its re-creation: the first tensor that differs, which part
//! of it, how many bytes, and the likely cause.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::inspect::{lock, read_header};
use super::verify::{Finding, Outcome};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::manifest::{Content, LockedTensor, layer_name};
use crate::oci::{Descriptor, Manifest};
use crate::source::safetensors::{Entry, Header};
use crate::store::Store;

/// One of the two models.
pub(super) struct Side<'a> {
    store: &'a Store,
    manifest: &'a Manifest,
    /// What its lock says, by name.
    tensors: BTreeMap<String, LockedTensor>,
}

impl<'a> Side<'a> {
    pub(super) fn new(store: &'a Store, manifest: &'a Manifest) -> Result<Self> {
        let tensors = lock(store, manifest)?.into_iter().flat_map(|lock| lock.tensors);
        Ok(Self { store, manifest, tensors: tensors.map(|tensor| (tensor.name.clone(), tensor)).collect() })
    }

    fn layers(&self) -> BTreeMap<String, &'a Descriptor> {
        self.manifest.layers.iter().map(|layer| (layer_name(layer), layer)).collect()
    }
}

/// How many layers are explained in full; the rest are counted.
const MOST: usize = 8;

/// Every difference, from the cause to the consequence: lock, layers, config, manifest.
pub(super) fn differences(ours: &Side<'_>, again: &Side<'_>) -> Result<Vec<Finding>> {
    let (our_layers, their_layers) = (ours.layers(), again.layers());
    let mut findings = Vec::new();
    let mut differing = 0;
    for layer in &ours.manifest.layers {
        let name = layer_name(layer);
        let Some(theirs) = their_layers.get(&name) else {
            let tensor = ours.tensors.values().find(|tensor| tensor.layer == name);
            findings.push(Finding {
                layer: Some(name.clone()),
                tensor: tensor.map(|tensor| tensor.name.clone()),
                cause: Some(format!("the source lacks this {}", if tensor.is_some() { "tensor" } else { "file" })),
                ..Finding::new(Outcome::NotReproduced, format!("The re-creation has no layer {}", quoted(&name)))
            });
            continue;
        };
        if theirs.digest == layer.digest || Content::of(layer) == Content::Lock {
            continue;
        }
        differing += 1;
        if differing > MOST {
            continue;
        }
        findings.push(match Content::of(layer) {
            Content::Tensors => tensor_layer(ours, layer, again, theirs)?,
            _ => Finding {
                layer: Some(name.clone()),
                cause: Some("the source has another version of this file".to_owned()),
                ..Finding::new(Outcome::NotReproduced, format!("The file {} differs", quoted(&name)))
            },
        });
    }
    if differing > MOST {
        let message = format!("{} more layers differ", differing - MOST);
        findings.push(Finding::new(Outcome::NotReproduced, message));
    }
    for name in their_layers.keys().filter(|name| !our_layers.contains_key(*name)) {
        findings
            .push(Finding::new(Outcome::NotReproduced, format!("The re-creation has another layer, {}", quoted(name))));
    }
    if findings.is_empty() {
        findings.push(lock_or_manifest(ours, again));
    }
    Ok(findings)
}

/// All layers agree, yet the manifests do not.
fn lock_or_manifest(ours: &Side<'_>, again: &Side<'_>) -> Finding {
    let changed = ours.tensors.iter().find(|(name, tensor)| again.tensors.get(*name) != Some(tensor));
    if let Some((name, tensor)) = changed {
        return Finding {
            layer: Some(tensor.layer.clone()),
            tensor: Some(name.clone()),
            cause: Some(value_cause((Some(tensor), again.tensors.get(name)))),
            ..Finding::new(
                Outcome::NotReproduced,
                format!("The locks differ about {}, though its bytes agree", quoted(name)),
            )
        };
    }
    let (message, cause) = if ours.tensors.len() != again.tensors.len() {
        ("The locks differ", "the re-creation has more tensors".to_owned())
    } else if ours.manifest.config.digest != again.manifest.config.digest {
        ("The config blobs differ", "another kiln wrote it, or it was edited".to_owned())
    } else {
        ("The manifests differ", "the layers are the same, in another order or with other annotations".to_owned())
    };
    Finding { cause: Some(cause), ..Finding::new(Outcome::NotReproduced, message) }
}

/// The first tensor that differs in a layer.
fn tensor_layer(ours: &Side<'_>, layer: &Descriptor, again: &Side<'_>, theirs: &Descriptor) -> Result<Finding> {
    let name = layer_name(layer);
    let (our_header, _) = read_header(ours.store, layer)?;
    let (their_header, _) = read_header(again.store, theirs)?;
    let (our_file, their_file) = (open(ours.store, layer)?, open(again.store, theirs)?);
    for entry in &our_header.tensors {
        let tensor = owner(&entry.name, &ours.tensors);
        let locked = (ours.tensors.get(tensor), again.tensors.get(tensor));
        let finding = |part, message: String, bytes, cause: String| Finding {
            layer: Some(name.clone()),
            tensor: Some(tensor.to_owned()),
            part: Some(part),
            bytes,
            cause: Some(cause),
            ..Finding::new(Outcome::NotReproduced, message)
        };
        let part = part(&entry.name, tensor, locked.0);
        let other = their_header.tensors.iter().find(|other| other.name == entry.name);
        let Some(other) = other.filter(|other| (other.dtype, &other.shape) == (entry.dtype, &entry.shape)) else {
            let message =
                format!("{} is stored in another form: its {part} have another type or shape", quoted(tensor));
            return Ok(finding("header", message, None, form_cause(locked)));
        };
        let bytes = count_differences((&our_file, &our_header, entry), (&their_file, &their_header, other))?;
        if bytes > 0 {
            let (tensor, of) = (quoted(tensor), entry.end - entry.begin);
            let message = format!("{tensor} differs: {bytes} of {of} bytes of its {part}");
            return Ok(finding(part, message, Some(bytes), value_cause(locked)));
        }
    }
    Ok(Finding {
        layer: Some(name.clone()),
        part: Some("header"),
        cause: Some("the same tensors, in another order, with other metadata or more of them".to_owned()),
        ..Finding::new(Outcome::NotReproduced, format!("The header of {} differs", quoted(&name)))
    })
}

/// The stored file of a layer.
pub(super) fn open(store: &Store, layer: &Descriptor) -> Result<File> {
    let path = store.blob_path(&layer.digest);
    File::open(&path).map_err(|cause| Error::io(ErrorKind::Store, "open", &path, cause))
}

/// The tensor an array belongs to.
fn owner<'a>(array: &'a str, tensors: &BTreeMap<String, LockedTensor>) -> &'a str {
    let stem = [".scale", ".bias", ".global_scale"].into_iter().find_map(|role| array.strip_suffix(role));
    stem.filter(|stem| tensors.contains_key(*stem)).unwrap_or(array)
}

fn part(array: &str, tensor: &str, locked: Option<&LockedTensor>) -> &'static str {
    match &array[tensor.len()..] {
        ".scale" => "scales",
        ".bias" => "biases",
        ".global_scale" => "global scale",
        _ if locked.is_some_and(|tensor| tensor.scheme.is_some()) => "packed",
        _ => "values",
    }
}

fn form_cause((ours, theirs): (Option<&LockedTensor>, Option<&LockedTensor>)) -> String {
    let scheme = |tensor: Option<&LockedTensor>| {
        tensor.and_then(|tensor| tensor.scheme.clone()).unwrap_or_else(|| "none".to_owned())
    };
    if scheme(ours) != scheme(theirs) {
        format!("another scheme: {} here, {} again", quoted(&scheme(ours)), quoted(&scheme(theirs)))
    } else {
        "the source has another tensor under this name".to_owned()
    }
}

fn value_cause(locked: (Option<&LockedTensor>, Option<&LockedTensor>)) -> String {
    let (ours, theirs) = match locked {
        (Some(ours), Some(theirs)) => (ours, theirs),
        // Profile `hf` locks no tensors.
        (None, None) => return "the source has another version of this file".to_owned(),
        _ => return "the lock does not name it".to_owned(),
    };
    let hashed = |tensor: &LockedTensor| tensor.sources.iter().all(|source| source.blake3.is_some());
    if ours.scheme != theirs.scheme {
        form_cause(locked)
    } else if ours.sources.iter().map(|source| &source.name).ne(theirs.sources.iter().map(|source| &source.name)) {
        "the source keeps this tensor in another layout".to_owned()
    } else if let Some((source, _)) = ours.sources.iter().zip(&theirs.sources).find(|(a, b)| a.blake3 != b.blake3) {
        format!("the source is another one: the bytes of {} are not those the lock records", quoted(&source.name))
    } else if hashed(ours) {
        "the source is the one the lock records: the stored layer was made by other arithmetic, or was altered"
            .to_owned()
    } else {
        "the source is another one, or the stored layer was altered: its values are copied".to_owned()
    }
}

/// How many bytes differ between two arrays of the same length.
fn count_differences(ours: (&File, &Header, &Entry), theirs: (&File, &Header, &Entry)) -> Result<u64> {
    const CHUNK: usize = 1 << 20;
    let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    let length = ours.2.end - ours.2.begin;
    let mut differing = 0;
    let mut done = 0;
    let read = |(file, header, entry): (&File, &Header, &Entry), done: u64, buffer: &mut [u8]| {
        file.read_exact_at(buffer, header.data_start + entry.begin + done).map_err(|cause| {
            Error::new(ErrorKind::Store, format!("Could not read {} to compare it", quoted(&entry.name)))
                .caused_by(cause)
        })
    };
    while done < length {
        let step = (length - done).min(CHUNK as u64) as usize;
        read(ours, done, &mut left[..step])?;
        read(theirs, done, &mut right[..step])?;
        differing += left[..step].iter().zip(&right[..step]).filter(|(a, b)| a != b).count() as u64;
        done += step as u64;
    }
    Ok(differing)
}
