"""kiln as a whole process beside the programs that do the same, in one run.

    cargo build --release
    pip install mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2 numpy      # into the environment that runs this
    python benches/peers [SUITE…] [--write]

Needs `docker-registry`, `skopeo`, `oras`, `crane`, `openssl` and `sha256sum` on the path, and a few GiB under `--place`, which
should be on a tmpfs. Prints a table for each suite; `--write` puts tables and plots into `docs/`, and the ratios into
`benches/recorded.json`. With `--short` the suites are small, and a ratio below half of the recorded one fails.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import store
import transfer
from tables import Table, plot

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "benches/recorded.json"
MIB = 1 << 20
# What the short form measures when nothing is named.
SHORT = ["create", "verify", "plain"]
# Layers, experts, hidden size and width of an expert; without experts, the MiB of a single tensor.
SHAPES = {
    "1 GiB, 32 experts x 4": (4, 32, 2048, 640),
    "8 GiB, 32 experts x 32": (32, 32, 2048, 640),
    "24 GiB, 32 experts x 96": (96, 32, 2048, 640),
    "one tensor of 4 GiB": (4096, 0, 0, 0),
    "7 GiB, 128 experts x 48": (48, 128, 1024, 192),
}


def suites(kiln: str, place: Path, disk: Path, short: bool) -> dict:
    """What can be measured; each takes some minutes, or some seconds when `short`."""
    rounds, layers = (3, 4) if not short else (3, 1)
    large = (8, 512 * MIB) if not short else (8, 32 * MIB)
    small = (2000, 64 << 10) if not short else (200, 64 << 10)
    way = ["what", "over", "layers", "client"]
    return {
        "create": lambda: Table("create", ["scheme", "program"], store.create(kiln, place / "create", layers, rounds, ["int4", "mxfp8"] if short else store.MLX)),
        "verify": lambda: Table("verify", ["what", "program"], store.verify(kiln, place / "verify", layers, rounds)),
        "lists": lambda: Table("lists", ["command", "of", "program"],
                               store.lists(kiln, place / "lists", 1000 if not short else 20, 500, rounds)),
        "tls": lambda: Table("tls", way, transfer.against(kiln, place / "tls", *large, True, rounds)),
        "plain": lambda: Table("plain", way, transfer.against(kiln, place / "plain", *large, False, rounds)),
        "small": lambda: Table("small", way, transfer.against(kiln, place / "small", *small, False, rounds)),
        "far": lambda: Table("far", ["what", "layers", "client"], [
            row for count, size in ((1, 512 * MIB), (8, 64 * MIB)) if not short or count > 1
            for row in transfer.far(kiln, place / "far", count, size if not short else 4 * MIB)]),
        "growth": lambda: Table("growth", ["model", "scheme", "program"], store.growth(kiln, disk / "growth", SHAPES if not short else
                                {"small": (1, 8, 1024, 384)}, "int4")),
        "cold": lambda: Table("cold", ["what", "layout"], store.cold(kiln, disk / "cold", 8 if not short else 1, rounds)),
        "serve": lambda: Table("serve", ["what", "layers", "server"], transfer.served(kiln, place / "serve", *large, rounds)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benches/peers", description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", metavar="SUITE")
    parser.add_argument("--kiln", default=str(ROOT / "target/release/kiln"))
    parser.add_argument("--place", type=Path, default=Path("/dev/shm/kiln-bench"))
    parser.add_argument("--disk", type=Path, default=Path("kiln-bench"), help="for what must not be in memory, or is too large")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.place, ignore_errors=True)
    known = suites(arguments.kiln, arguments.place, arguments.disk, arguments.short)
    kept = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    recorded = kept.setdefault("short" if arguments.short else "full", {})
    slower = []
    for name in arguments.suites or (SHORT if arguments.short else known):
        table = known[name]()
        ratios = table.ratios()
        if arguments.short and any(ratio < recorded.get(name, {}).get(what, 0) / 2 for what, ratio in ratios.items()):
            # Once may be chance.
            again = known[name]().ratios()
            ratios = {what: max(ratio, again[what]) for what, ratio in ratios.items()}
        print(f"\n{name}\n\n{table.markdown()}\n")
        for what, ratio in ratios.items():
            before = recorded.get(name, {}).get(what)
            print(f"{what}: {ratio} times as fast as the next best" + (f" (recorded: {before})" if before else ""))
            if arguments.short and before and ratio < before / 2:
                slower.append(f"{name}, {what}: {ratio}, recorded {before}")
        if arguments.write:
            if not arguments.short:
                publish(table)
            recorded[name] = ratios
            RECORDED.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(arguments.place, ignore_errors=True)
    if slower:
        sys.exit("less than half as fast as recorded:\n" + "\n".join(slower))


def publish(table: Table) -> None:
    """Puts the table between its marks in `docs/benchmarks.md`, and its plot beside it."""
    page = ROOT / "docs/benchmarks.md"
    text = page.read_text()
    opening, closing = f"<!-- {table.name} -->\n", f"<!-- end of {table.name} -->\n"
    before, rest = text.split(opening)
    _, after = rest.split(closing)
    picture = f"\n![{table.name}](benchmarks/{table.name}.svg)\n"
    page.write_text(f"{before}{opening}\n{table.markdown()}\n{picture}\n{closing}{after}")
    (ROOT / "docs/benchmarks").mkdir(exist_ok=True)
    (ROOT / f"docs/benchmarks/{table.name}.svg").write_text(plot(table))


if __name__ == "__main__":
    main()
