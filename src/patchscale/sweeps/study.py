"""A study file and the runs it expands to. No torch.

    study: fashion-mnist-nano          # folder under runs/
    recipe: fashion-mnist              # optional: where settings start from
    base: {training: {epochs: 5}}      # optional: settings on top of it
    grid:                              # every combination is a run
      model: [vit_nano, adventurer_nano]
      patch_size: [14, 7, 4]
      seed: [0, 1]
    stages:                            # optional: every combination is trained in these stages
      - {patch_size: 14, training: {epochs: 2}}
      - {patch_size: 7, training: {epochs: 1}}
    order: cheapest-first              # or: widest-first, longest-first, given (order.py)
    resources: {gpus: 1, time_h: 12}   # optional: what runs need of a cluster (resources.py)
    skip_invalid: false                # true leaves out patches that do not divide the image

Each stage is a run of its own that starts from the final weights of the one before, carried to its patch and image
size; a stage may name a `recipe` of its own. Settings: recipe < base < stage < overrides < grid. Several lists of
stages may be compared by giving them names: `stages: {coarse-to-fine: [...], from-scratch: [...]}`; stages that they
begin with in common are trained once.

`grid` may also be a list of such grids; their runs are joined. Names are those of the run's config with dots, such as
`training.learning_rate`; `model`, `patch_size` and `img_size` are short for `model.name`, `model.patch_size` and
`model.img_size`.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from patchscale.config import (
    RunConfig,
    build_config,
    config_problems,
    known_fields,
    parse_override,
    read_yaml,
    set_by_path,
)
from patchscale.errors import UserError
from patchscale.sweeps.order import ORDERS
from patchscale.sweeps.resources import ResourceRule, read_rules

STUDY_KEYS = ("study", "recipe", "base", "grid", "stages", "order", "skip_invalid", "resources")
SHORT_NAMES = {"model": "model.name", "patch_size": "model.patch_size", "img_size": "model.img_size"}
SHORT = {path: name for name, path in SHORT_NAMES.items()}
DEFAULT_GRID_PATHS = (*SHORT, "seed")
"""Overriding one of these with a list makes it an axis of the grid, even if the study has no such axis."""

Axes = dict[str, list[Any]]
"""Dotted path of the config -> the values it takes."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage has of its own."""

    start: dict[str, Any]
    """Nested values of its recipe."""
    settings: dict[str, Any]
    """By dotted path."""
    label: str
    """The name of its list of stages, if it has one."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A named list of runs."""

    name: str
    """Folder under the runs' root."""
    configs: tuple[RunConfig, ...]
    """Each run once, in the order given."""
    order: str = "cheapest-first"
    """One of `patchscale.sweeps.order.ORDERS`."""
    resources: tuple[ResourceRule, ...] = ()
    """What runs need of a cluster; no part of their identity."""
    left_out: tuple[str, ...] = ()
    """Combinations left out under `skip_invalid`, in words."""
    duplicates: int = 0
    """Combinations dropped because they are the same run as another."""


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file; raises one `UserError` that names everything wrong with it.

    An override replaces an axis of the grid (`patch_size=[8,4]`, `seed=0`), a setting of every run
    (`training.epochs=1`) or a key of the study (`order=given`).
    """
    return build_study(read_yaml(path), overrides, source=str(path))


def build_study(values: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str = "study") -> Study:
    """The study described by nested values, as a study file has them; raises `UserError` like `load_study`."""
    problems: list[str] = []
    study = deepcopy(dict(values))
    _refuse_unknown_keys(study, problems)
    grids = _grids(study.get("grid", {}), problems)
    base: dict[str, Any] = {}
    _merge(base, study.get("base"), problems)
    forced: dict[str, Any] = {}
    for override in overrides:
        _apply_override(override, study, forced, grids)

    name = _study_name(study.get("study"), problems)
    order = study.get("order", "cheapest-first")
    if order not in ORDERS:
        problems.append(f"order: {order!r} is not one of {', '.join(ORDERS)}")
    skip_invalid = study.get("skip_invalid", False)
    if not isinstance(skip_invalid, bool):
        problems.append(f"skip_invalid: true or false (got {skip_invalid!r})")
    start = _recipe_values(study.get("recipe"), problems)
    stages = _lists_of_stages(study.get("stages"), start, grids, problems)
    resources = read_rules(study.get("resources"), _path_of, problems)
    if problems:
        raise UserError(f"{source}: " + "; ".join(problems))

    configs, invalid, problems, repeats = _expand(base, stages, forced, grids)
    problems += _idle_rules(resources, configs, {_overridden(text) for text in overrides})
    if invalid and not skip_invalid:
        problems.append(
            f"the patch does not divide the image in {'; '.join(invalid)}: "
            "change these, or set skip_invalid: true to leave them out"
        )
    if problems:
        raise UserError(f"{source}: " + "; ".join(problems))
    if not configs:
        raise UserError(f"{source}: nothing to run, every combination was left out: {'; '.join(invalid)}")
    return Study(
        name=name,
        configs=tuple(configs),
        order=order,
        resources=resources,
        left_out=tuple(invalid),
        duplicates=repeats,
    )


def _refuse_unknown_keys(study: Mapping[str, Any], problems: list[str]) -> None:
    for key in study:
        if key not in STUDY_KEYS:
            problems.append(
                f"{key}: no such key of a study{_hint(str(key), STUDY_KEYS)}; keys: {', '.join(STUDY_KEYS)}"
            )


def _path_of(name: str) -> str | None:
    path = SHORT_NAMES.get(name, name)
    return path if path in config_paths() else None


def _study_name(name: Any, problems: list[str]) -> str:
    if name is None:
        problems.append("study: give it a name, the folder of its runs")
    elif not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", str(name)):
        problems.append(f"study: {name!r} must be a folder's name of letters, digits, '.', '_' and '-'")
    return str(name)


def _lists_of_stages(
    given: Any, start: dict[str, Any], grids: Sequence[Axes], problems: list[str]
) -> list[list[Stage]]:
    """Every list of stages; a study without stages has one of a single stage without settings."""
    if given is None:
        return [[Stage(start=start, settings={}, label="")]]
    lists = given if isinstance(given, dict) else {"": given}
    if not lists or not all(isinstance(stages, list) and stages for stages in lists.values()):
        problems.append(f"stages: expected a list of settings, or named lists of them (got {given!r})")
        return []
    return [
        [
            _stage(stage, f"stages.{name} {number}" if name else f"stages {number}", str(name), start, grids, problems)
            for number, stage in enumerate(stages, 1)
        ]
        for name, stages in lists.items()
    ]


def _stage(
    given: Any, place: str, label: str, start: dict[str, Any], grids: Sequence[Axes], problems: list[str]
) -> Stage:
    settings: dict[str, Any] = {}
    if isinstance(given, dict) and "recipe" in given:
        start = _recipe_values(given["recipe"], problems)
        given = {name: value for name, value in given.items() if name != "recipe"}
    _merge(settings, given, problems, place=place)
    for path in settings:
        if any(path in axes for axes in grids):
            problems.append(f"{place}.{SHORT.get(path, path)}: is an axis of the grid as well; keep one of them")
    for path in ("training.init_from", "training.init_run"):
        if path in settings:
            problems.append(f"{place}.{path}: a stage starts from the one before; for the first one put it in base")
    return Stage(start=start, settings=settings, label=label)


def _recipe_values(name: Any, problems: list[str]) -> dict[str, Any]:
    """The settings that everything starts from."""
    if name is None:
        return {}
    from patchscale.recipes import RECIPES

    if not isinstance(name, str) or name not in RECIPES:
        problems.append(f"recipe: {name!r} is not one of {', '.join(RECIPES)}{_hint(str(name), RECIPES)}")
        return {}
    return RECIPES[name]().to_dict()


def _grids(given: Any, problems: list[str]) -> list[Axes]:
    """The axes of every grid, by dotted path."""
    grids = given if isinstance(given, list) else [given]
    return [_axes(grid, "grid" if len(grids) == 1 else f"grid {n}", problems) for n, grid in enumerate(grids, 1)]


def _axes(grid: Any, place: str, problems: list[str]) -> Axes:
    if not isinstance(grid, dict):
        problems.append(f"{place}: expected names with lists of values (got {grid!r})")
        return {}
    axes: Axes = {}
    for name, values in grid.items():
        path = SHORT_NAMES.get(name, name)
        if path not in config_paths():
            names = (*SHORT_NAMES, *config_paths())
            problems.append(f"{place}.{name}: no such setting of a run{_hint(str(name), names)}")
        elif path == "recipe" or path.startswith("execution."):
            problems.append(f"{place}.{name}: does not change what a run computes; put it in base")
        elif path in axes:
            problems.append(f"{place}: {name} is given twice, under its short and its full name")
        elif values == []:
            problems.append(f"{place}.{name}: an empty list leaves nothing to run")
        else:
            axes[path] = values if isinstance(values, list) else [values]
    if {"training.epochs", "training.steps"} <= set(axes):
        problems.append(f"{place}: give one of training.epochs and training.steps")
    return axes


def _merge(base: dict[str, Any], given: Any, problems: list[str], *, place: str = "base") -> None:
    """Add nested settings to `base`, a dictionary by dotted path; `place` is what they are called in messages."""
    if given is None:
        return
    if not isinstance(given, dict):
        problems.append(f"{place}: expected nested settings (got {given!r})")
        return
    for path, value in _leaves(given):
        path = SHORT_NAMES.get(path, path)
        if path not in config_paths():
            names = (*SHORT_NAMES, *config_paths())
            problems.append(f"{place}.{path}: no such setting of a run{_hint(path, names)}")
        else:
            base[path] = value
    if base.get("training.epochs") is not None and base.get("training.steps") is not None:
        problems.append(f"{place}: give one of training.epochs and training.steps")


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif value != {}:
            yield f"{prefix}{key}", value


def _apply_override(text: str, study: dict[str, Any], forced: dict[str, Any], grids: list[Axes]) -> None:
    name, value = parse_override(text)
    section, _, rest = name.partition(".")
    if section in ("grid", "base") and rest:
        name = rest
    path = SHORT_NAMES.get(name, name)
    if name in ("study", "recipe", "order", "skip_invalid"):
        study[name] = value
        return
    if section == "resources":
        _override_resources(study, rest, value)
        return
    if path not in config_paths():
        names = (*STUDY_KEYS, *SHORT_NAMES, *config_paths())
        raise UserError(f"override {text!r}: no such setting{_hint(name, names)}")
    having = [axes for axes in grids if path in axes]
    if having or section == "grid" or (isinstance(value, list) and path in DEFAULT_GRID_PATHS):
        values = value if isinstance(value, list) else [value]
        if not values:
            raise UserError(f"override {text!r}: an empty list leaves nothing to run")
        for axes in having or grids:
            axes[path] = values
    else:
        forced.pop(_OTHER_DURATION.get(path, ""), None)
        forced[path] = value


def _overridden(text: str) -> str:
    """The dotted path, or the key of the study, that an override is about."""
    name = parse_override(text)[0].removeprefix("grid.").removeprefix("base.")
    return SHORT_NAMES.get(name, name)


def _idle_rules(rules: Sequence[ResourceRule], configs: Sequence[RunConfig], overridden: set[str]) -> list[str]:
    """Rules that hold for no run as the file has them, in words: overrides may well leave a rule without runs."""
    idle = [
        rule
        for rule in rules
        if configs and not overridden & {*rule.where, "recipe"} and not any(map(rule.holds_for, configs))
    ]
    described = [" and ".join(f"{path} in {list(values)}" for path, values in rule.where.items()) for rule in idle]
    return [f"resources.where: no run has {words}" for words in described]


def _override_resources(study: dict[str, Any], name: str, value: Any) -> None:
    """As a last entry, which wins."""
    given = study.get("resources") or []
    settings: dict[str, Any] = {}
    set_by_path(settings, name, value)
    study["resources"] = [*(given if isinstance(given, list) else [given]), settings]


_OTHER_DURATION = {"training.epochs": "training.steps", "training.steps": "training.epochs"}


def _expand(
    base: dict[str, Any], lists: Sequence[Sequence[Stage]], forced: dict[str, Any], grids: Sequence[Axes]
) -> tuple[list[RunConfig], list[str], list[str], int]:
    """Every combination as (configs, combinations whose patch does not divide, other problems, repeats).

    A stage comes after the one that it starts from.
    """
    configs: dict[str, RunConfig] = {}
    invalid: dict[str, None] = {}
    problems: dict[str, None] = {}
    repeats = 0
    for axes in grids:
        for combination, stages in itertools.product(itertools.product(*axes.values()), lists):
            of_combination: list[RunConfig] = []
            for stage in stages:
                values = deepcopy(stage.start)
                chosen = dict(zip(axes, combination, strict=True))
                for settings in (base, stage.settings, forced, chosen):
                    for path, value in settings.items():
                        set_by_path(values, path, value)
                misfit = _misfit(values)
                _start_from(values, of_combination, stage)
                found = [] if misfit else config_problems(values)
                if misfit:
                    invalid[misfit] = None
                elif found:
                    problems |= dict.fromkeys(found)
                if misfit or found:
                    break
                of_combination.append(build_config(values))
            else:
                repeats += of_combination[-1].identity in configs
                for config in of_combination:
                    configs.setdefault(config.identity, config)
    return list(configs.values()), list(invalid), list(problems), repeats


def _start_from(values: dict[str, Any], earlier: Sequence[RunConfig], stage: Stage) -> None:
    """Let a stage start from the one before, if there is one."""
    if stage.label:
        values["recipe"] = f"{values.get('recipe', 'custom')} ({stage.label})"
    if earlier:
        training = values.setdefault("training", {})
        if isinstance(training, dict):
            training.pop("init_from", None)
            training.pop("init_sha256", None)
            training |= {"init_run": earlier[-1].identity, "init_settings": _curriculum(earlier[-1], values)}


def _curriculum(former: RunConfig, values: Mapping[str, Any]) -> str:
    """What the stages before have in common along a curve: their settings, and their sizes relative to this stage's."""
    model, default = values.get("model", {}), RunConfig().model
    words = [former.settings]
    for name in ("patch_size", "img_size"):
        before, now = getattr(former.model, name), model.get(name, getattr(default, name))
        are_sides = isinstance(before, int) and isinstance(now, int) and now > 0
        words.append(f"{before / now:.6g}" if are_sides else str(before))
    return " ".join(words)


def _misfit(values: Mapping[str, Any]) -> str | None:
    """Patch and image in words if the one does not divide the other; wrong types are left to the config's checks."""
    model = values.get("model", {})
    default = RunConfig().model
    patch_size, img_size = model.get("patch_size", default.patch_size), model.get("img_size", default.img_size)
    sides = img_size if isinstance(img_size, list) and len(img_size) == 2 else [img_size]
    if not all(isinstance(side, int) and side > 0 for side in (patch_size, *sides)):
        return None
    height, width = sides[0], sides[-1]
    if height % patch_size == 0 and width % patch_size == 0:
        return None
    return f"patch_size={patch_size} with img_size={img_size if isinstance(img_size, int) else f'{height}x{width}'}"


@cache
def config_paths() -> tuple[str, ...]:
    """Dotted paths of all settings of a run."""

    def below(path: tuple[str, ...]) -> Iterator[str]:
        for name in known_fields(path):
            section = (*path, name)
            yield from below(section) if known_fields(section) else (".".join(section),)

    return tuple(below(()))


def _hint(name: str, known: Iterable[str]) -> str:
    """The names that are meant, perhaps; else those of the section."""
    section, _, last = name.rpartition(".")
    if known_fields(name.split(".")):
        return f"; it is a section with the settings {', '.join(known_fields(name.split('.')))}"
    by_last_part = {path.rpartition(".")[2]: path for path in reversed(list(known))}
    close = [by_last_part[part] for part in get_close_matches(last, list(by_last_part), n=2, cutoff=0.65)]
    if close:
        return f"; did you mean {' or '.join(close)}?"
    fields = known_fields(section.split(".")) if section else []
    return f"; settings of {section}: {', '.join(fields)}" if fields else ""
