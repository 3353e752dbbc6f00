"""Token counts equal those of the families' own processors, exactly."""

from dataclasses import replace

import pytest

pytest.importorskip("transformers")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.image_processing_utils import select_best_resolution
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches
from vision_language_processors import clip_336, image, internvl, llava_next, naflex, qwen, siglip
from vision_language_sizes import ALL, EXTREME, HUGE, MODERATE, TINY, USUAL

from patchscale.costs.vision_language.families import FAMILIES, count_visual_tokens, family_rule
from patchscale.costs.vision_language.image_rules.anyres import AnyRes
from patchscale.costs.vision_language.image_rules.dynamic_tiling import DynamicTiling
from patchscale.costs.vision_language.image_rules.naflex import NaFlex
from patchscale.costs.vision_language.image_rules.smart_resize import SmartResize
from patchscale.errors import UserError

sides = st.integers(1, 5000)


def area(size):
    return size[0] * size[1]


def id_of(size):
    return f"{size[0]}x{size[1]}"


class TestSmartResize:
    def settings_of(self, family):
        rule = FAMILIES[family]
        return rule, replace(rule, min_pixels=rule.factor**2 * 4, max_pixels=rule.factor**2 * 1280)

    @pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl"])
    def test_grid_is_that_of_the_processed_image(self, family):
        # Published limits would make a 200:1 strip enormous, so images are processed under the smaller limits.
        _, small = self.settings_of(family)
        processor = qwen(small)
        for size in MODERATE:
            grid = processor(images=[image(size)], return_tensors="pt")["image_grid_thw"][0].tolist()
            counted = small.count(size)
            assert [1, *counted.patch_grid] == grid, size
            assert counted.llm_tokens == grid[1] * grid[2] // 4, size

    @pytest.mark.parametrize("family", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"])
    def test_published_limits(self, family):
        for rule in self.settings_of(family):
            for size in ALL:
                patches = qwen(rule).get_number_of_image_patches(*size)
                assert rule.count(size).encoder_tokens == patches, size
                assert rule.count(size).llm_tokens == patches // rule.merge_size**2, size

    @settings(max_examples=300, deadline=None)
    @given(height=sides, width=sides, tokens=st.integers(4, 4000), patch_size=st.sampled_from([14, 16]))
    def test_any_size_and_limit(self, height, width, tokens, patch_size):
        factor = 2 * patch_size
        rule = SmartResize(patch_size=patch_size, min_pixels=4 * factor**2, max_pixels=tokens * factor**2 + 7)
        processor = qwen(rule)
        if max(height, width) > 200 * min(height, width):
            with pytest.raises(ValueError, match="aspect ratio"):
                processor.get_number_of_image_patches(height, width)
            with pytest.raises(UserError, match="longer than 200:1"):
                rule.count((height, width))
        else:
            assert rule.count((height, width)).encoder_tokens == processor.get_number_of_image_patches(height, width)

    def test_limits_in_the_wrong_order_are_refused(self):
        with pytest.raises(UserError, match="min_pixels <= max_pixels"):
            SmartResize(patch_size=14, min_pixels=3137, max_pixels=3136)


class TestDynamicTiling:
    def test_tiles_of_processed_images(self):
        processor = internvl().image_processor
        for size in USUAL + TINY + EXTREME:
            tiles = int(processor(images=[image(size)], return_tensors="pt")["num_patches"][0])
            assert count_visual_tokens("internvl3", size).tiles == tiles, size

    @pytest.mark.parametrize(("fewest", "most"), [(1, 12), (1, 6), (1, 1), (2, 12), (4, 40)])
    def test_tokens_of_the_processor(self, fewest, most):
        rule, processor = (
            DynamicTiling(min_tiles=fewest, max_tiles=most),
            internvl(min_patches=fewest, max_patches=most),
        )
        counted = processor._get_num_multimodal_tokens(image_sizes=ALL)
        assert [rule.count(size).llm_tokens for size in ALL] == counted["num_image_tokens"]
        assert [rule.count(size).tiles for size in ALL] == counted["num_image_patches"]

    @settings(max_examples=200, deadline=None)
    @given(height=sides, width=sides, most=st.integers(1, 40))
    def test_any_size_and_limit(self, height, width, most):
        expected = internvl(max_patches=most).image_processor.get_number_of_image_patches(height, width)
        assert DynamicTiling(max_tiles=most).count((height, width)).tiles == expected


class TestAnyRes:
    def test_tiles_of_processed_images(self):
        processor = llava_next().image_processor
        for size in USUAL + TINY + EXTREME:
            pixels = processor(images=[image(size)], return_tensors="pt")["pixel_values"]
            assert count_visual_tokens("llava-next", size).tiles == pixels.shape[1], size

    def test_tokens_of_the_processor(self):
        counted = llava_next()._get_num_multimodal_tokens(image_sizes=ALL)["num_image_tokens"]
        assert [count_visual_tokens("llava-next", size).llm_tokens for size in ALL] == counted

    @settings(max_examples=300, deadline=None)
    @given(height=sides, width=sides)
    def test_any_size(self, height, width):
        counted = llava_next()._get_num_multimodal_tokens(image_sizes=[(height, width)])["num_image_tokens"]
        assert [count_visual_tokens("llava-next", (height, width)).llm_tokens] == counted

    @settings(max_examples=200, deadline=None)
    @given(
        height=sides,
        width=sides,
        grids=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12),
    )
    def test_any_size_and_resolutions(self, height, width, grids):
        pinpoints = [[336 * rows, 336 * columns] for rows, columns in grids]
        rule = AnyRes(pinpoints=tuple((high, wide) for high, wide in pinpoints))
        chosen = select_best_resolution((height, width), pinpoints)
        assert rule.count((height, width)).resized == chosen
        counted = llava_next(pinpoints)._get_num_multimodal_tokens(image_sizes=[(height, width)])
        assert [rule.count((height, width)).llm_tokens] == counted["num_image_tokens"]

    def test_tokens_that_the_model_packs(self):
        from transformers import LlavaNextConfig, LlavaNextModel

        config = LlavaNextConfig(
            vision_config={
                "model_type": "clip_vision_model",
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_attention_heads": 1,
                "num_hidden_layers": 1,
                "image_size": 336,
                "patch_size": 14,
            },
            text_config={"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 64},
        )
        with torch.device("meta"):
            model = LlavaNextModel(config)
            newline = torch.empty(8)
        for size in ALL:
            counted = count_visual_tokens("llava-next", size)
            tiles = torch.empty(counted.tiles, 576, 8, device="meta")
            packed = model.pack_image_features([tiles], [size], "default", image_newline=newline)[0]
            assert packed[0].shape[0] == counted.llm_tokens, size


class TestNaFlex:
    @pytest.mark.parametrize("patches", [64, 256, 1024])
    def test_shapes_of_processed_images(self, patches):
        processor = naflex(patches)
        for size in USUAL + TINY + EXTREME[:4]:
            shape = processor(images=[image(size)], return_tensors="pt")["spatial_shapes"][0].tolist()
            assert list(NaFlex(max_num_patches=patches).count(size).patch_grid) == shape, size

    @settings(max_examples=300, deadline=None)
    @given(height=st.integers(1, 300_000), width=st.integers(1, 300_000), patches=st.integers(1, 5000))
    def test_any_huge_size_and_limit(self, height, width, patches):
        # Where one step of the processor's bisection is more than a patch.
        expected = get_image_size_for_max_num_patches(height, width, patch_size=16, max_num_patches=patches)
        assert NaFlex(max_num_patches=patches).count((height, width)).resized == expected

    @settings(max_examples=300, deadline=None)
    @given(height=sides, width=sides, patches=st.integers(1, 5000))
    def test_any_size_and_limit(self, height, width, patches):
        expected = get_image_size_for_max_num_patches(height, width, patch_size=16, max_num_patches=patches)
        assert NaFlex(max_num_patches=patches).count((height, width)).resized == expected


class TestFixedSize:
    def test_llava(self):
        for size in [*USUAL, *TINY, (2400, 61)]:
            pixels = clip_336()(images=[image(size)], return_tensors="pt")["pixel_values"]
            counted = count_visual_tokens("llava-1.5", size)
            assert tuple(pixels.shape[-2:]) == counted.resized, size
            assert counted.llm_tokens == 576

    @pytest.mark.parametrize(("side", "tokens"), [(224, 256), (448, 1024), (896, 4096)])
    def test_paligemma(self, side, tokens):
        for size in USUAL + TINY + EXTREME:
            pixels = siglip(side)(images=[image(size)], return_tensors="pt")["pixel_values"]
            counted = count_visual_tokens(f"paligemma-{side}", size)
            assert tuple(pixels.shape[-2:]) == counted.resized, size
            assert counted.llm_tokens == tokens


class TestAllFamilies:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_caps_never_lower_the_count(self, family):
        rule = family_rule(family)
        caps = rule.caps()
        for size in [(3000, 3000), (2000, 3000), (3000, 1100)]:
            counts = [rule.with_cap(cap).count(size) for cap in caps[:: max(1, len(caps) // 400)]]
            assert [one.encoder_tokens for one in counts] == sorted(one.encoder_tokens for one in counts)
            assert [one.llm_tokens for one in counts] == sorted(one.llm_tokens for one in counts)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_last_cap_is_the_rule_itself(self, family):
        rule = family_rule(family)
        for size in HUGE:
            assert rule.with_cap(rule.caps()[-1]).count(size) == rule.count(size)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_an_empty_image_is_refused(self, family):
        with pytest.raises(UserError, match="at least 1 pixel"):
            count_visual_tokens(family, (0, 10))

    def test_notes(self):
        assert count_visual_tokens("qwen2-vl", 448).note is None
        assert "shrunk from 8192x8192 to 3584x3584" in count_visual_tokens("qwen2-vl", 8192).note
        assert "enlarged from 3x5" in count_visual_tokens("qwen2-vl", (3, 5)).note
        assert "cropped" in count_visual_tokens("llava-1.5", (300, 600)).note

    def test_an_unknown_family_is_named(self):
        with pytest.raises(UserError, match="family='qwen' is not known"):
            count_visual_tokens("qwen", 448)
