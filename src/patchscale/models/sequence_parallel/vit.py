"""Plain vision transformers of timm whose tokens are divided over ranks."""

from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from patchscale.errors import UserError
from patchscale.models.sequence_parallel.attention import SequenceAttention
from patchscale.models.sequence_parallel.patch_embed import PiecePatchEmbed
from patchscale.models.sequence_parallel.piece import Piece
from patchscale.models.vit import PatchModel, with_feature_map

SUPPORTED = (
    "supported are Adventurer, our ViTs, and timm's VisionTransformer with plain attention and one patch convolution, "
    "without rotary positions, position biases, windows, distillation or dropout"
)


class SequenceViT(PatchModel):
    """Mixed into a model of `patchscale.models.vit`; its tokens are the prefix, then this rank's patches."""

    piece: Piece

    def _pos_embed(self: Any, x: Tensor) -> Tensor:
        prefix = [t.expand(len(x), -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        if self.pos_embed is None:
            return torch.cat([*prefix, x], dim=1)
        positions = self.piece.rows(self.pos_embed, before=0 if self.no_embed_class else self.num_prefix_tokens)
        if self.no_embed_class:
            return torch.cat([*prefix, x + positions], dim=1)
        return torch.cat([*prefix, x], dim=1) + positions

    def pool(self: Any, x: Tensor, pool_type: str | None = None) -> Tensor:
        """As timm's; all patches come together on every rank unless only the class token is needed."""
        if self.attn_pool is not None or (pool_type or self.global_pool) != "token":
            prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
            x = torch.cat([prefix, self.piece.gather_patches(patches)], dim=1)
        return super().pool(x, pool_type)  # type: ignore[misc]

    def patch_tokens(self: Any, tokens: Tensor) -> Tensor:
        """All patches of the image, [B, N, D], on every rank."""
        return self.piece.gather_patches(tokens[:, self.num_prefix_tokens :])

    def __reduce__(self) -> tuple[Any, ...]:
        return _new_instance, (self.timm_class,), self.__dict__


class _TimmPiecePatchEmbed(PiecePatchEmbed, PatchEmbed):
    pass


def shard_vit(model: Any, name: str, piece: Piece) -> None:
    """Make `model` work on its piece, in place; raises `UserError` for models other than those in `SUPPORTED`."""
    if getattr(model, "timm_class", None) is not VisionTransformer or not _is_plain(model):
        raise UserError(f"sequence parallelism cannot divide {name!r}; {SUPPORTED}")
    heads = model.blocks[0].attn.num_heads
    if heads % piece.ranks:
        fitting = " or ".join(str(ranks) for ranks in range(1, heads + 1) if heads % ranks == 0)
        raise UserError(f"{name!r} has {heads} heads, which {piece.ranks} ranks cannot divide; use {fitting} ranks")
    for module in model.modules():
        if isinstance(module, Attention):
            module.__class__ = SequenceAttention
            module.piece, module.num_prefix_tokens = piece, model.num_prefix_tokens  # type: ignore[assignment]
    model.patch_embed.__class__ = _TimmPiecePatchEmbed
    model.patch_embed.piece = piece
    model.__class__ = _with_pieces(model.timm_class)
    model.piece = piece


def _is_plain(model: Any) -> bool:
    blocks = all(type(block) is Block and _is_plain_attention(block.attn) for block in model.blocks)
    patches = type(model.patch_embed) is PatchEmbed and isinstance(model.patch_embed.proj, nn.Conv2d)
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    return blocks and patches and not drops and isinstance(model.patch_drop, nn.Identity)


def _is_plain_attention(attention: nn.Module) -> bool:
    return type(attention) is Attention and getattr(attention, "gate", None) is None and bool(attention.fused_attn)


def _with_pieces(timm_class: type[nn.Module]) -> type[nn.Module]:
    return type(timm_class.__name__, (SequenceViT, with_feature_map(timm_class)), {})  # type: ignore[arg-type]


def _new_instance(timm_class: type[nn.Module]) -> nn.Module:
    """An empty model of the mixed class, for copies to fill."""
    mixed = _with_pieces(timm_class)
    return mixed.__new__(mixed)
