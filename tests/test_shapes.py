"""Image sizes as users give them."""

import numpy as np
import pytest

from patchscale.errors import UserError
from patchscale.shapes import format_img_size, image_height_width


@pytest.mark.parametrize("img_size", [64, (64, 64), [64, 64], np.int64(64), (np.uint8(64), 64), np.array([64, 64])])
def test_height_and_width_are_plain_integers(img_size):
    assert image_height_width(img_size) == (64, 64)
    assert all(type(side) is int for side in image_height_width(img_size))
    assert format_img_size(img_size) == 64


@pytest.mark.parametrize("img_size", [64.0, np.float64(64), "64", None, (64,), (64, 64, 3), (64, 64.5), (64, None)])
def test_what_is_no_size_is_refused(img_size):
    with pytest.raises(UserError, match=r"^img_size .*: give pixels, one side \(224\) or height and width"):
        image_height_width(img_size)
