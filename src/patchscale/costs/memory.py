"""Peak memory of a training step and of a forward pass, by part, from closed formulas. No torch for built-in models.

Memory rises and falls within a step, so the peak is that of its largest moment, not the sum of parts that never live at
the same time. Weights, both moments of AdamW, the moving average and the batch live throughout. Besides:

    end of forward     activations of all parts, the head's intermediate results
    head, tail         the same, with gradients of the head and of what lies between it and the blocks
    last block         activations of all blocks, that block's gradients and intermediate results
    first block        activations of one block and its intermediate results, all gradients
    stem               activations of the patch embedding and its intermediate results, all gradients
    optimizer step     all gradients, the optimizer's intermediate results

With activation checkpointing "activations of all blocks" are their inputs, and those of the block at hand. With
micro-batches all gradients live throughout, from the second on. With bf16 autocast copies of the weights live from the
forward pass to the backward pass of their layer. What blocks keep and need is in `costs/activations.py`; a model
without a formula is traced (`costs/traced.py`).

Counted is what tensors need. Not counted: the process with torch in it (0.4 to 0.6 GiB, on a GPU some 0.5 GiB more),
workspaces of libraries, data sets held in memory, loader processes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from patchscale.costs.activations import FLOAT32, Activations, Precision, activations
from patchscale.costs.counts import Counts
from patchscale.errors import UserError
from patchscale.shapes import ViTShape, image_height_width

MEMORY_SHARE = 0.8
"""Part of a device's memory that an estimate may fill: estimates err, and others use the machine too."""
LABEL_BYTES = 8
"""A class, as torch's cross-entropy takes it: of every image, or in segmentation of every pixel."""
OPTIMIZER_COPIES_ON_CPU = 2
"""Of the largest parameter: AdamW goes through them one by one."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that live at the largest moment, by part."""

    weights: int
    gradients: int = 0
    optimizer: int = 0
    """Two moments of every parameter."""
    ema: int = 0
    """The moving average of the weights, if one is kept."""
    batch: int
    """Images and targets of the whole batch."""
    activations: int
    """What the forward pass left for the backward pass; at inference, the tokens between two blocks."""
    workspace: int
    """Intermediate results beside it, copies of the weights in bf16, those of the optimizer."""
    peak_at: str
    """Which moment it is."""
    moments: Mapping[str, int]
    """Bytes of every moment, all parts together."""
    activations_at: Mapping[str, int] = field(default_factory=dict)
    """`activations` of every moment."""

    @property
    def forward_activations_bytes(self) -> int | None:
        """What the forward pass of a training step leaves for its backward pass, in bytes; None at inference."""
        return self.activations_at.get("end of forward")

    @property
    def peak_bytes(self) -> int:
        """The most that lives at a time: the sum of `parts()`."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Bytes by part."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.type in (int, "int")}


@dataclass(frozen=True, kw_only=True)
class _Moment:
    gradients: int = 0
    activations: int = 0
    workspace: int = 0

    @property
    def total(self) -> int:
        return self.gradients + self.activations + self.workspace


def train_memory(
    counts: Counts,
    *,
    batch_size: int,
    micro_batch_size: int | None = None,
    precision: Precision = "fp32",
    activation_checkpointing: bool = False,
    ema: bool = False,
    device: str = "cuda",
    num_threads: int = 1,
) -> Memory:
    """Peak of a training step with AdamW on `batch_size` images, `micro_batch_size` (default: all) of them in a pass.

    Adventurer works differently on `device="cpu"`, where `num_threads` counts, than on all others. The step is one that
    is not the first, so that the optimizer has its moments. Raises `UserError` for sizes below 1 or an unknown
    precision, and for a model without a formula where torch is missing.
    """
    images = min(micro_batch_size or batch_size, batch_size)
    blocks = _activations(counts, batch_size, images, precision, device, num_threads)
    narrow = 2 if precision == "bf16" else FLOAT32
    head = _head(counts, images, narrow)
    weights = FLOAT32 * counts.params_total
    head_gradients = FLOAT32 * head.params
    block_gradients = FLOAT32 * _block_params(counts) // blocks.depth
    copies = narrow * (_block_params(counts) + counts.params.get("patch_embed", 0) + head.params)
    if precision == "fp32":
        copies = 0
    earlier = weights if images < batch_size else 0  # gradients of the micro-batches before

    inner = blocks.stream if activation_checkpointing else blocks.block
    held_copies = copies // blocks.depth if activation_checkpointing else copies
    last_gradients = earlier + block_gradients if earlier else head_gradients + block_gradients
    first_gradients = earlier + block_gradients if earlier else weights
    moments = {
        "end of forward": _Moment(
            gradients=earlier,
            activations=blocks.depth * inner + blocks.ends + head.kept,
            workspace=copies + head.forward,
        ),
        "head": _Moment(
            gradients=earlier + head_gradients,
            activations=blocks.depth * inner + blocks.ends + head.kept,
            workspace=held_copies + head.backward,
        ),
        "tail": _Moment(
            gradients=earlier + head_gradients,
            activations=blocks.depth * inner + blocks.ends,
            workspace=held_copies + blocks.tail_backward - blocks.tail,
        ),
        "last block": _Moment(
            gradients=last_gradients,
            activations=(blocks.depth - 1) * inner + blocks.block + blocks.stem,
            workspace=held_copies + blocks.block_backward - blocks.block,
        ),
        "first block": _Moment(
            gradients=first_gradients,
            activations=blocks.block + blocks.stem,
            workspace=copies // blocks.depth + blocks.block_backward - blocks.block,
        ),
        "stem": _Moment(
            gradients=first_gradients, activations=blocks.stem, workspace=blocks.stem_backward - blocks.stem
        ),
        "optimizer step": _Moment(
            gradients=weights,
            workspace=weights if device != "cpu" else OPTIMIZER_COPIES_ON_CPU * FLOAT32 * _largest_parameter(counts),
        ),
    }
    if activation_checkpointing:
        moments["last block, forward"] = _Moment(
            gradients=earlier,
            activations=blocks.depth * blocks.stream + blocks.stem,
            workspace=copies + blocks.block_forward,
        )
    return _at_the_peak(
        moments,
        weights=weights,
        optimizer=2 * weights,
        ema=weights if ema else 0,
        batch=_batch_bytes(counts, batch_size, with_targets=True),
    )


def infer_memory(
    counts: Counts,
    *,
    batch_size: int,
    precision: Precision = "fp32",
    device: str = "cuda",
    num_threads: int = 1,
) -> Memory:
    """Peak of a forward pass without gradients over `batch_size` images; the rest as in `train_memory`."""
    blocks = _activations(counts, batch_size, batch_size, precision, device, num_threads)
    narrow = 2 if precision == "bf16" else FLOAT32
    head = _head(counts, batch_size, narrow)
    copies = 0
    if precision == "bf16":  # autocast keeps them until the pass ends
        copies = narrow * (_block_params(counts) + counts.params.get("patch_embed", 0) + head.params)
    moments = {
        "block": _Moment(activations=blocks.stream, workspace=copies + blocks.held + blocks.block_forward),
        "stem": _Moment(workspace=copies + blocks.stem_forward),
        "tail": _Moment(
            activations=blocks.stream, workspace=copies + blocks.held + blocks.tail_forward - blocks.stream
        ),
        "head": _Moment(activations=blocks.stream, workspace=copies + head.inference),
    }
    return _at_the_peak(
        moments,
        weights=FLOAT32 * counts.params_total,
        batch=_batch_bytes(counts, batch_size, with_targets=False),
    )


def _at_the_peak(moments: dict[str, _Moment], **throughout: int) -> Memory:
    name = max(moments, key=lambda each: moments[each].total)
    peak, always = moments[name], sum(throughout.values())
    return Memory(
        **throughout,
        gradients=peak.gradients,
        activations=peak.activations,
        workspace=peak.workspace,
        peak_at=name,
        moments={each: always + moment.total for each, moment in moments.items()},
        activations_at={each: moment.activations for each, moment in moments.items()},
    )


def _activations(
    counts: Counts, batch_size: int, images: int, precision: Precision, device: str, num_threads: int
) -> Activations:
    if batch_size < 1 or images < 1 or num_threads < 1:
        raise UserError(
            f"batch_size={batch_size}, images in a pass {images}, num_threads={num_threads}: give numbers from 1 up"
        )
    if precision not in ("fp32", "bf16"):
        raise UserError(f"precision={precision!r} is not known; choose fp32 or bf16")
    if counts.shape is None:
        from patchscale.costs.traced import traced_activations

        return traced_activations(
            counts.model,
            patch_size=counts.patch_size,
            img_size=counts.img_size,
            images=images,
            precision=precision,
        )
    height, width = image_height_width(counts.img_size)
    return activations(
        counts.shape,
        images=images,
        tokens=counts.tokens,
        pixels=height * width,
        precision=precision,
        cpu_threads=num_threads if device == "cpu" else None,
    )


@dataclass(frozen=True, kw_only=True)
class _Head:
    """Bytes of the head for all images of a pass."""

    params: int
    kept: int = 0
    forward: int = 0
    """Beside what is kept, at the end of the forward pass with its loss."""
    backward: int = 0
    inference: int = 0


def _head(counts: Counts, images: int, narrow: int) -> _Head:
    if counts.head_counts is None:
        return _Head(params=0)
    head = counts.head_counts
    logits = FLOAT32 * images * head.logits_numbers
    coarse = FLOAT32 * images * head.coarse_logits_numbers
    working = narrow * images * head.working_numbers
    return _Head(
        params=sum(head.params.values()),
        kept=narrow * images * head.kept_numbers + logits,  # the logarithmic softmax
        forward=logits,  # enlarged; classes come last already
        backward=max(working, 2 * logits),
        inference=max(working, coarse + logits),
    )


def _block_params(counts: Counts) -> int:
    head = sum(counts.head_counts.params.values()) if counts.head_counts else 0
    outside = sum(counts.params.get(part, 0) for part in ("patch_embed", "pos_embed", "cls_token"))
    return counts.params_total - head - outside


def _largest_parameter(counts: Counts) -> int:
    """Numbers of the largest matrix; that of the patch embedding never is it."""
    D, shape = counts.embed_dim, counts.shape
    if shape is None:
        widest = 4 * D
    elif isinstance(shape, ViTShape):
        widest = max(3 * D, shape.mlp_dim * (2 if shape.mlp == "swiglu" else 1))
    else:
        widest = 2 * shape.d_inner + 2 * shape.d_state + shape.num_heads
    return max(D * widest, counts.params_pos_embed, D * counts.num_classes if counts.head == "linear" else 0)


def _batch_bytes(counts: Counts, images: int, *, with_targets: bool) -> int:
    height, width = image_height_width(counts.img_size)
    labels = (1 if counts.task == "classification" else height * width) if with_targets else 0
    return images * (FLOAT32 * 3 * height * width + LABEL_BYTES * labels)
