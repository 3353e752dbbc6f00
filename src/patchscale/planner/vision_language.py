"""Vision-language models: how many visual tokens, for how large a language model, from which image. No torch.

The cost of a request is that of the vision encoder on all its patches, plus prefill: 2 N (Q + V) FLOPs for a language
model of N parameters, Q text tokens and V visual tokens, as in arXiv 2411.03312. Attention inside the language model
is left out: it adds the share 2 L d (Q + V) / N for L blocks of width d, a tenth at 2,700 tokens for 7B, 32 and 4,096.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from patchscale.errors import UserError
from patchscale.planner.costing import counted
from patchscale.planner.space import divisors, expand_models, grid_frame, ordered


@dataclass(frozen=True, kw_only=True)
class VisionLanguageSpace:
    """Language models {name: parameters} with numbers of visual tokens, or with images and how they become tokens.

    Either `visual_tokens` are given, for tokens that are compressed or pruned after an encoder which is the same for
    all (its cost is left out), or `encoders` (built-in names), `img_sizes`, `patch_sizes` and `merge_factors`: an image
    of r pixels in patches of p, merged s x s, becomes (r / (p s))^2 visual tokens.
    Raises `UserError` if both or neither are given, and if no merge factor divides any grid of patches.
    """

    llms: Mapping[str, float]
    visual_tokens: Sequence[int] = ()
    encoders: Sequence[str] = ()
    img_sizes: Sequence[int] = ()
    patch_sizes: Sequence[int] = ()
    merge_factors: Sequence[int] = (1,)
    text_tokens: int = 50
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.llms:
            raise UserError("the space has no llms; give names with parameters, such as {'7B': 7e9}")
        ordered("llms", list(self.llms.values()))
        for name in ("visual_tokens", "img_sizes", "patch_sizes", "merge_factors"):
            object.__setattr__(self, name, ordered(name, getattr(self, name)))
        if self.text_tokens < 0:
            raise UserError(f"text_tokens={self.text_tokens} cannot be negative")
        if bool(self.visual_tokens) == bool(self.encoders):
            raise UserError("give either visual_tokens, or encoders with img_sizes (and patch_sizes, merge_factors)")
        if self.encoders:
            object.__setattr__(self, "encoders", tuple(expand_models(self.encoders)))
            if not self.img_sizes:
                raise UserError("the space has no img_sizes; give at least one, in pixels")

    def frame(self) -> pd.DataFrame:
        """One row per configuration, with llm, llm_params, visual_tokens and, with an encoder, what an image is."""
        llms = sorted(self.llms, key=lambda name: self.llms[name])
        if self.visual_tokens:
            tokens, models = np.meshgrid(np.array(self.visual_tokens), np.arange(len(llms)), indexing="ij")
            named: Any = pd.Categorical.from_codes(models.ravel().astype(np.int32), dtype=pd.CategoricalDtype(llms))
            frame = pd.DataFrame({"visual_tokens": tokens.ravel(), "llm": named} | dict(self.fixed))
        else:
            grids = [(r, p) for r in self.img_sizes for p in (self.patch_sizes or divisors(r)) if r % p == 0]
            if not grids:
                raise UserError("no patch size divides any image size; give others")
            frame = grid_frame(self.encoders, grids, {"merge_factor": self.merge_factors, "llm": llms}, self.fixed)
            side = frame["img_size"] // frame["patch_size"]
            frame = frame[side % frame["merge_factor"] == 0].reset_index(drop=True)
            if not len(frame):
                raise UserError("no merge factor divides any grid of patches; give others")
            frame = frame.assign(visual_tokens=frame["tokens"] // frame["merge_factor"] ** 2)
        params = np.array([float(self.llms[name]) for name in llms])
        return frame.assign(llm_params=params[frame["llm"].cat.codes.to_numpy()])


def price_vision_language(
    space: VisionLanguageSpace, *, count_encoder: bool = True, flops_per_s: float | None = None
) -> pd.DataFrame:
    """The space with its prices: infer_flops of a request, its parts, weights in 16 bit, visual tokens.

    `count_encoder=False` leaves the encoder out, as arXiv 2411.03312 does; that favours many pixels merged into few
    tokens, since tokens merged or pruned after the encoder cost as much before. `flops_per_s` is what the device
    achieves; it prices latency_s, the time to the first token.
    """
    frame = space.frame()
    prefill = 2 * frame["llm_params"] * (space.text_tokens + frame["visual_tokens"])
    encoder, params = np.zeros(len(frame)), np.zeros(len(frame))
    if "model" in frame:
        kinds = frame.groupby(["model", "img_size", "patch_size"], observed=True, sort=False)
        for places in kinds.indices.values():
            row = frame.iloc[places[0]]
            counts = counted(str(row["model"]), int(row["img_size"]), int(row["patch_size"]), 0)
            encoder[places], params[places] = counts.flops_forward, counts.params_total
    counts_it = count_encoder and "model" in frame
    infer = prefill + encoder if counts_it else prefill
    prices: dict[str, Any] = {
        "encoder_flops": encoder,
        "prefill_flops": prefill,
        "infer_flops": infer,
        "params_total": frame["llm_params"] + params,
        "weights_bytes": 2 * (frame["llm_params"] + params),
    }
    if flops_per_s is not None:
        if not flops_per_s > 0:
            raise UserError(f"flops_per_s={flops_per_s:g} is not a positive number")
        prices["latency_s"] = infer / flops_per_s
    priced = frame.assign(**prices)
    priced.attrs = {
        "request": f"{space.text_tokens} text tokens; prefill 2 N (Q + V); encoder "
        + ("counted" if counts_it else "left out"),
        **({"time": f"{flops_per_s:.3g} FLOP/s achieved"} if flops_per_s is not None else {}),
    }
    return priced
