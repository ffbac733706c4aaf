//! Looking at what a store holds: the list of models, and one model's layers and tensors.

use std::collections::BTreeMap;
use std::thread;

use super::held::Held;
use super::parallel::each;
use crate::error::{Error, ErrorKind, Result};
use crate::inventory::Dtype;
use crate::manifest::{Content, Lock, LockedTensor, layer_name};
use crate::oci::{Descriptor, Digest, Manifest, MediaType, Reference};
use crate::plan::Profile;
use crate::store::Store;

/// One model in the list.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its full reference.
    pub name: String,
    /// Its manifest's digest.
    pub digest: Digest,
    /// What its manifest names; `None` when that cannot be read.
    pub contents: Option<Contents>,
}

/// What a model consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    /// How many layers it has.
    pub layers: u64,
    /// The bytes of all layers and the config.
    pub bytes: u64,
    /// How many of its blobs are missing or have another size. What is in the others was not read.
    pub damaged: u64,
}

/// Every model in the store, by name.
///
/// # Errors
/// [`ErrorKind::Store`] when the store's index cannot be read.
pub fn list(store: &Store) -> Result<Vec<Listed>> {
    let refs: Vec<_> = store.refs()?.into_iter().collect();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    each(&refs, threads, |(name, target)| {
        let contents = store.manifest(target).ok().map(|(manifest, _)| contents(store, &manifest)).transpose()?;
        Ok(Listed { name: name.clone(), digest: target.digest, contents })
    })
}

fn contents(store: &Store, manifest: &Manifest) -> Result<Contents> {
    let damaged = store.count_damaged(manifest.blobs())?;
    Ok(Contents { layers: manifest.layers.len() as u64, bytes: manifest.total_size(), damaged })
}

/// One model, in full.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The manifest's digest.
    pub digest: Digest,
    /// The manifest's media type.
    pub media_type: MediaType,
    /// The profile; `None` when kiln did not make the model.
    pub profile: Option<String>,
    /// The scheme that was asked for; `None` when there is none.
    pub scheme: Option<String>,
    /// How many of its blobs are missing or have another size.
    pub damaged: u64,
    /// The layers, in order.
    pub layers: Vec<ShownLayer>,
    /// The tensors, in the order of the layers.
    pub tensors: Vec<ShownTensor>,
}

/// A layer of a model.
#[derive(Clone, Debug)]
pub struct ShownLayer {
    /// Its name, whatever the dialect.
    pub name: String,
    /// Its descriptor.
    pub descriptor: Descriptor,
}

/// A tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownTensor {
    /// Its name.
    pub name: String,
    /// Its element type before quantization.
    pub dtype: String,
    /// Its shape before packing.
    pub shape: Vec<u64>,
    /// Its scheme; `None` when its values are the source's.
    pub scheme: Option<String>,
    /// The name of its layer.
    pub layer: String,
}

/// Finds a model's manifest.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is no such model; [`ErrorKind::Corrupt`] when its manifest is.
pub fn find(store: &Store, name: &Reference) -> Result<(Descriptor, Manifest)> {
    let target = require(store, name)?;
    let (manifest, _) = store.manifest(&target)?;
    Ok((target, manifest))
}

/// The manifest's descriptor, or the error that says the model is not there.
pub(super) fn require(store: &Store, name: &Reference) -> Result<Descriptor> {
    store.find(name)?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("No model is named `{name}`"))
            .hint("`kiln list` shows what the store holds")
    })
}

/// Shows a model.
///
/// # Errors
/// As [`find`]; [`ErrorKind::Corrupt`] when a layer it reads is damaged.
pub fn show(store: &Store, name: &Reference) -> Result<Shown> {
    let (target, manifest) = find(store, name)?;
    let lock = lock(store, &manifest)?;
    let are_files = lock.as_ref().is_some_and(|lock| lock.profile == Profile::Hf.name());
    let tensors = match &lock {
        Some(_) if are_files => from_headers(store, &manifest)?,
        Some(lock) => lock.tensors.iter().map(from_lock).collect(),
        None => from_headers(store, &manifest)?,
    };
    Ok(Shown {
        damaged: contents(store, &manifest)?.damaged,
        digest: target.digest,
        media_type: target.media_type,
        profile: lock.as_ref().map(|lock| lock.profile.clone()),
        scheme: lock.and_then(|lock| lock.scheme),
        layers: manifest
            .layers
            .into_iter()
            .map(|descriptor| {
                let name = descriptor.layer_name().filter(|_| are_files).map(str::to_owned);
                ShownLayer { name: name.unwrap_or_else(|| layer_name(&descriptor)), descriptor }
            })
            .collect(),
        tensors,
    })
}

/// The model's lock; `None` when kiln did not make it.
pub(super) fn lock(held: &dyn Held, manifest: &Manifest) -> Result<Option<Lock>> {
    let layer = manifest.layers.iter().find(|layer| Content::of(layer) == Content::Lock);
    layer.map(|layer| Lock::parse(&held.read(layer)?)).transpose()
}

fn from_lock(tensor: &LockedTensor) -> ShownTensor {
    ShownTensor {
        name: tensor.name.clone(),
        dtype: tensor.dtype.clone(),
        shape: tensor.shape.clone(),
        scheme: tensor.scheme.clone(),
        layer: tensor.layer.clone(),
    }
}

/// Without a lock, the headers say what is stored: a quantized tensor is the one with a `.scale` beside it.
fn from_headers(store: &Store, manifest: &Manifest) -> Result<Vec<ShownTensor>> {
    let mut tensors = Vec::new();
    for layer in manifest.layers.iter().filter(|layer| Content::of(layer) == Content::Tensors) {
        let (header, _) = store.header(layer)?;
        let arrays: BTreeMap<&str, (Dtype, &[u64])> =
            header.tensors.iter().map(|entry| (&*entry.name, (entry.dtype, &*entry.shape))).collect();
        for (name, (dtype, shape)) in &arrays {
            let owner = [".scale", ".bias", ".global_scale"].into_iter().find_map(|role| name.strip_suffix(role));
            if owner.is_some_and(|owner| arrays.contains_key(owner)) {
                continue;
            }
            let metadata = |key: &str| {
                let own = header.metadata.get(&format!("{name}.{key}"));
                own.or_else(|| header.metadata.get(key)).cloned()
            };
            let scheme = arrays.contains_key(&*format!("{name}.scale")).then(|| metadata("quant_type")).flatten();
            tensors.push(ShownTensor {
                name: (*name).to_owned(),
                dtype: dtype.to_string(),
                shape: shape.to_vec(),
                scheme,
                layer: layer_name(layer),
            });
        }
    }
    Ok(tensors)
}
