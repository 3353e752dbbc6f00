"""A function in a process of its own, where nothing allocated, compiled or cached before colours what it measures.

The processes are forked from a server that has imported torch already, so each starts in milliseconds. A script whose
own functions are called needs the usual `if __name__ == "__main__":`, since they are looked up by importing it.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, TypeVar

from patchscale.errors import UserError

PRELOADED = ["patchscale.measurements.step"]

Result = TypeVar("Result")


class ChildFailed(RuntimeError):
    """The function raised, or took too long."""


class ChildDied(RuntimeError):
    """The process ended without a word; `exit_code` is minus the signal that ended it, if one did."""

    def __init__(self, exit_code: int) -> None:
        cause = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
        super().__init__(f"its process died ({cause})")
        self.exit_code = exit_code

    @property
    def is_out_of_memory(self) -> bool:
        """Whether the system killed it, as it does for want of memory."""
        return self.exit_code == -signal.SIGKILL


def in_fresh_process(
    function: Callable[..., Result], *arguments: Any, timeout_s: float | None = None, **options: Any
) -> Result:
    """What `function(*arguments, **options)` returns in a new process; all of them must be picklable.

    Raises `ChildFailed` with the text of an exception (a `UserError` comes through as such) or after `timeout_s`, and
    `ChildDied`. The process never outlives this call.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, function, arguments, options))
    try:
        with _script_hidden_from(function):
            process.start()
    except (EOFError, ConnectionError) as error:
        advice = f"to see why: {sys.executable} -c 'import {', '.join(PRELOADED)}'"
        raise ChildFailed(
            f"the process that starts others has died, probably while importing torch; {advice}"
        ) from error
    sender.close()
    try:
        if not receiver.poll(timeout_s):
            raise ChildFailed(f"not done within {timeout_s:.0f} s")
        kind, value = receiver.recv()
    except EOFError:
        process.join()
        assert process.exitcode is not None
        raise ChildDied(process.exitcode) from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if kind == "user_error":
        raise UserError(value)
    if kind == "error":
        raise ChildFailed(value)
    result: Result = value
    return result


@contextmanager
def _script_hidden_from(function: Callable[..., Any]) -> Iterator[None]:
    """Keep multiprocessing from importing the user's script in the child, unless the function is defined there."""
    main = sys.modules["__main__"]
    if function.__module__ != "__main__":
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _child(
    sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer: it ends this process
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    answer: tuple[str, Any]
    try:
        answer = "result", function(*arguments, **options)
    except UserError as error:
        answer = "user_error", str(error)
    except Exception as error:
        answer = "error", f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    with suppress(BrokenPipeError):
        sender.send(answer)


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
