"""The colours keep what they promise: contrast with the background, and distance under colour blindness."""

import itertools

import numpy as np
import pytest

from patchscale.reports.palette import DARK, LIGHT, MARKERS, SERIES, assign_colors, assign_styles

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(color):
    rgb = np.array([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG 2 contrast ratio."""
    darker, lighter = sorted(float(TO_XYZ[1] @ linear(color)) for color in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


def lab(rgb):
    ratio = TO_XYZ @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast_with_the_background(theme):
    assert contrast(theme["ink"], theme["paper"]) > 12
    assert contrast(theme["muted"], theme["paper"]) > 4.5
    for name, color in theme.items():
        if name.startswith("series-"):
            assert contrast(color, theme["paper"]) >= 3, name


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_curves_can_be_told_apart(theme, vision):
    colors = [color for name, color in theme.items() if name.startswith("series-")]
    seen = [lab(np.array(VISION[vision]) @ linear(color)) for color in colors]
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)) > 30


def test_both_themes_have_the_same_names_and_no_colour_twice():
    assert list(LIGHT) == list(DARK)
    assert len(set(LIGHT.values())) == len(LIGHT)


def test_a_colour_per_model_a_marker_per_curve_a_dash_per_repeat():
    colors = assign_colors(["vit", "vit", "adventurer", "vit"])
    assert colors == [SERIES[0], SERIES[0], SERIES[1], SERIES[0]]
    styles = assign_styles(colors)
    assert len({style.marker for style in styles}) == 4
    assert len({(style.color, style.dash) for style in styles}) == 4


def test_more_curves_than_colours():
    styles = assign_styles(assign_colors([f"model {number}" for number in range(14)]))
    assert len({(style.color, style.marker, style.dash) for style in styles}) == 14
    assert len(MARKERS) == 12


def test_what_is_alike_in_two_models_has_the_same_dash():
    colors = assign_colors(["vit", "vit", "adventurer", "adventurer"])
    first, second, third, fourth = assign_styles(colors, ["upernet", "linear", "linear", "upernet"])
    assert first.dash == fourth.dash != second.dash == third.dash
    assert {style.dash for style in assign_styles(assign_colors(["vit", "adventurer"]), [128, 224])} == {"solid"}
