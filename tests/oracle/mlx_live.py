"""Compares kiln's quantization with MLX's on the CPU, byte for byte, over thousands of random tensors.

    pip install 'mlx[cpu]==0.32.4' numpy
    cargo build --example quantize_raw
    python tests/oracle/mlx_live.py target/debug/examples/quantize_raw [--count 200] [--seed 1]

For every scheme and float type `--count` tensors are quantized by both, and as many are dequantized by
both: what MLX quantized, and random codes and scales. Needs mlx >= 0.32.3, where E4M3 NaN decodes to NaN.
Exits with 1 on any difference, and when fewer tensors were compared than promised.

The tensors travel in one file. Names are `<number>/<scheme>/<float>/<global scale>/<part>`, where the global
scale is the bits of a float32 or `-`, and the part is `w` (weights), `q`, `s`, `b` (codes, scales,
biases) or `d` (dequantized). A job with `w` is quantized, one with `q` is dequantized to `<float>`.
"""

import argparse
import collections
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import numpy as np

MLX_FLOAT = {"bf16": mx.bfloat16, "f16": mx.float16, "f32": mx.float32}
BITS = {"bf16": np.uint16, "f16": np.uint16, "f32": np.uint32}
MANTISSA = {"bf16": 7, "f16": 10, "f32": 23}
EXPONENTS = {"bf16": 255, "f16": 31, "f32": 255}
GLOBAL_SCALES = [1.0, 0.37, 2688.0, 1e-5, 3e4, -0.5, 1e-30, 1e30]


class Scheme:
    """A scheme of kiln and the arguments that ask MLX for it."""

    def __init__(self, name, mode, group_size, bits, global_scale=False):
        self.name, self.mode, self.group_size, self.bits = name, mode, group_size, bits
        self.global_scale = global_scale
        self.label = name + (" with global scale" if global_scale else "")

    def arguments(self, global_scale):
        arguments = dict(group_size=self.group_size, bits=self.bits, mode=self.mode)
        if global_scale is not None:
            arguments["global_scale"] = mx.array(global_scale, mx.float32)
        return arguments


SCHEMES = [Scheme(f"affine{b}-g{g}", "affine", g, b) for b in (2, 3, 4, 5, 6, 8) for g in (32, 64, 128)] + [
    Scheme("mxfp4", "mxfp4", 32, 4),
    Scheme("mxfp8", "mxfp8", 32, 8),
    Scheme("nvfp4", "nvfp4", 16, 4),
    Scheme("nvfp4", "nvfp4", 16, 4, global_scale=True),
]


def array_bytes(array):
    """The bytes of an MLX array, through integers so that NaN keeps its bits."""
    integer = {2: mx.uint16, 4: mx.uint32}.get(array.dtype.size)
    return np.array(array.view(integer) if integer else array).tobytes()


def from_bits(bits, name):
    return mx.array(bits).view(MLX_FLOAT[name])


def shape(random, group_size):
    """Rows, and perhaps experts, of whole groups; MLX wants a multiple of 32 elements in `nvfp4`."""
    lead = [int(random.integers(1, 7))] if random.random() < 0.7 else [int(random.integers(1, 4)) for _ in range(2)]
    return (*lead, max(group_size, 32) * int(random.integers(1, 7)))


def rounded(values, name):
    """Bits of the finite values nearest to `values`."""
    largest = {"bf16": 3.38e38, "f16": 65504.0, "f32": 3.4e38}[name]
    with np.errstate(all="ignore"):
        values = np.clip(values, -largest, largest).astype(np.float32)
    array = mx.array(values).astype(MLX_FLOAT[name])
    return np.array(array.view(mx.uint16 if BITS[name] == np.uint16 else mx.uint32))


def weights(random, kind, shape, name):
    """Bits of finite weights of one kind."""
    mantissa, exponents = MANTISSA[name], EXPONENTS[name]
    infinity, sign = exponents << mantissa, (exponents + 1) << mantissa
    signs = random.integers(0, 2, shape) * sign
    small = random.integers(0, 1 << mantissa, shape)
    rows = (*shape[:-1], 1)
    integers = {
        "raw bits": lambda: random.integers(0, infinity, shape) | signs,
        "subnormal": lambda: small | signs,
        "one binade": lambda: random.integers(0, exponents, rows) << mantissa | small | signs,
        "top binades": lambda: infinity - 1 - random.integers(0, 4 << mantissa, shape) | signs,
        "bottom binades": lambda: random.integers(0, 12 << mantissa, shape) | signs,
        "constant": lambda: np.broadcast_to(random.integers(0, infinity) | random.integers(0, 2) * sign, shape),
        "zeros": lambda: signs,
    }
    floats = {
        "normal": lambda: random.standard_normal(shape) * 0.02,
        "student": lambda: random.standard_t(3, shape) * 10.0 ** random.uniform(-6, 4),
        "uniform": lambda: random.uniform(-1, 1, shape),
        "one sign": lambda: random.uniform(0.5, 2, shape) * random.choice([-1, 1]),
        "row scales": lambda: random.standard_normal(shape) * 2.0 ** random.integers(-20, 14, rows),
        "outliers": lambda: random.standard_normal(shape) * np.where(random.random(shape) < 0.02, 300.0, 0.01),
        "sparse": lambda: random.standard_normal(shape) * (random.random(shape) < 0.05),
        "ties": lambda: random.integers(-64, 65, shape) * 0.25,
        "fp4 ties": lambda: np.where(np.arange(shape[-1]) % 16 == 0, 6.0, random.integers(-48, 49, shape) / 8),
        "fp8 ties": lambda: np.where(np.arange(shape[-1]) % 32 == 0, 448.0, random.integers(-896, 897, shape) / 2),
        "smallest scale": lambda: random.standard_normal(shape) * 2.0 ** random.uniform(-27, -19, rows),
    }
    if kind in integers:
        return np.ascontiguousarray(integers[kind]()).astype(BITS[name])
    return rounded(floats[kind](), name)


KINDS = ["normal", "raw bits", "subnormal", "student", "constant", "one binade", "top binades", "bottom binades",
         "zeros", "uniform", "one sign", "row scales", "outliers", "sparse", "ties", "fp4 ties", "fp8 ties",
         "smallest scale"]


class Oracle:
    """Collects jobs for kiln together with MLX's answers."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.inputs, self.expected, self.labels = {}, {}, {}

    def job(self, scheme, name, global_scale, label):
        bits = "-" if global_scale is None else str(np.float32(global_scale).view(np.uint32))
        job = f"{len(self.labels)}/{scheme.name}/{name}/{bits}"
        self.labels[job] = label
        return job

    def quantize(self, scheme, name, kind, global_scale):
        bits = weights(self.random, kind, shape(self.random, scheme.group_size), name)
        parts = mx.quantize(from_bits(bits, name), **scheme.arguments(global_scale))
        job = self.job(scheme, name, global_scale, ("quantize", scheme.label, name))
        self.inputs[f"{job}/w"] = mx.array(bits)
        for part, array in zip("qsb", parts):
            self.expected[f"{job}/{part}"] = array_bytes(array)
        return parts

    def dequantize(self, scheme, name, parts, global_scale):
        arguments = scheme.arguments(global_scale)
        if scheme.mode != "affine":
            arguments["dtype"] = MLX_FLOAT[name]
        restored = mx.dequantize(*parts, **arguments)
        assert restored.dtype == MLX_FLOAT[name], (scheme.label, name, restored.dtype)
        job = self.job(scheme, name, global_scale, ("dequantize", scheme.label, name))
        for part, array in zip("qsb", parts):
            integer = {2: mx.uint16, 4: mx.uint32}.get(array.dtype.size)
            self.inputs[f"{job}/{part}"] = array.view(integer) if integer else array
        self.expected[f"{job}/d"] = array_bytes(restored)

    def random_parts(self, scheme, name):
        """Codes and scales that no quantization need have produced."""
        *lead, columns = shape(self.random, scheme.group_size)
        codes = mx.array(self.random.integers(0, 1 << 32, (*lead, columns * scheme.bits // 32), dtype=np.uint32))
        groups = (*lead, columns // scheme.group_size)
        if scheme.mode != "affine":
            return codes, mx.array(self.random.integers(0, 256, groups, dtype=np.uint8))
        return codes, *(from_bits(weights(self.random, "raw bits", groups, name), name) for _ in range(2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    mx.set_default_device(mx.cpu)
    started = time.monotonic()

    oracle = Oracle(options.seed)
    promised = {}
    for scheme in SCHEMES:
        for name in MLX_FLOAT:
            promised["quantize", scheme.label, name] = options.count
            # With a global scale MLX's CPU backend gives float32 only, whatever was quantized.
            restored = "f32" if scheme.global_scale else name
            key = ("dequantize", scheme.label, restored)
            promised[key] = promised.get(key, 0) + options.count
            for number in range(options.count):
                global_scale = GLOBAL_SCALES[number % len(GLOBAL_SCALES)] if scheme.global_scale else None
                kind = KINDS[number % len(KINDS)]
                parts = oracle.quantize(scheme, name, kind, global_scale)
                if number % 2:
                    parts = oracle.random_parts(scheme, name)
                oracle.dequantize(scheme, restored, parts, global_scale)
    answered = time.monotonic()

    with tempfile.TemporaryDirectory() as directory:
        source, result = Path(directory, "input.safetensors"), Path(directory, "output.safetensors")
        mx.save_safetensors(str(source), oracle.inputs)
        subprocess.run([options.program, source, result], check=True)
        actual = {name: np.array(array).tobytes() for name, array in mx.load(str(result)).items() if array.size}

    compared, differing = collections.Counter(), []
    size = 0
    for job, label in oracle.labels.items():
        parts = [part for part in "qsbd" if f"{job}/{part}" in oracle.expected or f"{job}/{part}" in actual]
        wrong = [part for part in parts if oracle.expected.get(f"{job}/{part}") != actual.get(f"{job}/{part}")]
        compared[label] += bool(parts)
        size += sum(len(oracle.expected.get(f"{job}/{part}", b"")) for part in parts)
        if wrong:
            differing.append((job, wrong))
    missing = [label for label, count in promised.items() if compared[label] < count]

    for job, wrong in differing[:20]:
        print(f"differs: {oracle.labels[job]} {job}, parts {', '.join(wrong)}")
    for label in missing:
        print(f"too few: {label} {compared[label]} of {promised[label]}")
    for direction in ("quantize", "dequantize"):
        count = sum(count for label, count in compared.items() if label[0] == direction)
        print(f"{direction}: {count} tensors in {sum(label[0] == direction for label in promised)} combinations")
    print(f"mlx {mx.__version__}: {size} bytes compared, {len(differing)} tensors differ; "
          f"mlx took {answered - started:.1f} s, kiln and the comparison {time.monotonic() - answered:.1f} s")
    return 1 if differing or missing else 0


if __name__ == "__main__":
    sys.exit(main())
