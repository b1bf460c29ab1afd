"""The run directory: what a run leaves behind, and reading many of them back.

Imported lazily: data and training use single modules of this package, and need neither the configuration nor Hydra for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "RunDirectory": "directory",
    **dict.fromkeys(("RunDirectoryError", "write_atomically"), "files"),
    **dict.fromkeys(("Run", "find_runs", "read_run"), "reading"),
    **dict.fromkeys(("FAILED", "SETTLED", "RunRecord", "Status"), "record"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
