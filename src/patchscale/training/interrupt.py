"""Ctrl-C and SIGTERM ask a run to finish its step, save and stop; a second one stops it at once."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop and has saved its state; `exit_code` is 130 (Ctrl-C) or 143 (SIGTERM)."""

    def __init__(self, received: signal.Signals, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + received


class StopSignals:
    """While entered, remembers the first SIGINT or SIGTERM in `received` instead of dying of it.

    Signals reach the main thread only; entered in another thread this does nothing. A second signal within `echo_s`
    seconds is taken for the same: torchrun passes on what its processes, on Ctrl-C, have had already.
    """

    def __init__(self, echo_s: float = 0.0) -> None:
        self.echo_s = echo_s
        self._first_at = 0.0
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._first_at = signal.Signals(number), now
            if not self.echo_s:
                self._restore()  # the next one is obeyed at once
        elif now - self._first_at > self.echo_s:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
