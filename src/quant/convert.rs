//! What is done to float values beside quantizing them: another type, and one added. Both are what MLX's CPU
//! backend computes: the exact result in binary32, rounded once.

use super::float::{Bf16, Element, F16, F32, Float};

/// A change of every value of a float tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// One is added: a norm that is stored as its distance from one becomes the norm.
    AddOne,
    /// The value becomes one of this type.
    Cast(Float),
}

impl Step {
    /// The word for it in the lock.
    pub fn name(self) -> &'static str {
        match self {
            Self::AddOne => "add-one",
            Self::Cast(_) => "cast",
        }
    }

    /// Applies the step to whole elements of type `float`: `bytes` become those of the result, whose type is
    /// returned.
    pub fn apply(self, float: Float, bytes: &mut Vec<u8>) -> Float {
        let (to, add) = match self {
            Self::AddOne => (float, 1.0),
            Self::Cast(to) => (to, 0.0),
        };
        if to != float || add != 0.0 {
            *bytes = match float {
                Float::Bf16 => mapped_from::<Bf16>(to, add, bytes),
                Float::F16 => mapped_from::<F16>(to, add, bytes),
                Float::F32 => mapped_from::<F32>(to, add, bytes),
            };
        }
        to
    }
}

fn mapped_from<From: Element>(to: Float, add: f32, bytes: &[u8]) -> Vec<u8> {
    match to {
        Float::Bf16 => mapped::<From, Bf16>(add, bytes),
        Float::F16 => mapped::<From, F16>(add, bytes),
        Float::F32 => mapped::<From, F32>(add, bytes),
    }
}

fn mapped<From: Element, To: Element>(add: f32, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0; bytes.len() / From::SIZE * To::SIZE];
    for (element, out) in From::elements(bytes).iter().zip(To::elements_mut(&mut out)) {
        let value = From::widen(*element);
        // Adding zero would turn -0 into +0.
        *out = To::narrow(if add == 0.0 { value } else { value + add });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bf16(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect()
    }

    #[test]
    fn one_is_added_in_the_type_of_the_tensor() {
        // 1 + 2^-8 lies halfway between two bfloat16 values and goes to the even one.
        let mut bytes = bf16(&[0.0, -1.0, 0.003_906_25, 0.011_718_75, -0.0]);
        assert_eq!(Step::AddOne.apply(Float::Bf16, &mut bytes), Float::Bf16);
        assert_eq!(bytes, bf16(&[1.0, 0.0, 1.0, 1.015_625, 1.0]));
    }

    #[test]
    fn a_cast_rounds_once_and_keeps_the_sign_of_zero() {
        let values = [1.0_f32, -0.0, 1.0 + 1.0 / 256.0, 65520.0, 1e-8];
        let mut bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(Step::Cast(Float::F16).apply(Float::F32, &mut bytes), Float::F16);
        let halves: Vec<u16> = bytes.as_chunks().0.iter().map(|half| u16::from_le_bytes(*half)).collect();
        assert_eq!(halves, [0x3C00, 0x8000, 0x3C04, 0x7C00, 0]);
        assert_eq!(Step::Cast(Float::F32).apply(Float::F16, &mut bytes), Float::F32);
        assert_eq!(f32::from_le_bytes(bytes[8..12].try_into().unwrap()), 1.0 + 1.0 / 256.0);
    }
}
