//! Foreign checkpoints: the only room that opens files nobody vouches for. A [`Checkpoint`] has every
//! header parsed and cross-checked, and reads nothing but the bytes a header accounts for; what it
//! opened can be checked at the end not to have moved. The parsers take bytes, not files.

mod assembled;
mod config;
mod directory;
mod disguise;
mod dtype;
mod files;
mod hub;
mod index;
mod record;
pub mod safetensors;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use assembled::NamedFile;
pub use config::parse as parse_config;
pub use dtype::Dtype;
pub use hub::{hub_snapshot, is_repository};
pub use index::{Index, parse_index};
pub use record::{HubOrigin, SourceFile};

use crate::error::{self, Error, ErrorKind, Result, quoted};
use crate::progress::Progress;
use directory::{INDEX, Listing};
use files::Opened;

const CONFIG: &str = "config.json";

/// The largest sidecar that is read, in bytes.
pub const MAX_SIDECAR: u64 = 64 << 20;
/// The largest configuration and shard index, in bytes: they are parsed, which takes many times that.
const MAX_CONFIG: u64 = 8 << 20;
const MAX_INDEX: u64 = 128 << 20;
/// The largest number of tensors in a checkpoint. The largest that are published have 280,000: 384 experts in 60 layers,
/// each of three matrices as codes and three kinds of scales.
const MAX_TENSORS: usize = 1_000_000;
/// The headers of all shards together, in bytes, and the number of shards.
const MAX_HEADERS: u64 = 256 << 20;
const MAX_SHARDS: usize = 10_000;

/// A tensor on disk: what it is and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, slowest first; none for a scalar.
    pub shape: Vec<u64>,
    shard: usize,
    begin: u64,
    end: u64,
}

impl TensorInfo {
    /// The size of its data in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.begin
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.begin == self.end
    }
}

/// What a safetensors file says about the scheme of a quantized tensor in it, as Ollama has it: of the tensor
/// itself, or of the whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// `quant_type`, as in `int4`.
    pub quant_type: String,
    /// `group_size`.
    pub group_size: Option<String>,
}

impl Label {
    fn of(tensor: &str, metadata: &BTreeMap<String, String>) -> Option<Self> {
        let said = |key: &str| metadata.get(&format!("{tensor}.{key}")).or_else(|| metadata.get(key)).cloned();
        Some(Self { quant_type: said("quant_type")?, group_size: said("group_size") })
    }
}

/// A file beside the weights that is kept byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecar {
    /// Its file name; in a checkpoint that was opened whole, its path below the directory, with `/`.
    pub name: String,
    /// Its size in bytes when the checkpoint was opened.
    pub size: u64,
}

/// An open checkpoint: `config.json`, weights in safetensors, and sidecars.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    config: Value,
    tensors: BTreeMap<String, TensorInfo>,
    /// Of tensors that have a `.scale` beside them.
    labels: BTreeMap<String, Label>,
    sidecars: Vec<Sidecar>,
    /// Of each sidecar, in their order.
    sidecar_files: Vec<Opened>,
    index: Option<Opened>,
    shards: Vec<Opened>,
    /// How many bytes the headers of the shards have together.
    headers: u64,
    is_whole: bool,
    notes: Vec<String>,
}

impl Checkpoint {
    /// Opens the checkpoint in the directory `root`, or in the snapshot of a Hugging Face cache entry
    /// when `root` is one. All headers are read, no weights.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is no such directory, [`ErrorKind::Input`]
    /// for everything that is damaged, ambiguous or not a checkpoint, naming the file or tensor.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_as(root, false)
    }

    /// As [`Checkpoint::open`], with every file of the directory and its folders as a sidecar, of any size: weights
    /// and their index, documents, code, whatever a runtime may want. Left out are hidden files, `__pycache__`,
    /// `kiln.lock`, and folders that are links.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; also for a safetensors file that is none of the shards and damaged, and for a name
    /// that cannot be used.
    pub fn open_whole(root: &Path) -> Result<Self> {
        Self::open_as(root, true)
    }

    fn open_as(root: &Path, is_whole: bool) -> Result<Self> {
        let root = directory::resolve(root)?;
        let listing = Listing::of(&root)?;
        let index = if listing.files.contains(INDEX) { Some(open_index(&root)?) } else { None };
        let names: Vec<&str> = match &index {
            Some((_, index)) => index.names().into_iter().collect(),
            None => listing.weights(&root)?,
        };
        if names.len() > MAX_SHARDS {
            return Err(Error::input(format!("The checkpoint has {} shards, more than {MAX_SHARDS}", names.len())));
        }
        let mut checkpoint = Self::new(root, if is_whole { Vec::new() } else { notes(&listing, &names) });
        checkpoint.is_whole = is_whole;
        let files = if is_whole { Listing::tree(&checkpoint.root)? } else { BTreeSet::new() };
        let files = files.iter().map(String::as_str).chain(listing.sidecars().filter(|_| !is_whole));
        for name in files {
            directory::check_inside(&checkpoint.root, name)?;
            checkpoint.add_sidecar(Opened::at(checkpoint.root.join(name), name)?)?;
        }
        checkpoint.config = checkpoint.read_config()?;
        for name in &names {
            checkpoint.add_shard(Opened::open(checkpoint.root.join(name), name)?)?;
        }
        if is_whole {
            checkpoint.check_other_weights(&names)?;
        }
        checkpoint.require_tensors()?;
        if let Some((file, index)) = index {
            checkpoint.check_index(&index)?;
            checkpoint.index = Some(file);
        }
        Ok(checkpoint)
    }

    fn new(root: PathBuf, notes: Vec<String>) -> Self {
        Self {
            root,
            config: Value::Null,
            tensors: BTreeMap::new(),
            labels: BTreeMap::new(),
            sidecars: Vec::new(),
            sidecar_files: Vec::new(),
            index: None,
            shards: Vec::new(),
            headers: 0,
            is_whole: false,
            notes,
        }
    }

    /// The directory that holds the files: `root` as it was named, or the snapshot in it; empty when the
    /// files lie anywhere.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The parsed `config.json`: an object. A bare `NaN` or `Infinity` in it is an object
    /// here, as [`parse_config`] says.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Whether the sidecars are all files there are: [`Checkpoint::open_whole`].
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// All tensors by name; at least one.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// What the file of the quantized tensor `name` says about its scheme.
    pub fn label(&self, name: &str) -> Option<&Label> {
        self.labels.get(name)
    }

    /// The name of the file that holds the tensor `name`.
    pub fn shard_of(&self, name: &str) -> Option<&str> {
        Some(self.shards[self.tensors.get(name)?.shard].name())
    }

    /// The files beside the weights, by name; `config.json` is one of them.
    pub fn sidecars(&self) -> &[Sidecar] {
        &self.sidecars
    }

    /// What the user should know that is not an error, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Fills `buffer` with the bytes of `tensor` from `offset` on. Safe from several threads at once.
    ///
    /// # Errors
    /// [`ErrorKind::Unexpected`] when the range is not inside the tensor, or it is another
    /// checkpoint's; [`ErrorKind::Input`] when the file cannot be read or has become shorter.
    pub fn read_at(&self, tensor: &TensorInfo, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= tensor.len());
        let (Some(_), Some(shard)) = (end, self.shards.get(tensor.shard)) else {
            let message = format!("Bytes {offset}+{} are outside of a tensor of {}", buffer.len(), tensor.len());
            return Err(Error::new(ErrorKind::Unexpected, message));
        };
        shard.read_at(tensor.begin + offset, buffer)
    }

    /// The exact bytes of a sidecar.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is none of that name; [`ErrorKind::Input`]
    /// when it cannot be read, or was changed since the checkpoint was opened.
    pub fn read_sidecar(&self, name: &str) -> Result<Vec<u8>> {
        self.sidecar(name)?.read(MAX_SIDECAR)
    }

    /// Writes the exact bytes of a sidecar to `sink`, of any size in bounded memory, and reports them to `progress`.
    ///
    /// # Errors
    /// As [`Checkpoint::read_sidecar`]; [`ErrorKind::Store`] when `sink` does not take them.
    pub fn copy_sidecar(&self, name: &str, sink: &mut dyn Write, progress: &Progress) -> Result<()> {
        self.sidecar(name)?.each_chunk(|chunk| {
            progress.advance(chunk.len() as u64);
            sink.write_all(chunk).map_err(|cause| {
                Error::new(ErrorKind::Store, format!("Could not write {}", quoted(name))).caused_by(cause)
            })
        })
    }

    /// The value of a sidecar that is JSON, read as leniently as [`parse_config`] reads.
    ///
    /// # Errors
    /// As [`Checkpoint::read_sidecar`]; [`ErrorKind::Input`] when it is not JSON, or larger than any
    /// configuration is.
    pub fn parse_sidecar(&self, name: &str) -> Result<Value> {
        let file = self.sidecar(name)?;
        parse_config(&file.read(MAX_CONFIG)?)
            .map_err(|e| file.explain(Error::input(format!("{} is malformed", quoted(name))).caused_by(e)))
    }

    /// Fails when a file of the checkpoint was written to or replaced since it was opened, so that
    /// what was read of it may be of two versions.
    ///
    /// # Errors
    /// [`ErrorKind::Input`], naming the file.
    pub fn check_unchanged(&self) -> Result<()> {
        self.shards.iter().chain(&self.index).chain(&self.sidecar_files).try_for_each(Opened::check_unchanged)
    }

    /// Adds a sidecar; they come in the order of their names.
    fn add_sidecar(&mut self, file: Opened) -> Result<()> {
        let (name, size) = (file.name(), file.size());
        // Found out now rather than when the weights are quantized.
        if size > MAX_SIDECAR && !self.is_whole {
            let message = format!("{} has {size} bytes, more than the {MAX_SIDECAR} allowed", quoted(name));
            return Err(Error::input(message).hint("move it out of the directory if the model does not need it"));
        }
        self.sidecars.push(Sidecar { name: name.to_owned(), size });
        self.sidecar_files.push(file);
        Ok(())
    }

    fn sidecar(&self, name: &str) -> Result<&Opened> {
        let at = self.sidecars.binary_search_by(|sidecar| sidecar.name.as_str().cmp(name));
        at.map(|at| &self.sidecar_files[at])
            .map_err(|_| Error::new(ErrorKind::NotFound, format!("There is no sidecar {}", quoted(name))))
    }

    /// Parses the headers of the safetensors files that are none of the shards.
    fn check_other_weights(&self, shards: &[&str]) -> Result<()> {
        let others = self.sidecar_files.iter().filter(|file| directory::is_weights(file.name()));
        others
            .filter(|file| !shards.contains(&file.name()))
            .try_for_each(|file| read_header(file, MAX_HEADERS).map(drop))
    }

    fn read_config(&self) -> Result<Value> {
        if !self.sidecars.iter().any(|sidecar| sidecar.name == CONFIG) {
            return Err(Error::input(format!("`{}` is missing", self.root.join(CONFIG).display()))
                .hint("download it from the same revision as the weights"));
        }
        let config = self.parse_sidecar(CONFIG)?;
        if config.is_object() { Ok(config) } else { Err(Error::input(format!("`{CONFIG}` is not a JSON object"))) }
    }

    /// Adds the tensors of a shard.
    fn add_shard(&mut self, file: Opened) -> Result<()> {
        let header = read_header(&file, MAX_HEADERS - self.headers)?;
        self.headers += header.data_start;
        if self.tensors.len() + header.tensors.len() > MAX_TENSORS {
            let message = format!("The checkpoint has more than {MAX_TENSORS} tensors");
            return Err(Error::input(message));
        }
        let shard = self.shards.len();
        for entry in header.tensors {
            if let Some(tensor) = entry.name.strip_suffix(".scale") {
                self.labels.extend(Label::of(tensor, &header.metadata).map(|label| (tensor.to_owned(), label)));
            }
            if let Some(other) = self.tensors.get(&entry.name) {
                let other = self.shards[other.shard].name();
                let tensor = quoted(&entry.name);
                return Err(Error::input(format!(
                    "Tensor {tensor} is in two shards, {} and {}",
                    quoted(other),
                    quoted(file.name())
                )));
            }
            let info = TensorInfo {
                dtype: entry.dtype,
                shape: entry.shape,
                shard,
                begin: header.data_start + entry.begin,
                end: header.data_start + entry.end,
            };
            self.tensors.insert(entry.name, info);
        }
        self.shards.push(file);
        Ok(())
    }

    fn require_tensors(&self) -> Result<()> {
        if self.tensors.is_empty() { Err(Error::input("The checkpoint has no tensors")) } else { Ok(()) }
    }

    /// Checks that the index and the headers say the same.
    fn check_index(&mut self, index: &Index) -> Result<()> {
        for (name, shard) in &index.shards {
            match self.tensors.get(name).map(|tensor| self.shards[tensor.shard].name()) {
                Some(holder) if *holder == **shard => {}
                holder => {
                    let place =
                        holder.map_or("it is in no shard".to_owned(), |name| format!("it is in {}", quoted(name)));
                    return Err(Error::input(format!(
                        "The shard index puts tensor {} into {}, but {place}",
                        quoted(name),
                        quoted(shard)
                    )));
                }
            }
        }
        if let Some((name, tensor)) = self.tensors.iter().find(|(name, _)| !index.shards.contains_key(*name)) {
            let shard = quoted(self.shards[tensor.shard].name());
            return Err(Error::input(format!("Tensor {} in {shard} is not in the shard index", quoted(name))));
        }
        let size = self.tensors.values().map(TensorInfo::len).fold(0, u64::saturating_add);
        if index.total_size.is_some_and(|total| total != size) {
            self.notes.push(format!("The shard index gives a wrong `total_size`: the tensors have {size} bytes"));
        }
        Ok(())
    }
}

/// The whole of the regular file at `path`, which may have `limit` bytes.
///
/// # Errors
/// [`ErrorKind::Input`]: not a regular file, too large, or it cannot be read.
pub fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>> {
    Opened::open(path.to_owned(), &path.to_string_lossy())?.read(limit)
}

/// Gives all bytes of the regular file at `path` to `take`, in order and in pieces of at most 1 MiB.
///
/// # Errors
/// As [`read_file`], and when the file was changed meanwhile.
pub fn each_chunk(path: &Path, mut take: impl FnMut(&[u8])) -> Result<()> {
    Opened::open(path.to_owned(), &path.to_string_lossy())?.each_chunk(|chunk| {
        take(chunk);
        Ok(())
    })
}

fn open_index(root: &Path) -> Result<(Opened, Index)> {
    let file = Opened::open(root.join(INDEX), INDEX)?;
    file.check_size(MAX_INDEX)?;
    let index = index::read(file.reader(0..file.size())).map_err(|e| file.explain(e))?;
    file.check_unchanged()?;
    Ok((file, index))
}

fn read_header(file: &Opened, limit: u64) -> Result<safetensors::Header> {
    let damaged = |e: Error| {
        let error = Error::input(format!("{} is not a usable safetensors file", quoted(file.name())));
        file.explain(error.caused_by(e).hint("download the file again, and compare its size and digest"))
    };
    let size = file.size();
    if size < 8 {
        return Err(damaged(Error::input(format!("The file has {size} bytes, too few for a header"))));
    }
    let mut prefix = [0; 8];
    file.read_at(0, &mut prefix)?;
    if prefix.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) {
        let error = Error::input(format!("{} is text, not a safetensors file", quoted(file.name())));
        return Err(file.explain(error.hint(disguise::DOWNLOAD)));
    }
    let start = safetensors::data_start(prefix, size).map_err(damaged)?;
    if start > limit {
        return Err(Error::input(format!("The headers of all shards have more than {MAX_HEADERS} bytes")));
    }
    safetensors::read_header(file.reader(8..start), start, size).map_err(damaged)
}

/// What is there and not used.
fn notes(listing: &Listing, shards: &[&str]) -> Vec<String> {
    let weights = listing.files.iter().filter(|name| directory::is_weights(name) && !shards.contains(&name.as_str()));
    let files = weights.map(|name| format!("{} is not used", quoted(name)));
    let folders = listing.folders.iter().map(|name| format!("The folder {} is not used", quoted(name)));
    let unusable = listing.unusable.iter().map(|name| format!("{name} is not used: it is not a usable file name"));
    files.chain(folders).chain(unusable).collect()
}

/// Whether printing `text` shows it as it is.
fn is_printable(text: &str) -> bool {
    text.chars().all(error::is_printable)
}
