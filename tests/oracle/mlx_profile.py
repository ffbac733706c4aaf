"""Holds profile `mlx` against mlx-lm itself: what `mlx_lm.convert` makes of a checkpoint, and what it loads.

    pip install mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2
    cargo build
    python tests/oracle/mlx_profile.py target/debug/kiln

Each checkpoint is converted by both. Every array must be the same by name, type, shape and bytes, and the config by
value; mlx-lm must load kiln's directory strictly, with the tokenizer, and compute the same finite logits from both.
Exits with 1 on any difference. That a difference is noticed is shown first, with one bit flipped.
"""

import argparse
import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
from mlx_lm.utils import load_model, load_tokenizer

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
TOKENS = [[1, 5, 17, 42, 99, 7, 250, 3]]
MODES = {
    "none": {},
    "int4": {"quantize": True},
    "int8": {"quantize": True, "q_bits": 8},
    "affine3-g32": {"quantize": True, "q_bits": 3, "q_group_size": 32},
    "mxfp4": {"quantize": True, "q_mode": "mxfp4"},
    "mxfp8": {"quantize": True, "q_mode": "mxfp8"},
    "nvfp4": {"quantize": True, "q_mode": "nvfp4"},
    "mixed-3-6": {"quantize": True, "q_group_size": 64, "quant_predicate": "mixed_3_6"},
}
# The checkpoint, what is asked for, and what is changed in its config.
CASES = [("llama-untied-bf16", mode, {}) for mode in MODES if mode != "mixed-3-6"] + [
    ("llama-8l-bf16", "mixed-3-6", {}),
    ("llama-untied-bf16", "none", {"torch_dtype": "float16"}),
    ("llama-untied-bf16", "int4", {"torch_dtype": "float32"}),
    ("llama-tied-bf16", "int4", {}),
    ("llama-f16", "int4", {"torch_dtype": "bfloat16"}),
    ("llama-f32", "none", {"torch_dtype": "bfloat16"}),
    ("llama-f32", "nvfp4", {"torch_dtype": "float16"}),
    ("mistral-bf16", "int4", {}),
    ("qwen3-moe-bf16", "none", {}),
    ("qwen3-moe-bf16", "int4", {}),
    ("qwen3-moe-bf16", "int8", {}),
    ("qwen3-moe-bf16", "nvfp4", {}),
    ("qwen3-moe-12e-bf16", "int4", {}),
    ("qwen3-next-bf16", "none", {}),
    ("qwen3-next-bf16", "int4", {}),
    ("qwen3_5-vl-bf16", "none", {}),
    ("qwen3_5-vl-bf16", "int4", {}),
    ("qwen3_5-moe-vl-stacked-bf16", "none", {}),
    ("qwen3_5-moe-vl-stacked-bf16", "int4", {}),
    ("qwen3_5-moe-vl-stacked-bf16", "mxfp8", {}),
    ("gemma3-text-bf16", "int4", {}),
    ("gemma4-dense-vl-bf16", "int4", {}),
    ("gemma4-moe-vl-bf16", "none", {}),
    ("gemma4-moe-vl-bf16", "int4", {}),
    ("glm4-moe-lite-bf16", "none", {}),
    ("glm4-moe-lite-bf16", "int4", {}),
    ("deepseek-v3-bf16", "int4", {}),
    ("fp8-deepseek-v3", "none", {}),
    ("fp8-deepseek-v3", "int4", {}),
    ("mixtral-bf16", "int4", {}),
    ("nemotron-h-bf16", "none", {}),
    ("nemotron-h-bf16", "int4", {}),
    ("laguna-bf16", "int4", {}),
    ("gpt-oss-mxfp4", "none", {}),
    ("mlx-gemma4-moe-q4", "none", {}),
    ("mlx-qwen3-moe-mixed", "none", {}),
]


def arrays(directory):
    """Every array that mlx-lm would load: its type, shape and bytes."""
    found = {}
    for file in sorted(directory.glob("model*.safetensors")):
        for name, array in mx.load(str(file)).items():
            integer = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}[array.dtype.size]
            found[name] = (str(array.dtype), tuple(array.shape), np.array(array.view(integer)).tobytes())
    return found


def differences(ours, theirs):
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def logits(directory):
    model, _ = load_model(directory, strict=True)
    # MLX multiplies stacks of experts on the CPU in this type only; widening changes no value.
    model.set_dtype(mx.float32)
    return np.array(model(mx.array(TOKENS)).astype(mx.float32))


def kiln(program, store, source, mode, directory):
    ask = ["--recipe", mode] if mode.startswith("mixed") else [] if mode == "none" else ["--quantize", mode]
    run = [program, "--store", store, "--quiet"]
    subprocess.run([*run, "create", "oracle:model", source, "--profile", "mlx", *ask], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*run, "checkout", "oracle:model", directory], check=True, stdout=subprocess.DEVNULL)


def compare(program, place, name, mode, changes):
    """What is wrong, in words."""
    source, theirs, ours = place / "source", place / "theirs", place / "ours"
    shutil.copytree(CHECKPOINTS / name, source)
    config = source / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with contextlib.redirect_stdout(io.StringIO()):
        mlx_lm.convert(str(source), str(theirs), **MODES[mode])
    kiln(program, place / "store", source, mode, ours)
    wrong = [f"{array} differs" for array in differences(arrays(ours), arrays(theirs))]
    mine, expected = (json.loads((directory / "config.json").read_text()) for directory in (ours, theirs))
    wrong += [f"config: {key}" for key in mine.keys() | expected.keys() if mine.get(key, 0) != expected.get(key, 0)]
    load_tokenizer(ours)
    one, other = logits(ours), logits(theirs)
    if not np.isfinite(one).all():
        wrong.append("logits are not finite")
    if one.tobytes() != other.tobytes():
        wrong.append(f"logits differ by {np.abs(one - other).max()}")
    return wrong


def control(program, place):
    """One flipped bit must be seen."""
    ours = place / "ours"
    kiln(program, place / "store", CHECKPOINTS / "llama-untied-bf16", "int4", ours)
    before = arrays(ours)
    file = ours / "model-lm_head.safetensors"
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.unlink()  # a link to the store's own
    file.write_bytes(changed)
    return differences(before, arrays(ours)) == ["lm_head.weight"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kiln", type=Path)
    parser.add_argument("only", nargs="*", help="checkpoints to compare; all when none is named")
    arguments = parser.parse_args()
    mx.set_default_device(mx.cpu)
    program = arguments.kiln.resolve()
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        if not control(program, Path(place)):
            print("a flipped bit was not noticed")
            return 1
    cases = [case for case in CASES if not arguments.only or case[0] in arguments.only]
    for name, mode, changes in cases:
        with tempfile.TemporaryDirectory() as place:
            wrong = compare(program, Path(place), name, mode, changes)
        failed += bool(wrong)
        print(f"{name} {mode} {changes or ''}: {'; '.join(wrong[:4]) or 'equal'}", flush=True)
    print(f"{len(cases) - failed} of {len(cases)} conversions are equal")
    return 1 if failed or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
