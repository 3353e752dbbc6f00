"""Time of a step as a sum of what it does, each kind at a speed of its own; and those speeds from measured steps.

    time =   a x layers  +  b x linear MACs  +  c x attention MACs
           + d x scan MACs  +  e x numbers moved  +  f x parameters updated

An accelerator is told what to do while it works, so there the first term and the others overlap, and the larger counts:
time = (launching^4 + working^4)^(1/4).

The numbers moved between operations grow with tokens x width x layers, the MACs of linear layers with tokens x width^2
x layers: that is why narrow models use less of a device's peak. The six speeds of a device are fitted to a few measured
steps, in logarithms, so that they are positive and that what counts is the relative error. A speed that the steps do
not determine stays near a usual ratio to that of linear layers; the fit says which ones those are.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchscale.costs.counts import Counts
from patchscale.shapes import AdventurerShape, ViTShape

ATTENTION_RECOMPUTED = 0.5
"""Of the forward attention products: fused attention keeps no scores, and so has one of its two products to do again,
queries times keys: five products backward for two forward (FlashAttention-2, arXiv 2307.08691, section 4.1)."""

TERMS = ("layers", "linear", "attention", "scan", "moved", "updated")

OUTSIDE_OF_BLOCKS = ("patch_embed", "attention_pool")
"""Parts that checkpointing does not compute again, beside those of the head. "other" is work within blocks (XCiT)."""

USUAL: Mapping[str, Mapping[str, float]] = {
    "cpu": {"layers": 5e6, "linear": 1.0, "attention": 1.5, "scan": 5.0, "moved": 130.0, "updated": 700.0},
    "cuda": {"layers": 3e10, "linear": 1.0, "attention": 1.0, "scan": 2.0, "moved": 250.0, "updated": 2000.0},
}
"""Time of one unit of each kind in that of a multiply-add in a linear layer, as it usually is on a kind of device."""
USUAL_SPREAD = math.log(3)
"""Standard deviation of the logarithm of those ratios between devices."""
MEASURED_SPREAD = 0.05
"""The same of a measured time around the sum."""
WIDEST = 12.0
"""The most that the logarithm of a speed may be away from where the search starts."""
OVERLAP = 4
"""Exponent with which launching and working add up where they overlap: a smooth form of the larger of the two."""


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Seconds of one unit of each of `TERMS`, and how well they explain the steps they were fitted to."""

    seconds: dict[str, float]
    overlap: int
    """1 where everything adds up, `OVERLAP` where layers are launched while others are worked on."""
    fit_error: float
    """Median absolute relative error on the measured steps."""
    leave_one_out_error: float
    """The same when each step is predicted from the others."""
    undetermined: tuple[str, ...]
    """Terms that the steps say little about: they are near the usual ratio."""

    def time_s(self, work: Mapping[str, float]) -> float:
        """Seconds of a step with this much of each term."""
        seconds = {term: self.seconds[term] * amount for term, amount in work.items() if amount}
        launching = seconds.pop("layers", 0.0)
        return float((launching**self.overlap + sum(seconds.values()) ** self.overlap) ** (1 / self.overlap))


def step_work(
    counts: Counts,
    *,
    train: bool,
    batch_size: int = 1,
    micro_batch_size: int | None = None,
    activation_checkpointing: bool = False,
) -> dict[str, float]:
    """How much of each of `TERMS` one step does; training numbers are forward and backward.

    Every micro-batch goes through all layers: only what a layer costs whatever its size counts as often.

    Raises `UserError` as `patchscale.costs.counted` does, for a timm model without torch.
    """
    again = train and activation_checkpointing
    macs = executed_macs(counts, train=train, activation_checkpointing=activation_checkpointing)
    depth, channels, prefix_tokens = _layers(counts)
    passes = (4 if again else 3) if train else 1
    attention, scan = macs.pop("attention_quadratic", 0), macs.pop("scan", 0)
    macs.pop("conv", 0)  # a few MACs for each number that it reads: its time is that of moving them
    return {
        "layers": passes * depth * math.ceil(batch_size / min(micro_batch_size or batch_size, batch_size)),
        "linear": batch_size * sum(macs.values()),
        "attention": batch_size * attention,
        "scan": batch_size * scan,
        "moved": passes * batch_size * (counts.tokens + prefix_tokens) * channels * depth,
        "updated": counts.params_total if train else 0,
    }


def executed_macs(counts: Counts, *, train: bool, activation_checkpointing: bool = False) -> dict[str, float]:
    """Multiply-adds on one image by part, with what is computed again in the backward pass.

    Computed again are the scores of fused attention, and with checkpointing all of the blocks.
    """
    if not train:
        return dict(counts.macs)
    executed: dict[str, float] = dict(counts.macs_train)
    if "attention_quadratic" in executed and counts.fused_attention:
        executed["attention_quadratic"] += ATTENTION_RECOMPUTED * counts.macs["attention_quadratic"]
    if activation_checkpointing:
        outside = {*OUTSIDE_OF_BLOCKS, *(counts.head_counts.macs if counts.head_counts else ())}
        executed |= {part: executed[part] + macs for part, macs in counts.macs.items() if part not in outside}
    return executed


def fit_speeds(
    work: Sequence[Mapping[str, float]],
    times_s: Sequence[float],
    *,
    device: str,
    measured_spread: float = MEASURED_SPREAD,
) -> Speeds:
    """The speeds that explain `times_s` of steps that did `work`; `device` ("cpu", "cuda", ...) gives the usual ratios.

    The smaller `measured_spread`, the more the times count and the less the usual ratios.
    At least two steps are needed, since each is once left out.
    """
    usual = USUAL.get(device, USUAL["cuda"])
    amounts = np.array([[usual[term] * step[term] for term in TERMS] for step in work])
    logs = np.log(np.asarray(times_s, dtype=float))
    model = _Model(
        layers=TERMS.index("layers"),
        linear=TERMS.index("linear"),
        overlap=1 if device == "cpu" else OVERLAP,
        spread=measured_spread,
    )
    found, spreads = _fit(model, amounts, logs)
    predicted = model.log_times(amounts, found)
    left_out = []
    for one in range(len(logs)):
        others = np.arange(len(logs)) != one
        from_others, _ = _fit(model, amounts[others], logs[others])
        left_out.append(float(model.log_times(amounts[[one]], from_others)[0] - logs[one]))
    return Speeds(
        seconds={term: usual[term] * math.exp(value) for term, value in zip(TERMS, found, strict=True)},
        overlap=model.overlap,
        fit_error=statistics.median(np.abs(np.expm1(predicted - logs)).tolist()),
        leave_one_out_error=statistics.median(abs(math.expm1(error)) for error in left_out),
        undetermined=tuple(
            term
            for term, spread in zip(TERMS, spreads, strict=True)
            if spread > USUAL_SPREAD / 2 and (term != "updated" or any(step["updated"] for step in work))
        ),
    )


@dataclass(frozen=True)
class _Model:
    """Where the two terms that are not like the others stand, how the first adds up with the rest, and the noise."""

    layers: int
    linear: int
    overlap: int
    spread: float

    def log_times(self, amounts: NDArray[np.float64], logs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logarithms of the times of steps (rows) from those of the speeds."""
        seconds = amounts * np.exp(logs)
        launching = seconds[:, self.layers]
        working = seconds.sum(axis=1) - launching
        log_times: NDArray[np.float64] = np.log(launching**self.overlap + working**self.overlap) / self.overlap
        return log_times


def _fit(
    model: _Model, amounts: NDArray[np.float64], logs: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of the speeds over the usual ones, and the standard deviations of their ratios to that of linear."""
    from scipy.optimize import least_squares  # slow to import, and predictions need none of it

    terms = amounts.shape[1]

    def residuals(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        misfit = (model.log_times(amounts, parameters) - logs) / model.spread
        unusual = np.delete(parameters - parameters[model.linear], model.linear) / USUAL_SPREAD
        return np.concatenate([misfit, unusual])

    start = np.full(terms, np.median(logs - model.log_times(amounts, np.zeros(terms))))
    bounds = (start - WIDEST, start + WIDEST)
    solution = least_squares(residuals, start, bounds=bounds, xtol=1e-12, ftol=1e-12, gtol=1e-12)
    slopes = np.asarray(solution.jac)
    covariance = np.linalg.inv(slopes.T @ slopes)
    to_ratio = np.eye(terms)
    to_ratio[:, model.linear] -= 1
    return solution.x, np.sqrt(np.diag(to_ratio @ covariance @ to_ratio.T))


def _layers(counts: Counts) -> tuple[int, int, int]:
    """Number of blocks, input and output channels of all layers with weights in one of them, tokens beside patches.

    Of a model without a formula the last is not known and taken as 0.
    """
    shape = counts.shape
    if isinstance(shape, ViTShape):
        mlp_channels = (3 if shape.mlp == "swiglu" else 2) * shape.mlp_dim
        return shape.depth, 10 * shape.embed_dim + mlp_channels, shape.prefix_tokens
    if isinstance(shape, AdventurerShape):
        convolved = shape.d_inner + 2 * shape.d_state
        projected = shape.d_inner + convolved + shape.num_heads
        channels = 6 * shape.embed_dim + projected + 2 * convolved + 2 * shape.d_inner + 3 * shape.mlp_dim
        return shape.depth, channels, 1
    from patchscale.costs.counted import layers_on_meta

    layers = layers_on_meta(counts.model, patch_size=counts.patch_size, img_size=counts.img_size)
    return layers.depth, layers.widths, 0
