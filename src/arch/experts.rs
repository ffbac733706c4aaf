//! How routed experts are named: recognizing them in whatever form a checkpoint has them, and naming
//! them in the one form kiln writes.

/// A family's expert tensors, in the source and on disk. All paths are relative to the layer, as in
/// `model.layers.3`.
#[derive(Debug)]
pub struct ExpertLayout {
    /// Where sources keep experts: `<home>.<expert>.<projection>.weight` one by one, or
    /// `<home>.<projection>[.weight]` stacked.
    pub homes: &'static [&'static str],
    /// How sources spell a projection where experts stand one by one; most do as [`Projection::name`], the
    /// only spelling of stacked ones.
    pub spelling: fn(Projection) -> &'static str,
    /// The tensor that chooses among the experts: a layer that has it has experts.
    pub router: &'static str,
    /// Where the stacked tensors `[experts, out, in]` go: `<target>.<projection>.weight`.
    pub target: &'static str,
    /// The name of the one blob that holds a layer's experts.
    pub blob: &'static str,
    /// Which tensors are written: gate and up apart, or fused (gate rows first), or no gate at all.
    pub projections: &'static [Projection],
    /// How stacked sources lie.
    pub stacking: Stacking,
}

/// How a source's stacked tensors lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stacking {
    /// `[experts, out, in]`; in a fused one the gate rows of an expert come first.
    Plain,
    /// As gpt-oss has them: gate and up rows take turns, floats are `[experts, in, out]`, and beside every
    /// `<projection>` there is a true bias `<projection>_bias`, `[experts, out]`.
    InTurn,
}

/// One of the matrices of an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Projection {
    /// Back to the hidden size.
    Down,
    /// The gate.
    Gate,
    /// Gate and up in one matrix, gate rows first.
    GateUp,
    /// Up from the hidden size.
    Up,
}

impl Projection {
    const ALL: [Self; 4] = [Self::Down, Self::Gate, Self::GateUp, Self::Up];

    /// The name under which every family's stacked tensors are written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Down => "down_proj",
            Self::Gate => "gate_proj",
            Self::GateUp => "gate_up_proj",
            Self::Up => "up_proj",
        }
    }
}

/// Whether a source tensor is one expert's matrix or all experts' at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Position {
    /// The matrix `[out, in]` of the expert with this number.
    Expert(u64),
    /// All experts, `[experts, out, in]`.
    Stacked,
}

/// A source tensor recognized as part of an expert group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertTensor<'a> {
    /// The layer's prefix, as in `model.layers.3`.
    pub layer: &'a str,
    /// Where in the layer it was found.
    pub home: &'static str,
    /// Which matrix it is.
    pub projection: Projection,
    /// Which experts it holds.
    pub position: Position,
    /// Whether it is the true bias of the matrix, and not the matrix.
    pub is_bias: bool,
}

impl ExpertLayout {
    /// Recognizes `name` as part of a routed expert, or not.
    pub fn recognize<'a>(&self, name: &'a str) -> Option<ExpertTensor<'a>> {
        let (layer, rest) = split_layer(name)?;
        self.homes.iter().find_map(|home| {
            let rest = rest.strip_prefix(home)?.strip_prefix('.')?;
            let (position, spelled) = match rest.split_once('.') {
                Some((number, spelled)) if is_number(number) => {
                    (Position::Expert(number.parse().ok()?), spelled.strip_suffix(".weight")?)
                }
                _ => (Position::Stacked, rest.strip_suffix(".weight").unwrap_or(rest)),
            };
            let biases = ["_bias", ".bias"].map(|end| spelled.strip_suffix(end).filter(|_| self.has_biases()));
            let bias = biases.into_iter().flatten().next();
            let spelled = bias.unwrap_or(spelled);
            let projection = Projection::ALL.into_iter().find(|known| self.spell(*known, position) == spelled)?;
            Some(ExpertTensor { layer, home, projection, position, is_bias: bias.is_some() })
        })
    }

    /// How a source spells `projection`, one by one or stacked.
    pub fn spell(&self, projection: Projection, position: Position) -> &'static str {
        match position {
            Position::Expert(_) => (self.spelling)(projection),
            Position::Stacked => projection.name(),
        }
    }

    /// Whether this family's experts have such a matrix: all have down and up, not all a gate.
    pub fn has(&self, projection: Projection) -> bool {
        let gate = [Projection::Gate, Projection::GateUp];
        !gate.contains(&projection) || self.projections.iter().any(|written| gate.contains(written))
    }

    /// Whether experts have true biases.
    fn has_biases(&self) -> bool {
        self.stacking == Stacking::InTurn
    }

    /// The name under which `projection` of `layer` is written, the matrix or its true bias.
    pub fn target_name(&self, layer: &str, projection: Projection, is_bias: bool) -> String {
        let part = if is_bias { "bias" } else { "weight" };
        format!("{layer}.{}.{}.{part}", self.target, projection.name())
    }

    /// The name policies look at, for the name of a written expert tensor: the same tensor where this
    /// family's sources keep experts, whatever form this one had.
    pub fn source_name(&self, target_name: &str) -> Option<String> {
        let expert = self.recognize(target_name).filter(|expert| expert.home == self.target && !expert.is_bias)?;
        Some(format!("{}.{}.{}.weight", expert.layer, self.homes[0], expert.projection.name()))
    }
}

/// The shortest decimal spelling only, so that `1` and `01` cannot both be expert 1.
fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'))
}

/// Splits `model.layers.3.mlp.gate.weight` into `model.layers.3` and `mlp.gate.weight`.
pub(super) fn split_layer(name: &str) -> Option<(&str, &str)> {
    let start = if name.starts_with("layers.") { 0 } else { name.find(".layers.")? + 1 };
    let number = start + "layers.".len();
    let end = number + name[number..].find('.')?;
    is_number(&name[number..end]).then(|| (&name[..end], &name[end + 1..]))
}

/// The layer number in a name, as in `.layers.3.`.
pub(super) fn layer_number(name: &str) -> Option<u64> {
    split_layer(name)?.0.rsplit('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: ExpertLayout = ExpertLayout {
        homes: &["mlp.experts", "mlp.switch_mlp"],
        spelling: Projection::name,
        router: "mlp.gate.weight",
        target: "mlp.switch_mlp",
        blob: "mlp.switch_mlp",
        projections: &[Projection::Down, Projection::Gate, Projection::Up],
        stacking: Stacking::Plain,
    };

    #[test]
    fn recognizes_each_form() {
        for (name, layer, projection, position) in [
            ("model.layers.3.mlp.experts.10.up_proj.weight", "model.layers.3", Projection::Up, Position::Expert(10)),
            ("mtp.layers.0.mlp.experts.gate_up_proj", "mtp.layers.0", Projection::GateUp, Position::Stacked),
            ("layers.0.mlp.switch_mlp.down_proj.weight", "layers.0", Projection::Down, Position::Stacked),
        ] {
            let found = LAYOUT.recognize(name).unwrap();
            assert_eq!((found.layer, found.projection, found.position), (layer, projection, position), "{name}");
        }
    }

    #[test]
    fn true_biases_are_those_of_gpt_oss() {
        let layout = ExpertLayout { stacking: Stacking::InTurn, ..LAYOUT };
        for (name, is_bias) in [
            ("model.layers.0.mlp.experts.gate_up_proj", false),
            ("model.layers.0.mlp.experts.gate_up_proj_bias", true),
            ("model.layers.0.mlp.experts.gate_up_proj.bias", true),
            ("model.layers.0.mlp.experts.gate_up_proj.weight", false),
        ] {
            let found = layout.recognize(name).unwrap();
            assert_eq!((found.projection, found.is_bias), (Projection::GateUp, is_bias), "{name}");
        }
        let bias = layout.target_name("model.layers.0", Projection::Up, true);
        assert_eq!(bias, "model.layers.0.mlp.switch_mlp.up_proj.bias");
        assert_eq!(layout.source_name(&bias), None);
    }

    #[test]
    fn leaves_the_rest_alone() {
        for name in [
            "model.layers.3.mlp.gate_proj.weight",
            "model.layers.3.mlp.experts.e_score_correction_bias",
            "model.layers.3.mlp.experts.gate_up_proj_bias",
            "model.layers.3.mlp.experts.01.up_proj.weight",
            "model.layers.3.mlp.experts.1.up_proj",
            "model.layers.x.mlp.experts.1.up_proj.weight",
            "model.layers.3.mlp.shared_experts.up_proj.weight",
        ] {
            assert_eq!(LAYOUT.recognize(name), None, "{name}");
        }
    }
}
