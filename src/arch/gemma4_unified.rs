//! Gemma 4 Unified: the names, the experts and the policy of Gemma 4, under classes that Ollama learned later.

use super::{Family, gemma4};

pub(super) static FAMILY: Family = Family {
    name: "gemma4_unified",
    architectures: &["Gemma4UnifiedForCausalLM", "Gemma4UnifiedForConditionalGeneration"],
    model_types: &["gemma4_unified", "gemma4_unified_text"],
    // The first release with these classes.
    requires: Some("0.30.3"),
    ..gemma4::FAMILY
};
