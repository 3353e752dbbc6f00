"""Whether this machine computes the right thing, in a few seconds: scans, attention, one training step."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from patchscale.measurements.step import StepConfig, build_step
from patchscale.models.ssd.selection import backend_and_reason, self_check
from patchscale.training.device import available_devices

FUSED = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}
LARGEST_ATTENTION_ERROR = {torch.float32: 1e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Check:
    """What was looked at, how it ended, and the number that says so."""

    name: str
    passed: bool
    words: str


def self_test() -> Iterator[Check]:
    """Run every check on every device of this machine, one after the other."""
    for device in map(torch.device, available_devices()):
        chosen, reason = backend_and_reason(device)
        if chosen != "triton" and _has_triton(device):
            yield Check("scan triton on cuda", False, reason)
        for backend in dict.fromkeys([chosen, "chunked"]):
            yield _check(f"scan {backend} on {device.type}", partial(_scan, backend, device))
        yield _check(f"fused attention on {device.type}", partial(_fused_attention, device))
        for model in ("vit_test", "adventurer_test"):
            yield _check(f"training step of {model} on {device.type}", partial(_training_step, model, device))


def _has_triton(device: torch.device) -> bool:
    """Whether the kernels ought to run here."""
    return device.type == "cuda" and find_spec("triton") is not None and torch.cuda.get_device_capability() >= (8, 0)


def _check(name: str, run: Callable[[], str]) -> Check:
    """A check passes unless it raises."""
    try:
        return Check(name, True, run())
    except Exception as error:  # drivers and compilers raise what they like
        return Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _scan(backend: str, device: torch.device) -> str:
    return f"largest relative error {self_check(backend, device):.1e}, forward and gradients, against float64"


def _fused_attention(device: torch.device) -> str:
    """Forward and gradients by a kernel that never holds the whole matrix of scores, against float64."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 130, 64, generator=generator).to(dtype) for _ in range(3))
    truth = _attention(query.double(), key.double(), value.double(), SDPBackend.MATH)
    refusals = []
    for name, kernel in FUSED.items():
        try:
            found = _attention(query.to(device), key.to(device), value.to(device), kernel)
        except RuntimeError as refusal:
            refusals.append(f"{name}: {str(refusal).partition('.')[0]}")
            continue
        error = max(
            ((mine.cpu().double() - right).abs().max() / right.abs().max()).item()
            for mine, right in zip(found, truth, strict=True)
        )
        if not error <= LARGEST_ATTENTION_ERROR[dtype]:
            raise ArithmeticError(f"{name} attention is wrong: relative error {error:.1e}")
        return f"{name} kernel, largest relative error {error:.1e} in {dtype}, forward and gradients"
    raise RuntimeError(f"no fused kernel runs, so attention needs memory quadratic in tokens ({'; '.join(refusals)})")


def _attention(query: Tensor, key: Tensor, value: Tensor, kernel: SDPBackend) -> list[Tensor]:
    query, key, value = (tensor.detach().requires_grad_() for tensor in (query, key, value))
    with sdpa_kernel(kernel):
        out = scaled_dot_product_attention(query, key, value)
        gradients = torch.autograd.grad(out.sin().sum(), (query, key, value))
    return [out.detach(), *gradients]


def _training_step(model: str, device: torch.device) -> str:
    """In bf16 on CUDA, as training is done there."""
    config = StepConfig(
        model=model,
        patch_size=4,
        img_size=32,
        batch_size=2,
        num_classes=10,
        device=device.type,
        precision="bf16" if device.type == "cuda" else "fp32",
    )
    built, step = build_step(config, device)
    step()
    loss = step().item()  # after an update of the weights, which shows gradients that are not finite
    if not math.isfinite(loss) or not all(bool(weight.isfinite().all()) for weight in built.parameters()):
        raise ArithmeticError(f"loss {loss} after an update")
    return f"loss {loss:.3f} after an update, weights finite"
