//! Writing one blob: chunk by chunk from the checkpoint, through the kernels, into a sink.

use std::collections::BTreeMap;
use std::io::{self, Seek, SeekFrom, Write};

use tempfile::SpooledTempFile;

use super::Layout;
use super::decode::Decoder;
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::plan::{Packed, Part, PlannedBlob, PlannedTensor, Role, Segment};
use crate::progress::Progress;
use crate::quant::{self, Float, NonFinite, Quantized, Scheme};
use crate::source::{Checkpoint, TensorInfo};

/// How many source bytes are read at once: small enough to stay in a core's cache on the way through the
/// kernels, a multiple of every group in every type.
const CHUNK: usize = 1 << 20;

/// What may be held at once of a source whose bytes are taken out of order, in bytes. A transposed matrix must
/// fit; what does not is read run by run.
const SPAN: u64 = 32 << 20;

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
    let mut data = Data { sink, next: 0, waiting: BTreeMap::new() };
    let mut hashes = vec![SourceHashes::new(); blob.tensors.len()];
    for (index, parts) in &layout.tensors {
        let source = Source::open(&blob.tensors[*index], checkpoint, progress, &mut chunk)?;
        hashes[*index] = source.write(parts, &mut data)?;
    }
    Ok(hashes)
}

/// The data of a blob, part by part. What comes before its turn waits in a spool.
struct Data<'a> {
    sink: &'a mut dyn Write,
    /// The place of the part whose turn it is.
    next: usize,
    waiting: BTreeMap<usize, SpooledTempFile>,
}

impl Data<'_> {
    /// Appends to the part at `place`.
    fn write(&mut self, place: usize, bytes: &[u8]) -> Result<()> {
        if place == self.next {
            return self.sink.write_all(bytes).map_err(sink_failed);
        }
        self.spool(place).write_all(bytes).map_err(sink_failed)
    }

    /// Says that the part at `place` is complete, as are all that wait.
    fn end(&mut self, place: usize) -> Result<()> {
        if place >= self.next {
            self.spool(place);
        }
        while let Some(mut spool) = self.waiting.remove(&self.next) {
            spool.seek(SeekFrom::Start(0)).map_err(sink_failed)?;
            io::copy(&mut spool, &mut self.sink).map_err(sink_failed)?;
            self.next += 1;
        }
        Ok(())
    }

    fn spool(&mut self, place: usize) -> &mut SpooledTempFile {
        self.waiting.entry(place).or_insert_with(|| SpooledTempFile::new(SPOOL))
    }
}

/// Reads the values of `tensor` as [`write()`] quantizes them: arranged, decoded and after its steps, in chunks of any
/// length.
///
/// # Errors
/// [`ErrorKind::Input`] when a source cannot be read; the error of `use_values`.
pub fn read_values(
    tensor: &PlannedTensor,
    checkpoint: &Checkpoint,
    progress: &Progress,
    use_values: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<SourceHashes> {
    let mut chunk = vec![0; CHUNK];
    let mut source = Source::open(tensor, checkpoint, progress, &mut chunk)?;
    source.read_values(&tensor.segments, &mut |_, _, values| use_values(values))?;
    Ok(source.hashes())
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

/// Takes a chunk of what a segment gives: the segment, where in its bytes the chunk is, and the chunk, decoded.
type UseChunk<'a> = dyn FnMut(&Segment, u64, &[u8]) -> Result<()> + 'a;

/// A planned tensor's bytes, as they are read.
struct Source<'a> {
    tensor: &'a PlannedTensor,
    checkpoint: &'a Checkpoint,
    progress: &'a Progress,
    chunk: &'a mut [u8],
    hashers: Vec<blake3::Hasher>,
    decoders: Vec<Option<Decoder<'a>>>,
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
        let sources = 0..tensor.sources.len();
        let decoders = sources.map(|source| Decoder::of(tensor, source, checkpoint, &mut hashers));
        let decoders = decoders.collect::<Result<_>>()?;
        Ok(Self { tensor, checkpoint, progress, chunk, hashers, decoders, rows: Vec::new() })
    }

    fn write(mut self, parts: &[(usize, Part)], data: &mut Data<'_>) -> Result<SourceHashes> {
        match (self.tensor.scheme, &self.tensor.packed) {
            (Some(scheme), None) => self.quantize(scheme, parts, data)?,
            (_, packed) => {
                for (place, part) in parts {
                    let segments = packed
                        .as_ref()
                        .map_or(&self.tensor.segments[..], |packed| segments(self.tensor, packed, part.role));
                    self.copy(segments, *place, data)?;
                }
            }
        }
        Ok(self.hashes())
    }

    fn hashes(&self) -> SourceHashes {
        let hashers = self.hashers.iter().filter(|_| self.tensor.is_transformed());
        hashers.map(blake3::Hasher::finalize).collect()
    }

    /// Reads segments in order, and gives their values as the steps of the tensor leave them.
    fn read_values(&mut self, segments: &[Segment], use_chunk: &mut UseChunk<'_>) -> Result<()> {
        let tensor = self.tensor;
        let mut values = Vec::new();
        self.read(segments, &mut |segment, at, bytes| use_chunk(segment, at, stepped(tensor, bytes, &mut values)))
    }

    /// Reads segments in order.
    fn read(&mut self, segments: &[Segment], use_chunk: &mut UseChunk<'_>) -> Result<()> {
        // An empty matrix has rows of no bytes, of which no number fills a chunk.
        for segment in segments.iter().filter(|segment| segment.bytes() > 0) {
            if segment.loops.is_empty() {
                self.read_run(segment, segment.offset, segment.run, &mut |at, bytes| use_chunk(segment, at, bytes))?;
            } else {
                self.read_strided(segment, segment, 0, use_chunk)?;
            }
        }
        Ok(())
    }

    /// Reads `length` decoded bytes from `offset` of the segment's source.
    fn read_run(
        &mut self,
        segment: &Segment,
        offset: u64,
        length: u64,
        use_chunk: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let info = stored(self.checkpoint, &self.tensor.sources[segment.source].name)?;
        let hasher = self.tensor.is_transformed().then_some(&mut self.hashers[segment.source]);
        // What a strided segment takes is hashed in its own order.
        let mut hasher = hasher.filter(|_| segment.loops.is_empty());
        let decoder = self.decoders[segment.source].as_ref();
        // What so many stored bytes become, and how much is taken at once: whole rows, where rows matter.
        let [from, to] = decoder.map_or([1, 1], |decoder| decoder.row);
        let most = (CHUNK as u64 / from).max(1) * from;
        let (start, length) = (offset / to * from, length / to * from);
        let mut done = 0;
        while done < length {
            let step = (length - done).min(most);
            let at = start + done;
            if self.chunk.len() < step as usize {
                return Err(Error::input(format!("A row of {} is longer than 1 MiB", quoted(&self.tensor.name))));
            }
            let bytes = &mut self.chunk[..step as usize];
            self.checkpoint.read_at(info, at, bytes)?;
            if let Some(hasher) = &mut hasher {
                hasher.update(bytes);
            }
            match decoder {
                Some(decoder) => use_chunk(done / from * to, decoder.decode(at / from, bytes, &mut self.rows)?)?,
                None => use_chunk(done, bytes)?,
            }
            self.progress.advance(step);
            done += step;
        }
        Ok(())
    }

    /// Reads what lies between the first and the last run, as far as it may be held at once, and picks the
    /// runs out of it. `whole` is the segment that `part` is a part of, from byte `at` on.
    fn read_strided(&mut self, whole: &Segment, part: &Segment, at: u64, use_chunk: &mut UseChunk<'_>) -> Result<()> {
        if part.span() > SPAN && !part.loops.is_empty() {
            let mut at = at;
            for inner in part.unrolled() {
                self.read_strided(whole, &inner, at, use_chunk)?;
                at += inner.bytes();
            }
            return Ok(());
        }
        let (start, end) = self.whole_rows(part);
        let mut span = Vec::with_capacity((end - start) as usize);
        self.read_run(whole, start, end - start, &mut |_, bytes| {
            span.extend_from_slice(bytes);
            Ok(())
        })?;
        let mut gathered = Vec::with_capacity(part.bytes() as usize);
        part.gather(&span[(part.offset - start) as usize..], &mut gathered);
        if self.tensor.is_transformed() {
            self.hashers[whole.source].update(&gathered);
        }
        let mut chunks = (at..).step_by(CHUNK).zip(gathered.chunks(CHUNK));
        chunks.try_for_each(|(at, chunk)| use_chunk(whole, at, chunk))
    }

    /// Where the bytes of `part` start and end in its source, widened to the rows that a decoder needs.
    fn whole_rows(&self, part: &Segment) -> (u64, u64) {
        let (start, end) = (part.offset, part.offset + part.span());
        match &self.decoders[part.source] {
            Some(decoder) => {
                let [_, row] = decoder.row;
                (start / row * row, end.div_ceil(row) * row)
            }
            None => (start, end),
        }
    }

    fn copy(&mut self, segments: &[Segment], place: usize, data: &mut Data<'_>) -> Result<()> {
        let tensor = self.tensor;
        let checked = tensor.float().filter(|_| tensor.finite && tensor.packed.is_none());
        self.read_values(segments, &mut |segment, at, bytes| {
            if let Some(float) = checked {
                quant::check_finite(float, bytes).map_err(|error| not_finite(tensor, segment, at, error))?;
            }
            data.write(place, bytes)
        })?;
        data.end(place)
    }

    /// Quantizes chunk by chunk. The kernels give all parts of a chunk at once: the first goes straight to the
    /// sink, the others wait until it is their turn.
    fn quantize(&mut self, scheme: Scheme, parts: &[(usize, Part)], data: &mut Data<'_>) -> Result<()> {
        let tensor = self.tensor;
        let float = tensor.float().ok_or_else(|| {
            Error::new(
                ErrorKind::Unexpected,
                format!("{} is not a float tensor, yet it has a scheme", quoted(&tensor.name)),
            )
        })?;
        let mut scratch = Scratch::new(scheme, float);
        self.read_values(&tensor.segments, &mut |segment, at, bytes| {
            let out = scratch.quantize(bytes).map_err(|error| not_finite(tensor, segment, at, error))?;
            parts.iter().try_for_each(|(place, part)| data.write(*place, out.part(part.role)))
        })?;
        parts.iter().try_for_each(|(place, _)| data.end(*place))
    }
}

pub(super) fn stored<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<&'a TensorInfo> {
    checkpoint.tensors().get(name).ok_or_else(|| {
        Error::new(
            ErrorKind::Unexpected,
            format!("The plan names {}, which the checkpoint does not have", quoted(name)),
        )
    })
}

/// The source bytes of a part that is copied.
fn segments<'a>(tensor: &'a PlannedTensor, packed: &'a Packed, role: Role) -> &'a [Segment] {
    match role {
        Role::Values | Role::Packed => &tensor.segments,
        Role::Scales => &packed.scales,
        Role::Biases => &packed.biases,
        Role::Global => packed.global.as_ref().map_or(&[], |(_, segments)| segments),
    }
}

/// `bytes` as the steps of the tensor leave them, in `values` where there are any.
fn stepped<'a>(tensor: &PlannedTensor, bytes: &'a [u8], values: &'a mut Vec<u8>) -> &'a [u8] {
    let Some(mut float) = tensor.read_as().filter(|_| !tensor.steps.is_empty()) else { return bytes };
    values.clear();
    values.extend_from_slice(bytes);
    for step in &tensor.steps {
        float = step.apply(float, values);
    }
    values
}

/// A value that is not finite, in a chunk that starts at byte `at` of what `segment` gives.
fn not_finite(tensor: &PlannedTensor, segment: &Segment, at: u64, error: NonFinite) -> Error {
    let size = tensor.read_as().map_or(1, Float::size) as u64;
    let index = segment.locate(at + error.index as u64 * size) / size;
    let name = quoted(&tensor.sources[segment.source].name);
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
            Role::Global => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whichever tensor a part belongs to, and whether a tensor's parts come one after another or all at once.
        #[test]
        fn parts_are_written_in_the_order_of_their_places(
            owners in prop::collection::vec(0_usize..4, 1..12),
            lengths in prop::collection::vec(0_usize..5, 12),
            at_once in prop::collection::vec(any::<bool>(), 4),
        ) {
            let part = |place: usize| vec![place as u8; lengths[place]];
            let mut out = Vec::new();
            let mut data = Data { sink: &mut out, next: 0, waiting: BTreeMap::new() };
            // In the order of their first parts, as a layout has them.
            let mut order: Vec<usize> = Vec::new();
            owners.iter().for_each(|owner| if !order.contains(owner) { order.push(*owner) });
            for tensor in order {
                let places = || (0..owners.len()).filter(|place| owners[*place] == tensor);
                if at_once[tensor] {
                    for byte in 0..5 {
                        for place in places().filter(|place| byte < lengths[*place]) {
                            data.write(place, &part(place)[byte..=byte]).unwrap();
                        }
                    }
                    places().for_each(|place| data.end(place).unwrap());
                } else {
                    for place in places() {
                        data.write(place, &part(place)).unwrap();
                        data.end(place).unwrap();
                    }
                }
            }
            prop_assert!(data.waiting.is_empty());
            let expected: Vec<u8> = (0..owners.len()).flat_map(part).collect();
            prop_assert_eq!(out, expected);
        }
    }
}
