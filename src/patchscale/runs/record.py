"""The run directory: the one thing that crosses from training to analysis. No torch.

    runs/<study>/<run_id>/
        config.yaml        the resolved config
        environment.json   versions, machine, device, seeds
        data.json          the split: counts, classes, fingerprint
        metrics.jsonl      one row per logged step and per validation
        checksums.json     of results and final weights, written when the run is done
        status.json        queued, running, done, failed (with its kind) or interrupted
        result.json        one row of results, written once, at the end
        checkpoint/        what a resume needs, and the final weights
        log.txt            what the run printed
        claims/            which process carries it out (claim.py)

Small files are written to a temporary name and renamed; metrics.jsonl is appended to.
"""

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from patchscale.config import RunConfig, load_config
from patchscale.errors import UserError
from patchscale.files import create_text, write_json, write_text
from patchscale.runs.checksums import write_checksums
from patchscale.runs.claim import Claim, ClaimLost, Owner, beating, holder, last_number, take_claim

STATES = ("queued", "running", "done", "failed", "interrupted")
FAILURE_KINDS = ("non_finite", "out_of_memory", "storage", "data", "config", "hung_rank", "crash")


class RunBusy(UserError):
    """Another process holds this run."""


class RunDirectory:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._claim: Claim | None = None
        """While `lock` holds the run."""

    @classmethod
    def create(cls, runs_root: Path, study: str, config: RunConfig) -> "RunDirectory":
        """The directory of `config` under `runs_root/study`; made and marked queued if it is new."""
        run = cls(runs_root / study / config.run_id)
        # Neither replaces a file: another process may be making the same run, or be further. A folder is a run as soon
        # as it has a status, so that comes last.
        if not (run.config_path.exists() and (run.path / "status.json").exists()):
            create_text(run.config_path, config.to_yaml())
            create_text(run.path / "status.json", run._status_text("queued"))
        return run

    @property
    def config_path(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        """One JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoint_dir(self) -> Path:
        """Where checkpoints and final weights are."""
        return self.path / "checkpoint"

    @property
    def log_path(self) -> Path:
        """What the run printed."""
        return self.path / "log.txt"

    def config(self) -> RunConfig:
        """Read the resolved config; raises `UserError` if this is not a run directory."""
        if not self.config_path.exists():
            raise UserError(f"{self.path}: not a run directory (it has no config.yaml)")
        return load_config(self.config_path)

    def status(self) -> dict[str, Any]:
        """The last written status, at least {"state": ...}; a run whose process is gone is "interrupted".

        Raises `UserError` if status.json is not one of ours.
        """
        status = self.read_json("status.json") or {"state": "queued"}
        if status.get("state") not in STATES:
            raise UserError(f"{self.path / 'status.json'}: not a run's status (state is {status.get('state')!r})")
        if status["state"] == "running" and not self.is_locked():
            # Read again: the run may have ended between the two looks, having written its last state first.
            status = self.read_json("status.json") or status
            if status["state"] == "running":
                status["state"] = "interrupted"
        return status

    def write_status(self, state: str, **details: Any) -> None:
        """Record the state, with host, process and time; `kind` and `message` accompany failed.

        The `step` reached and the number of `steps` stay known when the run stops.
        """
        assert state in STATES, state
        assert state != "failed" or details.get("kind") in FAILURE_KINDS, details
        with suppress(UserError):
            before = self.read_json("status.json") or {}
            details = {name: before[name] for name in ("step", "steps") if name in before} | details
        self.beat()
        if state == "done":
            write_checksums(self.path)
        write_text(self.path / "status.json", self._status_text(state, **details))

    def _status_text(self, state: str, **details: Any) -> str:
        """With the number of the newest claim: which attempt says so."""
        status = {
            "state": state,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "attempt": self.attempt(),
            "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return json.dumps(status | details, indent=2) + "\n"

    def result(self) -> dict[str, Any] | None:
        """The results row, or None before the end."""
        return self.read_json("result.json")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The content of a JSON file of this run, or None if there is none; raises `UserError` if it is damaged."""
        path = self.path / name
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); delete it and the run is done again") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
        return value

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file of this run, whole or not at all."""
        self.beat()
        write_json(self.path / name, value)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Claim the run for this process, which no other process of any machine then does (`claim.py`).

        Raises `RunBusy` if a living process holds it. A process that was taken for dead, because it gave no sign of
        life for `STALE_AFTER_S`, ends at once when it finds that another one has gone on.
        """
        claim = take_claim(self.claims_path)
        if claim is None:
            raise RunBusy(f"{self.path}: another process is running this run; wait for it")
        try:
            with beating(claim, when_lost=self._end_at_once):
                self._claim = claim
                yield
        finally:
            self._claim = None
            claim.release()

    def beat(self) -> None:
        """Before this process writes what counts: if it holds the run, and was taken for dead, it ends here instead."""
        try:
            if self._claim is not None:
                self._claim.beat()
        except ClaimLost:
            self._end_at_once()
        except OSError:  # the file system is away, as what is written next will find
            return

    def is_locked(self) -> bool:
        """Whether a living process holds the run."""
        return self.owner() is not None

    def owner(self) -> Owner | None:
        """The living process that holds the run."""
        return holder(self.claims_path)

    def attempt(self) -> int:
        """How often the run has been claimed; changes with every attempt at it."""
        return last_number(self.claims_path)

    @property
    def claims_path(self) -> Path:
        """Claims of the processes that carried it out."""
        return self.path / "claims"

    def _end_at_once(self) -> None:
        print(f"error: {self.path}: this process was taken for dead, another one goes on", file=sys.stderr, flush=True)
        os._exit(os.EX_TEMPFAIL)


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON line in a single write; `OSError` if the disk takes only a part of it."""
    line = (json.dumps(row) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)
