//! Models as they were published before: the tensors of a checkpoint in the layers that Ollama's importers of
//! May and August 2026 made of it. Written here byte by byte; of kiln only the store's door and the hash are
//! used.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kiln::oci::{Descriptor, Digest, MediaType};
use kiln::store::Store;
use serde_json::Value;

use crate::place::Place;

#[derive(Clone)]
pub(crate) struct Array {
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    pub(crate) data: Vec<u8>,
}

/// Tensors in the order in which their data lies.
pub(crate) type Arrays = Vec<(String, Array)>;

/// How the experts lie that the checkpoint has one by one, as `<L>.mlp.experts.<E>.<P>.weight`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Layout {
    /// One by one still, all of a layer in the blob `<L>.mlp.experts`, in the order of the shards (May).
    PerExpert,
    /// One by one, each a blob (August, prequantized).
    Alone,
    /// `<L>.mlp.switch_mlp.<P>.weight` in the blob `<L>.mlp.experts` (May, quantized).
    Restacked,
    /// `<L>.mlp.experts.<P>.weight` in the blob `<L>.mlp.experts` (August).
    Stacked,
    /// `<L>.mlp.experts.<P>.weight`, each a blob (August, when their schemes differ).
    Apart,
}

impl Layout {
    pub(crate) const ALL: [Self; 5] = [Self::PerExpert, Self::Alone, Self::Restacked, Self::Stacked, Self::Apart];

    fn arrange(self, tensors: Arrays) -> BTreeMap<String, Arrays> {
        let mut blobs: BTreeMap<String, Arrays> = BTreeMap::new();
        let mut groups: BTreeMap<(String, String), BTreeMap<usize, Array>> = BTreeMap::new();
        for (name, array) in tensors {
            let expert = name.split_once(".mlp.experts.").and_then(|(layer, rest)| {
                let (number, projection) = rest.split_once('.')?;
                Some((layer.to_owned(), number.parse::<usize>().ok()?, projection.to_owned()))
            });
            match (self, expert) {
                (Self::PerExpert, Some((layer, ..))) => {
                    blobs.entry(format!("{layer}.mlp.experts")).or_default().push((name, array));
                }
                (Self::Alone, _) | (_, None) => drop(blobs.insert(name.clone(), vec![(name, array)])),
                (_, Some((layer, number, projection))) => {
                    groups.entry((layer, projection)).or_default().insert(number, array);
                }
            }
        }
        for ((layer, projection), experts) in groups {
            let home = if matches!(self, Self::Restacked) { "switch_mlp" } else { "experts" };
            let name = format!("{layer}.mlp.{home}.{projection}");
            let blob = if matches!(self, Self::Apart) { name.clone() } else { format!("{layer}.mlp.experts") };
            blobs.entry(blob).or_default().push((name, stack(experts.into_values())));
        }
        blobs
    }
}

/// Who wrote the safetensors files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    /// Ollama's own: `dtype` first, the header padded with spaces.
    Go,
    /// MLX: the offsets first, no padding, `null` for no metadata, the data in any order.
    Mlx,
    /// Ollama's own as pull request 15951 had it, which is kiln's form: the offsets first, padded.
    Sorted,
}

fn stack(experts: impl Iterator<Item = Array>) -> Array {
    experts
        .fold(None, |stacked: Option<Array>, expert| match stacked {
            None => Some(Array { shape: [&[1], &*expert.shape].concat(), ..expert }),
            Some(mut stacked) => {
                stacked.shape[0] += 1;
                stacked.data.extend(expert.data);
                Some(stacked)
            }
        })
        .unwrap()
}

/// A safetensors file with the data in this order.
pub(crate) fn file(arrays: &[(String, Array)], metadata: Option<&str>, writer: Writer) -> Vec<u8> {
    let mut entries = BTreeMap::new();
    if writer == Writer::Mlx || metadata.is_some() {
        entries.insert("__metadata__", metadata.unwrap_or("null").to_owned());
    }
    let mut data = Vec::new();
    for (name, Array { dtype, shape, data: bytes }) in arrays {
        let offsets = format!(r#""data_offsets":[{},{}]"#, data.len(), data.len() + bytes.len());
        let shape = format!(r#""shape":{}"#, serde_json::to_string(shape).unwrap());
        let dtype = format!(r#""dtype":"{dtype}""#);
        let entry = if writer == Writer::Go { [dtype, shape, offsets] } else { [offsets, dtype, shape] };
        entries.insert(name, format!("{{{}}}", entry.join(",")));
        data.extend(bytes);
    }
    let entries: Vec<String> = entries.iter().map(|(name, entry)| format!("{name:?}:{entry}")).collect();
    let mut header = format!("{{{}}}", entries.join(","));
    while writer != Writer::Mlx && !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &*data].concat()
}

/// The tensors of a test checkpoint, shard by shard.
pub(crate) fn tensors(checkpoint: &str) -> Arrays {
    let is_shard = |path: &PathBuf| path.extension().is_some_and(|end| end == "safetensors");
    files(checkpoint).into_iter().filter(is_shard).flat_map(|path| parse(&fs::read(path).unwrap())).collect()
}

/// The arrays of the layers of a stored model, layer by layer; their metadata is told by their names.
pub(crate) fn stored(place: &Place, name: &str) -> Vec<Arrays> {
    let shown = place.kiln(&format!("show {name} --json")).last_object();
    let layers = shown["layers"].as_array().unwrap().iter();
    let tensors = layers.filter(|layer| layer["mediaType"] == "application/vnd.ollama.image.tensor");
    tensors.map(|layer| parse(&fs::read(place.blob(layer["digest"].as_str().unwrap())).unwrap())).collect()
}

/// The arrays of a safetensors file, in the order of their data.
fn parse(file: &[u8]) -> Arrays {
    let start = 8 + u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&file[8..start]).unwrap();
    let mut arrays: Vec<(usize, String, Array)> = Vec::new();
    for (name, entry) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let offset = |index: usize| entry["data_offsets"][index].as_u64().unwrap() as usize;
        let array = Array {
            dtype: entry["dtype"].as_str().unwrap().to_owned(),
            shape: entry["shape"].as_array().unwrap().iter().map(|size| size.as_u64().unwrap()).collect(),
            data: file[start + offset(0)..start + offset(1)].to_vec(),
        };
        arrays.push((offset(0), name, array));
    }
    arrays.sort_by_key(|(offset, ..)| *offset);
    arrays.into_iter().map(|(_, name, array)| (name, array)).collect()
}

fn files(checkpoint: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(checkpoint);
    let mut files: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// A published model: its layers, each with its media type and its name.
pub(crate) struct Published {
    pub(crate) layers: Vec<(&'static str, Option<String>, Vec<u8>)>,
}

impl Published {
    /// The tensors and the JSON files of a checkpoint.
    pub(crate) fn of(checkpoint: &str, layout: Layout, writer: Writer) -> Self {
        Self::with_blobs(checkpoint, layout.arrange(tensors(checkpoint)), writer)
    }

    /// These blobs, and the JSON files of a checkpoint.
    pub(crate) fn with_blobs(checkpoint: &str, blobs: BTreeMap<String, Arrays>, writer: Writer) -> Self {
        let files = blobs.into_iter().map(|(name, mut arrays)| {
            if writer == Writer::Mlx {
                arrays.reverse(); // the order of a hash table: any but that of the names
            }
            (name, file(&arrays, None, writer))
        });
        Self::with_files(checkpoint, files)
    }

    /// These safetensors files, and the JSON files of a checkpoint.
    pub(crate) fn with_files(checkpoint: &str, files_by_name: impl Iterator<Item = (String, Vec<u8>)>) -> Self {
        let tensor = "application/vnd.ollama.image.tensor";
        let mut layers: Vec<_> = files_by_name.map(|(name, file)| (tensor, Some(name), file)).collect();
        for path in files(checkpoint) {
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.ends_with(".json") && name != "model.safetensors.index.json" {
                let bytes = fs::read(&path).unwrap();
                layers.push(("application/vnd.ollama.image.json", Some(name.to_owned()), bytes));
            }
        }
        Self { layers }
    }

    /// Ollama's config blob of May.
    fn config() -> Vec<u8> {
        let config = r#"{"model_format":"safetensors","model_family":"","model_families":null,"model_type":"","file_type":"","renderer":"qwen3-coder","parser":"qwen3","capabilities":["completion","thinking"],"architecture":"","os":""}"#;
        config.as_bytes().to_vec()
    }

    /// The manifest, compact and with a line end, as Go writes it.
    fn manifest(&self) -> Vec<u8> {
        let descriptor = |media_type: &str, bytes: &[u8], name: &Option<String>| {
            let name = name.as_ref().map(|name| format!(r#","name":"{name}""#)).unwrap_or_default();
            let (digest, size) = (Digest::of(bytes), bytes.len());
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}{name}}}"#)
        };
        let config = descriptor("application/vnd.docker.container.image.v1+json", &Self::config(), &None);
        let layers: Vec<String> =
            self.layers.iter().map(|(media_type, name, bytes)| descriptor(media_type, bytes, name)).collect();
        let media_type = MediaType::DOCKER_MANIFEST;
        let layers = layers.join(",");
        format!("{{\"schemaVersion\":2,\"mediaType\":\"{media_type}\",\"config\":{config},\"layers\":[{layers}]}}\n")
            .into_bytes()
    }

    fn blobs(&self) -> impl Iterator<Item = Vec<u8>> {
        self.layers.iter().map(|(.., bytes)| bytes.clone()).chain([Self::config()])
    }

    /// Puts it into the store of `place` as `name`; gives its digest.
    pub(crate) fn put(&self, place: &Place, name: &str) -> String {
        let store = Store::open(&place.path("store")).unwrap();
        let import = store.begin_import().unwrap();
        for bytes in self.blobs() {
            import.stage_bytes(MediaType::KILN_FILE, &bytes).unwrap();
        }
        let manifest: Descriptor = import.stage_bytes(MediaType::DOCKER_MANIFEST, &self.manifest()).unwrap();
        import.commit(&name.parse().unwrap(), &manifest).unwrap();
        manifest.digest.to_string()
    }

    /// Puts it into a store of Ollama's at `root`, as `path`: host, namespace, model and tag.
    pub(crate) fn put_ollama(&self, root: &Path, path: &str) {
        fs::create_dir_all(root.join("blobs")).unwrap();
        for bytes in self.blobs() {
            let name = Digest::of(&bytes).to_string().replace(':', "-");
            fs::write(root.join("blobs").join(name), bytes).unwrap();
        }
        let path = root.join("manifests").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, self.manifest()).unwrap();
    }
}
