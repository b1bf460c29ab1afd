"""The end of a command: its exit status, its error message, and closed standard output."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mnist_exp.errors import RunFailed, RunInterrupted, UsageError, print_any_text, report


@contextmanager
def exit_status(command: str, folders: Sequence[Path] = ()) -> Iterator[None]:
    """Turn a user's mistake, a failed run and an interruption into a line and an exit status; let other errors pass.

    Args:
        folders: of configuration files, for suggestions; default: ``conf/``.

    Raises:
        SystemExit: status 2 for a user's mistake, 1 for a failed run, 128 plus the signal after an interruption.
    """
    print_any_text()
    try:
        try:
            yield
        finally:
            _flush()
    except RunFailed as error:
        report(error, command)
        sys.exit(1)
    except KeyboardInterrupt as stopped:
        sys.exit(128 + (stopped.signal if isinstance(stopped, RunInterrupted) else signal.SIGINT))
    except Exception as error:
        if (mistake := _as_usage_error(error, folders)) is None:
            raise
        report(mistake, command)
        sys.exit(2)


@contextmanager
def printing() -> Iterator[None]:
    """Stop printing, and do no more, if standard output is closed, as in ``mnist-eval DIR | head -3``.

    Raises:
        UsageError: standard output cannot be written for another reason.
    """
    try:
        yield
    except BrokenPipeError:
        pass
    except OSError as error:
        if error.filename is not None or error.errno is None:  # of another file, or Hydra's
            raise
        raise _unwritten(error) from error
    _flush()


def _flush() -> None:
    """Flush standard output, and ignore it if it is closed.

    Raises:
        UsageError: standard output cannot be written for another reason.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        from mnist_exp.terminal import discard_output

        discard_output()
        if not isinstance(error, BrokenPipeError):
            raise _unwritten(error) from error


def _unwritten(error: OSError) -> UsageError:
    return UsageError(f"standard output cannot be written: {error.strerror}")


def _as_usage_error(error: Exception, folders: Sequence[Path]) -> UsageError | None:
    if isinstance(error, UsageError):
        return error
    from mnist_exp.compose import CONF
    from mnist_exp.explain import as_usage_error

    return as_usage_error(error, folders or (CONF,))
