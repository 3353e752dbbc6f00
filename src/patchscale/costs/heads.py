"""What the head of a task costs: parameters, multiply-adds and activations, from the layers it is made of.

Kept for the backward pass is, once each, what it reads: inputs of convolutions, linear layers and max-pooling (and its
64-bit indices, as two numbers), of norms and GELU, results of ReLU; in detection the outputs, which the losses read.
Logits of classification and segmentation are told apart, because they are always float32: their loss keeps the
logarithmic softmax, and nothing else of them. Not counted are statistics of norms, anchors, and what losses, matching
and choosing of boxes need in detection.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod

from patchscale.errors import UserError
from patchscale.head_shapes import (
    HeadShape,
    LinearDetectorShape,
    LinearHeadShape,
    MaskRCNNShape,
    UperNetShape,
    detection_levels,
    level_grid,
    upernet_levels,
)
from patchscale.shapes import image_height_width

PASSES = 3
"""Matrix products of a training step for each of the forward pass; the maps from the backbone need gradients."""


@dataclass(frozen=True, kw_only=True)
class HeadCounts:
    """One head on one image; numbers are tensor elements, of whatever precision."""

    params: dict[str, int]
    """Parameters by part."""
    macs: dict[str, int]
    """Multiply-adds at inference by part; for detection with as many boxes and masks as it may take."""
    macs_train: dict[str, int]
    """Multiply-adds of a forward and a backward pass by part, with the boxes and masks that are trained on."""
    kept_numbers: int
    """What layers keep from the forward pass for the backward pass; dense heads also keep the backbone's maps."""
    working_numbers: int
    """The most intermediate results of layers at a time, backward: gradients of one layer's output and input."""
    logits_numbers: int
    """Logits that the loss reads, float32, one for every class and image or pixel; 0 in detection."""
    coarse_logits_numbers: int
    """Dense logits as they are predicted, float32, if they are then enlarged to pixels; else 0."""


def count_head(
    head: HeadShape,
    *,
    embed_dim: int,
    grid: tuple[int, int],
    patch_size: int,
    img_size: int | tuple[int, int],
    num_classes: int,
) -> HeadCounts:
    """Counts of `head` on a `grid` of patches (rows, columns) with `embed_dim` features each.

    Detection counts the background among `num_classes`, as torchvision does. Raises `UserError` for fewer than one
    class, or two for detection.
    """
    least = 2 if isinstance(head, MaskRCNNShape | LinearDetectorShape) else 1
    if num_classes < least:
        background = ", one of them the background" if least == 2 else ""
        raise UserError(f"num_classes={num_classes} is too few for this head; give at least {least}{background}")
    pixels = prod(image_height_width(img_size))
    predicted = loss_places = 0  # where logits are predicted, and where the loss reads them
    if isinstance(head, LinearHeadShape):
        predicted, loss_places = (prod(grid), pixels) if head.dense else (1, 1)
        # A dense one copies the patches' features; else it is the result of the last norm, which is counted there.
        layers = [_layer("head", embed_dim, num_classes, predicted, keeps_input=head.dense)]
    elif isinstance(head, LinearDetectorShape):
        layers = [_layer("head", embed_dim, num_classes - 1 + 4, prod(grid), keeps_results=1)]
    elif isinstance(head, UperNetShape):
        layers = list(_upernet(head, embed_dim, grid, patch_size, num_classes))
        predicted, loss_places = prod(level_grid(grid, upernet_levels(patch_size)[0])), pixels
    else:
        layers = list(_mask_rcnn(head, embed_dim, grid, patch_size, num_classes))

    counts = HeadCounts(
        params={},
        macs={},
        macs_train={},
        kept_numbers=sum(layer.kept_numbers for layer in layers),
        working_numbers=max(layer.input_numbers + layer.output_numbers for layer in layers),
        logits_numbers=num_classes * loss_places,
        coarse_logits_numbers=num_classes * predicted if predicted < loss_places else 0,
    )
    for layer in layers:
        _add(counts.params, layer.part, layer.params)
        _add(counts.macs, layer.part, layer.products * layer.places)
        _add(counts.macs_train, layer.part, PASSES * layer.products * layer.train_places)
    return counts


def _add(parts: dict[str, int], part: str, number: int) -> None:
    parts[part] = parts.get(part, 0) + number


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A convolution, a linear layer or pooling, with the norm and activation that follow."""

    part: str
    params: int
    products: int
    """Multiply-adds at one place."""
    places: int
    """Pixels, boxes or images where weights are applied, at inference."""
    train_places: int
    input_numbers: int
    """In training, as all below."""
    output_numbers: int
    keeps_input: bool
    """False if it is a tensor that is kept already."""
    keeps_results: int
    """Further tensors of the output's size: inputs of norm and GELU, result of ReLU, indices, outputs of the head."""

    @property
    def kept_numbers(self) -> int:
        return self.keeps_input * self.input_numbers + self.keeps_results * self.output_numbers


def _layer(
    part: str,
    inputs: int,
    outputs: int,
    places: int,
    *,
    train_places: int | None = None,
    kernel: int = 1,
    doubles: bool = False,
    own_weights: bool = True,
    bias: bool = True,
    norm: bool = False,
    keeps_input: bool = True,
    keeps_results: int = 0,
) -> _Layer:
    """A layer with weights for `inputs` and `outputs` channels; `own_weights=False`: those of an earlier layer.

    One that `doubles` its map is a transposed convolution with a stride as large as its kernel; `places` are its input.
    """
    train_places = places if train_places is None else train_places
    products = inputs * outputs * kernel**2
    return _Layer(
        part=part,
        params=products + outputs * (bias + 2 * norm) if own_weights else 0,
        products=products,
        places=places,
        train_places=train_places,
        input_numbers=inputs * train_places,
        output_numbers=outputs * train_places * (kernel**2 if doubles else 1),
        keeps_input=keeps_input,
        keeps_results=keeps_results,
    )


def _pooling(
    part: str, channels: int, input_places: int, output_places: int, *, keeps_input: bool = True, indices: bool = True
) -> _Layer:
    return _Layer(
        part=part,
        params=0,
        products=0,
        places=output_places,
        train_places=output_places,
        input_numbers=channels * input_places,
        output_numbers=channels * output_places,
        keeps_input=keeps_input,
        keeps_results=2 * indices,
    )


def _resizing(
    widths: tuple[int, ...], grid: tuple[int, int], doublings: int, *, keeps_input: bool = True
) -> Iterator[_Layer]:
    """From the patches' grid to a level: transposed convolutions through `widths`, or max-pooling, or nothing."""
    if doublings < 0:
        yield _pooling("pyramid", widths[0], prod(grid), prod(level_grid(grid, doublings)), keeps_input=keeps_input)
    for step in range(doublings):
        last = step == doublings - 1
        yield _layer(
            "pyramid",
            widths[step],
            widths[step + 1],
            prod(level_grid(grid, step)),
            kernel=2,
            doubles=True,
            norm=not last,
            keeps_input=keeps_input or step > 0,
            keeps_results=0 if last else 2,  # inputs of norm and GELU
        )


def _upernet(
    head: UperNetShape, embed_dim: int, grid: tuple[int, int], patch_size: int, num_classes: int
) -> Iterator[_Layer]:
    D, C = embed_dim, head.channels
    conv = partial(_layer, "decoder", bias=False, norm=True, keeps_results=2)  # input of the norm, result of ReLU
    levels = upernet_levels(patch_size)
    places = [prod(level_grid(grid, doublings)) for doublings in levels]
    for doublings in levels:
        yield from _resizing((D,) * (max(doublings, 0) + 1), grid, doublings)

    pooled = [scale**2 for scale in head.pool_scales]
    yield _pooling("decoder", D, places[-1], sum(pooled), indices=False)
    for number in pooled:
        yield conv(D, C, number)
    yield conv(D + len(pooled) * C, C, places[-1], kernel=3)
    for number in places[:-1]:
        yield conv(D, C, number)
        yield conv(C, C, number, kernel=3)
    yield conv(len(levels) * C, C, places[0], kernel=3)
    yield _layer("head", C, num_classes, places[0], keeps_input=False)


def _mask_rcnn(
    head: MaskRCNNShape, embed_dim: int, grid: tuple[int, int], patch_size: int, num_classes: int
) -> Iterator[_Layer]:
    C, K = head.channels, num_classes
    levels = detection_levels(patch_size)
    grids = [level_grid(grid, doublings) for doublings in levels]
    for level, doublings in enumerate(levels):
        widths = head.pyramid_widths(embed_dim, doublings)
        shared = level > 0  # the map that all levels start from is kept once
        yield from _resizing(widths, grid, doublings, keeps_input=not shared)
        places = prod(grids[level])
        conv = partial(_layer, "pyramid", outputs=C, places=places, bias=False, norm=True, keeps_results=1)
        yield conv(widths[-1], keeps_input=not shared or doublings != 0)
        yield conv(C, kernel=3)

    fifth = level_grid(grids[-1], -1)
    yield _pooling("rpn", C, prod(grids[-1]), prod(fifth), keeps_input=False)
    for level, places in enumerate(prod(each) for each in (*grids, fifth)):
        conv = partial(_layer, "rpn", C, places=places, own_weights=level == 0, keeps_results=1)
        yield conv(C, kernel=3)
        yield conv(head.anchors_per_place, keeps_input=False)
        yield conv(4 * head.anchors_per_place, keeps_input=False)

    on_boxes = partial(_layer, "box_head", places=head.proposals, train_places=head.train_boxes, keeps_results=1)
    for _ in range(head.box_stages):
        yield on_boxes(C * head.box_size**2, head.box_hidden)
        yield on_boxes(head.box_hidden, head.box_hidden, keeps_input=False)
        yield on_boxes(head.box_hidden, K, keeps_input=False)
        yield on_boxes(head.box_hidden, 4 if head.class_agnostic_boxes else 4 * K, keeps_input=False)

    area = head.mask_size**2
    pixels, train_pixels = head.detections * area, head.train_masks * area
    on_masks = partial(_layer, "mask_head", C, places=pixels, train_places=train_pixels, keeps_results=1)
    for step in range(head.mask_convs):
        yield on_masks(C, kernel=3, keeps_input=step == 0)
    yield on_masks(C, kernel=2, doubles=True, keeps_input=False)
    yield on_masks(K, places=4 * pixels, train_places=4 * train_pixels, keeps_input=False)
