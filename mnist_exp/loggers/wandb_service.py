"""The process that works for W&B: started so that it cannot be waited for without end, and left the same way.

W&B starts it once for a process and shares it among runs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mnist_exp.loggers.wandb_private import SERVICE_WAIT, disable_statistics, is_of_a_dead_service

if TYPE_CHECKING:
    import wandb


def start_service(patience: float = 15.0) -> wandb.Settings:
    """Start W&B's service, unless it runs already, and return W&B's settings.

    Raises:
        Exception: it does not start, or not within ``patience`` seconds.
    """
    import wandb

    disable_statistics()
    return wandb.setup(wandb.Settings(silent=True, **{SERVICE_WAIT: patience})).settings


def end_service(patience: float = 5.0) -> None:
    """End W&B's service as ``wandb.teardown`` does, or leave it behind after ``patience`` seconds.

    For use after a request without an answer: a service that is answering while its client leaves can miss the word to
    end, and W&B waits for it for ever, here or when Python ends. One left behind ends with this process.
    """
    import wandb

    with suppress(Exception):  # of a service that is dead already
        within(patience, wandb.teardown)


def service_died(error: Exception) -> bool:
    """Whether this was raised because there is no service, or not any more."""
    return isinstance(error, BrokenPipeError | ConnectionResetError) or is_of_a_dead_service(error)


def within(seconds: float, action: Callable[[], object]) -> bool:
    """Run ``action``, and raise what it raises; False if it was left behind after ``seconds``, still running."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            action()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    return not thread.is_alive()


@contextmanager
def contained() -> Iterator[None]:
    """Undo what starting W&B does to the process.

    Its service leaves its address in WANDB_SERVICE, where a child process would take it for its own, and puts itself
    before sys.exit and sys.excepthook. Its error reports are off, unless asked for: sending them to a server that does
    not answer holds up the end of the process. The service starts with the signal blocked that a scheduler sends to every
    process of a job ahead of its time limit, because the run has something to tell it still. SIGTERM cannot be kept from
    it: it listens to that itself, and leaves.
    """
    can_block = hasattr(signal, "pthread_sigmask")  # not on Windows, where no scheduler sends this signal either
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2}) if can_block else set()
    names = ("WANDB_SERVICE", "WANDB_ERROR_REPORTING")
    before = {name: os.environ.get(name) for name in names}
    hooks = sys.exit, sys.excepthook
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        yield
    finally:
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        sys.exit, sys.excepthook = hooks
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
