//! Normalizing expert groups: whatever form the experts have in the checkpoint, each layer's become the
//! stacked tensors of its family. Only byte ranges are arranged here; no value changes.

use std::collections::{BTreeMap, BTreeSet};

use super::readable::Rows;
use super::{Placed, PlannedTensor, Profile, Readable, Transform};
use crate::arch::{ExpertLayout, Family, ModelFacts, Position, Projection, Stacking};
use crate::error::{Error, Result, quoted};

/// A layer's expert tensors as found: by projection and position.
type Found<'a> = BTreeMap<(Projection, Position), (&'a str, &'a Readable<'a>)>;

/// The stacked expert tensors of every layer, each with the name of its blob.
pub(super) fn expert_groups(
    tensors: &BTreeMap<String, Readable<'_>>,
    family: &Family,
    layout: Option<&'static ExpertLayout>,
    facts: &ModelFacts,
    profile: Profile,
) -> Result<Vec<Placed>> {
    let Some(layout) = layout else { return Ok(Vec::new()) };
    let mut layers: BTreeMap<(&str, bool), Found<'_>> = BTreeMap::new();
    for (name, tensor) in tensors {
        let Some(expert) = layout.recognize(name) else { continue };
        // A family without rules keeps stacked experts as they are: their axes are not known.
        if family.is_generic() && expert.position == Position::Stacked {
            continue;
        }
        if !layout.has(expert.projection) {
            return Err(Error::input(format!(
                "Experts of `{}` have no gate, but there is {}",
                family.name,
                quoted(name)
            )));
        }
        let found = layers.entry((expert.layer, expert.is_bias)).or_default();
        let stored = tensor.stored.0;
        if let Some((other, _)) = found.insert((expert.projection, expert.position), (stored, tensor)) {
            return Err(twice(expert.layer, other, stored));
        }
    }
    if !family.is_generic() {
        check_routers(tensors, &layers, layout)?;
    }
    let mut placed = Vec::new();
    for ((layer, is_bias), found) in layers {
        let group = Group { layer, is_bias, layout, found: &found, experts: experts(layer, &found, facts)?, profile };
        let outputs: Vec<_> =
            layout.projections.iter().map(|projection| group.output(*projection)).collect::<Result<_>>()?;
        let used: BTreeSet<&str> =
            outputs.iter().flat_map(|tensor| &tensor.sources).map(|source| &*source.name).collect();
        if let Some((unused, _)) = found.values().find(|(name, _)| !used.contains(name)) {
            return Err(twice(layer, unused, &outputs[0].sources[0].name));
        }
        placed.extend(outputs.into_iter().map(|tensor| Placed { blob: format!("{layer}.{}", layout.blob), tensor }));
    }
    Ok(placed)
}

fn twice(layer: &str, one: &str, other: &str) -> Error {
    Error::input(format!("The experts of {} are there twice: {} and {}", quoted(layer), quoted(one), quoted(other)))
        .hint("keep one of the two layouts")
}

/// A layer with a router and no experts has lost them.
fn check_routers(
    tensors: &BTreeMap<String, Readable<'_>>,
    layers: &BTreeMap<(&str, bool), Found<'_>>,
    layout: &ExpertLayout,
) -> Result<()> {
    for layer in tensors.keys().filter_map(|name| name.strip_suffix(layout.router)?.strip_suffix('.')) {
        if !layers.contains_key(&(layer, false)) {
            return Err(Error::input(format!("{} has a router, but no experts", quoted(layer))));
        }
    }
    Ok(())
}

/// How many experts the layer has: numbered without a gap, all in one form, as many as the config says.
fn experts(layer: &str, found: &Found<'_>, facts: &ModelFacts) -> Result<u64> {
    let numbers: BTreeSet<u64> = found
        .keys()
        .filter_map(|(_, position)| match position {
            Position::Expert(number) => Some(*number),
            Position::Stacked => None,
        })
        .collect();
    let stacked = found.iter().find(|((_, position), _)| *position == Position::Stacked).map(|(_, tensor)| tensor);
    let counted = match (stacked, numbers.last()) {
        (Some((name, _)), Some(_)) => {
            let single = found.iter().find(|((_, position), _)| *position != Position::Stacked);
            return Err(twice(layer, single.map_or("", |(_, (name, _))| name), name));
        }
        (Some((name, tensor)), None) => match tensor.shape[..] {
            [experts, _, _] => experts,
            _ => {
                return Err(Error::input(format!(
                    "{} has the shape {:?}, but stacked experts are `[experts, out, in]`",
                    quoted(name),
                    tensor.shape
                )));
            }
        },
        (None, last) => {
            let count = facts.experts.unwrap_or(0).max(last.map_or(0, |last| last.saturating_add(1)));
            if let Some(missing) = (0..count).find(|number| !numbers.contains(number)) {
                let why = format!("Expert {missing} of {} is missing", quoted(layer));
                return Err(match facts.experts {
                    Some(experts) => {
                        Error::input(format!("{why}: the config has {experts}, the checkpoint {}", numbers.len()))
                    }
                    None => Error::input(why),
                });
            }
            count
        }
    };
    match facts.experts {
        Some(experts) if experts != counted => {
            Err(Error::input(format!("{} has {counted} experts, but the config says {experts}", quoted(layer))))
        }
        _ => Ok(counted),
    }
}

/// One expert's matrix.
#[derive(Clone, Copy)]
struct Matrix {
    rows: u64,
    columns: u64,
}

/// One projection of all experts, among the sources of an output.
struct Stacked {
    matrix: Matrix,
    /// Its first source.
    first: usize,
    /// Whether that has all experts.
    is_whole: bool,
}

impl Stacked {
    /// Rows `from..from + count` of the matrix of one expert.
    fn rows(&self, expert: u64, from: u64, count: u64) -> Rows {
        let (tensor, first) = match self.is_whole {
            true => (self.first, expert * self.matrix.rows),
            false => (self.first + expert as usize, 0),
        };
        Rows { tensor, first: first + from, count, step: 1 }
    }
}

/// The experts of one layer.
struct Group<'a> {
    layer: &'a str,
    /// Whether these are their true biases, each a matrix of one column.
    is_bias: bool,
    layout: &'static ExpertLayout,
    found: &'a Found<'a>,
    experts: u64,
    profile: Profile,
}

impl Group<'_> {
    /// The stacked tensor of one projection.
    fn output(&self, projection: Projection) -> Result<PlannedTensor> {
        let halves = [Projection::Gate, Projection::Up];
        if self.has(projection) {
            self.stack(projection, &[projection])
        } else if projection == Projection::GateUp {
            self.stack(projection, &halves)
        } else if halves.contains(&projection) && self.has(Projection::GateUp) {
            self.split(projection)
        } else {
            Err(self.missing(projection, None))
        }
    }

    fn has(&self, projection: Projection) -> bool {
        self.found.keys().any(|(found, _)| *found == projection)
    }

    fn missing(&self, projection: Projection, expert: Option<u64>) -> Error {
        let position = self.found.keys().next().map_or(Position::Stacked, |(_, position)| *position);
        let (layer, name) = (quoted(self.layer), self.layout.spell(projection, position));
        let expert = expert.map(|number| format!(" of expert {number}")).unwrap_or_default();
        Error::input(format!("The `{name}`{expert} of {layer} is missing"))
    }

    /// The sources of one projection, expert by expert, or the one stacked tensor.
    fn sources(&self, projection: Projection) -> Result<Vec<(&str, &Readable<'_>)>> {
        if let Some((name, tensor)) = self.found.get(&(projection, Position::Stacked)) {
            return Ok(vec![(name, tensor)]);
        }
        let numbers = 0..self.experts;
        let source = |number| self.found.get(&(projection, Position::Expert(number))).copied();
        numbers.map(|number| source(number).ok_or_else(|| self.missing(projection, Some(number)))).collect()
    }

    /// Checks that all sources are matrices of one type and shape, and gives those. None may be empty: the
    /// size of a file does not bound how many there are of those.
    fn matrix(&self, sources: &[(&str, &Readable<'_>)]) -> Result<Matrix> {
        let (first_name, first) =
            sources.first().ok_or_else(|| Error::input(format!("{} has no experts", quoted(self.layer))))?;
        for (name, tensor) in sources {
            if tensor.element() != first.element() || tensor.shape != first.shape {
                return Err(Error::input(format!(
                    "Experts differ: {} is {} {:?}, but {} is {} {:?}",
                    quoted(first_name),
                    first.element(),
                    first.shape,
                    quoted(name),
                    tensor.element(),
                    tensor.shape
                )));
            }
        }
        let unfit =
            |why: String| Error::input(format!("{} has the shape {:?}, {why}", quoted(first_name), first.shape));
        match (&first.shape[..], sources.len() as u64) {
            (shape, _) if shape.contains(&0) => Err(unfit("in which there are no experts".to_owned())),
            (&[experts, rows, columns], 1) if experts == self.experts => Ok(Matrix { rows, columns }),
            (&[rows, columns], count) if count == self.experts => Ok(Matrix { rows, columns }),
            _ => Err(unfit(format!("which does not fit {} experts", self.experts))),
        }
    }

    /// Puts `parts` of every expert one after another: stacking, and for two parts fusing by rows.
    fn stack(&self, projection: Projection, parts: &[Projection]) -> Result<PlannedTensor> {
        let mut sources = Vec::new();
        let mut stacked = Vec::new();
        for part in parts {
            let found = self.sources(*part)?;
            let (matrix, first, is_whole) = (self.matrix(&found)?, sources.len(), found.len() == 1);
            stacked.push(Stacked { matrix, first, is_whole });
            sources.extend(found);
        }
        let columns = stacked[0].matrix.columns;
        let element = |part: &Stacked| sources[part.first].1.element();
        let fits = |part: &&Stacked| part.matrix.columns == columns && element(part) == element(&stacked[0]);
        if let Some(odd) = stacked.iter().find(|part| !fits(part)) {
            let (other, first) = (quoted(sources[odd.first].0), quoted(sources[0].0));
            let (elements, first_elements) = (element(odd), element(&stacked[0]));
            return Err(Error::input(format!("{other} ({elements}) does not fit {first} ({first_elements})")));
        }
        let each = |expert| stacked.iter().map(move |part| part.rows(expert, 0, part.matrix.rows));
        let taken: Vec<Rows> = (0..self.experts).flat_map(each).collect();
        let rows = stacked.iter().map(|part| part.matrix.rows).sum();
        let transform = match (parts.len(), sources.len()) {
            (1, 1) => Transform::Copy,
            (1, _) => Transform::Stack,
            _ => Transform::Fuse,
        };
        Ok(self.tensor(projection, Matrix { rows, columns }, &sources, &taken, transform))
    }

    /// Takes the gate rows or the up rows of every expert's fused matrix.
    fn split(&self, projection: Projection) -> Result<PlannedTensor> {
        let sources = self.sources(Projection::GateUp)?;
        let both = Stacked { matrix: self.matrix(&sources)?, first: 0, is_whole: sources.len() == 1 };
        let Matrix { rows, columns } = both.matrix;
        if rows % 2 != 0 {
            return Err(Error::input(format!(
                "{} has {rows} rows, which cannot be divided into gate and up",
                quoted(sources[0].0),
            )));
        }
        let half = |expert| match (self.layout.stacking, projection) {
            (Stacking::Plain, Projection::Gate) => both.rows(expert, 0, rows / 2),
            (Stacking::Plain, _) => both.rows(expert, rows / 2, rows / 2),
            (Stacking::InTurn, Projection::Gate) => Rows { step: 2, ..both.rows(expert, 0, rows / 2) },
            (Stacking::InTurn, _) => Rows { step: 2, ..both.rows(expert, 1, rows / 2) },
        };
        let taken: Vec<Rows> = (0..self.experts).map(half).collect();
        Ok(self.tensor(projection, Matrix { rows: rows / 2, columns }, &sources, &taken, Transform::Split))
    }

    /// The output whose experts are each a `matrix`.
    fn tensor(
        &self,
        projection: Projection,
        Matrix { rows, columns }: Matrix,
        sources: &[(&str, &Readable<'_>)],
        taken: &[Rows],
        transform: Transform,
    ) -> PlannedTensor {
        let name = self.layout.target_name(self.layer, projection, self.is_bias);
        let tensors: Vec<&Readable<'_>> = sources.iter().map(|(_, tensor)| *tensor).collect();
        let shape = if self.is_bias { vec![self.experts, rows] } else { vec![self.experts, rows, columns] };
        PlannedTensor::of_rows((name, self.profile), shape, &tensors, taken, transform)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::inventory::{Dtype, Inventory, SourceKind, Tensor};
    use crate::plan::{Plan, Request};

    fn refusal(name: &str, shape: &[u64]) -> String {
        let inventory = Inventory {
            config: json!({"architectures": ["Qwen3MoeForCausalLM"]}),
            tensors: [(name.to_owned(), Tensor { dtype: Dtype::Bf16, shape: shape.to_vec() })].into(),
            sidecars: Vec::new(),
            kind: SourceKind::Float,
            coded: Default::default(),
            activations: Default::default(),
            template: None,
            generation: json!(null),
            notes: Vec::new(),
        };
        Plan::new(&inventory, Request::default()).unwrap_err().to_string()
    }

    #[test]
    fn a_number_of_experts_that_no_file_bounds_is_refused() {
        let last = format!("model.layers.0.mlp.experts.{}.down_proj.weight", u64::MAX);
        assert_eq!(refusal(&last, &[8, 8]), "Expert 0 of `model.layers.0` is missing");
        for shape in [[1 << 62, 8, 0], [1 << 62, 0, 8], [0, 1 << 62, 1]] {
            let message = refusal("model.layers.0.mlp.experts.down_proj", &shape);
            assert!(message.ends_with("in which there are no experts"), "{message}");
        }
    }
}
