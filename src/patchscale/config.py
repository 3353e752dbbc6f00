"""What one run is: the resolved configuration and the identity that follows from it. No torch.

Precedence: default < recipe or file < `a.b=c` overrides. Everything is checked when a config is built, and all
mistakes are reported together.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from patchscale.errors import UserError
from patchscale.files import content_sha256
from patchscale.head_shapes import default_head, head_shape
from patchscale.quirks import SAMPLER_ROUNDS_TO, Quirk, quirk_problems
from patchscale.shapes import SHAPES, image_height_width

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
# Those of libyaml, where PyYAML has it: ten times as fast, which a study of a thousand runs notices.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_YAML_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

PAIR_DATASETS = ("mask_folder", "ade20k", "voc", "cityscapes")
"""Data sets of pictures of any size with label maps."""
FOLDER_DATASETS = ("image_folder", *PAIR_DATASETS)
PICTURE_DATASETS = ("image_folder", "shards", "hf_dataset")
"""Data sets of classes whose pictures have any size."""
OWN_DATASETS = (*FOLDER_DATASETS, "shards", "hf_dataset", "coco")
"""Those that `data.root` has to name."""
SCENES_PER_SPLIT: dict[Literal["train", "val", "test"], int] = {"train": 4096, "val": 512, "test": 1024}
"""Scenes composed for a split unless the config says how many."""


def _with_content(values: Any, section: str, field: str, hashed: str, what: str) -> Any:
    """Raw values of a section with the absolute path of the file in `field`, and its SHA-256 in `hashed` if new."""
    given = getattr(values, "kwargs", values)
    if not isinstance(given, dict) or not isinstance(given.get(field), str) or given.get(hashed):
        return values
    path = Path(given[field]).expanduser().absolute()
    try:
        return {**given, field: str(path), hashed: content_sha256(path)}
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{section}.{field}={given[field]}: {reason}; give {what}") from None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelConfig:
    """A backbone at one patch size and one input size."""

    name: str = "vit_tiny"
    """A name from `patchscale.list_models()`, or any timm ViT-like model."""
    patch_size: int = Field(default=16, ge=1)
    """Side of a patch in pixels; it must divide the image."""
    img_size: int | tuple[int, int] = 224
    """Input side in pixels, or [height, width]."""
    pos_embed: Literal["learned", "sincos2d"] = "learned"
    """Position embedding: learned (the paper), or a fixed two-dimensional sine-cosine table."""
    drop_path_rate: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth of the last block."""
    drop_path_schedule: Literal["linear", "constant"] = "linear"
    """linear: stochastic depth grows with depth (Adventurer: as released); constant: alike in all blocks (DeiT III)."""
    layer_scale_init: float | None = Field(default=None, gt=0)
    """First value of LayerScale, for models that have it, such as timm's deit3_*. Default: the model's own."""
    flip_schedule: Literal["alternate", "released", "pairs", "none"] = "alternate"
    """Adventurer only: which blocks read the image backwards (see `patchscale.models.adventurer`)."""

    @model_validator(mode="after")
    def _patch_divides_image(self) -> Self:
        height, width = image_height_width(self.img_size)
        if min(height, width) < 1:
            raise ValueError(f"img_size={self.img_size} must be positive")
        if height % self.patch_size or width % self.patch_size:
            common = [p for p in range(1, min(height, width) + 1) if height % p == 0 and width % p == 0]
            raise ValueError(
                f"patch_size={self.patch_size} does not divide the {height}x{width} image; "
                f"choose one of {common[:20]}, or another img_size"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DataConfig:
    """A data set and its fixed split into train, validation and test."""

    name: Literal[
        "scenes",
        "fashion_mnist",
        "mnist",
        "cifar10",
        "cifar100",
        "image_folder",
        "mask_folder",
        "ade20k",
        "voc",
        "cityscapes",
        "shards",
        "hf_dataset",
        "coco",
    ] = "scenes"
    """`scenes` ships with the package; the named sets are torchvision's; the others are your own (docs/data.md)."""
    root: str | None = None
    """Folder of your own data (shards: or URLs); for named sets where they are kept (default: the user's cache)."""
    val_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training images held out for validation, drawn with `split_seed`."""
    split_seed: int = 0
    train_images: int | None = Field(default=None, ge=1)
    """Use this many training images (scenes: compose this many; default 4096)."""
    val_images: int | None = Field(default=None, ge=1)
    """Use this many validation images (scenes: default 512)."""
    test_images: int | None = Field(default=None, ge=1)
    """Use this many test images (scenes: default 1024)."""
    num_classes: int | None = Field(default=None, ge=2)
    """`mask_folder` only: number of classes of the label maps; 255 is ignored."""
    eval_crop_ratio: float | None = Field(default=None, gt=0, le=1)
    """Pictures of any size: the centre crop's share of the resized picture in evaluation. Default: 0.875 up to 224 px,
    1 above, the same for every patch size. (The paper's code used 1 for patches below 16; see docs/data.md.)"""
    eval_mode: Literal["crop", "whole", "slide"] | None = None
    """Pictures with label maps: measured on the centre crop, or on the whole picture and its own label map: squeezed to
    the model's size, or in sliding windows. Default: crop for `mask_folder`, slide for the others."""
    eval_stride: float = Field(default=2 / 3, gt=0, le=1)
    """With eval_mode slide: from one window to the next, as a part of the window (341 of 512 px)."""
    eval_flip: bool = False
    """Not with eval_mode crop: average the probabilities of the picture and of its mirror image."""
    eval_scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(1.0,), min_length=1)
    """With eval_mode slide: average the probabilities at these scales."""
    augment: Literal[
        "none",
        "flip",
        "crop",
        "rand_augment",
        "three_augment",
        "scale_jitter",
        "shortest_edge",
        "large_scale_jitter",
    ] = "flip"
    """Training augmentation; see `patchscale.data.transforms`, and for detection `patchscale.data.detection`."""
    crop: Literal["resized", "simple"] = "resized"
    """Pictures of any size only: how `augment` crops them. simple: resize, then shift by up to 4 px (DeiT III)."""
    random_erasing: float = Field(default=0.0, ge=0, le=1)
    """Probability that a rectangle of a training image becomes noise (timm's, one rectangle of 2 to 33 % of it)."""
    repeated_augment: int = Field(default=1, ge=1)
    """So many draws of an image follow each other, augmented differently; an epoch has as many draws as ever."""
    shuffle_window: int | None = Field(default=None, ge=1)
    """`shards` only: shuffle the shards, and images within so many shards at a time. Default: all images with all."""
    image_column: str | None = None
    """`hf_dataset` only: the column of images, if it cannot be told from its type."""
    label_column: str | None = None
    """`hf_dataset` only: the column of classes, if it cannot be told from its type."""
    exclude: str | None = None
    """Pictures of any size only: text file with the names of pictures to leave out, from `patchscale data check
    --list-bad`; the others stay in their splits."""
    exclude_sha256: str | None = None
    """SHA-256 of that file's content, filled in; it, not the path, belongs to the identity."""

    @property
    def eval_how(self) -> Literal["crop", "whole", "slide"]:
        """`eval_mode`, or its default."""
        if self.eval_mode is not None:
            return self.eval_mode
        return "slide" if self.name in PAIR_DATASETS and self.name != "mask_folder" else "crop"

    @model_validator(mode="before")
    @classmethod
    def _content_of_exclude(cls, values: Any) -> Any:
        return _with_content(values, "data", "exclude", "exclude_sha256", "a file of names")

    @model_validator(mode="after")
    def _folders_name_a_root(self) -> Self:
        if self.name in OWN_DATASETS and not self.root:
            raise ValueError(f"data set {self.name!r} needs data.root, the folder it is in")
        if self.name == "mask_folder" and self.num_classes is None:
            raise ValueError("data set 'mask_folder' needs data.num_classes, the number of classes in the masks")
        if self.name not in PAIR_DATASETS and self.eval_mode is not None:
            raise ValueError(f"data.eval_mode is for data sets of pictures with label maps: {PAIR_DATASETS}")
        if self.eval_stride != 2 / 3 and self.eval_how != "slide":
            raise ValueError(f"data.eval_stride={self.eval_stride:g} goes with data.eval_mode=slide")
        if self.eval_scales != (1.0,) and self.eval_how != "slide":
            raise ValueError("data.eval_scales: other scales need windows; set data.eval_mode=slide")
        if self.eval_flip and self.eval_how == "crop":
            raise ValueError("data.eval_flip goes with data.eval_mode=whole or slide")
        if self.augment == "scale_jitter" and self.name not in PAIR_DATASETS:
            raise ValueError(f"data.augment='scale_jitter' is for pictures with label maps: {PAIR_DATASETS}")
        if self.name != "mask_folder" and self.num_classes is not None:
            raise ValueError(f"data set {self.name!r} knows its classes; data.num_classes is for 'mask_folder' only")
        if self.name != "shards" and self.shuffle_window is not None:
            raise ValueError(f"data.shuffle_window is for data.name=shards; data set {self.name!r} has no shards")
        for column in ("image_column", "label_column"):
            if self.name != "hf_dataset" and getattr(self, column) is not None:
                raise ValueError(f"data.{column} is for data.name=hf_dataset; data set {self.name!r} has no columns")
        if self.name == "scenes" and self.root is not None:
            raise ValueError(
                f"data.root={self.root}: scenes are composed, nothing is read; name your data, such as "
                "data.name=image_folder, or set data.root=null"
            )
        if self.eval_crop_ratio is not None and self.name not in PICTURE_DATASETS:
            raise ValueError(f"data.eval_crop_ratio is for data sets of pictures of any size: {PICTURE_DATASETS}")
        if self.exclude is not None and self.name not in PICTURE_DATASETS:
            raise ValueError(f"data.exclude is for data sets of pictures of any size: {PICTURE_DATASETS}")
        if self.exclude is None and self.exclude_sha256 is not None:
            raise ValueError("data.exclude_sha256 goes with data.exclude; leave it out")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainingConfig:
    """Optimizer, cosine schedule and loss: how long, how fast, and which regularisation."""

    epochs: float | None = Field(default=None, gt=0)
    """Length in passes over the training images; give either this or `steps`. One pass if neither is given."""
    steps: int | None = Field(default=None, ge=1)
    """Length in optimizer steps; give either this or `epochs`."""
    batch_size: int = Field(default=32, ge=1)
    """Images per optimizer step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate, not rescaled by the batch size."""
    min_learning_rate: float = Field(default=1e-5, ge=0)
    warmup_learning_rate: float = Field(default=1e-6, ge=0)
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of all steps in which the learning rate rises linearly from `warmup_learning_rate`."""
    optimizer: Literal["adamw", "lamb"] = "adamw"
    """AdamW (eps 1e-8), or LAMB (timm's, eps 1e-6; arXiv 1904.00962)."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """Learning rates by depth: that of block i of n is multiplied by layer_decay^(n - i), the head's by 1."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Not applied to one-dimensional parameters, position tables and the class token."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    clip_grad_norm: float | None = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is autocast: parameters, optimizer state and scan states stay float32."""
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """Of classification. bce: one yes or no for every class; every class of a mixed image is a whole yes (DeiT III)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """If given, an exponential moving average of the weights is kept; `eval_weights` says what for."""
    eval_weights: Literal["ema", "raw"] = "ema"
    """Which weights are evaluated and are the final ones, if there is a moving average; the others are saved beside."""
    on_non_finite: Literal["fail", "rollback"] = "fail"
    """A loss or gradient that is not finite ends the run; or the run goes back to its last checkpoint, once, and on
    with half the learning rate."""
    num_validations: int = Field(default=4, ge=1)
    """Evaluations on the validation split, evenly spaced, the last after the final step."""
    init_from: str | None = None
    """File of weights to start from, any that `patchscale convert` reads; carried to the run's patch and image size."""
    init_sha256: str | None = None
    """SHA-256 of that file's content, filled in; it, not the path, belongs to the identity."""
    init_run: str | None = Field(default=None, pattern="^[0-9a-f]{10}$")
    """Identity of a run of the same study whose final weights to start from; the `stages` of a study fill it in."""
    init_weights: Literal["final", "raw", "ema"] = "final"
    """With `init_run`: its final weights, or one of the two kinds that a run with a moving average has."""
    init_settings: str | None = None
    """With `init_run`, filled in: stands for it in `settings`, which is the same for all seeds and patch sizes."""
    quirks: tuple[Quirk, ...] = ()
    """Oddities of the released code to repeat, see docs/recipes.md."""

    @model_validator(mode="before")
    @classmethod
    def _content_of_init_from(cls, values: Any) -> Any:
        return _with_content(values, "training", "init_from", "init_sha256", "a file of weights")

    @model_validator(mode="before")
    @classmethod
    def _one_epoch_unless_told(cls, values: Any) -> Any:
        given = getattr(values, "kwargs", values) or {}
        if not isinstance(given, dict):
            raise ValueError(f"expected settings such as batch_size: 64 (got {given!r})")
        return given if {"epochs", "steps"} & set(given) else {**given, "epochs": 1.0}

    @model_validator(mode="after")
    def _one_duration(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of training.epochs and training.steps")
        return self

    @model_validator(mode="after")
    def _init_is_whole(self) -> Self:
        if self.init_from is None and self.init_sha256 is not None:
            raise ValueError("training.init_sha256 goes with training.init_from; leave it out")
        if self.init_run is not None and self.init_from is not None:
            raise ValueError("training.init_run and training.init_from: weights can come from one of them only")
        if self.init_run is None and (self.init_weights != "final" or self.init_settings is not None):
            raise ValueError("training.init_weights and init_settings go with training.init_run; leave them out")
        return self

    @model_validator(mode="after")
    def _bce_is_not_smoothed(self) -> Self:
        if self.loss == "bce" and self.label_smoothing:
            raise ValueError(
                "training.loss='bce' makes a whole yes of every class above 0, so smoothing would make all of them "
                "true; set training.label_smoothing=0"
            )
        return self

    def num_steps(self, num_images: int) -> int:
        """Optimizer steps over `num_images` training images: `steps`, or the epochs in full batches, rounded up.

        Under the quirk `repeated_augment_drops_rest` an epoch is a whole number of batches, rounded down.
        """
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        if "repeated_augment_drops_rest" in self.quirks:
            draws = num_images // SAMPLER_ROUNDS_TO * SAMPLER_ROUNDS_TO
            return max(1, round(self.epochs * (draws // self.batch_size)))
        # Rounded first: 0.1 epochs of 320 images are 32.00000000000001 in binary.
        return max(1, math.ceil(round(self.epochs * num_images / self.batch_size, 6)))


def _on_or_off(value: Any) -> Any:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value  # YAML reads on and off as booleans


def _auto_or_images(value: Any) -> int | str:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"give a number of images, at least 1, or auto (got {value!r})")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ExecutionConfig:
    """How a run is carried out, never what it computes: not part of its identity."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    num_workers: int = Field(default=0, ge=0)
    """Processes that load images; 0 loads them in the training process."""
    num_threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch; default: OMP_NUM_THREADS or torch's own choice."""
    checkpoint_every_s: float = Field(default=60.0, ge=0)
    """Seconds between checkpoints; 0 saves at every step."""
    keep_checkpoints: int = Field(default=1, ge=1)
    """So many of the newest checkpoints are kept while the run lasts."""
    keep_best: bool = False
    """Keep the checkpoint of the lowest validation loss too, also when the run has ended."""
    log_every_steps: int = Field(default=10, ge=1)
    micro_batch_size: Annotated[int | Literal["auto"], PlainValidator(_auto_or_images)] = "auto"
    """Images per forward and backward pass; their gradients add up to those of the batch. auto: as many as fit.

    Evaluation takes as many images at a time.
    """
    activation_checkpointing: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = "auto"
    """Keep only the input of each block and compute the block again in the backward pass. auto: if memory is short."""
    memory_limit_gib: float | None = Field(default=None, gt=0)
    """Memory that `auto` counts on; default: what is free when the run starts. Set it for runs that share a machine."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes (torchrun): every one holds the whole model (ddp), or its share of it (fsdp)."""
    sequence_parallel: int = Field(default=1, ge=1)
    """So many neighbouring processes share every image, each with a part of its tokens."""
    hang_timeout_s: float = Field(default=600.0, gt=0)
    """With several processes: the run fails, and names who was behind, when one has not moved for so long."""
    ssd_backend: Literal["auto", "triton", "chunked", "reference"] = "auto"
    """Adventurer only: implementation of the scan; see `patchscale doctor`."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Who gets the rows of metrics.jsonl besides; needs `patchscale[track]`. WANDB_MODE=offline needs no network."""
    shard_cache: str | None = None
    """Folder for shards from elsewhere. Default: shards in $PATCHSCALE_DATA, else in ~/.cache/patchscale."""
    shard_cache_gib: float | None = Field(default=None, gt=0)
    """Keep at most so much there, and fetch again what is needed again. Default: as much as the disk holds."""
    compile: bool = False
    """Compile the backbone with torch.compile; it takes a while at first, and results agree to rounding."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class RunConfig:
    """Everything that determines a run."""

    task: Literal["classification", "segmentation", "detection"] = "classification"
    head: str | None = None
    """A head of `patchscale.head_shapes.HEADS` for the task. Default: linear; for detection mask_rcnn."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    execution: ExecutionConfig = Field(default_factory=ExecutionConfig)
    seed: int = Field(default=0, ge=0)
    recipe: str = "custom"
    """Where the settings came from; a label, not part of the identity."""

    @model_validator(mode="after")
    def _task_fits_data(self) -> Self:
        segmentable = ("scenes", *PAIR_DATASETS)
        if self.task == "segmentation" and self.data.name not in segmentable:
            raise ValueError(
                f"data set {self.data.name!r} has no label maps for segmentation; use one of {segmentable}"
            )
        if (self.task == "detection") != (self.data.name == "coco") and self.data.name != "scenes":
            why = "has no objects for detection; use scenes or coco" if self.task == "detection" else "is for detection"
            raise ValueError(f"data set {self.data.name!r} {why}")
        if self.head is not None:
            try:
                head_shape(self.head, task=self.task)
            except UserError as error:
                raise ValueError(str(error)) from None
        if self.execution.sequence_parallel > 1 and (self.head or "").startswith("upernet"):
            raise ValueError(
                f"head={self.head!r} reads maps of several blocks, which ranks that share an image do not gather; "
                "use head=linear, or set execution.sequence_parallel=1"
            )
        if self.task == "classification" and self.data.name in PAIR_DATASETS:
            raise ValueError(f"data set {self.data.name!r} has no image classes; use task=segmentation")
        if self.task != "classification" and (self.training.mixup or self.training.cutmix):
            raise ValueError("training.mixup and training.cutmix apply to classification only; set them to 0")
        if self.task == "detection" and self.training.label_smoothing:
            raise ValueError("training.label_smoothing does not apply to detection; set it to 0")
        if self.task != "classification" and self.training.loss != "cross_entropy":
            raise ValueError("training.loss='bce' applies to classification only; set it to cross_entropy")
        if self.task != "classification" and self.data.random_erasing:
            raise ValueError(f"data.random_erasing has no label maps to follow; set it to 0 for task={self.task}")
        if self.data.crop == "simple":
            if self.data.name not in PICTURE_DATASETS:
                raise ValueError(f"data.crop='simple' is for data sets of pictures of any size: {PICTURE_DATASETS}")
            if self.data.augment in ("none", "flip"):
                raise ValueError(f"data.crop='simple' changes a crop; data.augment={self.data.augment!r} has none")
        problems = quirk_problems(self)
        if problems:
            raise ValueError("; ".join(problems))
        if (self.training.mixup or self.training.cutmix) and self.training.batch_size % 2:
            raise ValueError(f"mixup and cutmix need an even batch; got training.batch_size={self.training.batch_size}")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, ready for YAML or JSON."""
        return _plain(asdict(self))

    def to_yaml(self) -> str:
        """The whole resolved config as YAML."""
        return yaml.dump(self.to_dict(), Dumper=_YAML_DUMPER, sort_keys=False)

    @property
    def identity(self) -> str:
        """Ten hexadecimal digits: the hash of all that decides the outcome.

        Left out are `execution`, `recipe`, the place where a named data set is kept, what has no effect here, and
        settings at their defaults: a new setting, whose default changes nothing, leaves older runs what they were.
        """
        return _digest(_without(self._decisive(), RunConfig()._decisive()), 10)

    @property
    def settings(self) -> str:
        """Six hexadecimal digits: the hash of `curve_values`, without those at their defaults."""
        return _digest(_without(self.curve_values(), RunConfig()._decisive()), 6)

    def curve_values(self) -> dict[str, Any]:
        """All that should be equal along a curve: the identity without model name, patch size, image size and seed."""
        decisive = self._decisive()
        for name in ("name", "patch_size", "img_size"):
            del decisive["model"][name]
        decisive["model"].pop("flip_schedule", None)
        del decisive["seed"]
        if self.training.init_settings is not None:
            decisive["training"]["init_run"] = self.training.init_settings
        return decisive

    def _decisive(self) -> dict[str, Any]:
        """All that has a say in the outcome, each in one form only."""
        values = self.to_dict()
        del values["execution"], values["recipe"]
        values["model"]["img_size"] = list(image_height_width(self.model.img_size))
        values["training"]["quirks"] = sorted({*values["training"]["quirks"]})
        if self.head == default_head(self.task):
            values["head"] = None
        shape = SHAPES.get(self.model.name)
        if shape is not None and shape.architecture != "adventurer":
            del values["model"]["flip_schedule"]
        del values["training"]["init_from"]  # its content counts, not its place
        del values["training"]["init_settings"]  # follows from init_run
        if self.training.init_sha256 is None:
            del values["training"]["init_sha256"]
        del values["data"]["exclude"]
        if self.data.exclude_sha256 is None:
            del values["data"]["exclude_sha256"]
        if self.data.name not in OWN_DATASETS:
            del values["data"]["root"]
        if self.data.name == "scenes":
            del values["data"]["val_fraction"]
        return values

    @property
    def run_id(self) -> str:
        """Readable and unique name of the run, used for its directory."""
        height, width = image_height_width(self.model.img_size)
        size = f"{height}" if height == width else f"{height}x{width}"
        name = self.model.name.replace("/", "-")
        return f"{name}-p{self.model.patch_size}-r{size}-s{self.seed}-{self.identity}"


def build_config(values: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str = "config") -> RunConfig:
    """Build a `RunConfig` from nested values and `a.b=c` overrides.

    Raises `UserError` naming every wrong field, the value given and what is allowed.
    """
    merged = deepcopy(dict(values))
    for override in overrides:
        key, value = parse_override(override)
        set_by_path(merged, key, value)
    data = merged.get("data")
    if isinstance(data, dict) and isinstance(data.get("root"), str) and not is_url(data["root"]):
        # The folder it means now, so that the run can be resumed from anywhere.
        data["root"] = str(Path(data["root"]).expanduser().absolute())
    return validate(_run_config_adapter(), merged, source=source)


def is_url(root: str) -> bool:
    """Whether a place of data is a URL (or `pipe:command`), and no path."""
    return "://" in root or root.startswith("pipe:")


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML file; raises `UserError` for a missing file, broken YAML or a wrong field."""
    return build_config(read_yaml(path), overrides, source=str(path))


def parse_override(text: str) -> tuple[str, Any]:
    """Split `a.b=c` into the dotted name and its value, read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"override {text!r} is not of the form name=value, such as training.batch_size=64")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        return key.strip(), value


def set_by_path(values: dict[str, Any], path: str, value: Any) -> None:
    """Set `values["a"]["b"]` for the path "a.b", creating what is missing.

    Setting one of `training.epochs` and `training.steps` unsets the other; `training.init_from` and `data.exclude` are
    hashed anew.
    """
    *parents, name = path.split(".")
    target = values
    for parent in parents:
        child = target.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"override {path!r}: {parent!r} is a single value, it has no field {name!r}")
        target = child
    if path in ("training.epochs", "training.steps") and value is not None:
        target.pop("steps" if name == "epochs" else "epochs", None)
    if path == "training.init_from":
        target.pop("init_sha256", None)  # of another file, perhaps
    if path == "data.exclude":
        target.pop("exclude_sha256", None)
    target[name] = value


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; raises `UserError` if the file is missing, broken or not a mapping."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_YAML_LOADER)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of names to values, got {type(values).__name__}")
    return values


def validate(adapter: TypeAdapter[Any], values: Any, *, source: str) -> Any:
    """Run a pydantic adapter; every mistake goes into one `UserError` line."""
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        raise UserError(f"{source}: " + "; ".join(_describe(item) for item in error.errors())) from None


def config_problems(values: Mapping[str, Any]) -> list[str]:
    """Every mistake in the nested values of a run, each in words; none if they make a `RunConfig`."""
    try:
        _run_config_adapter().validate_python(values)
    except ValidationError as error:
        return [_describe(item) for item in error.errors()]
    return []


def _describe(item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"]) or "config"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = known_fields(item["loc"][:-1])
        return f"{place}: no such field; " + (f"fields here: {', '.join(known)}" if known else "check the name")
    if item["type"] == "value_error":
        return message if place == "config" or message.startswith(f"{place}.") else f"{place}: {message}"
    return f"{place}: {message} (got {item['input']!r})"


def known_fields(path: Sequence[int | str]) -> list[str]:
    """Names of the fields of the section of `RunConfig` at `path`; empty if there is no such section."""
    section: Any = RunConfig
    for part in path:
        types = {field.name: field.type for field in fields(section)}
        section = types.get(str(part))
        if not is_dataclass(section):
            return []
    return [field.name for field in fields(section)]


@cache
def _run_config_adapter() -> TypeAdapter[RunConfig]:
    return TypeAdapter(RunConfig)


def _digest(values: dict[str, Any], digits: int) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:digits]


def _without(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Nested values without those that are at their default."""
    kept = {}
    for name, value in values.items():
        if isinstance(value, dict):
            value = _without(value, defaults.get(name, {}))
            if value:
                kept[name] = value
        elif name not in defaults or value != defaults[name]:
            kept[name] = value
    return kept


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
