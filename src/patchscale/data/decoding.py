"""From the bytes of a picture file to 8-bit RGB, as torchvision does it, wherever the bytes are from.

Grey, palette and CMYK are converted, transparency is dropped, the EXIF orientation is ignored (a rotated photo stays as
stored). Pictures of 16 bits or floats are refused. No torch.
"""

from pathlib import Path
from typing import BinaryIO

from PIL import Image

from patchscale.errors import UserError

DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def decode_rgb(file: Path | BinaryIO, name: str) -> Image.Image:
    """Decode a picture to 8-bit RGB; raises `UserError` that names it if that cannot be done."""
    with open_picture(file, name) as picture:
        if picture.mode in DEEP_MODES:
            raise UserError(f"{name}: {picture.mode} picture of more than 8 bits; convert it to 8-bit grey or RGB")
        try:
            return picture.convert("RGB")
        except Exception as error:
            raise unreadable(name, file, error) from error


def open_picture(file: Path | BinaryIO, name: str) -> Image.Image:
    """Open a picture, its pixels not yet decoded; raises `UserError` that names it."""
    try:
        return Image.open(file)
    except Exception as error:
        raise unreadable(name, file, error) from error


def unreadable(name: str, file: Path | BinaryIO, error: Exception) -> UserError:
    """What to say of a file that cannot be decoded."""
    words = str(error) if isinstance(file, Path) else str(error).replace(f" {file!r}", "")
    words = " ".join(words.split()) or type(error).__name__
    return UserError(
        f"{name}: cannot be decoded as an image ({words}); replace it, or start anew without it: data.exclude"
    )
