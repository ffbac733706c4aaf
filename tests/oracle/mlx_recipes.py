"""Writes which scheme mlx-lm gives each tensor of some test checkpoints, by recipe.

    pip install 'mlx[cpu]==0.32.4' mlx-lm==0.32.2
    python tests/oracle/mlx_recipes.py tests/vectors/mlx-recipes.txt

Each line is `<checkpoint> <recipe> <path of the module> <scheme>`, the scheme as kiln spells it. What is not
listed is not quantized. `mlx-default` is a conversion with a predicate that takes everything, at int4, and
`by-hand` one with a predicate of a user's own. The checkpoints are some whose modules have the same names in
mlx-lm as in kiln's profile `ollama`.
"""

import sys
from pathlib import Path

from mlx.utils import tree_flatten
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.utils import load_model, quantize_model

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
MIXED = ["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"]
RECIPES = {
    "llama-192x320-bf16": ["mlx_default", *MIXED],
    "llama-8l-bf16": ["mlx_default", *MIXED],
    "llama-tied-bf16": ["mlx_default", *MIXED],
    "mixtral-bf16": ["mlx_default", *MIXED],
    "qwen3-moe-12e-bf16": ["mlx_default", *MIXED],
    "qwen3-moe-bf16": ["by_hand"],
}


def by_hand(path, module):
    if path.endswith("mlp.gate") or ".layers.0.self_attn." in path:
        return False
    if "down_proj" in path:
        return {"group_size": 32, "bits": 6, "mode": "affine"}
    if "embed_tokens" in path or "lm_head" in path:
        return {"group_size": 64, "bits": 8, "mode": "affine"}
    return True


def scheme(bits, group_size):
    return f"int{bits}" if bits in (4, 8) and group_size == 64 else f"affine{bits}-g{group_size}"


lines = []
for name, recipes in RECIPES.items():
    for recipe in recipes:
        model, config = load_model(CHECKPOINTS / name, lazy=True)
        if recipe == "mlx_default":
            predicate = lambda path, module: True
        elif recipe == "by_hand":
            predicate = by_hand
        else:
            predicate = mixed_quant_predicate_builder(recipe, model)
        model, config = quantize_model(model, config, 64, 4, quant_predicate=predicate)
        overrides = config["quantization"]
        for parameter, _ in sorted(tree_flatten(model.parameters())):
            path, _, kind = parameter.rpartition(".")
            if kind == "scales":
                found = overrides.get(path, overrides)
                lines.append(f"{name} {recipe.replace('_', '-')} {path} {scheme(found['bits'], found['group_size'])}\n")
Path(sys.argv[1]).write_text("".join(lines))
