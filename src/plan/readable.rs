//! Tensors as they are read. A weight that is stored in codes is several tensors of the checkpoint, its codes,
//! their scales and what else belongs to them; to everything that arranges rows it is one.

use std::collections::{BTreeMap, BTreeSet};

use super::coding::{Codes, Coding, Settings};
use super::{Decode, Loop, Packed, PlannedTensor, Profile, Segment, SourceTensor, Transform};
use crate::arch::{ExpertLayout, Stacking};
use crate::error::{Error, Result, quoted};
use crate::inventory::{Dtype, Inventory, Tensor};

/// A tensor of the checkpoint with its name.
pub(super) type Named<'a> = (&'a str, &'a Tensor);

/// A tensor that can be read for itself.
pub(super) struct Readable<'a> {
    /// Its values or codes in the checkpoint.
    pub(super) stored: Named<'a>,
    /// The element type of the values, or that to which codes are decoded.
    pub(super) dtype: Dtype,
    /// The shape of the values; of the true biases of experts one column, `[experts, out, 1]`.
    pub(super) shape: Vec<u64>,
    /// Whether every matrix of the values is stored with its axes the other way round.
    transposed: bool,
    /// What its codes mean; `None` for values as they are.
    coding: Option<Coding<'a>>,
}

/// Some rows of a tensor: every `step`-th from `first` on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    /// Which tensor, among those of an output.
    pub(super) tensor: usize,
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) step: u64,
}

impl Rows {
    /// The bytes of these rows of transposed matrices `[rows, columns]`, whose elements have `size` bytes.
    fn transposed(self, source: usize, [rows, columns]: [u64; 2], size: u64) -> Segment {
        let first = self.first / rows * rows * columns + self.first % rows;
        let outer = Loop { count: self.count, step: self.step * size };
        let inner = Loop { count: columns, step: rows * size };
        Segment { source, offset: first * size, run: size, loops: vec![outer, inner] }
    }

    /// The bytes of these rows, in a source whose rows have `row` bytes each.
    fn segment(self, source: usize, row: u64) -> Segment {
        match self.step {
            1 => Segment::run(source, self.first * row, self.count * row),
            step => Segment {
                source,
                offset: self.first * row,
                run: row,
                loops: vec![Loop { count: self.count, step: step * row }],
            },
        }
    }
}

/// Every such tensor by the name of its values; what belongs to codes is not among them.
///
/// # Errors
/// Naming the tensor: codes that are not read, parts that are missing or contradict each other.
pub(super) fn readable<'a>(
    inventory: &'a Inventory,
    layout: Option<&ExpertLayout>,
) -> Result<BTreeMap<String, Readable<'a>>> {
    let settings = Settings::of(&inventory.config);
    let mut readable: BTreeMap<String, Readable<'_>> = BTreeMap::new();
    let mut parts: BTreeSet<&str> = inventory.activations.iter().map(String::as_str).collect();
    for (name, tensor) in &inventory.tensors {
        let coded = inventory.coded.get(name);
        let coding = coded.map(|coded| Coding::of(inventory, &settings, (name, tensor), coded)).transpose()?;
        parts.extend(coding.iter().flat_map(Coding::parts).map(|(name, _)| name));
        let dtype = coding.as_ref().map_or(tensor.dtype, Coding::dtype);
        let spelled = coding.as_ref().map_or(&**name, |coding| coding.spelled(name));
        let mut shape = coding.as_ref().map_or(&tensor.shape, |coding| &coding.shape).clone();
        // A name with `.weight` is one of MLX, which has turned the matrix round already.
        let expert = layout.filter(|layout| layout.stacking == Stacking::InTurn);
        let expert = expert.and_then(|layout| layout.recognize(spelled));
        let is_bias = expert.as_ref().is_some_and(|expert| expert.is_bias);
        let transposed = expert.is_some() && !is_bias && coding.is_none() && !spelled.ends_with(".weight");
        match &mut shape[..] {
            [_, rows, columns] if transposed => std::mem::swap(rows, columns),
            [_, _] if is_bias => shape.push(1),
            _ => {}
        }
        let one = Readable { stored: (name, tensor), dtype, shape, transposed, coding };
        if let Some(other) = readable.insert(spelled.to_owned(), one) {
            let other = quoted(other.stored.0).to_string();
            return Err(Error::input(format!("{other} and {} are the same weight", quoted(name))));
        }
    }
    readable.retain(|_, tensor| !parts.contains(tensor.stored.0));
    Ok(readable)
}

impl<'a> Readable<'a> {
    /// What its elements are, for a message: a type, or the scheme of the codes.
    pub(super) fn element(&self) -> String {
        match &self.coding {
            Some(Coding { codes: Codes::Scheme(scheme), global: Some(_), .. }) => {
                format!("{scheme} with a global scale")
            }
            Some(Coding { codes: Codes::Scheme(scheme), .. }) => scheme.to_string(),
            _ => self.dtype.to_string(),
        }
    }

    /// The tensors of the checkpoint it consists of: values or codes, scales, biases, global scale.
    fn parts(&self) -> Vec<Named<'a>> {
        [self.stored].into_iter().chain(self.coding.iter().flat_map(Coding::parts)).collect()
    }

    fn columns(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// All of its rows, as those of the first tensor of an output.
    pub(super) fn all_rows(&self) -> Rows {
        let rows = self.shape.split_last().map_or(&[][..], |(_, rows)| rows);
        let count = rows.iter().fold(1, |count: u64, &size| count.saturating_mul(size));
        Rows { tensor: 0, first: 0, count, step: 1 }
    }
}

impl PlannedTensor {
    /// The output of this name and shape that takes these `rows` of these tensors, which all have one type of
    /// element and one number of columns. What is in FP8 is decoded, what is in a scheme keeps its codes.
    pub(super) fn of_rows(
        (name, profile): (String, Profile),
        shape: Vec<u64>,
        tensors: &[&Readable<'_>],
        rows: &[Rows],
        transform: Transform,
    ) -> Self {
        let (first, columns) = (tensors[0], tensors[0].columns());
        let parts: Vec<Vec<Named<'_>>> = tensors.iter().map(|tensor| tensor.parts()).collect();
        let kinds = 0..parts[0].len();
        let mut planned = Self {
            name,
            profile,
            dtype: first.dtype,
            shape,
            sources: kinds.flat_map(|kind| parts.iter().map(move |parts| SourceTensor::of(parts[kind]))).collect(),
            segments: Vec::new(),
            packed: None,
            transform,
            steps: Vec::new(),
            scheme: None,
            why: "no scheme was asked for".into(),
            finite: false,
        };
        // The rows of one kind of part, where each has `row` bytes.
        let of_kind = |kind: usize, row: u64| {
            let mut segments = Vec::new();
            for rows in rows {
                let (tensor, source) = (tensors[rows.tensor], kind * tensors.len() + rows.tensor);
                let next = match tensor.shape[..] {
                    [.., rows_of_one, columns] if tensor.transposed => {
                        rows.transposed(source, [rows_of_one, columns], tensor.dtype.bytes())
                    }
                    _ => rows.segment(source, row),
                };
                Segment::push(&mut segments, next);
            }
            segments
        };
        let Some(Coding { codes: Codes::Scheme(scheme), global, divides, .. }) = &first.coding else {
            planned.segments = of_kind(0, columns.saturating_mul(first.dtype.bytes()));
            for (index, tensor) in tensors.iter().enumerate() {
                if let Some(Coding { codes: Codes::Fp8 { rows, block }, .. }) = tensor.coding {
                    let scales = tensors.len() + index;
                    planned.sources[index].decode = Some(Decode::Fp8 { scales, rows, block });
                }
            }
            return planned;
        };
        let groups = columns / scheme.group_size() as u64;
        let scale = if scheme.has_biases() { first.dtype.bytes() } else { 1 };
        planned.segments = of_kind(0, columns / 8 * u64::from(scheme.bits()));
        planned.scheme = Some(*scheme);
        planned.why = "quantized in the source".into();
        planned.packed = Some(Packed {
            scales: of_kind(1, groups * scale),
            biases: if scheme.has_biases() { of_kind(2, groups * scale) } else { Vec::new() },
            global: global.map(|_| globals(tensors, rows)),
        });
        if *divides {
            let globals = planned.sources.len() - tensors.len()..;
            planned.sources[globals].iter_mut().for_each(|source| source.decode = Some(Decode::Reciprocal));
        }
        planned
    }
}

/// The global scales of these rows, one for each range of them, or those of a tensor that is taken whole; behind
/// codes and scales, the third kind of part.
fn globals(tensors: &[&Readable<'_>], rows: &[Rows]) -> (Vec<u64>, Vec<Segment>) {
    let stored = |rows: &Rows| {
        let global = tensors[rows.tensor].coding.as_ref().and_then(|coding| coding.global);
        global.map_or(0, |(_, global)| global.shape.iter().product::<u64>())
    };
    let source = |rows: &Rows| 2 * tensors.len() + rows.tensor;
    if let [all] = rows {
        let shape = if stored(all) == 1 { Vec::new() } else { vec![stored(all)] };
        return (shape, vec![Segment::run(source(all), 0, 4 * stored(all))]);
    }
    let mut segments = Vec::new();
    for rows in rows {
        let matrix = match tensors[rows.tensor].shape[..] {
            [.., matrix_rows, _] if stored(rows) > 1 => rows.first / matrix_rows,
            _ => 0,
        };
        Segment::push(&mut segments, Segment::run(source(rows), 4 * matrix, 4));
    }
    (vec![rows.len() as u64], segments)
}
