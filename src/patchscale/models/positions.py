"""Fixed positions: a table of sines and cosines of a patch's row and column.

Learned tables dominate small patches (50,177 rows at patch size 1 and 224 px, 28 % of Adventurer-Base); a fixed one
has no parameters. It is a buffer that is not saved: it follows from the model's sizes.
"""

import torch
from torch import Tensor, nn

from patchscale.errors import UserError

TEMPERATURE = 10_000.0


def sincos2d(grid: tuple[int, int], embed_dim: int, *, rows_before: int = 0, rows_after: int = 0) -> Tensor:
    """Position table [1, rows_before + h*w + rows_after, D]; the extra rows, for class tokens, are zero.

    A quarter of the channels each for sin(column f), cos(column f), sin(row f) and cos(row f), with frequencies f
    falling geometrically from 1 towards 1 / 10,000 (the table of MoCo v3, arXiv 2104.02057).
    """
    if embed_dim % 4:
        raise UserError(f"sincos2d positions need an embed_dim divisible by 4; got {embed_dim}")
    quarter = embed_dim // 4
    # Built on the default device, so that `with torch.device("meta")` works; float64 for exactness at large indices.
    frequencies = TEMPERATURE ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    row, column = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    row, column = (axis.reshape(-1, 1) * frequencies for axis in (row, column))
    table = torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)
    return nn.functional.pad(table, (0, 0, rows_before, rows_after)).float()[None]
