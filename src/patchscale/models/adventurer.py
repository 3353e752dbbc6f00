"""Adventurer: images read as text, in one direction, by Mamba-2 (Wang et al., arXiv 2410.07599).

The image becomes a row of tokens, patches in raster order and the class token last:

    [patch 0, patch 1, ..., patch N-1, class]

A causal mixer lets a token see only what comes before it. Two cheap ideas repair that:

* heading average: in front of each mixer's input stands the mean of all tokens, so that even patch 0 sees the whole
  image, once, in summary; it is dropped again behind the mixer;
* flip: some blocks read the patches backwards, between two flips of their own; the class token stays last, and every
  block hands on raster order.

Each block is x + mixer(norm(x)), then x + SwiGLU(norm(x)). The class token, last to be read, goes to the head. This
file follows the released code (github.com/wangf3014/Patch_Scaling, commit fb8cce8): the names in the state dict, the
numbers, and the initialisation it intends. Departures: rectangular images, fixed positions as an option, the flip
schedule as an argument, and a patch embedding drawn with the LeCun deviation sqrt(1 / 3p^2), where the timm 0.4.12 that
the release was pinned to draws 14 % more. The paper's text says that every other block flips ("alternate"); its
released code flips blocks 2 and 3 only, at any depth ("released"). No weight tells which one a checkpoint was trained
with.

B batch   H, W image sides   p patch size   h, w = H/p, W/p   N = h*w patches   D embed_dim   L = N+2 tokens of a mixer
E = expand*D width of a mixer   n d_state   M mlp_dim
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from patchscale.errors import UserError
from patchscale.models.drop_path import DropPath
from patchscale.models.mamba2 import Mamba2Mixer
from patchscale.models.norms import RMSNorm
from patchscale.models.patch_embed import PatchEmbed
from patchscale.models.positions import sincos2d
from patchscale.models.ssd import AUTO
from patchscale.models.ssd.selection import check_backend_name
from patchscale.shapes import AdventurerShape, image_height_width

FlipSchedule = Literal["alternate", "released", "pairs", "none"]

FLIP_SCHEDULES: dict[str, Callable[[int], bool]] = {
    "alternate": lambda block: block % 2 == 1,  # every other block: 1, 3, 5, ...
    "released": lambda block: block // 2 == 1,  # blocks 2 and 3, whatever the depth
    "pairs": lambda block: (block // 2) % 2 == 1,  # 2, 3, 6, 7, 10, 11, ...
    "none": lambda block: False,
}


class Adventurer(nn.Module):
    """[B, 3, H, W] images -> [B, num_classes] logits.

    Parameters stay float32; for bfloat16 use `torch.autocast`. Second derivatives are not available.
    """

    architecture = "adventurer"
    pretrained_cfg: dict[str, Any] | None = None  # timm's data pipeline reads it; set for models made by timm's names

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        num_classes: int = 1000,
        embed_dim: int,
        depth: int,
        d_state: int = 64,
        headdim: int = 64,
        expand: int = 2,
        d_conv: int = 4,
        mlp_dim: int | None = None,
        flip_schedule: FlipSchedule = "alternate",
        pos_embed: Literal["learned", "sincos2d"] = "learned",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_path_schedule: Literal["linear", "constant"] = "linear",
        ssd_backend: str = AUTO,
        chunk_size: int | None = None,
    ) -> None:
        """Build from sizes; `mlp_dim` is int(2.5 * embed_dim) unless given, `drop_rate` acts on the embedded tokens.

        Raises `UserError` for sizes that do not fit together, or an unknown schedule or backend.
        """
        super().__init__()
        flips = _flips(flip_schedule, depth)

        self.img_size = image_height_width(img_size)
        self.patch_size = patch_size
        self.num_classes = num_classes
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.flip_schedule = flip_schedule
        self.ssd_backend = ssd_backend
        self.grad_checkpointing = False

        self.patch_embed = PatchEmbed(self.img_size, patch_size, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed: Tensor
        if pos_embed == "sincos2d":
            table = sincos2d(self.patch_embed.grid_size, embed_dim, rows_after=1)
            self.register_buffer("pos_embed", table, persistent=False)
        else:
            self.pos_embed = nn.Parameter(torch.empty(1, self.patch_embed.num_patches + 1, embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)

        new_mixer = partial(
            Mamba2Mixer,
            embed_dim,
            d_state=d_state,
            headdim=headdim,
            expand=expand,
            d_conv=d_conv,
            ssd_backend=ssd_backend,
            chunk_size=chunk_size,
        )
        new_mlp = partial(SwiGLU, embed_dim, int(2.5 * embed_dim) if mlp_dim is None else mlp_dim)
        self.layers = nn.ModuleList(
            Block(embed_dim, mixer=new_mixer(), mlp=new_mlp(), drop_path=rate, flip=flip)
            for rate, flip in zip(_drop_path_rates(drop_path_rate, depth, drop_path_schedule), flips, strict=True)
        )
        self.norm_f = RMSNorm(embed_dim)
        self.head = _new_head(embed_dim, num_classes)
        self._init_weights()

    @classmethod
    def from_shape(cls, shape: AdventurerShape, **options: Any) -> "Adventurer":
        """Build one of the named sizes of `patchscale.shapes`; `options` are the other arguments."""
        # shape.chunk_size is that of the published kernels, for counting operations; here it is a matter of speed.
        return cls(
            embed_dim=shape.embed_dim,
            depth=shape.depth,
            d_state=shape.d_state,
            headdim=shape.headdim,
            expand=shape.expand,
            d_conv=shape.d_conv,
            mlp_dim=shape.mlp_dim,
            **options,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes], or class features [B, D] if num_classes is 0."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised tokens [B, N+1, D]: patches in raster order, then the class token."""
        return self.forward_intermediates(images, ())[0]

    def forward_intermediates(self, images: Tensor, indices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """The tokens of `forward_features`, and those [B, N+1, D] behind each block of `indices`, not normalised."""
        x = torch.cat([self.patch_embed(images), self.cls_token.expand(len(images), -1, -1)], dim=1)
        x = self.pos_drop(x + self.positions())
        behind = []
        for number, block in enumerate(self.layers):
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if number in indices:
                behind.append(x)
        return self.norm_f(x), behind

    def positions(self) -> Tensor:
        """What is added to the embedded tokens, [1, N+1, D]."""
        return self.pos_embed

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """The class token through the head; with `pre_logits` the class token itself."""
        class_token = tokens[:, -1]
        return class_token if pre_logits else self.head(class_token)

    def forward_feature_map(self, images: Tensor) -> Tensor:
        """The patch tokens as an image, [B, D, h, w]."""
        return self._as_map(self.forward_features(images))

    def forward_feature_maps(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """A map [B, D, h, w] behind each of the `blocks`, counted from 0.

        The last block's is that of `forward_feature_map`, others are not normalised, as BEiT does (arXiv 2106.08254).
        """
        last = len(self.layers) - 1
        earlier = sorted({*blocks} - {last})
        tokens, behind = self.forward_intermediates(images, earlier)
        maps = {block: self._as_map(each) for block, each in zip([*earlier, last], [*behind, tokens], strict=True)}
        return [maps[block] for block in blocks]

    def _as_map(self, tokens: Tensor) -> Tensor:
        return self.patch_tokens(tokens).transpose(1, 2).unflatten(2, self.patch_embed.grid_size)

    def patch_tokens(self, tokens: Tensor) -> Tensor:
        """Of the tokens [B, N+1, D] of `forward_features`, those of patches, [B, N, D]."""
        return tokens[:, :-1]

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for `num_classes`, or none for 0; only the class token can be pooled."""
        if global_pool not in (None, "token"):
            raise UserError(f"global_pool={global_pool!r} is not possible: Adventurer pools by its class token")
        self.num_classes = num_classes
        self.head = _new_head(self.embed_dim, num_classes).to(self.cls_token)

    def set_ssd_backend(self, name: str) -> None:
        """Which implementation of the scan runs: "auto" or one of `SSD_BACKENDS`; else `UserError`."""
        check_backend_name(name)
        self.ssd_backend = name
        for module in self.modules():
            if isinstance(module, Mamba2Mixer):
                module.ssd_backend = name

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are computed again in the backward pass instead of being remembered."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters with two or more dimensions that should not decay; those with one never should."""
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How timm groups parameters by depth, for layer-wise learning rates."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^layers\.(\d+)", None), (r"^norm_f", (99999,))],
        }

    def _init_weights(self) -> None:
        """The released initialisation; what is not named here is set where it is made."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        if isinstance(self.pos_embed, nn.Parameter):
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        with torch.no_grad():
            for block in self.layers:
                assert isinstance(block, Block)
                block.mixer.out_proj.weight /= len(self.layers) ** 0.5  # the mixers only: SwiGLU's w3 is not rescaled


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)), on tokens [B, N+1, D] with the class token last."""

    def __init__(self, embed_dim: int, *, mixer: Mamba2Mixer, mlp: "SwiGLU", drop_path: float, flip: bool) -> None:
        super().__init__()
        self.norm = RMSNorm(embed_dim)
        self.mixer = mixer
        self.norm_mlp = RMSNorm(embed_dim)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)  # drawn for each image and each of the two branches
        self.flip = flip

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in, tokens out, in the same order."""
        normed = self.norm(x)
        x = x + self.drop_path(self.mixer(normed, mean=self.heading(normed), backwards=self.flip))
        return x + self.drop_path(self.mlp(self.norm_mlp(x)))

    def heading(self, normed: Tensor) -> Tensor:
        """The heading average [B, 1, D]: over patches and class token."""
        return normed.mean(dim=1, keepdim=True)


class SwiGLU(nn.Module):
    """w3(silu(w1 x) * w2 x) (arXiv 2002.05202), with biases that start at zero."""

    def __init__(self, embed_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(embed_dim, mlp_dim)
        self.w2 = nn.Linear(embed_dim, mlp_dim)
        self.w3 = nn.Linear(mlp_dim, embed_dim)
        for layer in (self.w1, self.w2, self.w3):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


def _drop_path_rates(rate: float, depth: int, schedule: str) -> list[float]:
    """Rates of the blocks: the same everywhere, or 0, 0, then rising linearly, by rate / (depth - 1) a block.

    The released code puts a zero in front of linspace(0, rate, depth) and uses the first `depth` of these, so the
    last block has rate * (depth - 2) / (depth - 1), never the full rate.
    """
    if schedule == "constant":
        return [rate] * depth
    return [rate * max(block - 1, 0) / max(depth - 1, 1) for block in range(depth)]


def _flips(flip_schedule: str, depth: int) -> list[bool]:
    if flip_schedule not in FLIP_SCHEDULES:
        raise UserError(f"flip_schedule {flip_schedule!r} is unknown; choose one of {', '.join(FLIP_SCHEDULES)}")
    return [FLIP_SCHEDULES[flip_schedule](block) for block in range(depth)]


def _new_head(embed_dim: int, num_classes: int) -> nn.Module:
    if num_classes == 0:
        return nn.Identity()
    head = nn.Linear(embed_dim, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
