"""The patch embedding of a piece of an image."""

from typing import Any

from torch import Tensor, nn

from patchscale.errors import UserError
from patchscale.models.sequence_parallel.piece import Piece


class PiecePatchEmbed(nn.Module):
    """Mixed into a patch embedding with a convolution `proj`: whole images in, this rank's patches out."""

    piece: Piece
    grid_size: tuple[int, int]
    img_size: tuple[int, int]
    proj: nn.Conv2d

    def forward(self, images: Tensor, *unused: Any) -> Tensor:
        """[B, 3, H, W] -> [B, n, D]; raises `UserError` if the images are not of the size the model was built for."""
        if tuple(images.shape[-2:]) != tuple(self.img_size):
            given, built = ("x".join(map(str, size)) for size in (images.shape[-2:], self.img_size))
            raise UserError(f"images are {given}, this model was built for {built}; create it with img_size={given}")
        columns, side = self.grid_size[1], self.proj.stride[0]
        top, bottom = self.piece.start // columns, -(-self.piece.stop // columns)
        tokens = self.proj(images[:, :, top * side : bottom * side]).flatten(2).transpose(1, 2)
        tokens = tokens[:, self.piece.start - top * columns : self.piece.stop - top * columns]
        norm = getattr(self, "norm", None)
        return tokens if norm is None else norm(tokens)
