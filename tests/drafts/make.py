"""Writes the drafts of the tests: small ones, with the names and shapes that real ones have.

    pip install numpy ml_dtypes safetensors
    python tests/drafts/make.py

The names are those that Ollama v0.33 loads: `x/models/dflash/dflash.go` and `x/models/gemma4/assistant.go`.
`gemma4-assistant-bf16` is for `gemma4-dense-vl-bf16` and `dflash-bf16` for `qwen3_5-vl-bf16` among the
checkpoints. The values are random, and always the same.
"""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

PLACE = Path(__file__).parent
HIDDEN, VOCABULARY, WIDTH, HEADS, KV_HEADS, HEAD = 64, 320, 128, 4, 2, 32
LAYERS = 2


def block(prefix, norms, kv):
    yield f"{prefix}.self_attn.q_proj.weight", [HEADS * HEAD, HIDDEN]
    for projection in ["k_proj", "v_proj"] if kv else []:
        yield f"{prefix}.self_attn.{projection}.weight", [KV_HEADS * HEAD, HIDDEN]
    yield f"{prefix}.self_attn.o_proj.weight", [HIDDEN, HEADS * HEAD]
    for norm in ["q_norm", "k_norm"] if kv else ["q_norm"]:
        yield f"{prefix}.self_attn.{norm}.weight", [HEAD]
    yield f"{prefix}.mlp.gate_proj.weight", [WIDTH, HIDDEN]
    yield f"{prefix}.mlp.up_proj.weight", [WIDTH, HIDDEN]
    yield f"{prefix}.mlp.down_proj.weight", [HIDDEN, WIDTH]
    for norm in norms:
        yield f"{prefix}.{norm}.weight", [HIDDEN]


def dflash():
    yield "fc.weight", [HIDDEN, 2 * HIDDEN]
    yield "hidden_norm.weight", [HIDDEN]
    yield "norm.weight", [HIDDEN]
    for layer in range(LAYERS):
        yield from block(f"layers.{layer}", ["input_layernorm", "post_attention_layernorm"], kv=True)


def assistant():
    yield "pre_projection.weight", [HIDDEN, 2 * HIDDEN]
    yield "post_projection.weight", [HIDDEN, HIDDEN]
    yield "model.embed_tokens.weight", [VOCABULARY, HIDDEN]
    yield "model.norm.weight", [HIDDEN]
    norms = ["input", "post_attention", "pre_feedforward", "post_feedforward"]
    for layer in range(LAYERS):
        # It has no keys and values of its own: it attends to those of its target.
        yield from block(f"model.layers.{layer}", [f"{norm}_layernorm" for norm in norms], kv=False)
        yield f"model.layers.{layer}.layer_scalar", [1]


def sizes():
    return {
        "head_dim": HEAD,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-06,
        "vocab_size": VOCABULARY,
    }


DRAFTS = {
    "dflash-bf16": (
        dflash,
        {
            "architectures": ["DFlashDraftModel"],
            "block_size": 4,
            "dflash_config": {"mask_token_id": 3, "target_layer_ids": [0, 1]},
            "model_type": "qwen3",
            "rope_theta": 10000,
            **sizes(),
        },
    ),
    "gemma4-assistant-bf16": (
        assistant,
        {
            "architectures": ["Gemma4AssistantForCausalLM"],
            "backbone_hidden_size": HIDDEN,
            "model_type": "gemma4_assistant",
            "text_config": {"model_type": "gemma4_text", **sizes()},
        },
    ),
}

for name, (tensors, config) in DRAFTS.items():
    random = np.random.default_rng(sum(name.encode()))
    place = PLACE / name
    place.mkdir(exist_ok=True)
    values = {key: (random.standard_normal(shape) * 0.02).astype(ml_dtypes.bfloat16) for key, shape in tensors()}
    save_file(values, place / "model.safetensors")
    files = {"config.json": config, "generation_config.json": {"do_sample": True, "top_k": 20}}
    for file, content in files.items():
        (place / file).write_text(json.dumps(content, indent=2) + "\n")
