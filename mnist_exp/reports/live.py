"""A report that follows runs while they go on: ``mnist-report DIR --serve``."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from mnist_exp.errors import UsageError, printable
from mnist_exp.loopback import LocalHandler, LocalServer, security_policy
from mnist_exp.reports import html, run_pages
from mnist_exp.reports.build import Report, build
from mnist_exp.reports.collect import Collector, NoRuns, comparison_of, paths_of, read_result
from mnist_exp.reports.tables import percent
from mnist_exp.runs import FAILED, Run, RunDirectoryError, Status
from mnist_exp.terminal import duration

PAUSE = 1.0  # seconds between two looks at the files, at least; the page asks every two
RUN_PAGE = re.compile("/(run/[0-9a-f]+/)([^/]*)")
RECENT = 3  # epochs whose mean time estimates those that are left

Signature = tuple[tuple[int, int, int] | None, ...]


class LiveRuns:
    """The runs below some folders. A file that has not changed is not read again.

    Args:
        patterns: as for ``paths_of``.
        baseline: see ``baseline.choose``.
    """

    def __init__(self, patterns: Sequence[str], baseline: str | None) -> None:
        self._patterns = list(patterns)
        self._baseline = baseline
        self._forget()

    def _forget(self) -> None:
        self._complete = Collector()  # complete runs do not change, so their predictions are read once
        self._seen: dict[Path, Signature] = {}
        self._open: dict[Path, Run | RunDirectoryError] = {}
        self.runs: dict[Path, Run] = {}

    def look(self) -> bool:
        """Read what is new; whether there was anything.

        Raises:
            NoRuns: there is none.
        """
        paths = paths_of(self._patterns)
        signatures = {path: _signature(path) for path in paths}
        finished = self._seen.keys() - self._open.keys()
        if any(signatures.get(path) != self._seen[path] for path in finished):
            self._forget()  # a complete run was deleted, or trained further
        changed = [path for path in paths if signatures[path] != self._seen.get(path) or self._may_have_died(path)]
        gone = self._open.keys() - signatures.keys()
        for path in gone:
            del self._seen[path], self._open[path]
            self.runs.pop(path, None)
        before = {path: self.runs[path].status for path in changed if path in self.runs}
        new = [path for path in changed if signatures[path] != self._seen.get(path)]
        for path in changed:
            self._read(path)
            self._seen[path] = signatures[path]
        died = any(self.runs[path].status != status for path, status in before.items() if path in self.runs)
        return bool(new or gone or died)

    def _may_have_died(self, path: Path) -> bool:
        """A process that is killed changes no file."""
        return path in self.runs and self.runs[path].status == Status.RUNNING

    def _read(self, path: Path) -> None:
        self._open.pop(path, None)
        try:
            run = read_result(path)
        except RunDirectoryError as error:
            self.runs.pop(path, None)
            self._open[path] = error
            return
        self.runs[path] = run
        if run.status == Status.COMPLETED:
            self._complete.add_run(run)
        else:
            self._open[path] = run

    def at(self, address: str) -> Path | None:
        """The run directory whose page has this address; None if there is none."""
        return next((path for path in self._seen if run_pages.address(str(path)) == address), None)

    def report(self) -> Report:
        """The report on all runs of now.

        Raises:
            RunDirectoryError: none of them can be read.
            UsageError: the baseline matches no arm, or more than one.
        """
        collector = self._complete.copy()
        for path, run in self._open.items():
            if isinstance(run, Run):
                collector.add_run(run)
            else:
                collector.add_unreadable(path, run)
        return build(comparison_of(collector, len(self._seen), self._baseline))


def _signature(path: Path) -> Signature:
    """Changes when the record, the metrics or the configuration of a run are written."""
    found: list[tuple[int, int, int] | None] = []
    for name in ("run.json", "metrics.jsonl", "config.yaml"):
        try:
            known = os.stat(path / name)
            found.append((known.st_mtime_ns, known.st_size, known.st_ino))
        except OSError:
            found.append(None)
    return tuple(found)


def progress(runs: Sequence[Run], labels: dict[Path, str], now: float) -> str:
    """HTML: the number of jobs that are done, running and waiting, and the epoch and seconds left of those that run.

    Args:
        labels: of the arm of each run.
        now: seconds since the epoch of the clock, as ``time.time()``.
    """
    counts = Counter(run.status for run in runs)
    failed = sum(counts[status] for status in FAILED)
    over = counts[Status.COMPLETED] + counts[Status.PRUNED] + failed
    parts = [f"<b>{over - failed} of {len(runs)} done</b>"]
    parts += [
        f"{counts[status]} {status}"
        for status in (Status.RUNNING, Status.WAITING, Status.INTERRUPTED)
        if counts[status]
    ]
    parts += [f"{failed} failed"] if failed else []
    running = [run for run in runs if run.status == Status.RUNNING]
    left = {run.path: _seconds_left(run, now) for run in running}
    if (whole := _whole_seconds_left(runs, left)) is not None:
        parts.append(f"about {duration(whole)} left")
    lines = [
        f'<li><a href="{run_pages.address(str(run.path))}">{escape(labels.get(run.path, run.path.name))} · seed '
        f"{run.config.seed}</a>: {_epoch(run, left[run.path])}</li>"
        for run in running[:8]
    ]
    more = f"<li>and {len(running) - 8} more</li>" if len(running) > 8 else ""
    bar = f'<progress max="{len(runs)}" value="{over}"></progress>'
    return f"{bar} {', '.join(parts)}" + (f"<ul>{''.join(lines)}{more}</ul>" if lines else "")


def _epoch(run: Run, left: float | None) -> str:
    number = min(len(run.metrics) + 1, run.config.trainer.epochs)
    text = f"epoch {number} of {run.config.trainer.epochs}"
    if left is not None:
        text += f", about {duration(left)} left"
    if run.metrics:
        last = run.metrics[-1]
        shown = [
            f"{split} {percent(last[key])}"
            for split, key in (("validation", "val_accuracy"), ("test", "test_accuracy"))
            if key in last
        ]
        text += f"; {', '.join(shown)}"
    return text


def _seconds_of_an_epoch(run: Run) -> float | None:
    """Mean of the last epochs; None before the first."""
    recent = run.metrics[-RECENT:]
    return fmean(row["train_seconds"] + row["eval_seconds"] for row in recent) if recent else None


def _seconds_left(run: Run, now: float) -> float | None:
    """Of a run that goes on; None before its first epoch."""
    each = _seconds_of_an_epoch(run)
    if each is None:
        return None
    try:
        since = max(now - (run.path / "metrics.jsonl").stat().st_mtime, 0.0)
    except OSError:
        since = 0.0
    return max(each * (run.config.trainer.epochs - len(run.metrics)) - since, 0.0)


def _whole_seconds_left(runs: Sequence[Run], left: dict[Path, float | None]) -> float | None:
    """Until all jobs are done, if those that wait take as long as those that are done or running; None if unknown."""
    spent = [
        run.record.seconds["total"] for run in runs if run.status == Status.COMPLETED and "total" in run.record.seconds
    ] or [each * run.config.trainer.epochs for run in runs if run.path in left and (each := _seconds_of_an_epoch(run))]
    if not left or not spent:
        return None
    each_job = fmean(spent)
    going_on = [each_job if seconds is None else seconds for seconds in left.values()]
    waiting = sum(run.status == Status.WAITING for run in runs)
    return max((sum(going_on) + waiting * each_job) / len(left), *going_on)


class LiveReport:
    """The state of the page. Safe for several threads.

    Attributes:
        version: counts the changes of the report; 0 while there is no run.
        waiting: why there is no report yet; None if there is one.

    Raises: as ``LiveRuns.report``.
    """

    def __init__(self, patterns: Sequence[str], baseline: str | None) -> None:
        self._runs = LiveRuns(patterns, baseline)
        self._lock = threading.Lock()
        self.version = 0
        self.waiting: str | None = None
        self._next = 0.0
        try:
            self._runs.look()
        except NoRuns:
            self.waiting = (
                f"There is no run in {printable(', '.join(patterns))} yet; this page waits for the first one."
            )
        else:
            self._set(self._runs.report())

    def _set(self, report: Report) -> None:
        self._report, self.waiting = report, None
        self.version += 1
        arms = report.comparison.arms
        self._labels = {run.path: arm.label for arm in arms for run in [*arm.runs.values(), *arm.others]}

    def page(self) -> str:
        with self._lock:
            self._look()
            return html.waiting_page() if self.waiting else html.live_page(self._report.parts, self.version)

    def news(self, version: int) -> dict[str, Any]:
        """The jobs, and the page's changing part and figures if they are newer than ``version``."""
        with self._lock:
            self._look()
            if self.waiting:
                return {"jobs": escape(self.waiting)}
            news: dict[str, Any] = {"jobs": progress(list(self._runs.runs.values()), self._labels, time.time())}
            if version != self.version:
                news |= {
                    "version": self.version,
                    "body": html.live_body(self._report.parts),
                    "specs": html.specs(self._report.figures),
                }
            return news

    def run_page(self, address: str, name: str) -> tuple[str, bytes] | None:
        """The content type and the content of a page of a run directory; None if there is none.

        Args:
            address: see ``run_pages.address``.
            name: of a file of the run; empty for the list of its files.
        """
        with self._lock:
            path = self._runs.at(address)
            if path is None:
                return None
            run, label = self._runs.runs.get(path), self._labels.get(path)
        try:
            if name:
                content = run_pages.text(path, name)
                return None if content is None else ("text/plain; charset=utf-8", content)
            title = f"{label} · seed {run.config.seed}: {run.status}" if run and label else printable(path.name)
            return "text/html; charset=utf-8", run_pages.listing(path, title).encode()
        except (OSError, RunDirectoryError) as error:
            return "text/plain; charset=utf-8", f"{printable(str(error))}\n".encode()

    def _look(self) -> None:
        """Look at the files, but not all the time: a large report is computed for seconds."""
        began = time.monotonic()
        if began < self._next:
            return
        try:
            if self._runs.look():
                self._set(self._runs.report())
        except NoRuns:
            pass  # none yet, or the folder was deleted: the last state stays
        except UsageError as error:
            if self.waiting:  # otherwise the baseline's runs were deleted, and the last state stays
                self.waiting = str(error)
        self._next = time.monotonic() + max(PAUSE, 2 * (time.monotonic() - began))


class ReportServer(LocalServer):
    """Serves one report.

    Args:
        port: 0: any free one.

    Raises:
        UsageError: the port cannot be used.
    """

    def __init__(self, report: LiveReport, port: int) -> None:
        self.report = report
        # The scripts of the page do not depend on the runs. Vega compiles expressions.
        super().__init__(port, _Handler, security_policy(report.page().encode(), "'unsafe-eval'"))


class _Handler(LocalHandler):
    server: ReportServer

    def get(self) -> None:
        address = urlsplit(self.path)
        if address.path == "/":
            self.send(200, "text/html; charset=utf-8", self.server.report.page().encode())
        elif address.path == "/live":
            asked = parse_qs(address.query).get("version", ["0"])[0]
            version = int(asked) if re.fullmatch("[0-9]{1,9}", asked) else 0
            answer = json.dumps(self.server.report.news(version), allow_nan=False)
            self.send(200, "application/json", answer.encode())
        elif (match := RUN_PAGE.fullmatch(unquote(address.path))) and (
            page := self.server.report.run_page(*match.groups())
        ):
            self.send(200, *page)
        else:
            self.send(404, "text/plain", b"the page is /\n")
