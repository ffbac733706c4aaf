//! The listing of a checkpoint: every tensor with its dtype and shape, every sidecar, the source kind,
//! and the chat template. Values only: no weights, no paths, no open files.

mod coded;
mod kind;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use kind::Claim;

pub use crate::source::{Dtype, Label, Sidecar};
pub use coded::{Coded, Format};
pub use kind::SourceKind;

use crate::error::{Error, Result};
use crate::source::Checkpoint;

/// What a tensor is, without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, slowest first; none for a scalar.
    pub shape: Vec<u64>,
}

/// Everything that is known of a checkpoint before its weights are read.
#[derive(Clone, Debug)]
pub struct Inventory {
    /// The parsed `config.json`: an object.
    pub config: Value,
    /// All tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// The files that are kept byte for byte, by name.
    pub sidecars: Vec<Sidecar>,
    /// How the weights are stored.
    pub kind: SourceKind,
    /// The weights that are stored in codes, by name.
    pub coded: BTreeMap<String, Coded>,
    /// The scales of activations beside them: they are no part of a model's weights.
    pub activations: BTreeSet<String>,
    /// The chat template: that of `tokenizer_config.json`, else `chat_template.jinja`.
    pub template: Option<String>,
    /// The parsed `generation_config.json`; null when there is none, or it is not JSON.
    pub generation: Value,
    /// What the user should know that is not an error, one sentence each.
    pub notes: Vec<String>,
}

impl Inventory {
    /// Takes the inventory of `checkpoint`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Input`], naming the tensor or file: weights of no known kind, a tokenizer
    /// configuration that is not JSON, a template that is not UTF-8, a file that cannot be read.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let config = checkpoint.config().clone();
        let tensors: BTreeMap<String, Tensor> = checkpoint
            .tensors()
            .iter()
            .map(|(name, tensor)| (name.clone(), Tensor { dtype: tensor.dtype, shape: tensor.shape.clone() }))
            .collect();
        let mut notes = checkpoint.notes().to_vec();
        let claim = Claim::of(&config, is_there(checkpoint, "hf_quant_config.json"));
        let is_whole = checkpoint.is_whole();
        let (kind, mut coded) = match is_whole {
            true => (SourceKind::Files, BTreeMap::new()),
            false => kind::classify(&claim, &tensors)?,
        };
        coded.iter_mut().for_each(|(name, coded)| coded.label = checkpoint.label(name).cloned());
        if kind == SourceKind::Float && claim.is_made() {
            notes.push("The configuration claims that the weights are quantized, but none of them is".to_owned());
        }
        if !config["auto_map"].is_null() && !is_whole {
            notes.push("The model brings code of its own (`auto_map`): it is neither run nor kept".to_owned());
        }
        let activations: BTreeSet<String> = coded::activations(&tensors, &coded).map(str::to_owned).collect();
        let template = template(checkpoint)?;
        let sidecars = checkpoint.sidecars().to_vec();
        let generation = checkpoint.parse_sidecar("generation_config.json").unwrap_or_default();
        Ok(Self { config, tensors, sidecars, kind, coded, activations, template, generation, notes })
    }
}

fn is_there(checkpoint: &Checkpoint, name: &str) -> bool {
    checkpoint.sidecars().iter().any(|sidecar| sidecar.name == name)
}

fn template(checkpoint: &Checkpoint) -> Result<Option<String>> {
    if is_there(checkpoint, "tokenizer_config.json") {
        let tokenizer = checkpoint.parse_sidecar("tokenizer_config.json")?;
        if let Some(template) = tokenizer["chat_template"].as_str() {
            return Ok(Some(template.to_owned()));
        }
    }
    if !is_there(checkpoint, "chat_template.jinja") {
        return Ok(None);
    }
    let template = String::from_utf8(checkpoint.read_sidecar("chat_template.jinja")?);
    template.map(Some).map_err(|e| Error::input("`chat_template.jinja` is not UTF-8").caused_by(e.utf8_error()))
}
