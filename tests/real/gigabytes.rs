//! Models that are large: what a test of hours and of memory needs, made where it is needed.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;

use serde_json::{Map, json};

/// Numbers that look like chance and are the same for the same seed (xorshift).
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Writes a checkpoint of tensors of BF16 with these sizes in bytes, whose bytes look like chance, into `directory`. No
/// two tensors are the same.
pub(crate) fn checkpoint(directory: &Path, sizes: impl Iterator<Item = u64>) {
    fs::create_dir(directory).unwrap();
    let (mut header, mut end) = (Map::new(), 0);
    for (number, size) in sizes.enumerate() {
        let tensor = json!({ "dtype": "BF16", "shape": [size / 2], "data_offsets": [end, end + size] });
        header.insert(format!("blocks.{number:04}.weight"), tensor);
        end += size;
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(directory.join("model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    let mut chance = Chance::new(end);
    for _ in 0..end / 8 {
        file.write_all(&chance.next().to_le_bytes()).unwrap();
    }
    file.flush().unwrap();
    fs::write(directory.join("config.json"), r#"{"architectures":["OtherForCausalLM"],"model_type":"other"}"#).unwrap();
}
