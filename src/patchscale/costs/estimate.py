"""`estimate_cost`: one call from a model's name to its cost."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from patchscale.costs.counts import Counts, count
from patchscale.costs.params import PosEmbed

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one configuration costs. MACs and FLOPs are per image; FLOPs are 2 x MACs."""

    counts: Counts

    @property
    def tokens(self) -> int:
        """Patches of an image."""
        return self.counts.tokens

    @property
    def params(self) -> dict[str, int]:
        """Parameters by part."""
        return self.counts.params

    @property
    def macs(self) -> dict[str, int]:
        """Multiply-adds of a forward pass by part."""
        return self.counts.macs

    @property
    def params_total(self) -> int:
        """All parameters."""
        return self.counts.params_total

    @property
    def params_pos_embed(self) -> int:
        """Parameters of the position table."""
        return self.counts.params_pos_embed

    @property
    def params_backbone(self) -> int:
        """Parameters without head and position table: the N of scaling laws."""
        return self.counts.params_backbone

    @property
    def flops_forward(self) -> int:
        """2 x MACs of one forward pass over one image."""
        return self.counts.flops_forward

    @property
    def flops_train(self) -> int:
        """2 x MACs of a forward and a backward pass over one image."""
        return self.counts.flops_train

    def frame(self) -> "pd.DataFrame":
        """One row per part: params, macs, and its share of the MACs."""
        return self.counts.frame()


def estimate_cost(
    model: str,
    *,
    patch_size: int,
    img_size: int | tuple[int, int],
    num_classes: int = 1000,
    task: str = "classification",
    pos_embed: PosEmbed = "learned",
) -> Cost:
    """Tokens, parameters and FLOPs of `model`, with a linear head for `task`.

    A built-in name needs no torch; other timm names do. Raises `UserError` for a patch size that does not divide the
    image, an unknown model or task, and for a timm name without torch.
    """
    counts = count(
        model, patch_size=patch_size, img_size=img_size, num_classes=num_classes, task=task, pos_embed=pos_embed
    )
    return Cost(counts=counts)
