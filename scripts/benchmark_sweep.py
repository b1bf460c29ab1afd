"""What a sweep costs: three ways of sharing cores, the time around each job in one process, and a thousand jobs.

python scripts/benchmark_sweep.py arrangements     # one process, pinned processes, unpinned processes
python scripts/benchmark_sweep.py cost             # compose, run directory, W&B offline, sweep.json: seconds a job
python scripts/benchmark_sweep.py many             # 1,000 tiny jobs in one process: start, seconds, memory, open files
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from benchmark_common import execute

from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.errors import RunFailed
from mnist_exp.runs.provenance import available_cores

COMMON = ["data=mnist5k", "trainer.device=cpu", "quiet=true", "hydra.sweep.dir=sweep"]


def sweep(*overrides: str) -> tuple[float, list[dict[str, float]]]:
    """Wall seconds of a sweep in a directory of its own, and the seconds that each run recorded."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mnist_exp.cli.train", "-m", *COMMON, *overrides]
        began = time.perf_counter()
        execute(command, folder)
        wall = time.perf_counter() - began
        return wall, [json.loads(file.read_text())["seconds"] for file in Path(folder).glob("sweep/*/run.json")]


def arrangements(jobs: int, epochs: int, images: int) -> None:
    """Wall time of the same jobs on the cores of this machine, shared in three ways."""
    cores = available_cores()
    work = ["logger=none", f"trainer.epochs={epochs}", f"data.limit={images}", f"seed=range({jobs})"]
    processes = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={cores}"]
    ways = {
        f"one process of {cores} threads": [f"trainer.threads={cores}"],
        f"{cores} pinned processes of 1 thread": processes,
        f"{cores} unpinned processes of {cores} threads": [*processes, f"trainer.threads={cores}"],
    }
    first = 0.0
    for way, overrides in ways.items():
        wall, _ = sweep(*work, *overrides)
        first = first or wall
        print(f"{way}: {wall:.1f} s, {first / wall:.2f} times as fast as one process", flush=True)


def cost(jobs: int) -> None:
    """Seconds a job beyond training and evaluation, in one process; the first job, which imports, does not count."""
    work = ["logger.mode=offline", "trainer.epochs=1", "data.limit=64", "trainer.threads=1"]
    one, first = sweep(*work, "seed=0")
    many, runs = sweep(*work, f"seed=range({jobs + 1})")
    trained = sum(run["train"] + run["eval"] for run in runs) - sum(run["train"] + run["eval"] for run in first)
    print(f"{(many - one - trained) / jobs:.3f} s a job beside training and evaluation ({jobs} jobs)")


def many(jobs: int) -> None:
    """Start, time, memory and open files of a sweep of many tiny jobs in one process, and the time of a second start.

    Linux only. On a machine with other work, processor seconds say more than seconds.
    """
    work = ["logger=none", "model=mlp", "model.hidden=[16]", "trainer.epochs=1", "data.limit=64", "trainer.threads=1"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mnist_exp.cli.train", "-m", *COMMON, *work, f"seed=range({jobs})"]
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        first_epoch = Path(folder, "sweep", "seed=0", "metrics.jsonl")
        files: list[int] = []
        start = ""
        while process.poll() is None:
            with suppress(OSError):  # it has ended
                if not start and first_epoch.exists():
                    ticks = sum(
                        map(int, Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13])
                    )
                    start = _seconds(time.perf_counter() - began, ticks / os.sysconf("SC_CLK_TCK"))
                files.append(len(os.listdir(f"/proc/{process.pid}/fd")))
            time.sleep(0.2)
        if process.returncode:
            raise RunFailed(f"the sweep ended with {process.returncode}")
        used = _of_children()
        wall = _seconds(time.perf_counter() - began, used)
        records = [json.loads(file.read_text()) for file in Path(folder).glob("sweep/*/run.json")]
        began = time.perf_counter()
        execute(command, folder)
        again = _seconds(time.perf_counter() - began, _of_children() - used)
    records.sort(key=lambda record: record["seed"])
    total = [record["seconds"]["total"] for record in records]
    memory = [record["peak_memory_bytes"] / 2**20 for record in records]
    part = max(1, jobs // 10)
    print(f"{len(records)} jobs: first epoch after {start}, all after {wall}, second start {again}")
    for title, values in (("seconds a job", total[1:]), ("peak memory, MiB", memory[1:]), ("open files", files)):
        early, late = (statistics.median(some) for some in (values[:part], values[-part:]))
        print(f"{title}: median {early:.3f} in the first tenth, {late:.3f} in the last, at most {max(values):.3f}")


def _of_children() -> float:
    """Processor seconds of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _seconds(wall: float, processor: float) -> str:
    return f"{wall:.1f} s ({processor:.1f} processor seconds)"


@exit_status("benchmark_sweep.py")
@printing()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["arrangements", "cost", "many"])
    parser.add_argument("--jobs", type=int, default=None, help="number of jobs")
    parser.add_argument("--epochs", type=int, default=5, help="epochs a job")
    parser.add_argument("--images", type=int, default=4000, help="images an epoch")
    options = parser.parse_args()
    if options.what == "cost":
        cost(options.jobs or 20)
    elif options.what == "many":
        many(options.jobs or 1000)
    else:
        arrangements(options.jobs or 4, options.epochs, options.images)


if __name__ == "__main__":
    main()
