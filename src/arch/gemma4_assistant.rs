//! The drafts of Gemma 4: a few layers without keys and values, which they borrow from their target, between two
//! projections. Ollama looks for their tensors under the names of the source, behind `draft.`.

use super::gemma3::GEMMA_NORMS;
use super::policy::draft_head;
use super::required::{self, Need, When};
use super::{Family, ORDINARY, gemma4};

pub(super) static FAMILY: Family = Family {
    name: "gemma4_assistant",
    architectures: &["Gemma4AssistantForCausalLM"],
    model_types: &["gemma4_assistant"],
    model: &[
        Need(When::Always, &[&["norm.weight"]]),
        Need(When::Always, &[&["/pre_projection.weight", "/post_projection.weight"]]),
        Need(
            When::Config(&["use_ordered_embeddings"]),
            &[&["/masked_embedding.centroids.weight", "/masked_embedding.token_ordering"]],
        ),
    ],
    layer: &[
        Need(When::Always, GEMMA_NORMS),
        Need(When::Always, &[&["self_attn.q_proj.weight", "self_attn.q_norm.weight", "self_attn.o_proj.weight"]]),
        Need(When::Always, &[required::SPLIT_DENSE]),
    ],
    policy: |question| draft_head(question).or_else(|| gemma4::choose(question)),
    rules: "embedding and head at the base; the rest as gemma4",
    requires: Some("0.23.1"),
    ..ORDINARY
};
