"""One configuration, measured: how long a step takes, how many images and tokens that is a second, and what memory.

A training step is forward, cross-entropy, backward and AdamW, on one batch of random images; an inference step is the
forward pass alone. FLOPs are our own count (`patchscale.costs`), training forward and backward, recomputation not
counted, so MFU is that of the model and not of the implementation.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from patchscale.costs.counts import Counts, count
from patchscale.costs.hardware import peak_bf16_flops_per_s
from patchscale.errors import UserError
from patchscale.measurements.child import ChildDied, ChildFailed, in_fresh_process
from patchscale.measurements.memory import PeakMemory
from patchscale.measurements.paired import spread, timed
from patchscale.models.registry import create_model
from patchscale.models.ssd.selection import AUTO, resolve_backend
from patchscale.shapes import image_height_width
from patchscale.training.compilation import compile_backbone
from patchscale.training.device import Precision, autocast, device_name, is_out_of_memory, resolve_device


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """What is measured."""

    model: str
    patch_size: int
    img_size: int | tuple[int, int] = 224
    batch_size: int = 1
    train: bool = True
    precision: Precision = "fp32"
    device: str = "auto"
    ssd_backend: str = AUTO
    checkpointing: bool = False
    """Blocks are computed again in the backward pass instead of being remembered."""
    compile: bool = False
    """The backbone is compiled with torch.compile, as training does it; the head is not."""
    num_classes: int = 1000

    def cost(self) -> Counts:
        """Tokens, parameters and FLOPs; raises `UserError` for a name or sizes that no model can be built from."""
        return count(self.model, patch_size=self.patch_size, img_size=self.img_size, num_classes=self.num_classes)


def measure_step(
    config: StepConfig,
    *,
    warm_up: int = 2,
    repetitions: int = 10,
    time_limit_s: float | None = None,
    num_threads: int | None = None,
) -> dict[str, Any]:
    """Measure in a fresh process; one flat row, also of what ran out of memory ("out_of_memory") or broke ("failed").

    After half of `time_limit_s` no further repetition is begun; at all of it the process is ended, and the row is
    "failed". Raises `UserError` for a configuration that cannot exist.
    """
    config.cost()
    options = {
        "warm_up": warm_up,
        "repetitions": repetitions,
        "time_limit_s": None if time_limit_s is None else time_limit_s / 2,
        "num_threads": num_threads,
    }
    try:
        return in_fresh_process(measure_step_here, config, **options, timeout_s=time_limit_s)
    except ChildDied as error:
        if error.is_out_of_memory:
            return _row(config, "out_of_memory", "killed by the system (SIGKILL), most often for want of memory")
        return _row(config, "failed", str(error))
    except ChildFailed as error:
        return _row(config, "failed", str(error))


def measure_step_here(
    config: StepConfig,
    *,
    warm_up: int = 2,
    repetitions: int = 10,
    time_limit_s: float | None = None,
    num_threads: int | None = None,
) -> dict[str, Any]:
    """As `measure_step`, in this process; `time_limit_s` only keeps further repetitions from being begun."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    device = resolve_device(config.device)
    try:
        measured = _measure(config, device, warm_up, repetitions, time_limit_s)
    except UserError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return _row(config, "out_of_memory", str(error).strip().partition("\n")[0])
    if not math.isfinite(measured["loss"]):
        return _row(config, "failed", f"the result is not finite ({measured['loss']})") | measured
    return _row(config, "ok", "") | measured


def build_step(config: StepConfig, device: torch.device) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A new model, and a function that does one step with it and returns the loss (inference: the mean logit)."""
    torch.manual_seed(0)
    model = create_model(
        config.model, patch_size=config.patch_size, img_size=config.img_size, num_classes=config.num_classes
    )
    model.to(device).train(config.train)
    set_ssd_backend(model, config.ssd_backend)
    if config.checkpointing:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    if config.compile:
        compile_backbone(model)
    images = torch.randn(config.batch_size, 3, *image_height_width(config.img_size), device=device)
    labels = torch.randint(config.num_classes, (config.batch_size,), device=device)

    def infer() -> Tensor:
        with torch.no_grad(), autocast(device, config.precision):
            return model(images).float().mean()

    if not config.train:
        return model, infer
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")

    def train() -> Tensor:
        with autocast(device, config.precision):
            loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return model, train


def set_ssd_backend(model: nn.Module, name: str) -> None:
    """Have every scan of the model run by `name`; a model without scans stays as it is."""
    for module in model.modules():
        if hasattr(module, "ssd_backend"):
            module.ssd_backend = name  # type: ignore[assignment]


def _measure(
    config: StepConfig, device: torch.device, warm_up: int, repetitions: int, time_limit_s: float | None
) -> dict[str, Any]:
    cost = config.cost()
    model, step = build_step(config, device)
    scans = hasattr(model, "ssd_backend")
    # On a CPU memory is that of the very first step, before the process keeps what it has freed; on CUDA that of the
    # second, since kernels that are tuned in the first take memory of their own.
    memory_at = min(1 if device.type == "cuda" else 0, warm_up + repetitions - 1)
    memory = PeakMemory(device)
    times: list[float] = []
    loss = torch.empty(0)

    def run() -> None:
        nonlocal loss
        loss = step()

    started = time.perf_counter()
    for repetition in range(warm_up + repetitions):
        with memory if repetition == memory_at else nullcontext():
            times.append(timed(run, device))
        if repetition >= warm_up and time_limit_s is not None and time.perf_counter() - started > time_limit_s:
            break
    step_time = spread(times[warm_up:])
    images_per_s = config.batch_size / step_time.median
    flops_per_image = cost.flops_train if config.train else cost.flops_forward
    peak = peak_bf16_flops_per_s(device_name(device)) if config.precision == "bf16" else None
    return {
        "tokens": cost.tokens,
        "device": device.type,
        "device_name": device_name(device),
        "num_threads": torch.get_num_threads(),
        "ssd_backend": resolve_backend(config.ssd_backend, device) if scans else None,
        "warm_up": warm_up,
        "repetitions": len(times) - warm_up,
        "step_time_s": step_time.median,
        "step_time_25_s": step_time.low,
        "step_time_75_s": step_time.high,
        "first_step_s": times[0],
        "images_per_s": images_per_s,
        "tokens_per_s": images_per_s * cost.tokens,
        "peak_memory_bytes": memory.bytes,
        "peak_memory_kind": memory.kind,
        "process_peak_bytes": memory.process_bytes,
        "weights_bytes": sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())),
        "flops_per_image": flops_per_image,
        "flops_per_s": images_per_s * flops_per_image,
        "peak_flops_per_s": peak,
        "mfu": None if peak is None else images_per_s * flops_per_image / peak,
        "loss": loss.item(),
    }


def _row(config: StepConfig, status: str, message: str) -> dict[str, Any]:
    return asdict(config) | {"tokens": config.cost().tokens, "status": status, "message": message}
