"""Counts of heads against real modules on the meta device: torchvision's, transformers', and pyramids written here."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from transformers import BeitConfig, BeitForSemanticSegmentation
from transformers.models.upernet.modeling_upernet import UperNetHead

from patchscale.costs.heads import count_head
from patchscale.costs.tokens import token_grid
from patchscale.errors import UserError
from patchscale.head_shapes import (
    HEADS,
    LinearHeadShape,
    MaskRCNNShape,
    UperNetShape,
    default_head,
    detection_levels,
    head_shape,
    level_grid,
    upernet_levels,
)

D, K = 48, 7
CONFIGURATIONS = [
    (64, 512),
    (32, (128, 192)),
    (16, (96, 160)),
    (14, (70, 98)),
    (8, (64, 136)),
    (4, (32, 48)),
    (2, (32, 44)),
    (1, 19),
]
UPERNET = UperNetShape(channels=24)
MASK_RCNN = MaskRCNNShape(channels=16, box_hidden=20, train_boxes=12, train_masks=5, proposals=30, detections=9)
CASCADE = MaskRCNNShape(channels=16, box_hidden=20, box_stages=3, class_agnostic_boxes=True)


def count(head, patch_size, img_size, *, embed_dim=D, num_classes=K):
    grid = token_grid(img_size, patch_size)
    return count_head(
        head, embed_dim=embed_dim, grid=grid, patch_size=patch_size, img_size=img_size, num_classes=num_classes
    )


def resize(widths, doublings):
    """One level of a pyramid."""
    if doublings < 0:
        return nn.MaxPool2d(2**-doublings, ceil_mode=True)
    layers = []
    for step in range(doublings):
        layers += [nn.ConvTranspose2d(widths[step], widths[step + 1], 2, stride=2)]
        if step < doublings - 1:
            layers += [nn.BatchNorm2d(widths[step + 1]), nn.GELU()]
    return nn.Sequential(*layers)


def real_upernet(shape, patch_size, embed_dim=D, num_classes=K):
    """(pyramid, decoder with its head)."""
    pyramid = nn.ModuleList([resize([embed_dim] * 9, doublings) for doublings in upernet_levels(patch_size)])
    config = SimpleNamespace(hidden_size=shape.channels, pool_scales=shape.pool_scales, num_labels=num_classes)
    return pyramid, UperNetHead(config, in_channels=[embed_dim] * 4)


class SimpleFeaturePyramid(nn.Module):
    def __init__(self, shape, patch_size, embed_dim=D):
        super().__init__()
        levels = detection_levels(patch_size)
        widths = [embed_dim] + [embed_dim // 2] + [embed_dim // 4] * 4
        self.levels = nn.ModuleList(
            nn.Sequential(
                resize(widths, doublings),
                nn.Conv2d(widths[max(doublings, 0)], shape.channels, 1, bias=False),
                nn.BatchNorm2d(shape.channels),
                nn.Conv2d(shape.channels, shape.channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(shape.channels),
            )
            for doublings in levels
        )

    def forward(self, features):
        maps = [level(features) for level in self.levels]
        return [*maps, nn.functional.max_pool2d(maps[-1], 1, 2)]


class MaskRCNNParts(nn.Module):
    """All of Mask R-CNN after the backbone, with as many boxes as it is told, wherever they are."""

    def __init__(self, shape, patch_size, embed_dim=D, num_classes=K):
        super().__init__()
        C = shape.channels
        self.pyramid = SimpleFeaturePyramid(shape, patch_size, embed_dim)
        self.rpn = RPNHead(C, shape.anchors_per_place)
        self.box_head = nn.ModuleList()
        for _ in range(shape.box_stages):
            predictor = FastRCNNPredictor(shape.box_hidden, num_classes)
            if shape.class_agnostic_boxes:
                predictor.bbox_pred = nn.Linear(shape.box_hidden, 4)
            self.box_head.append(nn.Sequential(TwoMLPHead(C * shape.box_size**2, shape.box_hidden), predictor))
        self.mask_head = nn.Sequential(
            MaskRCNNHeads(C, [C] * shape.mask_convs, 1), MaskRCNNPredictor(C, C, num_classes)
        )
        self.shape = shape

    def forward(self, features, boxes, masks):
        """All outputs."""
        logits, deltas = self.rpn(self.pyramid(features))
        C, side, mask_side = self.shape.channels, self.shape.box_size, self.shape.mask_size
        outputs = [*logits, *deltas]
        for stage in self.box_head:
            outputs += stage(torch.empty(boxes, C, side, side, requires_grad=torch.is_grad_enabled()))
        return [
            *outputs,
            self.mask_head(torch.empty(masks, C, mask_side, mask_side, requires_grad=torch.is_grad_enabled())),
        ]


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(run):
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        run()
    return counter.get_total_flops() // 2


def multiply_adds_with_backward(run):
    counter = FlopCounterMode(display=False)
    with counter:
        outputs = run()
        sum(output.sum() for output in outputs).backward()
    return counter.get_total_flops() // 2


def numbers_kept(run, modules):
    """Elements of the tensors that autograd keeps and of the outputs, each tensor once; 64-bit elements are two."""
    weights = {
        tensor.untyped_storage()._cdata for module in modules for tensor in (*module.parameters(), *module.buffers())
    }
    kept = {}

    def pack(tensor):
        if tensor.dim() > 1:  # statistics of norms have one number a channel
            storage = tensor.untyped_storage()
            kept[storage._cdata] = (storage, tensor.numel() * (tensor.element_size() // 4))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = run()
        for output in outputs:
            kept[output.untyped_storage()._cdata] = (output.untyped_storage(), output.numel())
    return sum(number for key, (_, number) in kept.items() if key not in weights)


def maps(number, img_size, patch_size, batch=1):
    """What a backbone gives. Batches of 2 train: norms refuse to train on one image pooled to one place."""
    return [torch.empty(batch, D, *token_grid(img_size, patch_size), requires_grad=True) for _ in range(number)]


@pytest.mark.parametrize("task", ["classification", "segmentation"])
@pytest.mark.parametrize(("patch_size", "img_size"), CONFIGURATIONS)
def test_linear_heads(task, patch_size, img_size):
    counts = count(head_shape("linear", task=task), patch_size, img_size)
    rows, columns = token_grid(img_size, patch_size)
    macs = D * K * (1 if task == "classification" else rows * columns)
    assert counts.params == {"head": (D + 1) * K}
    assert counts.macs == {"head": macs}
    assert counts.macs_train == {"head": 3 * macs}


def test_dense_logits_are_predicted_per_patch_and_read_per_pixel():
    pixels = 32 * 48
    coarse, fine = (count(LinearHeadShape(dense=True), patch_size, (32, 48)) for patch_size in (8, 1))
    assert (coarse.logits_numbers, coarse.coarse_logits_numbers) == (K * pixels, K * pixels // 64)
    assert (fine.logits_numbers, fine.coarse_logits_numbers) == (K * pixels, 0)  # nothing to enlarge
    for counts, patches in ((coarse, pixels // 64), (fine, pixels)):
        assert counts.kept_numbers == D * patches
        assert counts.working_numbers == (D + K) * patches  # gradients of tokens and logits
    one = count(LinearHeadShape(dense=False), 8, (32, 48))
    assert (one.kept_numbers, one.logits_numbers, one.coarse_logits_numbers) == (0, K, 0)


def test_the_largest_intermediate_results_are_those_of_the_largest_layer():
    fusion = 5 * 24 * 16 * 16  # reads four levels, gives one, at stride 4
    assert count(UPERNET, 16, 64, num_classes=2).working_numbers == fusion
    assert count(UPERNET, 16, 64, num_classes=5).working_numbers == fusion  # whatever there are of logits
    assert count(HEADS["mask_rcnn"]["detection"], 16, 64).working_numbers == 128 * 256 * (14**2 + 28**2)


@pytest.mark.parametrize(("patch_size", "img_size"), CONFIGURATIONS)
def test_upernet_is_what_transformers_builds(patch_size, img_size):
    counts = count(UPERNET, patch_size, img_size)
    with torch.device("meta"):
        pyramid, decoder = real_upernet(UPERNET, patch_size)
        taps = maps(4, img_size, patch_size)
        levels = [resize(tap) for resize, tap in zip(pyramid, taps, strict=True)]
        assert counts.macs["pyramid"] == multiply_adds(lambda: [f(tap) for f, tap in zip(pyramid, taps, strict=True)])
        assert counts.macs["decoder"] + counts.macs["head"] == multiply_adds(lambda: decoder.eval()(levels))
    assert counts.params["pyramid"] == parameters(pyramid)
    assert counts.params["head"] == parameters(decoder.classifier)
    assert counts.params["decoder"] == parameters(decoder) - parameters(decoder.classifier)


@pytest.mark.parametrize(("patch_size", "img_size"), CONFIGURATIONS)
def test_training_and_what_upernet_keeps(patch_size, img_size):
    counts = count(UPERNET, patch_size, img_size)
    with torch.device("meta"):
        pyramid, decoder = real_upernet(UPERNET, patch_size)
        taps = maps(4, img_size, patch_size, batch=2)

        def run():
            return [decoder([resize(tap) for resize, tap in zip(pyramid, taps, strict=True)])]

        kept = numbers_kept(run, [pyramid, decoder])
        executed = multiply_adds_with_backward(run)
        rows, columns = run()[0].shape[-2:]
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    assert counts.kept_numbers == kept // 2 - K * rows * columns  # enlarging reads no logits again
    assert counts.logits_numbers == K * height * width
    assert counts.coarse_logits_numbers == (K * rows * columns if rows * columns < height * width else 0)
    assert sum(counts.macs_train.values()) == executed // 2


def test_the_levels_of_upernet_as_published_at_patch_16_and_finer_with_finer_patches():
    assert {patch_size: upernet_levels(patch_size) for patch_size in (32, 16, 14, 4, 2, 1)} == {
        32: (3, 2, 1, 0),
        16: (2, 1, 0, -1),
        14: (2, 1, 0, -1),
        4: (0, -1, -2, -3),
        2: (0, -1, -2, -3),
        1: (0, -1, -2, -3),
    }


def test_upernet_at_patch_16_has_the_parameters_of_beit():
    config = BeitConfig(hidden_size=64, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, num_labels=K)
    config.out_indices = [1, 2, 3, 4]
    with torch.device("meta"):
        beit = BeitForSemanticSegmentation(config)
    real = parameters(beit) - parameters(beit.beit) - parameters(beit.auxiliary_head)
    counts = count(UperNetShape(channels=64), 16, 64, embed_dim=64)
    assert sum(counts.params.values()) == real


# arXiv 2502.03738, Table 2: parameters with UPerNet and with a linear head, in millions, at patch 16.
@pytest.mark.parametrize(("embed_dim", "with_upernet", "linear"), [(768, 112, 99), (256, 17, 12)])
def test_the_papers_heads_have_192_channels(embed_dim, with_upernet, linear):
    shapes = {channels: UperNetShape(channels=channels) for channels in range(64, 1025, 64)}
    millions = {
        channels: sum(count(shape, 16, 512, embed_dim=embed_dim, num_classes=150).params.values()) / 1e6
        for channels, shape in shapes.items()
    }
    # the linear head has 0.1M or less; both totals are rounded, so their difference is known to 1
    assert [channels for channels, size in millions.items() if abs(size - (with_upernet - linear)) < 1] == [192]


@pytest.mark.parametrize(
    ("shape", "patch_size", "img_size"),
    [(MASK_RCNN, *each) for each in CONFIGURATIONS] + [(CASCADE, 16, (96, 160)), (CASCADE, 2, (32, 44))],
)
def test_detection_is_what_torchvision_builds(shape, patch_size, img_size):
    counts = count(shape, patch_size, img_size)
    with torch.device("meta"):
        parts = MaskRCNNParts(shape, patch_size).eval()
        features = maps(1, img_size, patch_size)[0]
        whole = multiply_adds(lambda: parts(features, shape.proposals, shape.detections))
        pyramid = multiply_adds(lambda: parts.pyramid(features))
        rpn = multiply_adds(lambda: parts.rpn(parts.pyramid(features))) - pyramid
        without_masks = multiply_adds(lambda: parts(features, shape.proposals, 0))

        def train():
            return parts.train()(
                maps(1, img_size, patch_size, batch=2)[0], 2 * shape.train_boxes, 2 * shape.train_masks
            )

        kept, executed = numbers_kept(train, [parts]), multiply_adds_with_backward(train)
    assert counts.params == {name: parameters(getattr(parts, name)) for name in counts.params}
    assert counts.macs == {
        "pyramid": pyramid,
        "rpn": rpn,
        "box_head": without_masks - pyramid - rpn,
        "mask_head": whole - without_masks,
    }
    assert sum(counts.macs_train.values()) == executed // 2
    assert counts.kept_numbers == kept // 2


def test_detection_at_full_size_has_the_parameters_of_torchvisions_model():
    with torch.device("meta"):
        real = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    params = count(head_shape("mask_rcnn", task="detection"), 16, 1024, embed_dim=768, num_classes=91).params
    assert params["rpn"] == parameters(real.rpn)
    assert params["box_head"] + params["mask_head"] == parameters(real.roi_heads)


@pytest.mark.parametrize("patch_size", [64, 32, 16, 8, 4, 2, 1])
def test_anchors_find_the_same_strides_at_every_patch_size(patch_size):
    assert [patch_size / 2.0**doublings for doublings in detection_levels(patch_size)] == [4, 8, 16, 32]


def test_no_level_is_empty():
    assert level_grid((3, 1), -3) == (1, 1)
    assert level_grid((3, 1), 2) == (12, 4)


def test_the_heads_of_every_task():
    assert {(name, task) for name, tasks in HEADS.items() for task in tasks} == {
        ("linear", "classification"),
        ("linear", "segmentation"),
        ("upernet", "segmentation"),
        ("upernet_192", "segmentation"),
        ("upernet_nano", "segmentation"),
        ("linear", "detection"),
        ("mask_rcnn", "detection"),
        ("cascade_mask_rcnn", "detection"),
        ("mask_rcnn_nano", "detection"),
        ("cascade_mask_rcnn_nano", "detection"),
    }
    assert {task: default_head(task) for task in ("classification", "segmentation", "detection")} == {
        "classification": "linear",
        "segmentation": "linear",
        "detection": "mask_rcnn",
    }
    assert head_shape("linear", task="segmentation") == LinearHeadShape(dense=True)


def test_wrong_heads_tasks_and_classes_are_refused():
    with pytest.raises(UserError, match="head='upernet' is not one for detection; choose one of linear, mask_rcnn"):
        head_shape("upernet", task="detection")
    with pytest.raises(UserError, match="task='depth' is not known; choose one of classification, segmentation, det"):
        head_shape("linear", task="depth")
    with pytest.raises(UserError, match="num_classes=1 is too few for this head; give at least 2, one of them the bac"):
        count(MASK_RCNN, 16, 64, num_classes=1)
    with pytest.raises(UserError, match=r"num_classes=0 is too few for this head; give at least 1$"):
        count(UPERNET, 16, 64, num_classes=0)
