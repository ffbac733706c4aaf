//! Executes a plan: reads a checkpoint in chunks, rearranges and quantizes, and writes each blob as one
//! canonical safetensors file. Memory is bounded by the chunk, not by the tensor. Decides nothing.

mod canonical;
mod decode;
mod write;

pub use canonical::{Entry, Layout, encode_header};
pub use write::{SourceHashes, read_values, write};
