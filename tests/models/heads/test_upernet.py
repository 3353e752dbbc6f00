"""UPerNet at every stride, with the parameters that costs state, and equal to transformers' with the same weights."""

import pytest
import torch
from torch import nn
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetHead

from patchscale.costs.heads import count_head
from patchscale.head_shapes import UperNetShape, level_grid, upernet_levels
from patchscale.models.heads.upernet import UperNet, UperNetDecoder

SMALL = UperNetShape(channels=16)


@pytest.mark.parametrize("patch_size", [64, 32, 16, 14, 8, 4, 2, 1])
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 2)])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_stride_and_form_down_to_one_image(patch_size, grid, batch_size):
    head = UperNet(SMALL, embed_dim=8, patch_size=patch_size, num_classes=5)
    maps = [torch.randn(batch_size, 8, *grid, requires_grad=True) for _ in range(4)]
    logits = head.train()(maps)
    assert logits.shape == (batch_size, 5, *level_grid(grid, upernet_levels(patch_size)[0]))
    logits.square().sum().backward()
    assert all(of_block.grad is not None and of_block.grad.isfinite().all() for of_block in maps)
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize("patch_size", [64, 16, 14, 4, 1])
@pytest.mark.parametrize(("channels", "embed_dim"), [(16, 8), (64, 48)])
def test_it_has_the_parameters_that_costs_state(patch_size, channels, embed_dim):
    shape = UperNetShape(channels=channels)
    head = UperNet(shape, embed_dim=embed_dim, patch_size=patch_size, num_classes=7)
    counts = count_head(
        shape, embed_dim=embed_dim, grid=(2, 2), patch_size=patch_size, img_size=2 * patch_size, num_classes=7
    )
    found = {name: sum(p.numel() for p in part.parameters()) for name, part in head.named_children()}
    assert {name: number for name, number in found.items() if number} == {
        name: number for name, number in counts.params.items() if number
    }


@pytest.mark.parametrize("sizes", [(16, 8, 4, 2), (12, 6, 3, 2)])
def test_the_decoder_equals_that_of_transformers(sizes):
    torch.manual_seed(0)
    in_channels = [12, 16, 20, 24]
    theirs = UperNetHead(UperNetConfig(hidden_size=16, num_labels=3, pool_scales=[1, 2, 3, 6]), in_channels).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics and scales of their own
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    ours = UperNetDecoder(SMALL, in_channels, norm=nn.BatchNorm2d).eval()
    pairs = [
        *((mine[1], block.layers[1]) for mine, block in zip(ours.pooled, theirs.psp_modules.blocks, strict=True)),
        (ours.context, theirs.bottleneck),
        *zip(ours.lateral, theirs.lateral_convs, strict=True),
        *zip(ours.smooth, theirs.fpn_convs, strict=True),
        (ours.fuse, theirs.fpn_bottleneck),
    ]
    for mine, other in pairs:
        mine[0].load_state_dict(other.conv.state_dict())
        mine[1].load_state_dict(other.batch_norm.state_dict())
    maps = tuple(torch.randn(2, channels, size, size) for channels, size in zip(in_channels, sizes, strict=True))
    with torch.inference_mode():
        torch.testing.assert_close(theirs.classifier(ours(maps)), theirs(maps), rtol=1e-5, atol=1e-5)
