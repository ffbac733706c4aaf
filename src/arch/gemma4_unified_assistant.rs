//! The drafts of Gemma 4 Unified: those of Gemma 4 under classes that Ollama learned later.

use super::{Family, gemma4_assistant};

pub(super) static FAMILY: Family = Family {
    name: "gemma4_unified_assistant",
    architectures: &["Gemma4UnifiedAssistantForCausalLM"],
    model_types: &["gemma4_unified_assistant"],
    // The first release with the class.
    requires: Some("0.30.3"),
    ..gemma4_assistant::FAMILY
};
