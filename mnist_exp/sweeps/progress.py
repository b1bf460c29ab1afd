"""The output of a sweep: a line for each job that ends, a progress bar on a terminal, a table of the arms at the end.

``sweep.json`` is kept up to date meanwhile.
"""

from __future__ import annotations

import shlex
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from mnist_exp.errors import typed
from mnist_exp.loggers.wandb_place import upload_hint
from mnist_exp.runs import RunDirectoryError
from mnist_exp.runs.reading import read_config, read_metrics
from mnist_exp.runs.record import FAILED, SETTLED, Status
from mnist_exp.runs.sweep import Job, JobStatus
from mnist_exp.sweeps.directory import SweepDirectory
from mnist_exp.sweeps.resuming import left_to_user
from mnist_exp.terminal import Terminal, duration, live, plain

POLL_SECONDS = 0.5
BAR = 10  # columns of the progress bar


class Progress:
    """Watches the run directories of a sweep and updates its ``sweep.json``. Use as a context manager.

    Args:
        wanted: the jobs of this launch.
        trials: the number of trials of a whole search, which launches several times; None: all jobs are in this launch.
    """

    def __init__(self, sweep: SweepDirectory, wanted: Sequence[Job], trials: int | None = None) -> None:
        self._sweep = sweep
        self._wanted = {job.directory for job in wanted}
        self._counted = set(sweep.jobs) if trials else self._wanted
        self._is_search = trials is not None
        self._whole = trials or len(self._wanted)
        self._statuses = {name: sweep.job_status(job) for name, job in sweep.jobs.items()}
        self._left = {name for name in self._wanted if self._statuses[name].status not in SETTLED}
        self._began = self._last_end = time.monotonic()
        self._ended = 0
        self._over = self._counted - self._left  # a job that failed may be launched again, and is counted once
        self._dead: set[str] = set()  # jobs whose process was found dead by the last look
        self._read: dict[str, int | None] = {}  # of each job, the time of its record when it was last read
        self._out = Terminal()
        columns = (BarColumn(BAR), TextColumn("{task.description}", markup=False))
        self._bar = Bar(*columns, console=self._out, transient=True, disable=not self._out.is_terminal)
        self._opened = ExitStack()
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Progress:
        self._sweep.write(self._statuses)
        done = len(self._over)
        if not self._is_search:
            self._out.print(plain(f"sweep {self._sweep.path.name}: {jobs_to_run(self._whole, 'job', done)}"))
        self._task = self._bar.add_task(self.summary(), total=self._whole, completed=done)
        self._bar.start()
        self._opened.enter_context(live(self._out))
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._opened.close()
        self.refresh()
        self._bar.stop()

    def refresh(self) -> None:
        """Read the records that have changed, print the jobs that have ended, and update ``sweep.json``."""
        with self._lock:
            before = dict(self._statuses)
            for name in self._left:
                written = self._written(name)
                # A process can die without writing its record. Thousands of waiting jobs are not read each time.
                if written != self._read.get(name) or before[name].status == Status.RUNNING or name in self._dead:
                    self._read[name] = written
                    status = self._sweep.job_status(self._sweep.jobs[name])
                    if status.status == Status.KILLED and name not in self._dead and not self._stopped.is_set():
                        self._dead.add(name)  # its launcher may be about to record why it died
                    else:
                        self._dead.discard(name)
                        self._statuses[name] = status
            changed = [name for name in self._left if self._statuses[name].status != before[name].status]
            if changed:
                try:
                    self._sweep.write(self._statuses)
                except OSError:
                    self._statuses, self._read = before, {}  # the next time, these are changes again
                    raise
            ended = [
                name for name in self._sweep.jobs if name in changed and self._statuses[name].status in SETTLED | FAILED
            ]
            if ended:
                self._ended += len(ended)
                self._last_end = time.monotonic()
            for name in ended:
                self._over.add(name)
                number = f"[{len(self._over):{len(str(self._whole))}}/{self._whole}]"
                line = plain(job_line(number, self._sweep.jobs[name].label, self._statuses[name]))
                if self._out.is_terminal:  # the table at the end has the whole error
                    line.truncate(self._out.width, overflow="ellipsis")
                self._out.print(line)
            self._left -= {name for name in changed if self._statuses[name].status in SETTLED}
            self._bar.update(self._task, completed=self._number_over(), description=self.summary())

    def _written(self, name: str) -> int | None:
        """The time of the last change of a job's record, in nanoseconds; None without a record."""
        try:
            return (self._sweep.path / name / "run.json").stat().st_mtime_ns
        except OSError:
            return None

    def _number_over(self) -> int:
        return sum(self._statuses[name].status in SETTLED | FAILED for name in self._counted)

    def summary(self) -> str:
        """One line: jobs done, running and failed, time left, best accuracy so far; as much as the terminal has room for."""
        statuses = {name: self._statuses[name] for name in self._counted}
        counts = Counter(job_status.status for job_status in statuses.values())
        failed = sum(counts[status] for status in FAILED)
        waiting = counts[Status.WAITING] + counts[Status.RUNNING] + counts[Status.INTERRUPTED]
        done = f"{counts[Status.COMPLETED] + counts[Status.PRUNED]} of {self._whole} done"
        running = f"{counts[Status.RUNNING]} running{self._epochs()}" if counts[Status.RUNNING] else ""
        left = ""
        if waiting and self._ended:
            seconds = (self._last_end - self._began) / self._ended * waiting - (time.monotonic() - self._last_end)
            left = f"{duration(max(seconds, 0))} left"
        best = best_so_far(statuses) or ""
        return fitting([done, running, f"{failed} failed" if failed else "", left, best], self._out.width - BAR - 1)

    def _epochs(self) -> str:
        """The current epoch, if exactly one job runs; else an empty string."""
        running = [name for name in self._wanted if self._statuses[name].status == Status.RUNNING]
        if len(running) != 1:
            return ""
        try:
            path = self._sweep.path / running[0]
            epochs = read_config(path).trainer.epochs
            return f" (epoch {min(len(read_metrics(path)) + 1, epochs)} of {epochs})"
        except RunDirectoryError:  # a row is being written
            return ""

    def _watch(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            with suppress(OSError):  # a full disk: the last refresh, which is not in this thread, reports it
                self.refresh()


def fitting(parts: Sequence[str], width: int) -> str:
    """The parts that are not empty in one line of at most ``width`` characters, without the second, or without the last too,
    where it would be longer."""
    first, second, *others = parts
    shorter = ([first, second, *others], [first, *others], [first, *others[:-1]])
    lines = [", ".join(filter(None, some)) for some in shorter]
    return next((line for line in lines if len(line) <= width), lines[-1])


def best_so_far(statuses: Mapping[str, JobStatus]) -> str | None:
    """The highest validation accuracy; without validation data the highest test accuracy, which is not called the best."""
    for metric, title in (("val_accuracy", "best"), ("test_accuracy", "highest test")):
        values = [value for job_status in statuses.values() if (value := getattr(job_status, metric)) is not None]
        if values:
            return f"{title} {max(values):.2%}"
    return None


def job_line(number: str, label: str, status: JobStatus) -> str:
    """One line for a job that has ended: its accuracies and seconds, or its status and error."""
    if status.status != Status.COMPLETED:
        return f"{number} {label}: {status_and_error(status)}"
    parts = [
        f"{split} {value:.2%}"
        for split, value in (("val", status.val_accuracy), ("test", status.test_accuracy))
        if value is not None
    ]
    seconds = [] if status.seconds is None else [duration(status.seconds)]
    return f"{number} {label}: {', '.join([*parts, *seconds])}"


def status_and_error(status: JobStatus) -> str:
    error = (status.error or "").removeprefix("Diverged: ")
    return f"{status.status}: {error}" if error else status.status


LONGEST_TABLE = 30  # rows
NAMED = 3  # jobs with the same error


def print_table(sweep: SweepDirectory, statuses: Mapping[str, JobStatus]) -> None:
    """Print the arms of a sweep, best first; the failed jobs with their log files; the commands to type next.

    An arm is a group of jobs that differ only in their seed. Arms are ranked by mean validation accuracy, or by test
    accuracy if there is no validation data.
    """
    out = Terminal(soft_wrap=False)
    arms: dict[str, list[JobStatus]] = {}
    for name, job in sweep.jobs.items():
        if statuses[name].status == Status.COMPLETED:
            arms.setdefault(job.arm, []).append(statuses[name])
    has_validation = any(job.val_accuracy is not None for jobs in arms.values() for job in jobs)
    has_test = any(job.test_accuracy is not None for jobs in arms.values() for job in jobs)
    splits = [split for split, known in (("val", has_validation), ("test", has_test or not has_validation)) if known]
    if arms:
        ranked = sorted(arms.items(), key=lambda arm: -statistics.fmean(accuracies(arm[1], splits[0]) or [0.0]))
        order = "best validation accuracy first" if has_validation else "highest test accuracy first"
        title = plain(f"Sweep {sweep.path.name}: mean ± standard deviation of n runs, {order}")
        out.print(title, soft_wrap=not out.is_terminal)
        table = Table()
        for heading in ("arm", "n", *splits, "seconds a run"):
            table.add_column(heading, justify="left" if heading == "arm" else "right", overflow="fold")
        for label, jobs in ranked[:LONGEST_TABLE]:
            seconds = [job.seconds for job in jobs if job.seconds is not None]
            figures = [mean_and_deviation(accuracies(jobs, split)) for split in splits]
            table.add_row(
                plain(label), str(len(jobs)), *figures, f"{statistics.fmean(seconds):.1f}" if seconds else "-"
            )
        out.print(table)
        if len(ranked) > LONGEST_TABLE:
            out.print(plain(f"{count(len(ranked) - LONGEST_TABLE, 'arm')} more in the report"))
    failures = list(failure_lines(sweep, statuses))
    for line in failures[:LONGEST_TABLE]:
        out.print(plain(line), soft_wrap=not out.is_terminal)
    if len(failures) > LONGEST_TABLE:
        out.print(plain(f"{len(failures) - LONGEST_TABLE} more errors: {sweep.shown / 'sweep.json'}"), soft_wrap=True)
    if arms:
        out.print(plain(f"compare: mnist-report {shlex.quote(str(sweep.shown))}"), soft_wrap=True)
    if hint := upload_hint(sweep.path, sweep.jobs, sweep.shown):
        out.print(plain(f"Weights & Biases: {hint}"), soft_wrap=True)
    left = sum(job_status.status not in SETTLED for job_status in statuses.values())
    if left:
        again = [shlex.quote(word) for word in left_to_user(sweep.arguments)]
        command = ["mnist-train", "-m", typed("sweep.resume", sweep.shown), *again]
        out.print(plain(f"{count(left, 'job')} not complete; finish: {' '.join(command)}"), soft_wrap=True)


def failure_lines(sweep: SweepDirectory, statuses: Mapping[str, JobStatus]) -> Iterator[str]:
    """A line for each error: the jobs that it ended, and where to read more."""
    same: dict[str, list[str]] = {}
    for name, job_status in statuses.items():
        if job_status.status in FAILED:
            same.setdefault(status_and_error(job_status), []).append(name)
    for error, names in same.items():
        labels = ", ".join(sweep.jobs[name].label for name in names[:NAMED])
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        yield f"{labels}{more}: {error}; see {sweep.shown / names[0] / 'train.log'}"


def accuracies(jobs: Sequence[JobStatus], split: str) -> list[float]:
    """The accuracies of the jobs that have one, fractions.

    Args:
        split: ``val`` or ``test``.
    """
    values = [job.val_accuracy if split == "val" else job.test_accuracy for job in jobs]
    return [value for value in values if value is not None]


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean and standard deviation (n - 1) in percent; without the latter for one value, ``-`` for none."""
    if not values:
        return "-"
    mean = f"{100 * statistics.fmean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f} %" if len(values) > 1 else f"{mean} %"


def jobs_to_run(number: int, noun: str, done: int) -> str:
    """What a command runs: ``30 trials, 6 of them done already``."""
    return count(number, noun) + (f", {done} of them done already" if done else "")


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
