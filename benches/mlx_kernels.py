#!/usr/bin/env python3
"""kiln's kernels beside MLX's on the CPU, in one run, as the table of docs/benchmarks.md.

    pip install mlx==0.32.4 mlx-cpu==0.32.4
    python benches/mlx_kernels.py [PROGRAM]

PROGRAM is a built `cargo bench --bench kernels`, which is run through cargo when it is not given. One thread each (MLX
uses one for a kernel), GB/s of bfloat16, the fastest of many repetitions; kiln on the widest instructions there are. MLX
gets eight times as many elements, so that what its calls cost besides does not count.
"""

import subprocess
import sys
import time

import mlx.core as mx

SHAPE = (1024, 1024)
SECONDS = 0.4
FLOATS = {"bf16": mx.bfloat16, "f16": mx.float16, "f32": mx.float32}


def throughput(run):
    """GB/s of bfloat16 when `run` takes SHAPE, from the fastest repetition."""
    least, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        mx.eval(run())
        least = min(least, time.perf_counter() - started)
    return 2 * SHAPE[0] * SHAPE[1] / least / 1e9


def settings(scheme):
    """The arguments with which MLX quantizes by `scheme`."""
    if scheme in ("mxfp4", "mxfp8", "nvfp4"):
        return {"mode": scheme}
    bits, group = {"int4": (4, 64), "int8": (8, 64)}.get(scheme) or map(int, scheme.removeprefix("affine").split("-g"))
    return {"bits": bits, "group_size": group}


def of_mlx(kernel, scheme, float_type):
    """The throughput of MLX."""
    if kernel == "decode":
        codes = (mx.random.randint(0, 256, SHAPE) & 0xBF).astype(mx.uint8)
        scales = mx.random.uniform(shape=(SHAPE[0] // 128, 1, SHAPE[1] // 128, 1))
        mx.eval(codes, scales)
        blocks = (SHAPE[0] // 128, 128, SHAPE[1] // 128, 128)
        return throughput(lambda: (mx.from_fp8(codes, mx.bfloat16).reshape(blocks) * scales).astype(mx.bfloat16))
    weights = (mx.random.normal(SHAPE) * 0.02).astype(FLOATS[float_type])
    parts = mx.quantize(weights, **settings(scheme))
    mx.eval(weights, parts)
    if kernel == "quantize":
        return throughput(lambda: mx.quantize(weights, **settings(scheme)))
    return throughput(lambda: mx.dequantize(*parts, **settings(scheme), dtype=FLOATS[float_type]))


def main():
    mx.set_default_device(mx.cpu)
    command = sys.argv[1:] or ["cargo", "bench", "--quiet", "--bench", "kernels", "--"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[1:]
    kiln, ratios = {}, []
    for kernel, scheme, _, float_type, figure in map(str.split, lines):
        # The sets are in their order, the widest last.
        kiln[kernel, scheme, float_type] = float(figure)

    def cells(kernel, scheme):
        own = [kiln[kernel, scheme, float_type] for float_type in FLOATS if (kernel, scheme, float_type) in kiln]
        mlx = of_mlx(kernel, scheme, "bf16")
        ratios.append((own[0] / mlx, f"{kernel} {scheme}"))
        return [f"{figure:.1f}" for figure in own] + [""] * (3 - len(own)) + [f"{mlx:.3f}", f"{own[0] / mlx:.0f}"]

    print("| scheme | quantize: bf16 | f16 | f32 | MLX, bf16 | times MLX | dequantize: bf16 | f16 | f32 | MLX, bf16 | times MLX |")
    print("|---" + "|---:" * 10 + "|")
    for scheme in dict.fromkeys(scheme for kernel, scheme, _ in kiln if kernel == "quantize"):
        print("|", " | ".join([f"`{scheme}`"] + cells("quantize", scheme) + cells("dequantize", scheme)), "|")
    print("| block-FP8 | | | | | |", " | ".join(cells("decode", "block-fp8")), "|")
    print("\nThe least ratio is {:.1f} ({}), the largest {:.0f} ({}).".format(*min(ratios), *max(ratios)))


main()
