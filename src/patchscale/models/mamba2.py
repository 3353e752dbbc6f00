"""The mixer of Mamba-2 (arXiv 2405.21060): in place of attention, a short convolution, a state-space scan and a gate.

B batch   L tokens   D embed_dim   E = expand*D width of the mixer   n d_state
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchscale.errors import UserError
from patchscale.models.causal_conv import causal_conv
from patchscale.models.mixing import Left, Parameters, mix_by_stretches
from patchscale.models.norms import RMSNorm, gated_rms_norm
from patchscale.models.reading_order import Stretch, reading_order
from patchscale.models.ssd import AUTO, ssd_scan
from patchscale.models.ssd.chunked import CHUNK_SIZE
from patchscale.models.ssd.selection import check_backend_name

# On a CPU a mixer works on stretches of long sequences, which its caches hold and of which little need be kept. Counted
# in outputs of in_proj. Measured on 2026-11-22: at 21 million of them 10 % faster and half the memory; at 5 million
# computing stretches again in the backward pass costs 10 % more than caches save. A stretch is at least one chunk, so
# with large batches only memory is saved.
ELEMENTS_PER_STRETCH = 2**20  # for each thread
STRETCHES_FROM_ELEMENTS = 2**24


class Mamba2Mixer(nn.Module):
    """A gated, short-convolved state-space scan over tokens [B, L, D], causal.

    One group: all heads share B and C. The state of a head is headdim x d_state numbers.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        d_state: int = 64,
        headdim: int = 64,
        expand: int = 2,
        d_conv: int = 4,
        ssd_backend: str = AUTO,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        check_backend_name(ssd_backend)
        _check_width(embed_dim, headdim, expand)
        self.d_inner = expand * embed_dim
        self.d_state = d_state
        self.headdim = headdim
        self.num_heads = self.d_inner // headdim
        self.ssd_backend = ssd_backend
        self.chunk_size = chunk_size

        d_conv_channels = self.d_inner + 2 * d_state  # x, B and C pass the convolution
        self.in_proj = nn.Linear(embed_dim, self.d_inner + d_conv_channels + self.num_heads, bias=False)
        self.conv1d = nn.Conv1d(d_conv_channels, d_conv_channels, d_conv, groups=d_conv_channels)
        self.dt_bias = nn.Parameter(_inverse_softplus(_log_uniform(self.num_heads, 1e-3, 1e-1)))
        self.A_log = nn.Parameter(torch.empty(self.num_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.num_heads))
        self.norm = RMSNorm(self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, embed_dim, bias=False)

    def forward(self, u: Tensor, mean: Tensor | None = None, backwards: bool = False) -> Tensor:
        """[B, L, D] -> [B, L, D]; a token depends on itself and what is read before it.

        A `mean` [B, 1, D] is read first of all; `backwards` all tokens but the last are read in opposite order.
        """
        projected, projected_mean = self.in_proj(u), None if mean is None else self.in_proj(mean)
        order = reading_order(
            u.shape[1],
            has_mean=mean is not None,
            backwards=backwards,
            tokens_per_stretch=self._tokens_per_stretch(u),
        )
        return self.out_proj(self._mix_in_order(order, projected, projected_mean, None))

    def _mix_in_order(
        self, order: list[Stretch], projected: Tensor, projected_mean: Tensor | None, left: Left | None
    ) -> Tensor:
        """[B, L, in_proj's outputs] -> [B, L, E], after tokens that left `left`."""
        conv_bias = self.conv1d.bias
        assert conv_bias is not None
        parameters = {
            "conv1d.weight": self.conv1d.weight,
            "conv1d.bias": conv_bias,
            "dt_bias": self.dt_bias,
            "A_log": self.A_log,
            "D": self.D,
            "norm.weight": self.norm.weight,
        }
        if len(order) == 1:
            mixed, _ = self._mix(parameters, order[0].read(projected, projected_mean), left, is_last=True)
            return order[0].restore(mixed)
        mixed, _ = mix_by_stretches(self._mix, parameters, order, projected, projected_mean, left)
        return mixed

    def _mix(self, parameters: Parameters, projected: Tensor, left: Left | None, is_last: bool) -> tuple[Tensor, Left]:
        """From in_proj to out_proj: [B, l, in_proj's outputs] -> [B, l, E], all tokens or a stretch of them.

        What one stretch leaves to the next: the last inputs of the convolution, and the state of the scan.
        """
        z, xBC, dt = projected.split([self.d_inner, self.d_inner + 2 * self.d_state, self.num_heads], dim=-1)
        before, state = left or (None, None)
        convolved, after = causal_conv(xBC, before, parameters["conv1d.weight"], parameters["conv1d.bias"])
        x, B, C = F.silu(convolved).split([self.d_inner, self.d_state, self.d_state], dim=-1)
        scan = partial(
            ssd_scan,
            x.unflatten(-1, (self.num_heads, self.headdim)),
            dt,
            -torch.exp(parameters["A_log"]),
            B.unsqueeze(2),
            C.unsqueeze(2),
            parameters["D"],
            dt_bias=parameters["dt_bias"],
            dt_softplus=True,
            backend=self.ssd_backend,
            chunk_size=self.chunk_size,
            initial_state=state,
        )
        if is_last:
            y, left = scan(), ()
        else:
            y, state = scan(return_final_state=True)
            left = (after, state)
        return gated_rms_norm(y.flatten(2), z, parameters["norm.weight"]), left

    def _tokens_per_stretch(self, u: Tensor) -> int:
        """How much of a sequence [B, L, D] to mix at once: what a CPU's caches hold; all of it on other devices."""
        batch, length = u.shape[:2]
        elements_per_token = batch * self.in_proj.out_features
        at_once = u.device.type != "cpu" or torch.compiler.is_compiling()
        if at_once or length * elements_per_token < STRETCHES_FROM_ELEMENTS:
            return length
        tokens = ELEMENTS_PER_STRETCH * torch.get_num_threads() // elements_per_token
        return max(1, tokens // CHUNK_SIZE) * CHUNK_SIZE


def _check_width(embed_dim: int, headdim: int, expand: int) -> None:
    if embed_dim < 1 or (expand * embed_dim) % headdim:
        step = next(d for d in range(1, headdim + 1) if (expand * d) % headdim == 0)
        below = embed_dim // step * step
        legal = [d for d in (below, below + step) if d > 0]
        raise UserError(
            f"embed_dim={embed_dim} does not give whole heads of {headdim} channels; "
            f"it must be a multiple of {step}: use {' or '.join(map(str, legal))}"
        )


def _log_uniform(count: int, low: float, high: float) -> Tensor:
    return low * (high / low) ** torch.rand(count)


def _inverse_softplus(y: Tensor) -> Tensor:
    return y + torch.log(-torch.expm1(-y))
