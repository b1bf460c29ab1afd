"""How a sweep stands: a line for each job that ends, a bar on a terminal, ``sweep.json`` all the while, a table at the end."""

from __future__ import annotations

import shlex
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from mnist_exp.errors import typed
from mnist_exp.sweeps.directory import FAILED, SETTLED, Job, JobStatus, SweepDirectory
from mnist_exp.sweeps.resuming import left_to_user
from mnist_exp.terminal import Terminal

POLL_SECONDS = 0.5


class Progress:
    """Watches the run directories of a sweep. Use as a context manager.

    Args:
        sweep: whose ``sweep.json`` is kept up to date.
        wanted: the jobs that this command is about.
        bar: show one on a terminal. Jobs that train in this process show theirs, and a terminal has room for one.
    """

    def __init__(self, sweep: SweepDirectory, wanted: Sequence[Job], *, bar: bool) -> None:
        self._sweep = sweep
        self._wanted = {job.directory for job in wanted}
        self._statuses = {name: sweep.job_status(job) for name, job in sweep.jobs.items()}
        self._left = {name for name in self._wanted if self._statuses[name].status not in SETTLED}
        self._began = self._last_end = time.monotonic()
        self._ended = 0
        self._out = Terminal()
        columns = (TextColumn("sweep"), BarColumn(20), TextColumn("{task.description}", markup=False))
        self._bar = Bar(*columns, console=self._out, transient=True, disable=not (bar and self._out.is_terminal))
        self._over = threading.Event()
        self._changing = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Progress:
        self._sweep.write(self._statuses)
        done = len(self._wanted) - len(self._left)
        already = f", {done} of them done already" if done else ""
        self._out.print(Text(f"sweep {self._sweep.path.name}: {count(len(self._wanted), 'job')}{already}"))
        self._task = self._bar.add_task(self.summary(), total=len(self._wanted), completed=done)
        self._bar.start()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        self.refresh()
        self._bar.stop()

    def refresh(self) -> None:
        """Read what has changed, say so, and write it down."""
        with self._changing:
            before = dict(self._statuses)
            self._statuses |= {name: self._sweep.job_status(self._sweep.jobs[name]) for name in self._left}
            changed = [name for name in self._left if self._statuses[name].status != before[name].status]
            if changed:
                self._sweep.write(self._statuses)
            ended = [name for name in changed if self._statuses[name].status in SETTLED | FAILED]
            if ended:
                self._ended += len(ended)
                self._last_end = time.monotonic()
            for name in ended:
                self._out.print(Text(f"sweep: {name} {self._statuses[name].status}; {self.summary()}"))
            self._left -= {name for name in changed if self._statuses[name].status in SETTLED}
            self._bar.update(self._task, completed=self._over_and_done(), description=self.summary())

    def _over_and_done(self) -> int:
        return sum(self._statuses[name].status in SETTLED | FAILED for name in self._wanted)

    def summary(self) -> str:
        """Jobs done, running and failed, time left, best so far."""
        statuses = {name: self._statuses[name] for name in self._wanted}
        counts = Counter(job_status.status for job_status in statuses.values())
        failed = sum(counts[status] for status in FAILED)
        waiting = counts["waiting"] + counts["running"] + counts["interrupted"]
        parts = [f"{counts['completed'] + counts['pruned']} of {len(statuses)} done"]
        parts += [f"{counts['running']} running"] if counts["running"] else []
        parts += [f"{failed} failed"] if failed else []
        if waiting and self._ended:
            left = (self._last_end - self._began) / self._ended * waiting - (time.monotonic() - self._last_end)
            parts.append(f"about {duration(max(left, 0))} left")
        if best := best_so_far(statuses):
            parts.append(best)
        return ", ".join(parts)

    def _watch(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            self.refresh()


def best_so_far(statuses: Mapping[str, JobStatus]) -> str | None:
    """The job with the highest validation accuracy; without validation data nothing may be called the best, and the
    highest test accuracy is said to be just that."""
    for figure, title in (("val_accuracy", "best"), ("test_accuracy", "highest test accuracy")):
        known = {name: getattr(job_status, figure) for name, job_status in statuses.items()}
        known = {name: value for name, value in known.items() if value is not None}
        if known:
            name = max(known, key=lambda key: known[key])
            return f"{title} {known[name]:.2%} ({name})"
    return None


def print_table(sweep: SweepDirectory, statuses: Mapping[str, JobStatus]) -> None:
    """All jobs of a sweep: status, accuracy, seconds, and of the failed ones the error and where to read on."""
    out = Terminal(soft_wrap=False)
    table = Table(title=f"Sweep {sweep.path.name}")
    has_validation = any(job_status.val_accuracy is not None for job_status in statuses.values())
    headings = ["job", "status", *(["val"] if has_validation else []), "test", "seconds", "error"]
    for heading in headings:
        table.add_column(heading, justify="left" if heading in {"job", "status", "error"} else "right", overflow="fold")
    for name, job_status in statuses.items():
        accuracies = [job_status.val_accuracy] if has_validation else []
        accuracies.append(job_status.test_accuracy)
        figures = ["-" if value is None else f"{value:.2%}" for value in accuracies]
        seconds = "-" if job_status.seconds is None else f"{job_status.seconds:.1f}"
        error = job_status.error if job_status.status != "completed" else None
        table.add_row(Text(name), job_status.status, *figures, seconds, Text(error or ""))
    out.print(table)
    for name, job_status in statuses.items():
        if job_status.status in FAILED:
            out.print(Text(f"{job_status.status}: {sweep.shown / name / 'train.log'}"), soft_wrap=True)
    left = sum(job_status.status not in SETTLED for job_status in statuses.values())
    if left:
        again = [shlex.quote(word) for word in left_to_user(sweep.arguments)]
        command = ["mnist-train", "-m", typed("sweep.resume", sweep.shown), *again]
        out.print(
            Text(f"{count(left, 'job')} not complete; finish: {' '.join(command)}"),
            soft_wrap=True,
        )


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever is readable."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
