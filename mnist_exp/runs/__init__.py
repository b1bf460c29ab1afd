"""The run directory: what a run leaves behind, and reading many of them back."""

from mnist_exp.runs.directory import RunDirectory
from mnist_exp.runs.files import RunDirectoryError, write_atomically
from mnist_exp.runs.reading import Run, find_runs, read_run

__all__ = ["Run", "RunDirectory", "RunDirectoryError", "find_runs", "read_run", "write_atomically"]
