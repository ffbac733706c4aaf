//! What Ollama's config blob says about a model: which parser and renderer fit, and what it can do.
//! The tables are those of Ollama v0.33 (`docs/formats.md`, "The config blob").

use std::borrow::Cow;

use super::ModelFacts;

/// The runtime's view of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Which parser reads the model's answers.
    pub parser: Option<Cow<'static, str>>,
    /// Which renderer writes its prompts.
    pub renderer: Option<Cow<'static, str>>,
    vision: bool,
    audio: bool,
    /// Whether the template or the class says that it thinks, whatever its parser.
    thinks: bool,
}

impl Runtime {
    /// The view of a model with these facts and this chat template.
    pub fn of(facts: &ModelFacts, template: Option<&str>) -> Self {
        let template = template.unwrap_or_default();
        let names = facts.identifiers.iter().find_map(|identifier| parser_and_renderer(identifier, template));
        let is_qwen3_5 = |identifier: &String| is_qwen3_5(&identifier.to_lowercase());
        Self {
            parser: names.map(|(parser, _)| parser.into()),
            renderer: names.map(|(_, renderer)| renderer.into()),
            vision: facts.vision,
            audio: facts.audio,
            thinks: thinks(template) || facts.identifiers.iter().any(is_qwen3_5),
        }
    }

    /// `completion`, `vision`, `audio`, `tools`, `thinking`, in this order.
    pub fn capabilities(&self) -> Vec<&'static str> {
        let (tools, thinking) = self.parser.as_deref().and_then(reads).unwrap_or_default();
        let all = [
            ("completion", true),
            ("vision", self.vision),
            ("audio", self.audio),
            ("tools", tools),
            ("thinking", thinking || self.thinks),
        ];
        all.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name).collect()
    }

    /// Whether there is a parser of this name.
    pub fn has_parser(name: &str) -> bool {
        reads(name).is_some()
    }
}

/// Whether a parser reads tool calls, and whether it reads reasoning.
fn reads(parser: &str) -> Option<(bool, bool)> {
    match parser {
        "passthrough" => Some((false, false)),
        "olmo3-think" => Some((false, true)),
        "functiongemma" | "gemma4-no-thinking" | "glm-ocr" | "lfm2" | "ministral" | "olmo3" | "qwen3"
        | "qwen3-coder" | "qwen3-vl-instruct" => Some((true, false)),
        "cogito" | "cohere" | "deepseek3" | "gemma4" | "glimmer" | "glm-4.7" | "harmony" | "laguna"
        | "lfm2-thinking" | "nemotron-3-nano" | "nemotron-3.5-nano" | "ornith" | "poolside-v1" | "qwen3-thinking"
        | "qwen3-vl-thinking" | "qwen3.5" => Some((true, true)),
        _ => None,
    }
}

fn is_qwen3_5(identifier: &str) -> bool {
    identifier.contains("qwen3_5") || identifier.contains("qwen3next")
}

fn thinks(template: &str) -> bool {
    let tags = template.contains("<think>") && template.contains("</think>");
    let splits =
        ["content.split('</think>')", "content.split(\"</think>\")"].iter().any(|split| template.contains(split));
    tags || splits && !template.contains("reasoning_content") && !template.contains("<SPECIAL_12>")
}

fn parser_and_renderer(identifier: &str, template: &str) -> Option<(&'static str, &'static str)> {
    let identifier = identifier.to_lowercase();
    let has = |part: &str| identifier.contains(part);
    let both = |name| Some((name, name));
    if identifier.starts_with("museglimmer") || identifier == "muse_glimmer" {
        both("glimmer")
    } else if has("laguna") {
        both(if template.contains("laguna_glm_thinking_v8") { "poolside-v1" } else { "laguna" })
    } else if has("cohere2moe") || has("cohere2_moe") {
        both("cohere")
    } else if has("glm4") || has("glm-4") {
        both("glm-4.7")
    } else if has("deepseek") {
        both("deepseek3")
    } else if has("gemma4") {
        both("gemma4")
    } else if is_qwen3_5(&identifier) {
        let effort = template.contains("resolved_reasoning_effort") && template.contains("preserve_thinking");
        Some(("qwen3.5", if effort { "qwen3.8" } else { "qwen3.5" }))
    } else if has("qwen3") {
        Some(("qwen3", "qwen3-coder"))
    } else if has("nemotronh") || has("nemotron_h") {
        both(if template.contains("{reasoning effort: efficient}") { "nemotron-3.5-nano" } else { "nemotron-3-nano" })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(class: &str, template: &str) -> Runtime {
        let facts = ModelFacts { identifiers: vec![class.to_owned()], ..ModelFacts::default() };
        Runtime::of(&facts, Some(template))
    }

    #[test]
    fn names_follow_the_class_and_the_template() {
        for (class, template, parser, renderer) in [
            ("LlamaForCausalLM", "", None, None),
            ("Qwen3MoeForCausalLM", "", Some("qwen3"), Some("qwen3-coder")),
            ("Qwen3_5MoeForConditionalGeneration", "", Some("qwen3.5"), Some("qwen3.5")),
            ("Qwen3NextForCausalLM", "resolved_reasoning_effort preserve_thinking", Some("qwen3.5"), Some("qwen3.8")),
            ("LagunaForCausalLM", "laguna_glm_thinking_v8", Some("poolside-v1"), Some("poolside-v1")),
            ("Glm4MoeLiteForCausalLM", "", Some("glm-4.7"), Some("glm-4.7")),
        ] {
            let got = runtime(class, template);
            assert_eq!((got.parser.as_deref(), got.renderer.as_deref()), (parser, renderer), "{class}");
        }
    }

    #[test]
    fn capabilities_come_in_one_order() {
        assert_eq!(runtime("LlamaForCausalLM", "").capabilities(), ["completion"]);
        assert_eq!(runtime("LlamaForCausalLM", "<think></think>").capabilities(), ["completion", "thinking"]);
        assert_eq!(runtime("Qwen3ForCausalLM", "").capabilities(), ["completion", "tools"]);
        let mut facts = ModelFacts { identifiers: vec!["Gemma4ForCausalLM".into()], ..ModelFacts::default() };
        (facts.vision, facts.audio) = (true, true);
        assert_eq!(Runtime::of(&facts, None).capabilities(), ["completion", "vision", "audio", "tools", "thinking"]);
    }
}
