"""Stop a run at a signal, so that it can be saved first."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Context manager that records SIGINT and SIGTERM; calling it returns whether one arrived.

    A second SIGINT raises KeyboardInterrupt. The signals are unblocked, because a sweep starts its processes with blocked
    signals, which then wait for this handler. Outside the main thread, where Python allows no handlers, it does nothing.

    Args:
        more: further signals to record.

    Attributes:
        signal: the number of the signal that arrived, or None.
    """

    def __init__(self, *more: signal.Signals) -> None:
        self.signal: int | None = None
        self._numbers = (signal.SIGINT, signal.SIGTERM, *more)
        self._previous: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
                self._previous[number] = signal.signal(number, self._note)
            if hasattr(signal, "pthread_sigmask"):  # not on Windows
                signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
