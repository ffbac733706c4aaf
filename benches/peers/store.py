"""What happens on one machine: create, verify, the lists of a large store, and reading a model for the first time."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import material
from measure import Sample, Subject, once, paired
from tables import Row, merged

# What mlx-lm calls the schemes.
MLX = {
    "int4": ["--q-bits", "4"],
    "int8": ["--q-bits", "8"],
    "nvfp4": ["--q-mode", "nvfp4"],
    "mxfp4": ["--q-mode", "mxfp4"],
    "mxfp8": ["--q-mode", "mxfp8"],
}


def hashing(directory: Path) -> list[Subject]:
    """SHA-256 of all files in `directory` by two processes side by side, each with about half of the bytes: as everybody
    does it, and as fast as the processor can, which not every `sha256sum` is."""
    shares: list[list[Path]] = [[], []]
    sizes = [0, 0]
    files = sorted((path for path in directory.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)
    for path in files:
        least = sizes.index(min(sizes))
        shares[least].append(path)
        sizes[least] += path.stat().st_size
    programs = {"two sha256sum": ["sha256sum"], "two openssl dgst": ["openssl", "dgst", "-sha256"]}
    return [Subject(name, [[*command, *map(str, share)] for share in shares if share]) for name, command in programs.items()]


def create(kiln: str, place: Path, layers: int, rounds: int, schemes: Iterable[str]) -> list[Row]:
    """A mixture of 32 experts, unquantized beside SHA-256 alone, and in each scheme beside `mlx_lm.convert`."""
    checkpoint, store, out = place / "checkpoint", place / "store", place / "mlx"
    size = material.mixture(checkpoint, layers, 32, 2048, 640)

    def making(scheme: str | None) -> Subject:
        options = ["--quantize", scheme] if scheme else []
        command = [kiln, "create", "bench", str(checkpoint), *options, "--store", str(store), "--quiet"]
        return Subject("kiln", [command], lambda: shutil.rmtree(store, ignore_errors=True))

    rows = []
    hashed = paired([making(None), *hashing(checkpoint)], rounds)
    rows += [Row(["none", name], sample, size) for name, sample in hashed.items()]
    shutil.rmtree(store)
    for scheme in schemes:
        # The command of the package that this Python has; it converts on the processor where there is nothing else.
        command = [sys.executable, "-m", "mlx_lm", "convert", "--hf-path", str(checkpoint), "--mlx-path", str(out), "-q",
                   *MLX[scheme]]
        peer = Subject("mlx_lm.convert", [command], lambda: shutil.rmtree(out, ignore_errors=True), {"HF_HUB_OFFLINE": "1"})
        subjects = [making(scheme), peer]
        # Where the other takes minutes, once is enough.
        samples = paired(subjects, rounds if scheme.startswith("int") else 1)
        rows += [Row([scheme, name], sample, size) for name, sample in samples.items()]
        shutil.rmtree(out)
    shutil.rmtree(place)
    return rows


def verify(kiln: str, place: Path, layers: int, rounds: int) -> list[Row]:
    """The digests of a stored model beside `sha256sum`, and a model made again from what has not changed."""
    checkpoint, store = place / "checkpoint", place / "store"
    size = material.mixture(checkpoint, layers, 32, 2048, 640)
    making = [kiln, "create", "bench", str(checkpoint), "--store", str(store), "--quiet"]
    subprocess.run(making, check=True, stdout=subprocess.DEVNULL)
    checking = [kiln, "verify", "bench", "--level", "digests", "--store", str(store), "--quiet"]
    again = paired(
        [Subject("kiln", [checking]), *hashing(store / "blobs"), Subject("kiln create again", [making])],
        rounds,
    )
    shutil.rmtree(place)
    return [Row(["verify --level digests", name], sample, size) for name, sample in again.items()]


def lists(kiln: str, place: Path, models: int, layers: int, rounds: int) -> list[Row]:
    """Commands that look at a store of many models: each blob is a few bytes, and no two are the same."""
    store = place / "store"
    subprocess.run([kiln, "list", "--store", str(store)], check=True, stdout=subprocess.DEVNULL)
    fill(store, models, layers)
    rows = []
    for words in ("list", "show model-0001", "gc --dry-run"):
        command = [kiln, *words.split(), "--store", str(store)]
        sample = paired([Subject("kiln", [command])], rounds)["kiln"]
        rows.append(Row([words, f"{models} models, {models * layers} layers", "kiln"], sample, 0))
    shutil.rmtree(place)
    return rows


def growth(kiln: str, place: Path, shapes: dict[str, tuple[int, int, int, int]], scheme: str) -> list[Row]:
    """Models of more and more bytes: (layers, experts, hidden, width), or one tensor of `layers` MiB without experts."""
    rows = []
    for name, (layers, experts, hidden, width) in shapes.items():
        checkpoint, store = place / "checkpoint", place / "store"
        if experts:
            size = material.mixture(checkpoint, layers, experts, hidden, width)
        else:
            checkpoint.mkdir(parents=True)
            (checkpoint / "config.json").write_text('{"architectures":["OtherForCausalLM"],"model_type":"other"}')
            size = material.shard(checkpoint / "model.safetensors", [("blocks.0.weight", (layers * 256, 2048))], 1)
        making = [kiln, "create", "bench", str(checkpoint), "--quantize", scheme, "--store", str(store), "--quiet"]
        rows.append(Row([name, scheme, "kiln"], once(Subject("kiln", [making])), size))
        shutil.rmtree(place)
    return rows


def cold(kiln: str, place: Path, layers: int, rounds: int) -> list[Row]:
    """All tensors in the order of the model, from the disk: experts one by one in a shuffled file, in order, and as kiln has
    them. `place` must not be in memory."""
    shuffled, sorted_, store, out = (place / name for name in ("shuffled", "sorted", "store", "checkout"))
    size = material.mixture(sorted_, layers, 128, 1024, 384)
    material.shuffle(sorted_, shuffled)
    subprocess.run([kiln, "create", "bench", str(sorted_), "--store", str(store), "--quiet"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([kiln, "checkout", "bench", str(out), "--store", str(store), "--quiet"], check=True, stdout=subprocess.DEVNULL)
    reader = [sys.executable, str(Path(__file__).parent / "reader.py")]
    rows = []
    for _ in range(rounds):
        for name, directory in (("one by one, shuffled", shuffled), ("one by one, in order", sorted_), ("kiln", out)):
            forget(directory)
            rows.append(Row(["read in the order of the model", name], once(Subject(name, [[*reader, str(directory)]])), size))
    shutil.rmtree(place)
    return merged(rows)


def forget(directory: Path) -> None:
    """Has the system forget what it read of the files in `directory`, wherever they lead."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fill(store: Path, models: int, layers: int) -> None:
    """Writes what `models` times `kiln create` would leave, without it."""
    blobs = store / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def blob(content: bytes, media_type: str) -> dict:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    # A safetensors file with one tensor of eight bytes.
    header = b'{"weight":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}'.ljust(64)
    head, entries = len(header).to_bytes(8, "little") + header, []
    for model in range(models):
        config = blob(json.dumps({"model": model}).encode(), "application/vnd.cncf.model.config.v1+json")
        made = [blob(head + (model * layers + layer).to_bytes(8, "little"), "application/vnd.cncf.model.weight.v1.raw")
                for layer in range(layers)]
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "artifactType": "application/vnd.cncf.model.manifest.v1+json", "config": config, "layers": made}
        entry = blob(json.dumps(manifest).encode(), manifest["mediaType"])
        entries.append(entry | {"annotations": {"org.opencontainers.image.ref.name": f"model-{model:04}:latest"}})
    index = json.loads((store / "index.json").read_text())
    index["manifests"] = entries
    (store / "index.json").write_text(json.dumps(index))
