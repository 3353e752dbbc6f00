"""The working sets are those of the real models: every tensor that they allocate on the meta device is followed."""

from dataclasses import replace

import pytest

pytest.importorskip("transformers")

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from vision_language_real_models import build, encode, prefill

from patchscale.costs.vision_language.estimate import estimate_vision_language_cost
from patchscale.costs.vision_language.inference_memory import peak_bytes
from patchscale.costs.vision_language.models import MODELS


def allocates_only_its_output(module, query, key, value, attention_mask, **_):
    """What a fused attention kernel leaves in memory; the meta device has none."""
    batch, heads, tokens, width = query.shape
    return query.new_empty(batch, tokens, heads, width), None


class PeakBytes(TorchDispatchMode):
    """The most bytes alive at once, parameters and buffers left out."""

    def __init__(self, built):
        super().__init__()
        self.fixed = {tensor.untyped_storage()._cdata for tensor in [*built.parameters(), *built.buffers()]}
        self.alive = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.alive = {key: (ref, size) for key, (ref, size) in self.alive.items() if not ref.expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                storage = tensor.untyped_storage()
                if storage._cdata not in self.fixed:
                    self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


@pytest.fixture
def fused_attention():
    ALL_ATTENTION_FUNCTIONS.register("allocates_only_its_output", allocates_only_its_output)
    return "allocates_only_its_output"


def with_few_blocks(model):
    """Working memory does not depend on depth; Qwen3-VL's encoder keeps it, for its taps are at fixed blocks."""
    encoder = model.encoder
    if not model.projector.taps:
        encoder = replace(encoder, depth=8, full_attention_blocks=min(1, encoder.full_attention_blocks))
    return replace(model, encoder=encoder, llm=replace(model.llm, depth=2))


@pytest.mark.parametrize(
    ("name", "img_size"),
    [
        ("llava-1.5-7b", 336),
        ("llava-next-mistral-7b", 900),
        ("qwen2-vl-2b", 700),
        ("qwen2.5-vl-3b", (448, 700)),
        ("qwen3-vl-4b", 640),
        ("internvl3-1b", (1300, 700)),
        ("paligemma2-3b-448", 448),
    ],
)
def test_working_sets(name, img_size, fused_attention):
    model = with_few_blocks(MODELS[name])
    cost = estimate_vision_language_cost(model, img_size=img_size, text_tokens=1500)
    built = build(model, fused_attention)

    with PeakBytes(built) as encoding:
        encode(built, model, cost.visual)
    pixels = cost.memory["pixels"] // 2  # handed over in bfloat16 here
    taps = cost.memory["visual_features"] if model.projector.taps else 0  # earlier outputs wait for the last block
    expected = cost.memory["encoder_working"] + pixels + taps
    assert expected == pytest.approx(encoding.peak, rel=0.06)

    with PeakBytes(built) as prefilling:
        prefill(built, model, cost.prompt_tokens)
    assert cost.memory["prefill_working"] + cost.memory["kv_cache"] == pytest.approx(prefilling.peak, rel=0.06)


def test_peak_is_that_of_the_fuller_phase():
    parts = {"weights": 100, "pixels": 10, "visual_features": 3, "kv_cache": 5, "encoder_working": 40}
    assert peak_bytes(parts | {"prefill_working": 20}) == 153
    assert peak_bytes(parts | {"prefill_working": 50}) == 168
