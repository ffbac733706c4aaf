//! A stored layer as its header describes it: tensors, each with the arrays it is stored as and their digests.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::{Side, open};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::manifest::layer_name;
use crate::oci::Descriptor;
use crate::plan::Role;
use crate::quant::Scheme;
use crate::source::safetensors::{Entry, Header, data_start, parse_header};

/// How much is read at once, in bytes.
const CHUNK: usize = 1 << 20;

/// A layer with tensors.
pub(super) struct Layer<'a> {
    pub(super) name: String,
    pub(super) descriptor: &'a Descriptor,
    path: PathBuf,
    /// Everything before the data, or as much of it as can be told.
    pub(super) head: Vec<u8>,
    /// What it says, or what is wrong with it.
    pub(super) header: Result<Header, String>,
    /// The tensors in the order of their data; none when the header cannot be read.
    pub(super) tensors: Vec<Tensor>,
}

/// A tensor of a layer.
pub(super) struct Tensor {
    pub(super) name: String,
    /// What the lock or the header calls it.
    pub(super) scheme: Option<Scheme>,
    /// The arrays in the order of their data.
    pub(super) arrays: Vec<Array>,
}

/// An array of a tensor.
pub(super) struct Array {
    pub(super) role: Role,
    pub(super) entry: Entry,
    /// Where it begins in the layer, in bytes.
    pub(super) start: u64,
    /// BLAKE3 of its bytes.
    pub(super) hash: blake3::Hash,
}

impl Array {
    /// Whether two arrays are the same but for their bytes and their name.
    pub(super) fn has_form_of(&self, other: &Self) -> bool {
        (self.role, self.entry.dtype, &self.entry.shape) == (other.role, other.entry.dtype, &other.entry.shape)
    }
}

impl Tensor {
    /// What it holds, whatever it is called.
    pub(super) fn content(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let mut arrays: Vec<&Array> = self.arrays.iter().collect();
        arrays.sort_by_key(|array| array.role.name());
        for Array { role, entry, hash, .. } in arrays {
            let form = format!("{} {} {:?} ", role.name(), entry.dtype, entry.shape);
            hasher.update(form.as_bytes()).update(hash.as_bytes());
        }
        hasher.finalize()
    }

    /// Whether two tensors have the same arrays but for their bytes.
    pub(super) fn has_form_of(&self, other: &Self) -> bool {
        self.arrays.len() == other.arrays.len()
            && self.arrays.iter().zip(&other.arrays).all(|(ours, theirs)| ours.has_form_of(theirs))
    }

    /// Its type and shape as they are stored, for a person.
    pub(super) fn form(&self) -> String {
        let scheme = self.scheme.map(|scheme| format!("{scheme} in ")).unwrap_or_default();
        let arrays = self.arrays.iter().map(|Array { entry, .. }| format!("{} {:?}", entry.dtype, entry.shape));
        format!("{scheme}{}", arrays.collect::<Vec<_>>().join(", "))
    }
}

impl<'a> Layer<'a> {
    /// Reads the header of a layer, and hashes every array.
    ///
    /// # Errors
    /// [`ErrorKind::Store`] when the layer cannot be read.
    pub(super) fn read(side: &Side<'a>, descriptor: &'a Descriptor) -> Result<Self> {
        let name = layer_name(descriptor);
        let file = open(side.store, descriptor)?;
        let path = side.store.blob_path(&descriptor.digest);
        let io = |cause| Error::io(ErrorKind::Store, "read", &path, cause);
        let mut head = vec![0; descriptor.size.min(8) as usize];
        file.read_exact_at(&mut head, 0).map_err(io)?;
        let header = match head.first_chunk::<8>().map(|prefix| data_start(*prefix, descriptor.size)) {
            Some(Ok(start)) => {
                head.resize(start as usize, 0);
                file.read_exact_at(&mut head[8..], 8).map_err(io)?;
                parse_header(&head, descriptor.size)
            }
            Some(Err(error)) => Err(error),
            None => parse_header(&head, descriptor.size),
        };
        let tensors = match &header {
            Ok(header) => tensors(side, &file, header)?,
            Err(_) => Vec::new(),
        };
        Ok(Self { name, descriptor, path, head, header: header.map_err(|error| error.chain()), tensors })
    }

    pub(super) fn open(&self) -> Result<File> {
        File::open(&self.path).map_err(|cause| Error::io(ErrorKind::Store, "open", &self.path, cause))
    }
}

/// The arrays of a header, put together to tensors.
fn tensors(side: &Side<'_>, file: &File, header: &Header) -> Result<Vec<Tensor>> {
    let names: BTreeMap<&str, ()> = header.tensors.iter().map(|entry| (&*entry.name, ())).collect();
    let mut tensors: Vec<Tensor> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for entry in &header.tensors {
        let (owner, role) = owner(&entry.name, |name| names.contains_key(name));
        let start = header.data_start + entry.begin;
        let hash = hash(file, start, entry.end - entry.begin, &entry.name)?;
        let array = Array { role, entry: entry.clone(), start, hash };
        let place = *places.entry(owner.clone()).or_insert_with(|| {
            let scheme = side.locked(&owner).map_or_else(
                || scheme(header, &owner),
                |locked| locked.scheme.as_ref().and_then(|scheme| scheme.parse().ok()),
            );
            tensors.push(Tensor { name: owner, scheme, arrays: Vec::new() });
            tensors.len() - 1
        });
        tensors[place].arrays.push(array);
    }
    Ok(tensors)
}

/// The tensor an array belongs to, and what it is to it: `W.scale` beside `W` as Ollama names them, `P.scales` beside
/// `P.weight` as `mlx-lm` does.
fn owner(array: &str, is_there: impl Fn(&str) -> bool) -> (String, Role) {
    const OLLAMA: [(&str, Role); 3] =
        [(".scale", Role::Scales), (".bias", Role::Biases), (".global_scale", Role::Global)];
    const MLX: [(&str, Role); 2] = [(".scales", Role::Scales), (".biases", Role::Biases)];
    let of_ollama = OLLAMA.into_iter().find_map(|(suffix, role)| {
        let stem = array.strip_suffix(suffix)?;
        (is_there(stem) && is_there(&format!("{stem}.scale"))).then(|| (stem.to_owned(), role))
    });
    let of_mlx = || {
        MLX.into_iter().find_map(|(suffix, role)| {
            let stem = array.strip_suffix(suffix)?;
            let weight = format!("{stem}.weight");
            (is_there(&weight) && is_there(&format!("{stem}.scales"))).then_some((weight, role))
        })
    };
    let itself = || {
        let stem = array.strip_suffix(".weight").unwrap_or(array);
        let has_scales = is_there(&format!("{array}.scale")) || is_there(&format!("{stem}.scales"));
        (array.to_owned(), if has_scales { Role::Packed } else { Role::Values })
    };
    of_ollama.or_else(of_mlx).unwrap_or_else(itself)
}

/// The scheme that a header names for a tensor.
fn scheme(header: &Header, tensor: &str) -> Option<Scheme> {
    let named = |key: &str| header.metadata.get(&format!("{tensor}.{key}")).or_else(|| header.metadata.get(key));
    match named("quant_type")?.parse().ok()? {
        Scheme::Affine { bits, group } => {
            let group = named("group_size").and_then(|group| group.parse().ok()).unwrap_or(group);
            format!("affine{bits}-g{group}").parse().ok()
        }
        other => Some(other),
    }
}

/// BLAKE3 of `length` bytes from `start` on.
fn hash(file: &File, start: u64, length: u64, name: &str) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; length.min(CHUNK as u64) as usize];
    let mut done = 0;
    while done < length {
        let now = (length - done).min(CHUNK as u64) as usize;
        file.read_exact_at(&mut buffer[..now], start + done).map_err(|cause| {
            Error::new(ErrorKind::Store, format!("Could not read {} to compare it", quoted(name))).caused_by(cause)
        })?;
        hasher.update(&buffer[..now]);
        done += now as u64;
    }
    Ok(hasher.finalize())
}

/// BLAKE3 of each of `number` slices of the same length that follow each other.
pub(super) fn slices(file: &File, array: &Array, number: u64) -> Result<Vec<blake3::Hash>> {
    let length = (array.entry.end - array.entry.begin) / number;
    (0..number).map(|slice| hash(file, array.start + slice * length, length, &array.entry.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_belong_to_the_tensor_whose_scales_are_there() {
        let there = ["a.weight", "a.weight.scale", "a.weight.bias", "b.weight", "b.scales", "b.biases", "c", "c.bias"];
        let owner = |name| owner(name, |other| there.contains(&other));
        for (array, tensor, role) in [
            ("a.weight", "a.weight", Role::Packed),
            ("a.weight.scale", "a.weight", Role::Scales),
            ("a.weight.bias", "a.weight", Role::Biases),
            ("b.weight", "b.weight", Role::Packed),
            ("b.scales", "b.weight", Role::Scales),
            ("b.biases", "b.weight", Role::Biases),
            ("c", "c", Role::Values),
            ("c.bias", "c.bias", Role::Values),
        ] {
            assert_eq!(owner(array), (tensor.to_owned(), role), "{array}");
        }
    }
}
