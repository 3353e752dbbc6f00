"""Vision transformers: timm's own, at any patch size and image size, with a feature map.

Two kinds of names. Ours (`vit_tiny`, `deit_base`, ...) are timm's plain `VisionTransformer` in the sizes of
`patchscale.shapes`. timm's (`eva02_tiny_patch14_224`, `xcit_nano_12_p16_224`, ...) are built by timm with our patch
size and image size in place of those in the name. Weights are random; nothing is downloaded.

B batch   N = h*w patches, h = H/p, w = W/p   D embed_dim
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, Literal

import timm
from timm.layers import LayerScale, Mlp, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from timm.models.xcit import XCA
from torch import Tensor, nn

from patchscale.errors import UserError
from patchscale.models.drop_path import own_drop_path
from patchscale.models.patch_embed import patch_grid
from patchscale.models.positions import sincos2d
from patchscale.shapes import ViTShape

PosEmbed = Literal["learned", "sincos2d"]

# Families of timm in which every patch is one token up to the end, and prefix tokens (class, registers) come first.
# Others are refused: hierarchical ones (swin, pvt, ...) merge tokens, so their patch size is not their token size;
# the rest cannot be given a patch size.
TIMM_FAMILIES: dict[str, str] = {
    "vision_transformer": "plain ViTs: augreg, CLIP, SigLIP, DINOv2, FlexiViT, ...",
    "deit": "DeiT (distilled) and DeiT III",
    "eva": "EVA, EVA-02, DINOv3 and other ViTs with rotary positions",
    "beit": "BEiT: relative position biases, a table that grows with the image",
    "vision_transformer_relpos": "ViTs with relative position biases",
    "cait": "CaiT: class token attends in two last blocks",
    "xcit": "XCiT: attention between channels; its patch embedding is a stack of convolutions",
}
# Families whose attention writes its score matrix: a learned bias for every pair of tokens is added to the scores, or
# heads are mixed between softmax and values. Their memory grows with the square of the tokens.
SCORE_FAMILIES = ("beit", "vision_transformer_relpos", "cait")
# Families whose patch embedding exists for some patch sizes only.
PATCH_SIZES: dict[str, tuple[int, ...]] = {"xcit": (8, 16)}


class PatchModel:
    """What `create_model` adds to a timm model, mixed into its class: state dict, copies, pickles stay as they are."""

    architecture = "vit"
    timm_class: type[nn.Module]
    patch_size: int
    img_size: tuple[int, int]
    grid_size: tuple[int, int]

    def forward_feature_map(self, images: Tensor) -> Tensor:
        """The patch tokens, normalised, as an image [B, D, h, w].

        Models that pool first and normalise afterwards have that norm applied to each token; a few of timm's
        (RADIO, Perception Encoder) have no final norm at all.
        """
        return self._normalised_map(self.forward_features(images))  # type: ignore[attr-defined]

    def forward_feature_maps(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """A map [B, D, h, w] behind each of the `blocks`, counted from 0.

        The last block's is that of `forward_feature_map`, others are not normalised, as BEiT does (arXiv 2106.08254).
        """
        last = len(self.blocks) - 1  # type: ignore[attr-defined]
        taken = sorted({*blocks, last})  # timm wants one at least
        tokens, behind = self.forward_intermediates(images, taken, output_fmt="NLC")  # type: ignore[attr-defined]
        maps = {block: self._as_map(each) for block, each in zip(taken[:-1], behind, strict=False)}
        maps[last] = self._normalised_map(tokens)
        return [maps[block] for block in blocks]

    def _normalised_map(self, tokens: Tensor) -> Tensor:
        norm, fc_norm = (getattr(self, name, None) for name in ("norm", "fc_norm"))
        return self._as_map(fc_norm(tokens) if isinstance(norm, nn.Identity) and fc_norm is not None else tokens)

    def _as_map(self, tokens: Tensor) -> Tensor:
        return self.patch_tokens(tokens).transpose(1, 2).unflatten(2, self.grid_size)

    def patch_tokens(self, tokens: Tensor) -> Tensor:
        """Of the tokens [B, L, D] of `forward_features`, those of patches, [B, N, D]."""
        return tokens[:, -self.grid_size[0] * self.grid_size[1] :]

    def __reduce__(self) -> tuple[Any, ...]:
        return _new_instance, (self.timm_class,), self.__dict__


def create_vit(
    shape: ViTShape,
    *,
    patch_size: int,
    img_size: tuple[int, int],
    num_classes: int,
    pos_embed: PosEmbed,
    drop_path_rate: float,
) -> nn.Module:
    """A plain ViT (arXiv 2010.11929, with DeiT's initialisation): class token first, LayerNorm eps 1e-6."""
    grid = patch_grid(img_size, patch_size)
    gated = shape.mlp == "swiglu"
    hidden = 2 * shape.mlp_dim if gated else shape.mlp_dim  # one matrix makes value and gate
    model = VisionTransformer(
        img_size=img_size,
        patch_size=patch_size,
        num_classes=num_classes,
        embed_dim=shape.embed_dim,
        depth=shape.depth,
        num_heads=shape.num_heads,
        mlp_ratio=(hidden + 0.5) / shape.embed_dim,  # timm multiplies and rounds down
        mlp_layer=SwiGLUPacked if gated else Mlp,  # type: ignore[arg-type]
        act_layer=nn.SiLU if gated else nn.GELU,
        class_token=shape.class_token,
        reg_tokens=shape.registers,
        no_embed_class=shape.registers > 0,
        global_pool="token" if shape.class_token else "avg",
        fc_norm=False,  # the norm comes before pooling, so feature maps are normalised in every model
        drop_path_rate=drop_path_rate,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    return _finish(model, "vit", patch_size, img_size, grid, pos_embed)


def create_timm_vit(
    name: str,
    *,
    patch_size: int,
    img_size: tuple[int, int],
    num_classes: int,
    pos_embed: PosEmbed,
    drop_path_rate: float,
) -> nn.Module:
    """A model of timm by its name, at our patch size and image size, from scratch.

    Raises `UserError` if it is not of a family with one token per patch, or its code cannot take these sizes.
    """
    grid = patch_grid(img_size, patch_size)
    architecture = name.partition(".")[0]  # "vit_base_patch16_224.augreg_in1k" is that model and a set of weights
    if architecture not in timm_vit_names():
        raise UserError(
            f"timm model {name!r} does not keep one token per patch or cannot be given a patch size; "
            f"families that can: {', '.join(TIMM_FAMILIES)}"
        )
    for family, allowed in PATCH_SIZES.items():
        if patch_size not in allowed and architecture in timm.list_models(module=family):
            raise UserError(f"{name!r} has no patch_size={patch_size}; {family} models have {allowed}")
    options: dict[str, Any] = {"img_size": img_size, "patch_size": patch_size, "num_classes": num_classes}
    if drop_path_rate:
        options["drop_path_rate"] = drop_path_rate
    try:
        model = timm.create_model(architecture, pretrained=False, **options)
    except (AssertionError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"timm cannot build {name!r} with patch_size={patch_size} at {img_size[0]}x{img_size[1]} px: {reason}"
        ) from error
    return _finish(model, name, patch_size, img_size, grid, pos_embed)


@cache
def timm_vit_names() -> frozenset[str]:
    """Names of timm's models in `TIMM_FAMILIES`."""
    return frozenset(timm.list_models(module=list(TIMM_FAMILIES)))


def set_layer_scale(model: nn.Module, value: float) -> None:
    """Start every LayerScale of a timm model at `value`; raises `UserError` if it has none."""
    gains = [module.gamma for module in model.modules() if isinstance(module, LayerScale)]
    if not gains:
        raise UserError(f"{type(model).__name__} has no LayerScale; leave out layer_scale_init")
    for gain in gains:
        nn.init.constant_(gain, value)


def keeps_scores(name: str) -> bool:
    """Whether the attention of a timm model writes its score matrix, tokens x tokens for every head."""
    return name.partition(".")[0] in timm.list_models(module=list(SCORE_FAMILIES))


def _finish(
    model: nn.Module,
    name: str,
    patch_size: int,
    img_size: tuple[int, int],
    grid: tuple[int, int],
    pos_embed: PosEmbed,
) -> nn.Module:
    _zero_patch_bias(model)
    _fuse_attention(model)
    own_drop_path(model)
    if pos_embed == "sincos2d":
        _fix_positions(model, name, grid)
    model.__class__ = with_feature_map(type(model))  # type: ignore[arg-type]
    model.patch_size = patch_size  # type: ignore[assignment]
    model.img_size = img_size  # type: ignore[assignment]
    model.grid_size = grid  # type: ignore[assignment]
    model.embed_dim = model.num_features
    return model


@cache
def with_feature_map(timm_class: type[nn.Module]) -> type[nn.Module]:
    """A class of timm with `PatchModel` mixed in."""
    return type(timm_class.__name__, (PatchModel, timm_class), {"timm_class": timm_class})


def _new_instance(timm_class: type[nn.Module]) -> nn.Module:
    """An empty model of the mixed class, for copy and pickle to fill: the class itself has no importable name."""
    mixed = with_feature_map(timm_class)  # type: ignore[arg-type]
    return mixed.__new__(mixed)


def _fuse_attention(model: nn.Module) -> None:
    """Never write the score matrix where torch can do without, whatever TIMM_FUSED_ATTN says.

    At 50,176 tokens it takes 10 GB a head. XCiT's scores are between channels, a small matrix, and stay timm's choice.
    """
    for module in model.modules():
        if hasattr(module, "fused_attn") and not isinstance(module, XCA):
            module.fused_attn = True  # type: ignore[assignment]


def _zero_patch_bias(model: nn.Module) -> None:
    """Start without a patch bias; docs/decisions/0003-patch-bias-zero.md says why."""
    projection = getattr(getattr(model, "patch_embed", None), "proj", None)
    if isinstance(projection, nn.Conv2d | nn.Linear) and projection.bias is not None:
        nn.init.zeros_(projection.bias)


def _fix_positions(model: nn.Module, name: str, grid: tuple[int, int]) -> None:
    """Replace the learned position table by a fixed one; rows of prefix tokens, which come first, are zero."""
    learned = getattr(model, "pos_embed", None)
    if not isinstance(learned, nn.Parameter) or learned.dim() != 3:
        raise UserError(f"{name!r} has no table of learned positions to replace; use pos_embed='learned' with it")
    _, rows, embed_dim = learned.shape
    table = sincos2d(grid, embed_dim, rows_before=rows - grid[0] * grid[1])
    del model.pos_embed
    model.register_buffer("pos_embed", table.to(learned.device), persistent=False)
