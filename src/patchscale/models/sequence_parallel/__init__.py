"""One image over several devices: its tokens are divided over the ranks of a process group.

For images whose tokens do not fit one device (50,176 of them at patch size 1 and 224 pixels). What each file does:

    collectives.py    differentiable exchanges
    piece.py          which rank has which tokens
    patch_embed.py    a piece of an image into tokens
    vit.py            ViTs; attention.py: Ulysses attention
    adventurer.py     Adventurer; mixer.py, scan.py: its states are passed from rank to rank
"""

import torch.distributed as dist
from torch import nn

from patchscale.errors import UserError
from patchscale.models.adventurer import Adventurer
from patchscale.models.sequence_parallel.adventurer import shard_adventurer
from patchscale.models.sequence_parallel.piece import Piece
from patchscale.models.sequence_parallel.vit import shard_vit

__all__ = ["shard_sequence"]


def shard_sequence(model: nn.Module, process_group: dist.ProcessGroup) -> nn.Module:
    """Divide the tokens of `model`, one of `patchscale.create_model`, over the ranks of a group, in place; returns it.

    Every rank of the group has the whole model with the same weights, and is given the same images, whole. Parameters,
    their names and the state dict stay as they are. Copies of the model work in the same group.

    - forward(images): the same logits on every rank, those of one process.
    - forward_feature_map(images): the whole map on every rank.
    - forward_features(images): this rank's tokens only, and its copy of prefix and class tokens.

    Gradients: every rank computes the loss from its logits (or map) and calls backward(), at the same time as the
    others. Afterwards the MEAN over the group of each parameter's gradient is that of one process (so is that of a head
    behind the model): what DistributedDataParallel does by itself. Before that, one rank's gradients mean nothing; all
    parameters that one process gives a gradient have one on every rank. With G groups, each with other images, the mean
    over all ranks is the mean over the groups. The gradient of images is found only in the sum over the group, / ranks.

    Stochastic depth: all ranks of a group must draw the same (same seed before each step). Forward passes communicate,
    also with `torch.no_grad()`, and with activation checkpointing so does their repetition in the backward pass: all
    ranks must do the same. `torch.compile` is not supported.

    Raises `UserError` for a model that cannot be divided, heads (ViT) that the ranks do not divide, or too few tokens.
    """
    ranks = dist.get_world_size(process_group)
    if ranks == 1:
        return model
    if hasattr(model, "piece"):
        raise UserError("the tokens of this model are divided already; build another one for another group")
    name = getattr(model, "model_name", type(model).__name__)
    grid = model.patch_embed.grid_size if isinstance(model, Adventurer) else getattr(model, "grid_size", (0, 0))
    piece = Piece(process_group, grid[0] * grid[1])
    if grid[0] and min(piece.lengths) < 1:
        raise UserError(f"{ranks} ranks are more than the {piece.num_patches} patches of an image; use fewer ranks")
    if isinstance(model, Adventurer):
        shard_adventurer(model, piece)
    else:
        shard_vit(model, name, piece)
    return model
