"""Memory of one training step, by part, from closed formulas. No torch for the built-in models.

Counted is what tensors need. Not counted: the Python process with torch in it (0.4 to 0.6 GiB, on a GPU some 0.5 GiB
more), data sets held in memory, loader processes.

Activations are what autograd keeps from the forward pass for the backward pass: the inputs of matrix products, norms,
gates, and of attention or scan. Residual sums and reshapes keep nothing. Per token and block, in numbers (D embed_dim,
m mlp_dim; E d_inner, S d_state, H heads; P = 2E + 2S + H outputs of in_proj; c = E + 2S channels of the convolution):

    ViT          8 D + 2 m              inputs of norms 2D and of linear layers 3D + m; q, k, v 3D; GELU's m
    Adventurer   4 D + P + 3 c + 4 E    inputs of norms 2D, of in_proj and SwiGLU 2D; P; into and out of the convolution
                 + 4 m                  and its SiLU 3c; scan's output, gate, their product, normed 4E; SwiGLU 4m
      on a CPU   6 D + P + E + 4 m      norms keep 2D more; what lies between in_proj and out_proj is computed again,
                                        stretch by stretch (`models/mixing.py`); if it is short, the scan keeps 6E more

With bf16 autocast, matrix products and what they read take 2 bytes a number, norms and the residual stream 4. The
score matrix of attention does not appear: fused attention never writes it. With activation checkpointing only the input
of every block is kept, besides the activations of one block at a time.

For the built-in models the total is right to a factor of 1.5 on a CPU (`tests/costs/test_memory.py` measures it). On
GPUs it has not been measured.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from patchscale.costs.counts import count
from patchscale.costs.params import PosEmbed
from patchscale.shapes import SHAPES, AdventurerShape, ViTShape, image_height_width

FLOAT32 = 4
IMAGE_BYTES_PER_PIXEL = 2 * 3 * FLOAT32 + 8
"""Three channels, twice, because the next batch is loaded or mixed meanwhile; and a label."""
# How Adventurer works on a CPU, as in `models/mamba2.py` and `models/ssd/chunked.py`.
STRETCHES_FROM_ELEMENTS = 2**24
"""Outputs of in_proj in a pass from which on they are mixed stretch by stretch."""
ELEMENTS_PER_STRETCH = 2**20
"""Outputs of in_proj in a stretch, for each thread."""
SCAN_SEGMENT = 1024
"""Tokens of a shorter sequence for which the scan keeps its intermediate results."""
SCAN_KEPT = 6
"""Those, in numbers per token and channel."""
# Measured on a CPU with torch 2.15, 2026-11-22.
STRETCH_WORKING = 16
"""Intermediate results of a stretch that is computed again, in numbers per output of in_proj."""
GENERIC_FACTOR = 1.5
"""For models of timm without a formula of their own: rotary positions, gated layers and layer scales keep more."""
SCORES_KEPT = 4
"""Copies of the score matrix where attention cannot be fused, because a position bias or mixed heads come between."""


@dataclass(frozen=True, kw_only=True)
class TrainMemory:
    """Bytes of one training step with AdamW, by part."""

    weights: int
    gradients: int
    optimizer: int
    """Two moments of every parameter."""
    ema: int
    """The moving average of the weights, if one is kept."""
    batch: int
    """Images and targets of the whole batch."""
    activations: int
    """Kept from the forward pass of a micro-batch for its backward pass."""
    activations_checkpointed: int
    """The same with activation checkpointing: inputs of all blocks, and one block's activations."""
    working: int
    """Intermediate results beside what is kept; copies of the weights in bf16; at least those of the optimizer step."""

    def total(self, *, activation_checkpointing: bool) -> int:
        """The most that is needed at a time."""
        return sum(self.parts(activation_checkpointing=activation_checkpointing).values())

    def parts(self, *, activation_checkpointing: bool) -> dict[str, int]:
        """Bytes by part, one of the two kinds of activations left out."""
        parts = asdict(self)
        checkpointed = parts.pop("activations_checkpointed")
        return parts | {"activations": checkpointed} if activation_checkpointing else parts


def estimate_train_memory(
    model: str,
    *,
    patch_size: int,
    img_size: int | tuple[int, int],
    batch_size: int,
    micro_batch_size: int | None = None,
    num_classes: int = 1000,
    task: str = "classification",
    pos_embed: PosEmbed = "learned",
    precision: Literal["fp32", "bf16"] = "fp32",
    ema: bool = False,
    device: str = "cuda",
    num_threads: int = 1,
) -> TrainMemory:
    """Memory of a training step of `batch_size` images, `micro_batch_size` (default: all) of them in a pass.

    Adventurer works differently on `device="cpu"`, where `num_threads` counts, than on all others. A built-in name
    needs no torch; other timm names do, and their estimate is rougher and on the high side. Raises `UserError` as
    `estimate_cost` does.
    """
    cost = count(
        model, patch_size=patch_size, img_size=img_size, num_classes=num_classes, task=task, pos_embed=pos_embed
    )
    height, width = image_height_width(img_size)
    images = micro_batch_size or batch_size
    narrow: int = 2 if precision == "bf16" else FLOAT32
    weights = FLOAT32 * cost.params_total
    shape = SHAPES.get(model)
    if isinstance(shape, ViTShape):
        blocks = _vit_block_bytes(shape, images * cost.tokens, narrow)
    elif isinstance(shape, AdventurerShape):
        threads = num_threads if device == "cpu" else None
        blocks = _adventurer_block_bytes(shape, images, cost.tokens, narrow, cpu_threads=threads)
    else:
        blocks = _timm_block_bytes(model, images, cost.tokens, narrow, patch_size=patch_size, img_size=img_size)
    stream = FLOAT32 * blocks.embed_dim * images * cost.tokens  # the tokens between two blocks
    head_kept, head_working = _head_bytes(num_classes, images * cost.tokens, images * height * width, task)
    ends = 2 * stream + head_kept  # input and output of the last norm
    return TrainMemory(
        weights=weights,
        gradients=weights,
        optimizer=2 * weights,
        ema=weights if ema else 0,
        batch=batch_size * height * width * IMAGE_BYTES_PER_PIXEL,
        activations=blocks.depth * blocks.kept + ends,
        activations_checkpointed=blocks.depth * stream + max(blocks.kept, ends),  # the head's are gone by then
        working=max(
            max(blocks.working, head_working) + (cost.params_total * narrow if precision == "bf16" else 0),
            weights,  # the optimizer's intermediate results
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Blocks:
    """Equal blocks; bytes for all images of a pass."""

    depth: int
    embed_dim: int
    kept: int
    """Activations of one block."""
    working: int
    """Intermediate results of one block, backward."""


def _vit_block_bytes(shape: ViTShape, tokens: int, narrow: int) -> _Blocks:
    D, m = shape.embed_dim, shape.mlp_dim
    kept = FLOAT32 * 2 * D + narrow * (6 * D + 2 * m)
    working = FLOAT32 * 2 * D + narrow * 2 * m
    return _Blocks(depth=shape.depth, embed_dim=D, kept=kept * tokens, working=working * tokens)


def _adventurer_block_bytes(
    shape: AdventurerShape, images: int, tokens: int, narrow: int, *, cpu_threads: int | None
) -> _Blocks:
    """On a CPU with that many threads; elsewhere for None."""
    D, m, E, S, H = shape.embed_dim, shape.mlp_dim, shape.d_inner, shape.d_state, shape.num_heads
    P, c = 2 * E + 2 * S + H, E + 2 * S
    outside_mixer = FLOAT32 * (2 * D if cpu_threads is None else 4 * D) + narrow * (2 * D + 4 * m)
    rows = images * tokens
    if cpu_threads is not None and rows * P >= STRETCHES_FROM_ELEMENTS:
        kept = outside_mixer + narrow * (P + E)
        working = FLOAT32 * (2 * D + E) + narrow * P
        stretch = STRETCH_WORKING * FLOAT32 * ELEMENTS_PER_STRETCH * cpu_threads
    else:
        scan = SCAN_KEPT * E if cpu_threads is not None and tokens <= SCAN_SEGMENT else 0
        kept = outside_mixer + FLOAT32 * E + narrow * (P + 3 * c + 3 * E + scan)
        working = FLOAT32 * (2 * D + E) + narrow * (4 * E + c)
        stretch = 0
    return _Blocks(depth=shape.depth, embed_dim=D, kept=kept * rows, working=working * rows + stretch)


def _timm_block_bytes(
    model: str, images: int, tokens: int, narrow: int, *, patch_size: int, img_size: int | tuple[int, int]
) -> _Blocks:
    """From the layers of the model: inputs and outputs of all that have weights, and room for what lies between."""
    from patchscale.costs.counted import layers_on_meta

    layers = layers_on_meta(model, patch_size=patch_size, img_size=img_size)
    scores = SCORES_KEPT * narrow * layers.num_heads * tokens**2 if layers.keeps_scores else 0
    kept = images * (int(GENERIC_FACTOR * narrow * layers.widths * tokens) + scores)
    return _Blocks(depth=layers.depth, embed_dim=layers.embed_dim, kept=kept, working=kept // 2)


def _head_bytes(num_classes: int, tokens: int, pixels: int, task: str) -> tuple[int, int]:
    """(kept, working). Dense logits, where they are enlarged, exist per patch and twice per pixel."""
    if task != "segmentation":
        return 0, 0
    enlarged = tokens < pixels
    kept = (tokens + 2 * pixels if enlarged else pixels) + pixels  # and their logarithmic softmax
    return FLOAT32 * num_classes * kept, FLOAT32 * num_classes * 2 * pixels
