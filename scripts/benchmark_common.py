"""What the benchmarks share: turns, medians, the machine that they ran on, and where results are kept."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from campaign import RESULTS, read_csv, write_csv

from mnist_exp.errors import RunFailed

T = TypeVar("T")
NETWORKS = {"lenet5": "LeNet-5", "mlp": "MLP 784-71-71-10"}


def turns(candidates: Mapping[str, T], repetitions: int) -> Iterator[tuple[int, str, T]]:
    """Every candidate in each turn, forwards and backwards by turns: what slows the machine down meets them alike."""
    for turn in range(repetitions):
        order = list(candidates.items())
        for name, candidate in order if turn % 2 == 0 else reversed(order):
            yield turn, name, candidate


def execute(command: Sequence[str | Path], folder: str | Path | None = None) -> None:
    """Run a command without its standard output.

    Raises:
        RunFailed: it did not end well; the message has its exit status and the end of its standard error.
    """
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RunFailed(f"{shlex.join(map(str, command))} ended with {done.returncode}: {reason}")


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def take_turns(candidates: Mapping[str, Callable[[], float]], repetitions: int, *, reference: str, unit: str) -> None:
    """Print medians of candidates that return their seconds, and ratios against ``reference``."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _, name, candidate in turns(candidates, repetitions):
        times[name].append(candidate())
    print(f"{unit}, {repetitions} repetitions in turns")
    for name, values in times.items():
        ratios = [value / base for value, base in zip(values, times[reference], strict=True)]
        print(
            f"  {name:24s} median {statistics.median(values):7.3f}  min {min(values):7.3f}  max {max(values):7.3f}"
            f"  ratio of medians {statistics.median(values) / statistics.median(times[reference]):5.2f}"
            f"  median of ratios {statistics.median(ratios):5.2f}"
        )


def medians(candidates: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median seconds of each, of ``repetitions`` turns after a tenth more to warm up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    warm = max(1, repetitions // 10)
    for turn, name, candidate in turns(candidates, repetitions + warm):
        seconds = seconds_of(candidate)
        if turn >= warm:
            times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def load() -> str:
    """Mean number of processes that wanted a core in the last minute, where the system counts them."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def processor() -> str:
    """Model of the processor, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
        vectors = "AVX-512" if "avx512f" in fields["flags"] else "AVX2" if "avx2" in fields["flags"] else ""
        family = f"family {fields['cpu family']}, model {fields['model']}"
        return ", ".join(part for part in (fields["model name"], family, vectors) if part)
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def keep(name: str, rows: Sequence[Mapping[str, object]], load_before: str) -> None:
    """Write docs/results/speed_NAME.csv, and in speed_machine.csv on what it was measured."""
    import torch

    write_csv(RESULTS / f"speed_{name}.csv", [{key: str(value) for key, value in row.items()} for row in rows])
    machine = {
        "measured": name,
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "load_before": load_before,
        "load_after": load(),
        "torch": str(torch.__version__).partition("+")[0],
        "date": time.strftime("%Y-%m-%d"),
    }
    path = RESULTS / "speed_machine.csv"
    others = [row for row in read_csv(path) if row["measured"] != name]
    write_csv(path, sorted([*others, machine], key=lambda row: row["measured"]))
