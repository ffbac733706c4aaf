//! The schemes as MLX's CPU backend states them, one element at a time, and the proof that the kernels
//! give the same bytes on every instruction set.
//!
//! Nothing here is fast and nothing is shared with the kernels: roundings are searched for or computed
//! in binary64, the power of two comes from a logarithm, FP4 from the distance to all sixteen values.

use super::{Float, Instructions, Options, Quantized, ScaleRule, Scheme, dequantize_with, quantize_with};

/// The bits and the value of `value` rounded to `float`: to nearest, ties to even.
fn narrow(float: Float, value: f32) -> (u32, f32) {
    let (exponent_bits, mantissa_bits) = match float {
        Float::Bf16 => (8, 7),
        Float::F16 => (5, 10),
        Float::F32 => return (value.to_bits(), value),
    };
    let bias = (1_i32 << (exponent_bits - 1)) - 1;
    let sign = value.to_bits() >> 31 << (exponent_bits + mantissa_bits);
    if value.is_nan() {
        return if float == Float::Bf16 { (0x7FC0, value) } else { (sign | 0x7D00, value) };
    }
    let infinity = ((1_u32 << exponent_bits) - 1) << mantissa_bits;
    if value.is_infinite() {
        return (sign | infinity, value);
    }
    let magnitude = f64::from(value.abs());
    let exponent = if magnitude == 0.0 { 1 - bias } else { ((magnitude.to_bits() >> 52) as i32 - 1023).max(1 - bias) };
    // In units of the last place the rounded value is the mantissa with its leading bit.
    let unit = power(exponent - mantissa_bits);
    let units = (magnitude / unit).round_ties_even();
    let bits = (((exponent + bias - 1) as u32) << mantissa_bits) + units as u32;
    let rounded = if bits >= infinity { f64::INFINITY } else { units * unit };
    (sign | bits.min(infinity), (rounded as f32).copysign(value))
}

/// 2^`exponent` within the range of binary64.
fn power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

fn round(float: Float, value: f32) -> f32 {
    narrow(float, value).1
}

fn widen(float: Float, bytes: &[u8]) -> f32 {
    match float {
        Float::Bf16 => f32::from_bits(u32::from(bytes[1]) << 24 | u32::from(bytes[0]) << 16),
        Float::F32 => f32::from_le_bytes(bytes.try_into().unwrap()),
        Float::F16 => {
            let bits = u16::from_le_bytes(bytes.try_into().unwrap());
            let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f64::from(bits & 0x3FF));
            let magnitude = match exponent {
                0 => mantissa * power(-24),
                31 if mantissa == 0.0 => f64::INFINITY,
                31 => f64::NAN,
                _ => (1024.0 + mantissa) * power(exponent - 25),
            };
            (if bits & 0x8000 == 0 { magnitude } else { -magnitude }) as f32
        }
    }
}

fn push(float: Float, value: f32, out: &mut Vec<u8>) {
    out.extend_from_slice(&narrow(float, value).0.to_le_bytes()[..float.size()]);
}

const FP4: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The first FP4 code at the least distance from `value`, where distances are rounded to `float`.
fn nearest_fp4(float: Float, value: f32) -> u8 {
    let distance = |code: &u8| {
        let distance = round(float, (value - FP4[usize::from(*code)]).abs());
        if distance.is_nan() { f32::INFINITY } else { distance }
    };
    (0..16).min_by(|left, right| distance(left).total_cmp(&distance(right))).unwrap()
}

/// The value of an E4M3 code other than NaN.
fn fp8_value(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = if exponent == 0 { mantissa * power(-9) } else { (8.0 + mantissa) * power(exponent - 10) };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The E4M3 code at the least distance from `value`, the even one of two; it saturates.
fn nearest_fp8(value: f32) -> u8 {
    let magnitude = f64::from(value.abs()).min(448.0);
    // The number of codes not above the magnitude, by halving.
    let (mut low, mut high) = (0_u8, 0x7E_u8);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if fp8_value(middle) <= magnitude { low = middle } else { high = middle - 1 }
    }
    let code = if low == 0x7E {
        low
    } else {
        let (below, above) = (magnitude - fp8_value(low), fp8_value(low + 1) - magnitude);
        if below < above || below == above && low & 1 == 0 { low } else { low + 1 }
    };
    code | if value.is_sign_negative() { 0x80 } else { 0 }
}

fn mx_exponent(rule: ScaleRule, float: Float, ratio: f32) -> i32 {
    match rule {
        ScaleRule::Ceil => (-149..=128).find(|&exponent| power(exponent) >= f64::from(ratio)).unwrap(),
        ScaleRule::Round => round(float, f64::from(ratio).log2() as f32).round_ties_even() as i32,
    }
}

/// Codes, scales and biases of one group, appended to what is there.
struct Group<'a> {
    float: Float,
    values: &'a [f32],
    codes: &'a mut Vec<u8>,
    scales: &'a mut Vec<u8>,
    biases: &'a mut Vec<u8>,
}

impl Group<'_> {
    fn affine(self, bits: u32) {
        let steps = (1_u32 << bits) as f32 - 1.0;
        let (mut least, mut largest) = (f32::INFINITY, f32::NEG_INFINITY);
        for &value in self.values {
            if largest < value {
                largest = value;
            }
            if value < least {
                least = value;
            }
        }
        let smallest = f32::from_bits(0x33D6_BF95);
        let step = (largest - least) / steps;
        let step = if step < smallest { smallest } else { step };
        let negative = least.abs() > largest.abs();
        let (mut scale, edge) = if negative { (step, least) } else { (-step, largest) };
        let steps_to_zero = (edge / scale).round_ties_even();
        let mut bias = 0.0;
        if steps_to_zero != 0.0 {
            (scale, bias) = (edge / steps_to_zero, edge);
        }
        for &value in self.values {
            let code = ((value - bias) / scale).round_ties_even();
            self.codes.push(if code.is_nan() { 0 } else { code.clamp(0.0, steps) as u8 });
        }
        push(self.float, scale, self.scales);
        push(self.float, bias, self.biases);
    }

    fn largest(&self) -> f32 {
        self.values.iter().fold(0.0, |largest, value| value.abs().max(largest))
    }

    fn mx(self, rule: ScaleRule, fp4: bool) {
        let ratio = round(self.float, self.largest() / if fp4 { 6.0 } else { 448.0 });
        let exponent = if ratio == 0.0 { 0 } else { mx_exponent(rule, self.float, ratio) };
        self.scales.push((exponent + 127) as u8);
        for &value in self.values {
            let scaled = round(self.float, (f64::from(value) / power(exponent)) as f32);
            self.codes.push(if fp4 { nearest_fp4(self.float, scaled) } else { nearest_fp8(scaled) });
        }
    }

    fn nvfp4(self, global_scale: Option<f32>) {
        let encoding_scale = global_scale.map_or(1.0, |global| 2688.0 / global);
        let scale = nearest_fp8(round(self.float, self.largest() / 6.0) * encoding_scale);
        self.scales.push(scale);
        for &value in self.values {
            let scaled = round(self.float, value / fp8_value(scale) as f32) * encoding_scale;
            self.codes.push(nearest_fp4(Float::F32, scaled));
        }
    }
}

fn quantize(scheme: Scheme, float: Float, input: &[u8], options: &Options) -> [Vec<u8>; 3] {
    let values: Vec<f32> = input.chunks_exact(float.size()).map(|bytes| widen(float, bytes)).collect();
    let (mut codes, mut scales, mut biases) = (Vec::new(), Vec::new(), Vec::new());
    for values in values.chunks_exact(scheme.group_size()) {
        let group = Group { float, values, codes: &mut codes, scales: &mut scales, biases: &mut biases };
        match scheme {
            Scheme::Affine { bits, .. } => group.affine(u32::from(bits)),
            Scheme::Mxfp4 => group.mx(options.scale_rule, true),
            Scheme::Mxfp8 => group.mx(options.scale_rule, false),
            Scheme::Nvfp4 => group.nvfp4(options.global_scale),
        }
    }
    let bits = scheme.bits() as usize;
    let mut packed = vec![0; codes.len() * bits / 8];
    for at in 0..codes.len() * bits {
        packed[at / 8] |= (codes[at / bits] >> (at % bits) & 1) << (at % 8);
    }
    [packed, scales, biases]
}

fn dequantize(scheme: Scheme, float: Float, parts: &[Vec<u8>; 3], options: &Options) -> Vec<u8> {
    let [packed, scales, biases] = parts;
    let bits = scheme.bits() as usize;
    let mut out = Vec::new();
    for element in 0..packed.len() * 8 / bits {
        let code = (0..bits).fold(0, |code, bit| {
            let at = element * bits + bit;
            code | (packed[at / 8] >> (at % 8) & 1) << bit
        });
        let group = element / scheme.group_size();
        let value = match scheme {
            Scheme::Affine { .. } => {
                let part = |parts: &[u8]| widen(float, &parts[group * float.size()..][..float.size()]);
                round(float, f32::from(code) * part(scales)) + part(biases)
            }
            Scheme::Mxfp4 => FP4[usize::from(code)] * round(float, power(i32::from(scales[group]) - 127) as f32),
            Scheme::Mxfp8 => fp8_value(code) as f32 * round(float, power(i32::from(scales[group]) - 127) as f32),
            Scheme::Nvfp4 => {
                let scale = fp8_value(scales[group]) as f32;
                FP4[usize::from(code)] * options.global_scale.map_or(scale, |global| scale * (global / 2688.0))
            }
        };
        push(float, value, &mut out);
    }
    out
}

const FLOATS: [Float; 3] = [Float::Bf16, Float::F16, Float::F32];

/// A fixed sequence of random numbers (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }

    /// `count` finite elements, in runs of 128 that differ in kind: any bits, one binade, subnormals, small
    /// integers, a constant, zeros of both signs, about the smallest affine scale, one outlier.
    fn elements(&mut self, float: Float, count: usize) -> Vec<u8> {
        let (exponent_bits, mantissa_bits) = match float {
            Float::Bf16 => (8, 7),
            Float::F16 => (5, 10),
            Float::F32 => (8, 23),
        };
        let sign = 1_u32 << (exponent_bits + mantissa_bits);
        let infinity = ((1_u32 << exponent_bits) - 1) << mantissa_bits;
        let mut out = Vec::new();
        for run in 0..count.div_ceil(128) {
            let exponent = (self.next() % (infinity >> mantissa_bits)) << mantissa_bits;
            let constant = self.next();
            for index in 0..128 {
                let bits = self.next();
                let mantissa = bits & ((1 << mantissa_bits) - 1);
                let magnitude = match run % 8 {
                    0 => bits % infinity,
                    1 => exponent | mantissa,
                    2 => mantissa,
                    3 => narrow(float, (bits % 65) as f32 * 0.25).0,
                    4 => constant % infinity,
                    5 => 0,
                    6 => narrow(float, (bits >> 8) as f32 * power(-46) as f32).0,
                    _ if index % 16 == 3 => exponent | mantissa,
                    _ => (exponent | mantissa).saturating_sub(3 << mantissa_bits),
                };
                let bits = if run % 8 == 4 { magnitude | constant & sign } else { magnitude | self.next() & sign };
                out.extend_from_slice(&bits.to_le_bytes()[..float.size()]);
            }
        }
        out.truncate(count * float.size());
        out
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// How many random elements each kernel takes: `default`, or `KILN_KERNEL_ELEMENTS`, a multiple of 128, when this was
/// compiled.
fn elements(default: usize) -> usize {
    option_env!("KILN_KERNEL_ELEMENTS").map_or(default, |elements| elements.parse().unwrap())
}

/// [`compare`], with `count` random elements.
fn compare_random(scheme: Scheme, float: Float, random: &mut Random, count: usize, options: Options) -> usize {
    const AT_ONCE: usize = 64 * 1024;
    let whole = (0..count / AT_ONCE).map(|_| AT_ONCE);
    whole.chain([count % AT_ONCE]).map(|count| compare(scheme, float, &random.elements(float, count), options)).sum()
}

/// Compares every instruction set with the reference; the number of elements compared.
fn compare(scheme: Scheme, float: Float, input: &[u8], options: Options) -> usize {
    let elements = input.len() / float.size();
    let expected = quantize(scheme, float, input, &options);
    for instructions in Instructions::available() {
        let options = Options { instructions, ..options };
        let mut packed = vec![0; scheme.packed_len(elements)];
        let mut scales = vec![0; scheme.scales_len(elements, float)];
        let mut biases = vec![0; scheme.biases_len(elements, float)];
        let out = Quantized { packed: &mut packed, scales: &mut scales, biases: &mut biases };
        quantize_with(scheme, float, input, out, &options).unwrap();
        for (name, actual, expected) in
            [("scales", &scales, &expected[1]), ("biases", &biases, &expected[2]), ("codes", &packed, &expected[0])]
        {
            let differing = actual.iter().zip(expected).position(|(actual, expected)| actual != expected);
            assert_eq!(differing, None, "{name} of {scheme} from {float:?} on {instructions}, {options:?}");
            assert_eq!(actual.len(), expected.len());
        }
    }
    elements
}

#[test]
fn affine_kernels_equal_the_reference() {
    let mut random = Random(1);
    let mut compared = 0;
    let count = elements(32 * 1024);
    for scheme in Scheme::all().filter(|scheme| scheme.has_biases()) {
        for float in FLOATS {
            compared += compare_random(scheme, float, &mut random, count, Options::default());
        }
    }
    assert_eq!(compared, 18 * 3 * count);
}

#[test]
fn microscaling_kernels_equal_the_reference() {
    let mut random = Random(2);
    let mut compared = 0;
    let count = elements(64 * 1024);
    for scheme in [Scheme::Mxfp4, Scheme::Mxfp8] {
        for scale_rule in [ScaleRule::Ceil, ScaleRule::Round] {
            for float in FLOATS {
                let options = Options { scale_rule, ..Options::default() };
                compared += compare_random(scheme, float, &mut random, count, options);
            }
        }
    }
    assert_eq!(compared, 2 * 2 * 3 * count);
}

#[test]
fn microscaling_exponents_equal_the_reference_around_every_threshold() {
    let mut compared = 0;
    for scale_rule in [ScaleRule::Ceil, ScaleRule::Round] {
        for (scheme, largest) in [(Scheme::Mxfp4, 6.0), (Scheme::Mxfp8, 448.0)] {
            let options = Options { scale_rule, ..Options::default() };
            let mut input = Vec::new();
            for exponent in -142..120 {
                for step in [power(exponent), power(exponent) * std::f64::consts::SQRT_2] {
                    let middle = ((step * largest) as f32).to_bits();
                    for bits in middle - 40..middle + 40 {
                        let mut group = [0; 32 * 4];
                        group[..4].copy_from_slice(&bits.min(f32::MAX.to_bits()).to_le_bytes());
                        input.extend(group);
                    }
                }
            }
            compared += compare(scheme, Float::F32, &input, options) / 32;
        }
    }
    assert_eq!(compared, 2 * 2 * 262 * 2 * 80);
}

#[test]
fn nvfp4_kernel_equals_the_reference() {
    let mut random = Random(3);
    let mut compared = 0;
    // An odd number of groups, so that the last tile is partial.
    let count = elements(32 * 1024) - 16;
    let globals = [None, Some(1.0), Some(0.37), Some(2688.0), Some(1e-5), Some(-3.0), Some(1e-30), Some(1e30)];
    for global_scale in globals {
        for float in FLOATS {
            let options = Options { global_scale, ..Options::default() };
            compared += compare_random(Scheme::Nvfp4, float, &mut random, count, options);
        }
    }
    assert_eq!(compared, 8 * 3 * count);
}

/// What a scale is computed from: every finite magnitude as the largest of a group; without `KILN_KERNEL_ELEMENTS`
/// one in 61.
#[test]
fn every_largest_magnitude_equals_the_reference() {
    let step = if option_env!("KILN_KERNEL_ELEMENTS").is_some() { 1 } else { 61 };
    let mut random = Random(5);
    let mut compared = 0;
    for (float, infinity) in [(Float::Bf16, 0x7F80_u32), (Float::F16, 0x7C00)] {
        for scheme in Scheme::all() {
            let mut input = Vec::new();
            for largest in (0..infinity).step_by(step) {
                let sign = random.next() & 0x8000;
                input.extend(((largest | sign) as u16).to_le_bytes());
                for _ in 1..scheme.group_size() {
                    let magnitude = random.next() % (largest + 1);
                    input.extend(((magnitude | random.next() & 0x8000) as u16).to_le_bytes());
                }
            }
            for scale_rule in [ScaleRule::Ceil, ScaleRule::Round] {
                let options = Options { scale_rule, ..Options::default() };
                compared += compare(scheme, float, &input, options) / scheme.group_size();
            }
        }
    }
    assert_eq!(compared, 2 * 21 * (0x7F80_usize.div_ceil(step) + 0x7C00_usize.div_ceil(step)));
}

/// How many elements are decoded at once.
const DECODED: usize = 16 * 1024;

/// Decodes random codes on every instruction set, and compares with the reference.
fn compare_decoded(scheme: Scheme, float: Float, random: &mut Random) {
    let mut packed = random.bytes(scheme.packed_len(DECODED));
    let [mut scales, biases] = if scheme.has_biases() {
        let groups = DECODED / scheme.group_size();
        [random.elements(float, groups), random.elements(float, groups)]
    } else {
        [random.bytes(scheme.scales_len(DECODED, float)), Vec::new()]
    };
    // The sign of a NaN is not the reference's matter.
    match scheme {
        Scheme::Mxfp8 => packed.iter_mut().filter(|code| **code & 0x7F == 0x7F).for_each(|code| *code = 0),
        Scheme::Nvfp4 => scales.iter_mut().filter(|code| **code & 0x7F == 0x7F).for_each(|code| *code = 0),
        _ => {}
    }
    if !scheme.has_biases() {
        scales.iter_mut().filter(|scale| **scale >= 142).for_each(|scale| *scale &= 0x7F);
    }
    let global_scale = (scheme == Scheme::Nvfp4 && float == Float::F32).then_some(0.37);
    let options = Options { global_scale, ..Options::default() };
    let parts = [packed, scales, biases];
    let expected = dequantize(scheme, float, &parts, &options);
    for instructions in Instructions::available() {
        let options = Options { instructions, ..options };
        let mut out = vec![0; DECODED * float.size()];
        dequantize_with(scheme, float, &parts[0], &parts[1], &parts[2], &mut out, &options);
        assert!(out == expected, "{scheme} to {float:?} on {instructions}");
    }
}

#[test]
fn dequantizing_kernels_equal_the_reference() {
    let mut random = Random(4);
    let mut compared = 0;
    for scheme in Scheme::all() {
        for float in FLOATS {
            for _ in 0..elements(DECODED).div_ceil(DECODED) {
                compare_decoded(scheme, float, &mut random);
                compared += DECODED;
            }
        }
    }
    assert_eq!(compared, 21 * 3 * elements(DECODED).next_multiple_of(DECODED));
}
