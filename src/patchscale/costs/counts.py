"""Counting one configuration: its tokens, parameters and multiply-adds, exactly.

Built-in models are counted by closed formulas; any other timm name is built on torch's meta device (no memory, no
weights) and its operations are counted there. Memory, time and money all follow from these numbers.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from patchscale.costs.flops import backbone_macs
from patchscale.costs.heads import HeadCounts, count_head
from patchscale.costs.params import PosEmbed, backbone_params
from patchscale.costs.tokens import token_grid
from patchscale.head_shapes import default_head, head_shape
from patchscale.shapes import SHAPES, ModelShape, shape_name

if TYPE_CHECKING:
    import pandas as pd

HEAD_PARTS = ("params", "macs", "macs_train")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one configuration is made of. MACs and FLOPs are per image; FLOPs are 2 x MACs."""

    model: str
    shape: ModelShape | None
    """The plain numbers of a built-in model; None for a timm model that was counted."""
    patch_size: int
    img_size: int | tuple[int, int]
    task: str
    head: str
    num_classes: int
    tokens: int
    """Patches of an image; class and mean tokens are not counted here, but are in the FLOPs."""
    embed_dim: int
    params: dict[str, int]
    """Parameters by part."""
    macs: dict[str, int]
    """Multiply-adds of one forward pass by part; elementwise work is not counted (see `patchscale.costs`)."""
    macs_train: dict[str, int]
    """Multiply-adds of a forward and a backward pass by part; what is computed again is not counted twice.

    A product costs three times its forward pass: its own, the gradient of its input, that of its weight. The patch
    embedding costs twice, because images need no gradient.
    """
    head_counts: HeadCounts | None
    """The part of all this that the head is; None without one."""
    fused_attention: bool = True
    """Whether attention never writes its scores, and so computes them again in the backward pass."""

    @property
    def params_total(self) -> int:
        """All parameters."""
        return sum(self.params.values())

    @property
    def params_pos_embed(self) -> int:
        """Parameters of the position table."""
        return self.params.get("pos_embed", 0)

    @property
    def params_backbone(self) -> int:
        """Parameters without head and position table: the N of scaling laws."""
        head = sum(self.head_counts.params.values()) if self.head_counts else 0
        return self.params_total - self.params_pos_embed - head

    @property
    def flops_forward(self) -> int:
        """2 x MACs of one forward pass over one image."""
        return 2 * sum(self.macs.values())

    @property
    def flops_train(self) -> int:
        """2 x MACs of a forward and a backward pass over one image, without what is computed again."""
        return 2 * sum(self.macs_train.values())

    def frame(self) -> "pd.DataFrame":
        """One row per part: params, macs, macs_train, and its share of the forward MACs."""
        import pandas as pd

        parts = [*self.macs, *(name for name in self.params if name not in self.macs)]
        total = sum(self.macs.values())
        rows = [
            {
                "part": part,
                "params": self.params.get(part, 0),
                "macs": self.macs.get(part, 0),
                "macs_train": self.macs_train.get(part, 0),
                "macs_share": self.macs.get(part, 0) / total,
            }
            for part in parts
        ]
        return pd.DataFrame(rows)


def count(
    model: str | ModelShape,
    *,
    patch_size: int,
    img_size: int | tuple[int, int],
    num_classes: int = 1000,
    task: str = "classification",
    head: str | None = None,
    pos_embed: PosEmbed = "learned",
) -> Counts:
    """Tokens, parameters and MACs of `model` with a `head` for `task` (default: the plainest), or none for 0 classes.

    `model` is a name or a shape of any width and depth. Only timm names that are not built in need torch.
    Raises `UserError` for a patch size that does not divide the image, an unknown model, task or head, and for a timm
    name without torch.
    """
    grid = token_grid(img_size, patch_size)
    tokens = grid[0] * grid[1]
    head = head or default_head(task)
    chosen_head = head_shape(head, task=task)
    shape = SHAPES.get(model) if isinstance(model, str) else model
    if shape is not None:
        model = model if isinstance(model, str) else shape_name(shape)
        params = backbone_params(shape, tokens=tokens, patch_size=patch_size, pos_embed=pos_embed)
        macs = backbone_macs(shape, tokens=tokens, patch_size=patch_size)
        macs_train = {part: (2 if part == "patch_embed" else 3) * number for part, number in macs.items()}
        embed_dim, heads, fused_attention = shape.embed_dim, 1, True
    else:
        assert isinstance(model, str)
        from patchscale.costs.counted import count_on_meta

        counted = count_on_meta(model, patch_size=patch_size, img_size=img_size, pos_embed=pos_embed, task=task)
        params, macs, macs_train = dict(counted.params), dict(counted.macs), dict(counted.macs_train)
        embed_dim, fused_attention = counted.embed_dim, counted.fused_attention
        heads = counted.heads if task == "classification" else 1
    head_counts = None
    if num_classes:
        head_counts = count_head(
            chosen_head,
            embed_dim=embed_dim,
            grid=grid,
            patch_size=patch_size,
            img_size=img_size,
            num_classes=num_classes,
        )
        if heads > 1:
            many = {key: {part: heads * n for part, n in getattr(head_counts, key).items()} for key in HEAD_PARTS}
            head_counts = replace(head_counts, **many)  # type: ignore[arg-type]
        params |= head_counts.params
        macs |= head_counts.macs
        macs_train |= head_counts.macs_train
    return Counts(
        model=model,
        shape=shape,
        patch_size=patch_size,
        img_size=img_size,
        task=task,
        head=head,
        num_classes=num_classes,
        tokens=tokens,
        embed_dim=embed_dim,
        params=params,
        macs=macs,
        macs_train=macs_train,
        head_counts=head_counts,
        fused_attention=fused_attention,
    )
