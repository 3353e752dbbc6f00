"""All processes of a run doing one thing: what one of them meets, all of them know. One process alone just does it."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def is_distributed() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def on_every_rank(action: Callable[[], T]) -> list[T]:
    """What `action` returned on each rank, in their order; if it raised on one, that error is raised on all."""
    if not is_distributed():
        return [action()]
    value, error = None, None
    try:
        value = action()
    except Exception as raised:
        error = raised
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, (value, error))
    errors = [error, *(other for _, other in outcomes)]  # one's own first: it has its traceback
    for each in errors:
        if each is not None:
            raise each
    return [value for value, _ in outcomes]


def on_rank_0(action: Callable[[], T]) -> T:
    """What `action` returned on rank 0, the only one that does it; its error is raised on all."""
    if not is_distributed():
        return action()
    outcomes: list[T | None] = on_every_rank(lambda: action() if dist.get_rank() == 0 else None)
    return outcomes[0]  # type: ignore[return-value]
