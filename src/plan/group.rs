//! Normalizing expert groups: whatever form the experts have in the checkpoint, each layer's become the
//! stacked tensors of its family. Only byte ranges are arranged here; no value changes.

use std::collections::{BTreeMap, BTreeSet};

use super::{Placed, PlannedTensor, Readable, Segment, Transform};
use crate::arch::{ExpertLayout, Family, ModelFacts, Position, Projection};
use crate::error::{Error, Result};
use crate::inventory::Dtype;

/// A layer's expert tensors as found: by projection and position.
type Found<'a> = BTreeMap<(Projection, Position), (&'a str, &'a Readable<'a>)>;

/// The stacked expert tensors of every layer, each with the name of its blob.
pub(super) fn expert_groups(
    tensors: &BTreeMap<&str, Readable<'_>>,
    family: &Family,
    facts: &ModelFacts,
) -> Result<Vec<Placed>> {
    let Some(layout) = family.experts else { return Ok(Vec::new()) };
    let mut layers: BTreeMap<&str, Found<'_>> = BTreeMap::new();
    for (name, tensor) in tensors {
        let Some(expert) = layout.recognize(name) else { continue };
        // A family without rules keeps stacked experts as they are: their axes are not known.
        if family.is_generic() && expert.position == Position::Stacked {
            continue;
        }
        if !layout.has(expert.projection) {
            return Err(Error::input(format!("Experts of `{}` have no gate, but there is `{name}`", family.name)));
        }
        let found = layers.entry(expert.layer).or_default();
        if let Some((other, _)) = found.insert((expert.projection, expert.position), (name, tensor)) {
            return Err(twice(expert.layer, other, name));
        }
    }
    if !family.is_generic() {
        check_routers(tensors, &layers, layout)?;
    }
    let mut placed = Vec::new();
    for (layer, found) in layers {
        let group = Group { layer, layout, found: &found, experts: experts(layer, &found, facts)? };
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
    Error::input(format!("The experts of `{layer}` are there twice: `{one}` and `{other}`"))
        .hint("keep one of the two layouts")
}

/// A layer with a router and no experts has lost them.
fn check_routers(
    tensors: &BTreeMap<&str, Readable<'_>>,
    layers: &BTreeMap<&str, Found<'_>>,
    layout: &ExpertLayout,
) -> Result<()> {
    for layer in tensors.keys().filter_map(|name| name.strip_suffix(layout.router)?.strip_suffix('.')) {
        if !layers.contains_key(layer) {
            return Err(Error::input(format!("`{layer}` has a router, but no experts")));
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
        (Some((name, tensor)), None) => match tensor.stored.shape[..] {
            [experts, _, _] => experts,
            _ => {
                return Err(Error::input(format!(
                    "`{name}` has the shape {:?}, but stacked experts are `[experts, out, in]`",
                    tensor.stored.shape
                )));
            }
        },
        (None, last) => {
            let count = facts.experts.unwrap_or(0).max(last.map_or(0, |last| last + 1));
            if let Some(missing) = (0..count).find(|number| !numbers.contains(number)) {
                let why = format!("Expert {missing} of `{layer}` is missing");
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
            Err(Error::input(format!("`{layer}` has {counted} experts, but the config says {experts}")))
        }
        _ => Ok(counted),
    }
}

struct Group<'a> {
    layer: &'a str,
    layout: &'static ExpertLayout,
    found: &'a Found<'a>,
    experts: u64,
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
        let (layer, name) = (self.layer, self.layout.spell(projection, position));
        let expert = expert.map(|number| format!(" of expert {number}")).unwrap_or_default();
        Error::input(format!("The `{name}`{expert} of `{layer}` is missing"))
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

    /// Checks that all sources are matrices of one type and shape, and gives those.
    fn matrix(&self, sources: &[(&str, &Readable<'_>)]) -> Result<(Dtype, u64, u64)> {
        let (first_name, first) =
            sources.first().ok_or_else(|| Error::input(format!("`{}` has no experts", self.layer)))?;
        for (name, tensor) in sources {
            if tensor.dtype != first.dtype || tensor.stored.shape != first.stored.shape {
                return Err(Error::input(format!(
                    "Experts differ: `{first_name}` is {} {:?}, but `{name}` is {} {:?}",
                    first.dtype, first.stored.shape, tensor.dtype, tensor.stored.shape
                )));
            }
        }
        match (first.stored.shape[..].as_ref(), sources.len() as u64) {
            (&[experts, rows, columns], 1) if experts == self.experts => Ok((first.dtype, rows, columns)),
            (&[rows, columns], count) if count == self.experts => Ok((first.dtype, rows, columns)),
            _ => Err(Error::input(format!(
                "`{first_name}` has the shape {:?}, which does not fit {} experts",
                first.stored.shape, self.experts
            ))),
        }
    }

    /// Puts `parts` of every expert one after another: stacking, and for two parts fusing by rows.
    fn stack(&self, projection: Projection, parts: &[Projection]) -> Result<PlannedTensor> {
        let mut sources = Vec::new();
        let mut matrices = Vec::new();
        for part in parts {
            let found = self.sources(*part)?;
            matrices.push((self.matrix(&found)?, sources.len(), found.len() as u64));
            sources.extend(found);
        }
        let ((dtype, _, columns), ..) = matrices[0];
        if let Some(((other, ..), first, _)) = matrices.iter().find(|((d, _, c), ..)| (*d, *c) != (dtype, columns)) {
            return Err(Error::input(format!(
                "`{}` ({other}) does not fit `{}` ({dtype})",
                sources[*first].0, sources[0].0
            )));
        }
        let mut segments = Vec::new();
        for expert in 0..self.experts {
            for ((_, rows, columns), first, count) in &matrices {
                let length = rows * columns * dtype.bytes();
                let (source, offset) =
                    if *count == 1 { (*first, expert * length) } else { (first + expert as usize, 0) };
                push_segment(&mut segments, Segment { source, offset, length });
            }
        }
        let rows = matrices.iter().map(|((_, rows, _), ..)| rows).sum();
        let whole = sources.len() == 1;
        let transform = match parts.len() {
            1 if whole => Transform::Copy,
            1 => Transform::Stack,
            _ => Transform::Fuse,
        };
        Ok(self.tensor(projection, dtype, rows, columns, &sources, segments, transform))
    }

    /// Takes the gate rows or the up rows of every expert's fused matrix.
    fn split(&self, projection: Projection) -> Result<PlannedTensor> {
        let sources = self.sources(Projection::GateUp)?;
        let (dtype, both, columns) = self.matrix(&sources)?;
        if both % 2 != 0 {
            return Err(Error::input(format!(
                "`{}` has {both} rows, which cannot be divided into gate and up",
                sources[0].0
            )));
        }
        let length = both / 2 * columns * dtype.bytes();
        let half = if projection == Projection::Gate { 0 } else { length };
        let segments = (0..self.experts)
            .map(|expert| match sources.len() {
                1 => Segment { source: 0, offset: expert * 2 * length + half, length },
                _ => Segment { source: expert as usize, offset: half, length },
            })
            .collect();
        Ok(self.tensor(projection, dtype, both / 2, columns, &sources, segments, Transform::Split))
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one tensor, each known at a different place")]
    fn tensor(
        &self,
        projection: Projection,
        dtype: Dtype,
        rows: u64,
        columns: u64,
        sources: &[(&str, &Readable<'_>)],
        segments: Vec<Segment>,
        transform: Transform,
    ) -> PlannedTensor {
        PlannedTensor {
            name: self.layout.target_name(self.layer, projection),
            dtype,
            shape: vec![self.experts, rows, columns],
            sources: super::sources(sources),
            segments,
            transform,
            scheme: None,
            why: "no scheme was asked for",
            finite: false,
        }
    }
}

/// Adds a range, joined to the last one where it continues it.
fn push_segment(segments: &mut Vec<Segment>, next: Segment) {
    match segments.last_mut() {
        Some(last) if last.source == next.source && last.offset + last.length == next.offset => {
            last.length += next.length
        }
        _ => segments.push(next),
    }
}
