"""Numbers and names as a reader wants them: four digits, per cent, powers of ten, minutes."""

import math
from typing import Any

METRIC_NAMES = {
    "top1": "Top-1 accuracy",
    "mIoU": "Mean IoU",
    "box_ap": "Box AP",
    "box AP": "Box AP",
    "mask AP": "Mask AP",
}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def missing(value: Any) -> bool:
    """Whether a cell of a table is empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return type(value).__name__ in ("NAType", "NaTType")  # of pandas, which takes a second to import


def number(value: Any, digits: int = 4) -> str:
    """Four significant digits; ∞ and "–" where there is no number."""
    if missing(value):
        return "–"
    value = float(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return scientific(value)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}".replace("-", "−")


def scientific(value: Any, digits: int = 2) -> str:
    """1.23e15 as 1.23×10¹⁵; a bare 10¹⁵ where the mantissa rounds to 1."""
    if missing(value):
        return "–"
    mantissa, exponent = f"{float(value):.{digits}e}".split("e")
    power = f"10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    return power if mantissa == "1" else f"{mantissa}×{power}".replace("-", "−")


def percent(fraction: Any, decimals: int = 1) -> str:
    """A fraction as per cent."""
    if not missing(fraction) and math.isinf(float(fraction)):
        return "∞" if float(fraction) > 0 else "−∞"
    return "–" if missing(fraction) else f"{100 * float(fraction):.{decimals}f} %".replace("-", "−")


def integer(value: Any) -> str:
    """A count with a thin space between thousands."""
    return "–" if missing(value) else f"{round(float(value)):,}".replace(",", "\u202f")


def duration(seconds: Any) -> str:
    """A time in the two units that matter."""
    if missing(seconds):
        return "–"
    seconds = float(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def size_bytes(value: Any) -> str:
    """Bytes in binary units."""
    if missing(value):
        return "–"
    value = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.3g} {unit}"


def plain(value: Any) -> str:
    """A cell as text; whole numbers lose the ".0" that a table with gaps gives them."""
    if missing(value):
        return "–"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}".replace("-", "−")
    return str(value)


def listed(items: list[str], last: str = "and") -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}" if items else ""


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """1 run, 2 runs."""
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"
