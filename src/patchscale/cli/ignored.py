"""Options that would have no effect where they are given: refused, so that nobody takes them for heard."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import typer


def refuse_ignored(why: str, given: Mapping[str, Any]) -> None:
    """Raise `UserError` that says `why` if any option, by its name, is given: neither empty nor None."""
    from patchscale.errors import UserError

    names = [name for name, value in given.items() if value]
    if names:
        raise UserError(f"{why}; leave out {' and '.join(names)}")


def typed(context: "typer.Context", *options: str) -> dict[str, bool]:
    """Which of `options` (--draws) stand on the command line, whatever their value: for those that have a default."""
    sources = {name: context.get_parameter_source(name.removeprefix("--").replace("-", "_")) for name in options}
    return {name: source is not None and source.name == "COMMANDLINE" for name, source in sources.items()}
