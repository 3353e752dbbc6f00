"""The scan on a CUDA device: is it right, how fast is it, and how do peers do?

    python benchmarks/gpu_scan.py --part correctness|speed|peers [--output FILE] [--time-limit-s 120] [--device cuda]

correctness   forward and each gradient, in float32 and bfloat16, against float64: the recurrence itself on short
              sequences, up to 50,178 tokens the chunked scan in float64, which is compared with the recurrence first.
              Then a batch whose tensors have more than 2^31 elements: its last image against that image alone.
              Exit code 1 if anything is off.
speed         seconds and memory of forward and of forward and backward, for each of our implementations
peers         one mixer, forward and backward, against transformers' with the same weights; the scan alone against
              fla's chunk_simple_gla and mamba_ssm's mamba_chunk_scan_combined where they can be imported

Everything done is in the file at any time, so a time limit loses nothing. `--tiny` runs small shapes, also on a CPU:
`TRITON_INTERPRET=1 python benchmarks/gpu_scan.py --tiny --device cpu --backend triton --part correctness`.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from common import begin, finish, numbers, options_parser, relative_error, transformers_mixer
from patchscale.measurements.memory import PeakMemory
from patchscale.measurements.paired import alternate
from patchscale.models.adventurer import Mamba2Mixer
from patchscale.models.ssd import ssd_scan
from patchscale.models.ssd.selection import backend_and_reason, resolve_backend, self_check

LIMITS = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
"""Largest norm of a difference over the norm of the truth. Rounding of the products alone gives 1e-6 and 4e-3."""
CANCELLING = {"dA": 10, "dD": 10, "ddt_bias": 10}
"""Where the limit is larger, and how many times: one number a head, a sum over tokens in which most may cancel."""
EXACT = 1e-9
"""The chunked scan in float64 against the recurrence in float64."""


class Shape(NamedTuple):
    """Sizes of a scan."""

    batch: int
    tokens: int
    heads: int
    headdim: int = 64
    groups: int = 1
    d_state: int = 64

    def __str__(self) -> str:
        return (
            f"{self.batch} x {self.tokens} tokens, {self.heads} heads of {self.headdim}, "
            f"{self.groups} x {self.d_state} states"
        )


TINY = [Shape(2, 70, 2, 16, 1, 16), Shape(1, 33, 4, 16, 2, 16)]
SHORT = [
    Shape(2, 300, 4),
    Shape(1, 1025, 24),
    Shape(3, 257, 8, groups=2),
    Shape(2, 66, 4, headdim=32, d_state=16),
    Shape(2, 1, 4),
]
LONG = [Shape(2, 12_546, 24), Shape(1, 50_178, 24)]
HUGE = Shape(28, 50_178, 24)  # 28 x 50,178 x 1,536 elements are just more than 2^31
MIXERS = [3_138, 12_546, 50_178]  # tokens

Report = Callable[[dict[str, Any]], None]


def main() -> None:
    """Run a part within its time, writing after every row."""
    parser = options_parser(__doc__, warm_up=2, repetitions=7)
    parser.set_defaults(device="cuda", threads=8)
    parser.add_argument("--part", choices=["correctness", "speed", "peers"], required=True)
    parser.add_argument("--time-limit-s", type=float, default=300)
    parser.add_argument("--backend", default="auto", help="implementation of the scan; plain torch is always there too")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device, setting = begin(options, "transformers", "fla-core", "mamba-ssm")
    chosen, reason = backend_and_reason(device)
    if options.backend != "auto":
        chosen, reason = resolve_backend(options.backend, device), "as asked for"
    setting |= {"ssd_backend": chosen, "ssd_backend_reason": reason}
    print(f"scan: {chosen}, {reason}")

    started = time.monotonic()
    rows: list[dict[str, Any]] = []
    parts: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
        "correctness": correctness,
        "speed": speed,
        "peers": peers,
    }
    stopped = None
    for row in parts[options.part](options, device, chosen):
        rows.append(row)
        print(row_words(row), flush=True)
        finish(options, setting, rows=rows, stopped=stopped)
        if time.monotonic() - started > options.time_limit_s:
            stopped = f"time limit of {options.time_limit_s:.0f} s"
            print(f"stopped: {stopped}")
            break
    wrong = [row for row in rows if row.get("passed") is False]
    finish(options, setting, rows=rows, stopped=stopped, passed=not wrong)
    if wrong:
        raise SystemExit(f"{len(wrong)} of {len(rows)} checks failed")
    if stopped and options.part == "correctness":
        raise SystemExit("not everything was checked")


def row_words(row: dict[str, Any]) -> str:
    """A row in a line, the verdict first."""
    hidden = ("errors", "memory_bytes", "memory_kind", "passed", "limit")
    facts = [_short(value) for name, value in row.items() if name not in hidden]
    if "memory_bytes" in row:
        facts.append(f"{row['memory_bytes'] / 2**20:.0f} MiB")
    verdict = {True: "ok    ", False: "WRONG "}.get(row.get("passed"), "")
    return verdict + " | ".join(facts)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"{1e3 * value['median']:.3f} ms ({1e3 * value['25']:.3f}-{1e3 * value['75']:.3f})"
    return f"{value:.2g}" if isinstance(value, float) else str(value).removeprefix("torch.")


# ---------------------------------------------------------------------------------------------------------------------
# Correctness


def correctness(options: argparse.Namespace, device: torch.device, chosen: str) -> Iterator[dict[str, Any]]:
    """One row a check."""
    for backend in dict.fromkeys([chosen, "chunked"]):
        yield attempt({"check": "self-check", "backend": backend}, lambda b=backend: {"largest": self_check(b, device)})
    if device.type == "cuda" and chosen != "triton" and options.backend == "auto":
        yield {"check": "the kernels run", "passed": False, "message": backend_and_reason(device)[1]}
    short = TINY if options.tiny else SHORT
    for shape in short:
        yield attempt({"check": "chunked in float64", "shape": str(shape)}, lambda s=shape: chunked_is_exact(s, device))
    for shape in short + ([] if options.tiny else LONG):
        truth_by = "reference" if shape in short else "chunked"
        for dtype in (torch.float32, torch.bfloat16):
            for backend in dict.fromkeys([chosen, "chunked"]):
                about = {"check": "against float64", "shape": str(shape), "dtype": str(dtype), "backend": backend}
                yield attempt(
                    about | {"truth": truth_by},
                    lambda s=shape, d=dtype, b=backend, t=truth_by: agrees_with_float64(s, d, b, t, device),
                )
    about = {"check": "last image of a batch beyond 2^31 elements", "backend": chosen}
    huge = TINY[0] if options.tiny else HUGE
    yield attempt(about | {"shape": str(huge)}, lambda: last_image_is_right(huge, chosen, device))


def attempt(about: dict[str, Any], check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row that passes unless the check raises or says so itself."""
    started = time.monotonic()
    try:
        found = {"passed": True} | check()
    except Exception as error:  # compilers and drivers raise what they like
        found = {"passed": False, "message": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return about | found | {"took_s": round(time.monotonic() - started, 2)}


def leaves(shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs as a model has them under autocast: sequences in `dtype`, weights in float32, steps of 0.001 to 0.1."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device, dtype=dtype)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(shape.heads, device=device).uniform_(low, high, generator=generator)

    step = torch.exp(uniform(-6.9, -2.3))
    return {
        "x": normal(shape.batch, shape.tokens, shape.heads, shape.headdim),
        "dt": 0.5 * normal(shape.batch, shape.tokens, shape.heads),
        "A": -uniform(1, 16),
        "B": normal(shape.batch, shape.tokens, shape.groups, shape.d_state),
        "C": normal(shape.batch, shape.tokens, shape.groups, shape.d_state),
        "D": uniform(0.5, 1.5),
        "dt_bias": step + torch.log(-torch.expm1(-step)),  # softplus takes it to `step`
    }


def results(inputs: dict[str, Tensor], dy: Tensor, backend: str) -> dict[str, Tensor]:
    """Output and gradients by name."""
    given = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    y = ssd_scan(**given, dt_softplus=True, backend=backend)
    gradients = torch.autograd.grad(y, list(given.values()), grad_outputs=dy.to(y.dtype))
    return {"y": y.detach()} | {f"d{name}": grad for name, grad in zip(given, gradients, strict=True)}


def in_double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers in float64."""
    return {name: tensor.double() for name, tensor in tensors.items()}


def judged(found: dict[str, Tensor], truth: dict[str, Tensor], limit: float) -> dict[str, Any]:
    """Relative errors by name, the one nearest to its limit, and whether all are within it (NaN is not)."""
    errors = {name: relative_error(found[name], truth[name]) for name in truth}
    limits = {name: limit * CANCELLING.get(name, 1) for name in errors}
    share = {name: error / limits[name] if error == error else float("inf") for name, error in errors.items()}
    worst = max(share, key=lambda name: share[name])
    return {
        "passed": share[worst] <= 1,
        "largest": errors[worst],
        "of": worst,
        "limit": limits[worst],
        "errors": errors,
    }


def random_like(tensor: Tensor) -> Tensor:
    """A gradient to start from, always the same."""
    generator = torch.Generator(tensor.device).manual_seed(1)
    return torch.randn(tensor.shape, generator=generator, device=tensor.device, dtype=tensor.dtype)


def chunked_is_exact(shape: Shape, device: torch.device) -> dict[str, Any]:
    """The truth at long sequences is itself true at short ones."""
    inputs = in_double(leaves(shape, device, torch.float32))
    dy = random_like(inputs["x"])
    return judged(results(inputs, dy, "chunked"), results(inputs, dy, "reference"), EXACT)


def agrees_with_float64(
    shape: Shape, dtype: torch.dtype, backend: str, truth_by: str, device: torch.device
) -> dict[str, Any]:
    """An implementation on numbers of `dtype`, against float64 on the very same numbers."""
    inputs = leaves(shape, device, dtype)
    dy = random_like(inputs["x"])
    found = results(inputs, dy, backend)
    return judged(found, results(in_double(inputs), dy.double(), truth_by), LIMITS[dtype])


def last_image_is_right(shape: Shape, backend: str, device: torch.device) -> dict[str, Any]:
    """Offsets beyond 32 bits: what belongs to the last image must not depend on the images before it."""
    inputs = leaves(shape, device, torch.bfloat16)
    dy = random_like(inputs["x"])
    per_image = ("x", "dt", "B", "C")
    alone = {name: tensor[-1:].clone() if name in per_image else tensor for name, tensor in inputs.items()}
    names = ("y", *(f"d{name}" for name in per_image))
    whole = results(inputs, dy, backend)
    last = {name: whole[name][-1:].clone() for name in names}
    del whole
    truth = results(alone, dy[-1:].clone(), backend)
    return judged(last, {name: truth[name] for name in names}, LIMITS[torch.bfloat16])


# ---------------------------------------------------------------------------------------------------------------------
# Speed


def speed(options: argparse.Namespace, device: torch.device, chosen: str) -> Iterator[dict[str, Any]]:
    """Times of the scan alone: about 50,000 tokens at Adventurer-Base's width, bf16, and once in fp32."""
    shapes = TINY if options.tiny else [Shape(1, 50_178, 24), Shape(4, 12_546, 24), Shape(256, 198, 24)]
    for shape in shapes:
        for dtype in (torch.bfloat16, torch.float32) if shape is shapes[0] else (torch.bfloat16,):
            inputs = leaves(shape, device, dtype)
            dy = random_like(inputs["x"])
            for backend in dict.fromkeys([chosen, "chunked"]):
                calls = {
                    "forward": lambda i=inputs, b=backend: forward(i, b),
                    "forward and backward": lambda i=inputs, d=dy, b=backend: results(i, d, b),
                }
                about = {"backend": backend, "shape": str(shape), "dtype": str(dtype)}
                yield from timed_rows(about, calls, options, device)


def forward(inputs: dict[str, Tensor], backend: str) -> Tensor:
    """Without gradients."""
    with torch.no_grad():
        return ssd_scan(**inputs, dt_softplus=True, backend=backend)


def timed_rows(
    about: dict[str, Any], calls: dict[str, Callable[[], Any]], options: argparse.Namespace, device: torch.device
) -> Iterator[dict[str, Any]]:
    """A row for each call: median and quartiles, and what its last repetition allocated at most; or why not."""
    for what, call in calls.items():
        row = about | {"what": what}
        try:
            times = alternate({what: call}, device=device, warm_up=options.warm_up, repetitions=options.repetitions)
            with PeakMemory(device) as peak:
                call()
        except Exception as error:  # peers and allocators raise what they like
            yield row | {"unavailable": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
            continue
        yield row | {
            "seconds": numbers(times.time_s(what)),
            "memory_bytes": peak.bytes,
            "memory_kind": peak.kind,
        }


# ---------------------------------------------------------------------------------------------------------------------
# Peers


def peers(options: argparse.Namespace, device: torch.device, chosen: str) -> Iterator[dict[str, Any]]:
    """Whole mixers, then scans."""
    yield from peer_mixers(options, device)
    yield from peer_scans(options, device, chosen)


def peer_mixers(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """One layer at Adventurer-Base's width, forward and backward: in bf16 autocast, and in float32."""
    embed_dim = 32 if options.tiny else 768
    torch.manual_seed(0)
    ours = Mamba2Mixer(embed_dim).to(device)
    mixers: dict[str, torch.nn.Module] = {"ours": ours}
    try:
        peer = transformers_mixer(embed_dim, ours.num_heads).to(device)
        peer.load_state_dict(ours.state_dict())
        mixers["transformers"] = peer
        u = torch.randn(1, 300, embed_dim, device=device)
        with torch.no_grad():
            error = relative_error(ours(u), peer(u))
        yield {"mixer": "transformers", "what": "same weights, same output", "error": error, "passed": error < 1e-3}
    except Exception as error:  # anything may be wrong with somebody else's package
        yield {"mixer": "transformers", "unavailable": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}

    for tokens in [64] if options.tiny else MIXERS:
        u = torch.randn(1, tokens, embed_dim, device=device, requires_grad=True)
        dy = torch.randn(1, tokens, embed_dim, device=device)
        for dtype in (torch.bfloat16, torch.float32):
            for name, mixer in mixers.items():

                def run(
                    mixer: torch.nn.Module = mixer, u: Tensor = u, dy: Tensor = dy, dtype: torch.dtype = dtype
                ) -> None:
                    mixer.zero_grad(set_to_none=True)
                    u.grad = None
                    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
                        y = mixer(u)
                    y.backward(dy.to(y.dtype))

                about = {"mixer": name, "tokens": tokens, "dtype": str(dtype)}
                yield from timed_rows(about, {"forward and backward": run}, options, device)
                if device.type == "cuda":
                    torch.cuda.empty_cache()


def peer_scans(options: argparse.Namespace, device: torch.device, chosen: str) -> Iterator[dict[str, Any]]:
    """The scan alone, as others offer it, on the same bf16 inputs."""
    shape = TINY[0] if options.tiny else Shape(1, 50_178, 24)
    inputs = leaves(shape, device, torch.bfloat16)
    dy = random_like(inputs["x"])
    scans: dict[str, Callable[..., Tensor]] = {
        chosen: lambda **given: ssd_scan(**given, dt_softplus=True, backend=chosen)
    }
    for name, find in {"fla chunk_simple_gla": fla_scan, "mamba_ssm mamba_chunk_scan_combined": mamba_ssm_scan}.items():
        try:
            scans[name] = find()
        except Exception as error:  # an import may fail in many ways
            yield {"scan": name, "unavailable": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    for name, scan in scans.items():

        def once(scan: Callable[..., Tensor] = scan) -> None:
            with torch.no_grad():
                scan(**inputs)

        def both(scan: Callable[..., Tensor] = scan) -> None:
            given = {key: tensor.detach().requires_grad_() for key, tensor in inputs.items()}
            y = scan(**given)
            torch.autograd.grad(y, list(given.values()), grad_outputs=dy.to(y.dtype))

        about = {"scan": name, "shape": str(shape), "dtype": "torch.bfloat16"}
        yield from timed_rows(about, {"forward": once, "forward and backward": both}, options, device)


def fla_scan() -> Callable[..., Tensor]:
    """flash-linear-attention's gated linear attention with a scalar decay a head is this scan; B, C a head each."""
    from fla.ops.simple_gla import chunk_simple_gla

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor) -> Tensor:
        dt = softplus(dt.float() + dt_bias)
        B, C = (each.repeat_interleave(x.shape[2] // each.shape[2], dim=2) for each in (B, C))
        y, _ = chunk_simple_gla(q=C, k=B, v=(x * dt[..., None]).to(x.dtype), g=dt * A, scale=1.0)
        return y + (D[:, None] * x).to(x.dtype)

    return scan


def mamba_ssm_scan() -> Callable[..., Tensor]:
    """The authors' own kernels."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor) -> Tensor:
        return mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size=256, D=D, dt_bias=dt_bias, dt_softplus=True)

    return scan


if __name__ == "__main__":
    main()
