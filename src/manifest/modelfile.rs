//! A Modelfile: what Ollama stores beside the weights, as `TEMPLATE`, `SYSTEM`, `LICENSE`, `PARAMETER`,
//! `PARSER`, `RENDERER`, `REQUIRES`, and names with `FROM` and `DRAFT`. Text in, values and layers out;
//! quoting and types are those of Ollama v0.33 (`docs/formats.md`, "Modelfiles").

use std::collections::{BTreeMap, BTreeSet};

use super::Version;
use crate::error::{Error, Result, quoted};
use crate::json;

/// The lowest version of Ollama that loads models of safetensors layers.
const LOWEST: &str = "0.19.0";

/// What a Modelfile says. Of an instruction that is there twice, the last counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Modelfile {
    /// `FROM`: the checkpoint, as it was written.
    pub from: Option<String>,
    /// `DRAFT`: the draft's checkpoint, as it was written.
    pub draft: Option<String>,
    /// `PARSER`, `RENDERER` and `REQUIRES`.
    pub names: Names,
    /// What becomes a layer, in the order of the layers.
    pub layers: Vec<(Setting, Vec<u8>)>,
    /// What the user should know about it.
    pub notes: Vec<String>,
}

/// What the config blob says instead of what the checkpoint lets kiln infer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Which parser reads answers.
    pub parser: Option<String>,
    /// Which renderer writes prompts.
    pub renderer: Option<String>,
    /// The lowest runtime version that loads the model.
    pub requires: Option<String>,
}

/// What a layer sets that comes from a Modelfile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// The prompt template.
    Template,
    /// The system prompt.
    System,
    /// A licence.
    License,
    /// Parameters of the runtime: a JSON object.
    Parameters,
}

impl Setting {
    /// Every setting, in the order of the layers.
    pub const ALL: [Self; 4] = [Self::Template, Self::System, Self::License, Self::Parameters];

    /// The name of the layer.
    pub fn name(self) -> &'static str {
        match self {
            Self::Template => "modelfile/template",
            Self::System => "modelfile/system",
            Self::License => "modelfile/license",
            Self::Parameters => "modelfile/params.json",
        }
    }

    /// The setting whose layer has this name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|setting| setting.name() == name)
    }
}

/// Parameters that Ollama takes no more, and ignores.
const DEPRECATED: [&str; 9] = [
    "penalize_newline",
    "low_vram",
    "f16_kv",
    "logits_all",
    "vocab_only",
    "use_mlock",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
];

const FLOATS: [&str; 7] =
    ["frequency_penalty", "min_p", "presence_penalty", "repeat_penalty", "temperature", "top_p", "typical_p"];
const INTEGERS: [&str; 11] = [
    "draft_num_predict",
    "main_gpu",
    "num_batch",
    "num_ctx",
    "num_gpu",
    "num_keep",
    "num_predict",
    "num_thread",
    "repeat_last_n",
    "seed",
    "top_k",
];

/// A parameter's value: JSON, or texts that are gathered.
enum Parameter {
    Json(String),
    Texts(Vec<String>),
}

impl Modelfile {
    /// Reads a Modelfile. `name` is what messages call it, as a path.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Input`], with the line, for what Ollama refuses, and for an `ADAPTER`.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let mut modelfile = Self::default();
        let mut texts: BTreeMap<Setting, String> = BTreeMap::new();
        let mut parameters: BTreeMap<String, Parameter> = BTreeMap::new();
        let mut notes = BTreeSet::new();
        for instruction in instructions(text.strip_prefix('\u{feff}').unwrap_or(text)) {
            let wrong = |line, sentence| {
                let message = format!("Line {line} of the Modelfile {} is wrong", quoted(name));
                Error::input(message).caused_by(Error::input(sentence))
            };
            let Instruction { line, name: kind, key, value } =
                instruction.map_err(|(line, sentence)| wrong(line, sentence.to_owned()))?;
            let wrong = |sentence| wrong(line, sentence);
            // An empty value takes an earlier one back.
            let value_or_none = (!value.is_empty()).then(|| value.clone());
            match &*kind {
                "from" => modelfile.from = value_or_none,
                "draft" => modelfile.draft = value_or_none,
                "parser" => modelfile.names.parser = value_or_none,
                "renderer" => modelfile.names.renderer = value_or_none,
                "requires" => modelfile.names.requires = Some(requires(&value).map_err(wrong)?),
                "template" => drop(texts.insert(Setting::Template, value)),
                "system" => drop(texts.insert(Setting::System, value)),
                "license" => drop(texts.insert(Setting::License, value)),
                "adapter" => return Err(wrong("Adapters are not supported: merge it into the weights".to_owned())),
                "message" => {
                    notes.insert("`MESSAGE` is left out, as Ollama does for these models".to_owned());
                }
                _ if DEPRECATED.contains(&&*key) => {
                    notes.insert(format!("`PARAMETER {key}` is left out: Ollama has it no more"));
                }
                _ => match (parameters.get_mut(&key), parameter(&key, value).map_err(wrong)?) {
                    (Some(Parameter::Texts(texts)), Parameter::Texts(more)) => texts.extend(more),
                    (_, parameter) => drop(parameters.insert(key, parameter)),
                },
            }
        }
        let texts = texts.into_iter().filter(|(_, text)| !text.is_empty());
        modelfile.layers = texts.map(|(setting, text)| (setting, text.into_bytes())).collect();
        if !parameters.is_empty() {
            modelfile.layers.push((Setting::Parameters, encode(&parameters)));
        }
        modelfile.notes = notes.into_iter().collect();
        Ok(modelfile)
    }
}

/// One instruction and the line it begins on.
struct Instruction {
    line: usize,
    /// In lower case.
    name: String,
    /// The name of a parameter, the role of a message, or nothing.
    key: String,
    value: String,
}

/// Every instruction of `text`, up to the first that is none.
fn instructions(text: &str) -> impl Iterator<Item = Result<Instruction, (usize, &'static str)>> {
    let mut rest = text;
    let mut failed = false;
    std::iter::from_fn(move || {
        while !failed {
            rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
            match rest.strip_prefix('#') {
                Some(comment) => rest = comment.trim_start_matches(|c| !is_newline(c)),
                None if rest.is_empty() => return None,
                None => {
                    let line = 1 + text[..text.len() - rest.len()].matches('\n').count();
                    let parsed = instruction(rest).map(|(name, key, value, behind)| {
                        rest = behind;
                        Instruction { line, name, key, value }
                    });
                    failed = parsed.is_err();
                    return Some(parsed.map_err(|sentence| (line, sentence)));
                }
            }
        }
        None
    })
}

/// The instruction that `text` begins with, in its parts, and what stands behind it.
fn instruction(text: &str) -> Result<(String, String, String, &str), &'static str> {
    const UNKNOWN: &str = "An instruction is `FROM`, `TEMPLATE`, `SYSTEM`, `LICENSE`, `PARAMETER`, `PARSER`, `RENDERER`, \
                           `REQUIRES`, `DRAFT`, `ADAPTER` or `MESSAGE`, and has a value";
    let (name, rest) = word(text, |c| c.is_ascii_alphabetic()).ok_or(UNKNOWN)?;
    let name = name.to_ascii_lowercase();
    let (key, rest) = match &*name {
        "parameter" => word(rest.trim_start_matches([' ', '\t']), |c| c.is_ascii_alphanumeric() || c == '_')
            .ok_or("A parameter has a name and a value")?,
        "message" => word(rest.trim_start_matches([' ', '\t']), |c| c.is_ascii_alphabetic())
            .filter(|(role, _)| ["system", "user", "assistant"].contains(role))
            .ok_or("The role of a message is `system`, `user` or `assistant`")?,
        "from" | "template" | "system" | "license" | "parser" | "renderer" | "requires" | "draft" | "adapter" => {
            ("", rest)
        }
        _ => return Err(UNKNOWN),
    };
    let (value, rest) = value(rest).ok_or("A quote is not closed")?;
    Ok((name, key.to_owned(), value, rest))
}

/// The characters at the beginning of `text`, when a space ends them; what stands behind that.
fn word(text: &str, is_part: impl Fn(char) -> bool) -> Option<(&str, &str)> {
    let (word, rest) = text.split_at(text.find(|c| !is_part(c))?);
    Some((word, rest.strip_prefix([' ', '\t'])?)).filter(|_| !word.is_empty())
}

/// The value at the beginning of `text`: up to the end of a line at which no quote is open.
fn value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    for (at, c) in text.char_indices() {
        if is_newline(c)
            && let Some(unquoted) = unquote(value.trim())
        {
            return Some((unquoted.to_owned(), &text[at..]));
        }
        if is_newline(c) || c == '\t' || !is_dropped(c) {
            value.push(c);
        }
    }
    Some((unquote(value.trim())?.to_owned(), ""))
}

fn is_newline(c: char) -> bool {
    c == '\r' || c == '\n'
}

/// What Ollama drops from values: what Go's `strconv.IsPrint` calls unprintable, as far as it is assigned.
/// Those are control characters, formats, spaces but the common one, private and surrogate code points.
fn is_dropped(c: char) -> bool {
    c.is_control()
        || c.is_whitespace() && c != ' '
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
            | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{e000}'..='\u{f8ff}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e007f}' | '\u{f0000}'..)
}

/// `text` without its quotes; `None` when they are open.
fn unquote(text: &str) -> Option<&str> {
    if let Some(rest) = text.strip_prefix("\"\"\"") {
        return rest.strip_suffix("\"\"\"");
    }
    match text.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"'),
        None => Some(text),
    }
}

fn requires(value: &str) -> Result<String, String> {
    let text = value.strip_prefix('v').unwrap_or(value);
    let version: Version = text.parse().map_err(|()| format!("{} is no version as `0.31.2` is", quoted(value)))?;
    if LOWEST.parse().is_ok_and(|lowest| version < lowest) {
        return Err(format!("{} is below {LOWEST}, the lowest that loads safetensors models", quoted(value)));
    }
    Ok(text.to_owned())
}

fn parameter(key: &str, value: String) -> Result<Parameter, String> {
    let is = |kind| format!("The parameter `{key}` is {kind}, not {}", quoted(&value));
    let json = if FLOATS.contains(&key) {
        value.parse().ok().and_then(float).ok_or_else(|| is("a number"))?
    } else if INTEGERS.contains(&key) {
        value.parse().map(|value: i64| value.to_string()).map_err(|_| is("a whole number"))?
    } else if key == "use_mmap" {
        match &*value {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => "true".to_owned(),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => "false".to_owned(),
            _ => return Err(is("`true` or `false`")),
        }
    } else if key == "stop" {
        return Ok(Parameter::Texts(vec![value]));
    } else {
        return Err(format!("There is no parameter {}", quoted(key)));
    };
    Ok(Parameter::Json(json))
}

/// A number as Go's encoder spells it: the shortest that reads back, with an exponent where it is very small
/// or very large; `None` for one that is not finite.
fn float(value: f32) -> Option<String> {
    let size = value.abs();
    let spelled = if size != 0.0 && !(1e-6..1e21).contains(&size) {
        let text = format!("{value:e}");
        if text.contains("e-") { text } else { text.replace('e', "e+") }
    } else {
        format!("{value}")
    };
    value.is_finite().then_some(spelled)
}

/// A JSON object as Go writes it: sorted, compact, with a newline at the end.
fn encode(parameters: &BTreeMap<String, Parameter>) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, parameter) in parameters {
        out.extend_from_slice(if out.is_empty() { b"{" } else { b"," });
        out.extend(json::to_canonical(key));
        out.push(b':');
        match parameter {
            Parameter::Json(text) => out.extend_from_slice(text.as_bytes()),
            Parameter::Texts(texts) => out.extend(json::to_canonical(texts)),
        }
    }
    out.extend_from_slice(b"}\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Modelfile {
        Modelfile::parse("Modelfile", text).unwrap_or_else(|error| panic!("{text}\n{}", error.chain()))
    }

    fn layer(modelfile: &Modelfile, setting: Setting) -> Option<&str> {
        let (_, bytes) = modelfile.layers.iter().find(|(found, _)| *found == setting)?;
        Some(std::str::from_utf8(bytes).unwrap())
    }

    #[test]
    fn values_end_where_ollama_ends_them() {
        for (text, expected) in [
            ("SYSTEM hello", Some("hello")),
            ("system\thello there  \n", Some("hello there")),
            ("SYSTEM   \"  hello  \"  ", Some("  hello  ")),
            ("SYSTEM \"a\nb\"", Some("a\nb")),
            ("SYSTEM \"\"\"a \"quoted\" \"b\"\"\"", Some("a \"quoted\" \"b")),
            ("SYSTEM \"\"\"\nfirst\n\n  second \n\"\"\"\n", Some("\nfirst\n\n  second \n")),
            ("SYSTEM \"\"\"a\r\nb\"\"\"\r\n", Some("a\r\nb")),
            ("SYSTEM a # no comment", Some("a # no comment")),
            ("# a comment\n\n  # another\nSYSTEM a", Some("a")),
            ("SYSTEM 'a'", Some("'a'")),
            ("SYSTEM say \"a\" and\n", Some("say \"a\" and")),
            ("SYSTEM \"\"", None),
            ("SYSTEM \n", None),
            ("SYSTEM a\nSYSTEM b", Some("b")),
            ("SYSTEM a\nSYSTEM \"\"", None),
            ("\u{feff}SYSTEM a", Some("a")),
            ("SYSTEM a\u{7}\u{a0}\u{200d}b\u{e9}\u{1f600}", Some("abé😀")),
            ("SYSTEM {{ .System }}\tx", Some("{{ .System }}\tx")),
        ] {
            assert_eq!(layer(&parse(text), Setting::System), expected, "{text:?}");
        }
    }

    #[test]
    fn every_instruction_has_its_place() {
        let modelfile = parse(
            "FROM ./model\nPARAMETER stop a\nLICENSE l\nSYSTEM s\nTEMPLATE t\nPARSER qwen3\nRENDERER r\nREQUIRES v0.20\n\
             DRAFT ../draft\nMESSAGE user hello there\nPARAMETER mirostat 1\nPARAMETER stop \"<b>\"\n",
        );
        let layers: Vec<Setting> = modelfile.layers.iter().map(|(setting, _)| *setting).collect();
        assert_eq!(layers, Setting::ALL);
        assert_eq!(layer(&modelfile, Setting::Parameters), Some("{\"stop\":[\"a\",\"\\u003cb\\u003e\"]}\n"));
        let Names { parser, renderer, requires } = modelfile.names;
        assert_eq!([parser, renderer, requires].map(Option::unwrap), ["qwen3", "r", "0.20"]);
        assert_eq!([modelfile.from, modelfile.draft].map(Option::unwrap), ["./model", "../draft"]);
        assert_eq!(modelfile.notes.len(), 2, "{:?}", modelfile.notes);
    }

    #[test]
    fn parameters_are_json_as_go_writes_it() {
        for (value, expected) in [
            ("temperature 0.7", "{\"temperature\":0.7}\n"),
            ("temperature 1", "{\"temperature\":1}\n"),
            ("temperature 0.1000000015", "{\"temperature\":0.1}\n"),
            ("top_p 1e-7", "{\"top_p\":1e-7}\n"),
            ("top_p 0.000001", "{\"top_p\":0.000001}\n"),
            ("min_p 1e21", "{\"min_p\":1e+21}\n"),
            ("min_p 1e20", "{\"min_p\":100000000000000000000}\n"),
            ("typical_p -0", "{\"typical_p\":-0}\n"),
            ("num_ctx 4096", "{\"num_ctx\":4096}\n"),
            ("seed -1", "{\"seed\":-1}\n"),
            ("use_mmap T", "{\"use_mmap\":true}\n"),
            ("main_gpu 0", "{\"main_gpu\":0}\n"),
            ("stop \" a \"", "{\"stop\":[\" a \"]}\n"),
            ("top_k 1\nPARAMETER min_p 0.5\nPARAMETER top_k 2", "{\"min_p\":0.5,\"top_k\":2}\n"),
        ] {
            let modelfile = parse(&format!("PARAMETER {value}"));
            assert_eq!(layer(&modelfile, Setting::Parameters), Some(expected), "{value}");
        }
    }

    #[test]
    fn what_ollama_refuses_is_refused_with_its_line() {
        for (text, line, sentence) in [
            ("SYSTEM a\nFORM b", 2, "An instruction is"),
            ("SYSTEM", 1, "An instruction is"),
            ("SYSTEM\n", 1, "An instruction is"),
            ("SYSTEM: a", 1, "An instruction is"),
            ("\n\nSYSTEM \"\"\"a\n", 3, "A quote is not closed"),
            ("SYSTEM \"a", 1, "A quote is not closed"),
            ("PARAMETER temperature", 1, "A parameter has a name and a value"),
            ("PARAMETER temperature hot", 1, "The parameter `temperature` is a number, not `hot`"),
            ("PARAMETER temperature 1e40", 1, "The parameter `temperature` is a number"),
            ("PARAMETER temperature NaN", 1, "The parameter `temperature` is a number"),
            ("PARAMETER num_ctx 1.5", 1, "The parameter `num_ctx` is a whole number, not `1.5`"),
            ("PARAMETER use_mmap yes", 1, "The parameter `use_mmap` is `true` or `false`, not `yes`"),
            ("SYSTEM a\nPARAMETER Temperature 1", 2, "There is no parameter `Temperature`"),
            ("MESSAGE robot hello", 1, "The role of a message is"),
            ("REQUIRES new", 1, "`new` is no version"),
            ("REQUIRES 0.18.9", 1, "`0.18.9` is below 0.19.0"),
            ("REQUIRES 0.19.0-rc1", 1, "`0.19.0-rc1` is below 0.19.0"),
            ("ADAPTER ./lora", 1, "Adapters are not supported"),
        ] {
            let error = Modelfile::parse("Modelfile", text).unwrap_err();
            let expected = format!("Line {line} of the Modelfile `Modelfile` is wrong: {sentence}");
            assert!(error.chain().starts_with(&expected), "{text:?}\n{}", error.chain());
        }
    }
}
