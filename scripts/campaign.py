"""Shared code of the scripts that write docs/: train arms over seeds, keep a line for each run, write tables into a document.

A campaign is a list of grids, each a sweep of ``mnist-train -m`` with any launcher. A stopped sweep continues when the
script is started again. The result of each run is a line of docs/results/NAME.csv. Runs that have a line there, trained
here or elsewhere, are not trained again, and documents are written from these files alone.
"""

from __future__ import annotations

import argparse
import csv
import io
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from mnist_exp.errors import UsageError, as_override
from mnist_exp.runs import Run, RunDirectoryError, find_runs, read_run, write_atomically
from mnist_exp.runs.reading import read_overrides

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
FIGURES = ROOT / "docs" / "figures"


@dataclass(frozen=True)
class Grid:
    """Arms that differ in the value of one key.

    Attributes:
        key: of the configuration, or a group.
        values: as typed on the command line.
        fixed: overrides that all arms share.
        first_seed: the lowest seed of its arms.
    """

    key: str
    values: tuple[str, ...]
    fixed: tuple[str, ...] = ()
    first_seed: int = 0

    def arm(self, value: str) -> str:
        """The overrides of this arm: with a seed, ``mnist-train`` needs no others to repeat it."""
        return " ".join((*self.fixed, f"{self.key}={value}"))


@dataclass
class Campaign:
    """Arms times seeds, and their results.

    Attributes:
        name: NAME of docs/results/NAME.csv, and of the folder in outputs/ with the sweeps.
        rows: the rows of that file, by arm and seed.
    """

    name: str
    grids: Sequence[Grid]
    rows: dict[tuple[str, int], dict[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.arms = [grid.arm(value) for grid in self.grids for value in grid.values]
        self.csv = RESULTS / f"{self.name}.csv"
        with one_line_for(self.csv):
            self.rows = {(row["arm"], int(row["seed"])): row for row in read_csv(self.csv)}

    def train(self, seeds: Mapping[str, int], runs: Path, overrides: Sequence[str]) -> None:
        """Train the arms and seeds that have no row yet.

        Args:
            seeds: number of seeds for each arm to train, from its grid's first.
            runs: folder of the sweeps.
            overrides: more overrides for every sweep, for instance the launcher.
        """
        for number, grid in enumerate(self.grids):
            missing: dict[tuple[int, ...], list[str]] = {}
            for value in grid.values:
                arm = grid.arm(value)
                wanted = range(grid.first_seed, grid.first_seed + seeds.get(arm, 0))
                left = tuple(seed for seed in wanted if (arm, seed) not in self.rows)
                missing.setdefault(left, []).append(value)
            for left, values in missing.items():
                if left:
                    swept = [f"{grid.key}={','.join(values)}", f"seed={','.join(map(str, left))}"]
                    where = as_override("hydra.sweep.dir", runs / str(number))
                    command = ["mnist_exp.cli.train", "-m", *grid.fixed, *swept, where, "logger=none", *overrides]
                    ended = subprocess.run([sys.executable, "-m", *command], check=False)
                    self.gather(runs)
                    if ended.returncode in {2, 130, 143}:
                        sys.exit(ended.returncode)  # a mistake, or stopped by the user

    def gather(self, runs: Path) -> list[Run]:
        """Write the complete runs below ``runs`` into the CSV file, and return them."""
        found = [
            run for path in (find_runs(runs) if runs.exists() else ()) if (run := read_run(path)).status == "completed"
        ]
        for run in found:
            if (arm := self.arm_of(run)) is not None:
                with one_line_for(run.path):
                    self.rows[arm, run.record.seed] = row(arm, run)
        order = {arm: number for number, arm in enumerate(self.arms)}
        known = sorted((key for key in self.rows if key[0] in order), key=lambda key: (order[key[0]], key[1]))
        write_csv(self.csv, [self.rows[key] for key in known])
        return found

    def arm_of(self, run: Run) -> str | None:
        """The arm with the most overrides among the arms whose overrides were all given to this run."""
        typed = set(read_overrides(run.path))
        fitting = [arm for arm in self.arms if typed.issuperset(arm.split())]
        return max(fitting, key=lambda arm: len(arm.split()), default=None)

    def figures(self, arm: str, column: str) -> dict[int, float]:
        """A column of the results, by seed."""
        return {seed: float(row[column]) for (of, seed), row in sorted(self.rows.items()) if of == arm}


def row(arm: str, run: Run) -> dict[str, str]:
    """The line of a result file for one run. The seconds of the fastest epoch depend little on other load of the machine."""
    record, final = run.record, run.record.final
    return {
        "arm": arm,
        "seed": str(record.seed),
        "epochs": str(final["epoch"]),
        "parameters": str(record.parameters),
        "macs": str(record.macs),
        **{name: f"{final[name]:.6f}" for name in ("train_accuracy", "test_loss", "test_accuracy")},
        "train_seconds": f"{record.seconds['train']:.1f}",
        "fastest_epoch_seconds": f"{min(line['train_seconds'] for line in run.metrics):.2f}",
        "peak_memory_mib": f"{record.peak_memory_bytes / 2**20:.0f}",
        "threads": str(record.threads),
        "torch": record.versions["torch"],
        "config_hash": record.config_hash,
    }


@contextmanager
def one_line_for(path: Path) -> Iterator[None]:
    """Turn an error because of the content of a file, or of a run's files, into one line.

    Raises:
        RunDirectoryError: something is missing, or has the wrong type.
    """
    try:
        yield
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise RunDirectoryError(f"{path} cannot be used: {what}") from error


def read_csv(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with one_line_for(path), path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=max((list(row) for row in rows), key=len), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(path, text.getvalue().encode())


def write_between_markers(document: Path, marker: str, lines: Iterable[str]) -> None:
    """Replace the text between ``<!-- marker -->`` and ``<!-- end of marker -->``, and keep the rest of the document."""
    start, end = f"<!-- {marker} -->\n", f"<!-- end of {marker} -->\n"
    before, _, rest = document.read_text(encoding="utf-8").partition(start)
    _, _, after = rest.partition(end)
    write_atomically(document, (before + start + "".join(f"{line}\n" for line in lines) + end + after).encode())


def run(campaign: Campaign, description: str | None, seeds: int, arguments: Sequence[str] | None = None) -> list[Run]:
    """Run the command line of such a script: train, gather the results, and return the complete runs found here.

    If matplotlib, which draws the figures, is not installed, the script ends before it trains anything.

    Args:
        description: text for ``--help``.
        seeds: number of seeds for each arm, unless given on the command line.
        arguments: of the command line; None: those of this process.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "overrides",
        nargs="*",
        default=["hydra/launcher=joblib"],
        help="overrides of mnist-train -m; default: hydra/launcher=joblib",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PART",
        help="only arms whose overrides contain PART; may be repeated",
    )
    parser.add_argument("--seeds", type=int, default=seeds, help=f"number of seeds of each arm; default: {seeds}")
    parser.add_argument("--runs", type=Path, default=Path("outputs") / campaign.name, help="folder of the sweeps")
    parser.add_argument("--document", action="store_true", help="train nothing, write the document from docs/results")
    options = parser.parse_args(arguments)
    if find_spec("matplotlib") is None:
        parser.error("drawing the figures needs matplotlib: pip install 'mnist-exp[figures]'")
    chosen = [arm for arm in campaign.arms if any(part in arm for part in options.only or [""])]
    if not chosen:
        parser.error(f"--only {' '.join(options.only)} fits none of: {'; '.join(campaign.arms)}")
    if not options.document:
        campaign.train(dict.fromkeys(chosen, options.seeds), options.runs, options.overrides)
    return campaign.gather(options.runs)
