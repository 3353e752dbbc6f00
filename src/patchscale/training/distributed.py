"""The processes of a run, called ranks: which there are, which rows of a batch each has, what they settle together.

torchrun starts several; a process started otherwise is `ALONE`, and touches nothing of torch.distributed. Ranks form a
mesh ("dp", "sp"): those of one "sp" group share their images, each with a part of the tokens.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from patchscale.config import ExecutionConfig
from patchscale.errors import UserError
from patchscale.training.device import resolve_device
from patchscale.training.order import Order
from patchscale.training.watch import StoreWatch, Watch

LAST_WORDS_S = 5.0
"""A rank that fails after another waits so long before it ends: torchrun stops all as soon as one has ended."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those of the run. The default is one process alone, for which all of this is trivial."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Number among the processes of this machine."""
    local_size: int = 1
    mesh: DeviceMesh | None = None
    """Dimensions "dp" and "sp"."""
    everyone: DeviceMesh | None = None
    """The same ranks in a row."""
    watch: Watch = field(default_factory=Watch)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes and speaks."""
        return self.rank == 0

    @property
    def groups(self) -> int:
        """In how many parts a batch is divided."""
        return 1 if self.mesh is None else self.mesh["dp"].size()

    @property
    def sharing(self) -> int:
        """How many ranks share an image."""
        return self.size // self.groups

    @property
    def group(self) -> int:
        """Which of these parts is this rank's."""
        return 0 if self.mesh is None else self.mesh["dp"].get_local_rank()

    def own_device(self, device: torch.device) -> torch.device:
        """Of several CUDA devices that of this process; raises `UserError` if there are too few."""
        if self.size == 1 or device.type == "cpu":
            return device
        if device.type != "cuda":
            raise UserError(f"execution.device={device.type} is for one process; torchrun needs cpu or cuda")
        if self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{self.local_size} processes on this machine and {torch.cuda.device_count()} CUDA devices: "
                "give torchrun --nproc-per-node as many, or execution.device=cpu"
            )
        return torch.device("cuda", self.local_rank)

    def sum(self, value: Tensor) -> Tensor:
        """Sum over the parts of a batch, the same on all ranks."""
        if self.mesh is None:
            return value
        value = value.clone()
        dist.all_reduce(value, group=self.mesh["dp"].get_group())
        return value

    def agree(self, stop: int, due: bool) -> tuple[int, bool]:
        """The largest `stop` of all ranks, and what `due` is on rank 0."""
        if self.size == 1:
            return stop, due
        said = torch.tensor([stop, due and self.is_main])
        dist.all_reduce(said, op=dist.ReduceOp.MAX)
        return int(said[0]), bool(said[1])

    def largest(self, value: int) -> int:
        """The largest `value` of all ranks."""
        if self.size == 1:
            return value
        said = torch.tensor(value)
        dist.all_reduce(said, op=dist.ReduceOp.MAX)
        return int(said)

    def wait(self) -> None:
        """Until all ranks are here."""
        self.largest(0)


ALONE = Ranks()


def rows_of_part(batch_size: int, part: int, parts: int, *, paired: bool) -> list[int]:
    """The rows of a batch that belong to one of its parts, as equal in number as may be.

    `paired` keeps rows i and batch_size - 1 - i together, at mirrored places, for mixup and cutmix, which mix every
    image with its mirror. Raises `UserError` if a part would be empty.
    """
    if parts == 1:
        return list(range(batch_size))
    places = batch_size // 2 if paired else batch_size
    if places < parts:
        what = "pairs of images (mixup and cutmix mix the two of a pair)" if paired else "images"
        raise UserError(
            f"training.batch_size={batch_size} has {places} {what} for {parts} processes: start fewer, or raise "
            "execution.sequence_parallel"
        )
    front = range(places * part // parts, places * (part + 1) // parts)
    return [*front, *(batch_size - 1 - row for row in reversed(front))] if paired else list(front)


class RowsOrder:
    """Some rows of every batch of another order."""

    def __init__(self, order: Order, rows: Sequence[int]) -> None:
        self.order = order
        self.rows = rows

    def __call__(self, number: int) -> list[Any]:
        """The keys of these rows of batch `number`."""
        keys = self.order(number)
        return [keys[row] for row in self.rows]


def several_processes() -> bool:
    """Whether torchrun, or whoever sets its variables, started this process with others."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


_watch: StoreWatch | None = None
_ranks: Ranks | None = None


@contextmanager
def connected() -> Iterator[None]:
    """Within, an error that ends this process is raised on the first rank that has one; the others end quietly.

    So it is told once. Alone, or inside another one, this does nothing.
    """
    global _watch
    if _watch is not None or not several_processes():
        yield
        return
    store, rank, size = next(dist.rendezvous("env://"))
    watch = _watch = StoreWatch(store, rank, size)
    try:
        yield
    except Exception:
        if watch.first_to_fail():
            raise
        time.sleep(LAST_WORDS_S)
        raise SystemExit(1) from None
    finally:
        watch.close()
        _watch = None


@contextmanager
def joined(execution: ExecutionConfig) -> Iterator[Ranks]:
    """The ranks of this run, with a process group while it lasts; inside another one, the same ranks.

    Raises `UserError` for devices that are not there, and for a number of processes that `sequence_parallel` does not
    divide.
    """
    global _ranks
    with connected():
        if _ranks is not None or _watch is None:
            if _watch is None and execution.sequence_parallel > 1:
                raise UserError(
                    f"execution.sequence_parallel={execution.sequence_parallel} needs as many processes; start with: "
                    f"torchrun --nproc-per-node {execution.sequence_parallel} -m patchscale train ..."
                )
            yield _ranks or ALONE
            return
        try:
            _ranks = _join(_watch, execution)
            yield _ranks
        finally:
            _ranks = None
            if dist.is_initialized():
                dist.destroy_process_group()


def _join(watch: StoreWatch, execution: ExecutionConfig) -> Ranks:
    share = execution.sequence_parallel
    if watch.size % share:
        raise UserError(f"execution.sequence_parallel={share} does not divide {watch.size} processes")
    local_rank = int(os.environ.get("LOCAL_RANK", watch.rank))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", watch.size))
    ranks = Ranks(rank=watch.rank, size=watch.size, local_rank=local_rank, local_size=local_size, watch=watch)
    device = ranks.own_device(resolve_device(execution.device))
    watch.timeout_s = execution.hang_timeout_s
    watch.moved("joining")
    # The watch ends a hung run first, and knows who hangs; a group's own timeout would end the process without a word.
    timeout = timedelta(seconds=2 * execution.hang_timeout_s + 60)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend, bound_to = "cpu:gloo,cuda:nccl", device
    else:
        backend, bound_to = "gloo", None
    dist.init_process_group(
        backend,
        store=watch.store_of_group(),
        rank=watch.rank,
        world_size=watch.size,
        timeout=timeout,
        device_id=bound_to,
    )
    mesh = init_device_mesh(device.type, (watch.size // share, share), mesh_dim_names=("dp", "sp"))
    watch.moved("joined")
    everyone = init_device_mesh(device.type, (watch.size,))
    return replace(ranks, mesh=mesh, everyone=everyone)
