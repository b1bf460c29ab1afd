"""Measure mnist-report on many synthetic runs: seconds and peak memory of the command.

python scripts/benchmark_report.py --runs 1000 --epochs 50 --images 10000
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hydra import compose, initialize_config_dir

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from synthetic_runs import write_run

from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.compose import CONF, resolve


@exit_status("benchmark_report.py")
@printing()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=10, help="runs of an arm")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--images", type=int, default=10_000, help="of the test set")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        generate(Path(folder) / "runs", options)
        print(f"generated {options.runs} runs in {time.perf_counter() - began:.1f} s")
        output = str(Path(folder) / "report")
        command = [sys.executable, "-m", "mnist_exp.cli.report", f"{folder}/runs", "--output", output]
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        print(
            f"report: status {status}, {time.perf_counter() - began:.1f} s, {usage.ru_utime:.1f} s of processor,",
            end=" ",
        )
        print(f"{usage.ru_maxrss / 1024:.0f} MiB, page of {os.path.getsize(f'{output}/report.html') / 1e6:.1f} MB")


def generate(folder: Path, options: argparse.Namespace) -> None:
    """A sweep of learning rate and dropout, ``options.seeds`` runs an arm."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        tree = resolve(compose("train", overrides=["name=sweep", "data=mnist5k"]))
    for arm in range(-(-options.runs // options.seeds)):
        lr, p = round(0.001 * 1.05**arm, 6), (arm % 7) / 10
        own = {
            **tree,
            "optimizer": {**tree["optimizer"], "lr": lr},
            "regularization": {**tree["regularization"], "dropout": p},
            "model": {**tree["model"], "dropout": p},
        }
        for seed in range(min(options.seeds, options.runs - arm * options.seeds)):
            write_run(
                folder / f"{arm}-{seed}",
                own,
                seed=seed,
                accuracy=0.98 + 0.0001 * (arm % 50) + 0.0002 * seed,
                epochs=options.epochs,
                images=options.images,
            )


if __name__ == "__main__":
    main()
