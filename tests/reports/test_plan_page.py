"""The page of a plan: what it says follows from the plan, and it holds everything that it shows."""

import base64
import hashlib
import io
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from tests.reports.conftest import BUDGETS, plain_plan

from patchscale.planner.plan import plan
from patchscale.planner.words import describe
from patchscale.reports.page import embedded_json
from patchscale.reports.plan_figure import frame_of
from patchscale.reports.plan_page import render_plan_page, write_plan_page
from patchscale.reports.plan_walk import choice, chosen_at, frontier_of, walk

PRICES = list(BUDGETS)


class Page(HTMLParser):
    """Scripts, addresses and visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.addresses, self.tags, self.words, self.inside = [], [], [], [], []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.words)).replace("\u00a0", " ")

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside.append(tag)
        if tag == "script":
            self.scripts.append("")
        self.addresses += [value for name, value in attributes if name in ("href", "src", "action")]

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if self.inside and self.inside[-1] == "script":
            self.scripts[-1] += data
        elif "style" not in self.inside:
            self.words.append(data)

    def data(self):
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def source(planned):
    return render_plan_page(planned, title="What to train", provenance={"source": "published:x", "none": None})


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_it_says_what_the_plan_says(page, planned):
    assert str(planned) in page.text
    assert describe(planned.best, planned.axes) in page.text
    for name, limit in planned.budgets.items():
        assert choice(walk(planned, name), name, limit) in page.text
    assert "published:x" in page.text
    for value in planned.conventions.values():
        assert value in page.text
    assert "nan" not in page.text.lower().split()


def test_doubts_about_the_law_come_first(source, adventurer_fit):
    first = Page(source.partition('<h2 id="best">')[0]).text
    doubts = [check.message for check in adventurer_fit.checks if check.state in ("warn", "fail")]
    assert doubts
    for message in doubts:
        assert message in first
    assert "Read this first" not in Page(render_plan_page(plain_plan())).text


def test_it_asks_for_nothing(page, source):
    assert page.addresses
    assert all(address.startswith("data:") for address in page.addresses)
    assert set(re.findall(r"https?://[^\"' <]*", source)) == {"http://www.w3.org/2000/svg"}


def test_the_policy_allows_its_own_script_alone(page):
    policy = next(one["content"] for _, one in page.tags if one.get("http-equiv") == "Content-Security-Policy")
    assert len(page.scripts) == 2
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_all_numbers_are_in_the_page(page, planned):
    data = page.data()
    assert data["plan"] == json.loads(embedded_json(planned.to_dict()))
    assert data["plan"]["sentence"] == str(planned)
    assert [figure["price"] for figure in data["figures"]] == PRICES
    for figure in data["figures"]:
        assert [row["price"] for row in figure["rows"]] == frontier_of(planned, figure["price"])[
            figure["price"]
        ].tolist()


@pytest.mark.parametrize("name", PRICES)
def test_the_frontier_can_be_downloaded_whole(page, planned, name):
    link = next(one for tag, one in page.tags if tag == "a" and one.get("download") == f"frontier-{name}.csv")
    table = pd.read_csv(io.BytesIO(base64.b64decode(link["href"].partition("base64,")[2])))
    expected = frontier_of(planned, name)
    assert list(table.columns) == list(expected.columns)
    np.testing.assert_allclose(table[[name, "predicted"]], expected[[name, "predicted"]], rtol=1e-12)


@pytest.mark.parametrize("name", PRICES)
def test_walking_the_budget_is_planning_again(adventurer_fit, priced, planned, name):
    """At every budget the point that the page chooses is what a plan with that budget chooses."""
    stops, rows = walk(planned, name), frontier_of(planned, name)
    for budget in np.geomspace(rows[name].iloc[0], 2 * rows[name].iloc[-1], 9):
        again = plan(adventurer_fit, priced, budgets={**planned.budgets, name: float(budget)})
        place = chosen_at(stops, float(budget))
        assert rows["predicted"].iloc[place] == pytest.approx(again.best["predicted"], rel=1e-12)
        assert describe(again.best, planned.axes) in stops[place].says
        assert stops[place].price <= budget


def test_gains_and_ties_are_those_of_paired_draws(planned):
    stops, rows = walk(planned, "train_gpu_hours"), frontier_of(planned, "train_gpu_hours")
    draws = planned.quality.draws(rows)

    def interval(one, other):
        return np.quantile(draws[:, one] - draws[:, other], [0.025, 0.975], method="weibull")

    width = rows["high"] - rows["low"]
    ties = 0
    for place in range(1, len(stops)):
        low, high = interval(place - 1, place)
        assert stops[place].gain == pytest.approx(rows["predicted"].iloc[place - 1] - rows["predicted"].iloc[place])
        assert (stops[place].gain_low, stops[place].gain_high) == pytest.approx((low, high))
        cheaper = [
            other for other in range(place) if width[other] <= 2 * width[place] and np.prod(interval(other, place)) <= 0
        ]
        assert stops[place].tied_with == (cheaper[0] if cheaper else None)
        ties += bool(cheaper)
    assert 0 < ties < len(stops) - 1


def test_points_stand_where_their_values_are(source, planned):
    drawings = [ET.fromstring(text) for text in re.findall(r"<svg .*?</svg>", source, re.DOTALL)]
    assert len(drawings) == len(PRICES)
    for name, drawing in zip(PRICES, drawings, strict=True):
        rows = frontier_of(planned, name)
        points = [one for one in drawing.iter() if one.get("class", "").startswith("point")]
        across = np.array([float(point.get("cx")) for point in points])
        up = np.array([float(point.get("cy")) for point in points])
        assert np.corrcoef(across, np.log(rows[name]))[0, 1] == pytest.approx(1, abs=1e-6)
        assert np.corrcoef(up, -np.log(rows["predicted"]))[0, 1] == pytest.approx(1, abs=1e-6)
        assert ["outside" in point.get("class") for point in points] == rows["extrapolated"].tolist()
        assert ["beyond" in point.get("class") for point in points] == (~rows["within_budget"]).tolist()
        assert all(point.get("aria-label") == point[0].text for point in points)
        line = next(one for one in drawing.iter() if one.get("class") == "budget-line")
        beyond = np.array([float(line.get("x1"))] * len(rows)) < across - 0.01
        assert beyond.tolist() == (~rows["within_budget"]).tolist()


def test_tables_list_every_point_with_its_flag(source, planned):
    for index, name in enumerate(PRICES, 1):
        table = re.search(rf'<table id="frontier-{index}-table">.*?</table>', source, re.DOTALL).group()
        rows = frontier_of(planned, name)
        assert table.count("<tr>") == len(rows) + 1
        assert len(re.findall(r">outside<", table)) == rows["extrapolated"].sum()
        assert len(re.findall(r">inside<", table)) == (~rows["extrapolated"]).sum()
        assert table.count("beyond the budget") == (~rows["within_budget"]).sum()


def test_a_plain_function_has_no_intervals_and_names_are_no_markup():
    source = render_plan_page(plain_plan())
    page = Page(source)
    assert "without draws" in page.text
    assert "nan" not in page.text.lower().split()
    assert 'class="band"' not in source
    assert len(page.scripts) == 2
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert "<script>document.title = 'taken'</script>" in page.text
    rows = page.data()["figures"][0]["rows"]
    assert [row["price"] for row in rows] == [0, 2, 3, 5]
    assert [row["ends"] for row in rows] == [None] * 4


def test_json_cannot_end_its_element():
    text = embedded_json({"a": "</script><!--\u2028&", "b": float("nan"), "c": np.float64(2)})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--\u2028&", "b": None, "c": 2}


@pytest.mark.parametrize(
    ("prices", "budget", "log"), [([3.0], 3.0, True), ([3.0, 5.0], 1e9, True), ([0.0, 5.0], 4.0, False)]
)
def test_axes_of_few_points(prices, budget, log):
    values = np.linspace(0.4, 0.3, len(prices))
    rows = pd.DataFrame({"predicted": values, "low": np.nan, "high": np.inf})
    frame = frame_of(prices, rows, budget)
    assert frame.x.log is log
    places = [frame.x.place(value) for value in sorted((*prices, budget))]
    assert all(frame.x.start < place <= frame.x.end for place in places)
    assert places == sorted(places)
    heights = [frame.y.place(value) for value in values]
    assert heights == sorted(heights)
    assert frame.x.high <= 1.2 * 4 * max(prices)


def test_the_file_is_written_whole(planned, tmp_path):
    path = write_plan_page(planned, tmp_path / "new" / "plan.html")
    assert path == tmp_path / "new" / "plan.html"
    assert path.read_text(encoding="utf-8").endswith("</html>")
    assert "The best configuration within 300 GPU-hours of training, 5 ms latency" in path.read_text(encoding="utf-8")
