"""What is measured on: generated checkpoints, the same bytes for the same arguments."""

import json
import shutil
from pathlib import Path

import numpy as np

TOKENIZER = Path(__file__).resolve().parents[2] / "tests/checkpoints/qwen3-moe-12e-bf16"
BLOCK = 1 << 22


def shard(path: Path, tensors: list[tuple[str, tuple[int, ...]]], seed: int) -> int:
    """Writes bfloat16 tensors of finite values between about 2^-9 and 2^-1; gives back how many bytes they have."""
    header, end = {}, 0
    for name, shape in tensors:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.Generator(np.random.SFC64(seed))
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for start in range(0, end, 2 * BLOCK):
            count = min(BLOCK, (end - start) // 2)
            bits = random.integers(0, 1 << 16, count, dtype=np.uint16)
            file.write(((bits & 0x83FF) | 0x3C00).tobytes())
    return end


def mixture(directory: Path, layers: int, experts: int, hidden: int, width: int, vocabulary: int = 4096) -> int:
    """A qwen3_moe checkpoint, one shard a layer, that mlx-lm loads too; gives back the bytes of its tensors."""
    directory.mkdir(parents=True)
    for file in TOKENIZER.iterdir():
        if file.suffix != ".safetensors" and not file.name.startswith("model"):
            shutil.copy(file, directory)
    heads = hidden // 128
    config = json.loads((TOKENIZER / "config.json").read_text()) | {
        "hidden_size": hidden, "head_dim": 128, "num_attention_heads": heads, "num_key_value_heads": heads,
        "num_hidden_layers": layers, "num_experts": experts, "num_experts_per_tok": 4, "vocab_size": vocabulary,
        "moe_intermediate_size": width, "intermediate_size": width,
    }
    (directory / "config.json").write_text(json.dumps(config))
    total, weight_map = 0, {}
    outer = [("model.embed_tokens.weight", (vocabulary, hidden)), ("lm_head.weight", (vocabulary, hidden)),
             ("model.norm.weight", (hidden,))]
    for number in range(layers + 1):
        tensors = outer if number == 0 else layer(f"model.layers.{number - 1}", experts, hidden, width)
        name = f"model-{number:05}.safetensors"
        total += shard(directory / name, tensors, number)
        weight_map |= {tensor: name for tensor, _ in tensors}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def layer(prefix: str, experts: int, hidden: int, width: int) -> list[tuple[str, tuple[int, ...]]]:
    attention = [(f"{prefix}.self_attn.{name}_proj.weight", (hidden, hidden)) for name in "qkvo"]
    norms = [(f"{prefix}.self_attn.{name}_norm.weight", (128,)) for name in "qk"]
    norms += [(f"{prefix}.{name}_layernorm.weight", (hidden,)) for name in ("input", "post_attention")]
    mlp = [(f"{prefix}.mlp.gate.weight", (experts, hidden))]
    for expert in range(experts):
        name = f"{prefix}.mlp.experts.{expert}"
        mlp += [(f"{name}.gate_proj.weight", (width, hidden)), (f"{name}.up_proj.weight", (width, hidden)),
                (f"{name}.down_proj.weight", (hidden, width))]
    return attention + norms + mlp


def shuffle(source: Path, target: Path) -> None:
    """The same checkpoint with the tensors of each shard in an order of chance, as a writer that goes by a hash leaves them."""
    target.mkdir()
    random = np.random.Generator(np.random.SFC64(7))
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, target)
            continue
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header, start = json.loads(file.read(length)), 8 + length
            names, moved, end = list(header), {}, 0
            random.shuffle(names)
            for name in names:
                begin, stop = header[name]["data_offsets"]
                moved[name] = header[name] | {"data_offsets": [end, end + stop - begin]}
                end += stop - begin
            text = json.dumps(moved).encode()
            text += b" " * (-len(text) % 8)
            with (target / path.name).open("wb") as out:
                out.write(len(text).to_bytes(8, "little") + text)
                for name in names:
                    begin, stop = header[name]["data_offsets"]
                    file.seek(start + begin)
                    out.write(file.read(stop - begin))


def blobs(directory: Path, count: int, size: int) -> int:
    """A checkpoint of `count` tensors of `size` bytes, each of which becomes a layer of its own."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"architectures":["OtherForCausalLM"],"model_type":"other"}')
    tensors = [(f"blocks.{number:04}.weight", (size // 2,)) for number in range(count)]
    return shard(directory / "model.safetensors", tensors, count)
