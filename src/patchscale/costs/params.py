"""Exact parameter counts of the built-in models, part by part.

Position tables and heads are parts of their own, because published counts differ in whether they include them: a
position table is 28 % of Adventurer-Base at patch 1 and 224 pixels.
"""

from typing import Literal

from patchscale.shapes import AdventurerShape, ModelShape, ViTShape

PosEmbed = Literal["learned", "sincos2d"]


def backbone_params(
    shape: ModelShape, *, tokens: int, patch_size: int, pos_embed: PosEmbed = "learned", in_channels: int = 3
) -> dict[str, int]:
    """Parameters by part, without a head; a fixed sine-cosine position table has none."""
    D = shape.embed_dim
    positions = tokens + (shape.positions_of_prefix if isinstance(shape, ViTShape) else 1)
    class_token = shape.class_token if isinstance(shape, ViTShape) else True
    parts = {
        "patch_embed": (in_channels * patch_size**2 + 1) * D,
        "cls_token": D if class_token else 0,
        "pos_embed": positions * D if pos_embed == "learned" else 0,
    }
    return parts | (_vit_params(shape) if isinstance(shape, ViTShape) else _adventurer_params(shape))


def _vit_params(shape: ViTShape) -> dict[str, int]:
    D, m = shape.embed_dim, shape.mlp_dim
    matrices_in = 2 if shape.mlp == "swiglu" else 1  # value and gate, each with a bias
    registers = {"registers": shape.registers * D} if shape.registers else {}
    return registers | {
        "attention_linear": shape.depth * (4 * D * D + 4 * D),
        "mlp": shape.depth * (matrices_in * (D * m + m) + m * D + D),
        "norm": shape.depth * 4 * D + 2 * D,  # LayerNorm: weight and bias; two a block, one at the end
    }


def _adventurer_params(shape: AdventurerShape) -> dict[str, int]:
    D, m, E, H = shape.embed_dim, shape.mlp_dim, shape.d_inner, shape.num_heads
    conv_channels = E + 2 * shape.d_state
    return {
        "mixer_linear": shape.depth * (D * (2 * E + 2 * shape.d_state + H) + E * D),  # in_proj and out_proj, no biases
        "conv": shape.depth * conv_channels * (shape.d_conv + 1),
        "scan": shape.depth * 3 * H,  # dt_bias, A_log, D
        "mlp": shape.depth * (3 * D * m + 2 * m + D),
        "norm": shape.depth * (2 * D + E) + D,  # RMSNorm: weight only; the one of width E is gated
    }
