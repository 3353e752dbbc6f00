"""Language models as plain numbers: parameters, multiply-adds of prefill and decoding, the key-value cache.

All are decoders with RMSNorm, rotary positions, a gated MLP of three matrices and grouped queries.
Sources of the sizes: the released configuration files; those of Qwen2-VL-72B, Llama, Mistral and Gemma 2 2B are also
the defaults of their configuration classes in transformers.
"""

from dataclasses import dataclass
from typing import Literal

Convention = Literal["full", "causal"]


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Biases only where `qkv_bias` says so."""

    embed_dim: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    vocab_size: int
    tied_embeddings: bool = False
    """The output layer is the embedding table."""
    qkv_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over head_dim on queries and keys."""
    norms_per_block: int = 2
    sliding_window: int | None = None
    """Tokens that every second block attends to at most (Gemma 2); None: all blocks attend to all."""

    @property
    def sliding_blocks(self) -> int:
        """Blocks with a sliding window: the first, the third, and so on."""
        return 0 if self.sliding_window is None else (self.depth + 1) // 2

    @property
    def block_matrices(self) -> int:
        """Weights of the matrices of one block; as many multiply-adds per token."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return self.embed_dim * (2 * queries + 2 * keys) + 3 * self.embed_dim * self.mlp_dim


def decoder_params(shape: DecoderShape) -> dict[str, int]:
    """Parameters by part."""
    bias = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim if shape.qkv_bias else 0
    norms = shape.norms_per_block * shape.embed_dim + (2 * shape.head_dim if shape.qk_norm else 0)
    table = shape.vocab_size * shape.embed_dim
    return {
        "llm_blocks": shape.depth * (shape.block_matrices + bias + norms) + shape.embed_dim,
        "llm_embedding": table,
        "llm_head": 0 if shape.tied_embeddings else table,
    }


def prefill_macs(shape: DecoderShape, tokens: int, *, convention: Convention = "full") -> dict[str, int]:
    """Multiply-adds for one sequence of `tokens`, by part; logits are computed for the last token alone.

    Attention by two conventions: "full" counts all tokens^2 pairs (what an implementation with a mask computes, and
    what counters and papers report); "causal" counts the pairs that the mask lets through (what a fused causal kernel
    computes, up to whole blocks), sliding windows included.
    """
    if convention == "full":
        pairs = shape.depth * tokens * tokens
    else:
        pairs = (shape.depth - shape.sliding_blocks) * _causal_pairs(tokens, None)
        pairs += shape.sliding_blocks * _causal_pairs(tokens, shape.sliding_window)
    return {
        "llm_linear": shape.depth * tokens * shape.block_matrices,
        "llm_attention": 2 * shape.num_heads * shape.head_dim * pairs,
        "llm_head": shape.embed_dim * shape.vocab_size,
    }


def decode_macs(shape: DecoderShape, tokens_before: int) -> dict[str, int]:
    """Multiply-adds of one more token, after `tokens_before` in the cache."""
    seen = tokens_before + 1
    near = seen if shape.sliding_window is None else min(seen, shape.sliding_window)
    pairs = (shape.depth - shape.sliding_blocks) * seen + shape.sliding_blocks * near
    return {
        "llm_linear": shape.depth * shape.block_matrices,
        "llm_attention": 2 * shape.num_heads * shape.head_dim * pairs,
        "llm_head": shape.embed_dim * shape.vocab_size,
    }


def kv_cache_elements(shape: DecoderShape, tokens: int) -> int:
    """Numbers in the keys and values of one sequence; blocks with a sliding window keep that window alone."""
    near = tokens if shape.sliding_window is None else min(tokens, shape.sliding_window)
    kept = (shape.depth - shape.sliding_blocks) * tokens + shape.sliding_blocks * near
    return 2 * shape.num_kv_heads * shape.head_dim * kept


def _causal_pairs(tokens: int, window: int | None) -> int:
    near = tokens if window is None else min(tokens, window)
    return near * (near + 1) // 2 + (tokens - near) * near


def _llama(
    embed_dim: int, depth: int, num_heads: int, num_kv_heads: int, mlp_dim: int, vocab_size: int
) -> DecoderShape:
    return DecoderShape(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=embed_dim // num_heads,
        mlp_dim=mlp_dim,
        vocab_size=vocab_size,
    )


def _qwen2(
    embed_dim: int,
    depth: int,
    num_heads: int,
    num_kv_heads: int,
    mlp_dim: int,
    vocab_size: int = 151_936,
    tied: bool = False,
) -> DecoderShape:
    return DecoderShape(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=embed_dim // num_heads,
        mlp_dim=mlp_dim,
        vocab_size=vocab_size,
        tied_embeddings=tied,
        qkv_bias=True,
    )


def _qwen3(embed_dim: int, depth: int, num_heads: int, mlp_dim: int, *, tied: bool) -> DecoderShape:
    return DecoderShape(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=128,
        mlp_dim=mlp_dim,
        vocab_size=151_936,
        tied_embeddings=tied,
        qk_norm=True,
    )


def _gemma2(embed_dim: int, depth: int, num_heads: int, num_kv_heads: int, head_dim: int, mlp_dim: int) -> DecoderShape:
    return DecoderShape(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        mlp_dim=mlp_dim,
        vocab_size=256_000,
        tied_embeddings=True,
        norms_per_block=4,
        sliding_window=4096,
    )


LANGUAGE_MODELS: dict[str, DecoderShape] = {
    "vicuna-7b": _llama(4096, 32, 32, 32, 11_008, 32_000),
    "vicuna-13b": _llama(5120, 40, 40, 40, 13_824, 32_000),
    "mistral-7b": _llama(4096, 32, 32, 8, 14_336, 32_000),
    "internlm2-1.8b": _llama(2048, 24, 16, 8, 8192, 92_544),
    "internlm2-7b": _llama(4096, 32, 32, 8, 14_336, 92_544),
    "internlm2-20b": _llama(6144, 48, 48, 8, 16_384, 92_544),
    # Qwen2 and Qwen2.5 of one size have the same shape.
    "qwen2.5-0.5b": _qwen2(896, 24, 14, 2, 4864, tied=True),
    "qwen2.5-1.5b": _qwen2(1536, 28, 12, 2, 8960, tied=True),
    "qwen2.5-3b": _qwen2(2048, 36, 16, 2, 11_008, tied=True),
    "qwen2.5-7b": _qwen2(3584, 28, 28, 4, 18_944, 152_064),
    "qwen2.5-14b": _qwen2(5120, 48, 40, 8, 13_824, 152_064),
    "qwen2.5-32b": _qwen2(5120, 64, 40, 8, 27_648, 152_064),
    "qwen2.5-72b": _qwen2(8192, 80, 64, 8, 29_568, 152_064),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 6144, tied=True),
    "qwen3-4b": _qwen3(2560, 36, 32, 9728, tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 12_288, tied=False),
    "qwen3-32b": _qwen3(5120, 64, 64, 25_600, tied=False),
    "gemma-2b": DecoderShape(
        embed_dim=2048,
        depth=18,
        num_heads=8,
        num_kv_heads=1,
        head_dim=256,
        mlp_dim=16_384,
        vocab_size=256_000,
        tied_embeddings=True,
    ),
    "gemma2-2b": _gemma2(2304, 26, 8, 4, 256, 9216),
    "gemma2-9b": _gemma2(3584, 42, 16, 8, 256, 14_336),
    "gemma2-27b": _gemma2(4608, 46, 32, 16, 128, 36_864),
}
