//! Comparing two stored arrays of one form, byte by byte: how many differ, where, and by how much.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::layer::{Array, Tensor};
use super::number::{Form, Number};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::inventory::Dtype;
use crate::plan::Role;
use crate::quant::{Float, Scheme, dequantize};

/// How many places of an array are told.
const MOST_PLACES: usize = 8;
/// How much is read at once, in bytes.
const CHUNK: u64 = 1 << 20;

/// What two stretches of bytes have and have not in common. Their numbers and offsets are in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// Which part of a tensor or of a layer it is: `header`, `padding`, `values`, `packed`, `scales`, `biases`,
    /// `global scale`; `file` for a layer without tensors.
    pub part: &'static str,
    /// The type of its elements; `None` for what has none.
    pub dtype: Option<&'static str>,
    /// How many elements it has in each dimension; codes are counted one by one.
    pub shape: Vec<u64>,
    /// How many bytes it has.
    pub of: u64,
    /// How many of them differ.
    pub bytes: u64,
    /// The first that differs, counted in the array.
    pub first: u64,
    /// The same byte, counted in the first model's layer.
    pub offset: u64,
    /// Which groups it differs in; `None` for what has no groups.
    pub groups: Option<Groups>,
    /// The largest difference of two values; of codes as they are packed. `None` where there are no values.
    pub max_delta: Option<f64>,
    /// The largest distance of two floats in units of the last place.
    pub max_ulp: Option<u64>,
    /// The first elements that differ, at most eight.
    pub places: Vec<Place>,
}

/// The groups of a quantized tensor that differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// How many there are.
    pub of: u64,
    /// How many differ.
    pub differing: u64,
    /// The place of the first: its row in each dimension, and its number in the row.
    pub first: Vec<u64>,
}

/// An element that differs.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Its index in each dimension.
    pub index: Vec<u64>,
    /// What the first model has.
    pub ours: Number,
    /// What the second model has.
    pub theirs: Number,
    /// How many floats lie between them, the second counted; `None` for what is no float.
    pub ulp: Option<u64>,
}

/// A difference that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// Every byte has its halves exchanged.
    NibblesExchanged,
    /// Every element has its bytes in reverse.
    BytesReversed,
}

/// An array, and what has been found about it.
pub(super) type Verdict = (Compared, Option<Pattern>);

/// One of the two tensors, with the open file of its layer.
#[derive(Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) file: &'a File,
    pub(super) tensor: &'a Tensor,
}

impl Stored<'_> {
    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, at).map_err(|cause| {
            let message = format!("Could not read {} to compare it", quoted(&self.tensor.name));
            Error::new(ErrorKind::Store, message).caused_by(cause)
        })
    }
}

/// Compares two arrays of the same role, dtype and shape; `None` when all bytes agree.
pub(super) fn arrays(ours: (Stored<'_>, &Array), theirs: (Stored<'_>, &Array)) -> Result<Option<Verdict>> {
    let array = ours.1;
    let layout = Layout::of(array, ours.0.tensor.scheme.filter(|_| ours.0.tensor.scheme == theirs.0.tensor.scheme));
    let length = array.entry.end - array.entry.begin;
    let mut comparison = Comparison::new(layout);
    let step = (CHUNK / layout.unit).max(1) * layout.unit;
    let (mut left, mut right) = (vec![0; step.min(length) as usize], vec![0; step.min(length) as usize]);
    let mut done = 0;
    while done < length {
        let now = step.min(length - done) as usize;
        ours.0.read(ours.1.start + done, &mut left[..now])?;
        theirs.0.read(theirs.1.start + done, &mut right[..now])?;
        comparison.take(done, &left[..now], &right[..now]);
        done += now as u64;
    }
    let Some(first) = comparison.first else { return Ok(None) };
    let shape = layout.shape(array);
    let has_groups = match array.role {
        Role::Scales | Role::Biases => true,
        Role::Packed => matches!(layout.form, Form::Codes(_)),
        Role::Values | Role::Global => false,
    };
    let groups = has_groups.then(|| Groups {
        of: length / layout.unit,
        differing: comparison.units,
        first: index(comparison.first_unit, &layout.units(&shape)),
    });
    let mut places: Vec<Place> = Vec::new();
    for (at, bits) in &comparison.places {
        let [our_bits, their_bits] = *bits;
        let mut numbers = [layout.form.number(our_bits), layout.form.number(their_bits)];
        if let Form::Codes(scheme) = layout.form {
            numbers[0].value = decoded(ours.0, scheme, *at)?;
            numbers[1].value = decoded(theirs.0, scheme, *at)?;
        }
        let [ours, theirs] = numbers;
        places.push(Place { index: index(*at, &shape), ours, theirs, ulp: layout.form.ulp(&ours, &theirs) });
    }
    let pattern = match (comparison.exchanged, comparison.reversed) {
        (true, _) => Some(Pattern::NibblesExchanged),
        (_, true) => Some(Pattern::BytesReversed),
        _ => None,
    };
    let compared = Compared {
        part: array.role.name(),
        dtype: Some(array.entry.dtype.name()),
        shape,
        of: length,
        bytes: comparison.bytes,
        first,
        offset: array.start + first,
        groups,
        max_delta: comparison.max_delta,
        max_ulp: comparison.max_ulp,
        places,
    };
    Ok(Some((compared, pattern)))
}

/// Compares two texts or files, of which `ours` begins at `offset` in its layer.
pub(super) fn texts(part: &'static str, offset: u64, ours: &[u8], theirs: &[u8]) -> Compared {
    let common = ours.len().min(theirs.len());
    let mut differing = (0..common as u64).zip(ours.iter().zip(theirs)).filter(|(_, (a, b))| a != b).peekable();
    let first = differing.peek().map_or(common as u64, |(at, _)| *at);
    let number = |byte: u8| Number { bits: byte.into(), value: None };
    let place =
        |(at, (a, b)): (u64, (&u8, &u8))| Place { index: vec![at], ours: number(*a), theirs: number(*b), ulp: None };
    let places: Vec<Place> = differing.by_ref().take(MOST_PLACES).map(place).collect();
    Compared {
        part,
        dtype: None,
        shape: Vec::new(),
        of: ours.len() as u64,
        bytes: (places.len() + differing.count()) as u64,
        first,
        offset: offset + first,
        groups: None,
        max_delta: None,
        max_ulp: None,
        places,
    }
}

/// How an array's bytes are cut into elements and groups.
#[derive(Clone, Copy)]
struct Layout {
    form: Form,
    /// Bytes that are read together: an element, or a group of codes.
    unit: u64,
    /// Elements in them.
    elements: u64,
    /// Bytes of an element as the header has it.
    word: usize,
}

impl Layout {
    fn of(array: &Array, scheme: Option<Scheme>) -> Self {
        let dtype = array.entry.dtype;
        let word = dtype.bytes() as usize;
        let plain = Self { form: Form::Plain(dtype), unit: word as u64, elements: 1, word };
        let Some(scheme) = scheme else { return plain };
        match array.role {
            Role::Scales if dtype == Dtype::U8 => Self { form: Form::Scales(scheme), ..plain },
            Role::Packed => {
                let elements = scheme.group_size();
                let unit = scheme.packed_len(elements) as u64;
                let row = array.entry.shape.last().map_or(0, |last| last.saturating_mul(word as u64));
                // A lock may claim any scheme of an array.
                if row == 0 || !row.is_multiple_of(unit) {
                    return plain;
                }
                Self { form: Form::Codes(scheme), unit, elements: elements as u64, word }
            }
            _ => plain,
        }
    }

    /// How many elements the array has in each dimension.
    fn shape(&self, array: &Array) -> Vec<u64> {
        let mut shape = array.entry.shape.clone();
        if let (Form::Codes(_), Some(last)) = (self.form, shape.last_mut()) {
            *last = *last * self.word as u64 / self.unit * self.elements;
        }
        shape
    }

    /// How many units it has in each dimension, when it has so many elements.
    fn units(&self, shape: &[u64]) -> Vec<u64> {
        let mut units = shape.to_vec();
        if let Some(last) = units.last_mut() {
            *last /= self.elements;
        }
        units
    }
}

/// What has been found so far.
struct Comparison {
    layout: Layout,
    bytes: u64,
    first: Option<u64>,
    /// How many units differ.
    units: u64,
    first_unit: u64,
    max_delta: Option<f64>,
    max_ulp: Option<u64>,
    places: Vec<(u64, [u64; 2])>,
    /// Whether all bytes so far have their halves exchanged.
    exchanged: bool,
    /// Whether all elements so far have their bytes in reverse.
    reversed: bool,
}

impl Comparison {
    fn new(layout: Layout) -> Self {
        Self {
            layout,
            bytes: 0,
            first: None,
            units: 0,
            first_unit: 0,
            max_delta: None,
            max_ulp: None,
            places: Vec::new(),
            exchanged: matches!(layout.form, Form::Codes(_)),
            reversed: layout.word > 1,
        }
    }

    /// Compares the bytes that begin at `start`.
    fn take(&mut self, start: u64, ours: &[u8], theirs: &[u8]) {
        let Layout { unit, word, .. } = self.layout;
        self.exchanged &= ours.iter().zip(theirs).all(|(a, b)| a.rotate_left(4) == *b);
        self.reversed &= ours.chunks(word).zip(theirs.chunks(word)).all(|(a, b)| a.iter().rev().eq(b));
        /// Units that are skipped together when they agree.
        const MANY: usize = 256;
        let span = unit as usize * MANY;
        for (many, (ours, theirs)) in ours.chunks(span).zip(theirs.chunks(span)).enumerate() {
            if ours == theirs {
                continue;
            }
            let pairs = ours.chunks(unit as usize).zip(theirs.chunks(unit as usize));
            for (within, (a, b)) in pairs.enumerate().filter(|(_, (a, b))| a != b) {
                self.unit(start / unit + (many * MANY + within) as u64, a, b);
            }
        }
    }

    /// Compares the bytes of unit number `at`, which differ.
    fn unit(&mut self, at: u64, ours: &[u8], theirs: &[u8]) {
        let Layout { form, unit, elements, .. } = self.layout;
        let mut differing = ours.iter().zip(theirs).enumerate().filter(|(_, (a, b))| a != b);
        if let (None, Some((byte, _))) = (self.first, differing.clone().next()) {
            (self.first, self.first_unit) = (Some(at * unit + byte as u64), at);
        }
        self.bytes += differing.by_ref().count() as u64;
        self.units += 1;
        let Form::Codes(scheme) = form else {
            let bits = |bytes: &[u8]| bytes.iter().rev().fold(0, |bits, byte| bits << 8 | u64::from(*byte));
            return self.element(at, bits(ours), bits(theirs));
        };
        for element in 0..elements as usize {
            let (Some(a), Some(b)) = (scheme.code(ours, element), scheme.code(theirs, element)) else { return };
            if a != b {
                self.element(at * elements + element as u64, a.into(), b.into());
            }
        }
    }

    fn element(&mut self, at: u64, ours: u64, theirs: u64) {
        let form = self.layout.form;
        if self.places.len() < MOST_PLACES {
            self.places.push((at, [ours, theirs]));
        }
        let (a, b) = (form.number(ours), form.number(theirs));
        let delta = match form {
            Form::Codes(_) => Some(ours.abs_diff(theirs) as f64),
            _ => a.value.zip(b.value).map(|(a, b)| (a - b).abs()),
        };
        self.max_delta = self.max_delta.into_iter().chain(delta).reduce(f64::max);
        self.max_ulp = self.max_ulp.max(form.ulp(&a, &b));
    }
}

/// The index in each dimension of element number `at`.
fn index(at: u64, shape: &[u64]) -> Vec<u64> {
    let mut rest = at;
    let mut index: Vec<u64> = Vec::with_capacity(shape.len());
    for &dimension in shape.iter().rev() {
        index.push(rest % dimension.max(1));
        rest /= dimension.max(1);
    }
    index.reverse();
    index
}

/// The weight that element number `at` of a tensor stands for; `None` when its scales are of another form, or a third
/// scale multiplies them.
fn decoded(stored: Stored<'_>, scheme: Scheme, at: u64) -> Result<Option<f64>> {
    let array = |role| stored.tensor.arrays.iter().find(|array| array.role == role);
    let size = scheme.group_size();
    let group = at / size as u64;
    let float = match array(Role::Scales).map(|scales| scales.entry.dtype) {
        Some(Dtype::Bf16) => Float::Bf16,
        Some(Dtype::F16) => Float::F16,
        Some(Dtype::F32) => Float::F32,
        Some(Dtype::U8) if !scheme.has_biases() => Float::F32,
        _ => return Ok(None),
    };
    // The bytes of this group in an array, if it has so many.
    let read = |role, length: usize| -> Result<Option<Vec<u8>>> {
        let Some(array) = array(role).filter(|_| length > 0) else { return Ok((length == 0).then(Vec::new)) };
        let begin = group * length as u64;
        if begin + length as u64 > array.entry.end - array.entry.begin {
            return Ok(None);
        }
        let mut bytes = vec![0; length];
        stored.read(array.start + begin, &mut bytes)?;
        Ok(Some(bytes))
    };
    let packed = read(Role::Packed, scheme.packed_len(size))?;
    let scales = read(Role::Scales, scheme.scales_len(size, float))?;
    let biases = read(Role::Biases, scheme.biases_len(size, float))?;
    let (Some(packed), Some(scales), Some(biases), None) = (packed, scales, biases, array(Role::Global)) else {
        return Ok(None);
    };
    let mut values = vec![0; size * float.size()];
    dequantize(scheme, float, &packed, &scales, &biases, &mut values);
    let value = float.widen(&values[(at % size as u64) as usize * float.size()..]);
    Ok(Some(f64::from(value)).filter(|value| !value.is_nan()))
}
