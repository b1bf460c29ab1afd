"""W&B's service: a process that W&B starts once and shares among runs. It is started and ended with time limits."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_exp.loggers.wandb_private import SERVICE_WAIT, disable_statistics, is_of_a_dead_service

if TYPE_CHECKING:
    import wandb


def start_service(patience: float = 15.0) -> wandb.Settings:
    """Start W&B's service, unless it is running, and return W&B's settings.

    Raises:
        Exception: it has not started within ``patience`` seconds.
    """
    import wandb

    disable_statistics()
    return wandb.setup(wandb.Settings(silent=True, **{SERVICE_WAIT: patience})).settings


def choose_mode(mode: str, patience: float) -> tuple[str, str | None]:
    """The mode of a run, and the reason if it is offline without the user's request.

    Args:
        mode: auto, online, offline or disabled.
        patience: seconds that the start of W&B's service may take.

    Returns:
        online, offline or disabled.
    """
    import wandb

    if mode == "disabled" or (mode == "auto" and _is_true(os.environ.get("WANDB_DISABLED"))):
        return "disabled", None
    settings = start_service(patience)
    mode = settings.mode if mode == "auto" else mode
    if mode == "disabled":
        return "disabled", None
    if mode in {"offline", "dryrun"}:
        return "offline", None
    try:
        # Checked here, because wandb.init would ask the user.
        if wandb.login(prompt=False, verify=False):
            return "online", None
        return "offline", "no API key is configured (wandb login)"
    except wandb.errors.Error as error:
        return "offline", f"the API key cannot be used ({' '.join(str(error).split())[:200]})"


def _is_true(value: str | None) -> bool:
    return (value or "").strip().lower() in {"1", "true", "yes", "on"}


def end_service(patience: float = 5.0) -> None:
    """End W&B's service with ``wandb.teardown``, or stop waiting for that after ``patience`` seconds.

    Used after a request without an answer: the service can then miss the request to end, and ``wandb.teardown`` would wait
    without limit, here or when Python exits. A service that is not ended here ends with this process.
    """
    import wandb

    with suppress(Exception):  # the service may be dead already
        within(patience, wandb.teardown)


def service_died(error: Exception) -> bool:
    """Whether this was raised because the service is not running."""
    return isinstance(error, BrokenPipeError | ConnectionResetError) or is_of_a_dead_service(error)


def within(seconds: float, action: Callable[[], object]) -> bool:
    """Run ``action`` and raise its exception; False if it is still running after ``seconds``, in a thread."""
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
    """Undo the changes to this process that the start of W&B makes.

    W&B stores the address of its service in WANDB_SERVICE, which a child process would use, and replaces sys.exit and
    sys.excepthook. Its error reports are turned off, unless the user has set WANDB_ERROR_REPORTING, because sending them
    to a server that does not answer delays the end of the process. The service starts with SIGUSR2 blocked: a scheduler
    sends it to every process of a job before the time limit, when the run still needs the service. SIGTERM cannot be
    blocked, because the service has its own handler.
    """
    can_block = hasattr(signal, "pthread_sigmask")  # not on Windows
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


@contextmanager
def undone_on_failure(directory: Path) -> Iterator[None]:
    """Delete W&B's files in a directory that an attempt made which failed."""
    before = set(directory.glob("wandb/*run-*"))
    try:
        yield
    except Exception:
        for attempt in set(directory.glob("wandb/*run-*")) - before:
            shutil.rmtree(attempt, ignore_errors=True)
        raise
