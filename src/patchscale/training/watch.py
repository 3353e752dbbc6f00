"""Ranks keep an eye on each other: who hangs, who has died, and who failed first and is to tell of it.

Every rank writes a sign of life into the store that torchrun keeps: a beat, and how far it has come. A thread does so,
and looks for two things that the training thread, waiting in a collective, would learn too late or never: that another
rank has failed, and that nothing has moved for `execution.hang_timeout_s`. While data is prepared, which may take
longer than any step, only a rank that gives no sign of life counts as hung.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from patchscale.errors import RunFailed

GRACE_S = 10.0
"""How long a rank may take to end by itself once another has failed."""
POLL_S = 0.1
_LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "Connection refused", "Timed out")
"""How gloo and NCCL say that another process is gone."""


class Watch:
    """One process alone has nobody to watch."""

    def __init__(self) -> None:
        self.record: Callable[[RunFailed], None] = lambda failure: None
        """Called once, from the watching thread, on the first rank to know of a hang."""

    def moved(self, at: str) -> None:
        """This rank has come to a new place, in words; all ranks come to the same places, in the same order."""

    @contextmanager
    def preparing(self, at: str) -> Iterator[None]:
        """Work that may take any time, on some ranks more than on others; all leave it together."""
        yield

    def first_to_fail(self) -> bool:
        """Whether no other rank has failed before this one; the first tells of it, the others end quietly."""
        return True

    def lost_rank(self, error: Exception) -> RunFailed | None:
        """What `error` of a collective means if it is another rank's death, else None."""
        return None


class StoreWatch(Watch):
    """The watch of one of several processes; `store` is one that all of them see."""

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        super().__init__()
        self.store = dist.PrefixStore("watch", store)
        self.rank, self.size = rank, size
        self._shared, self._groups = store, 0
        self.timeout_s = float("inf")
        self._first: bool | None = None
        self._beats = self._moves = 0
        self._at, self._moved_at = "starting", time.monotonic()
        self._preparations = 0
        self._preparing = False
        self._heard: dict[int, dict[str, Any]] = {}
        """The signs of all ranks at the last look while preparing."""
        self._heard_at = time.monotonic()
        self._closed = threading.Event()
        self._beat()
        threading.Thread(target=self._keep_watch, name="watch", daemon=True).start()

    def close(self) -> None:
        """End the watch."""
        self._closed.set()

    def store_of_group(self) -> dist.Store:
        """A store for a new process group, the same one on all ranks."""
        self._groups += 1
        return dist.PrefixStore(f"group {self._groups}", self._shared)

    def moved(self, at: str) -> None:
        self._moves, self._at, self._moved_at = self._moves + 1, at, time.monotonic()

    @contextmanager
    def preparing(self, at: str) -> Iterator[None]:
        self.moved(at)
        self._heard, self._heard_at = {}, time.monotonic()
        self._preparing = True
        self._beat()
        try:
            yield
            self._wait_for_all()
        finally:
            self.moved(f"done with {at}")
            self._preparing = False

    def _wait_for_all(self) -> None:
        """Until all ranks are here; not in a collective, which would end after the process group's own timeout."""
        self._preparations += 1
        keys = [f"prepared {self._preparations} {rank}" for rank in range(self.size)]
        self.store.set(keys[self.rank], "")
        while not self.store.check(keys):
            # Found hung by this rank's own watch, the run is ended there.
            if self.store.check(["failed"]) and self.store.get("failed") != str(self.rank).encode():
                raise RunFailed("crash", "another rank failed")
            time.sleep(POLL_S)

    def first_to_fail(self) -> bool:
        if self._first is None:
            try:
                self._first = self.store.compare_set("failed", "", str(self.rank)) == str(self.rank).encode()
            except RuntimeError:  # the store has gone, with whoever kept it
                self._first = False
        return self._first

    def lost_rank(self, error: Exception) -> RunFailed | None:
        if not isinstance(error, RuntimeError) or not any(words in str(error) for words in _LOST):
            return None
        before, after = self._two_looks()
        silent = [who for who in before if who == after.get(who["rank"])] if before else []
        return RunFailed(
            "crash",
            f"{_names(silent) or 'another rank'} died at: {silent[0]['at'] if silent else self._at}; see what it said, "
            "and whether the system stopped it for lack of memory",
        )

    @property
    def _interval_s(self) -> float:
        return min(1.0, self.timeout_s / 5)

    def _keep_watch(self) -> None:
        try:
            while not self._closed.wait(self._interval_s):
                self._beat()
                if self.store.check(["failed"]):
                    if not self._closed.wait(GRACE_S):
                        os._exit(1)
                elif self._preparing:
                    self._listen()
                elif time.monotonic() - self._moved_at > self.timeout_s:
                    self._give_up(self._words_for_a_hang())
        except RuntimeError:  # the store has gone: torchrun is ending, and ends this process too
            return

    def _listen(self) -> None:
        """Give up if a rank has given no sign of life since the last look, a timeout ago."""
        if time.monotonic() - self._heard_at <= self.timeout_s:
            return
        before, self._heard = self._heard, {who["rank"]: who for who in self._signs()}
        self._heard_at = time.monotonic()
        silent = [who for rank, who in before.items() if who["beat"] == self._heard[rank]["beat"]]
        if silent:
            self._give_up(self._words(f"no sign of life from {_names(silent)} since: {silent[0]['at']}"))

    def _give_up(self, words: str) -> None:
        """The training thread cannot be reached where it waits, so end the process."""
        failure = RunFailed("hung_rank", words)
        if self.first_to_fail():
            self.record(failure)
            print(f"error: run failed ({failure.kind}): {failure}", file=sys.stderr, flush=True)
            os._exit(1)

    def _words_for_a_hang(self) -> str:
        before, after = self._two_looks()
        silent = [who for who in before if who["beat"] == after[who["rank"]]["beat"] and who["rank"] != self.rank]
        least, most = (select(before, key=lambda who: who["moves"]) for select in (min, max))
        if silent:
            found = f"no sign of life from {_names(silent)} since: {silent[0]['at']}"
        elif least["moves"] < most["moves"]:
            behind = [who for who in before if who["moves"] == least["moves"]]
            found = f"{_names(behind)} did not get on from: {least['at']}, while others wait at: {most['at']}"
        else:
            found = f"no rank gets on from: {most['at']}"
        return self._words(found)

    def _words(self, found: str) -> str:
        return (
            f"{found}; waited {self.timeout_s:g} s (execution.hang_timeout_s, which should be longer than any step); "
            "the last checkpoint is kept, start again to go on from it"
        )

    def _two_looks(self) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
        """The signs of all ranks, and those a little later."""
        before = self._signs()
        time.sleep(3 * self._interval_s)
        self._beat()
        return before, {who["rank"]: who for who in self._signs()}

    def _signs(self) -> list[dict[str, Any]]:
        keys = [f"rank {rank}" for rank in range(self.size)]
        return [json.loads(self.store.get(key)) for key in keys if self.store.check([key])]

    def _beat(self) -> None:
        self._beats += 1
        sign = {"rank": self.rank, "host": socket.gethostname(), "pid": os.getpid(), "beat": self._beats}
        self.store.set(f"rank {self.rank}", json.dumps({**sign, "moves": self._moves, "at": self._at}))


def _names(ranks: list[dict[str, Any]]) -> str:
    return ", ".join(f"rank {who['rank']} ({who['host']}, process {who['pid']})" for who in ranks)
