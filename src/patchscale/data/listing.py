"""What every data set of picture files is, once listed: names, classes, and pictures by number. No torch."""

from collections.abc import Iterator
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class PictureList(Protocol):
    """The pictures of one part or split; in a folder, in shards, or in a table."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each picture, [N]."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Where a picture is, in the words of error messages."""
        ...

    def content(self, index: int) -> bytes:
        """The file of a picture, as it is stored."""
        ...

    def picture(self, index: int) -> Image.Image:
        """A picture, decoded to 8-bit RGB; raises `UserError` that names it."""
        ...

    def take(self, indices: NDArray[np.int64]) -> Self:
        """The pictures at these places."""
        ...

    def lines(self) -> Iterator[str]:
        """One line per picture, for the fingerprint; the same wherever the data set lies."""
        ...
