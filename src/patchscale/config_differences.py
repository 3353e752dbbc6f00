"""In what configs differ, by the names that settings have on the command line."""

from collections.abc import Mapping, Sequence
from typing import Any

from patchscale.config import RunConfig


def differing_values(configs: Sequence[RunConfig]) -> dict[str, list[str]]:
    """`{"training.learning_rate": ["0.001", "0.01"]}`: of what should be equal along a curve, one value a config."""
    found = [_by_name(config.curve_values()) for config in configs]
    names = dict.fromkeys(name for values in found for name in values)
    texts = {name: [_text(values.get(name)) for values in found] for name in names}
    return {name: values for name, values in texts.items() if len(set(values)) > 1}


def _by_name(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested values as one level: `training.learning_rate`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _by_name(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return found


def _text(value: Any) -> str:
    return "none" if value is None else str(value)
