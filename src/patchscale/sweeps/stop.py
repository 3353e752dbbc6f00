"""Ctrl-C and SIGTERM to a sweep: the first is remembered, the second kills its runs."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class SweepInterrupted(KeyboardInterrupt):
    """A sweep that was asked to stop, and whose runs have saved their state; `exit_code` is 130 or 143."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__("sweep stopped")
        self.exit_code = 128 + received


class StopRequests:
    """While entered, the first signal is in `received`, for the runs to be asked to save; at the second `kill`s them.

    Signals reach the main thread only; entered in another thread this does nothing.
    """

    def __init__(self, kill: Callable[[], None]) -> None:
        self.received: signal.Signals | None = None
        self._kill = kill
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self._kill()
        self.received = signal.Signals(number)
