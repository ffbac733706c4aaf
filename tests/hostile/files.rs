//! Files to be hostile with: checkpoints of one shard, whatever is in it.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;

/// A configuration of one layer that the tensors below are enough for.
pub(crate) const CONFIG: &str = r#"{"architectures":["OddForCausalLM"],"model_type":"odd"}"#;

/// A safetensors file with this header and `data` bytes behind it.
pub(crate) fn weights(header: impl AsRef<[u8]>, data: usize) -> Vec<u8> {
    let header = header.as_ref();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.resize(bytes.len() + data, 0x3c);
    bytes
}

/// What a header says about one tensor.
pub(crate) fn entry(name: &str, dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
}

/// A checkpoint in `root` with these bytes for weights.
pub(crate) fn checkpoint(root: &Path, weights: &[u8]) {
    fs::create_dir_all(root).unwrap();
    fs::write(root.join("config.json"), CONFIG).unwrap();
    fs::write(root.join("model.safetensors"), weights).unwrap();
}

/// A sound checkpoint.
pub(crate) fn sound(root: &Path) {
    checkpoint(root, &weights(format!("{{{}}}", entry("w", "BF16", "[2,32]", "[0,128]")), 128));
}

/// Writes a file piece by piece, so that the test itself stays small.
pub(crate) fn pieces(path: &Path, pieces: impl Iterator<Item = String>) {
    let mut file = BufWriter::new(File::create(path).unwrap());
    for piece in pieces {
        file.write_all(piece.as_bytes()).unwrap();
    }
    file.flush().unwrap();
}

/// A safetensors file whose header is these pieces.
pub(crate) fn long_weights(root: &Path, text: impl Iterator<Item = String>, data: u64) {
    sound(root);
    let path = root.join("model.safetensors");
    pieces(&path, std::iter::once("\0".repeat(8)).chain(text));
    let length = fs::metadata(&path).unwrap().len() - 8;
    let file = File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &length.to_le_bytes(), 0).unwrap();
    file.set_len(length + 8 + data).unwrap();
}
