"""One Adventurer mixer on a CPU thread, forward and backward: against a peer, its own matrix products, and by length.

    python benchmarks/mixer_cpu.py [--tokens 12544] [--embed-dim 384] [--repetitions 7] [--output FILE]

Candidates take turns in one process: ours; transformers' Mamba2Mixer with the same weights (checked to give the same
output and gradients first; left out with a reason if transformers is missing); the matrix products that ours cannot do
without, alone, as plain torch.matmul into tensors made beforehand; and ours over four times the tokens. Peak memory is
the rise of resident memory in the first forward and backward pass of a fresh process per candidate.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from common import begin, finish, numbers, options_parser, relative_error, transformers_mixer, words
from patchscale.measurements.child import in_fresh_process
from patchscale.measurements.memory import PeakMemory
from patchscale.measurements.paired import alternate
from patchscale.models.adventurer import Mamba2Mixer
from patchscale.models.ssd.chunked import CHUNK_SIZE, chunk_length

CPU = torch.device("cpu")
LONGER = 4
TARGET_GROWTH = 4.4
LARGEST_DISAGREEMENT = 1e-4


def main() -> None:
    """Check, time, measure memory, print, write."""
    parser = options_parser(__doc__, warm_up=1, repetitions=7)
    parser.add_argument("--tokens", type=int, default=12_544)
    parser.add_argument("--embed-dim", type=int, default=384)
    options = parser.parse_args()
    options.device = "cpu"
    _, setting = begin(options, "transformers")
    setting |= {"precision": "fp32", "batch_size": 1, "chunk": chunk_length(options.tokens, CHUNK_SIZE)}

    peer, agreement = agreement_with_peer(options)
    print(agreement["words"])
    tokens, longer = options.tokens, LONGER * options.tokens
    candidates: dict[str, Callable[[], Any]] = {
        "ours": pass_of(new_mixer(options.embed_dim), tokens),
        **({} if peer is None else {"transformers": pass_of(peer, tokens)}),
        "products": products(new_mixer(options.embed_dim), tokens),
        "ours_longer": pass_of(new_mixer(options.embed_dim), longer),
    }
    times = alternate(candidates, device=CPU, warm_up=options.warm_up, repetitions=options.repetitions)
    for name in candidates:
        print(f"{name:>12}: {words(times.time_s(name))} s")

    memory = {
        "ours": in_fresh_process(memory_of, "ours", options.embed_dim, tokens, options.threads),
        "ours_longer": in_fresh_process(memory_of, "ours", options.embed_dim, longer, options.threads),
    }
    if peer is not None:
        memory["transformers"] = in_fresh_process(memory_of, "transformers", options.embed_dim, tokens, options.threads)
    ratios = {
        "ours / products": times.ratio("ours", "products"),
        f"ours at {longer} / ours at {tokens} tokens": times.ratio("ours_longer", "ours"),
    }
    memory_ratios = {f"ours at {longer} / ours at {tokens} tokens": memory["ours_longer"] / memory["ours"]}
    if peer is not None:
        ratios["transformers / ours"] = times.ratio("transformers", "ours")
        memory_ratios["transformers / ours"] = memory["transformers"] / memory["ours"]
    for name, ratio in ratios.items():
        print(f"time, {name}: {words(ratio)}")
    for name, peak in memory.items():
        print(f"memory, {name}: {peak / 2**20:.0f} MiB")
    for name, value in memory_ratios.items():
        print(f"memory, {name}: {value:.3g}")
    print(f"growth at {LONGER} times the tokens, time and memory: the aim is at most {TARGET_GROWTH}")
    finish(
        options,
        setting,
        agreement=agreement,
        time_s={name: numbers(times.time_s(name)) for name in candidates},
        time_ratio={name: numbers(ratio) for name, ratio in ratios.items()},
        peak_memory_bytes=memory,
        peak_memory_ratio=memory_ratios,
        target_growth=TARGET_GROWTH,
    )


def new_mixer(embed_dim: int) -> Mamba2Mixer:
    """Ours: heads of 64, state of 64, one group, convolution over 4 tokens."""
    torch.manual_seed(0)
    return Mamba2Mixer(embed_dim)


def new_peer(embed_dim: int) -> nn.Module:
    """transformers' mixer with our weights, which have the same names there."""
    ours = new_mixer(embed_dim)
    peer = transformers_mixer(embed_dim, ours.num_heads)
    peer.load_state_dict(ours.state_dict())
    return peer


def agreement_with_peer(options: argparse.Namespace) -> tuple[nn.Module | None, dict[str, Any]]:
    """The peer, if there is one, and how far its output and gradients are from ours; stops if that is too far."""
    try:
        peer = new_peer(options.embed_dim)
    except ImportError as error:
        return None, {"words": f"transformers' mixer is left out: {error}"}
    tokens = min(options.tokens, 1024)
    u, dy = torch.randn(1, tokens, options.embed_dim), torch.randn(1, tokens, options.embed_dim)
    found = []
    for mixer in (new_mixer(options.embed_dim), peer):
        leaf = u.clone().requires_grad_()
        y = mixer(leaf)
        y.backward(dy)
        named = dict(mixer.named_parameters())
        found.append({"y": y.detach(), "u": leaf.grad} | {name: named[name].grad for name in sorted(named)})
        mixer.zero_grad(set_to_none=True)
    ours, theirs = found
    errors = {name: relative_error(ours[name], theirs[name]) for name in ours}
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] <= LARGEST_DISAGREEMENT:
        raise SystemExit(f"the mixers disagree with the same weights: {worst} by {errors[worst]:.1e}")
    summary = f"same weights, same output and gradients over {tokens} tokens: largest relative difference "
    return peer, {"words": f"{summary}{errors[worst]:.1e} ({worst})", "relative_errors": errors}


def pass_of(mixer: nn.Module, tokens: int) -> Callable[[], None]:
    """Forward and backward over [1, tokens, D], with gradients of input and weights."""
    embed_dim = mixer.out_proj.out_features
    u, dy = torch.randn(1, tokens, embed_dim, requires_grad=True), torch.randn(1, tokens, embed_dim)

    def run() -> None:
        mixer.zero_grad(set_to_none=True)
        u.grad = None
        mixer(u).backward(dy)

    return run


def products(mixer: Mamba2Mixer, tokens: int) -> Callable[[], None]:
    """The matrix products of a forward and a backward pass, each once: two backward ones for each forward one.

    in_proj and out_proj over all tokens; for every chunk of q tokens, with n = d_state and H heads of p channels:
    C B^T [q n q], scores times x [q q p] for each head, B^T times x [n q Hp], and C times the state [q n Hp].
    """
    q = chunk_length(tokens, CHUNK_SIZE)
    chunks, n, heads, p = -(-tokens // q), mixer.d_state, mixer.num_heads, mixer.headdim
    shapes = [  # batch, rows, inner, columns
        (1, tokens, mixer.in_proj.in_features, mixer.in_proj.out_features),
        (1, tokens, mixer.out_proj.in_features, mixer.out_proj.out_features),
        (chunks, q, n, q),
        (chunks * heads, q, q, p),
        (chunks, n, q, heads * p),
        (chunks, q, n, heads * p),
    ]
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch, rows, inner, columns in shapes:
        a, b = torch.randn(batch, rows, inner), torch.randn(batch, inner, columns)
        out, da, db = torch.empty(batch, rows, columns), torch.empty_like(a), torch.empty_like(b)
        calls += [(a, b, out), (out, b.mT, da), (a.mT, out, db)]

    def run() -> None:
        for left, right, out in calls:
            torch.matmul(left, right, out=out)

    return run


def memory_of(candidate: str, embed_dim: int, tokens: int, threads: int) -> int:
    """Peak bytes of the first pass of a candidate in this process."""
    torch.set_num_threads(threads)
    run = pass_of(new_mixer(embed_dim) if candidate == "ours" else new_peer(embed_dim), tokens)
    with PeakMemory(CPU) as peak:
        run()
    return peak.bytes


if __name__ == "__main__":
    main()
