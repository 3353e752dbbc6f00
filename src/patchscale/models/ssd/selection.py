"""Which implementation of the scan runs on a device, why, and whether it computes the right thing there.

"auto" is our Triton kernels on a CUDA device and plain torch elsewhere. Kernels are not trusted: before their first
use in a process they are compared with the float64 recurrence, forward and backward. Nothing falls back silently: the
choice and its reason are logged once, and recorded with a run.
"""

import logging
from functools import cache
from importlib.util import find_spec

import torch

from patchscale.errors import UserError
from patchscale.models.ssd.backends import SSD_BACKENDS

AUTO = "auto"
LARGEST_ERROR = 2e-3
"""A float32 scan is right to about 1e-6, with TF32 products to 5e-4; a fault is rarely that small."""

logger = logging.getLogger(__name__)


class ScanMismatch(RuntimeError):
    """An implementation of the scan disagrees with its definition on this machine."""


def check_backend_name(name: str, *, option: str = "ssd_backend ") -> None:
    """Raise `UserError`, in terms of the `option` that gave it, unless `name` is "auto" or an implementation."""
    if name != AUTO and name not in SSD_BACKENDS:
        raise UserError(f"{option}{name!r} is unknown; choose one of {', '.join([AUTO, *SSD_BACKENDS])}")


def resolve_backend(name: str, device: torch.device, *, option: str = "ssd_backend ") -> str:
    """The implementation that runs on `device` when `name` is asked for.

    Raises `UserError`, in terms of the `option` that gave it ("--ssd-backend ", "execution.ssd_backend="), for an
    unknown name and for one that cannot run there.
    """
    return _resolve(name, str(device), option)


def backend_and_reason(device: torch.device) -> tuple[str, str]:
    """What "auto" chooses on `device`, and why."""
    return _choose(str(device))


def self_check(backend: str, device: torch.device) -> float:
    """Compare an implementation with the float64 recurrence on a small float32 example; takes some 50 ms.

    Returns the largest error of output, final state and gradients, each the norm of the difference over the norm of the
    truth. Raises `ScanMismatch` if that is above `LARGEST_ERROR`.
    """
    # Ordinary mode, whatever surrounds the first use of a model.
    with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        truth = _example_results("reference", torch.device("cpu"))
        found = _example_results(backend, device)
        errors = {
            name: ((found[name].cpu().double() - value).norm() / value.norm()).item() for name, value in truth.items()
        }
    for name, error in errors.items():
        if not error <= LARGEST_ERROR:  # or not a number
            raise ScanMismatch(f"the {backend} scan is wrong on {device}: relative error {error:.1e} of {name}")
    return max(errors.values())


@torch.compiler.assume_constant_result
def _resolve(name: str, device: str, option: str) -> str:
    check_backend_name(name, option=option)
    if name == AUTO:
        return _choose(device)[0]
    if name == "triton" and device != "meta" and (reason := _why_not_triton(device)):
        raise UserError(f"{option}triton cannot run here: {reason}; use {option}auto or {option}chunked")
    return name


@cache
def _choose(device: str) -> tuple[str, str]:
    is_cuda = torch.device(device).type == "cuda"
    reason = _why_not_triton(device) if is_cuda else f"the Triton kernels are for CUDA devices and this is {device}"
    if not reason:
        choice = "triton", "our Triton kernels, which agree with the float64 reference on this device"
    else:
        choice = "chunked", f"plain torch, since {reason}"
    level, hint = (logging.WARNING, "; expect several times the time") if is_cuda and reason else (logging.INFO, "")
    logger.log(level, "state-space scan: %s (%s)%s", *choice, hint)
    return choice


@cache
def _why_not_triton(name: str) -> str:
    """What keeps the Triton kernels from running on this device; empty if nothing does."""
    device = torch.device(name)
    if device.type != "cuda" and not _interpreting():
        return f"the Triton kernels are for CUDA devices and this is {name}"
    if find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "the Triton kernels need a GPU of compute capability 8.0 or later"
    try:
        self_check("triton", device)
    except torch.OutOfMemoryError:  # may pass, so it must not be remembered
        raise
    except Exception as error:  # compilers and drivers raise what they like
        return f"the Triton kernels failed their check: {' '.join(str(error).split())[:200] or type(error).__name__}"
    return ""


def _interpreting() -> bool:
    """Whether Triton runs its kernels in Python, on CPU tensors too, as tests do."""
    if find_spec("triton") is None:
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)


def _example_results(backend: str, device: torch.device) -> dict[str, torch.Tensor]:
    """Output, final state and gradients of a fixed example: 2 images of 150 tokens, 2 heads of 64 in one group."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device).requires_grad_()

    x, dt, dt_bias, D = normal(2, 150, 2, 64), normal(2, 150, 2), normal(2), normal(2)
    B, C = normal(2, 150, 1, 64), normal(2, 150, 1, 64)
    A = torch.tensor([-0.5, -8.0]).to(device).requires_grad_()
    leaves = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "dt_bias": dt_bias}
    if backend == "reference":
        leaves = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    x, dt, A, B, C, D, dt_bias = leaves.values()
    with torch.autocast(device.type, enabled=False):
        y, state = SSD_BACKENDS[backend](
            x,
            dt,
            A,
            B,
            C,
            D,
            dt_bias=dt_bias,
            dt_softplus=True,
            chunk_size=None,
            initial_state=None,
            return_final_state=True,
        )
        assert state is not None
        weights = [torch.linspace(-1, 1, out.numel()).to(out).view_as(out) for out in (y, state)]
        gradients = torch.autograd.grad([y, state], list(leaves.values()), weights)
    return {"y": y.detach(), "state": state.detach()} | dict(zip(leaves, gradients, strict=True))
