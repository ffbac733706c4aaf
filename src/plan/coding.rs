//! What the codes of a weight mean: its scheme, from the configuration and the shapes, and that codes, scales,
//! biases and global scale fit each other.

use serde_json::{Map, Value};

use super::readable::Named;
use crate::error::{Error, Result, quoted};
use crate::inventory::{Coded, Dtype, Format, Inventory, Label, Tensor};
use crate::quant::Scheme;

/// Rows are decoded whole; one of so many codes fits into the chunk that is read at once.
const LONGEST_ROW: u64 = 1 << 20;

/// The codes of a weight, and the tensors of the checkpoint that belong to them.
pub(super) struct Coding<'a> {
    pub(super) codes: Codes,
    /// The shape of the values.
    pub(super) shape: Vec<u64>,
    pub(super) scales: Named<'a>,
    pub(super) biases: Option<Named<'a>>,
    pub(super) global: Option<Named<'a>>,
    /// Whether scales are divided by the global scale, in place of multiplied.
    pub(super) divides: bool,
}

/// What codes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codes {
    /// Those of a scheme, which can be kept.
    Scheme(Scheme),
    /// Eight-bit floats with a scale for each block; matrices have `rows`.
    Fp8 { rows: u64, block: [u64; 2] },
}

impl<'a> Coding<'a> {
    /// # Errors
    /// Naming the tensor: a format that is not read, a scheme that cannot be told, a part that is missing or does
    /// not fit.
    pub(super) fn of(
        inventory: &'a Inventory,
        settings: &Settings<'_>,
        (name, tensor): Named<'a>,
        coded: &Coded,
    ) -> Result<Self> {
        let refuse = |why: String| {
            Error::input(format!("The codes of {} cannot be read: {why}", quoted(name)))
                .hint("check that `config.json` belongs to these weights, and that all of them are there")
        };
        let find = |part: &Option<String>| {
            let found = inventory.tensors.get_key_value(part.as_ref()?);
            found.map(|(name, tensor)| (name.as_str(), tensor))
        };
        let missing = |part: &Option<String>| {
            refuse(format!(
                "{} is missing",
                part.as_deref().map_or("`scales`".to_owned(), |name| quoted(name).to_string())
            ))
        };
        let (scales, biases, global) = (find(&coded.scales), find(&coded.biases), find(&coded.global));
        let (shape, codes) = match coded.format {
            Format::Foreign(by) => {
                let kind = inventory.kind;
                return Err(Error::input(format!(
                    "Importing a checkpoint of kind `{kind}` is not supported: {} is in a form of `{by}` that is not read",
                    quoted(name)
                ))
                .hint("import the float checkpoint it was made from"));
            }
            Format::Fp8 { rows, block } => (tensor.shape.clone(), Codes::Fp8 { rows, block }),
            Format::Mlx => {
                let path = name.strip_suffix(".weight").unwrap_or(name);
                let scheme = match settings.scheme(path).map_err(refuse)? {
                    Some(scheme) => scheme,
                    None => told_by_shapes(tensor, scales, biases.is_some())
                        .ok_or_else(|| refuse("the configuration does not say how many bits they have".to_owned()))?,
                };
                (widened_by(tensor, scheme), Codes::Scheme(scheme))
            }
            Format::Ollama => {
                let path = name.strip_suffix(".weight").unwrap_or(name);
                let scheme = match &coded.label {
                    Some(label) => labelled(label).map_err(refuse)?,
                    None => match settings.scheme(path).map_err(refuse)? {
                        Some(scheme) => scheme,
                        None => taken_for(tensor, scales, coded.biases.is_some())
                            .ok_or_else(|| refuse("their file does not say what they are".to_owned()))?,
                    },
                };
                (widened_by(tensor, scheme), Codes::Scheme(scheme))
            }
            Format::GptOss => match &tensor.shape[..] {
                [rows @ .., groups, 16] => {
                    ([rows, &[groups.saturating_mul(32)]].concat(), Codes::Scheme(Scheme::Mxfp4))
                }
                other => return Err(refuse(format!("blocks of 16 bytes do not have the shape {other:?}"))),
            },
            Format::CompressedTensors | Format::ModelOpt => (widened(tensor, 1, 2), Codes::Scheme(Scheme::Nvfp4)),
        };
        let scales = scales.ok_or_else(|| missing(&coded.scales))?;
        let divides = coded.format == Format::CompressedTensors;
        let coding = Self { codes, shape, scales, biases, global, divides };
        if biases.is_none() && coding.scheme().is_some_and(Scheme::has_biases) {
            return Err(missing(&coded.biases));
        }
        if global.is_none() && coded.global.is_some() {
            return Err(missing(&coded.global));
        }
        coding.check().map_err(refuse)?;
        if coding.shape.last().is_some_and(|&columns| columns > LONGEST_ROW) {
            return Err(refuse(format!("their rows have more than {LONGEST_ROW} values")));
        }
        Ok(coding)
    }

    /// The name of the weight whose codes are called `name`.
    pub(super) fn spelled(&self, name: &'a str) -> &'a str {
        let stem = name.strip_suffix("_packed").or_else(|| name.strip_suffix("_blocks"));
        stem.unwrap_or(name)
    }

    /// Its scheme, unless it is one that kiln only reads.
    pub(super) fn scheme(&self) -> Option<Scheme> {
        match self.codes {
            Codes::Scheme(scheme) => Some(scheme),
            Codes::Fp8 { .. } => None,
        }
    }

    /// The element type that codes are decoded to: that of their scales where those are floats, else bfloat16.
    pub(super) fn dtype(&self) -> Dtype {
        if self.scheme().is_some_and(Scheme::has_biases) { self.scales.1.dtype } else { Dtype::Bf16 }
    }

    /// The tensors beside the codes.
    pub(super) fn parts(&self) -> impl Iterator<Item = Named<'a>> + use<'a> {
        [Some(self.scales), self.biases, self.global].into_iter().flatten()
    }

    /// Whether codes, scales, biases and global scale have the types and shapes of the scheme.
    fn check(&self) -> Result<(), String> {
        let Some(scheme) = self.scheme() else { return Ok(()) };
        let unfit = |(name, tensor): Named<'_>| {
            format!(
                "they stand for {:?} in `{scheme}`, and {} is {} {:?}",
                self.shape,
                quoted(name),
                tensor.dtype,
                tensor.shape
            )
        };
        let group = scheme.group_size() as u64;
        let Some((columns, rows)) = self.shape.split_last().filter(|(_, rows)| !rows.is_empty()) else {
            return Err("they are no matrix".to_owned());
        };
        let groups = [rows, &[columns / group]].concat();
        let is_float = matches!(self.scales.1.dtype, Dtype::Bf16 | Dtype::F16 | Dtype::F32);
        let is_byte = matches!(self.scales.1.dtype, Dtype::U8 | Dtype::F8E4M3);
        let typed = if scheme.has_biases() { is_float } else { is_byte };
        if columns % group != 0 || self.scales.1.shape != groups || !typed {
            return Err(unfit(self.scales));
        }
        match self.biases {
            Some(biases) if !scheme.has_biases() || biases.1 != self.scales.1 => Err(unfit(biases)),
            _ => Ok(()),
        }?;
        let Some(global) = self.global else { return Ok(()) };
        let (dtype, shape) = (global.1.dtype, &global.1.shape);
        let each = matches!((rows, &shape[..]), ([all, _], [one, rest @ ..]) if all == one && rest.iter().all(|&size| size == 1));
        if dtype != Dtype::F32 || !each && shape.iter().any(|&size| size != 1) {
            return Err(unfit(global));
        }
        Ok(())
    }
}

/// The shape of `tensor` when every `packed` of its elements hold `values`.
fn widened(tensor: &Tensor, packed: u64, values: u64) -> Vec<u64> {
    let mut shape = tensor.shape.clone();
    if let Some(last) = shape.last_mut() {
        // What does not divide does not fit its scales either.
        *last = if *last % packed == 0 { (*last / packed).saturating_mul(values) } else { 0 };
    }
    shape
}

/// The shape of the values of `tensor`, which has the codes of `scheme` in words of 32 bits.
fn widened_by(tensor: &Tensor, scheme: Scheme) -> Vec<u64> {
    let group = scheme.group_size() as u64;
    widened(tensor, group * u64::from(scheme.bits()) / 32, group)
}

/// The scheme that a label names.
fn labelled(label: &Label) -> Result<Scheme, String> {
    let Label { quant_type, group_size } = label;
    let named: Scheme = quant_type.parse().map_err(|cause: Error| cause.to_string())?;
    let Some(group) = group_size else { return Ok(named) };
    let said = |scheme: &Scheme| {
        (scheme.mode(), scheme.bits()) == (named.mode(), named.bits()) && scheme.group_size().to_string() == *group
    };
    Scheme::all().find(said).ok_or_else(|| {
        format!("their file says {} in groups of {}, which is no scheme", quoted(quant_type), quoted(group))
    })
}

/// What Ollama takes codes for about which nothing is said: of affine ones with four words for a scale it thinks
/// of four bits, with sixteen of eight.
fn taken_for(codes: &Tensor, scales: Option<Named<'_>>, biases: bool) -> Option<Scheme> {
    let (words, groups) = (*codes.shape.last()?, *scales?.1.shape.last()?);
    match words.checked_div(groups).filter(|each| each * groups == words) {
        Some(4) if biases => "affine4-g32".parse().ok(),
        Some(16) if biases => Some(Scheme::INT8),
        _ => told_by_shapes(codes, scales, biases),
    }
}

/// The scheme, when only one has these shapes: those without biases have one each, of the affine ones two with
/// the same product of bits and group size cannot be told apart.
fn told_by_shapes(codes: &Tensor, scales: Option<Named<'_>>, biases: bool) -> Option<Scheme> {
    let (words, groups) = (*codes.shape.last()?, *scales?.1.shape.last()?);
    let fits = |scheme: &Scheme| {
        let per_group = scheme.group_size() as u64 * u64::from(scheme.bits()) / 32;
        scheme.has_biases() == biases && groups.checked_mul(per_group) == Some(words)
    };
    let mut found = Scheme::all().filter(fits);
    found.next().filter(|_| found.next().is_none())
}

/// What MLX wrote about quantization into the configuration.
pub(super) struct Settings<'a>(Option<&'a Map<String, Value>>);

impl<'a> Settings<'a> {
    pub(super) fn of(config: &'a Value) -> Self {
        let places = [config, &config["text_config"]];
        let keys = ["quantization", "quantization_config"];
        let mut found = places.into_iter().flat_map(|place| keys.map(|key| place[key].as_object())).flatten();
        Self(found.find(|settings| !settings.contains_key("quant_method")))
    }

    /// The scheme of the layer `path`; `None` when nothing is said.
    ///
    /// # Errors
    /// Why what is said makes no scheme.
    fn scheme(&self, path: &str) -> Result<Option<Scheme>, String> {
        let Some(all) = self.0 else { return Ok(None) };
        let own = match all.get(path) {
            Some(Value::Bool(false)) => return Err("the configuration says that it is not quantized".to_owned()),
            Some(Value::Object(own)) => own,
            _ => all,
        };
        let mode = own.get("mode").map_or("affine", |mode| mode.as_str().unwrap_or_default());
        let said = |key: &str, default: usize| match own.get(key).filter(|value| !value.is_null()) {
            Some(value) => value.as_u64().unwrap_or_default(),
            None => default as u64,
        };
        let named = Scheme::all().find(|scheme| {
            let default = if scheme.has_biases() { Scheme::INT4 } else { *scheme };
            scheme.mode() == mode
                && said("bits", default.bits() as usize) == u64::from(scheme.bits())
                && said("group_size", default.group_size()) == scheme.group_size() as u64
        });
        named.map(Some).ok_or_else(|| {
            let own: Map<String, Value> = own
                .iter()
                .filter(|(_, value)| !value.is_object())
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            format!("the configuration says {}, which is no scheme", quoted(&Value::Object(own).to_string()))
        })
    }
}
