"""The run directory: its files, writing and reading them."""

from mnist_exp.runs.directory import RunDirectory
from mnist_exp.runs.files import RunDirectoryError, write_atomically
from mnist_exp.runs.reading import Run, find_runs, read_run
from mnist_exp.runs.record import FAILED, SETTLED, RunRecord, Status

__all__ = [
    "FAILED",
    "SETTLED",
    "Run",
    "RunDirectory",
    "RunDirectoryError",
    "RunRecord",
    "Status",
    "find_runs",
    "read_run",
    "write_atomically",
]
