"""The sheets that ship are what the tool makes, and small."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchscale.data.named import DEBIAN_FASHION_MNIST
from patchscale.data.scenes import PICTURES

TOOL = Path(__file__).parents[2] / "tools/make_picture_sheet.py"


def test_size_and_licence() -> None:
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) < 1.6e6
    assert "Copyright (c) 2017 Zalando SE" in (PICTURES / "LICENSE-fashion-mnist").read_text()


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
@pytest.mark.parametrize("split", ["val", "test"])
def test_the_tool_makes_the_same_pixels(split: str) -> None:
    tool = runpy.run_path(str(TOOL))
    file, which = tool["SPLITS"][split]
    pictures = tool["read_idx"](DEBIAN_FASHION_MNIST / f"{file}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    labels = tool["read_idx"](DEBIAN_FASHION_MNIST / f"{file}-labels-idx1-ubyte.gz", 8)
    with Image.open(PICTURES / f"{split}.png") as shipped:
        np.testing.assert_array_equal(np.asarray(shipped), np.asarray(tool["make_sheet"](pictures, labels, which)))
