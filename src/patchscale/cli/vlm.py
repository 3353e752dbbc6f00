"""`patchscale vlm`: what images cost a vision-language model, and the largest image for a budget."""

from math import inf
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchscale.errors import UserError

if TYPE_CHECKING:
    from patchscale.costs.vision_language.estimate import VisionLanguageCost
    from patchscale.costs.vision_language.inverse import BudgetTooSmallError, LargestImage
    from patchscale.costs.vision_language.time import FirstTokenTime

GIB = 2**30
BUDGETS = {"memory_bytes": "memory", "latency_s": "time to the first token"}
"""What limits an image, in words."""


def vlm(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Names such as qwen2.5-vl-7b; see --list-models.")
    ] = None,
    img_size: Annotated[
        str | None,
        typer.Option(help="Height x width of the image in pixels, separated by commas: 1080x1920,448. Default: 1024."),
    ] = None,
    num_images: Annotated[int, typer.Option(min=0, help="Images of a request.")] = 1,
    text_tokens: Annotated[int, typer.Option(min=0, help="Text tokens of a request.")] = 64,
    new_tokens: Annotated[int, typer.Option(min=0, help="Tokens to be generated: room in the cache.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 1,
    precision: Annotated[str, typer.Option(help="bf16, fp16 or fp32.")] = "bf16",
    weight_bytes_per_param: Annotated[
        float | None, typer.Option(help="Of quantized weights: 1 for 8 bits, 0.5 for 4.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="For the time to the first token: h100, a100, rtx4090, ...")
    ] = None,
    max_memory_gib: Annotated[
        float | None, typer.Option(help="Ask for the largest image that fits into this memory, weights included.")
    ] = None,
    max_latency_s: Annotated[
        float | None, typer.Option(help="Ask for the largest image with this time to the first token on --device.")
    ] = None,
    aspect_ratio: Annotated[
        float | None, typer.Option(help="Width over height of the largest image, 0.001 to 1000. Default: 1.")
    ] = None,
    list_models: Annotated[bool, typer.Option("--list-models", help="Show the models and their image rules.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON, in plain units.")] = False,
) -> None:
    """Visual tokens, FLOPs, cache and memory of a request; or, from a budget, the largest image.

    Token counts equal those of the models' own processors. FLOPs are 2 x MACs, from the images to the first new token.
    The time is the FLOPs at an assumed share of the device's peak. No torch is needed.
    """
    from patchscale.costs.vision_language.inverse import MAX_ASPECT_RATIO, BudgetTooSmallError, huge_picture
    from patchscale.costs.vision_language.models import get_model

    if list_models:
        _print_models(json=json)
        return
    if not models:
        raise UserError("name at least one model, such as `patchscale vlm qwen2.5-vl-7b`; --list-models shows all")
    _check_range("--weight-bytes-per-param", weight_bytes_per_param, 0, inf)
    chosen = [get_model(name) for name in models]
    request: dict[str, Any] = {
        "num_images": num_images,
        "text_tokens": text_tokens,
        "new_tokens": new_tokens,
        "batch_size": batch_size,
        "precision": precision,
        "weight_bytes_per_param": weight_bytes_per_param,
    }
    if max_memory_gib is None and max_latency_s is None:
        if aspect_ratio is not None:
            raise UserError("--aspect-ratio is that of the largest image for --max-memory-gib or --max-latency-s")
        _price(chosen, img_size or "1024x1024", request, device, json=json)
        return
    if img_size is not None:
        raise UserError(
            "--img-size: with --max-memory-gib or --max-latency-s the image size is the answer; leave it out"
        )
    if num_images < 1:
        raise UserError(f"--num-images {num_images}: the largest image for a budget needs at least 1")
    _check_range("--max-memory-gib", max_memory_gib, 0, inf)
    _check_range("--max-latency-s", max_latency_s, 0, inf)
    _check_range("--aspect-ratio", aspect_ratio, 1 / MAX_ASPECT_RATIO, MAX_ASPECT_RATIO)
    if max_latency_s is not None and device is None:
        raise UserError(f"--max-latency-s {max_latency_s:g}: give the --device, such as --device h100")
    ratio = 1.0 if aspect_ratio is None else aspect_ratio
    for model in chosen:
        try:
            model.image_rule.count(huge_picture(ratio))
        except UserError as error:
            raise UserError(f"--aspect-ratio {ratio:g} is not one for {model.name}: {error}") from None
    try:
        _largest(chosen, request, device, max_memory_gib, max_latency_s, ratio, json=json)
    except BudgetTooSmallError as error:
        raise UserError(_too_small(error)) from None


def _check_range(option: str, number: float | None, least: float, most: float) -> None:
    """Raise `UserError` unless the number is in the range; least 0 and most inf are themselves outside."""
    if number is None or (least <= number <= most and 0 < number < inf):
        return
    allowed = "a finite number above 0" if most == inf else f"width / height, from {least:g} to {most:g}"
    raise UserError(f"{option} {number:g}: give {allowed}")


def _too_small(error: "BudgetTooSmallError") -> str:
    from patchscale.costs.vision_language.inverse import ADVICE

    in_words = {
        "memory_bytes": lambda needed, given: f"{needed / GIB:.4g} GiB (--max-memory-gib {given / GIB:g})",
        "latency_s": lambda needed, given: f"{needed:.3g} s to the first token (--max-latency-s {given:g})",
    }
    needs = " and ".join(in_words[name](*both) for name, both in error.needs.items())
    return f"{error.smallest}, needs {needs}; {ADVICE}"


def _price(chosen: list[Any], img_size: str, request: dict[str, Any], device: str | None, *, json: bool) -> None:
    from patchscale.cli.lists import listed_img_sizes
    from patchscale.cli.measuring import say
    from patchscale.cli.output import print_json, print_table
    from patchscale.costs.vision_language.estimate import CONVENTIONS, estimate_vision_language_cost
    from patchscale.costs.vision_language.time import first_token_time

    costs = [
        estimate_vision_language_cost(model, img_size=size, **request)
        for model in chosen
        for size in listed_img_sizes("--img-size", img_size)
    ]
    times = [None if device is None else first_token_time(one, device) for one in costs]
    if json:
        rows = [_as_dict(one, time) for one, time in zip(costs, times, strict=True)]
        print_json({"costs": rows, "conventions": CONVENTIONS})
        return
    if len(costs) == 1:
        print_table(_part_rows(costs[0]))
        print()
    table = [_row(one) for one in costs]
    for row, time in zip(table, times, strict=True):
        if time is not None:
            row["first token, s"] = f"{time.seconds:.3g}"
    print_table(table)
    _say_conventions()
    for one in costs:
        if one.visual.note:
            say(f"{one.model.name}: image {one.visual.note}")
    for source in dict.fromkeys(time.source for time in times if time is not None):
        say(f"time: {source}")


def _largest(
    chosen: list[Any],
    request: dict[str, Any],
    device: str | None,
    max_memory_gib: float | None,
    max_latency_s: float | None,
    aspect_ratio: float,
    *,
    json: bool,
) -> None:
    from patchscale.cli.measuring import say
    from patchscale.cli.output import print_json, print_table
    from patchscale.costs.vision_language.estimate import CONVENTIONS
    from patchscale.costs.vision_language.inverse import largest_image
    from patchscale.costs.vision_language.time import first_token_time

    def seconds(one: "VisionLanguageCost") -> float:
        assert device is not None
        return first_token_time(one, device).seconds

    found = [
        largest_image(
            model,
            aspect_ratio=aspect_ratio,
            memory_bytes=None if max_memory_gib is None else max_memory_gib * GIB,
            latency_s=max_latency_s,
            seconds=None if max_latency_s is None else seconds,
            **request,
        )
        for model in chosen
    ]
    if json:
        times = [None if device is None else first_token_time(one.cost, device) for one in found]
        answers = [_largest_dict(one, time) for one, time in zip(found, times, strict=True)]
        print_json({"largest": answers, "conventions": CONVENTIONS})
        return
    rows = [
        {**_row(one.cost), "limited by": " and ".join(BUDGETS.get(name, name) for name in one.binds)} for one in found
    ]
    for row, one in zip(rows, found, strict=True):
        del row["image"]  # a picture larger than any budget
        if device is not None:
            row["first token, s"] = f"{seconds(one.cost):.3g}"
    print_table(rows)
    for one in found:
        say(f"{one.cost.model.name}: larger images are shrunk to this with {one.cap_name}={one.cap}")
    _say_conventions()
    if device is not None:
        say(f"time: {first_token_time(found[0].cost, device).source}")


def _row(one: "VisionLanguageCost") -> dict[str, str]:
    from patchscale.reports.words import size_bytes

    visual = one.visual
    return {
        "model": one.model.name,
        "image": "x".join(map(str, visual.img_size)),
        "as seen": "x".join(map(str, visual.resized)),
        "tiles": str(visual.tiles),
        "patches": f"{visual.encoder_tokens:,}",
        "visual tokens": f"{one.visual_tokens:,}",
        "TFLOPs to first token": f"{one.flops_prefill / 1e12:.4g}",
        "KV cache": size_bytes(one.kv_cache_bytes),
        "weights": size_bytes(one.weights_bytes),
        "peak memory": size_bytes(one.peak_memory_bytes),
    }


def _part_rows(one: "VisionLanguageCost") -> list[dict[str, str]]:
    parts = dict.fromkeys([*one.params, *one.macs])
    rows = [
        {
            "part": part,
            "parameters": f"{one.params.get(part, 0):,}",
            "GMACs": f"{one.macs.get(part, 0) / 1e9:.4g}",
            "GFLOPs": f"{2 * one.macs.get(part, 0) / 1e9:.4g}",
        }
        for part in parts
    ]
    total = {
        "part": "total",
        "parameters": f"{one.params_total:,}",
        "GMACs": f"{one.flops_prefill / 2e9:.4g}",
        "GFLOPs": f"{one.flops_prefill / 1e9:.4g}",
    }
    return [*rows, total]


def _say_conventions() -> None:
    from patchscale.cli.measuring import say

    say("FLOPs = 2 x MACs of one request, from its images to its first new token; memory is of the whole batch")
    say("attention of the language model is counted in full, as plain kernels do it; causal ones need half of it")


def _as_dict(one: "VisionLanguageCost", time: "FirstTokenTime | None") -> dict[str, Any]:
    visual = one.visual
    return {
        "model": one.model.name,
        "img_size": visual.img_size,
        "resized": visual.resized,
        "tiles": visual.tiles,
        "encoder_tokens": visual.encoder_tokens,
        "visual_tokens_per_image": visual.llm_tokens,
        "num_images": one.num_images,
        "visual_tokens": one.visual_tokens,
        "text_tokens": one.text_tokens,
        "new_tokens": one.new_tokens,
        "batch_size": one.batch_size,
        "precision": one.precision,
        "params": one.params,
        "params_total": one.params_total,
        "macs": one.macs,
        "flops_prefill": one.flops_prefill,
        "flops_new_token": one.flops_new_token,
        "attention_counted": one.convention,
        "memory_bytes": one.memory,
        "kv_cache_bytes": one.kv_cache_bytes,
        "peak_memory_bytes": one.peak_memory_bytes,
        "first_token_s": None if time is None else time.seconds,
        "first_token_source": None if time is None else time.source,
        "note": visual.note,
    }


def _largest_dict(one: "LargestImage", time: "FirstTokenTime | None") -> dict[str, Any]:
    return {
        **_as_dict(one.cost, time),
        "img_size": one.img_size,
        "note": None,
        "set": {one.cap_name: one.cap},
        "limited_by": one.binds,
    }


def _print_models(*, json: bool) -> None:
    from patchscale.cli.output import print_json, print_table
    from patchscale.costs.vision_language.encoders import encoder_params
    from patchscale.costs.vision_language.language_models import decoder_params
    from patchscale.costs.vision_language.models import MODELS

    rows = [
        {
            "model": name,
            "images": type(model.image_rule).__name__,
            "limited by": model.image_rule.cap_name,
            "encoder, M": round(encoder_params(model.encoder) / 1e6),
            "language model, M": round(sum(decoder_params(model.llm).values()) / 1e6),
        }
        for name, model in MODELS.items()
    ]
    print_json(rows) if json else print_table(rows)
