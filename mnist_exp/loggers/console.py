"""The console output of a run: a row for each epoch, a progress bar on a terminal, the result at the end.

Messages go through the package's logger, so they are in ``train.log``, too. Piped output is plain text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mnist_exp.models import LayerRow
from mnist_exp.runs.directory import resume_command
from mnist_exp.terminal import Terminal, current
from mnist_exp.training.events import Callback, EpochMetrics, StepDone, TrainingEnded, TrainingStarted

LOG = logging.getLogger("mnist_exp")
USUAL = 80  # columns of a terminal, and of output that is not one
ONLY_IN_THE_LOG = {"only_in_the_log": True}  # extra of a log record that the console shows in another form


class Console(Callback):
    """Shows one run. Use as a context manager: inside it, the package's log messages appear on the console.

    Args:
        directory: the run directory.
        quiet: show warnings, errors and the result line only.
        in_sweep: show warnings and errors only, because the sweep shows the results.
        options: arguments that the command to resume the run needs besides the directory.
    """

    def __init__(
        self, directory: Path, *, quiet: bool = False, in_sweep: bool = False, options: Sequence[str] = ()
    ) -> None:
        self._directory = directory
        self._quiet = quiet or in_sweep
        self._in_sweep = in_sweep
        self._continue = resume_command(directory, *options)
        self._out = current()
        self._handler = _Handler(self._out, logging.WARNING if self._quiet else logging.INFO)
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._start: TrainingStarted | None = None
        self._heading = ""

    def __enter__(self) -> Console:
        self._level = LOG.level
        LOG.setLevel(logging.INFO)
        LOG.addHandler(self._handler)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop_progress()
        LOG.removeHandler(self._handler)
        LOG.setLevel(self._level)

    def print_layers(self, rows: Sequence[LayerRow]) -> None:
        """Print output shape, parameters and multiply-accumulates of every layer."""
        table = Table(title="Layers, for one image")
        for heading in ("layer", "kind", "output shape", "parameters", "MACs"):
            table.add_column(heading, justify="left" if heading in {"layer", "kind"} else "right")
        for row in rows:
            shape = "x".join(str(size) for size in row.output_shape)
            table.add_row(row.name, row.kind, shape, f"{row.parameters:,}", f"{row.macs:,}")
        table.add_section()
        totals = (sum(row.parameters for row in rows), sum(row.macs for row in rows))
        table.add_row("total", "", "", *(f"{total:,}" for total in totals))
        self._out.print(table)

    def on_start(self, event: TrainingStarted) -> None:
        self._start = event
        LOG.info("run directory: %s", self._directory)
        if event.first_epoch > 1:
            LOG.info("resumed: %d of %d epochs are done", event.first_epoch - 1, event.epochs)
        if self._out.is_terminal and not self._quiet:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self._out,
                transient=True,
            )
            total = event.epochs * event.images_per_epoch
            done = (event.first_epoch - 1) * event.images_per_epoch
            self._task = self._progress.add_task(event.title, total=total, completed=done, rate="")
            self._progress.start()

    def on_step(self, event: StepDone) -> None:
        if self._progress is None or self._start is None:
            return
        done = (event.epoch - 1) * self._start.images_per_epoch + event.images
        speed = self._progress.tasks[0].speed
        rate = f"{speed:,.0f} images/s" if speed else ""
        self._progress.update(self._task, completed=done, rate=rate, description=f"epoch {event.epoch}")

    def on_epoch(self, event: EpochMetrics) -> None:
        assert self._start is not None
        line = f"{self._start.title} | Epoch [{event.epoch}/{self._start.epochs}]: {epoch_line(event)}"
        LOG.info(line, extra=ONLY_IN_THE_LOG)
        if self._quiet:
            return
        width = self._out.width if self._out.is_terminal else USUAL
        # Again if there are other columns: the test split may be evaluated after the last epoch only.
        if (heading := epoch_heading(event, width)) != self._heading:
            self._heading = heading
            self._out.print(Text(heading, style="bold"))
        self._out.print(Text(epoch_row(event, self._start.epochs, width)))

    def on_end(self, event: TrainingEnded) -> None:
        self._stop_progress()
        if event.status == "interrupted":
            LOG.warning("%s; continue: %s", event.error, self._continue)
        if event.status != "completed" or self._start is None or self._in_sweep:
            return
        summary = event.summary
        known = (split for split in ("test", "val", "train") if f"{split}_accuracy" in summary)
        split = next(known)  # without test figures the others, because their names tell what they are
        accuracy, loss = float(summary[f"{split}_accuracy"]), float(summary[f"{split}_loss"])
        name = {"test": "test", "val": "validation", "train": "training"}[split]
        result = f"{name} accuracy {accuracy:.2%}, {name} loss {loss:.4f}"
        if self._quiet or not self._out.is_terminal:
            self._out.print(Text(f"{self._start.title} | {result} | {self._directory}"))
            return
        table = Table(title=f"{self._start.title}, epoch {summary['epoch']} of {self._start.epochs}", show_header=False)
        for split in ("train", "val", "test"):
            if f"{split}_accuracy" in summary:
                accuracy, loss = float(summary[f"{split}_accuracy"]), float(summary[f"{split}_loss"])
                table.add_row(split, f"accuracy {accuracy:.2%}", f"loss {loss:.4f}")
        table.add_row("parameters", f"{summary['parameters']:,}", "")
        table.add_row("time", f"{float(summary['seconds']):.1f} s", "")
        self._out.print(table)
        self._out.print(Text(f"run directory: {self._directory}"))

    def _stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def epoch_line(event: EpochMetrics) -> str:
    """One epoch in the format of study B: train, then test; loss, then accuracy."""
    parts = [f"{split.title()} Loss {loss:.4f}, Acc {accuracy:.2%}" for split, loss, accuracy in _splits(event)]
    return " | ".join([*parts, f"{event.train_seconds:.1f} s"])


def epoch_heading(event: EpochMetrics, width: int = USUAL) -> str:
    """The heading of the columns of ``epoch_row``."""
    line = "  epoch" + "".join(f"{f'{split} loss':>12}{'acc %':>8}" for split, _, _ in _splits(event)) + "       s"
    return line + "".join(f"{title:>{column}}" for title, _, column in _further(event, len(line), width))


def epoch_row(event: EpochMetrics, epochs: int, width: int = USUAL) -> str:
    """One epoch as a row of a table, at most 78 columns: losses in nats, accuracies in percent, seconds of training.

    Args:
        epochs: of the run.
        width: of the terminal, in columns: a wider one shows the learning rate, images/s and metrics of callbacks, too.
    """
    figures = "".join(f"{loss:12.4f}{100 * accuracy:8.2f}" for _, loss, accuracy in _splits(event))
    line = f"{f'{event.epoch}/{epochs}':>7}{figures}{event.train_seconds:8.1f}"
    return line + "".join(f"{text:>{column}}" for _, text, column in _further(event, len(line), width))


def _further(event: EpochMetrics, used: int, width: int) -> Iterator[tuple[str, str, int]]:
    """Title, text and width of the further columns that fit a terminal of more than the usual 80 columns."""
    further = {"learning rate": f"{event.learning_rate:.3g}", "images/s": f"{event.images_per_second:,.0f}"}
    for title, text in {**further, **{name: f"{value:.4g}" for name, value in event.extra.items()}}.items():
        column = max(len(title), 10) + 2
        used += column
        if used > width or width <= USUAL:
            return
        yield title, text, column


def _splits(event: EpochMetrics) -> list[tuple[str, float, float]]:
    """Name, loss and accuracy of each split that was evaluated."""
    splits = [("train", event.train_loss, event.train_accuracy)]
    if event.val_loss is not None and event.val_accuracy is not None:
        splits.append(("val", event.val_loss, event.val_accuracy))
    if event.test_loss is not None and event.test_accuracy is not None:
        splits.append(("test", event.test_loss, event.test_accuracy))
    return splits


class _Handler(logging.Handler):
    """Prints log messages on the console that shows the progress bar, so that they do not overwrite each other."""

    def __init__(self, console: Terminal, level: int) -> None:
        super().__init__(level)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        if vars(record).keys() >= ONLY_IN_THE_LOG.keys():
            return
        style = "yellow" if record.levelno >= logging.WARNING else ""
        self._console.print(Text(record.getMessage(), style=style))
