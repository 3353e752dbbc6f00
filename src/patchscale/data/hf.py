"""Hugging Face `datasets`: a folder written by `save_to_disk`, or parquet files. No torch of our own.

Columns are found by their type (one of images, one of classes or whole numbers) or named. Pictures are decoded here, as
those of folders are, not by the library.
"""

import io
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchscale.data.decoding import decode_rgb
from patchscale.data.shard_index import part_of
from patchscale.errors import UserError

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class TableList:
    """Pictures of one part or split: rows of a table that is read from disk when asked."""

    def __init__(
        self, rows: Any, column: str, part: str, labels: NDArray[np.int64], indices: NDArray[np.int64]
    ) -> None:
        self.rows = rows
        """The table with the column of pictures alone, undecoded."""
        self.column = column
        self.part = part
        self.labels = labels
        self.indices = indices
        """Row of each picture, [N]."""

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """Part and row of a picture."""
        return f"{self.part}[{self.indices[index]}]"

    def content(self, index: int) -> bytes:
        """The file of a picture; raises `UserError` that names its row if the table has none."""
        cell = self.rows[int(self.indices[index])][self.column] or {}
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        try:
            return Path(cell["path"]).read_bytes()
        except (KeyError, TypeError, OSError) as error:
            words = error.strerror if isinstance(error, OSError) else "empty"
            raise UserError(f"{self.name(index)}: the table has no picture here ({words}); remove the row") from None

    def picture(self, index: int) -> Image.Image:
        """A picture, decoded to 8-bit RGB; raises `UserError` that names its row."""
        return decode_rgb(io.BytesIO(self.content(index)), self.name(index))

    def take(self, indices: NDArray[np.int64]) -> "TableList":
        """The pictures at these places."""
        return TableList(self.rows, self.column, self.part, self.labels[indices], self.indices[indices])

    def lines(self) -> Iterator[str]:
        """One line per picture."""
        for index, label in zip(self.indices.tolist(), self.labels.tolist(), strict=True):
            yield f"{self.part} {index} {label}"


def list_hf_dataset(
    root: Path, *, image_column: str | None = None, label_column: str | None = None
) -> tuple[dict[str, TableList], list[str]]:
    """Parts (train and, if there, val and test) and class names.

    Raises `UserError` for what is no such data set, and for columns that are missing or cannot be told.
    """
    if find_spec("datasets") is None:
        raise UserError("data.name=hf_dataset needs the library: pip install 'patchscale[data]'")
    from datasets import Image as ImageFeature

    tables = _tables(root)
    parts, class_names = {}, None
    for part, table in tables.items():
        where = f"{root}, {part}"
        image = image_column or _only_column(table, where, "image_column", "Image")
        label = label_column or _only_column(table, where, "label_column", "ClassLabel", "Value")
        for column, field in ((image, "image_column"), (label, "label_column")):
            if column not in table.column_names:
                there = ", ".join(table.column_names)
                raise UserError(f"{where}: no column {column!r} for data.{field}; there are {there}")
        names = getattr(table.features[label], "names", None)
        labels = _labels(table, label, where)
        if part == "train":
            class_names = names or [str(number) for number in range(int(labels.max(initial=-1)) + 1)]
        elif names is not None and class_names is not None and names != class_names:
            raise UserError(f"{where}: classes differ from those of train; they must be the same, in the same order")
        assert class_names is not None  # train comes first
        if not len(labels) or labels.min() < 0 or labels.max() >= len(class_names):
            value = "none" if not len(labels) else labels.min() if labels.min() < 0 else labels.max()
            raise UserError(f"{where}: label {value} in column {label!r}; classes are 0 to {len(class_names) - 1}")
        try:
            rows = table.select_columns([image]).cast_column(image, ImageFeature(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(f"{where}: column {image!r} holds no pictures ({error}); name another") from None
        parts[part] = TableList(rows, image, part, labels, np.arange(len(labels), dtype=np.int64))
    assert class_names is not None
    if len(class_names) < 2:
        raise UserError(f"{root}: only one class; classification needs two or more")
    return parts, class_names


def _tables(root: Path) -> dict[str, Any]:
    """The tables of a data set by part, train first."""
    from datasets import Dataset, DatasetDict, load_from_disk

    if not root.exists():
        raise UserError(f"{root}: no such folder; data.root must name one of save_to_disk, or parquet files")
    if root.is_dir() and any((root / name).exists() for name in ("dataset_dict.json", "state.json")):
        try:
            loaded = load_from_disk(str(root))
        except Exception as error:
            words = " ".join(str(error).split())
            raise UserError(f"{root}: cannot be loaded ({words}); write it again with save_to_disk") from error
        by_name: dict[str, Any] = dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}
    else:
        files = [root] if root.is_file() else sorted(root.rglob("*.parquet"))
        if not files or any(file.suffix != ".parquet" for file in files):
            raise UserError(f"{root}: neither a folder of save_to_disk nor parquet files; data.root must name one")
        grouped: dict[str, list[str]] = {}
        for file in files:
            grouped.setdefault(_part_of_file(file, root), []).append(str(file))
        try:
            by_name = {part: Dataset.from_parquet(paths) for part, paths in grouped.items()}
        except Exception as error:
            words = " ".join(str(error.__cause__ or error).split())
            raise UserError(f"{root}: parquet files that cannot be loaded ({words}); bring them here again") from error
    tables: dict[str, Any] = {}
    for name, table in by_name.items():
        part = SPLIT_NAMES.get(name.lower())
        if part is None or part in tables:
            raise UserError(f"{root}: split {name!r}; expected train and, if there are any, validation and test")
        tables[part] = table
    if "train" not in tables:
        raise UserError(f"{root}: there is no train split in it, only {', '.join(by_name)}")
    return {part: tables[part] for part in ("train", "val", "test") if part in tables}


def _part_of_file(file: Path, root: Path) -> str:
    """train-00000-of-00005.parquet, or a folder of that name; files that say nothing are of train."""
    folders = file.relative_to(root).parts[:-1] if root.is_dir() else ()
    return part_of(file.name) or next((part for folder in folders if (part := part_of(folder))), "train")


def _only_column(table: Any, where: str, field: str, *types: str) -> str:
    """The one column of the first of these types that occurs at all."""
    for kind in types:
        found = [
            name
            for name, feature in table.features.items()
            if type(feature).__name__ == kind and (kind != "Value" or re.match(r"u?int\d+$", feature.dtype))
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{where}: several columns could be meant: {', '.join(found)}; name one with data.{field}")
    raise UserError(
        f"{where}: no column of type {' or '.join(types)}; there are {', '.join(table.column_names)}; "
        f"name one with data.{field}"
    )


def _labels(table: Any, column: str, where: str) -> NDArray[np.int64]:
    try:
        return np.array(table.with_format("numpy")[column][:], dtype=np.int64)
    except (TypeError, ValueError):
        raise UserError(f"{where}: column {column!r} holds no classes (whole numbers); name another") from None
