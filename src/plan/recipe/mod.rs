//! Recipes: rules of the user's own about which tensor gets which scheme, asked instead of the family's.
//! The first rule that applies decides. Rules see the names that policies see, and only what can be
//! quantized; a rule that cannot hold is an error, unless it says what else to do.

mod layers;
mod parse;

use std::borrow::Cow;

use layers::Layers;
use regex_lite::Regex;

use crate::arch::{Choice, Family, ModelFacts, Question, text_layer};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::quant::Scheme;

/// A set of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// How messages call it: a file's name, or that of a built-in one.
    name: String,
    rules: Vec<Rule>,
    /// What tensors get that no rule decides about.
    rest: Rest,
    /// The scheme of `rest`.
    scheme: Option<Scheme>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// What the family's policy makes of the recipe's scheme.
    Policy,
    /// The recipe's scheme; without one, the values are kept.
    Scheme(Otherwise),
}

/// What becomes of a tensor whose rows do not divide into the groups of its scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Otherwise {
    /// It is an error.
    Fail,
    /// It keeps its values.
    Keep,
    /// The next rule is asked.
    Next,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    /// Where it stands and what it says, for `--dry-run` and for errors.
    text: String,
    /// Whether it is kiln's and not the user's.
    is_built_in: bool,
    /// One of them must match; none match every name.
    patterns: Vec<Pattern>,
    layers: Option<Layers>,
    /// `None` keeps the values.
    scheme: Option<Scheme>,
    otherwise: Otherwise,
}

/// A glob or a regular expression over names.
#[derive(Clone, Debug)]
struct Pattern(Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

impl Recipe {
    /// The names of the recipes that are part of kiln.
    pub const BUILT_IN: [&str; 6] = ["ollama", "mlx-default", "mixed-2-6", "mixed-3-4", "mixed-3-6", "mixed-4-6"];

    /// The recipe of this name that is part of kiln.
    ///
    /// # Errors
    /// None that a user can cause.
    pub fn built_in(name: &str) -> Result<Option<Self>> {
        let rest = |rest| Self { name: name.to_owned(), rules: Vec::new(), rest, scheme: None };
        if name == "ollama" {
            return Ok(Some(rest(Rest::Policy)));
        }
        let Some(text) = Self::text(name) else { return Ok(None) };
        let mut recipe = Self::read(name, &text, |_| quoted(name))?;
        recipe.rules.iter_mut().for_each(|rule| rule.is_built_in = true);
        Ok(Some(recipe))
    }

    /// The text of a built-in recipe; `ollama` has none, because it is the families' own policy.
    ///
    /// `mlx-default` is what `mlx_lm.convert` does for a model without a predicate, and the others are
    /// its `mixed_quant_predicate_builder`
    /// (<https://github.com/ml-explore/mlx-lm/blob/v0.32.2/mlx_lm/convert.py>). Towers and prediction heads
    /// are kept, because `mlx-lm` does not load them.
    pub fn text(name: &str) -> Option<String> {
        let (low, high) = match name {
            "mlx-default" => return Some(include_str!("mlx-default.toml").to_owned()),
            "mixed-2-6" => ("2", "6"),
            "mixed-3-4" => ("3", "4"),
            "mixed-3-6" => ("3", "6"),
            "mixed-4-6" => ("4", "6"),
            _ => return None,
        };
        Some(include_str!("mixed.toml").replace("{low}", low).replace("{high}", high))
    }

    /// The scheme of what no rule decides about.
    pub fn scheme(&self) -> Option<Scheme> {
        self.scheme
    }

    /// Whether it is the families' own policy and nothing else.
    pub(super) fn is_policy(&self) -> bool {
        self.rules.is_empty() && self.rest == Rest::Policy
    }

    /// Takes the scheme of `--quantize` for what no rule decides about.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when it has a scheme already, or would quantize nothing without one.
    pub fn with_scheme(mut self, scheme: Option<Scheme>) -> Result<Self> {
        let name = quoted(&self.name);
        let usage = |message| Error::new(ErrorKind::Usage, message);
        if let (Some(own), Some(_)) = (self.scheme, scheme) {
            return Err(usage(format!("The recipe {name} has a scheme already, `{own}`"))
                .hint("leave `--quantize` out, or take `scheme` out of the recipe"));
        }
        self.scheme = self.scheme.or(scheme);
        let needs = self.rest == Rest::Policy || self.rules.iter().all(|rule| rule.scheme.is_none());
        if self.scheme.is_none() && needs {
            return Err(usage(format!("The recipe {name} quantizes nothing without a scheme"))
                .hint("add `--quantize SCHEME`, as in `--quantize int4`"));
        }
        Ok(self)
    }

    /// Decides about a tensor that can be quantized, by the name that policies see.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] when the rule that applies cannot hold.
    pub fn choose(&self, family: &Family, facts: &ModelFacts, name: &str, shape: &[u64]) -> Result<Choice> {
        let fits = |scheme: Scheme| scheme.divides(shape);
        let refuse = |scheme: Scheme, text: &str| {
            let columns = shape.last().copied().unwrap_or(0);
            let message = format!(
                "The rows of {} have {columns} elements, which do not divide into the groups of `{scheme}`",
                quoted(name)
            );
            let rule = Error::input(format!("The rule is {text}"));
            Error::input(message).caused_by(rule).hint("add `else = \"keep\"` or `else = \"next\"` to the rule")
        };
        for rule in &self.rules {
            if !rule.applies(name, facts)? {
                continue;
            }
            let why = Cow::from(rule.text.clone());
            match (rule.scheme, rule.otherwise) {
                (None, _) => return Ok(Choice::keep(why)),
                (Some(scheme), _) if fits(scheme) => return Ok(Choice::quantize(scheme, why)),
                (Some(scheme), Otherwise::Fail) => return Err(refuse(scheme, &why)),
                (Some(_), Otherwise::Keep) => {
                    return Ok(Choice::keep(format!("{why}: rows do not divide into groups")));
                }
                (Some(_), Otherwise::Next) => {}
            }
        }
        let recipe = quoted(&self.name);
        let Some(scheme) = self.scheme else {
            return Ok(Choice::keep(format!("{recipe}: no rule decides")));
        };
        Ok(match self.rest {
            Rest::Policy => family.choose(&Question { base: scheme, name, shape, facts }),
            Rest::Scheme(_) if fits(scheme) => Choice::quantize(scheme, format!("{recipe}: the default")),
            Rest::Scheme(Otherwise::Fail) => return Err(refuse(scheme, &format!("the default of {recipe}"))),
            Rest::Scheme(_) => Choice::keep(format!("{recipe}: rows do not divide into groups")),
        })
    }

    /// The user's rules that decided about nothing, given the reasons of all choices.
    pub(super) fn idle(&self, reasons: &[&str]) -> Vec<&str> {
        let idle = |rule: &&Rule| !rule.is_built_in && !reasons.iter().any(|why| why.starts_with(&rule.text));
        self.rules.iter().filter(idle).map(|rule| &*rule.text).collect()
    }
}

impl Rule {
    fn applies(&self, name: &str, facts: &ModelFacts) -> Result<bool> {
        if !self.patterns.is_empty() && !self.patterns.iter().any(|Pattern(regex)| regex.is_match(name)) {
            return Ok(false);
        }
        let Some(layers) = &self.layers else { return Ok(true) };
        let Some((layer, _)) = text_layer(name) else { return Ok(false) };
        layers.contain(layer, facts.layers).ok_or_else(|| {
            let message =
                format!("The rule {} counts layers, but the config does not say how many there are", self.text);
            Error::input(message).hint("name the layers by their numbers")
        })
    }
}
