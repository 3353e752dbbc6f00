"""What becomes of a run whose attempt did not end well, by the kind of failure. No torch.

| what happened | what is done |
| --- | --- |
| preempted, node lost, stopped from outside | tried again, as long as it gets on; `FRUITLESS` times if it does not |
| killed, and nothing tells why | the same, three times; from then on as if for want of memory |
| out of memory | tried again with activation checkpointing, then with ever smaller micro-batches of the same batch |
| a hung rank, a crash without a word or of several processes | tried again, `FRUITLESS_CRASHES` times |
| non-finite, data, any other crash | not tried again: the run is a function of its config |
| config, if no run of the study has trained yet; no room on the disk | no further run is started: all would fail |

Counts are in `retries.json` of the run directory, so that they hold for whoever goes on with the study.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from patchscale.config import RunConfig, build_config
from patchscale.errors import UserError
from patchscale.files import write_text
from patchscale.runs.record import RunBusy, RunDirectory
from patchscale.sweeps.executors.base import Ending
from patchscale.sweeps.states import Verdict, write_down

FRUITLESS = 10
FRUITLESS_KILLS = 3
FRUITLESS_CRASHES = 2
RETRIED_LATER = ("out_of_memory", "hung_rank")
"""Failures that a run writes down itself, perhaps while the sweep is dead, and that another try may mend."""
FILE = "retries.json"


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Whether a run is tried again, and why."""

    again: bool
    reason: str = ""
    stops_study: bool = False
    """No further run of the study should be started."""


def decide(run: RunDirectory, verdict: Verdict, ending: Ending, *, processes: int, any_trained: bool) -> Retry:
    """What to do with a run after an attempt; counts the attempt, and changes `execution` if memory was short."""
    try:
        return _decide(run, verdict, ending, processes=processes, any_trained=any_trained)
    except OSError as error:
        return Retry(again=False, stops_study=True, reason=f"{error.filename}: {error.strerror}, no run can be saved")


def _decide(run: RunDirectory, verdict: Verdict, ending: Ending, *, processes: int, any_trained: bool) -> Retry:
    if verdict.state == "interrupted":
        return Retry(again=False) if ending.cancelled else _again(run, "preempted", FRUITLESS)
    if verdict.state != "failed":
        return Retry(again=False)
    retry = _after_failure(run, verdict, ending, processes=processes, any_trained=any_trained)
    if not retry.again and verdict.kind in RETRIED_LATER:
        run.write_json(FILE, _record(run) | {"given_up": True})
    return retry


def gets_on(run: RunDirectory) -> bool:
    """Whether a run that is taken away again has got on since the last `FRUITLESS` times; counts this one."""
    return _again(run, "preempted", FRUITLESS).again


def reconsider(run: RunDirectory, verdict: Verdict, *, processes: int) -> bool:
    """Whether a run that failed while no sweep looked is tried again; it is open then."""
    if verdict.kind not in RETRIED_LATER or "given_up" in _record(run) or run.is_locked():
        return False
    if not decide(run, verdict, Ending(exit_code=1), processes=processes, any_trained=True).again:
        return False
    write_down(run, replace(verdict, state="interrupted", written=False))
    return True


def _after_failure(run: RunDirectory, verdict: Verdict, ending: Ending, *, processes: int, any_trained: bool) -> Retry:
    kind = verdict.kind
    if kind == "out_of_memory":
        if ending.exit_code is not None and ending.exit_code < 0 and not ending.out_of_memory:
            retry = _again(run, "killed", FRUITLESS_KILLS)
            if retry.again:
                return retry
        smaller = _with_less_memory(run)
        return Retry(again=smaller is not None, reason=smaller or "")
    if kind == "hung_rank" or (kind == "crash" and (not verdict.written or processes > 1)):
        return _again(run, str(kind), FRUITLESS_CRASHES)
    if kind == "config" and not any_trained:
        return Retry(again=False, stops_study=True, reason="a mistake in the configuration would fail every run")
    if kind == "storage":
        return Retry(again=False, stops_study=True, reason="no run can be saved")
    return Retry(again=False)


def with_retries(run: RunDirectory, config: RunConfig) -> RunConfig:
    """`config` with what earlier attempts have taught about its execution."""
    learned = _record(run).get("execution")
    return _changed(config, learned) if learned else config


def forget(run: RunDirectory) -> None:
    """Count from 0 again; what was learned about memory is kept."""
    if (run.path / FILE).exists():
        run.write_json(FILE, {name: value for name, value in _record(run).items() if name == "execution"})


def set_execution(run: RunDirectory, settings: Mapping[str, Any]) -> None:
    """Change the run's `execution` settings, unless a process holds it."""
    with suppress(RunBusy), run.lock():
        write_text(run.config_path, _changed(run.config(), settings).to_yaml())


def _again(run: RunDirectory, kind: str, limit: int) -> Retry:
    """Count an attempt that got no further than the one before, and say whether there may be another."""
    record = _record(run)
    with suppress(UserError):
        step = (run.read_json("status.json") or {}).get("step") or 0
        before = record.get(kind, {"count": 0, "step": 0})
        count = 1 if step > before["step"] else before["count"] + 1
        record[kind] = {"count": count, "step": max(step, before["step"])}
        run.write_json(FILE, record)
        return Retry(again=count <= limit, reason=f"try {count + 1} of {limit + 1}")
    return Retry(again=False)


def _with_less_memory(run: RunDirectory) -> str | None:
    """Let the run need less memory from now on; says how, None if nothing is left to try."""
    config = run.config()
    memory = (run.read_json("environment.json") or {}).get("memory", {})
    chosen = config.execution.micro_batch_size
    if chosen == "auto" and memory and not memory["splittable"]:
        return None  # a model that needs its whole batch, such as one with batch norm
    size = memory.get("micro_batch_size", config.training.batch_size) if chosen == "auto" else chosen
    if config.execution.activation_checkpointing != "on" and not memory.get("activation_checkpointing"):
        settings: dict[str, Any] = {"activation_checkpointing": "on", "micro_batch_size": size}
        words = "with activation checkpointing"
    elif size > 1:
        settings = {"activation_checkpointing": "on", "micro_batch_size": size // 2}
        words = f"in parts of {size // 2} images of the same batch"
    else:
        return None
    run.write_json(FILE, _record(run) | {"execution": settings})
    set_execution(run, settings)
    return words


def _record(run: RunDirectory) -> dict[str, Any]:
    """What retries.json has; a damaged one counts from 0 again."""
    with suppress(UserError):
        return run.read_json(FILE) or {}
    return {}


def _changed(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    values = config.to_dict()
    values.setdefault("execution", {}).update(settings)
    return build_config(values)
