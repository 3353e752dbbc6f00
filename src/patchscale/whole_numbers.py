"""Whole numbers out of text: what options and settings give as digits."""

MOST_DIGITS = 18
"""Longer ones fit no machine integer, and mean nothing that is counted here."""


def whole_number(text: str) -> int | None:
    """The number that decimal digits are, None for any other text and for more than 18 digits."""
    return int(text) if text.isdecimal() and len(text) <= MOST_DIGITS else None
