"""What a run needs of a cluster: key `resources` of a study, a table or a list of them. No torch.

    resources:
      - {gpus: 1, cpus: 8, memory_gib: 32, time_h: 12, slurm: {partition: gpu}}
      - {where: {patch_size: [1, 2]}, nodes: 2, gpus: 8, time_h: 48}

Later entries win. None of it is part of a run's identity.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from patchscale.config import RunConfig

NUMBERS = {
    "nodes": int,
    "gpus": float,
    "processes": int,
    "cpus": int,
    "memory_gib": float,
    "gpu_memory_gib": float,
    "time_h": float,
}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Of one run."""

    nodes: int = 1
    gpus: float | None = None
    """Of each node, whole ones, or a part of one: Ray lets runs share it, elsewhere it is a whole one."""
    processes: int | None = None
    """Of each node. Default: as many as GPUs, at least 1. More than one in all are started with torchrun."""
    cpus: int | None = None
    """Of each node."""
    memory_gib: float | None = None
    """Of each node."""
    gpu_memory_gib: float | None = None
    """Memory of a GPU, where several runs share one (Ray)."""
    time_h: float | None = None
    """Time limit of a job; a run that has not ended by then is queued again and goes on."""
    slurm: Mapping[str, Any] = field(default_factory=dict)
    """Further parameters of sbatch, by their names, such as partition, account, qos, constraint."""

    @property
    def processes_per_node(self) -> int:
        """Ranks that every node starts."""
        return self.processes or max(1, int(self.gpus or 0))

    @property
    def whole_gpus(self) -> int | None:
        """Of each node, where none is shared; None if nothing was said."""
        return None if self.gpus is None else math.ceil(self.gpus)

    @property
    def devices(self) -> int:
        """What hours are counted of: GPUs of all nodes, a shared one whole, or processes where there are none."""
        return self.nodes * (self.whole_gpus or self.processes_per_node)


@dataclass(frozen=True, kw_only=True)
class ResourceRule:
    """Settings of `Resources` for the runs that `where` describes."""

    where: Mapping[str, Sequence[Any]]
    """Dotted path of the config -> values it may have."""
    settings: Mapping[str, Any]

    def holds_for(self, config: RunConfig) -> bool:
        """Whether the run is one of those."""
        return all(_at(config, path) in values for path, values in self.where.items())


def resources_of(config: RunConfig, rules: Sequence[ResourceRule]) -> Resources:
    """What the run needs."""
    settings: dict[str, Any] = {}
    for rule in rules:
        if rule.holds_for(config):
            further = {**settings.get("slurm", {}), **rule.settings.get("slurm", {})}
            settings |= {**rule.settings, "slurm": further}
    return Resources(**settings)


def read_rules(given: Any, path_of: Callable[[str], str | None], problems: list[str]) -> tuple[ResourceRule, ...]:
    """The rules in a study file; `path_of` gives the dotted path of a setting of a run, None if there is none."""
    if given is None:
        return ()
    entries = given if isinstance(given, list) else [given]
    return tuple(
        _rule(entry, "resources" if len(entries) == 1 else f"resources {number}", path_of, problems)
        for number, entry in enumerate(entries, 1)
    )


def _rule(entry: Any, place: str, path_of: Callable[[str], str | None], problems: list[str]) -> ResourceRule:
    if not isinstance(entry, dict):
        problems.append(f"{place}: expected settings such as {{gpus: 1, time_h: 12}} (got {entry!r})")
        return ResourceRule(where={}, settings={})
    known = [each.name for each in fields(Resources)]
    settings = {}
    for name, value in entry.items():
        if name in NUMBERS:
            whole = NUMBERS[name] is int
            is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value) or value < 0:
                problems.append(f"{place}.{name}: a {'whole ' if whole else ''}number (got {value!r})")
            elif name == "gpus" and value > 1 and value % 1:
                problems.append(f"{place}.gpus: a whole number, or a part of one GPU such as 0.25 (got {value!r})")
            elif value == 0 and name in ("nodes", "processes", "time_h"):
                problems.append(f"{place}.{name}: more than 0 (got {value!r})")
            settings[name] = value
        elif name == "slurm":
            if not isinstance(value, dict):
                problems.append(f"{place}.slurm: expected parameters of sbatch, such as {{partition: gpu}}")
            else:
                settings[name] = value
        elif name != "where":
            problems.append(f"{place}.{name}: no such resource; choose from {', '.join([*known, 'where'])}")
    if settings.get("nodes", 1) != 1 and isinstance(settings.get("gpus"), float) and settings["gpus"] % 1:
        problems.append(f"{place}: a fraction of a GPU cannot be shared by {settings['nodes']} nodes")
    return ResourceRule(where=_where(entry.get("where", {}), f"{place}.where", path_of, problems), settings=settings)


def _where(
    given: Any, place: str, path_of: Callable[[str], str | None], problems: list[str]
) -> dict[str, Sequence[Any]]:
    if not isinstance(given, dict):
        problems.append(f"{place}: expected settings with their values, such as {{patch_size: [2, 4]}} (got {given!r})")
        return {}
    where: dict[str, Sequence[Any]] = {}
    for name, value in given.items():
        path = path_of(str(name))
        if path is None:
            problems.append(f"{place}.{name}: no such setting of a run")
            continue
        try:
            where[path] = [_as_in_config(path, each) for each in (value if isinstance(value, list) else [value])]
        except ValidationError:
            problems.append(f"{place}.{name}: no value of this setting (got {value!r})")
    return where


def _as_in_config(path: str, value: Any) -> Any:
    """The value as a config has it: 16 for "16", a tuple for a list."""
    section: Any = RunConfig
    for name in path.split("."):
        section = {each.name: each.type for each in fields(section)}[name]
    return TypeAdapter(section).validate_python(value)


def _at(config: RunConfig, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value
