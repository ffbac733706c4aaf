//! `create` from end to end on a generated mixture-of-experts checkpoint of 1 GiB: throughput in bytes of
//! bfloat16 source, and the peak memory of the process. `cargo bench --bench create` takes about a minute;
//! it writes under the temporary directory (`TMPDIR=/dev/shm` leaves the disk out of it).

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use kiln::Progress;
use kiln::manifest::Dialect;
use kiln::ops::create::{Options, create};
use kiln::plan::Request;
use kiln::store::Store;
use serde_json::{Map, Value, json};

const LAYERS: u64 = 4;
const EXPERTS: u64 = 32;
const HIDDEN: u64 = 2048;
const WIDTH: u64 = 640;
const VOCABULARY: u64 = 4096;

fn main() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let source = place.path().join("checkpoint");
    let bytes = generate(&source).expect("the checkpoint is written");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("create: {:.2} GiB of bfloat16, {EXPERTS} experts x {LAYERS} layers, {threads} threads", gib(bytes));
    println!("{:<8} {:>8} {:>8} {:>10}", "scheme", "seconds", "GB/s", "peak MiB");
    for scheme in [None, Some("int4"), Some("int8"), Some("nvfp4"), Some("mxfp4"), Some("mxfp8")] {
        let root = place.path().join("store");
        let store = Store::open(&root).expect("a new store");
        reset_peak();
        let started = Instant::now();
        let options = Options {
            name: "bench:model".parse().expect("a reference"),
            source: source.clone().into(),
            request: Request { scheme: scheme.map(|scheme| scheme.parse().expect("a scheme")), ..Request::default() },
            dialect: Dialect::Ollama,
            threads,
        };
        create(&store, &options, &Progress::silent()).expect("the model is created");
        let seconds = started.elapsed().as_secs_f64();
        let peak = peak_kib().map_or_else(|| "?".to_owned(), |kib| (kib / 1024).to_string());
        println!("{:<8} {seconds:>8.2} {:>8.2} {peak:>10}", scheme.unwrap_or("none"), bytes as f64 / 1e9 / seconds);
        drop(store);
        fs::remove_dir_all(&root).expect("the store is removed");
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Writes a qwen3_moe checkpoint with random weights, one shard per layer; returns the bytes of its
/// tensors.
fn generate(directory: &Path) -> std::io::Result<u64> {
    fs::create_dir_all(directory)?;
    let config = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_hidden_layers": LAYERS,
        "num_experts": EXPERTS, "hidden_size": HIDDEN, "moe_intermediate_size": WIDTH, "vocab_size": VOCABULARY,
    });
    fs::write(directory.join("config.json"), config.to_string())?;
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut total = 0;
    let outer = [("model.embed_tokens.weight", VOCABULARY), ("lm_head.weight", VOCABULARY)];
    let outer = outer.map(|(name, rows)| (name.to_owned(), rows, HIDDEN));
    total += shard(&directory.join("model-00000.safetensors"), &outer, &mut random)?;
    for layer in 0..LAYERS {
        let mut tensors = Vec::new();
        for projection in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            tensors.push((format!("model.layers.{layer}.self_attn.{projection}.weight"), HIDDEN, HIDDEN));
        }
        tensors.push((format!("model.layers.{layer}.mlp.gate.weight"), EXPERTS, HIDDEN));
        for expert in 0..EXPERTS {
            let prefix = format!("model.layers.{layer}.mlp.experts.{expert}");
            tensors.push((format!("{prefix}.gate_proj.weight"), WIDTH, HIDDEN));
            tensors.push((format!("{prefix}.up_proj.weight"), WIDTH, HIDDEN));
            tensors.push((format!("{prefix}.down_proj.weight"), HIDDEN, WIDTH));
        }
        total += shard(&directory.join(format!("model-{:05}.safetensors", layer + 1)), &tensors, &mut random)?;
    }
    Ok(total)
}

fn shard(path: &Path, tensors: &[(String, u64, u64)], random: &mut Random) -> std::io::Result<u64> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, rows, columns) in tensors {
        let begin = end;
        end += rows * columns * 2;
        header.insert(name.clone(), json!({ "dtype": "BF16", "shape": [rows, columns], "data_offsets": [begin, end] }));
    }
    let header = Value::Object(header).to_string();
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for _ in 0..end / 8 {
        file.write_all(&random.four_weights().to_le_bytes())?;
    }
    file.flush()?;
    Ok(end)
}

/// Four finite bfloat16 values of either sign between about 2^-9 and 2^-1.
struct Random(u64);

impl Random {
    fn four_weights(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 & 0x83FF_83FF_83FF_83FF | 0x3C00_3C00_3C00_3C00
    }
}

/// Linux keeps the peak of the resident set, and forgets it when asked to.
fn reset_peak() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

fn peak_kib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}
