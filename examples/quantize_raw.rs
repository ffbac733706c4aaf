//! Quantizes and dequantizes the tensors of a safetensors file and writes the results to another:
//! the other half of `tests/oracle/mlx_live.py`, which says what the names mean.
//!
//! `quantize_raw INPUT.safetensors OUTPUT.safetensors`

use std::collections::BTreeMap;
use std::error::Error;

use kiln::quant::{Float, Options, Quantized, Scheme, dequantize_with, quantize_with};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, input, output] = arguments.as_slice() else {
        return Err("usage: quantize_raw INPUT.safetensors OUTPUT.safetensors".into());
    };
    let input = std::fs::read(input)?;
    let tensors = SafeTensors::deserialize(&input)?;
    let mut results = BTreeMap::new();
    for (name, tensor) in tensors.iter() {
        // `<number>/<scheme>/<float>/<bits of the global scale, or ->/<part>`
        let (job, part) = name.rsplit_once('/').ok_or("a name without a part")?;
        let fields: Vec<&str> = job.split('/').collect();
        let [_, scheme, float, global] = fields.as_slice() else {
            return Err(format!("`{name}` does not name a job").into());
        };
        let scheme: Scheme = scheme.parse()?;
        let float = match *float {
            "bf16" => Float::Bf16,
            "f16" => Float::F16,
            "f32" => Float::F32,
            other => return Err(format!("`{other}` is no float type").into()),
        };
        let global_scale = match *global {
            "-" => None,
            bits => Some(f32::from_bits(bits.parse()?)),
        };
        let options = Options { global_scale, ..Options::default() };
        match part {
            "w" => {
                let elements = tensor.data().len() / float.size();
                let mut packed = vec![0; scheme.packed_len(elements)];
                let mut scales = vec![0; scheme.scales_len(elements, float)];
                let mut biases = vec![0; scheme.biases_len(elements, float)];
                let out = Quantized { packed: &mut packed, scales: &mut scales, biases: &mut biases };
                quantize_with(scheme, float, tensor.data(), out, &options)?;
                results.insert(format!("{job}/q"), packed);
                results.insert(format!("{job}/s"), scales);
                results.insert(format!("{job}/b"), biases);
            }
            "q" => {
                let part = |name| tensors.tensor(&format!("{job}/{name}"));
                let biases = if scheme.has_biases() { part("b")?.data() } else { &[] };
                let mut out = vec![0; tensor.data().len() * 8 / scheme.bits() as usize * float.size()];
                dequantize_with(scheme, float, tensor.data(), part("s")?.data(), biases, &mut out, &options);
                results.insert(format!("{job}/d"), out);
            }
            _ => {}
        }
    }
    let views = results
        .iter()
        .map(|(name, bytes)| Ok((name, TensorView::new(Dtype::U8, vec![bytes.len()], bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    safetensors::serialize_to_file(views, None, output.as_ref())?;
    Ok(())
}
