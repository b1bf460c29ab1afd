"""The commands: each module reads its arguments and sets the exit status.

This module is loaded before the slow imports of a command, so that Ctrl-C during them prints no traceback.
"""

from __future__ import annotations

import sys
from types import TracebackType

from mnist_exp import torch_import

torch_import.OWN_PROCESS = True

_PRINT = sys.excepthook


def _print_unless_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        _PRINT(kind, error, trace)


sys.excepthook = _print_unless_interrupted
