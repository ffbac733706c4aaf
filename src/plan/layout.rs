//! How one planned tensor is spelled inside a blob: its parts with their names, types and shapes.

use super::{PlannedTensor, Profile};
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
    /// What every scale is multiplied with.
    Global,
}

impl Role {
    /// The word for it in a report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Values => "values",
            Self::Packed => "packed",
            Self::Scales => "scales",
            Self::Biases => "biases",
            Self::Global => "global scale",
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
    /// The arrays this tensor is stored as, in the order of their names, which is also the order of their data.
    pub fn parts(&self) -> Vec<Part> {
        let part = |role, dtype, shape| Part { name: self.part_name(role), role, dtype, shape };
        let Some(scheme) = self.scheme else {
            return vec![part(Role::Values, self.dtype, self.shape.clone())];
        };
        let (columns, rows) = self.shape.split_last().map_or((0, &[][..]), |(last, rest)| (*last, rest));
        let shaped = |last: u64| rows.iter().copied().chain([last]).collect::<Vec<_>>();
        // Counted in groups, which are whole words, so that no number of columns is too large.
        let group = scheme.group_size() as u64;
        let words = columns / group * (group * u64::from(scheme.bits()) / 32);
        let groups = shaped(columns / group);
        let mut parts = vec![part(Role::Packed, Dtype::U32, shaped(words))];
        if scheme.has_biases() {
            parts.push(part(Role::Biases, self.dtype, groups.clone()));
            parts.push(part(Role::Scales, self.dtype, groups));
        } else {
            parts.push(part(Role::Scales, Dtype::U8, groups));
        }
        if let Some((shape, _)) = self.packed.as_ref().and_then(|packed| packed.global.as_ref()) {
            parts.push(part(Role::Global, Dtype::F32, shape.clone()));
        }
        parts.sort_by(|a, b| a.name.cmp(&b.name));
        parts
    }

    /// The key of a part: `W`, `W.bias`, `W.scale` and `W.global_scale` as Ollama reads them, or
    /// `P.weight`, `P.biases` and `P.scales` as `mlx-lm` does.
    fn part_name(&self, role: Role) -> String {
        let (name, profile) = (&self.name, self.profile);
        let stem = if profile == Profile::Mlx { name.strip_suffix(".weight").unwrap_or(name) } else { name };
        match (role, profile) {
            (Role::Values | Role::Packed, _) => name.clone(),
            (Role::Scales, Profile::Mlx) => format!("{stem}.scales"),
            (Role::Biases, Profile::Mlx) => format!("{stem}.biases"),
            (Role::Scales, _) => format!("{stem}.scale"),
            (Role::Biases, _) => format!("{stem}.bias"),
            (Role::Global, _) => format!("{stem}.global_scale"),
        }
    }
}
