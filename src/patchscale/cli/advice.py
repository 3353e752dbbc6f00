"""What a function advises its caller, said in the options of a command."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def in_options(apart: str) -> Iterator[None]:
    """Inside, runs of unlike protocols are refused with options; `apart` is the one for the column named at {}."""
    from patchscale.errors import UserError
    from patchscale.laws.protocols import UnlikeProtocols

    try:
        yield
    except UnlikeProtocols as error:
        raise UserError(error.in_options(apart)) from None


BY = "tell them apart with --by +{}"
GROUPS = "give each its own floor with --groups {}"
