"""Counting one configuration: its tokens, parameters and multiply-adds, exactly.

Built-in models are counted by closed formulas; any other timm name is built on torch's meta device (no memory, no
weights) and its operations are counted there. Memory, time and money all follow from these numbers.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from patchscale.costs.flops import backbone_macs, head_macs
from patchscale.costs.params import PosEmbed, backbone_params, head_params
from patchscale.costs.tokens import num_tokens
from patchscale.errors import UserError
from patchscale.shapes import SHAPES, ModelShape

if TYPE_CHECKING:
    import pandas as pd

TASKS = ("classification", "segmentation")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one configuration is made of. MACs and FLOPs are per image; FLOPs are 2 x MACs."""

    model: str
    shape: ModelShape | None
    """The plain numbers of a built-in model; None for a timm model that was counted."""
    patch_size: int
    img_size: int | tuple[int, int]
    task: str
    num_classes: int
    tokens: int
    """Patches of an image; class and mean tokens are not counted here, but are in the FLOPs."""
    embed_dim: int
    params: dict[str, int]
    """Parameters by part."""
    macs: dict[str, int]
    """Multiply-adds of one forward pass by part; elementwise work is not counted (see `patchscale.costs`)."""
    macs_train: dict[str, int]
    """Multiply-adds of a forward and a backward pass by part; what is computed again is not counted twice."""

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
        return self.params_total - self.params_pos_embed - self.params.get("head", 0)

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
    model: str,
    *,
    patch_size: int,
    img_size: int | tuple[int, int],
    num_classes: int = 1000,
    task: str = "classification",
    pos_embed: PosEmbed = "learned",
) -> Counts:
    """Tokens, parameters and MACs of `model`, with a linear head for `task`.

    A built-in name needs no torch; other timm names do. Raises `UserError` for a patch size that does not divide the
    image, an unknown model or task, and for a timm name without torch.
    """
    tokens = num_tokens(img_size, patch_size)
    if task not in TASKS:
        raise UserError(f"task={task!r} is not known; choose one of {', '.join(TASKS)}")
    shape = SHAPES.get(model)
    if shape is not None:
        params = backbone_params(shape, tokens=tokens, patch_size=patch_size, pos_embed=pos_embed)
        macs = backbone_macs(shape, tokens=tokens, patch_size=patch_size)
        embed_dim = shape.embed_dim
    else:
        from patchscale.costs.counted import count_on_meta

        counted = count_on_meta(model, patch_size=patch_size, img_size=img_size, pos_embed=pos_embed)
        params, macs, embed_dim = dict(counted[0]), dict(counted[1]), counted[2]
    if num_classes:
        params["head"] = head_params(embed_dim, num_classes=num_classes)
        macs["head"] = head_macs(embed_dim, num_classes=num_classes, tokens=tokens, task=task)
    return Counts(
        model=model,
        shape=shape,
        patch_size=patch_size,
        img_size=img_size,
        task=task,
        num_classes=num_classes,
        tokens=tokens,
        embed_dim=embed_dim,
        params=params,
        macs=macs,
        macs_train={part: (2 if part == "patch_embed" else 3) * number for part, number in macs.items()},
    )
