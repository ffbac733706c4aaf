//! The text of a recipe: TOML, whose unknown keys and contradictions are errors that name the line.

use std::ops::Range;

use regex_lite::Regex;
use serde::Deserialize;
use toml::Spanned;

use super::{Layers, Otherwise, Pattern, Recipe, Rest, Rule};
use crate::error::{Error, Result, quoted};
use crate::quant::Scheme;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    extends: Option<Spanned<String>>,
    scheme: Option<Spanned<String>>,
    #[serde(rename = "else")]
    otherwise: Option<Spanned<String>>,
    #[serde(default, rename = "rule")]
    rules: Vec<Spanned<Entry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(rename = "match")]
    globs: Option<Spanned<OneOrMany>>,
    #[serde(rename = "regex")]
    expressions: Option<Spanned<OneOrMany>>,
    layers: Option<Spanned<String>>,
    scheme: Spanned<String>,
    #[serde(rename = "else")]
    otherwise: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn texts(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        }
    }
}

impl Recipe {
    /// Reads a recipe (`docs/formats.md`, "Recipes"). `name` is what messages call it, as a path.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Input`], with the line, for what is no recipe or contradicts itself.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        Self::read(name, text, |line| format!("{} line {line}", quoted(name)))
    }

    pub(super) fn read(name: &str, text: &str, place: impl Fn(usize) -> String) -> Result<Self> {
        let reader = Reader { name, text };
        let document: Document = toml::from_str(text).map_err(|cause| {
            let sentence = cause.message().lines().collect::<Vec<_>>().join(", ");
            reader.wrong(cause.span().unwrap_or_default(), sentence)
        })?;
        let scheme = document.scheme.as_ref().map(|scheme| reader.scheme(scheme)).transpose()?;
        let mut recipe = Self { name: name.to_owned(), rules: Vec::new(), rest: Rest::Scheme(Otherwise::Fail), scheme };
        if let Some(otherwise) = &document.otherwise {
            recipe.rest = match reader.otherwise(otherwise)? {
                Otherwise::Keep => Rest::Scheme(Otherwise::Keep),
                _ => return Err(reader.wrong(otherwise.span(), "There is no rule after the default: use `keep`")),
            };
        }
        for entry in &document.rules {
            let rule = reader.rule(entry, &place)?;
            let same = |earlier: &&Rule| {
                (&earlier.patterns, &earlier.layers) == (&rule.patterns, &rule.layers)
                    && earlier.otherwise != Otherwise::Next
            };
            if let Some(earlier) = recipe.rules.iter().find(same) {
                return Err(reader.wrong(entry.span(), format!("Never reached: it asks what {} asks", earlier.text)));
            }
            recipe.rules.push(rule);
        }
        if let Some(extends) = &document.extends {
            let base = extends.get_ref();
            let Some(base) = Self::built_in(base)? else {
                let names = Self::BUILT_IN.map(quoted).join(", ");
                let sentence = format!("There is no recipe {} in kiln, only {names}", quoted(base));
                return Err(reader.wrong(extends.span(), sentence));
            };
            if let (Some(own), Some(theirs)) = (&document.scheme, base.scheme) {
                let sentence = format!("{} has the default `{theirs}` already", quoted(&base.name));
                return Err(reader.wrong(own.span(), sentence));
            }
            if let Some(otherwise) = &document.otherwise {
                let sentence = format!("{} says already what becomes of the rest", quoted(&base.name));
                return Err(reader.wrong(otherwise.span(), sentence));
            }
            recipe.rules.extend(base.rules);
            (recipe.rest, recipe.scheme) = (base.rest, recipe.scheme.or(base.scheme));
        }
        Ok(recipe)
    }
}

struct Reader<'a> {
    name: &'a str,
    text: &'a str,
}

impl Reader<'_> {
    /// Which line `span` begins on, counted from 1.
    fn line(&self, span: &Range<usize>) -> usize {
        1 + self.text.bytes().take(span.start).filter(|&byte| byte == b'\n').count()
    }

    fn wrong(&self, span: Range<usize>, sentence: impl Into<String>) -> Error {
        let message = format!("Line {} of the recipe {} is wrong", self.line(&span), quoted(self.name));
        Error::input(message).caused_by(Error::input(sentence))
    }

    fn scheme(&self, scheme: &Spanned<String>) -> Result<Scheme> {
        let parsed: Result<Scheme> = scheme.get_ref().parse();
        parsed.map_err(|cause| {
            let hint = cause.hint_text().map(str::to_owned);
            let error = self.wrong(scheme.span(), cause.to_string());
            match hint {
                Some(hint) => error.hint(hint),
                None => error,
            }
        })
    }

    fn otherwise(&self, otherwise: &Spanned<String>) -> Result<Otherwise> {
        match otherwise.get_ref().as_str() {
            "keep" => Ok(Otherwise::Keep),
            "next" => Ok(Otherwise::Next),
            other => {
                let sentence = format!("`else` is `keep` or `next`, not {}", quoted(other));
                Err(self.wrong(otherwise.span(), sentence))
            }
        }
    }

    fn rule(&self, entry: &Spanned<Entry>, place: impl Fn(usize) -> String) -> Result<Rule> {
        let Entry { globs, expressions, layers, scheme, otherwise } = entry.get_ref();
        let patterns = match (globs, expressions) {
            (Some(_), Some(both)) => {
                return Err(self.wrong(both.span(), "A rule has `match` or `regex`, not both"));
            }
            (Some(globs), None) => self.patterns(globs, glob)?,
            (None, Some(expressions)) => self.patterns(expressions, str::to_owned)?,
            (None, None) if layers.is_some() => Vec::new(),
            (None, None) => return Err(self.wrong(entry.span(), "A rule needs `match`, `regex` or `layers`")),
        };
        let layers: Option<Layers> = match layers {
            Some(layers) => {
                Some(layers.get_ref().parse().map_err(|sentence: String| self.wrong(layers.span(), sentence))?)
            }
            None => None,
        };
        let kept = scheme.get_ref() == "keep";
        if let Some(otherwise) = otherwise.as_ref().filter(|_| kept) {
            return Err(self.wrong(otherwise.span(), "A rule that keeps values can always hold: it has no `else`"));
        }
        let names = globs.as_ref().or(expressions.as_ref()).map(|names| names.get_ref().texts());
        let names = names.unwrap_or_default().iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", ");
        let layers_text = layers.as_ref().map(|layers| format!("layers {}", quoted(layers.as_str())));
        let conditions = [Some(names).filter(|names| !names.is_empty()), layers_text];
        let conditions = conditions.into_iter().flatten().collect::<Vec<_>>().join(" in ");
        let line = self.line(&entry.span());
        Ok(Rule {
            text: format!("{}: {conditions}", place(line)),
            is_built_in: false,
            patterns,
            layers,
            scheme: if kept { None } else { Some(self.scheme(scheme)?) },
            otherwise: otherwise.as_ref().map_or(Ok(Otherwise::Fail), |otherwise| self.otherwise(otherwise))?,
        })
    }

    fn patterns(&self, names: &Spanned<OneOrMany>, spell: impl Fn(&str) -> String) -> Result<Vec<Pattern>> {
        let texts = names.get_ref().texts();
        if texts.is_empty() {
            return Err(self.wrong(names.span(), "An empty list matches nothing"));
        }
        let pattern = |text: &String| {
            Regex::new(&spell(text)).map(Pattern).map_err(|cause| {
                self.wrong(names.span(), format!("{} is no regular expression: {cause}", quoted(text)))
            })
        };
        texts.iter().map(pattern).collect()
    }
}

/// The regular expression of a glob over the whole name: `*` is any text, `?` any one character.
fn glob(text: &str) -> String {
    let escaped = text.split('*').map(|part| part.split('?').map(regex_lite::escape).collect::<Vec<_>>().join("."));
    format!("(?s)^{}$", escaped.collect::<Vec<_>>().join(".*"))
}
