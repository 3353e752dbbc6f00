"""Vision encoders and projectors as plain numbers: parameters and multiply-adds.

Legend: D embed_dim, m mlp_dim, n tokens of one tile (patches and a class token), p patch_size.
"""

from dataclasses import dataclass
from typing import Literal

Norm = Literal["layer", "rms"]


def norm_params(norm: Norm, width: int) -> int:
    """Weight and bias of LayerNorm, weight alone of RMSNorm."""
    return 2 * width if norm == "layer" else width


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """A vision transformer without pooling head; every linear layer has a bias unless said otherwise."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    patch_size: int
    gated_mlp: bool = False
    """Three matrices (SwiGLU) instead of two."""
    frames_per_patch: int = 1
    """Depth of the patch kernel in time; an image is repeated to fill it."""
    patch_bias: bool = True
    qkv_bias: bool = True
    norm: Norm = "layer"
    norms_outside: int = 0
    """Norms before and after all blocks together."""
    class_token: bool = False
    position_rows: int = 0
    """Rows of the learned position table; 0 for rotary positions alone."""
    rotary: bool = False
    """Queries and keys are turned, in 32 bits."""
    quick_gelu: bool = False
    """GELU as x sigmoid(1.702 x), which holds one more copy of the hidden layer (CLIP, Qwen2-VL)."""
    qk_norm: bool = False
    layer_scale: bool = False
    window: int | None = None
    """Patches on a side of an attention window; None attends to the whole tile."""
    full_attention_blocks: int = 0
    """Blocks that attend to the whole tile although there are windows."""

    @property
    def patch_inputs(self) -> int:
        """Numbers in one patch."""
        return 3 * self.frames_per_patch * self.patch_size**2


def encoder_params(shape: EncoderShape) -> int:
    """All parameters of the encoder."""
    D, m = shape.embed_dim, shape.mlp_dim
    attention = 4 * D * D + (3 * D if shape.qkv_bias else 0) + D
    if shape.qk_norm:
        attention += 2 * norm_params("rms", D)
    mlp = 3 * D * m + 2 * m + D if shape.gated_mlp else 2 * D * m + m + D
    block = attention + mlp + 2 * norm_params(shape.norm, D) + (2 * D if shape.layer_scale else 0)
    outside = shape.norms_outside * norm_params(shape.norm, D) + shape.position_rows * D
    return (
        shape.depth * block
        + outside
        + (D if shape.class_token else 0)
        + shape.patch_inputs * D
        + (D if shape.patch_bias else 0)
    )


def attended_pairs(shape: EncoderShape, patch_grid: tuple[int, int]) -> int:
    """Pairs of tokens that attend to each other in one tile, added up over all blocks."""
    n = patch_grid[0] * patch_grid[1] + (1 if shape.class_token else 0)
    if shape.window is None:
        return shape.depth * n * n
    windowed = 1
    for side in patch_grid:  # windows are rectangles, so the sum of their squares is a product
        whole, rest = divmod(side, shape.window)
        windowed *= whole * shape.window**2 + rest**2
    return shape.full_attention_blocks * n * n + (shape.depth - shape.full_attention_blocks) * windowed


def encoder_macs(shape: EncoderShape, patch_grid: tuple[int, int]) -> dict[str, int]:
    """Multiply-adds of one tile of (rows, columns) patches, by part; all blocks run, whichever one's output is used."""
    D = shape.embed_dim
    patches = patch_grid[0] * patch_grid[1]
    n = patches + (1 if shape.class_token else 0)
    matrices = 4 * D * D + (3 if shape.gated_mlp else 2) * D * shape.mlp_dim
    return {
        "encoder_patch_embed": patches * shape.patch_inputs * D,
        "encoder_linear": shape.depth * n * matrices,
        "encoder_attention": 2 * D * attended_pairs(shape, patch_grid),
    }


@dataclass(frozen=True, kw_only=True)
class ProjectorShape:
    """From patches to the language model's width: merge_size^2 neighbours are concatenated, then one or two layers."""

    in_dim: int
    out_dim: int
    merge_size: int = 1
    hidden_dim: int | None = None
    """Width between two linear layers; None for a single one."""
    norm: Norm | None = None
    norm_after_merging: bool = False
    taps: int = 0
    """Copies of the projector on outputs of earlier blocks, with the norm after merging (Qwen3-VL's DeepStack)."""
    newline: bool = False
    """A learned token for ends of rows (LLaVA-NeXT)."""

    @property
    def merged_dim(self) -> int:
        """Width of merged patches."""
        return self.in_dim * self.merge_size**2


def projector_params(shape: ProjectorShape) -> int:
    """All parameters of the projector, its copies and the newline token."""
    if shape.hidden_dim is None:
        layers = (shape.merged_dim + 1) * shape.out_dim
    else:
        layers = (shape.merged_dim + 1) * shape.hidden_dim + (shape.hidden_dim + 1) * shape.out_dim
    norm = tap_norm = 0
    if shape.norm is not None:
        tap_norm = norm_params(shape.norm, shape.merged_dim)
        norm = tap_norm if shape.norm_after_merging else norm_params(shape.norm, shape.in_dim)
    return layers + norm + shape.taps * (layers + tap_norm) + (shape.out_dim if shape.newline else 0)


def projector_macs(shape: ProjectorShape, encoder_tokens: int) -> int:
    """Multiply-adds for that many patches; features that are dropped afterwards as padding are projected too."""
    merged = encoder_tokens // shape.merge_size**2
    if shape.hidden_dim is None:
        each = shape.merged_dim * shape.out_dim
    else:
        each = shape.merged_dim * shape.hidden_dim + shape.hidden_dim * shape.out_dim
    return (1 + shape.taps) * merged * each


CLIP_L_336 = EncoderShape(
    embed_dim=1024,
    depth=24,
    num_heads=16,
    mlp_dim=4096,
    patch_size=14,
    patch_bias=False,
    norms_outside=2,
    class_token=True,
    position_rows=577,
    quick_gelu=True,
)


def siglip_so400m(side: int) -> EncoderShape:
    """SigLIP So400m/14 with a position table for `side` pixels."""
    return EncoderShape(
        embed_dim=1152,
        depth=27,
        num_heads=16,
        mlp_dim=4304,
        patch_size=14,
        norms_outside=1,
        position_rows=(side // 14) ** 2,
    )


QWEN2_VL_VISION = EncoderShape(
    embed_dim=1280,
    depth=32,
    num_heads=16,
    mlp_dim=5120,
    patch_size=14,
    frames_per_patch=2,
    patch_bias=False,
    rotary=True,
    quick_gelu=True,
)


def qwen25_vl_vision(mlp_dim: int) -> EncoderShape:
    """Windows of 112 pixels in all but 4 of 32 blocks; 3B and 7B have mlp_dim 3420, 32B and 72B 3456."""
    return EncoderShape(
        embed_dim=1280,
        depth=32,
        num_heads=16,
        mlp_dim=mlp_dim,
        patch_size=14,
        gated_mlp=True,
        frames_per_patch=2,
        patch_bias=False,
        norm="rms",
        rotary=True,
        window=8,
        full_attention_blocks=4,
    )


def qwen3_vl_vision(embed_dim: int, depth: int, mlp_dim: int) -> EncoderShape:
    """A SigLIP 2 shape with patches of 16, rotary positions and a position table of 48 x 48."""
    return EncoderShape(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=16,
        mlp_dim=mlp_dim,
        patch_size=16,
        frames_per_patch=2,
        position_rows=2304,
        rotary=True,
    )


INTERN_VIT_300M = EncoderShape(
    embed_dim=1024,
    depth=24,
    num_heads=16,
    mlp_dim=4096,
    patch_size=14,
    class_token=True,
    position_rows=1025,
    layer_scale=True,
)
INTERN_VIT_6B = EncoderShape(
    embed_dim=3200,
    depth=45,
    num_heads=25,
    mlp_dim=12_800,
    patch_size=14,
    qkv_bias=False,
    norm="rms",
    class_token=True,
    position_rows=1025,
    qk_norm=True,
    layer_scale=True,
)
