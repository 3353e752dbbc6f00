"""The built-in models as plain numbers: what their cost and their code both follow from. No torch.

Sizes are those of the paper's Table 7 (arXiv 2502.03738); `nano` is for demonstrations, `test` for tests. `so400m` is
the shape-optimised ViT of arXiv 2305.13035, `reg4` models have the four registers of arXiv 2309.16588, and
`giant_swiglu` is DINOv2's giant (arXiv 2304.07193); they keep the plain block: no layer scale, no attention pool.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from operator import index
from typing import Literal

from patchscale.errors import UserError
from patchscale.whole_numbers import whole_number


@dataclass(frozen=True, kw_only=True)
class ViTShape:
    """A plain vision transformer: class token first, then registers, then patches; biases everywhere.

    Every token has a learned position; with registers (arXiv 2309.16588) only patches have one, as in timm's
    published models with registers.
    """

    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    """Hidden width; of "swiglu", after the gate."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    registers: int = 0
    class_token: bool = True
    """Without one, the patch tokens are averaged before the head."""

    architecture = "vit"

    @property
    def prefix_tokens(self) -> int:
        """Class token and registers: tokens that take part in every layer and are no patches."""
        return int(self.class_token) + self.registers

    @property
    def positions_of_prefix(self) -> int:
        """Rows of the position table that belong to no patch."""
        return 0 if self.registers else int(self.class_token)


@dataclass(frozen=True, kw_only=True)
class AdventurerShape:
    """A Mamba-2 vision model: causal SSD mixer with a heading mean token, then SwiGLU (Adventurer)."""

    embed_dim: int
    depth: int
    d_state: int = 64
    headdim: int = 64
    expand: int = 2
    d_conv: int = 4
    chunk_size: int = 256

    architecture = "adventurer"

    @property
    def mlp_dim(self) -> int:
        """Hidden width of SwiGLU, int(2.5 * embed_dim)."""
        return int(2.5 * self.embed_dim)

    @property
    def d_inner(self) -> int:
        """Width of the mixer."""
        return self.expand * self.embed_dim

    @property
    def num_heads(self) -> int:
        """Heads of the scan."""
        return self.d_inner // self.headdim


ModelShape = ViTShape | AdventurerShape

SHAPES: dict[str, ModelShape] = {
    "vit_test": ViTShape(embed_dim=32, depth=2, num_heads=2, mlp_dim=64),
    "vit_nano": ViTShape(embed_dim=96, depth=4, num_heads=3, mlp_dim=288),
    "vit_tiny": ViTShape(embed_dim=192, depth=12, num_heads=3, mlp_dim=768),
    "vit_small": ViTShape(embed_dim=384, depth=12, num_heads=6, mlp_dim=1536),
    "vit_base": ViTShape(embed_dim=768, depth=12, num_heads=12, mlp_dim=3072),
    "vit_large": ViTShape(embed_dim=1024, depth=24, num_heads=16, mlp_dim=4096),
    "vit_huge": ViTShape(embed_dim=1280, depth=32, num_heads=16, mlp_dim=5120),
    "vit_so400m": ViTShape(embed_dim=1152, depth=27, num_heads=16, mlp_dim=4304, class_token=False),
    "vit_small_reg4": ViTShape(embed_dim=384, depth=12, num_heads=6, mlp_dim=1536, registers=4),
    "vit_base_reg4": ViTShape(embed_dim=768, depth=12, num_heads=12, mlp_dim=3072, registers=4),
    "vit_large_reg4": ViTShape(embed_dim=1024, depth=24, num_heads=16, mlp_dim=4096, registers=4),
    "vit_giant_swiglu_reg4": ViTShape(embed_dim=1536, depth=40, num_heads=24, mlp_dim=4096, mlp="swiglu", registers=4),
    "adventurer_test": AdventurerShape(embed_dim=32, depth=4),
    "adventurer_nano": AdventurerShape(embed_dim=96, depth=4),
    "adventurer_tiny": AdventurerShape(embed_dim=256, depth=12),
    "adventurer_small": AdventurerShape(embed_dim=512, depth=12),
    "adventurer_base": AdventurerShape(embed_dim=768, depth=12),
    "adventurer_large": AdventurerShape(embed_dim=1024, depth=24),
    "adventurer_huge": AdventurerShape(embed_dim=1280, depth=32),
}
# The paper's DeiT models are plain ViTs trained with DeiT's recipe: same shapes, the paper's names.
SHAPES |= {f"deit_{size}": SHAPES[f"vit_{size}"] for size in ("tiny", "small", "base", "large", "huge")}


def shape_name(shape: ModelShape) -> str:
    """vit_d640_l16 for 640 channels and 16 blocks: what a shape without a name is called. No key, only a label."""
    return f"{shape.architecture}_d{shape.embed_dim}_l{shape.depth}"


def image_height_width(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels of a square side or a pair, of any integer type.

    Raises `UserError` for anything else.
    """
    sides = img_size if isinstance(img_size, Iterable) else (img_size, img_size)
    try:
        height, width = (index(side) for side in sides)
    except (TypeError, ValueError):
        raise UserError(f"img_size {img_size!r}: give pixels, one side (224) or height and width (128, 256)") from None
    return height, width


def format_img_size(img_size: int | tuple[int, int]) -> int | str:
    """As records and headers have it: a number for a square, "HxW" for a rectangle."""
    height, width = image_height_width(img_size)
    return height if height == width else f"{height}x{width}"


def parse_img_size(text: str, *, name: str = "img_size") -> int | tuple[int, int]:
    """The inverse of `format_img_size`, from text; raises `UserError`, about `name`, for anything else."""
    sides = [whole_number(side) for side in text.lower().split("x")]
    if len(sides) == 1 and sides[0] is not None:
        return sides[0]
    if len(sides) == 2 and sides[0] is not None and sides[1] is not None:
        return sides[0], sides[1]
    raise UserError(f"{name} {text[:40]!r}: give pixels, one side (224) or height x width (128x256)")
