//! Writing one blob: chunk by chunk from the checkpoint, through the kernels, into a sink.

use std::io::{self, Seek, SeekFrom, Write};

use tempfile::SpooledTempFile;

use super::Layout;
use super::decode::Decoder;
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::plan::{Part, PlannedBlob, PlannedTensor, Role, SourceTensor};
use crate::progress::Progress;
use crate::quant::{self, Float, NonFinite, Quantized, Scheme};
use crate::source::{Checkpoint, TensorInfo};

/// How many source bytes are read at once: small enough to stay in a core's cache on the way through the
/// kernels, a multiple of every group in every type.
const CHUNK: usize = 1 << 20;

/// What a part that cannot be written yet may take in memory before it goes to a temporary file.
const SPOOL: usize = 8 << 20;

/// The BLAKE3 of what was read from each source of a tensor, in the plan's order; empty for a tensor whose
/// values were neither decoded nor quantized: its layer's digest commits to those already.
pub type SourceHashes = Vec<blake3::Hash>;

/// Writes `blob` to `sink`; returns the source hashes of each tensor, in the plan's order.
///
/// # Errors
/// [`ErrorKind::Input`] when a source cannot be read, or has a value that is not finite and would be
/// quantized; the error of `sink`.
pub fn write(
    blob: &PlannedBlob,
    checkpoint: &Checkpoint,
    sink: &mut dyn Write,
    progress: &Progress,
) -> Result<Vec<SourceHashes>> {
    let layout = Layout::of(blob);
    sink.write_all(&layout.header).map_err(sink_failed)?;
    let mut chunk = vec![0; CHUNK];
    let tensors = blob.tensors.iter().zip(&layout.parts);
    tensors.map(|(tensor, parts)| Source::open(tensor, checkpoint, progress, &mut chunk)?.write(parts, sink)).collect()
}

fn sink_failed(cause: io::Error) -> Error {
    let full = matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let error = Error::new(ErrorKind::Store, "Could not write a blob").caused_by(cause);
    if full {
        error.hint("free some space, then run the command again: `kiln gc` removes what nothing names")
    } else {
        error
    }
}

/// A planned tensor's bytes, as they are read.
struct Source<'a> {
    tensor: &'a PlannedTensor,
    checkpoint: &'a Checkpoint,
    progress: &'a Progress,
    chunk: &'a mut [u8],
    hashers: Vec<blake3::Hasher>,
    decoders: Vec<Option<Decoder>>,
    /// The rows being decoded, shared by all decoders: a group may have hundreds.
    rows: Vec<u8>,
}

impl<'a> Source<'a> {
    fn open(
        tensor: &'a PlannedTensor,
        checkpoint: &'a Checkpoint,
        progress: &'a Progress,
        chunk: &'a mut [u8],
    ) -> Result<Self> {
        let mut hashers = vec![blake3::Hasher::new(); tensor.sources.len()];
        let decoder = |source: &SourceTensor| {
            let Some(index) = source.scales else { return Ok(None) };
            let scales = &tensor.sources[index];
            let info = stored(checkpoint, &scales.name)?;
            let mut bytes = vec![0; info.len() as usize];
            checkpoint.read_at(info, 0, &mut bytes)?;
            hashers[index].update(&bytes);
            Decoder::new(source, scales, bytes).map(Some)
        };
        let decoders = tensor.sources.iter().map(decoder).collect::<Result<_>>()?;
        Ok(Self { tensor, checkpoint, progress, chunk, hashers, decoders, rows: Vec::new() })
    }

    fn write(mut self, parts: &[Part], sink: &mut dyn Write) -> Result<SourceHashes> {
        match self.tensor.scheme {
            None => self.copy(sink)?,
            Some(scheme) => self.quantize(scheme, parts, sink)?,
        }
        Ok(if self.tensor.is_transformed() {
            self.hashers.iter().map(blake3::Hasher::finalize).collect()
        } else {
            SourceHashes::new()
        })
    }

    /// Reads every segment in order; `use_chunk` gets the source's index, the chunk's offset in it after
    /// decoding, and the decoded bytes.
    fn read(&mut self, mut use_chunk: impl FnMut(usize, u64, &[u8]) -> Result<()>) -> Result<()> {
        let transformed = self.tensor.is_transformed();
        // An empty matrix has rows of no bytes, of which no number fills a chunk.
        for segment in self.tensor.segments.iter().filter(|segment| segment.length > 0) {
            let info = stored(self.checkpoint, &self.tensor.sources[segment.source].name)?;
            let hasher = &mut self.hashers[segment.source];
            let decoder = self.decoders[segment.source].as_ref();
            // What one stored byte becomes, and how much is taken at once: whole rows, where rows matter.
            let (growth, unit) = decoder.map_or((1, 1), |decoder| (Decoder::GROWTH, decoder.row_bytes()));
            let most = (CHUNK as u64 / unit).max(1) * unit;
            let mut done = 0;
            while done < segment.length / growth {
                let length = (segment.length / growth - done).min(most);
                let at = segment.offset / growth + done;
                if self.chunk.len() < length as usize {
                    return Err(Error::input(format!("A row of {} is longer than 1 MiB", quoted(&self.tensor.name))));
                }
                let bytes = &mut self.chunk[..length as usize];
                self.checkpoint.read_at(info, at, bytes)?;
                if transformed {
                    hasher.update(bytes);
                }
                match decoder {
                    Some(decoder) => use_chunk(segment.source, at * growth, decoder.decode(at, bytes, &mut self.rows))?,
                    None => use_chunk(segment.source, at, bytes)?,
                }
                self.progress.advance(length);
                done += length;
            }
        }
        Ok(())
    }

    fn copy(&mut self, sink: &mut dyn Write) -> Result<()> {
        let tensor = self.tensor;
        let checked = tensor.float().filter(|_| tensor.finite);
        self.read(|source, offset, bytes| {
            if let Some(float) = checked {
                quant::check_finite(float, bytes).map_err(|error| not_finite(tensor, float, source, offset, error))?;
            }
            sink.write_all(bytes).map_err(sink_failed)
        })
    }

    /// Quantizes chunk by chunk. The first part goes straight to the sink; the kernels give all parts of a
    /// chunk at once, so the others wait in spools until it is their turn.
    fn quantize(&mut self, scheme: Scheme, parts: &[Part], sink: &mut dyn Write) -> Result<()> {
        let tensor = self.tensor;
        let float = tensor.float().ok_or_else(|| {
            Error::new(
                ErrorKind::Unexpected,
                format!("{} is not a float tensor, yet it has a scheme", quoted(&tensor.name)),
            )
        })?;
        let mut scratch = Scratch::new(scheme, float);
        let mut spools: Vec<SpooledTempFile> = parts[1..].iter().map(|_| SpooledTempFile::new(SPOOL)).collect();
        self.read(|source, offset, bytes| {
            let out = scratch.quantize(bytes).map_err(|error| not_finite(tensor, float, source, offset, error))?;
            sink.write_all(out.part(parts[0].role)).map_err(sink_failed)?;
            let mut waiting = parts[1..].iter().zip(&mut spools);
            waiting.try_for_each(|(part, spool)| spool.write_all(out.part(part.role)).map_err(sink_failed))
        })?;
        for spool in &mut spools {
            spool.seek(SeekFrom::Start(0)).map_err(sink_failed)?;
            io::copy(spool, sink).map_err(sink_failed)?;
        }
        Ok(())
    }
}

fn stored<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<&'a TensorInfo> {
    checkpoint.tensors().get(name).ok_or_else(|| {
        Error::new(
            ErrorKind::Unexpected,
            format!("The plan names {}, which the checkpoint does not have", quoted(name)),
        )
    })
}

/// A value that is not finite, in a chunk that starts at byte `offset` of a source.
fn not_finite(tensor: &PlannedTensor, float: Float, source: usize, offset: u64, error: NonFinite) -> Error {
    let index = offset / float.size() as u64 + error.index as u64;
    let name = quoted(&tensor.sources[source].name);
    Error::input(format!("{name} is not finite at element {index}"))
        .hint("a NaN or an infinity cannot be quantized: repair the checkpoint, or import it without `--quantize`")
}

/// The kernels' output for one chunk.
struct Scratch {
    scheme: Scheme,
    float: Float,
    packed: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
}

impl Scratch {
    fn new(scheme: Scheme, float: Float) -> Self {
        Self { scheme, float, packed: Vec::new(), scales: Vec::new(), biases: Vec::new() }
    }

    /// Quantizes whole groups.
    fn quantize(&mut self, bytes: &[u8]) -> Result<&Self, NonFinite> {
        let Self { scheme, float, packed, scales, biases } = self;
        let elements = bytes.len() / float.size();
        packed.resize(scheme.packed_len(elements), 0);
        scales.resize(scheme.scales_len(elements, *float), 0);
        biases.resize(scheme.biases_len(elements, *float), 0);
        quant::quantize(*scheme, *float, bytes, Quantized { packed, scales, biases })?;
        Ok(self)
    }

    fn part(&self, role: Role) -> &[u8] {
        match role {
            Role::Values | Role::Packed => &self.packed,
            Role::Scales => &self.scales,
            Role::Biases => &self.biases,
        }
    }
}
