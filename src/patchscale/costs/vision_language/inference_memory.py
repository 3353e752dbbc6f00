"""Memory of inference with a vision-language model, by part: weights, pixels, visual features, cache, working set.

The working set is that of the models of transformers, without gradients and with fused attention (no score matrix):
the largest set of tensors alive at once, for all tokens of a batch; `tests/costs/vision_language` compares it with what
those models allocate. An engine that works in chunks or fuses more needs less. What an allocator keeps in reserve and
the CUDA context are not counted.
"""

from typing import Literal

from patchscale.costs.vision_language.encoders import EncoderShape
from patchscale.costs.vision_language.language_models import DecoderShape, kv_cache_elements
from patchscale.costs.vision_language.models import VisionLanguageModel

Precision = Literal["bf16", "fp16", "fp32"]
BYTES: dict[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
FLOAT32 = 4


def encoder_working_elements(shape: EncoderShape) -> int:
    """Numbers alive per patch at the fullest point of one block, in units of the narrow type."""
    D, m = shape.embed_dim, shape.mlp_dim
    stream = 4 * D  # embedded image, input of the block, its norm, one result
    if shape.layer_scale:
        stream += D
    if shape.rotary and shape.position_rows:
        stream += 2 * D  # positions are looked up for every image
    attention = 3 * D + D  # queries, keys, values; output
    if shape.rotary:
        attention = 3 * D + 2 * 5 * D  # both in 32 bits, and products with sines and cosines
    mlp = (3 if shape.gated_mlp or shape.quick_gelu else 2) * m
    return stream + max(attention, mlp)


def decoder_working_elements(shape: DecoderShape) -> int:
    """Numbers alive per token at the fullest point of one block."""
    D, queries, keys = shape.embed_dim, shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    stream = 4 * D  # input embeddings, input of the block, its norm, one result
    attention = 3 * queries + 3 * keys  # queries, keys, values; turned queries, keys; output
    return stream + max(attention, 3 * shape.mlp_dim)


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
    """Weights, pixels and visual features, and the larger of the encoder's working set and prefill with its cache."""
    prefill = memory["kv_cache"] + memory["prefill_working"]
    always = memory["weights"] + memory["pixels"] + memory["visual_features"]
    return always + max(memory["encoder_working"], prefill)
