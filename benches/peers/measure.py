"""Whole processes, measured in turns: one round runs every program once, so that what else the machine does meets all."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Sample:
    """Seconds on the clock, seconds of processor time, and the largest resident set in MiB."""

    wall: float
    cpu: float
    peak: float


@dataclass
class Subject:
    """Commands that run side by side, what is done before each time, and what it is called."""

    name: str
    commands: list[list[str]]
    before: Callable[[], None] = lambda: None
    environment: dict[str, str] = field(default_factory=dict)
    directory: str | None = None


def once(subject: Subject, limit: float = 1800) -> Sample:
    """Runs the subject; a program that fails ends everything, in its own words."""
    subject.before()
    environment = {**os.environ, **subject.environment}
    said = tempfile.TemporaryFile()
    started = time.monotonic()
    running = [
        subprocess.Popen(command, env=environment, cwd=subject.directory, stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=said)
        for command in subject.commands
    ]
    wall, cpu, peak = 0.0, 0.0, 0.0
    while running:
        for child in list(running):
            # What `wait4` says of memory would include that of this process, before the program replaced it.
            peak = max(peak, resident(child.pid))
            ended, status, usage = os.wait4(child.pid, os.WNOHANG)
            if not ended:
                continue
            wall = time.monotonic() - started
            cpu += usage.ru_utime + usage.ru_stime
            running.remove(child)
            child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode != 0:
                said.seek(0)
                words = said.read()[-2000:].decode(errors="replace")
                sys.exit(f"{subject.name}: {child.args} ended with {child.returncode}\n{words}")
        if time.monotonic() - started > limit:
            sys.exit(f"{subject.name}: not done after {limit} s")
        time.sleep(0.005)
    return Sample(wall, cpu, peak)


def resident(process: int) -> float:
    """The largest resident set of a process so far, in MiB; 0 when it has ended."""
    try:
        with open(f"/proc/{process}/status") as status:
            return next((int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:")), 0.0)
    except ProcessLookupError:
        return 0.0


def paired(subjects: list[Subject], rounds: int) -> dict[str, Sample]:
    """The medians of `rounds` rounds, and the highest peak."""
    samples: dict[str, list[Sample]] = {subject.name: [] for subject in subjects}
    for number in range(rounds):
        # Each starts a round in its turn: what the one before leaves behind meets all, too.
        turn = number % len(subjects)
        for subject in subjects[turn:] + subjects[:turn]:
            sample = once(subject)
            samples[subject.name].append(sample)
            print(f"  {number + 1}/{rounds} {subject.name}: {sample.wall:.2f} s, {sample.cpu:.2f} s cpu, {sample.peak:.0f} MiB",
                  file=sys.stderr, flush=True)
    return {name: median(taken) for name, taken in samples.items()}


def median(samples: list[Sample]) -> Sample:
    """The median of the times, and the highest peak."""
    return Sample(
        statistics.median(sample.wall for sample in samples),
        statistics.median(sample.cpu for sample in samples),
        max(sample.peak for sample in samples),
    )
