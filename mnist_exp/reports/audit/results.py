"""What was measured: the epochs of each run, from run directories, and kept in one CSV file.

A row of the file counts wherever it comes from, so that run directories can be deleted, and a file can be handed on. Rows are
found by the hash of the configuration, which contains the seed. A run may have fewer epochs, and an epoch fewer numbers, than
training records.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from mnist_exp.config import Config
from mnist_exp.errors import UsageError, printable
from mnist_exp.hashing import config_hash
from mnist_exp.reports.audit.claims import value_of
from mnist_exp.runs import Run, RunDirectoryError, Status, find_runs, read_run, write_atomically
from mnist_exp.runs.files import LARGEST_TEXT, read_file

METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
COLUMNS = ("recipe", "seed", "epoch", *METRICS, "config_hash")
Row = dict[str, float]


class Measured:
    """The epochs of each run, up to the one that is its result.

    Attributes:
        epochs: by hash of the configuration, then by epoch.
    """

    def __init__(self) -> None:
        self.epochs: dict[str, dict[int, Row]] = {}
        self._labels: dict[str, tuple[str, int]] = {}

    def read(self, file: Path) -> None:
        """Add the rows of a CSV file that ``text`` returned; nothing if it does not exist.

        Raises:
            UsageError: it is no such file.
        """
        try:
            lines = list(csv.DictReader(io.StringIO(read_file(file, LARGEST_TEXT).decode())))
        except FileNotFoundError:
            return
        except (OSError, ValueError, csv.Error) as error:
            raise UsageError(f"{file} cannot be read: {printable(' '.join(str(error).split()))}") from error
        for number, line in enumerate(lines, start=2):
            try:
                row = {name: float(line[name]) for name in METRICS if line[name]}
                identity, epoch, label = line["config_hash"], int(line["epoch"]), (line["recipe"], int(line["seed"]))
                if epoch < 1 or not all(0 <= value <= 1 for name, value in row.items() if "accuracy" in name):
                    raise ValueError("epochs begin at 1, and accuracies are fractions")
            except (KeyError, TypeError, ValueError) as error:
                raise UsageError(
                    f"{file}, line {number}: should have the columns {', '.join(COLUMNS)}; to measure again, delete the file"
                ) from error
            self.epochs.setdefault(identity, {})[epoch] = row
            self._labels[identity] = label

    def add_runs(self, folder: Path, recipe: str) -> list[str]:
        """Add the complete runs in a folder, which may not exist yet.

        Args:
            recipe: shown in the file.

        Returns:
            a sentence for each run that does not count.
        """
        problems = []
        for path in find_runs(folder) if folder.is_dir() else ():
            try:
                run = read_run(path)
            except RunDirectoryError as error:
                problems.append(str(error))
                continue
            if run.status == Status.COMPLETED:
                self._add(run, recipe)
            else:
                reason = f": {run.record.error}" if run.record.error else ""
                problems.append(f"{path} is {run.status}{printable(reason)}")
        return problems

    def _add(self, run: Run, recipe: str) -> None:
        last = (run.record.final or {}).get("epoch", 0)
        identity = config_hash(run.config)
        self.epochs[identity] = {
            int(line["epoch"]): {name: float(line[name]) for name in METRICS}
            for line in run.metrics
            if line["epoch"] <= last and line.keys() >= set(METRICS)
        }
        self._labels[identity] = (recipe, run.config.seed)

    def of(self, configs: Iterable[Config]) -> list[dict[int, Row]]:
        """The epochs of the runs with these configurations, as far as they are measured."""
        found = (self.epochs.get(config_hash(config)) for config in configs)
        return [epochs for epochs in found if epochs]

    @property
    def seeds(self) -> set[int]:
        """The seeds of all runs."""
        return {seed for _, seed in self._labels.values()}

    def has(self, config: Config) -> bool:
        """Whether a run with this configuration is measured."""
        return bool(self.epochs.get(config_hash(config)))

    def text(self) -> str:
        """The content of the CSV file."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for identity, (recipe, seed) in sorted(self._labels.items(), key=lambda item: item[1]):
            for epoch, row in sorted(self.epochs[identity].items()):
                numbers = (f"{row[name]:.6g}" if name in row else "" for name in METRICS)
                writer.writerow([recipe, seed, epoch, *numbers, identity])
        return stream.getvalue()

    def write(self, file: Path) -> None:
        """Write the CSV file, whose folder is created."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, self.text().encode())


def values_at(runs: Iterable[dict[int, Row]], quantity: str, epoch: int | None) -> list[float]:
    """A quantity of each run after an epoch; None: at its end. Runs that ended before the epoch are left out."""
    rows = (run.get(max(run) if epoch is None else epoch) for run in runs)
    return [value for row in rows if row is not None and (value := value_of(quantity, row)) is not None]
