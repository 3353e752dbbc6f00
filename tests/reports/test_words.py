import numpy as np
import pandas as pd
import pytest

from patchscale.reports import words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.81504, "0.8150"),
        (12.3456, "12.35"),
        (0.00612, "0.006120"),
        (-1.5, "−1.500"),
        (0, "0"),
        (3.2e-7, "3.20×10⁻⁷"),
        (5.1e12, "5.10×10¹²"),
        (float("inf"), "∞"),
        (None, "–"),
        (pd.NA, "–"),
    ],
)
def test_number(value, text):
    assert words.number(value) == text


def test_scientific():
    assert words.scientific(1.234e15) == "1.23×10¹⁵"
    assert words.scientific(1e12, digits=0) == "10¹²"
    assert words.scientific(3e12, digits=0) == "3×10¹²"


def test_percent_and_integer():
    assert words.percent(0.8153, 2) == "81.53 %"
    assert words.percent(-0.031) == "−3.1 %"
    assert words.integer(50176) == "50\u202f176"


def test_duration():
    assert words.duration(9.96) == "10.0 s"
    assert words.duration(61) == "1 min 01 s"
    assert words.duration(3 * 3600 + 120) == "3 h 02 min"


def test_size_bytes():
    assert words.size_bytes(512) == "512 B"
    assert words.size_bytes(192 * 2**20) == "192 MiB"
    assert words.size_bytes(1.5 * 2**30) == "1.5 GiB"


def test_plain():
    assert words.plain(16.0) == "16"
    assert words.plain(3.9) == "3.9"
    assert words.plain(np.nan) == "–"
    assert words.plain("32x48") == "32x48"


def test_listed_and_plural():
    assert words.listed(["a", "b", "c"]) == "a, b and c"
    assert words.listed(["a"]) == "a"
    assert words.listed([]) == ""
    assert words.plural(1, "run") == "1 run"
    assert words.plural(2, "curve") == "2 curves"
