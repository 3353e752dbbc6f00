"""Fetching the next item while the one before is in use.

Taking a batch over from a loader process is mostly waiting: for torch to pass on a piece of shared memory. A thread
waits as well as the training loop does, and the loop has the batch at once.
"""

import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Queue
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE_S = 5.0
"""How long closing waits for an item that is being fetched; torch gives its loader processes as long to end."""


def fetched_ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """Yield `items` as they come, fetched by a thread of their own, at most two ahead; an error comes in its place.

    Closing it ends the thread. If that is in the midst of fetching for more than `PATIENCE_S`, it ends when it has
    fetched, and holds up nobody: not the end of the process either.
    """
    fetched: Queue[_Item[T] | _End] = Queue(maxsize=1)
    closed = threading.Event()
    thread = threading.Thread(target=_fetch, args=(items, fetched, closed), name="fetch ahead", daemon=True)
    thread.start()
    try:
        while isinstance(one := fetched.get(), _Item):
            yield one.value
        if one.error is not None:
            raise one.error
    finally:
        closed.set()
        with suppress(Empty):
            fetched.get_nowait()  # room for the one item that the thread may still put
        thread.join(PATIENCE_S)


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True)
class _End:
    error: BaseException | None = None


def _fetch(items: Iterator[T], fetched: "Queue[_Item[T] | _End]", closed: threading.Event) -> None:
    try:
        for item in items:
            fetched.put(_Item(item))
            if closed.is_set():
                return
        fetched.put(_End())
    except BaseException as error:
        fetched.put(_End(error))
