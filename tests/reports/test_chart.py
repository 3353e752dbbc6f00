"""What is drawn is what the frame says; the SVG is deterministic, its ids are unique, names cannot break it."""

import itertools
import re
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from patchscale.errors import UserError
from patchscale.reports.chart import Axis, Chart, Series, point_id
from patchscale.reports.draw import decade_ticks, spread, tick_labels, y_limits
from patchscale.reports.figures import report_charts
from patchscale.reports.palette import LIGHT, MARKERS, Style
from patchscale.reports.svg import SVG


@pytest.fixture(scope="module")
def charts(study):
    return report_charts(*study)


def artists(chart):
    return {artist.get_gid(): artist for artist in chart.figure().findobj() if artist.get_gid()}


def small_chart(label="a", values=(1.0, 0.9), *, low=(0.9, 0.8), high=(1.1, 1.0)):
    points = pd.DataFrame({"series": label, "patch_size": [8, 4], "test_loss": values, "used": True})
    curve = pd.DataFrame(
        {"series": label, "kind": "law", "patch_size": [8.0, 4.0], "test_loss": values, "low": low, "high": high}
    )
    return Chart(
        name="small",
        title=f"Title of {label}",
        caption="Caption.",
        description="Description.",
        x=Axis(column="patch_size", label="patch size", scale="finer", ticks=((8.0, "8"), (4.0, "4"))),
        y=Axis(column="test_loss", label="Test loss"),
        series=(Series(label=label, style=Style("#353dbb", "o", "solid")),),
        points=points.assign(breaks_trend=False, tooltip=f"tooltip of {label}"),
        curves=curve,
    )


def test_the_frame_holds_what_is_drawn(charts):
    for chart in charts:
        drawn, frame = artists(chart), chart.frame()
        x, y = chart.x.column, chart.y.column
        for index, series in enumerate(chart.series):
            mine = frame[frame["series"] == series.label]
            runs = mine[mine["kind"] == "run"]
            points = [drawn[point_id(index, place)].get_xydata()[0] for place in range(len(runs))]
            np.testing.assert_array_equal(sorted(map(tuple, points)), sorted(zip(runs[x], runs[y], strict=True)))
            for kind in ("law", "mean"):
                curve = mine[mine["kind"] == kind]
                if len(curve):
                    line = drawn[f"{kind}-{index}"].get_xydata()
                    np.testing.assert_array_equal(np.sort(line, axis=0), np.sort(curve[[x, y]].to_numpy(float), axis=0))
            law = mine[mine["kind"] == "law"]
            if len(law):
                (path,) = drawn[f"band-{index}"].get_paths()
                heights = set(path.vertices[:, 1])
                assert set(law["low"]) <= heights
                assert set(law["high"]) <= heights


def test_a_point_per_run_with_a_value(charts, study):
    table, _ = study
    losses = next(chart for chart in charts if chart.name == "loss-by-patch-size-1")
    assert (losses.frame()["kind"] == "run").sum() == table["test_loss"].notna().sum()
    metrics = next(chart for chart in charts if chart.name == "metric-by-patch-size-1")
    assert (metrics.frame()["kind"] == "run").sum() == table["metric"].notna().sum()


@pytest.mark.parametrize("inline", [True, False], ids=["page", "file"])
def test_same_chart_same_bytes(charts, inline):
    assert charts[0].svg(inline=inline) == charts[0].svg(inline=inline)


def test_the_users_matplotlib_settings_are_set_aside_and_kept(charts):
    import matplotlib

    before = charts[0].svg()
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.hashsalt": None}):
        assert charts[0].svg() == before
        assert matplotlib.rcParams["font.size"] == 30


def test_no_state_in_pyplot(charts):
    import matplotlib.pyplot as plt

    charts[0].svg()
    assert plt.get_fignums() == []


def test_ids_are_unique_across_figures(charts):
    ids = [
        element.get("id")
        for index, chart in enumerate(charts)
        for element in ET.fromstring(chart.svg(inline=True, prefix=f"f{index}")).iter()
        if element.get("id")
    ]
    assert len(ids) == len(set(ids))


def test_references_lead_somewhere(charts):
    text = charts[0].svg(inline=True, prefix="f1")
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    used = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert used
    assert used <= ids


def test_points_have_tooltips_with_their_values(charts):
    root = ET.fromstring(charts[0].svg())
    titles = {
        element.get("id"): element.findtext(f"{{{SVG}}}title")
        for element in root.iter(f"{{{SVG}}}g")
        if element.get("id")
    }
    text = titles[f"{charts[0].name}-{point_id(0, 0)}"]
    assert text.startswith("vit_nano: test loss 1.2")
    assert "patch 24 px (4 tokens), seed 0" in text


def test_a_page_svg_uses_the_themes_colours_and_a_file_its_own(charts):
    page, file = charts[0].svg(inline=True), charts[0].svg()
    assert "var(--series-1)" in page
    assert not any(color in page for color in LIGHT.values())
    assert "var(" not in file
    assert LIGHT["series-1"] in file


def test_svg_says_what_it_shows(charts):
    root = ET.fromstring(charts[0].svg())
    assert root.get("role") == "img"
    assert "vit_nano is 1.2" in root.get("aria-label")
    assert "Date" not in charts[0].svg()


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a & b", 'say "hi"', "$x^2$", "_nolegend_", "%d", "ø"])
def test_names_are_text(name, tmp_path):
    chart = small_chart(name)
    root = ET.fromstring(chart.svg(inline=True))
    assert root.find(".//{*}script") is None
    assert any(name[:8] in (element.text or "") for element in root.iter(f"{{{SVG}}}text"))
    assert chart.save(tmp_path / "a.png").stat().st_size > 5_000


def test_save_by_extension(tmp_path, charts):
    png = charts[0].save(tmp_path / "a.PNG")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert charts[0].save(tmp_path / "new" / "a.svg").read_text(encoding="utf-8") == charts[0].svg()
    table = pd.read_csv(charts[0].save(tmp_path / "a.csv"))
    assert len(table) == len(charts[0].frame())


def test_save_refuses_other_formats(tmp_path, charts):
    with pytest.raises(UserError, match=r"\.pdf.*\.svg.*\.png"):
        charts[0].save(tmp_path / "a.pdf")
    assert list(tmp_path.iterdir()) == []


def test_an_interval_without_end_does_not_stretch_the_axis():
    low, high = y_limits(small_chart(low=(0.0, -np.inf), high=(np.inf, 5.0)))
    assert 0.8 < low < 0.9
    assert 1.0 < high < 1.1
    ET.fromstring(small_chart(low=(0.0, -np.inf), high=(np.inf, 5.0)).svg())


def test_equal_values_have_room():
    low, high = y_limits(small_chart(values=(1.0, 1.0), low=(1.0, 1.0), high=(1.0, 1.0)))
    assert low < 1 < high


def test_labels_do_not_overlap():
    wanted = [(50.0, 14.0), (51.0, 28.0), (49.0, 14.0), (0.0, 14.0), (100.0, 14.0)]
    middles = spread(wanted, 100)
    edges = sorted((middle - size / 2, middle + size / 2) for middle, (_, size) in zip(middles, wanted, strict=True))
    assert edges[0][0] >= 0
    assert edges[-1][1] <= 100
    assert all(upper <= lower + 1e-9 for (_, upper), (lower, _) in itertools.pairwise(edges))
    # the order is kept
    assert middles[1] > middles[0] > middles[2]


def test_labels_that_have_room_stay_where_they_are():
    assert spread([(20.0, 10.0), (80.0, 10.0)], 100) == [20.0, 80.0]


@pytest.mark.parametrize(("low", "high"), [(1e11, 4e12), (2e12, 3e12), (1e3, 1e15), (7.0, 7.5), (0.02, 0.9)])
def test_price_ticks(low, high):
    ticks = decade_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert len(set(tick_labels(ticks))) == len(ticks)
    assert all(low <= tick <= high for tick in ticks)


def test_markers_exist():
    from matplotlib.markers import MarkerStyle

    for marker in MARKERS:
        assert MarkerStyle(marker).is_filled(), marker


def test_letters_that_matplotlib_lacks_are_left_to_the_browser(recwarn):
    assert "模型" in small_chart("模型").svg()
    assert not recwarn
