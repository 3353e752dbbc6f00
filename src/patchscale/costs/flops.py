"""Multiply-adds of one forward pass over one image, part by part.

The two attention products are a part of their own, `attention_quadratic`: the only term that grows with the square of
the number of tokens. The state-space scan grows linearly; its count follows the chunked algorithm (Mamba-2, arXiv
2405.21060, section 6), see `scan_macs`.
"""

from math import ceil

from patchscale.shapes import AdventurerShape, ModelShape, ViTShape


def backbone_macs(shape: ModelShape, *, tokens: int, patch_size: int, in_channels: int = 3) -> dict[str, int]:
    """Multiply-adds by part, without a head, for an image of `tokens` patches."""
    parts = _vit_macs(shape, tokens) if isinstance(shape, ViTShape) else _adventurer_macs(shape, tokens)
    return {"patch_embed": tokens * in_channels * patch_size**2 * shape.embed_dim} | parts


def _vit_macs(shape: ViTShape, tokens: int) -> dict[str, int]:
    n, D = tokens + shape.prefix_tokens, shape.embed_dim
    matrices = 3 if shape.mlp == "swiglu" else 2
    return {
        "attention_linear": shape.depth * 4 * n * D * D,  # query, key, value, output
        "attention_quadratic": shape.depth * 2 * n * n * D,  # scores, and scores times values
        "mlp": shape.depth * matrices * n * D * shape.mlp_dim,
    }


def _adventurer_macs(shape: AdventurerShape, tokens: int) -> dict[str, int]:
    D, E, S = shape.embed_dim, shape.d_inner, shape.d_state
    n, L = tokens + 1, tokens + 2  # with the class token; the mixer also sees the mean token
    in_proj = D * (2 * E + 2 * S + shape.num_heads)
    return {
        "mixer_linear": shape.depth * (L * in_proj + n * E * D),  # the mean token is dropped before out_proj
        "conv": shape.depth * L * shape.d_conv * (E + 2 * S),
        "scan": shape.depth * scan_macs(L, d_inner=E, d_state=S, chunk_size=shape.chunk_size),
        "mlp": shape.depth * 3 * n * D * shape.mlp_dim,  # SwiGLU has three matrices
    }


def scan_macs(tokens: int, *, d_inner: int, d_state: int, chunk_size: int, groups: int = 1) -> int:
    """Multiply-adds of one chunked scan over L = `tokens`.

    Convention: Q = min(`chunk_size`, L) with the published `chunk_size` of 256; every token is counted against a full
    chunk, as kernels compute it (an ideal causal kernel would halve the first two terms); states are counted even where
    one chunk holds all tokens; padding of the last chunk is not counted. So the count is a property of the model,
    whatever chunk length a backend prefers: plain torch with chunks of 64 executes 0.90 (Tiny) to 0.97 (Base) of it.
    """
    L, Q, E, S = tokens, min(chunk_size, tokens), d_inner, d_state
    within_chunks = groups * L * Q * S + L * Q * E  # C B^T, then times X
    into_and_out_of_states = 2 * L * S * E
    between_chunks = ceil(L / Q) * S * E
    return within_chunks + into_and_out_of_states + between_chunks
