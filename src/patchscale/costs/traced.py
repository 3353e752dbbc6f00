"""Activations of a model without a formula: it is run on fake tensors, and their storages are counted.

Nothing is allocated. A pass over the whole model finds the arguments of every block; then the costliest is run forward
and backward by itself. What comes before the first block (the stem) and after the last (the tail, up to the pooled
features) is run forward and backward as well. All of it is done with few images and with more, so that what grows with
images is told from what does not. Attention is fused where the CPU's is, which takes no bias that is learned.
Imported on use: needs torch and timm.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from patchscale.costs.activations import Activations, Precision
from patchscale.costs.counted import build_on_meta
from patchscale.shapes import image_height_width

TRACED_IMAGES = (128, 256)
"""Enough for activations to outweigh gradients of weights, so that the largest moment is that of large batches."""


class StorageTracker(TorchDispatchMode):
    """Bytes of the storages that operations make and that still live, now and at the most.

    Storages of `known` tensors are not counted.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}
        self._known = known  # kept alive, so that no other storage takes their place

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and look at what it returns."""
        out = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key, size).atexit = False

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


@dataclass(frozen=True)
class BlockTrace:
    """Bytes of one block."""

    stream: int
    kept: int
    """After its forward pass, with its input and without its output."""
    forward: int
    """At most in a forward pass without gradients, beside its input."""
    beyond_kept: int
    """At most in its backward pass beside that; gradients of weights as well."""


def fake_copy(model: nn.Module, device: str) -> nn.Module:
    """The model with fake parameters and buffers on `device`; call within a `FakeTensorMode`."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(
                    torch.empty(parameter.shape, dtype=parameter.dtype, device=device), parameter.requires_grad
                )
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    return model


@dataclass(frozen=True)
class EndsTrace:
    """Bytes of what lies outside the blocks; each as in `Activations`."""

    stem: int
    stem_forward: int
    stem_backward: int
    tail: int
    tail_forward: int
    tail_backward: int
    held: int


def traced_activations(
    model: str, *, patch_size: int, img_size: int | tuple[int, int], images: int, precision: Precision
) -> Activations:
    """Of a pass with `images`; raises `UserError` if torch or timm is missing, or timm has no such model."""
    return _traced_by_name(model, patch_size, image_height_width(img_size), precision).at(images)


@dataclass(frozen=True)
class ModelTrace:
    """A model's activations with few images and with more (`TRACED_IMAGES`)."""

    depth: int
    blocks: tuple[BlockTrace, BlockTrace]
    """Of the costliest block."""
    ends: tuple[EndsTrace, EndsTrace]

    def at(self, images: int) -> Activations:
        """With any number of images."""
        fewer, more = TRACED_IMAGES

        def whole(pair: tuple[Any, Any], name: str) -> int:
            return int(getattr(pair[0], name)) + growing(pair, name, images - fewer)

        def growing(pair: tuple[Any, Any], name: str, number: int = images) -> int:
            """Without what does not grow with images: weights' copies and gradients, which are counted elsewhere."""
            return number * int(getattr(pair[1], name) - getattr(pair[0], name)) // (more - fewer)

        kept = whole(self.blocks, "kept")
        return Activations(
            depth=self.depth,
            stream=growing(self.blocks, "stream"),
            block=kept,
            block_forward=whole(self.blocks, "forward"),
            block_backward=kept + growing(self.blocks, "beyond_kept"),
            **{each.name: growing(self.ends, each.name) for each in fields(EndsTrace)},
        )


@cache
def _traced_by_name(model: str, patch_size: int, sides: tuple[int, int], precision: Precision) -> ModelTrace:
    return trace_model(build_on_meta(model, patch_size=patch_size, img_size=sides), sides=sides, precision=precision)


def trace_model(model: nn.Module, *, sides: tuple[int, int], precision: Precision) -> ModelTrace:
    """Of a model of timm's kind, with `blocks` and no head, that is on the meta device and is of no use afterwards."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = fake_copy(model.train(), "cpu")
        blocks = list(model.blocks)  # type: ignore[arg-type]
        of_fewer, of_more = (_arguments(model, blocks, images, sides, precision) for images in TRACED_IMAGES)
        pairs = [
            (_trace(block, *of_fewer[i], precision), _trace(block, *of_more[i], precision))
            for i, block in _distinct(blocks)
        ]
        fewer, more = (_trace_ends(model, blocks, images, sides, precision) for images in TRACED_IMAGES)
    return ModelTrace(depth=len(blocks), blocks=max(pairs, key=lambda pair: pair[1].kept), ends=(fewer, more))


def _distinct(blocks: list[nn.Module]) -> list[tuple[int, nn.Module]]:
    """The first and the last block: one of them is as costly as any."""
    return [(i, blocks[i]) for i in sorted({0, len(blocks) - 1})]


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _arguments(
    model: nn.Module, blocks: list[nn.Module], images: int, sides: tuple[int, int], precision: Precision
) -> list[Arguments]:
    """What every block is called with."""
    found: list[Arguments] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args, kwargs: found.append((args, kwargs)), with_kwargs=True)
        for block in blocks
    ]
    with _autocast(precision):
        model.forward_features(torch.empty(images, 3, *sides))  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    return found


def _trace(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], precision: Precision) -> BlockTrace:
    args, kwargs = tree_map_only(Tensor, lambda t: t.detach().requires_grad_(t.requires_grad), (args, kwargs))
    known = [*block.parameters(), *block.buffers()]
    known += [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
    stream = _storage_bytes(args[0])
    parameters = sum(parameter.numel() for parameter in block.parameters())
    copies = 2 * parameters if precision == "bf16" else 0
    tracker = StorageTracker(known)
    with tracker, torch.no_grad(), _autocast(precision):
        block(*args, **kwargs)
    forward = tracker.peak - copies
    tracker = StorageTracker(known)
    with tracker:
        with _autocast(precision):
            out = block(*args, **kwargs)
        out = out[0] if isinstance(out, tuple) else out
        result = _storage_bytes(out)
        kept = tracker.live - result - copies
        tracker.peak = tracker.live
        out.backward(torch.empty_like(out))
    block.zero_grad()
    beyond_kept = tracker.peak - copies - kept - result
    return BlockTrace(stream=stream, kept=stream + kept, forward=forward, beyond_kept=beyond_kept)


def _trace_ends(
    model: nn.Module, blocks: list[nn.Module], images: int, sides: tuple[int, int], precision: Precision
) -> EndsTrace:
    batch = torch.empty(images, 3, *sides)
    weight = nn.Parameter(torch.empty(1, int(model.num_features)))  # type: ignore[arg-type]
    known = [*model.parameters(), *model.buffers(), batch, weight]

    def predict() -> Tensor:
        with _autocast(precision):
            return nn.functional.linear(model(batch), weight)  # a head, so that what it reads is kept

    stem_forward, tail_forward, held = _forward_of_ends(predict, blocks, known)
    stem, stem_backward = _stem(predict, blocks[0], known)
    tail, tail_backward = _tail(predict, blocks[-1], known)
    model.zero_grad()
    return EndsTrace(
        stem=stem,
        stem_forward=stem_forward,
        stem_backward=stem_backward,
        tail=tail,
        tail_forward=tail_forward,
        tail_backward=tail_backward,
        held=held,
    )


def _forward_of_ends(
    predict: Callable[[], Tensor], blocks: list[nn.Module], known: list[Tensor]
) -> tuple[int, int, int]:
    """(most up to the first block, most after the last beside what is held, held beside the last one's input)."""
    tracker = StorageTracker(known)
    stem = held = 0

    def before_first(_: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal stem
        stem = tracker.peak

    def before_last(_: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal held
        held = tracker.live - _storage_bytes(args[0])

    def after_last(*_: Any) -> None:
        tracker.peak = tracker.live

    hooks = [
        blocks[0].register_forward_pre_hook(before_first),
        blocks[-1].register_forward_pre_hook(before_last),
        blocks[-1].register_forward_hook(after_last),
    ]
    with tracker, torch.no_grad():
        predict()
    for hook in hooks:
        hook.remove()
    return stem, tracker.peak - held, held


class _Reached(Exception):
    """The first block, with its input."""


def _stem(predict: Callable[[], Tensor], first: nn.Module, known: list[Tensor]) -> tuple[int, int]:
    """(kept before the first block, at most in the backward pass of it), without the block's input."""

    def stop(_: nn.Module, args: tuple[Any, ...]) -> None:
        raise _Reached(args[0])

    hook = first.register_forward_pre_hook(stop)
    tracker = StorageTracker(known)
    with tracker:
        try:
            predict()
        except _Reached as reached:
            (tokens,) = reached.args
        hook.remove()
        kept = tracker.live - _storage_bytes(tokens)
        return kept, _backward_peak(tracker, tokens)


def _tail(predict: Callable[[], Tensor], last: nn.Module, known: list[Tensor]) -> tuple[int, int]:
    """(kept after the last block, at most in the backward pass of it), with the block's output if it is kept."""

    def start_again(_: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        return tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor).requires_grad_(), out)

    hook = last.register_forward_hook(start_again)
    tracker = StorageTracker(known)
    with tracker:
        logits = predict()
        hook.remove()
        kept = tracker.live - _storage_bytes(logits)
        return kept, _backward_peak(tracker, logits)


def _backward_peak(tracker: StorageTracker, out: Tensor) -> int:
    """The most that lives in the backward pass from `out`, beside it."""
    tracker.peak = tracker.live
    out.backward(torch.empty_like(out))
    return tracker.peak - _storage_bytes(out)


def _storage_bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _autocast(precision: Precision) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
