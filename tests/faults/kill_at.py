"""``mnist-train`` that is killed with SIGKILL just before its Nth change of a file below the working directory.

kill_at.py command N ARGUMENTS...    the process of the command is killed
kill_at.py jobs N ARGUMENTS...       the process of the job with seed 0 is killed, that with seed 1 at its change N + 1, ...

N = 0: nothing is killed; the number of changes is written to the file ``changes``. For a search, each change of its database
counts, too.
"""

from __future__ import annotations

import importlib.machinery
import os
import signal
import sys
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR
STATEMENTS = ("INSERT", "UPDATE", "DELETE", "CREATE")
IN_JOBS = Path(__file__).with_name("in_jobs")  # contains a sitecustomize.py, which Python runs when it starts
LAST = "KILL_JOBS_AT"  # environment variable of the processes of a launcher
JOBS = "mnist_exp.sweeps.job"


class Counter:
    """Counts the changes that this process makes, and kills it at change ``last``."""

    def __init__(self, last: int) -> None:
        self.last, self.count, self.here = last, 0, os.getcwd()
        sys.addaudithook(self.note)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook."""
        if event not in CHANGES and not (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else ""
        if path and (not os.path.isabs(path) or path.startswith(self.here)):
            self.add()

    def add(self) -> None:
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def count_statements(self) -> None:
        """Count changes of databases, too."""
        from sqlalchemy import Engine, event

        uncommitted = False

        def execute(connection: object, cursor: object, statement: str, *others: object) -> None:
            nonlocal uncommitted
            if statement.startswith(STATEMENTS):
                uncommitted = True
                self.add()

        def commit(connection: object) -> None:
            nonlocal uncommitted
            if uncommitted:
                uncommitted = False
                self.add()

        event.listen(Engine, "before_cursor_execute", execute)
        event.listen(Engine, "commit", commit)

    def write(self) -> None:
        if not self.last:
            number = str(self.count)
            with open("changes", "w") as file:
                file.write(number)


def main(which: str, last: int, arguments: Sequence[str]) -> None:
    """Run the command; counting starts before it."""
    from mnist_exp.cli import train

    sys.argv[:] = ["mnist-train", *arguments]
    if which == "jobs":
        os.environ.update({"PYTHONPATH": str(IN_JOBS), LAST: str(last)})
        train.main()
        return
    counter = Counter(last)
    if any("optuna" in word or "search" in word for word in arguments):
        counter.count_statements()
    try:
        train.main()
    finally:
        counter.write()


class CountedJobs(importlib.machinery.SourceFileLoader):
    """Loads ``mnist_exp.sweeps.job`` so that the changes of each job are counted."""

    def exec_module(self, module: Any) -> None:
        super().exec_module(module)
        run_job = module._run_job

        @wraps(run_job)
        def counted(path: Path, stop_file: Path, directory: str, *others: Any) -> None:
            os.chdir(directory)
            last, seed = int(os.environ[LAST]), int(path.name.rpartition("=")[2])
            counter = Counter(last and last + seed)
            try:
                run_job(path, stop_file, directory, *others)
            finally:
                counter.write()

        module._run_job = counted

    @classmethod
    def find_spec(cls, name: str, path: Any, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """For ``sys.meta_path``."""
        if name != JOBS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = cls(name, spec.origin)
        return spec


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
