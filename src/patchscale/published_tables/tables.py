"""Published measurements by name, every row with the place it was read from. No torch.

Curve tables use the column names of run records where they mean the same (model, architecture, img_size, patch_size,
tokens, metric_name, metric, test_loss), so that `fit_law` reads both. Metrics are fractions. An empty cell is a number
that the source does not give; nothing was filled in. To add a table, put the CSV here and enter it in `PUBLISHED`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from typing import Any

import pandas as pd

from patchscale.costs.params import backbone_params
from patchscale.errors import UserError
from patchscale.shapes import SHAPES, ModelShape, ViTShape

PATCHIFICATION = "arXiv 2502.03738v2 (ICML 2025)"
ADVENTURER = "arXiv 2410.07599 (CVPR 2025)"
TIMM = "results of timm (Apache-2.0), files of 2025-10-30 and 2026-01-06"
DIGITISED = "dots of Figure 1 measured in the 758 x 579 px picture of the authors' repository"

SIGLIP2 = "arXiv 2502.14786; README_siglip2.md of google-research/big_vision at 1659d42"
PALIGEMMA = "arXiv 2407.07726; configs/proj/paligemma/README.md of google-research/big_vision at 1475d53"
VLM_TOKENS = "arXiv 2411.03312 (ICLR 2025), values.py of the authors' code"
FLEXIVIT = "arXiv 2212.08013, evaluated by timm (results-imagenet.csv of 2025-10-30)"

IMAGENET_TRAIN = 1_281_167
"""Training images of ImageNet-1k."""

ARCHITECTURES = {"mamba2": "adventurer"}
"""The source's word for an architecture -> the registry's."""

SIGLIP2_SHAPES: dict[str, ModelShape] = {
    "SigLIP2-B": SHAPES["vit_base"],
    "SigLIP2-L": SHAPES["vit_large"],
    "SigLIP2-So400m": ViTShape(embed_dim=1152, depth=27, num_heads=16, mlp_dim=4304),  # arXiv 2305.13035
    "SigLIP2-g": ViTShape(embed_dim=1536, depth=40, num_heads=16, mlp_dim=6144),  # timm vit_giantopt_patch16_siglip_256
}

TASKS = {
    "ImageNet-1k classification": ("classification", "ImageNet-1k"),
    "ADE20k semantic segmentation": ("segmentation", "ADE20k"),
    "COCO object detection (bbox)": ("detection", "COCO"),
    "COCO instance segmentation (mask)": ("instance segmentation", "COCO"),
}


def _as_read(table: pd.DataFrame) -> pd.DataFrame:
    """The file's own rows; `input_size` and `seq_length` take their usual names where they are numbers."""
    table = table.rename(columns={"seq_length": "tokens"})
    if "input_size" in table and pd.api.types.is_numeric_dtype(table["input_size"]):
        table = table.rename(columns={"input_size": "img_size"})
    if "architecture" in table:
        table["architecture"] = table["architecture"].replace(ARCHITECTURES)
    return _whole_numbers(table)


def _imagenet(table: pd.DataFrame) -> pd.DataFrame:
    """Tables 1 and 4 repeat some points; equal rows become one that names both sources."""
    table = _as_read(table)
    keys = ["model", "architecture", "img_size", "patch_size", "tokens", "top1"]
    table = table.groupby(keys, sort=False, as_index=False).agg(
        params_m=("params_m", "first"), source=("source", _both)
    )
    return pd.DataFrame(
        {
            "task": "classification",
            "dataset": "ImageNet-1k",
            **{name: table[name] for name in keys[:-1]},
            "metric_name": "top1",
            "metric": _fraction(table["top1"]),
            "params_total": table["params_m"] * 1e6,
            "params_backbone": _params_backbone(table),
            "source": table["source"],
        }
    )


def _ade20k(table: pd.DataFrame) -> pd.DataFrame:
    table = _as_read(table)
    return pd.DataFrame(
        {
            "task": "segmentation",
            "dataset": "ADE20k",
            "model": table["model"],
            "architecture": _adventurer_where_named(table["model"]),
            "head": table["head"],
            "patch_size": table["patch_size"],
            "params_backbone": _params_backbone(table),
            "metric_name": table["miou"].notna().map({True: "mIoU", False: None}),
            "metric": _fraction(table["miou"]),
            "test_loss": table["test_loss"],
            "source": table["source"],
        }
    )


def _coco(table: pd.DataFrame) -> pd.DataFrame:
    """One row per metric: box AP and mask AP, each with its values at IoU 0.5 and 0.75."""
    table = _as_read(table)
    parts = [
        pd.DataFrame(
            {
                "task": task,
                "dataset": "COCO",
                "model": table["model"],
                "architecture": _adventurer_where_named(table["model"]),
                "head": table["detector"],
                "recipe": table["schedule"],
                "patch_size": table["patch_size"],
                "params_backbone": _params_backbone(table),
                "metric_name": f"{kind} AP",
                "metric": _fraction(table[f"{kind}_ap"]),
                "ap50": _fraction(table[f"{kind}_ap50"]),
                "ap75": _fraction(table[f"{kind}_ap75"]),
                "source": table["source"],
            }
        )
        for kind, task in (("box", "detection"), ("mask", "instance segmentation"))
    ]
    return pd.concat(parts, ignore_index=True)


def _test_loss(table: pd.DataFrame) -> pd.DataFrame:
    table = _as_read(table)
    tokens = (table["img_size"] // table["patch_size"]) ** 2
    return pd.DataFrame(
        {
            "panel": table["source"].str.extract(r"panel (\w)", expand=False),
            "task": table["task"].map({name: task for name, (task, _) in TASKS.items()}),
            "dataset": table["task"].map({name: dataset for name, (_, dataset) in TASKS.items()}),
            "model": table["model"],
            "architecture": table["model"].map(
                lambda name: "vit" if name.startswith("DeiT") else "adventurer", na_action="ignore"
            ),
            "img_size": table["img_size"],
            "patch_size": table["patch_size"],
            "tokens": tokens,
            "params_backbone": _params_backbone(table),
            "test_loss": table["test_loss"],
            "est_error": table["est_error"],
            "source": table["source"],
        }
    )


def _siglip2(table: pd.DataFrame) -> pd.DataFrame:
    table = _as_read(table)
    return pd.DataFrame(
        {
            "task": "zero-shot classification",
            "dataset": "ImageNet-1k",
            "model": table["model"],
            "architecture": "vit",
            "img_size": table["img_size"],
            "patch_size": table["patch_size"],
            "tokens": (table["img_size"] // table["patch_size"]) ** 2,
            "metric_name": "top1",
            "metric": _fraction(table["top1"]),
            "params_total": table["params_m"] * 1e6,
            "params_backbone": _params_backbone(table, SIGLIP2_SHAPES),
            "source": table["source"],
        }
    )


def _vlm_tokens(table: pd.DataFrame) -> pd.DataFrame:
    """`metric` is empty where the released value cannot be right; `metric_as_released` keeps it."""
    faulty = table["faulty"] == "yes"
    return pd.DataFrame(
        {
            "task": table["task"],
            "model": [f"Qwen1.5-{billions:g}B" for billions in table["llm_params_b"]],
            "llm_params": table["llm_params_b"] * 1e9,
            "visual_tokens": table["visual_tokens"],
            "metric_name": "mean score",
            "metric": table["score"].mask(faulty),
            "metric_as_released": table["score"],
            "faulty": faulty,
            "note": table["note"],
            "source": table["source"],
        }
    )


def _paligemma(table: pd.DataFrame) -> pd.DataFrame:
    table = _as_read(table)
    return pd.DataFrame(
        {
            "task": table["task"],
            "eval_protocol": table["split"],
            "model": "PaliGemma-3B",
            "img_size": table["img_size"],
            "patch_size": 14,
            "visual_tokens": (table["img_size"] // 14) ** 2,
            "metric_name": table["metric_name"],
            "metric": _fraction(table["score"]),
            "source": table["source"],
        }
    )


def _flexivit(table: pd.DataFrame) -> pd.DataFrame:
    table = _as_read(table)
    shapes = {f"FlexiViT-{size[0].upper()}": SHAPES[f"vit_{size}"] for size in ("small", "base", "large")}
    return pd.DataFrame(
        {
            "task": "classification",
            "dataset": "ImageNet-1k",
            "model": table["model"],
            "architecture": "vit",
            "img_size": table["img_size"],
            "patch_size": table["patch_size"],
            "tokens": (table["img_size"] // table["patch_size"]) ** 2,
            "epochs": table["epochs"],
            "images_seen": table["epochs"] * IMAGENET_TRAIN,
            "metric_name": "top1",
            "metric": _fraction(table["top1"]),
            "params_backbone": _params_backbone(table, shapes),
            "source": table["source"],
        }
    )


def _sequence_length(table: pd.DataFrame) -> pd.DataFrame:
    table = _as_read(table)
    for how in ("extending", "scaling"):
        table[f"metric_by_{how}"] = _fraction(table.pop(f"top1_by_{how}"))
        table[f"delta_by_{how}"] = _fraction(table.pop(f"delta_{how}"))
    return table.assign(metric_name="top1")[[*(c for c in table if c != "source"), "metric_name", "source"]]


def _adventurer_imagenet(table: pd.DataFrame) -> pd.DataFrame:
    """`params_m`, throughput and top-1 can be approximate in the source ("about 81.9"); such cells are marked."""
    table = _as_read(table)
    approximate = table["top1"].astype(str).str.startswith("about")
    table["metric"] = _fraction(_number(table.pop("top1")))
    table["train_throughput_img_s"] = _number(table["train_throughput_img_s"])
    table["params_total"] = table.pop("params_m") * 1e6
    source = table.pop("source")
    return table.assign(metric_name="top1", approximate=approximate, source=source)


def _adventurer_ablations(table: pd.DataFrame) -> pd.DataFrame:
    source, top1 = table.pop("source"), table.pop("top1")
    return table.assign(metric_name="top1", metric=_fraction(top1), source=source)


def _figure1(table: pd.DataFrame) -> pd.DataFrame:
    return _as_read(table).assign(source=[f"Figure 1 panel {panel}" for panel in table["panel"]])


def _timm_imagenet(table: pd.DataFrame) -> pd.DataFrame:
    """`gmacs` are 10**9 multiply-adds of one image, as printed: two decimals, norms counted besides products."""
    return pd.DataFrame(
        {
            "task": "classification",
            "dataset": "ImageNet-1k",
            "model": table["model"],
            "architecture": "vit",
            **{name: table[name] for name in ("family", "img_size", "patch_size", "tokens")},
            "metric_name": "top1",
            "metric": _fraction(table["top1"]),
            "params_total": (table["params_m"] * 1e6).round(),
            **{name: table[name] for name in ("gmacs", "pretrain_tag", "source")},
        }
    )


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """One file of numbers and what to know before using it."""

    file: str
    description: str
    source: str
    confounds: tuple[str, ...] = ()
    """What else varies with the patch size, or limits what the numbers can show."""
    tidy: Callable[[pd.DataFrame], pd.DataFrame] = _as_read
    """From the file's columns to the published ones."""


PUBLISHED: dict[str, PublishedTable] = {
    "patchification/imagenet": PublishedTable(
        file="classification.csv",
        description="ImageNet-1k top-1 by model, image size and patch size",
        source=f"{PATCHIFICATION}, Tables 1 and 4, Section 1; three points from the repository's README",
        confounds=(
            "Adventurer is trained longer at larger img_size, so compare patch sizes at one img_size only",
            "DeiT and Adventurer follow different recipes; Large follows another recipe than Tiny to Base",
            "one run per point, printed to 0.1 points",
        ),
        tidy=_imagenet,
    ),
    "patchification/test-loss": PublishedTable(
        file="test_loss.csv",
        description="Test losses of the nine panels of Figure 1, digitised",
        source=f"{PATCHIFICATION}; {DIGITISED}",
        confounds=(
            "est_error bounds the reading error (0.0005 to 0.0013), it is not a standard deviation of the training",
            "panels d, e and f name no model, head or image size, and their loss is not defined in the paper",
            "losses compare within a panel only; one run per point",
        ),
        tidy=_test_loss,
    ),
    "patchification/ade20k": PublishedTable(
        file="segmentation.csv",
        description="ADE20k mIoU by model, head and patch size; losses of Figure 1 d",
        source=f"{PATCHIFICATION}, Table 2 and Figure 1 d",
        confounds=(
            "head 'linear' is one linear layer (the paper's 'no decoder'); UperNet is given at patch 16 only",
            "crop size and test protocol are not given; one run per point, printed to 0.1 points",
        ),
        tidy=_ade20k,
    ),
    "patchification/coco": PublishedTable(
        file="detection.csv",
        description="COCO box AP and mask AP by model and patch size, one row per metric",
        source=f"{PATCHIFICATION}, Table 3",
        confounds=(
            "Tiny and Base were run over different ranges of patch sizes (32 to 2, 64 to 4)",
            "box and mask come from the same runs, so they are not independent",
        ),
        tidy=_coco,
    ),
    "patchification/compute-cost": PublishedTable(
        file="compute_cost.csv",
        description="Memory per image and A100 hours per epoch at 224 px by patch size",
        source=f"{PATCHIFICATION}, Table 6",
        confounds=("float16 with FlashAttention for DeiT; memory is of activations and for DeiT only",),
    ),
    "patchification/sequence-length": PublishedTable(
        file="ablation_sequence_length.csv",
        description="Top-1 when tokens are interpolated (extending) against smaller patches (scaling)",
        source=f"{PATCHIFICATION}, Table 5",
        tidy=_sequence_length,
    ),
    "patchification/segmentation-params": PublishedTable(
        file="segmentation_params.csv",
        description="Parameters printed beside the ADE20k results, and of the two heads",
        source=f"{PATCHIFICATION}, Table 2 and Figure 2",
        confounds=("params_m is in millions, as printed; the UperNet head is 13M for Base and 5M for Tiny",),
    ),
    "patchification/model-configs": PublishedTable(
        file="model_configs.csv",
        description="Widths, depths and parameters of the models",
        source=f"{PATCHIFICATION}, Table 7",
        confounds=("params_m is for patch 16; a learned position table grows with the tokens (38.5M at 50,176)",),
    ),
    "patchification/recipes": PublishedTable(
        file="training_recipes.csv",
        description="Training settings of all stages and tasks",
        source=f"{PATCHIFICATION}, Tables 8 to 10 and Section 4.1",
        confounds=("the Tiny recipe after stage 1 is not given",),
    ),
    "patchification/text-figures": PublishedTable(
        file="text_only_figures.csv",
        description="Numbers given only in running text or captions",
        source=PATCHIFICATION,
    ),
    "patchification/figure1-pixels": PublishedTable(
        file="figure1_pixels.csv",
        description="The measured dots behind patchification/test-loss, with a check against the drawn line",
        source=f"{PATCHIFICATION}; {DIGITISED}",
        tidy=_figure1,
    ),
    "patchification/figure1-axes": PublishedTable(
        file="figure1_axis_fit.csv",
        description="Tick labels of Figure 1 and the axis scale they imply (derived, not stated in the paper)",
        source=f"{PATCHIFICATION}; tick labels of Figure 1",
        confounds=(
            "the offset of each axis was chosen by the authors, not measured; five points tie it to the exponent",
        ),
        tidy=_figure1,
    ),
    "siglip2/imagenet": PublishedTable(
        file="siglip2_imagenet.csv",
        description="Zero-shot ImageNet-1k top-1 of SigLIP 2 by model, image size and patch size",
        source=SIGLIP2,
        confounds=(
            "one family and recipe, but image sizes above the first of a model are continued from it, so they saw more",
            "zero-shot: the text model grows with the vision model, but for g",
            "So400m/14 at 384 px sees 27 x 27 patches, 378 px; patch 14 exists for So400m only, patch 32 for B only",
            "params_total is as printed, rounded (g: 1B); params_backbone is counted from the shapes, without the head",
            "one run per point, printed to 0.1 points",
        ),
        tidy=_siglip2,
    ),
    "vlm/tokens-llm-size": PublishedTable(
        file="vlm_tokens.csv",
        description="Mean score by visual tokens and size of the language model, two groups of tasks",
        source=VLM_TOKENS,
        confounds=(
            "the OCR cell of 7B at 576 tokens repeats that of 4B; metric is empty there, metric_as_released keeps it",
            "OCR, 4B at 4 tokens is 0.1559 in one place of the code and 0.1359 in another",
            "tokens are compressed after one vision encoder: its cost does not fall with visual_tokens",
            "fit one group of tasks at a time; scores are means over benchmarks with different scales",
        ),
        tidy=_vlm_tokens,
    ),
    "paligemma/resolution": PublishedTable(
        file="paligemma_resolution.csv",
        description="PaliGemma-3B by image size, fine-tuned on 19 tasks, each in its own metric",
        source=PALIGEMMA,
        confounds=(
            "448 and 896 px are continued from 224 px with more text-reading data and longer text, so they saw more",
            "training length and learning rate differ by task",
            "two or three image sizes a task: a direction, not a law; tasks are not comparable with each other",
        ),
        tidy=_paligemma,
    ),
    "flexivit/training-length": PublishedTable(
        file="flexivit_epochs.csv",
        description="ImageNet-1k top-1 of FlexiViT by model and epochs, patch 16 at 240 px",
        source=FLEXIVIT,
        confounds=(
            "distilled from a larger teacher, with patch sizes mixed in training; evaluated at patch 16 only",
            "images_seen is epochs x 1,281,167 (1 % less if the authors held images out)",
            "one run per point",
        ),
        tidy=_flexivit,
    ),
    "adventurer/imagenet": PublishedTable(
        file="adventurer_classification.csv",
        description="ImageNet-1k top-1 and throughput of Adventurer and its neighbours",
        source=f"{ADVENTURER} and its repository's README",
        confounds=("several cells come from a third-party note on the paper, named in `source`",),
        tidy=_adventurer_imagenet,
    ),
    "adventurer/ablations": PublishedTable(
        file="adventurer_ablations.csv",
        description="What the heading token, the flips and the channel mixer are worth",
        source=f"{ADVENTURER}, through a third-party note",
        tidy=_adventurer_ablations,
    ),
    "adventurer/downstream": PublishedTable(
        file="adventurer_downstream_efficiency.csv",
        description="Segmentation, detection and speed ratios",
        source=f"{ADVENTURER}, partly through a third-party note",
        confounds=("values are as printed (AP and mIoU in per cent, ratios as factors)",),
    ),
    "timm/imagenet-vit": PublishedTable(
        file="timm_imagenet_vit.csv",
        description="ImageNet-1k top-1, parameters and GMACs of timm's vision transformers with one token per patch",
        source=TIMM,
        confounds=(
            "recipes, pre-training data and crops differ between models: compare within a pretrain_tag",
            "384 px and above are mostly fine-tuned from a smaller image size; the validation set chose the weights",
            "patch_size is read from the name, 16 where the name of a FlexiViT has none",
        ),
        tidy=_timm_imagenet,
    ),
}


def published(name: str) -> pd.DataFrame:
    """One published table; `attrs` holds its name, source and known confounds.

    Raises `UserError` for an unknown name, with the nearest and all known ones.
    """
    table = entry(name)
    path = files("patchscale.published_tables") / table.file
    with path.open(encoding="utf-8") as file:
        frame = table.tidy(pd.read_csv(file))
    frame.attrs = {"name": name, "source": table.source, "confounds": list(table.confounds)}
    return frame


def list_published() -> pd.DataFrame:
    """All tables: name, rows, description, source."""
    return pd.DataFrame(
        {"name": name, "rows": len(published(name)), "description": table.description, "source": table.source}
        for name, table in PUBLISHED.items()
    )


def entry(name: str) -> PublishedTable:
    """The entry called `name`; raises `UserError` with the nearest and all known names."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    last_parts: dict[str, list[str]] = {}
    for known in PUBLISHED:
        last_parts.setdefault(known.split("/")[1], []).append(known)
    near = get_close_matches(name.rsplit("/", 1)[-1], last_parts, n=1)
    close = get_close_matches(name, PUBLISHED, n=1) or (last_parts[near[0]] if near else [])
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UserError(f"no published table {name!r}{hint} (tables: {', '.join(PUBLISHED)})")


def _fraction(percent: pd.Series) -> pd.Series:
    """Per cent to fraction, without the noise of the division."""
    return (percent.astype(float) / 100).round(6)


def _number(cells: pd.Series) -> pd.Series:
    """Numbers, "about" left out."""
    return pd.to_numeric(cells.astype("string").str.removeprefix("about ")).astype(float)


def _params_backbone(table: pd.DataFrame, shapes: dict[str, ModelShape] | None = None) -> pd.Series:
    """Parameters without head and position table, counted from the shapes; empty where the model is not named.

    Without `shapes` names are ours in the paper's spelling (DeiT-Base is deit_base). With them class tokens are left
    out, which is right for SigLIP; elsewhere it makes a difference below 0.002 %.
    """

    def count(model: Any, patch_size: Any) -> int | None:
        if pd.isna(model):
            return None
        shape = shapes[model] if shapes else SHAPES[model.lower().replace("-", "_")]
        parts = backbone_params(shape, tokens=0, patch_size=int(patch_size), pos_embed="sincos2d")
        return sum(parts.values()) - (parts["cls_token"] if shapes else 0)

    counts = [count(*pair) for pair in zip(table["model"], table["patch_size"], strict=True)]
    return pd.Series(counts, index=table.index, dtype="Int64")


def _both(sources: pd.Series) -> str:
    return "; ".join(sources.drop_duplicates())


def _adventurer_where_named(models: pd.Series) -> pd.Series:
    return models.map(lambda name: "adventurer", na_action="ignore")


def _whole_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Sizes and counts as integers that may be missing."""
    for name in ("img_size", "patch_size", "tokens"):
        if name in table and pd.api.types.is_float_dtype(table[name]):
            table[name] = table[name].astype("Int64")
    return table
