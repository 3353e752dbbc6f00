"""Varied models hang together: tokens, position tables and projectors follow, and real models can be built of them."""

from dataclasses import replace

import pytest

from patchscale.costs.vision_language.encoders import encoder_params, projector_params
from patchscale.costs.vision_language.estimate import estimate_vision_language_cost
from patchscale.costs.vision_language.image_rules.anyres import AnyRes
from patchscale.costs.vision_language.image_rules.fixed_size import FixedSize
from patchscale.costs.vision_language.language_models import LANGUAGE_MODELS
from patchscale.costs.vision_language.models import MODELS
from patchscale.costs.vision_language.variations import vary
from patchscale.errors import UserError


@pytest.mark.parametrize("name", MODELS)
def test_no_change_is_no_change(name):
    assert vary(MODELS[name]) == MODELS[name]


def test_smaller_patches_make_more_tokens():
    model = MODELS["qwen2-vl-2b"]
    finer = vary(model, patch_size=7)
    coarse, fine = (estimate_vision_language_cost(one, img_size=448) for one in (model, finer))
    assert fine.visual.llm_tokens == 4 * coarse.visual.llm_tokens
    assert fine.macs["encoder_linear"] == 4 * coarse.macs["encoder_linear"]
    assert fine.macs["encoder_patch_embed"] == coarse.macs["encoder_patch_embed"]  # the same pixels


def test_merging_more_leaves_the_encoder_alone():
    model = MODELS["internvl3-2b"]
    merged = vary(model, merge_size=4)
    two, four = (estimate_vision_language_cost(one, img_size=448) for one in (model, merged))
    assert (two.visual.feature_tokens, four.visual.feature_tokens) == (256, 64)
    assert four.params["encoder"] == two.params["encoder"]
    assert four.macs["encoder_linear"] == two.macs["encoder_linear"]
    assert merged.projector.merged_dim == 4 * model.projector.merged_dim


def test_a_fixed_square_of_another_side():
    other = vary(MODELS["paligemma-3b-224"], image_rule=FixedSize(side=448))
    assert replace(other, name="paligemma-3b-448") == MODELS["paligemma-3b-448"]


def test_another_language_model():
    other = vary(MODELS["internvl3-1b"], llm=MODELS["internvl3-8b"].llm, name="internvl3-8b")
    assert other == MODELS["internvl3-8b"]


def test_position_table_follows_the_tile():
    finer = vary(MODELS["internvl3-1b"], patch_size=7)
    assert finer.encoder.position_rows == 64 * 64 + 1
    assert vary(MODELS["qwen3-vl-2b"], patch_size=8).encoder.position_rows == 2304


def test_a_varied_model_is_the_real_one():
    pytest.importorskip("transformers")
    from vision_language_real_models import build

    model = vary(MODELS["qwen2.5-vl-3b"], patch_size=28, merge_size=3, llm=LANGUAGE_MODELS["qwen2.5-1.5b"])
    visual = build(model).model.visual
    expected = encoder_params(model.encoder) + projector_params(model.projector)
    assert sum(parameter.numel() for parameter in visual.parameters()) == expected


def test_parts_that_do_not_fit_are_refused():
    model = MODELS["qwen2-vl-2b"]
    with pytest.raises(UserError, match="patch_size of image rule and encoder differ: 14 and 16"):
        replace(model, encoder=replace(model.encoder, patch_size=16))
    with pytest.raises(UserError, match="width of projector and language model differ"):
        replace(model, llm=LANGUAGE_MODELS["qwen2.5-7b"])
    with pytest.raises(UserError, match="AnyRes does not merge patches"):
        vary(MODELS["llava-next-vicuna-7b"], merge_size=2)
    with pytest.raises(UserError, match="448 pixels is not filled by patches of 15"):
        vary(MODELS["internvl3-1b"], patch_size=15)
    with pytest.raises(UserError, match="336x500 is not made of tiles of 336"):
        AnyRes(pinpoints=((336, 500),))
