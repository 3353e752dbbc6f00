"""Options that would have no effect where they are given: refused, so that nobody takes them for heard."""

from collections.abc import Mapping
from typing import Any


def refuse_ignored(why: str, given: Mapping[str, Any]) -> None:
    """Raise `UserError` that says `why` if any option, by its name, is given: neither empty nor None."""
    from patchscale.errors import UserError

    names = [name for name, value in given.items() if value]
    if names:
        raise UserError(f"{why}; leave out {' and '.join(names)}")
