"""What each process of a group does in `test_sequence_parallel.py`; a module of its own, as new processes import it."""

import copy
import json
import resource
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from patchscale import create_model
from patchscale.errors import UserError
from patchscale.models import Adventurer, mamba2
from patchscale.models.sequence_parallel import shard_sequence
from patchscale.models.vit import create_vit
from patchscale.shapes import ViTShape

VITS = {
    "vit_class": ViTShape(embed_dim=32, depth=2, num_heads=4, mlp_dim=48),
    "vit_registers": ViTShape(embed_dim=32, depth=2, num_heads=4, mlp_dim=48, registers=4),
    "vit_average": ViTShape(embed_dim=32, depth=2, num_heads=4, mlp_dim=48, mlp="swiglu", class_token=False),
}


def start_group(rank: int, ranks: int, folder: str) -> dist.ProcessGroup:
    """A gloo group over a file in `folder`."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous-{ranks}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    group = dist.group.WORLD
    assert group is not None
    return group


def run_cases(rank: int, ranks: int, folder: str, cases: dict[str, dict[str, Any]]) -> None:
    """Compare each case with one process; rank r writes the largest relative errors to `errors-<ranks>-<r>.json`."""
    group = start_group(rank, ranks, folder)
    found = {name: errors(group, **case) for name, case in cases.items()}
    Path(folder, f"errors-{ranks}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def make_model(name: str, *, img_size: tuple[int, int], patch_size: int, **options: Any) -> nn.Module:
    """A small model by the name of a case, the same on every rank."""
    torch.manual_seed(0)
    if name in VITS:
        options = {"pos_embed": "learned", "drop_path_rate": 0.0} | options
        return create_vit(VITS[name], patch_size=patch_size, img_size=img_size, num_classes=5, **options)
    if name == "adventurer":
        return Adventurer(img_size=img_size, patch_size=patch_size, num_classes=5, embed_dim=32, headdim=16, **options)
    return create_model(name, patch_size=patch_size, img_size=img_size, num_classes=5, **options)


def errors(
    group: dist.ProcessGroup,
    *,
    model: str,
    dtype: str,
    grid: tuple[int, int] = (7, 5),
    output: str = "logits",
    checkpointing: bool = False,
    stretches: bool = False,
    copied: bool = False,
    **options: Any,
) -> dict[str, float]:
    """Relative errors of a sharded model's output and, averaged over the group, of its gradients: name -> error."""
    mamba2.STRETCHES_FROM_ELEMENTS, mamba2.ELEMENTS_PER_STRETCH = (0, 1) if stretches else (2**24, 2**20)
    alone = make_model(model, img_size=(2 * grid[0], 2 * grid[1]), patch_size=2, **options).to(getattr(torch, dtype))
    with torch.no_grad():
        for parameter in alone.parameters():  # zero biases and unit scales would hide mistakes
            parameter += 0.05 * torch.randn_like(parameter)
    alone.set_grad_checkpointing(checkpointing)
    sharded = shard_sequence(copy.deepcopy(alone), group)
    if copied:
        sharded = copy.deepcopy(sharded)
    assert sharded.state_dict().keys() == alone.state_dict().keys()
    images = torch.randn(2, 3, 2 * grid[0], 2 * grid[1]).to(getattr(torch, dtype))

    expected, found = (results(each, images, output) for each in (alone, sharded))
    for name, value in found.items():
        if name != output:
            dist.all_reduce(value, group=group)
            value /= dist.get_world_size(group)
    assert found.keys() == expected.keys()
    return {name: relative_error(found[name], value) for name, value in expected.items()}


def results(model: nn.Module, images: Tensor, output: str) -> dict[str, Tensor]:
    """Output and the gradients of a loss of it; one seed, so that stochastic depth draws the same."""
    torch.manual_seed(1)
    images = images.clone().requires_grad_()
    out = model(images) if output == "logits" else model.forward_feature_map(images)
    weights = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)
    (out * weights + out.square()).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {output: out.detach(), "images": images.grad} | gradients


def relative_error(found: Tensor, truth: Tensor) -> float:
    return ((found - truth).norm() / truth.norm().clamp_min(1e-30)).item()


def in_subgroups(rank: int, ranks: int, folder: str) -> None:
    """Two groups of half the ranks each, as the rows of a mesh; the second one meets other ranks than its own."""
    start_group(rank, ranks, folder)
    groups = [dist.new_group(list(range(start, start + ranks // 2))) for start in (0, ranks // 2)]
    group = groups[rank // (ranks // 2)]
    found = {model: errors(group, model=model, dtype="float64") for model in ("vit_average", "adventurer_test")}
    Path(folder, f"subgroup-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def in_ddp(rank: int, ranks: int, folder: str) -> None:
    """DistributedDataParallel does the averaging by itself."""
    group = start_group(rank, ranks, folder)
    found = {}
    for name in ("vit_class", "adventurer_test"):
        alone = make_model(name, img_size=(14, 10), patch_size=2).double()
        sharded = nn.parallel.DistributedDataParallel(shard_sequence(copy.deepcopy(alone), group))
        images = torch.randn(2, 3, 14, 10, dtype=torch.float64)
        for model in (alone, sharded):
            model(images).square().sum().backward()
        pairs = zip(sharded.module.parameters(), alone.parameters(), strict=True)
        found[name] = max(relative_error(p.grad, q.grad) for p, q in pairs)
    Path(folder, f"ddp-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def refusals(rank: int, ranks: int, folder: str) -> None:
    """What users are told who ask for the impossible."""
    group = start_group(rank, ranks, folder)
    words = []
    for name, side in (("vit_nano", 8), ("vit_test", 2), ("adventurer_test", 4), ("beit_base_patch16_224", 8)):
        with pytest.raises(UserError) as caught:
            shard_sequence(create_model(name, patch_size=2, img_size=side, num_classes=5), group)
        words.append(str(caught.value))
    with pytest.raises(UserError) as caught:
        shard_sequence(shard_sequence(create_model("vit_test", patch_size=2, img_size=4), group), group)
    Path(folder, f"refusals-{rank}.json").write_text(json.dumps([*words, str(caught.value)]))
    dist.destroy_process_group()


def measure_memory(rank: int, ranks: int, folder: str, name: str, side: int) -> None:
    """Bytes by which the peak of resident memory grows in one step of one image at patch size 1."""
    group = start_group(rank, ranks, folder)
    if name == "vit_tiny_of_4_heads":
        shape = ViTShape(embed_dim=192, depth=12, num_heads=4, mlp_dim=768)
        size = {"patch_size": 1, "img_size": (side, side), "num_classes": 5}
        model = create_vit(shape, **size, pos_embed="sincos2d", drop_path_rate=0.0)
    else:
        model = create_model(name, patch_size=1, img_size=side, num_classes=5, pos_embed="sincos2d")
    model = shard_sequence(model, group)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model(torch.randn(1, 3, side, side)).sum().backward()
    peak_bytes = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    Path(folder, f"memory-{ranks}-{rank}.json").write_text(json.dumps(peak_bytes))
    dist.destroy_process_group()
