//! How one planned tensor is spelled inside a blob: its parts with their names, types and shapes, in
//! profile `ollama`.

use super::PlannedTensor;
use crate::inventory::Dtype;

/// What a stored array is to its tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The values as they are.
    Values,
    /// The packed codes.
    Packed,
    /// One scale per group.
    Scales,
    /// One bias per group.
    Biases,
}

impl Role {
    /// The word for it in a report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Values => "values",
            Self::Packed => "packed",
            Self::Scales => "scales",
            Self::Biases => "biases",
        }
    }
}

/// One array in a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its key in the header.
    pub name: String,
    /// What it is to its tensor.
    pub role: Role,
    /// Its stored element type.
    pub dtype: Dtype,
    /// Its stored shape.
    pub shape: Vec<u64>,
}

impl Part {
    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.dtype.bytes() * self.shape.iter().product::<u64>()
    }
}

impl PlannedTensor {
    /// The arrays this tensor is stored as: `W`, or `W`, `W.bias` and `W.scale`. In the order of their
    /// names, which is also the order of their data.
    pub fn parts(&self) -> Vec<Part> {
        let part =
            |suffix: &str, role, dtype, shape| Part { name: format!("{}{suffix}", self.name), role, dtype, shape };
        let Some(scheme) = self.scheme else {
            return vec![part("", Role::Values, self.dtype, self.shape.clone())];
        };
        let (columns, rows) = self.shape.split_last().map_or((0, &[][..]), |(last, rest)| (*last, rest));
        let shaped = |last: u64| rows.iter().copied().chain([last]).collect::<Vec<_>>();
        // Counted in groups, which are whole words, so that no number of columns is too large.
        let group = scheme.group_size() as u64;
        let words = columns / group * (group * u64::from(scheme.bits()) / 32);
        let groups = shaped(columns / group);
        let packed = part("", Role::Packed, Dtype::U32, shaped(words));
        if scheme.has_biases() {
            let biases = part(".bias", Role::Biases, self.dtype, groups.clone());
            vec![packed, biases, part(".scale", Role::Scales, self.dtype, groups)]
        } else {
            vec![packed, part(".scale", Role::Scales, Dtype::U8, groups)]
        }
    }
}
