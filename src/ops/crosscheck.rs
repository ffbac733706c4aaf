//! Holding a stored model against MLX: the source's values go through MLX instead of kiln's own kernels, and every
//! byte that comes out is compared with the layer. Kept values and what the source has quantized are not its matter.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::again::{Again, Named};
use super::create::Part;
use super::explain::open;
use super::held::Held as _;
use super::inspect::find;
use super::source::Places;
use super::verify::{Finding, Outcome};
use crate::blobs::{SourceHashes, read_values};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::manifest::{Lock, LockedSource, LockedTensor, layer_name};
use crate::oci::{Descriptor, Digest, Reference};
use crate::plan::{self, PlannedBlob, PlannedTensor, Role};
use crate::progress::{Event, Progress};
use crate::quant::Mlx;
use crate::source::Checkpoint;
use crate::source::safetensors::Header;
use crate::store::Store;

/// What to hold against MLX.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model.
    pub name: Reference,
    /// Its source, as it is named for a creation; `None` takes the one the store remembers.
    pub source: Option<PathBuf>,
    /// The checkpoint of its draft; `None` takes the place the store remembers.
    pub draft: Option<PathBuf>,
    /// Where sources are looked for.
    pub places: Places,
    /// How many threads hash a source that is a model itself.
    pub threads: usize,
}

/// What the comparison gave.
#[derive(Clone, Debug)]
pub struct Crosschecked {
    /// The manifest's digest.
    pub digest: Digest,
    /// How many tensors were compared.
    pub tensors: u64,
    /// What was found, at most one for each tensor.
    pub findings: Vec<Finding>,
}

impl Crosschecked {
    /// The verdict.
    pub fn outcome(&self) -> Outcome {
        Outcome::of(&self.findings)
    }
}

/// Compares every tensor that kiln has quantized with what MLX makes of its source.
///
/// # Errors
/// [`ErrorKind::CouldNotCheck`] when there is no MLX, or the source cannot be planned again as the lock says;
/// [`ErrorKind::NotFound`] when there is no such model. A difference is a finding, not an error.
pub fn crosscheck(store: &Store, options: &Options, progress: &Progress) -> Result<Crosschecked> {
    let mlx = Mlx::start()?;
    let (target, manifest) = find(store, &options.name)?;
    let Options { source, draft, places, threads, .. } = options;
    let named = Named { source: source.as_deref(), draft: draft.as_deref() };
    let places = &Places { store: Some(store.clone()), ..places.clone() };
    let again = Again::plan(store, &target, &manifest, named, places, *threads, progress)?;
    let blobs = again.prepared.parts().flat_map(Part::blobs).filter(|(_, blob)| quantized(blob).next().is_some());
    let blobs: Vec<(&Checkpoint, &PlannedBlob)> = blobs.collect();
    let tensors = || blobs.iter().flat_map(|(_, blob)| quantized(blob));
    let bytes = tensors().map(PlannedTensor::source_bytes).sum();
    progress.report(Event::Started { task: "crosscheck", blobs: blobs.len() as u64, bytes });
    let layers: BTreeMap<String, &Descriptor> =
        manifest.layers.iter().map(|layer| (layer_name(layer), layer)).collect();
    let mut crosschecked = Crosschecked { digest: target.digest, tensors: 0, findings: Vec::new() };
    let findings = &mut crosschecked.findings;
    for (checkpoint, blob) in &blobs {
        let Some(layer) = layers.get(&blob.name) else {
            let message = format!("The source gives a layer {}, which the model does not have", quoted(&blob.name));
            findings.push(Finding::new(Outcome::NotReproduced, message));
            continue;
        };
        if let Err(damage) = store.check(layer, &Progress::silent())? {
            findings.push(Finding::damaged(layer, damage));
            continue;
        }
        let stored = Stored { file: open(store, layer)?, header: store.header(layer)?.0 };
        for tensor in quantized(blob) {
            crosschecked.tensors += 1;
            let found = stored
                .differs(tensor, checkpoint, &again, &mlx, progress)
                .or_else(|error| Finding::of(error).map(Some));
            let found = found.map_err(|error| again.failed(error))?;
            let of = |finding: Finding| Finding { tensor: Some(tensor.name.clone()), ..finding.in_layer(layer) };
            findings.extend(found.map(of));
        }
    }
    for part in again.prepared.parts() {
        part.checkpoint.check_unchanged().map_err(|error| again.failed(error))?;
    }
    let planned: BTreeSet<&str> = tensors().map(|tensor| &*tensor.name).collect();
    let locked = again.lock.tensors.iter().filter(|tensor| tensor.scheme.is_some() && tensor.packed.is_none());
    for LockedTensor { name, layer, .. } in locked.filter(|tensor| !planned.contains(&*tensor.name)) {
        let message = format!("The source does not give {}, which the lock has quantized", quoted(name));
        let (layer, tensor) = (Some(layer.clone()), Some(name.clone()));
        findings.push(Finding { layer, tensor, ..Finding::new(Outcome::NotReproduced, message) });
    }
    if crosschecked.tensors == 0 && findings.is_empty() {
        let message = "kiln has quantized no tensor of this model: there is nothing to compare";
        findings.push(Finding::new(Outcome::CouldNotCheck, message));
    }
    Ok(crosschecked)
}

/// The tensors of a blob that kiln's kernels make.
fn quantized(blob: &PlannedBlob) -> impl Iterator<Item = &PlannedTensor> {
    blob.tensors.iter().filter(|tensor| tensor.scheme.is_some() && tensor.packed.is_none())
}

/// A layer as it is stored.
struct Stored {
    file: File,
    header: Header,
}

impl Stored {
    /// The first difference between a tensor and what MLX makes of its source.
    fn differs(
        &self,
        tensor: &PlannedTensor,
        checkpoint: &Checkpoint,
        again: &Again,
        mlx: &Mlx,
        progress: &Progress,
    ) -> Result<Option<Finding>> {
        let name = quoted(&tensor.name);
        let (Some(scheme), Some(float), Some(&columns)) = (tensor.scheme, tensor.float(), tensor.shape.last()) else {
            return Err(Error::new(ErrorKind::CouldNotCheck, format!("{name} is not a matrix of floats")));
        };
        let Some(mut arrays) = tensor.parts().iter().map(|part| self.array(part)).collect::<Option<Vec<_>>>() else {
            let message = format!("{name} is stored in another form than its source gives");
            return Ok(Some(Finding { part: Some("header"), ..Finding::new(Outcome::NotReproduced, message) }));
        };
        let row = columns as usize * float.size();
        let mut rows = Vec::new();
        let hashes = read_values(tensor, checkpoint, progress, &mut |values| {
            rows.extend_from_slice(values);
            let whole = rows.len() / row * row;
            if whole > 0 {
                let [packed, scales, biases] = mlx.quantize(scheme, float, columns as usize, &rows[..whole])?;
                rows.drain(..whole);
                for array in &mut arrays {
                    array.compare(
                        &self.file,
                        match array.role {
                            Role::Scales => &scales,
                            Role::Biases => &biases,
                            Role::Packed | Role::Values | Role::Global => &packed,
                        },
                    )?;
                }
            }
            Ok(())
        })?;
        if arrays.iter().any(|array| array.compared != array.length) {
            return Err(Error::new(ErrorKind::CouldNotCheck, format!("The source has not all values of {name}")));
        }
        let first = arrays.iter().find_map(|array| Some((array, array.first.as_ref()?)));
        Ok(first.map(|(array, Difference { at, stored, from_mlx })| {
            let Array { role, length, differing, .. } = array;
            let part = role.name();
            let message = format!(
                "{name} differs from MLX: {differing} of {length} bytes of its {part}, the first at {at}: \
                 {stored:#04x} is stored, MLX has {from_mlx:#04x}"
            );
            Finding {
                part: Some(part),
                bytes: Some(*differing),
                cause: Some(cause(&again.lock, &tensor.name, &hashes)),
                ..Finding::new(Outcome::NotReproduced, message)
            }
        }))
    }

    /// A part's place in the file; none when it is not there in this form.
    fn array(&self, part: &plan::Part) -> Option<Array> {
        let form = (&part.name, part.dtype, &part.shape);
        let entry = self.header.tensors.iter().find(|entry| (&entry.name, entry.dtype, &entry.shape) == form)?;
        let start = self.header.data_start + entry.begin;
        Some(Array { role: part.role, start, length: part.bytes(), compared: 0, differing: 0, first: None })
    }
}

/// One part of a stored tensor, as far as it has been compared.
struct Array {
    role: Role,
    /// Where it starts in the file.
    start: u64,
    /// How many bytes it has.
    length: u64,
    compared: u64,
    differing: u64,
    first: Option<Difference>,
}

/// A byte that differs.
struct Difference {
    /// Where it is in its array.
    at: u64,
    stored: u8,
    from_mlx: u8,
}

impl Array {
    /// Compares the next bytes.
    fn compare(&mut self, file: &File, from_mlx: &[u8]) -> Result<()> {
        let mut stored = vec![0; from_mlx.len()];
        file.read_exact_at(&mut stored, self.start + self.compared)
            .map_err(|cause| Error::new(ErrorKind::Store, "Could not read a layer to compare it").caused_by(cause))?;
        let bytes = (self.compared..).zip(stored.into_iter().zip(from_mlx));
        for (at, (stored, &from_mlx)) in bytes.filter(|(_, (stored, from_mlx))| stored != *from_mlx) {
            self.differing += 1;
            self.first.get_or_insert(Difference { at, stored, from_mlx });
        }
        self.compared += from_mlx.len() as u64;
        Ok(())
    }
}

/// The likely cause of a difference.
fn cause(lock: &Lock, tensor: &str, hashes: &SourceHashes) -> String {
    let locked = lock.tensors.iter().find(|locked| locked.name == tensor);
    let Some(locked) = locked else { return "the lock does not name it".to_owned() };
    let is_other = |source: &LockedSource, hash: &blake3::Hash| source.blake3.as_deref() != Some(&*hash.to_hex());
    match locked.sources.iter().zip(hashes).find(|(source, hash)| is_other(source, hash)) {
        Some((source, _)) => {
            format!("the source is another one: the bytes of {} are not those the lock records", quoted(&source.name))
        }
        None => "the source is the one the lock records: kiln computes otherwise than MLX, or the stored layer was \
                 altered"
            .to_owned(),
    }
}
