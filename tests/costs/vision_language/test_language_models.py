"""Closed forms of the language model's share, against masks written out and against each other."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchscale.costs.vision_language.language_models import (
    LANGUAGE_MODELS,
    decode_macs,
    decoder_params,
    kv_cache_elements,
    prefill_macs,
)

GEMMA = replace(LANGUAGE_MODELS["gemma2-2b"], sliding_window=5, depth=5)
RELEASED = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "internlm2-1.8b": 1_889_110_016,
    "internlm2-7b": 7_737_708_544,
    "internlm2-20b": 19_861_149_696,
}
"""Parameters of the released weights, as read from their files by others."""


def open_pairs(tokens, window):
    """Ones of a causal mask, with a sliding window."""
    rows, columns = np.indices((tokens, tokens))
    return int(((columns <= rows) & (rows - columns < window)).sum())


@pytest.mark.parametrize("name", RELEASED)
def test_parameters_of_released_weights(name):
    assert sum(decoder_params(LANGUAGE_MODELS[name]).values()) == RELEASED[name]


@pytest.mark.parametrize("tokens", [1, 4, 5, 6, 17])
def test_causal_attention_counts_what_the_mask_lets_through(tokens):
    heads_width = GEMMA.num_heads * GEMMA.head_dim
    pairs = 3 * open_pairs(tokens, 5) + 2 * open_pairs(tokens, tokens)
    assert prefill_macs(GEMMA, tokens, convention="causal")["llm_attention"] == 2 * heads_width * pairs


@given(name=st.sampled_from(sorted(LANGUAGE_MODELS)), tokens=st.integers(1, 20_000))
def test_conventions_differ_in_attention_alone(name, tokens):
    shape = LANGUAGE_MODELS[name]
    full, causal = prefill_macs(shape, tokens), prefill_macs(shape, tokens, convention="causal")
    assert {part: full[part] for part in ("llm_linear", "llm_head")} == {
        part: causal[part] for part in ("llm_linear", "llm_head")
    }
    if shape.sliding_window is None:
        assert 2 * causal["llm_attention"] == full["llm_attention"] * (tokens + 1) // tokens
    else:
        assert causal["llm_attention"] <= full["llm_attention"]


@given(name=st.sampled_from(sorted(LANGUAGE_MODELS)), tokens=st.integers(1, 20_000))
def test_one_more_token_of_prefill_is_one_decoding_step(name, tokens):
    shape = LANGUAGE_MODELS[name]
    more = prefill_macs(shape, tokens + 1, convention="causal")
    less = prefill_macs(shape, tokens, convention="causal")
    step = decode_macs(shape, tokens)
    assert more["llm_attention"] - less["llm_attention"] == step["llm_attention"]
    assert more["llm_linear"] - less["llm_linear"] == step["llm_linear"]


def test_cache_of_a_sliding_window_stops_growing():
    per_block = 2 * GEMMA.num_kv_heads * GEMMA.head_dim
    assert kv_cache_elements(GEMMA, 4) == per_block * 5 * 4
    assert kv_cache_elements(GEMMA, 9) == per_block * (2 * 9 + 3 * 5)
