"""Vision-language models: how many visual tokens, for how large a language model, from which image. No torch.

Requests to named models are priced exactly, attention and memory included (`vision_language_models.py`). Of a language
model of which only the number of parameters is known, prefill costs 2 N (Q + V) FLOPs for N parameters, Q text tokens
and V visual tokens, as in arXiv 2411.03312, beside the vision encoder on all its patches. Attention inside the language
model is then left out: it adds the share 2 L d (Q + V) / N for L blocks of width d, a tenth at 2,700 tokens for 7B, 32
and 4,096.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from patchscale.costs.hardware import named_device
from patchscale.costs.vision_language.models import get_model
from patchscale.costs.vision_language.time import assumed_speed
from patchscale.errors import UserError
from patchscale.planner.costing import counted
from patchscale.planner.space import divisors, expand_models, grid_frame, ordered, refuse_fixed
from patchscale.planner.vision_language_models import Variation, check_llms, priced_variations, variations


@dataclass(frozen=True, kw_only=True)
class VisionLanguageSpace:
    """Language models with numbers of visual tokens, or with images and how they become tokens.

    One of three is given:
    - `models`: names such as qwen2.5-vl-7b, with `img_sizes`; `patch_sizes`, `merge_factors` and `llms` (names of
      language models) replace the model's own, where they are given.
    - `visual_tokens`, with `llms` {name: parameters}: tokens that are compressed or pruned after an encoder which is
      the same for all (its cost is left out).
    - `encoders` (built-in names) with `img_sizes`, `patch_sizes`, `merge_factors` and `llms` {name: parameters}: an
      image of r pixels in patches of p, merged s x s, becomes (r / (p s))^2 visual tokens.
    Raises `UserError` if none or several of them are given, for unknown names, and if nothing fits together.
    """

    llms: Mapping[str, float] | Sequence[str] = ()
    models: Sequence[str] = ()
    visual_tokens: Sequence[int] = ()
    encoders: Sequence[str] = ()
    img_sizes: Sequence[int] = ()
    patch_sizes: Sequence[int] = ()
    merge_factors: Sequence[int] = ()
    """Empty: the model's own; 1 with `encoders`."""
    text_tokens: int = 50
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.models:
            self._check_named()
        else:
            ordered("llms", list(self._params().values()))
        for name in ("visual_tokens", "img_sizes", "patch_sizes", "merge_factors"):
            object.__setattr__(self, name, ordered(name, getattr(self, name)))
        refuse_fixed(self.fixed)
        if self.text_tokens < 0:
            raise UserError(f"text_tokens={self.text_tokens} cannot be negative")
        if sum(map(bool, (self.models, self.visual_tokens, self.encoders))) != 1:
            raise UserError(
                "give either visual_tokens, or encoders or models with img_sizes (and patch_sizes, merge_factors)"
            )
        unused = [name for name in ("img_sizes", "patch_sizes", "merge_factors") if getattr(self, name)]
        if self.visual_tokens and unused:
            raise UserError(f"visual_tokens leave no image to choose: leave out {' and '.join(unused)}")
        if self.encoders:
            object.__setattr__(self, "encoders", tuple(expand_models(self.encoders)))
            object.__setattr__(self, "merge_factors", self.merge_factors or (1,))
        if not (self.visual_tokens or self.img_sizes):
            raise UserError("the space has no img_sizes; give at least one, in pixels")

    def _check_named(self) -> None:
        if isinstance(self.llms, Mapping):
            raise UserError("named models take language models by name, such as ['qwen2.5-7b'], not by parameters")
        object.__setattr__(self, "models", tuple(dict.fromkeys(self.models)))
        object.__setattr__(self, "llms", tuple(dict.fromkeys(self.llms)))
        for name in self.models:
            get_model(name)
        check_llms(self.llms)

    def _params(self) -> Mapping[str, float]:
        if not self.llms:
            raise UserError("the space has no llms; give names with parameters, such as {'7B': 7e9}")
        if not isinstance(self.llms, Mapping):
            raise UserError(f"llms {', '.join(self.llms)}: without named models give parameters, such as {{'7B': 7e9}}")
        return self.llms

    def variations(self) -> list[Variation]:
        """The named models as they would be built."""
        return variations(
            self.models,
            img_sizes=self.img_sizes,
            patch_sizes=self.patch_sizes,
            merge_factors=self.merge_factors,
            llms=tuple(self.llms),
        )

    def frame(self) -> pd.DataFrame:
        """One row per configuration, with llm, llm_params, visual_tokens and, with an image, what becomes of it."""
        if self.models:
            columns = [
                "model",
                "img_size",
                "patch_size",
                "merge_factor",
                "llm",
                "tokens",
                "visual_tokens",
                "llm_params",
            ]
            return priced_variations(self.variations(), text_tokens=self.text_tokens)[columns].assign(**self.fixed)
        given = self._params()
        llms = sorted(given, key=lambda name: given[name])
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
        params = np.array([float(given[name]) for name in llms])
        return frame.assign(llm_params=params[frame["llm"].cat.codes.to_numpy()])


def price_vision_language(
    space: VisionLanguageSpace,
    *,
    device: str | None = None,
    flops_per_s: float | None = None,
    batch_size: int = 1,
    count_encoder: bool = True,
    **request: Any,
) -> pd.DataFrame:
    """The space with its prices: infer_flops of a request, its parts, weights, visual tokens; latency_s with a device.

    latency_s is the time to the first token of `batch_size` requests, on a named `device` (an assumed share of its
    peak) or at `flops_per_s`. Named models also have kv_cache_bytes and peak_memory_bytes of the batch, and take what
    else a `request` is: num_images, new_tokens, precision, weight_bytes_per_param. Of others the weights are in 16 bit.
    `count_encoder=False` leaves the encoder out, as arXiv 2411.03312 does; that favours many pixels merged into few
    tokens, since tokens merged or pruned after the encoder cost as much before.
    Raises `UserError` for an unknown device and for numbers that make no sense.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: give at least 1")
    if flops_per_s is not None and not flops_per_s > 0:
        raise UserError(f"flops_per_s={flops_per_s:g} is not a positive number")
    if space.models:
        frame = priced_variations(
            space.variations(), text_tokens=space.text_tokens, batch_size=batch_size, **request
        ).assign(**space.fixed)
        if not count_encoder:
            frame["infer_flops"] = frame["prefill_flops"]
        words = f"prefill with attention counted in full; encoder {'counted' if count_encoder else 'left out'}"
    elif request:
        raise UserError(f"{', '.join(request)}: only requests to named models are known that well; give models")
    else:
        frame, words = _price_plain(space, count_encoder)
    attrs: dict[str, Any] = {"request": f"{space.text_tokens} text tokens; {words}"}
    if flops_per_s is not None:
        attrs["time"] = f"{flops_per_s:.3g} FLOP/s achieved"
    elif device is not None:
        flops_per_s, attrs["time"] = assumed_speed(device)
        attrs["device_memory_bytes"] = named_device(device).memory_bytes
    if flops_per_s is not None:
        frame["latency_s"] = batch_size * frame["infer_flops"] / flops_per_s
    frame.attrs.update(attrs)
    return frame


def _price_plain(space: VisionLanguageSpace, count_encoder: bool) -> tuple[pd.DataFrame, str]:
    """(the space with its prices, how they are counted) where language models are numbers of parameters."""
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
    return frame.assign(**prices), f"prefill 2 N (Q + V); encoder {'counted' if counts_it else 'left out'}"
