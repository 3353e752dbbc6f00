"""`patchscale cost`: what a model costs at a patch size and an image size, before anything runs."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchscale.errors import UserError

if TYPE_CHECKING:
    from patchscale.costs.estimate import Cost


def cost(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Names such as vit_base adventurer_base.")
    ] = None,
    patch_size: Annotated[str, typer.Option(help="Pixels, separated by commas: 16,8,4,2,1.")] = "16",
    img_size: Annotated[
        str, typer.Option(help="Pixels, separated by commas: 224, or 224,800x1216 (height x width).")
    ] = "224",
    task: Annotated[str, typer.Option(help="classification, segmentation or detection.")] = "classification",
    head: Annotated[
        str | None,
        typer.Option(help="linear, upernet, mask_rcnn or cascade_mask_rcnn. Default: the plainest of the task."),
    ] = None,
    num_classes: Annotated[int, typer.Option(min=0, help="For detection with the background; 0 for no head.")] = 1000,
    pos_embed: Annotated[str, typer.Option(help="learned, or sincos2d (no parameters).")] = "learned",
    train: Annotated[bool, typer.Option("--train/--infer", help="A training step, or a forward pass.")] = True,
    batch_size: Annotated[str, typer.Option(help="Images of a step on one device, separated by commas: 1,64.")] = "1",
    micro_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images in a pass; their gradients add up. Default: the batch.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="bf16 (autocast) or fp32. Default: the profile's, else bf16.")
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute blocks again in the backward pass, to save memory.")
    ] = False,
    ema: Annotated[bool, typer.Option("--ema", help="A moving average of the weights is kept.")] = False,
    device: Annotated[
        str | None, typer.Option(help="For time: h100, a100, rtx4090, cpu, ..., or a profile; see --list-devices.")
    ] = None,
    num_threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: the profile's.")] = None,
    images: Annotated[
        str | None, typer.Option(help="Images of the data set, for hours: a number, imagenet, ade20k or coco.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over these images. Default: 1.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine for a minute or two, and keep its profile.")
    ] = False,
    list_devices: Annotated[
        bool, typer.Option("--list-devices", help="Show the devices and profiles that --device takes.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON, in plain units.")] = False,
) -> None:
    """Tokens, parameters, FLOPs, memory and time of every combination; of a single one part by part.

    FLOPs are 2 x MACs (multiply-adds). Training counts a forward and a backward pass. Built-in models need no torch;
    other timm names are counted by it. Vision-language models have a verb of their own: patchscale vlm.
    """
    if list_devices:
        _print_devices(json=json)
        return
    if calibrate:
        ignored = {"a model": models or None, "--images": images, "--epochs": epochs}
        _refuse("--calibrate measures steps of its own", ignored)
        _calibrate(device, precision, num_threads, json=json)
        return
    if not models:
        raise UserError("name at least one model, such as `patchscale cost vit_base --patch-size 16,8,4`")
    from patchscale.cli.lists import listed_img_sizes, listed_numbers
    from patchscale.costs.estimate import estimate_cost
    from patchscale.costs.workload import published_images

    if not train:
        of_training = {
            "--checkpointing": checkpointing or None,
            "--ema": ema or None,
            "--micro-batch-size": micro_batch_size,
        }
        _refuse("--infer asks for a forward pass without gradients", of_training)
    if images is None:
        _refuse("epochs are passes over --images, which is not given", {"--epochs": epochs})
    passes = 1 if epochs is None else _positive("--epochs", epochs)
    images_seen = None if images is None else round(published_images(images) * passes)
    if images_seen is not None and device is None:
        raise UserError(f"--images {images}: hours need a device; give --device, such as --device h100")
    estimate = partial(
        estimate_cost,
        num_classes=num_classes,
        task=task,
        head=head,
        pos_embed=_one_of("--pos-embed", pos_embed, ("learned", "sincos2d")),
        train=train,
        micro_batch_size=micro_batch_size,
        precision=None if precision is None else _one_of("--precision", precision, ("bf16", "fp32")),
        ema=ema,
        device=device,
        num_threads=num_threads,
    )
    settings: list[dict[str, Any]] = [
        {"model": _vision_model(name), "patch_size": patch, "img_size": size, "batch_size": batch}
        for name in models
        for size in listed_img_sizes("--img-size", img_size)
        for patch in listed_numbers("--patch-size", patch_size)
        for batch in listed_numbers("--batch-size", batch_size)
    ]
    costs = [estimate(**setting, activation_checkpointing=checkpointing) for setting in settings]
    if json:
        _print_json(costs, device, images_seen)
    elif len(costs) > 1:
        _print_grid(costs, device, images_seen)
    else:
        other = estimate(**settings[0], activation_checkpointing=not checkpointing) if train else None
        _print_parts(costs[0], other, images_seen)
    _say_what_does_not_fit(costs, device)


def _vision_model(name: str) -> str:
    from patchscale.costs.vision_language.models import MODELS

    if name in MODELS:
        raise UserError(f"{name!r} is a vision-language model; price it with `patchscale vlm {name}`")
    return name


def _refuse(why: str, given: dict[str, Any]) -> None:
    """Raise `UserError` if one of these options is not None: it would be ignored."""
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise UserError(f"{why}; leave out {' and '.join(names)}")


def _one_of(option: str, given: str, allowed: tuple[str, ...]) -> Any:
    if given not in allowed:
        raise UserError(f"{option} {given!r} is unknown; choose {' or '.join(allowed)}")
    return given


def _positive(option: str, number: float) -> float:
    if not 0 < number < float("inf"):
        raise UserError(f"{option} {number:g}: give a number above 0")
    return number


def _fits(one: "Cost", device: str | None) -> bool | None:
    from patchscale.costs.time import device_memory_bytes

    memory = None if device is None else device_memory_bytes(device)
    return None if memory is None else one.memory.peak_bytes <= memory


def _say_what_does_not_fit(costs: list["Cost"], device: str | None) -> None:
    from patchscale.cli.measuring import say
    from patchscale.costs.time import device_memory_bytes
    from patchscale.reports.words import size_bytes
    from patchscale.shapes import format_img_size

    for one in costs:
        if device is not None and _fits(one, device) is False:
            counts = one.counts
            say(
                f"{counts.model}, patch {counts.patch_size} at {format_img_size(counts.img_size)} px, batch "
                f"{one.batch_size}: needs {size_bytes(one.memory.peak_bytes)}, {device} has "
                f"{size_bytes(device_memory_bytes(device))}: does not fit"
            )


def _assumption(one: "Cost", device: str | None) -> dict[str, float | None]:
    """The numbers of an assumed time; None where it is calibrated, or none was asked for."""
    from patchscale.costs.hardware import DEVICES
    from patchscale.costs.time import ASSUMED_MFU

    if device is None or one.time is None or one.time.calibrated:
        return {"assumed_mfu": None, "peak_flops_per_s": None}
    architecture = one.counts.shape.architecture if one.counts.shape is not None else "vit"
    return {
        "assumed_mfu": ASSUMED_MFU[architecture],
        "peak_flops_per_s": DEVICES[device.lower()].peak_bf16_flops_per_s,
    }


def _print_json(costs: list["Cost"], device: str | None, images_seen: int | None) -> None:
    from patchscale.cli.output import print_json
    from patchscale.costs.estimate import CONVENTIONS

    rows = []
    for one in costs:
        row = {**one.to_dict(), "fits": _fits(one, device), **_assumption(one, device)}
        if images_seen is not None:
            row |= {"images_seen": images_seen, "device_hours": one.device_hours(images_seen)}
        rows.append(row)
    print_json({"costs": rows, "conventions": CONVENTIONS})


def _print_parts(one: "Cost", other: "Cost | None", images_seen: int | None) -> None:
    """Three tables: counts, memory (beside that of `other`, with checkpointing the other way round), time."""
    from patchscale.cli.output import print_table

    print(_title(one))
    print_table(_part_rows(one))
    print()
    print_table(_memory_rows(one, other))
    if one.time is not None:
        print()
        rows = [
            {"time": f"a {_kind(one)}", "value": _seconds(one.time.step_time_s)},
            {"time": "images a second", "value": f"{one.time.images_per_s:.4g}"},
        ]
        if images_seen is not None:
            hours = one.device_hours(images_seen)
            rows.append({"time": f"{images_seen:,} images, hours of one device", "value": f"{hours:.4g}"})
        print_table(rows)
    _say_conventions([one])


def _kind(one: "Cost") -> str:
    return "training step" if one.train else "forward pass"


def _title(one: "Cost") -> str:
    from patchscale.shapes import format_img_size

    counts = one.counts
    head = f", {counts.head} head for {counts.num_classes} classes" if counts.num_classes else ", no head"
    step = f"training, batch {one.batch_size}" if one.train else f"inference, batch {one.batch_size}"
    blocks = ", blocks computed again" if one.activation_checkpointing else ""
    return (
        f"{counts.model}, patch {counts.patch_size} at {format_img_size(counts.img_size)} px: {one.tokens:,} tokens; "
        f"{counts.task}{head}; {step}, {one.precision}{blocks}"
    )


def _part_rows(one: "Cost") -> list[dict[str, str]]:
    """Counts by part and in all; in training also what is executed."""
    counts = one.counts
    rows = [
        _counts_row(part, counts.params.get(part, 0), 2 * counts.macs.get(part, 0), 2 * counts.macs_train.get(part, 0))
        for part in dict.fromkeys([*counts.params, *counts.macs])
    ]
    rows.append(_counts_row("total", one.params_total, one.flops_forward, one.flops_train))
    if one.train:
        again = {
            "part": "total, with what is computed again",
            "training GFLOPs": f"{one.flops_train_executed / 1e9:.4g}",
        }
        rows.append(again)
    return rows


def _counts_row(part: str, params: int, flops: int, flops_train: int) -> dict[str, str]:
    return {
        "part": part,
        "parameters": f"{params:,}",
        "GMACs": f"{flops / 2e9:.4g}",
        "GFLOPs": f"{flops / 1e9:.4g}",
        "training GFLOPs": f"{flops_train / 1e9:.4g}",
    }


def _memory_rows(one: "Cost", other: "Cost | None") -> list[dict[str, str]]:
    from patchscale.reports.words import size_bytes

    columns = {"size": one}
    if other is not None:
        columns = {"with checkpointing" if each.activation_checkpointing else "all kept": each for each in (one, other)}
    only_in_training = ("optimizer", "gradients") if one.train else ()
    kept = ("ema",) if one.memory.ema else ()
    used = ("weights", *only_in_training, *kept, "batch", "activations", "workspace")
    rows = [
        {"memory": name} | {column: size_bytes(each.memory.parts()[name]) for column, each in columns.items()}
        for name in used
    ]
    peak = {column: size_bytes(each.memory.peak_bytes) for column, each in columns.items()}
    moment = {column: each.memory.peak_at for column, each in columns.items()}
    rows += [{"memory": f"peak of a {_kind(one)}", **peak}, {"memory": "which is at", **moment}]
    if one.train:
        forward = {column: size_bytes(each.memory.forward_activations_bytes) for column, each in columns.items()}
        rows.append({"memory": "activations after the forward pass", **forward})
    return rows


def _seconds(seconds: float) -> str:
    from patchscale.reports.words import duration

    if seconds >= 60:
        return duration(seconds)
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _print_grid(costs: list["Cost"], device: str | None, images_seen: int | None) -> None:
    from patchscale.cli.output import print_table
    from patchscale.reports.words import size_bytes
    from patchscale.shapes import format_img_size

    rows = []
    for one in costs:
        row = {
            "model": one.counts.model,
            "img_size": str(format_img_size(one.counts.img_size)),
            "patch_size": str(one.counts.patch_size),
            "batch": str(one.batch_size),
            "tokens": f"{one.tokens:,}",
            "M params": f"{one.params_total / 1e6:.4g}",
            "M backbone": f"{one.params_backbone / 1e6:.4g}",
            "GFLOPs": f"{one.flops_forward / 1e9:.4g}",
            "training GFLOPs": f"{one.flops_train / 1e9:.4g}",
            "peak memory": size_bytes(one.memory.peak_bytes)
            + (", does not fit" if _fits(one, device) is False else ""),
        }
        if one.time is not None:
            row |= {"step time": _seconds(one.time.step_time_s), "images/s": f"{one.time.images_per_s:.4g}"}
        if images_seen is not None:
            row["device-hours"] = f"{one.device_hours(images_seen):.4g}"
        rows.append(row)
    print_table(rows)
    _say_conventions(costs)


def _say_conventions(costs: list["Cost"]) -> None:
    from patchscale.cli.measuring import say

    say("FLOPs = 2 x MACs, of one image; training: forward and backward, what is computed again not counted twice")
    say("computed again are scores of fused attention, and blocks with checkpointing: that is in the time")
    say("M backbone: without head and position table; memory: tensors of a step at its peak, not the process")
    for source in dict.fromkeys(one.time.source for one in costs if one.time is not None):
        say(f"time: {source}")


def _calibrate(device: str | None, precision: str | None, num_threads: int | None, *, json: bool) -> None:
    """Measure, save, and say how good the profile is."""
    from patchscale.requirements import require_training_half

    require_training_half()
    from dataclasses import asdict

    from patchscale.cli.measuring import progress, say
    from patchscale.cli.output import print_json, print_table
    from patchscale.costs.profile import check_profiles_folder, save_profile
    from patchscale.measurements.calibrate import calibrate
    from patchscale.reports.words import percent, size_bytes

    check_profiles_folder()
    with progress(None) as tell:
        profile = calibrate(
            device or "auto",
            precision=None if precision is None else _one_of("--precision", precision, ("bf16", "fp32")),
            num_threads=num_threads,
            progress=tell,
        )
    path = save_profile(profile)
    if json:
        print_json({"path": str(path), **asdict(profile)})
        return
    print_table(
        [
            {
                "steps": kind,
                "measured": sum(row["train"] == train for row in profile.measurements),
                "error of the fit": percent(speeds.fit_error),
                "each left out": percent(speeds.leave_one_out_error),
                "not determined": ", ".join(speeds.undetermined) or "-",
            }
            for kind, train, speeds in (("training", True, profile.train), ("inference", False, profile.infer))
        ]
    )
    say("errors are medians of |predicted / measured - 1|")
    say(f"beside its tensors a process needs {size_bytes(profile.memory_offset_bytes)}")
    say(f"{profile.device_name}, {profile.precision}, {_threads(profile.num_threads)} -> {path}")
    say(f"use it with --device {profile.name}")


def _threads(number: int) -> str:
    return f"{number} CPU thread{'' if number == 1 else 's'}"


def _print_devices(*, json: bool) -> None:
    from patchscale.cli.output import print_json, print_table
    from patchscale.costs.hardware import DEVICES
    from patchscale.costs.profile import list_profiles, load_profile

    rows: list[dict[str, Any]] = [
        {
            "device": named.name,
            "peak_bf16_tflops_per_s": None if (peak := named.peak_bf16_flops_per_s) is None else peak / 1e12,
            "memory_gb": None if (memory := named.memory_bytes) is None else memory / 1e9,
            "source": named.source,
        }
        for named in DEVICES.values()
    ]
    for name in list_profiles():
        try:
            profile = load_profile(name)
            about = f"calibrated {profile.date}: {profile.device_name}, {profile.precision}"
        except UserError as damaged:
            about = str(damaged)
        rows.append({"device": name, "peak_bf16_tflops_per_s": None, "memory_gb": None, "source": about})
    print_json(rows) if json else print_table(rows)
