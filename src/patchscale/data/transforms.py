"""From a decoded picture to the tensor a model reads.

H W are the model's input height and width; pixels are uint8 arrays [h, w, C], C 1 or 3; label maps are uint8 [h, w].
Every random choice is drawn from (seed, "augment", epoch, index), so a training item does not depend on loader
processes or order. The augmentations (`DataConfig.augment`):

    none            nothing random
    flip            horizontal flip with probability 1/2
    crop            flip, and a window moved at random by up to 1/8 of the side over the reflected border;
                    `image_folder`: torchvision's RandomResizedCrop (area 0.08 to 1, ratio 3/4 to 4/3) and flip
    rand_augment    crop, then timm's rand-m9-mstd0.5-inc1 (no random erasing)
    three_augment   crop, then one of grey, solarise and blur, then colour jitter 0.3 (DeiT III, arXiv 2204.07118)
    scale_jitter    pictures with label maps: random scale, crop, flip and colours (`patchscale.data.pairs`)

With `DataConfig.crop="simple"` pictures of any size are resized to cover the input and moved by up to 4 px, instead,
over a reflected border, flipped. The last two are for classification only: they would need the label map to follow.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from patchscale.data.seeding import derive_seed, seeded
from patchscale.errors import UserError

Pixels = NDArray[np.uint8]
LabelMap = NDArray[np.uint8]
Augment = Literal[
    "none", "flip", "crop", "rand_augment", "three_augment", "scale_jitter", "shortest_edge", "large_scale_jitter"
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

FILL = tuple(round(255 * part) for part in IMAGENET_MEAN)
"""What a picture that is too small is filled up with: nothing, once it is normalised."""
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
PICTURE_ONLY: tuple[Augment, ...] = ("rand_augment", "three_augment")
"""Augmentations that cannot be applied to a label map."""
WITH_OBJECTS: tuple[Augment, ...] = ("none", "flip", "shortest_edge", "large_scale_jitter")
"""Those that boxes and masks follow, of which the last two are for nothing else; see `patchscale.data.detection`."""

_MEAN = torch.tensor(IMAGENET_MEAN)[:, None, None] * 255
_STD = torch.tensor(IMAGENET_STD)[:, None, None] * 255


def to_tensor(pixels: Pixels) -> Tensor:
    """Pixels [h, w, 1 or 3] as float32 [3, h, w], normalised with ImageNet's mean and standard deviation."""
    return torch.from_numpy(pixels).permute(2, 0, 1).sub(_MEAN).div_(_STD).contiguous()


def normalised(images: Tensor) -> Tensor:
    """A batch of bytes [B, h, w, 1 or 3] as `to_tensor` makes images: float32 [B, 3, h, w], on the same device.

    The same operations in the same order, so on a CPU the same bits.
    """
    mean, std = _MEAN.to(images.device), _STD.to(images.device)
    if images.device.type != "cpu":
        return images.permute(0, 3, 1, 2).sub(mean).div_(std).contiguous()
    out = torch.empty(len(images), 3, *images.shape[1:3])
    for image, pixels in zip(out, images.permute(0, 3, 1, 2), strict=True):
        image.copy_(pixels).sub_(mean).div_(std)
    return out


def eval_crop_ratio(img_size: tuple[int, int]) -> float:
    """Centre crop's side as a part of the resized picture's: 0.875 up to 224 px, else 1.

    The same for every patch size, so that a curve shows the patch and not the crop.
    """
    return 0.875 if max(img_size) <= 224 else 1.0


def cover(picture: Image.Image, height: int, width: int, resample: Image.Resampling) -> Image.Image:
    """Resize, aspect kept, to the smallest picture that covers height x width; rounds as torchvision's Resize."""
    if height * picture.width >= width * picture.height:
        size = (height * picture.width // picture.height, height)
    else:
        size = (width, width * picture.height // picture.width)
    return picture if size == picture.size else picture.resize(size, resample)


def centre_crop(picture: Image.Image, height: int, width: int) -> Image.Image:
    """The middle height x width pixels, as torchvision takes them."""
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))


def fit_pixels(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resize to exactly height x width (bicubic, antialiased); what fits already is returned as it is."""
    if pixels.shape[:2] == (height, width):
        return pixels
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    resized = np.array(picture.resize((width, height), Image.Resampling.BICUBIC))
    return resized.reshape(height, width, -1)


def window(length: int, wanted: int, generator: random.Random | None) -> NDArray[np.intp]:
    """`wanted` consecutive positions along an axis of `length` >= `wanted`.

    Drawn with up to wanted / 8 of them beyond either end, reflected back; without a generator, the middle ones.
    """
    if generator is None:
        start = round((length - wanted) / 2)
        return np.arange(start, start + wanted)
    margin = wanted // 8
    start = generator.randint(-margin, length - wanted + margin)
    positions = np.abs(np.arange(start, start + wanted))
    return np.minimum(positions, 2 * (length - 1) - positions)


class Transform(Protocol):
    """From a decoded picture (and label map) to pixels of the model's size; random in (epoch, index) only."""

    def __call__(self, picture: Any, label_map: Any, epoch: int, index: int) -> tuple[Pixels, LabelMap | None]: ...


@dataclass(frozen=True, kw_only=True)
class PixelTransform:
    """For pixel arrays that cover the model's input, with or without a label map, which moves along.

    Without a random window the middle is taken; `augment="none"` is the evaluation transform.
    """

    augment: Augment
    img_size: tuple[int, int]
    seed: int = 0

    def __call__(
        self, picture: Pixels, label_map: LabelMap | None, epoch: int, index: int
    ) -> tuple[Pixels, LabelMap | None]:
        """Window, flip, then colours."""
        generator = None
        if self.augment != "none":
            generator = random.Random(derive_seed(self.seed, "augment", epoch, index))
        moves = self.augment not in ("none", "flip")
        if moves or picture.shape[:2] != self.img_size:
            rows, columns = (
                window(length, wanted, generator if moves else None)
                for length, wanted in zip(picture.shape[:2], self.img_size, strict=True)
            )
            picture = picture[rows[:, None], columns]
            label_map = None if label_map is None else label_map[rows[:, None], columns]
        if generator is not None and generator.random() < 0.5:
            picture = np.ascontiguousarray(picture[:, ::-1])
            label_map = None if label_map is None else np.ascontiguousarray(label_map[:, ::-1])
        if self.augment in PICTURE_ONLY:
            change = colour_augmentation(self.augment, self.img_size)
            with seeded(self.seed, "augment", epoch, index):
                picture = np.array(change(as_rgb(picture)))
        return picture, label_map


@dataclass(frozen=True, kw_only=True)
class PictureTransform:
    """For PIL pictures of any size, classification only; `augment="none"` is the evaluation transform."""

    augment: Augment
    img_size: tuple[int, int]
    eval_ratio: float
    """See `eval_crop_ratio`; used where the crop is not random."""
    seed: int = 0
    crop: Literal["resized", "simple"] = "resized"

    def __call__(
        self, picture: Image.Image, label_map: LabelMap | None, epoch: int, index: int
    ) -> tuple[Pixels, LabelMap | None]:
        """Crop and resize, flip, then colours."""
        assert label_map is None
        if self.augment == "none":
            return evaluation_pixels(picture, self.img_size, self.eval_ratio), None
        with seeded(self.seed, "augment", epoch, index):
            if self.augment == "flip":
                pixels = evaluation_pixels(picture, self.img_size, self.eval_ratio)
                return np.ascontiguousarray(pixels[:, ::-1]) if random.random() < 0.5 else pixels, None
            if self.crop == "simple":
                picture = simple_random_crop(self.img_size)(cover(picture, *self.img_size, Image.Resampling.BICUBIC))
            else:
                picture = random_resized_crop(self.img_size)(picture)
            if self.augment in PICTURE_ONLY:
                picture = colour_augmentation(self.augment, self.img_size)(picture)
            return np.array(picture), None


def evaluation_pixels(picture: Image.Image, img_size: tuple[int, int], ratio: float) -> Pixels:
    """Resize until the picture covers the input divided by `ratio` (bicubic, antialiased); crop the centre."""
    height, width = img_size
    resized = cover(picture, int(height / ratio), int(width / ratio), Image.Resampling.BICUBIC)
    return np.array(centre_crop(resized, height, width))


def as_rgb(pixels: Pixels) -> Image.Image:
    """Pixels [h, w, 1 or 3] as an RGB picture."""
    return Image.fromarray(pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2))


@cache
def random_resized_crop(img_size: tuple[int, int]) -> Callable[[Image.Image], Image.Image]:
    """torchvision's random resized crop and horizontal flip, drawing from torch's global generator."""
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomResizedCrop(img_size, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
        ]
    )


@cache
def simple_random_crop(img_size: tuple[int, int]) -> Callable[[Image.Image], Image.Image]:
    """DeiT III's simple random crop of a picture that covers the input, and flip, drawing from the same generator."""
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomCrop(img_size, padding=4, padding_mode="reflect"), v2.RandomHorizontalFlip()])


@dataclass(frozen=True, kw_only=True)
class Erasing:
    """timm's random erasing (arXiv 1708.04896) of normalised images [3, H, W], in place; drawn from (epoch, index).

    With `probability` one rectangle, of 2 to 33 % of the area and sides up to 1 : 3.3, becomes standard normal noise.
    """

    probability: float
    seed: int

    def __call__(self, image: Tensor, epoch: int, index: int) -> Tensor:
        """The image, erased in part or not."""
        from timm.data.random_erasing import RandomErasing

        with seeded(self.seed, "erase", epoch, index):
            erased: Tensor = RandomErasing(self.probability, mode="pixel", device="cpu")(image)
        return erased


@cache
def colour_augmentation(augment: Augment, img_size: tuple[int, int]) -> Callable[[Image.Image], Image.Image]:
    """The part of an augmentation after crop and flip, drawing from the global generators."""
    if augment == "three_augment":
        from torchvision.transforms import v2

        return v2.Compose([_one_of_three, v2.ColorJitter(0.3, 0.3, 0.3)])
    return _rand_augment(img_size)


def _rand_augment(img_size: tuple[int, int]) -> Callable[[Image.Image], Image.Image]:
    from timm.data.auto_augment import rand_augment_transform

    settings: dict[str, Any] = {
        "translate_const": int(min(img_size) * 0.45),
        "img_mean": tuple(round(255 * part) for part in IMAGENET_MEAN),
        "interpolation": Image.Resampling.BICUBIC,
    }
    randomly = rand_augment_transform(RAND_AUGMENT, settings)
    for operation in randomly.ops:
        if operation.name == "PosterizeIncreasing":
            operation.level_fn = partial(_keep_a_bit, operation.level_fn)
    return randomly


def _keep_a_bit(bits_of: Callable[..., tuple[int]], level: float, settings: Any) -> tuple[int]:
    """At magnitude 10, one draw in 40, timm asks to keep 0 bits, which is a black picture and an error in Pillow 13."""
    (bits,) = bits_of(level, settings)
    return (max(1, bits),)


def _one_of_three(picture: Image.Image) -> Image.Image:
    """3-Augment: grey, solarise (threshold 128) or Gaussian blur (radius 0.1 to 2 px), one third each."""
    which = random.randrange(3)
    if which == 0:
        return picture.convert("L").convert("RGB")
    if which == 1:
        return ImageOps.solarize(picture)
    return picture.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def check_augment(augment: Augment, *, with_label_maps: bool, with_objects: bool = False) -> None:
    """Raises `UserError` for an augmentation that a label map, or boxes, cannot follow, or that is for boxes only."""
    if with_objects and augment not in WITH_OBJECTS:
        raise UserError(
            f"data.augment={augment!r} is not meant for boxes; for task=detection use {', '.join(WITH_OBJECTS)}"
        )
    if not with_objects and augment in WITH_OBJECTS[2:]:
        raise UserError(f"data.augment={augment!r} is for task=detection only; use none, flip or crop")
    if augment == "scale_jitter" and not with_label_maps:
        raise UserError("data.augment='scale_jitter' is for task=segmentation only; use none, flip or crop")
    if with_label_maps and augment in PICTURE_ONLY:
        raise UserError(
            f"data.augment={augment!r} changes pictures only and is not meant for label maps; "
            "for task=segmentation use none, flip or crop, with pictures of any size also scale_jitter"
        )
