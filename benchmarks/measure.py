"""Time and peak memory of functions that are run in turns."""

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Measured(NamedTuple):
    """What one contender needed: seconds of the first call and of each later one, megabytes above the inputs."""

    first: float
    seconds: list[float]
    peak: float | None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def _status(field: str) -> float:
    """A memory field of this process in MB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def _timed(function: Callable) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak(function: Callable) -> tuple[float, float | None]:
    """Seconds, and how far the resident memory rose above where it was, in MB; None where Linux's /proc is missing."""
    gc.collect()
    if not Path("/proc/self/clear_refs").exists():
        return _timed(function), None
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    seconds = _timed(function)
    return seconds, _status("VmHWM") - before


def in_turns(contenders: dict[str, Callable], rounds: int, patience: float = 60.0) -> dict[str, Measured]:
    """Run every contender once (the first call, compilation included), then all in turns, `rounds` times.

    A contender whose first call takes longer than `patience` seconds is not repeated. Memory is read on the
    last run.
    """
    firsts = {name: peak(function) for name, function in contenders.items()}
    repeated = [name for name, (seconds, _) in firsts.items() if seconds <= patience]
    seconds, peaks = {name: [] for name in repeated}, {}
    for _ in range(rounds):
        for name in repeated:
            time.sleep(0.05)  # lets the threads of the one before come to rest
            taken, peaks[name] = peak(contenders[name])
            seconds[name].append(taken)
    return {
        name: Measured(first, seconds.get(name) or [first], peaks.get(name, peak))
        for name, (first, peak) in firsts.items()
    }


def machine() -> str:
    """Processor, cores that may be used, and versions, in one line."""
    import numba
    import numpy
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "processor")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = f"numpy {numpy.__version__}, numba {numba.__version__}, torch {torch.__version__}"
    return f"{model}, {cores} cores, {versions}"
