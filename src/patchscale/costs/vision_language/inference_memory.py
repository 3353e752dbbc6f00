"""Memory of inference with a vision-language model, by part: weights, pixels, visual features, cache, working set.

The working set is that of a plain implementation in torch without gradients and with fused attention (no score
matrix): the largest set of tensors alive at once inside one block, for all tokens of a batch. An engine that works in
chunks or fuses more needs less; allocators and the CUDA context add to it (about 0.5-1 GB on a GPU).
"""

from typing import Literal

from patchscale.costs.vision_language.encoders import EncoderShape
from patchscale.costs.vision_language.language_models import DecoderShape, kv_cache_elements
from patchscale.costs.vision_language.models import VisionLanguageModel

Precision = Literal["bf16", "fp16", "fp32"]
BYTES: dict[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
FLOAT32 = 4


def encoder_working_elements(shape: EncoderShape) -> int:
    """Numbers alive per token at the fullest point of one block."""
    D, m = shape.embed_dim, shape.mlp_dim
    attention = 2 * D + 3 * D + (2 * D if shape.rotary else 0) + D  # stream, normed; q, k, v; turned q, k; output
    mlp = 2 * D + (3 if shape.gated_mlp else 2) * m
    return max(attention, mlp)


def decoder_working_elements(shape: DecoderShape) -> int:
    """Numbers alive per token at the fullest point of one block, and the input embeddings."""
    D, queries, keys = shape.embed_dim, shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    attention = 2 * D + 3 * queries + 3 * keys  # stream, normed; q, k, v; turned q, k; output
    mlp = 2 * D + 3 * shape.mlp_dim
    return D + max(attention, mlp)


def inference_memory(
    model: VisionLanguageModel,
    *,
    params: int,
    images: int,
    encoder_tokens: int,
    visual_tokens: int,
    tokens: int,
    new_tokens: int,
    batch_size: int,
    precision: Precision,
    weight_bytes_per_param: float | None,
) -> dict[str, int]:
    """Bytes by part; counts of tokens are per sequence, `encoder_tokens` and `visual_tokens` per image."""
    narrow = BYTES[precision]
    patches = batch_size * images * encoder_tokens
    features = batch_size * images * visual_tokens * model.llm.embed_dim * (1 + model.projector.taps)
    return {
        "weights": round(params * (narrow if weight_bytes_per_param is None else weight_bytes_per_param)),
        "pixels": patches * model.encoder.patch_inputs * FLOAT32,
        "visual_features": features * narrow,
        "kv_cache": batch_size * kv_cache_elements(model.llm, tokens + new_tokens) * narrow,
        "encoder_working": patches * encoder_working_elements(model.encoder) * narrow,
        "prefill_working": batch_size * tokens * decoder_working_elements(model.llm) * narrow
        + batch_size * model.llm.vocab_size * narrow,
    }


def peak_bytes(memory: dict[str, int]) -> int:
    """Weights and pixels stay; the encoder runs first, then prefill with features and cache."""
    after_encoder = memory["visual_features"] + memory["kv_cache"] + memory["prefill_working"]
    return memory["weights"] + memory["pixels"] + max(memory["encoder_working"], after_encoder)
