"""A model in Ollama's own store, quantized and written by MLX, gives the layers that a fresh import gives.

    pip install 'mlx[cpu]==0.32.4'
    cargo build
    python tests/oracle/ollama_store.py target/debug/kiln tests/checkpoints/qwen3-moe-12e-bf16 [--scheme int4]

The plan of `kiln create --dry-run` says which tensors get which scheme. MLX stacks the experts, quantizes and writes the
safetensors files as Ollama of August 2026 names them: `<L>.mlp.experts.<projection>.weight` with `.scale` and `.bias`, a
file for each, in MLX's own header and order. From that store kiln must make the layers that it makes of the checkpoint.
Exits with 1 on any difference.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx

ARGUMENTS = {  # mode, group size, bits
    "int4": ("affine", 64, 4),
    "int8": ("affine", 64, 8),
    "nvfp4": ("nvfp4", 16, 4),
    "mxfp4": ("mxfp4", 32, 4),
    "mxfp8": ("mxfp8", 32, 8),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kiln", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--scheme", default="int4", choices=ARGUMENTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        environment = {"HOME": str(place), "OLLAMA_MODELS": str(place / "models"), "KILN_STORE": str(place / "store")}

        def kiln(*words):
            command = [arguments.kiln.resolve(), *words, "--json", "--progress", "off"]
            ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
            return json.loads(ran.stdout.splitlines()[-1])

        checkpoint = str(arguments.checkpoint.resolve())
        plan = kiln("create", "fresh", checkpoint, "--quantize", arguments.scheme, "--dry-run")
        write(place / "models", arguments.checkpoint, plan)
        kiln("create", "fresh", checkpoint, "--quantize", arguments.scheme)
        created = kiln("create", "again", "ollama:demo")
        fresh, again = ({layer["name"]: layer["digest"] for layer in kiln("show", name)["layers"]} for name in ("fresh", "again"))
        compared = [name for name in again if name != "kiln.lock"]
        differing = [name for name in compared if fresh.get(name) != again[name]]
        moved = len(created["republished"]["moved"])
        print(f"{len(compared)} layers compared, {len(differing)} differ; {moved} moved")
        tensors = {tensor["name"] for blob in plan["blobs"] for tensor in blob["tensors"]}
        if differing or len(compared) < len(plan["blobs"]) or not tensors:
            sys.exit(f"differing: {differing}")


def write(root, checkpoint, plan):
    """Puts the planned tensors into a store of Ollama's."""
    (root / "blobs").mkdir(parents=True)
    source = {}
    for shard in sorted(checkpoint.glob("model*.safetensors")):
        source.update(mx.load(str(shard)))
    layers = []

    def add(media_type, data, name=None):
        digest = hashlib.sha256(data).hexdigest()
        (root / "blobs" / f"sha256-{digest}").write_bytes(data)
        named = {"name": name} if name else {}
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data), **named}

    for tensor in (tensor for blob in plan["blobs"] for tensor in blob["tensors"]):
        name, experts = tensor["name"], tensor["name"].replace(".switch_mlp.", ".experts.")
        if name in source:
            values = source[name]
        else:
            one = experts.replace(".experts.", ".experts.{}.")
            values = mx.stack([source[one.format(number)] for number in range(tensor["shape"][0])])
        arrays, metadata = {experts: values}, {}
        if tensor["scheme"]:
            mode, group, bits = ARGUMENTS[tensor["scheme"]]
            parts = mx.quantize(values, group_size=group, bits=bits, mode=mode, stream=mx.cpu)
            arrays = dict(zip([experts, f"{experts}.scale", f"{experts}.bias"], parts))
            metadata = {"quant_type": tensor["scheme"], "group_size": str(group)}
        file = root / "one.safetensors"
        mx.save_safetensors(str(file), arrays, metadata)
        layers.append(add("application/vnd.ollama.image.tensor", file.read_bytes(), experts))
    os.remove(root / "one.safetensors")
    for file in sorted(checkpoint.glob("*.json")):
        if not file.name.endswith(".index.json"):
            layers.append(add("application/vnd.ollama.image.json", file.read_bytes(), file.name))
    config = b'{"model_format":"safetensors","model_family":"","model_families":null,"model_type":"","file_type":"","architecture":"","os":""}'
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": add("application/vnd.docker.container.image.v1+json", config),
        "layers": layers,
    }
    path = root / "manifests/registry.ollama.ai/library/demo/latest"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(manifest, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
