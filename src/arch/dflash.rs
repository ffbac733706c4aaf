//! DFlash drafts, which propose a block of tokens at once from hidden states of their target; they use its embedding and
//! its head. Ollama looks for their tensors under the names of the source, behind `draft.`.

use super::policy::draft_head;
use super::required::{self, Need, When};
use super::{Family, ORDINARY};

pub(super) static FAMILY: Family = Family {
    name: "dflash",
    architectures: &["DFlashDraftModel", "DFlashLagunaForCausalLM", "MuseGlimmerAssistantModel"],
    model_types: &["muse_glimmer_assistant"],
    embedding: "",
    model: &[
        // As published, or as `transformers` names them.
        Need(
            When::Always,
            &[&["fc.weight", "hidden_norm.weight"], &["encoder.fc.weight", "encoder.output_norm_enc.weight"]],
        ),
        Need(When::Always, &[&["norm.weight"]]),
    ],
    layer: &[
        Need(When::Always, required::NORMS),
        Need(When::Always, required::ATTENTION),
        Need(When::Always, required::QUERY_KEY_NORMS),
        Need(When::Always, &[required::SPLIT_DENSE]),
    ],
    policy: draft_head,
    // The first release with the three classes.
    requires: Some("0.32.7"),
    ..ORDINARY
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{ModelFacts, Question};
    use crate::quant::Scheme;

    #[test]
    fn a_draft_gives_its_embedding_and_its_head_the_base() {
        let config = serde_json::json!({ "architectures": ["Gemma4AssistantForCausalLM"], "num_hidden_layers": 4 });
        let facts = ModelFacts::of(&config);
        let assistant = Family::of(&facts);
        assert!(assistant.is_draft() && FAMILY.is_draft());
        let (int4, nvfp4, mxfp8) = (Scheme::INT4, Scheme::Nvfp4, Scheme::Mxfp8);
        for (base, name, shape, expected) in [
            (int4, "model.embed_tokens.weight", &[320, 64][..], Some(int4)),
            (nvfp4, "lm_head.weight", &[320, 64], Some(nvfp4)),
            (int4, "model.embed_tokens.weight", &[320, 48], None),
            (nvfp4, "model.layers.0.mlp.gate_proj.weight", &[64, 64], Some(nvfp4)),
            (nvfp4, "pre_projection.weight", &[64, 128], Some(nvfp4)),
        ] {
            let question = Question { base, name, shape, facts: &facts };
            assert_eq!(assistant.choose(&question).scheme, expected, "{base} {name}");
            assert_eq!(FAMILY.choose(&question).scheme, expected, "{base} {name}");
            // Whatever serves as a draft.
            let llama = Family::of(&ModelFacts::of(&serde_json::json!({ "architectures": ["LlamaForCausalLM"] })));
            assert_eq!(llama.choose_as_draft(&question).scheme, expected, "{base} {name}");
        }
        // The rest is up to the family.
        let name = "layers.0.self_attn.v_proj.weight";
        let question = Question { base: nvfp4, name, shape: &[64, 64], facts: &facts };
        assert_eq!(FAMILY.choose(&question).scheme, Some(mxfp8));
    }
}
