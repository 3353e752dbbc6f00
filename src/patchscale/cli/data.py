"""`patchscale data`: data sets before they are trained on: into shards, and checked."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchscale.errors import UserError

if TYPE_CHECKING:
    from patchscale.data.check import Checked

data = typer.Typer(name="data", help="Data sets before they are trained on.", no_args_is_help=True)

Done = Callable[[int, int], None]


@data.command("shard")
def shard(
    source: Annotated[Path, typer.Argument(help="Folder of classes, as data.name=image_folder reads it.")],
    target: Annotated[Path, typer.Argument(help="Folder for the shards and their index.json.")],
    shard_mib: Annotated[float, typer.Option(help="Size of a shard in MiB.")] = 256,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Convert a folder of classes to WebDataset shards; pictures keep their bytes.

    Run again, an interrupted conversion goes on, and finished shards whose files have not changed are kept.
    """
    if not shard_mib > 0:
        raise UserError(f"--shard-mib {shard_mib:g}: a shard needs a size above 0 MiB")
    _require_pillow()
    from dataclasses import asdict

    from patchscale.cli.output import print_json
    from patchscale.data.shard_writer import write_shards

    with _progress("sharding") as done:
        written = write_shards(source.expanduser(), target.expanduser(), shard_bytes=int(shard_mib * 2**20), done=done)
    if json:
        print_json({**asdict(written), "index": str(written.index)})
        return
    print(
        f"{written.images} images of {written.classes} classes in {written.shards} shards ({written.kept} kept from "
        f"before), {written.size_bytes / 2**20:.1f} MiB\ntrain on them: patchscale train data.name=shards "
        f"data.root={target}"
    )


@data.command("check")
def check(
    root: Annotated[str, typer.Argument(help="Folder of a data set, as data.root; shards also as URLs.")],
    kind: Annotated[
        str | None,
        typer.Option(
            help="image_folder, shards, hf_dataset, mask_folder, ade20k, voc, cityscapes or coco. Default: told from "
            "what is there."
        ),
    ] = None,
    num_classes: Annotated[int | None, typer.Option(help="mask_folder: as data.num_classes.")] = None,
    num_workers: Annotated[int | None, typer.Option(help="Processes; default: one per CPU core.")] = None,
    image_column: Annotated[str | None, typer.Option(help="hf_dataset: as data.image_column.")] = None,
    label_column: Annotated[str | None, typer.Option(help="hf_dataset: as data.label_column.")] = None,
    shard_cache: Annotated[Path | None, typer.Option(help="Remote shards: as execution.shard_cache.")] = None,
    list_bad: Annotated[
        Path | None,
        typer.Option(help="Write the names of pictures that training would stop at to this file, for data.exclude."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Read and decode every picture of a data set, its label map or its objects; tell what there is, and what is wrong.

    Wrong are files that cannot be decoded, label maps and objects that training would stop at, shards that differ from
    their checksum, classes without training images (of data sets for classification), and files of the same content in
    two parts. Exit code 1 if anything is.
    """
    import os

    _require_pillow()
    from dataclasses import asdict

    from patchscale.cli.output import print_json
    from patchscale.config import ExecutionConfig
    from patchscale.data.check import KINDS
    from patchscale.data.check import check as check_data
    from patchscale.data.exclusion import write_names

    if kind is not None and kind not in KINDS:
        raise UserError(f"--kind {kind!r}: choose {', '.join(KINDS)}")
    if num_workers is not None and num_workers < 1:
        raise UserError(f"--num-workers {num_workers}: at least 1 is needed")
    if list_bad is not None and (list_bad.is_dir() or not list_bad.absolute().parent.is_dir()):
        raise UserError(f"--list-bad {list_bad}: name a file in a folder that is there")
    with _progress("checking") as done:
        checked = check_data(
            root,
            kind=kind,
            num_workers=num_workers or len(os.sched_getaffinity(0)),
            execution=ExecutionConfig(shard_cache=None if shard_cache is None else str(shard_cache)),
            image_column=image_column,
            label_column=label_column,
            num_classes=num_classes,
            done=done,
        )
    if json:
        print_json(asdict(checked))
    else:
        _print(checked)
    if list_bad is not None:
        write_names(list_bad, checked.unusable)
    if checked.wrong:
        raise typer.Exit(1)


def _print(checked: "Checked") -> None:
    from patchscale.cli.output import print_table

    sizes, content = checked.size_px, checked.size_bytes
    rows: list[dict[str, object]] = [{"what": "kind", "found": checked.kind}]
    for part, counts in checked.class_counts.items():
        present = [count for count in counts.values() if count]
        found = f"{checked.images[part]} images of {len(present)} classes"
        if present:
            found += (
                f", {min(present)} to {max(present)} {'' if checked.counted == 'images' else checked.counted + ' '}each"
            )
        rows.append({"what": part, "found": found})
    if checked.shards is not None:
        verified = "" if checked.shards_verified is None else f", {checked.shards_verified} with the right checksum"
        rows.append({"what": "shards", "found": f"{checked.shards}{verified}"})
    for name, (width, height) in sizes.items():
        rows.append({"what": f"{name} picture", "found": f"{width} x {height} px"})
    rows.append(
        {
            "what": "files",
            "found": f"{content['smallest']} to {content['largest']} bytes, median {content['median']:.0f}, "
            f"{content['total'] / 2**20:.1f} MiB in all",
        }
    )
    rows += [{"what": what, "found": number} for what, number in checked.notes.items()]
    for what, counted in (("modes", checked.modes), ("formats", checked.formats)):
        rows.append({"what": what, "found": ", ".join(f"{name} {count}" for name, count in counted.items()) or "none"})
    rows.append({"what": "duplicates within a part", "found": checked.duplicates_within_parts})
    rows.append({"what": "wrong", "found": len(checked.wrong)})
    print_table(rows)
    for line in checked.wrong:
        print(line, file=sys.stderr)


@contextmanager
def _progress(what: str) -> Iterator[Done]:
    """A bar on a terminal, a line for every tenth elsewhere."""
    if not sys.stderr.isatty():
        tenths = 0

        def tell_line(images: int, total: int) -> None:
            nonlocal tenths
            if 10 * images // max(1, total) > tenths:
                tenths = 10 * images // total
                print(f"{what}: {images} of {total} images", file=sys.stderr, flush=True)

        yield tell_line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda images, total: progress.update(bar, completed=images, total=total)


def _require_pillow() -> None:
    from importlib.util import find_spec

    if find_spec("PIL") is None:
        raise UserError("reading pictures needs Pillow: pip install 'patchscale[train]'")
