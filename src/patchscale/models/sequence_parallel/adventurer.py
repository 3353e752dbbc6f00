"""Adventurer with its tokens divided over ranks; `mixer.py` is where ranks need each other."""

from torch import Tensor, nn

from patchscale.errors import UserError
from patchscale.models.adventurer import Adventurer, Block
from patchscale.models.mamba2 import Mamba2Mixer
from patchscale.models.patch_embed import PatchEmbed
from patchscale.models.sequence_parallel.collectives import sum_over_ranks
from patchscale.models.sequence_parallel.mixer import SequenceMixer
from patchscale.models.sequence_parallel.patch_embed import PiecePatchEmbed
from patchscale.models.sequence_parallel.piece import Piece


class SequenceAdventurer(Adventurer):
    """Its tokens are this rank's patches, then the class token, of which every rank has a copy."""

    piece: Piece

    def positions(self) -> Tensor:
        """What is added to the embedded tokens of this rank, [1, n+1, D]."""
        return self.piece.rows(self.pos_embed, after=1)

    def patch_tokens(self, tokens: Tensor) -> Tensor:
        """All patches of the image, [B, N, D], on every rank."""
        return self.piece.gather_patches(tokens[:, :-1])


class SequenceBlock(Block):
    """A block whose heading average is that of all ranks' tokens."""

    piece: Piece

    def heading(self, normed: Tensor) -> Tensor:
        """[B, n+1, D] of each rank -> [B, 1, D]; the class token counts once."""
        patches = sum_over_ranks(normed[:, :-1].sum(dim=1, keepdim=True), self.piece.group)
        return (patches + normed[:, -1:]) / (self.piece.num_patches + 1)


class _OwnPiecePatchEmbed(PiecePatchEmbed, PatchEmbed):
    pass


def shard_adventurer(model: Adventurer, piece: Piece) -> None:
    """Make `model` work on its piece, in place; raises `UserError` if pieces are too short or it has dropout."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        raise UserError("sequence parallelism cannot divide dropout of tokens; build the model with drop_rate=0")
    halo = max(mixer.conv1d.kernel_size[0] for mixer in model.modules() if isinstance(mixer, Mamba2Mixer)) - 1
    if min(piece.lengths) < halo:
        most = piece.num_patches // max(halo, 1)
        raise UserError(
            f"{piece.ranks} ranks are too many for {piece.num_patches} patches: each needs {halo}, the reach of the "
            f"convolution; use at most {max(most, 1)} ranks"
        )
    for module in model.modules():
        if isinstance(module, Block):
            module.__class__ = SequenceBlock
            module.piece = piece  # type: ignore[assignment]
        elif isinstance(module, Mamba2Mixer):
            module.__class__ = SequenceMixer
            module.piece = piece  # type: ignore[assignment]
    model.patch_embed.__class__ = _OwnPiecePatchEmbed
    model.patch_embed.piece = piece  # type: ignore[assignment]
    model.__class__ = SequenceAdventurer
    model.piece = piece  # type: ignore[assignment]
