"""Values that the command line gives as lists, separated by commas: 16,8,4."""

from collections.abc import Callable
from typing import TypeVar

from patchscale.errors import UserError
from patchscale.shapes import parse_img_size
from patchscale.whole_numbers import MOST_DIGITS, whole_number

Value = TypeVar("Value")


def listed(option: str, text: str, parse: Callable[[str], Value], example: str) -> list[Value]:
    """The values in order, each once; raises `UserError` about `option` for an empty list."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UserError(f"{option} {text!r}: give values separated by commas, such as {example}")
    return list(dict.fromkeys(parse(part) for part in parts))


def listed_numbers(option: str, text: str) -> list[int]:
    """Positive whole numbers; raises `UserError` about `option` for anything else."""

    def parse(part: str) -> int:
        number = whole_number(part)
        if not number:
            raise UserError(
                f"{option} {text[:40]!r}: {part[:40]!r} is not a positive whole number of up to {MOST_DIGITS} digits; "
                "give such as 16,8,4"
            )
        return number

    return listed(option, text, parse, "16,8,4")


def listed_img_sizes(option: str, text: str) -> list[int | tuple[int, int]]:
    """Image sizes in pixels: sides, or height x width."""
    return listed(option, text, lambda part: parse_img_size(part, name=option), "224,128x256")
