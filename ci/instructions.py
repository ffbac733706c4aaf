#!/usr/bin/env python3
"""Counts the instructions of every kernel under callgrind, and fails where one takes more than was recorded for it.

    ci/instructions.py target/release/examples/kernels_once [--record]

`ci/instructions.txt` has the instructions per 1,000 elements. A kernel may take 1.3 times as many: a compiler that no longer
turns a loop into vector instructions adds more than that, another version of it rarely so much. `--record` writes the file.
callgrind runs AVX2 on every processor that has it, and no AVX-512.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

SET, ELEMENTS, MARGIN = "avx2", 65536, 1.3
RECORD = pathlib.Path(__file__).with_suffix(".txt")


def count(program):
    """Instructions per 1,000 elements, by kernel."""
    with tempfile.TemporaryDirectory() as place:
        counted = "kernels_once::counted"
        command = ["valgrind", "--tool=callgrind", f"--toggle-collect={counted}", f"--dump-after={counted}",
                   f"--callgrind-out-file={place}/out", program, SET, str(ELEMENTS)]
        names = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
        totals = []
        for number in range(1, len(names.splitlines()) + 2):
            dump = pathlib.Path(f"{place}/out.{number}").read_text()
            totals.append(int(re.search(r"^(?:summary|totals): (\d+)", dump, re.MULTILINE).group(1)))
    return {name: (total - totals[0]) * 1000 // ELEMENTS for name, total in zip(names.splitlines(), totals[1:])}


def main():
    program, *options = sys.argv[1:]
    counts = count(program)
    if options == ["--record"]:
        RECORD.write_text("".join(f"{name} {taken}\n" for name, taken in counts.items()))
        return
    recorded = {name: int(taken) for name, taken in (line.rsplit(" ", 1) for line in RECORD.read_text().splitlines())}
    if recorded.keys() != counts.keys():
        sys.exit(f"not the kernels that are recorded: {sorted(recorded.keys() ^ counts.keys())}")
    slower = [f"{name}: {taken} instructions for 1,000 elements, {recorded[name]} were recorded"
              for name, taken in counts.items() if taken > MARGIN * recorded[name]]
    print(f"{len(counts)} kernels counted, the most at {max(counts[name] / recorded[name] for name in counts):.2f} of its record")
    sys.exit("\n".join(slower) or None)


main()
