"""`estimate_vision_language_cost`: from a model and an image size to tokens, parameters, multiply-adds and memory."""

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from patchscale.costs.vision_language.encoders import encoder_macs, encoder_params, projector_macs, projector_params
from patchscale.costs.vision_language.image_tokens import VisualTokens
from patchscale.costs.vision_language.inference_memory import BYTES, Precision, inference_memory, peak_bytes
from patchscale.costs.vision_language.language_models import Convention, decode_macs, decoder_params, prefill_macs
from patchscale.costs.vision_language.models import VisionLanguageModel, get_model
from patchscale.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

CONVENTIONS = {
    "flops": "2 x MACs of one request; flops_prefill goes from its images to its first new token",
    "macs": "multiply-adds of matrix products and convolutions; norms, activations, softmax and sums are not counted",
    "attention_counted": "full: every pair of tokens in the language model, as plain kernels do; causal: half of them",
    "tokens": "as the processors of the models count them; encoder_tokens are patches of one image, padding included",
    "memory": "bytes of tensors of the whole batch, without gradients; the process itself is not counted",
    "first_token_s": "assumed: FLOPs of the batch over a share of the device's stated bf16 peak",
}


@dataclass(frozen=True, kw_only=True)
class VisionLanguageCost:
    """What one request costs. MACs and FLOPs are per sequence, memory is for the whole batch; FLOPs are 2 x MACs."""

    model: VisionLanguageModel
    visual: VisualTokens
    """Tokens of one image."""
    num_images: int
    text_tokens: int
    new_tokens: int
    batch_size: int
    precision: Precision
    convention: Convention
    params: dict[str, int]
    """Parameters by part."""
    macs: dict[str, int]
    """Multiply-adds until the first new token, by part: encoder and projector for all images, then prefill."""
    macs_new_token: dict[str, int]
    """Multiply-adds of the token after the prompt, by part."""
    memory: dict[str, int]
    """Bytes by part; not all parts are there at once, see `peak_memory_bytes`."""

    @property
    def visual_tokens(self) -> int:
        """Tokens of all images in the language model's sequence."""
        return self.num_images * self.visual.llm_tokens

    @property
    def prompt_tokens(self) -> int:
        """Visual and text tokens of one sequence."""
        return self.visual_tokens + self.text_tokens

    @property
    def params_total(self) -> int:
        """All parameters."""
        return sum(self.params.values())

    @property
    def flops_prefill(self) -> int:
        """2 x MACs of one sequence until its first new token, encoder and projector included."""
        return 2 * sum(self.macs.values())

    @property
    def flops_new_token(self) -> int:
        """2 x MACs of the token after the prompt."""
        return 2 * sum(self.macs_new_token.values())

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights."""
        return self.memory["weights"]

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of keys and values of the batch, prompt and new tokens."""
        return self.memory["kv_cache"]

    @property
    def peak_memory_bytes(self) -> int:
        """Bytes at the fullest moment: weights, pixels, and the larger of encoder and prefill."""
        return peak_bytes(self.memory)

    def frame(self) -> "pd.DataFrame":
        """One row per part: params, macs until the first token, its share, macs of one more token."""
        import pandas as pd

        total = sum(self.macs.values())
        rows = [
            {
                "part": part,
                "params": self.params.get(part, 0),
                "macs": self.macs.get(part, 0),
                "macs_share": self.macs.get(part, 0) / total,
                "macs_new_token": self.macs_new_token.get(part, 0),
            }
            for part in dict.fromkeys([*self.params, *self.macs])
        ]
        return pd.DataFrame(rows)


def estimate_vision_language_cost(
    model: str | VisionLanguageModel,
    *,
    img_size: int | tuple[int, int],
    num_images: int = 1,
    text_tokens: int = 64,
    new_tokens: int = 0,
    batch_size: int = 1,
    precision: Precision = "bf16",
    weight_bytes_per_param: float | None = None,
    convention: Convention = "full",
) -> VisionLanguageCost:
    """Cost of `batch_size` sequences, each with `num_images` images (height, width) and `text_tokens` of text.

    `weight_bytes_per_param` is for quantized weights (0.5 for 4 bits). `convention` says how attention of the language
    model is counted, see `prefill_macs`; a model whose prompt attends in both directions has only "full".
    Raises `UserError` for an unknown model or precision, a count that makes no sense, and a refused image.
    """
    chosen = get_model(model) if isinstance(model, str) else model
    _check(num_images=num_images, text_tokens=text_tokens, new_tokens=new_tokens, batch_size=batch_size)
    if precision not in BYTES:
        raise UserError(f"precision={precision!r} is not known; choose one of {', '.join(BYTES)}")
    if convention not in ("full", "causal"):
        raise UserError(f"convention={convention!r} is not known; choose full or causal")
    if weight_bytes_per_param is not None and not 0 < weight_bytes_per_param < inf:
        raise UserError(
            f"weight_bytes_per_param={weight_bytes_per_param}: give more than 0, and finite, for example 0.5 for 4 bits"
        )
    visual = chosen.image_rule.count(img_size)
    tokens = num_images * visual.llm_tokens + text_tokens
    if tokens < 1:
        raise UserError("num_images=0 and text_tokens=0: give an image or some text")
    if chosen.prefix_attends_fully:
        convention = "full"
    params = {
        "encoder": encoder_params(chosen.encoder),
        "projector": projector_params(chosen.projector),
        **decoder_params(chosen.llm),
    }
    tile = encoder_macs(chosen.encoder, visual.patch_grid)
    macs = {part: num_images * visual.tiles * number for part, number in tile.items()}
    macs["projector"] = num_images * projector_macs(chosen.projector, visual.encoder_tokens)
    return VisionLanguageCost(
        model=chosen,
        visual=visual,
        num_images=num_images,
        text_tokens=text_tokens,
        new_tokens=new_tokens,
        batch_size=batch_size,
        precision=precision,
        convention=convention,
        params=params,
        macs=macs | prefill_macs(chosen.llm, tokens, convention=convention),
        macs_new_token=decode_macs(chosen.llm, tokens),
        memory=inference_memory(
            chosen,
            params=sum(params.values()),
            images=num_images,
            encoder_tokens=visual.encoder_tokens,
            visual_tokens=visual.llm_tokens,
            tokens=tokens,
            new_tokens=new_tokens,
            batch_size=batch_size,
            precision=precision,
            weight_bytes_per_param=weight_bytes_per_param,
        ),
    )


def _check(**counts: int) -> None:
    for name, number in counts.items():
        least = 1 if name == "batch_size" else 0
        if number < least:
            raise UserError(f"{name}={number}: give at least {least}")
