"""`patchscale convert`: a file of weights for another patch size or image size, or simply as safetensors."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[
        Path,
        typer.Argument(help="File of weights: .pth or .pt, or .safetensors, a run's among them.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="New .safetensors file.", show_default=False)],
    patch_size: Annotated[int | None, typer.Option(help="New patch size in pixels; default: as it is.")] = None,
    img_size: Annotated[
        str | None, typer.Option(help="New image size in pixels, 224 or 224x448; default: as it is.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="How patch kernels are resized: auto, area, bilinear, bilinear_antialias, bicubic, bicubic_antialias."
        ),
    ] = "auto",
    quirk: Annotated[
        bool, typer.Option("--quirk", help="Interpolate Adventurer's positions one row off, as the released code did.")
    ] = False,
    ema: Annotated[bool, typer.Option("--ema", help="Take the moving average of the weights.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Name of the model, where the file does not tell: a timm ViT.")
    ] = None,
    flip_schedule: Annotated[
        str | None,
        typer.Option(help="Adventurer: alternate, released, pairs or none. Default: the file's own, else released."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Convert weights to another patch size or image size; without a new size, to safetensors that name their model.

    Prints every tensor that was resampled, and how well the new patch embedding answers as the old one did.
    """
    from patchscale.errors import UserError
    from patchscale.requirements import require_training_half
    from patchscale.shapes import parse_img_size

    if output.suffix != ".safetensors":
        raise UserError(f"--output {output}: the file is safetensors; let its name end in .safetensors")
    if output.exists() and not force:
        raise UserError(f"{output}: exists; give another --output, or --force to replace it")
    size = None if img_size is None else parse_img_size(img_size, name="--img-size")
    require_training_half()

    import sys
    from dataclasses import asdict

    from patchscale.cli.output import print_json, print_table
    from patchscale.models.checkpoints import describe, load_model, save_model
    from patchscale.models.convert import convert as convert_model

    old = load_model(source, name=model, flip_schedule=flip_schedule, ema=ema)  # type: ignore[arg-type]
    new, report = convert_model(old, patch_size=patch_size, img_size=size, method=method, quirk=quirk)  # type: ignore[arg-type]
    save_model(new, output)
    if json:
        print_json({**asdict(report), "model": describe(new), "output": str(output)})
        return
    if report.resampled:
        print_table(
            [
                {
                    "tensor": tensor.name,
                    "old shape": "x".join(map(str, tensor.old_shape)),
                    "new shape": "x".join(map(str, tensor.new_shape)),
                    "method": tensor.method,
                }
                for tensor in report.resampled
            ]
        )
        print(report.response)
    else:
        print("nothing resampled, all weights as they were")
    said = ", ".join(f"{name} {value}" for name, value in describe(new).items() if name != "version")
    print(f"{source} -> {output}: {said}", file=sys.stderr)
