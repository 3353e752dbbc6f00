"""Counting what a torch model does: every operation is counted, known to be free, or an error.

The count of an operation is that of torch's own registry (`torch.utils.flop_counter`): matrix products, convolutions,
attention, and whatever a library registered for its own. Only gradients of convolutions are counted here, because torch
takes those of grouped ones for as many as without groups (about 100 times too many in XCiT's depthwise ones). A count
is given to the part of the model that did it; in the backward pass, to that of the forward operation.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from patchscale.errors import UserError

FREE_OPERATIONS = {
    "views, and what only makes, copies or moves numbers": """
        view _unsafe_view reshape _reshape_alias alias detach t transpose permute expand squeeze unsqueeze
        select slice split split_with_sizes chunk unbind unfold diagonal as_strided view_as_real view_as_complex
        lift_fresh _to_copy copy_ clone contiguous empty empty_like empty_strided new_empty new_empty_strided
        new_zeros new_ones new_full zeros zeros_like ones ones_like full full_like scalar_tensor arange linspace
        eye cat stack repeat roll flip constant_pad_nd rand rand_like randn randn_like bernoulli bernoulli_
        normal_ uniform_ randperm fill_ zero_ tril triu unfold_backward slice_backward select_backward
        slice_scatter select_scatter split_copy
    """,
    "looking up by index": """
        index index_select index_put index_put_ _unsafe_index _unsafe_index_put gather scatter scatter_add
        index_add embedding embedding_dense_backward where nonzero topk sort argsort argmax argmin masked_fill
        masked_fill_ repeat_interleave _local_scalar_dense
    """,
    "reductions": """
        sum mean amax amin max min prod var std var_mean cumsum any all norm linalg_vector_norm logsumexp equal
    """,
    "norms, softmax, losses, dropout": """
        native_layer_norm native_layer_norm_backward native_group_norm native_group_norm_backward
        native_batch_norm native_batch_norm_backward _native_batch_norm_legit cudnn_batch_norm
        _native_batch_norm_legit_no_training batch_norm_backward _fused_rms_norm _fused_rms_norm_backward
        _softmax _softmax_backward_data _safe_softmax _log_softmax _log_softmax_backward_data nll_loss_forward
        nll_loss_backward native_dropout native_dropout_backward
    """,
    "pooling and resampling: a few operations for every output": """
        avg_pool2d avg_pool2d_backward max_pool2d_with_indices max_pool2d_with_indices_backward
        _adaptive_avg_pool2d _adaptive_avg_pool2d_backward adaptive_max_pool2d upsample_nearest2d
        upsample_bilinear2d upsample_bilinear2d_backward upsample_bicubic2d upsample_bicubic2d_backward
        _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler_2d grid_sampler_2d_backward
    """,
}
"""Free besides pointwise operations (`torch.Tag.pointwise`): no products, or a few operations for every number read.

`costs` counts matrix products only. Gradients have the names that torch gives them.
"""
FREE = frozenset(f"aten.{name}" for names in FREE_OPERATIONS.values() for name in names.split())

# A part by a name on a module's path; the first name from the left that is here decides. Names are timm's.
PARTS = {
    "patch_embed": "patch_embed",
    "attn_pool": "attention_pool",
    "attn": "attention_linear",
    "attns": "attention_linear",
    "mlp": "mlp",
    "ffns": "mlp",
}
PRODUCTS_OF_ACTIVATIONS = "attention_quadratic"


def count_forward_and_backward(
    model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor, *, name: str
) -> tuple[dict[str, int], dict[str, int]]:
    """(multiply-adds of the forward pass, of forward and backward pass) by part, of `forward`, a method of `model`.

    Every parameter gets its gradient, the images get none. Raises `UserError`, about the model `name`, for an operation
    that has no count and is not known to be free.
    """
    counter = _Counter(name)
    hooks = []
    for path, module in model.named_modules():
        part = next((PARTS[step] for step in path.split(".") if step in PARTS), "other")
        hooks += [
            module.register_forward_pre_hook(lambda *_, part=part: counter.parts.append(part)),
            module.register_forward_hook(lambda *_: counter.leave()),
        ]
    try:
        with torch.enable_grad(), counter:
            forward(images).sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad()
    whole = counter.forward + counter.backward
    return {part: n // 2 for part, n in counter.forward.items()}, {part: n // 2 for part, n in whole.items()}


class _Counter(TorchDispatchMode):
    """FLOPs by part, forward and backward."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.model = model
        self.parts = ["other"]
        self.part_of_node: dict[int, str] = {}
        self.forward: Counter[str] = Counter()
        self.backward: Counter[str] = Counter()

    def leave(self) -> None:
        """The module that runs ends. Returns None, which leaves its output as it is."""
        self.parts.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = func._overloadpacket
        if operation in flop_registry:
            result = func(*args, **kwargs)
            if operation is torch.ops.aten.convolution_backward:
                self._add(_convolution_backward_flops(*args), args)
            else:
                self._add(int(flop_registry[operation](*args, **kwargs, out_val=result)), args)
            return result
        if torch.Tag.pointwise in func.tags or str(operation) in FREE:
            return func(*args, **kwargs)
        with self:
            result = func.decompose(*args, **kwargs)
        if result is NotImplemented:
            raise UserError(
                f"model {self.model!r} cannot be counted: its operation {operation} has no FLOP formula; register one "
                "with torch.utils.flop_counter.register_flop_formula, or choose another model"
            )
        return result

    def _add(self, flops: int, args: tuple[Any, ...]) -> None:
        node: Any = torch._C._current_autograd_node()
        if node is None:
            part = self.parts[-1]
            if part in ("attention_linear", "mlp", "other") and not any(_is_weight(value) for value in args):
                part = PRODUCTS_OF_ACTIVATIONS
            self.forward[part] += flops
            # The node that will differentiate this operation has just been made, with the number before the next one.
            self.part_of_node[torch._C._autograd._get_sequence_nr() - 1] = part
        else:
            self.backward[self.part_of_node.get(node._sequence_nr(), "other")] += flops


def _convolution_backward_flops(gradient: Tensor, image: Tensor, weight: Tensor, *args: Any) -> int:
    """Each gradient, of the input and of the weight, takes as many products as the convolution itself."""
    transposed, output_mask = args[4], args[7]
    places = image.numel() if transposed else gradient.numel()
    return 2 * places * weight[0].numel() * (output_mask[0] + output_mask[1])


def _is_weight(value: Any) -> bool:
    """Whether it is a parameter or a view of one."""
    return isinstance(value, nn.Parameter) or isinstance(getattr(value, "_base", None), nn.Parameter)
