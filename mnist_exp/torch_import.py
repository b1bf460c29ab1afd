"""The first import of PyTorch, the slowest part of a short command."""

from __future__ import annotations

import gc
import sys

OWN_PROCESS = False  # whether this process is one of the package's commands


def import_torch(*, announced: bool = True) -> None:
    """Import PyTorch. Call it before the first import of a module that needs it.

    Garbage collection is paused, because the import makes a million objects that stay, and visiting them again and again
    takes a fifth of its time. In a process of a command later collections ignore all objects that exist then: they stay
    until the process ends, and visiting them takes a quarter of a short run's time. In other processes they may be the
    user's.

    Args:
        announced: on a terminal, first print that PyTorch is being loaded, because nothing else is shown for seconds.
    """
    if "torch" in sys.modules:
        return
    if announced and sys.stderr.isatty():
        print("loading PyTorch", file=sys.stderr, flush=True)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401  # for its effect on the imports that follow

        if OWN_PROCESS:
            gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
