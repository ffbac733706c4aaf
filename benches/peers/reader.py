"""Reads every tensor of a directory of safetensors in the order of the model: by layer, then by name, experts by number."""

import json
import os
import re
import sys
from pathlib import Path


def place(name: str) -> list:
    """Numbers in a name count as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


tensors, files = [], []
for path in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    file = os.open(path, os.O_RDONLY)
    length = int.from_bytes(os.read(file, 8), "little")
    header = json.loads(os.read(file, length))
    header.pop("__metadata__", None)
    tensors += [(place(name), file, 8 + length + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
                for name, entry in header.items()]
buffer = memoryview(bytearray(4 << 20))
for _, file, offset, size in sorted(tensors, key=lambda tensor: tensor[0]):
    while size:
        read = os.preadv(file, [buffer[:size]], offset)
        offset, size = offset + read, size - read
