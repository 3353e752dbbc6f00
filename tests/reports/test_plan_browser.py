"""The page of a plan in a real browser, offline: the frontier follows the budget, by pointer and by keyboard."""

import pandas as pd
import pytest
from tests.reports.conftest import BUDGETS, CONTRASTS, plain_plan

from patchscale.planner.compute_curve import ComputeCurve
from patchscale.planner.plan import plan
from patchscale.planner.schedule import schedule
from patchscale.reports.plan_page import write_plan_page
from patchscale.reports.plan_walk import choice, chosen_at, walk
from patchscale.reports.schedule_page import write_schedule_page

NUMBERS = pd.DataFrame(
    {"size": sorted([*(1.2345 * 10.0**power for power in range(-6, 9)), 9.996, 999.6, 5000, 123456])}
)
"""Of every length that is written in its own way."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory, planned, adventurer_fit, priced):
    folder = tmp_path_factory.mktemp("plans")
    made = {
        "four": planned,
        "one": plan(adventurer_fit, priced, budgets={"train_gpu_hours": 1e6}),
        "plain": plain_plan(),
        "numbers": plan(lambda rows: 1 / rows["size"], NUMBERS, budgets={"size": 2e8}),
    }
    written = {name: write_plan_page(each, folder / f"{name}.html") for name, each in made.items()}
    curves = [
        ComputeCurve(patch_size=16, a=1e6, b=0.4, c=0.3, d=1e15),
        ComputeCurve(patch_size=8, a=3e6, b=0.42, c=0.2, d=4e15),
    ]
    made_schedule = schedule(curves, flops=1e18)
    return written | {"schedule": write_schedule_page(made_schedule, curves, folder / "schedule.html")}


def text(page, selector):
    return page.locator(selector).text_content()


def middle(page, selector):
    box = page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def data(page):
    return page.evaluate("JSON.parse(document.getElementById('plan-data').textContent).figures")


def budget_at(figure, position):
    """What the slider means: from the cheapest configuration to the end of the axis, evenly in the logarithm."""
    lowest, highest = figure["rows"][0]["price"], figure["axis"]["high"]
    return lowest * (highest / lowest) ** (position / 400)


@pytest.mark.parametrize("index", range(len(BUDGETS)), ids=list(BUDGETS))
def test_sentence_row_and_drawing_follow_the_slider(visit, planned, index):
    name, figure_id = list(BUDGETS)[index], f"frontier-{index + 1}"
    page = visit("four")
    if index:
        page.select_option("#which-price", name)
    figure, stops = data(page)[index], walk(planned, name)
    assert text(page, f"#{figure_id}-choice") == choice(stops, name, BUDGETS[name])
    seen = set()
    for position in (0, 37, 111, 160, 222, 301, 350, 400):
        page.locator(f"#{figure_id}-slider").fill(str(position))
        budget = budget_at(figure, position)
        place = chosen_at(stops, budget)
        seen.add(place)
        said = choice(stops, name, budget)
        assert text(page, f"#{figure_id}-choice") == said
        assert said.startswith(f"Within {text(page, f'#{figure_id}-value')} the law expects")
        spoken = page.locator(f"#{figure_id}-slider").get_attribute("aria-valuetext")
        assert spoken == text(page, f"#{figure_id}-value")
        chosen = page.locator(f"#{figure_id}-table tbody tr.chosen")
        assert chosen.count() == 1
        assert chosen.evaluate("row => row.sectionRowIndex") == place
        assert middle(page, f"#{figure_id}-chosen") == pytest.approx(middle(page, f"#{figure_id}-point-{place}"))
        line = middle(page, f"#{figure_id}-budget line")[0]
        assert line >= middle(page, f"#{figure_id}-point-{place}")[0] - 0.5
        if place + 1 < len(stops):
            assert line <= middle(page, f"#{figure_id}-point-{place + 1}")[0] + 0.5
        assert page.locator(f"#{figure_id} .beyond").count() == len(stops) - place - 1
    assert len(seen) > 5
    page.locator(f"#{figure_id}-reset").click()
    assert text(page, f"#{figure_id}-choice") == choice(stops, name, BUDGETS[name])


def test_points_are_read_and_chosen_by_keyboard(visit, planned):
    page = visit("four")
    stops = walk(planned, "train_gpu_hours")
    start = chosen_at(stops, 300)
    page.locator("#frontier-1-reset").focus()
    page.keyboard.press("Tab")  # one stop for all points: the chosen one
    focused = "document.activeElement.id"
    assert page.evaluate(focused) == f"frontier-1-point-{start}"
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == f"frontier-1-point-{start + 1}"
    label = page.locator(f"#frontier-1-point-{start + 1}").get_attribute("aria-label")
    assert label.replace("\u00a0", " ") == stops[start + 1].label
    assert text(page, "#frontier-1-readout") == label
    assert text(page, "#frontier-1-choice") == choice(stops, "train_gpu_hours", 300)  # not chosen yet
    page.keyboard.press("Enter")
    assert text(page, "#frontier-1-choice") == choice(stops, "train_gpu_hours", stops[start + 1].price)
    assert page.locator(f"#frontier-1-point-{start + 1}").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Home")
    assert page.evaluate(focused) == "frontier-1-point-0"
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(focused) == "frontier-1-point-0"
    page.keyboard.press("End")
    assert page.evaluate(focused) == f"frontier-1-point-{len(stops) - 1}"
    assert page.locator("#frontier-1 [tabindex='0']").count() == 1


def test_points_are_read_and_chosen_by_pointer(visit, planned):
    page = visit("four")
    stops = walk(planned, "train_gpu_hours")
    place = next(i for i in range(3, len(stops) - 3) if stops[i + 1].price > 1.4 * stops[i].price)
    page.locator(f"#frontier-1-point-{place}").scroll_into_view_if_needed()
    x, y = middle(page, f"#frontier-1-point-{place}")
    page.mouse.move(x + 1, y + 3)
    assert text(page, "#frontier-1-readout").replace("\u00a0", " ") == stops[place].label
    page.mouse.click(x + 1, y + 3)
    assert text(page, "#frontier-1-choice") == choice(stops, "train_gpu_hours", stops[place].price)


def test_the_script_writes_numbers_as_the_planner_does(visit):
    page = visit("numbers")
    stops = walk(plan(lambda rows: 1 / rows["size"], NUMBERS, budgets={"size": 2e8}), "size")
    assert len(stops) == len(NUMBERS)
    for place, stop in enumerate(stops):
        page.locator(f"#frontier-1-point-{place}").press("Enter")
        assert text(page, "#frontier-1-choice") == choice(stops, "size", stop.price)


def test_the_slider_is_moved_by_keys(visit):
    page = visit("four")
    slider = page.get_by_label("Budget: GPU-hours of training")
    before = text(page, "#frontier-1-value")
    slider.focus()
    for _ in range(60):
        page.keyboard.press("ArrowLeft")
    assert text(page, "#frontier-1-value") != before
    assert page.locator("#frontier-1 .beyond").count() > 0


def test_one_price_at_a_time(visit):
    page = visit("four")
    assert page.locator(".block:visible").count() == 1
    page.get_by_label("Price across:").select_option("latency_s")
    assert page.locator(".block:visible").count() == 1
    assert page.locator("#frontier-2-block").is_visible()
    assert page.locator("#how-to-walk").is_visible()
    assert visit("one").locator("#which-price").count() == 0


def test_a_budget_beyond_everything(visit):
    page = visit("one")
    assert page.locator("#frontier-1 .beyond").count() == 0
    assert text(page, "#frontier-1-value") == "1,000,000 GPU-hours of training"
    right = page.locator("#frontier-1").bounding_box()
    assert middle(page, "#frontier-1-budget line")[0] <= right["x"] + right["width"]


def test_without_a_script(visit, planned):
    page = visit("four", script=False)
    assert page.locator("figure svg:visible").count() == len(BUDGETS)
    assert page.locator("input:visible, select:visible, button:visible, #how-to-walk:visible").count() == 0
    for index, (name, budget) in enumerate(BUDGETS.items(), 1):
        assert text(page, f"#frontier-{index}-choice") == choice(walk(planned, name), name, budget)
        assert page.locator(f"#frontier-{index}-table tbody tr").count() == len(walk(planned, name))


def test_a_plain_function_with_prices_from_zero(visit):
    page = visit("plain")
    assert page.title() == "The best configuration within 4 hours"
    assert text(page, "#frontier-1-choice").startswith("Within 4 hours the law expects most of <img src=x")
    page.locator("#frontier-1-slider").fill("0")
    assert "the law expects most of a: value 9." in text(page, "#frontier-1-choice")
    assert "NaN" not in page.locator("body").inner_text()


@pytest.mark.parametrize("name", ["four", "one", "plain"])
@pytest.mark.parametrize("width", [400, 768, 1200])
def test_the_page_does_not_overflow(visit, name, width):
    page = visit(name, width=width)
    wide, window = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_is_legible(visit, dark):
    page = visit("four", dark=dark)
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert background == ("rgb(20, 22, 26)" if dark else "rgb(255, 255, 255)")
    found = page.evaluate(CONTRASTS)
    assert len(found) > 100
    assert found[0][0] >= 4.5, found[:3]


def test_numbers_can_be_downloaded(visit, planned):
    page = visit("four")
    with page.expect_download() as waiting:
        page.locator("#frontier-1-block a.download").click()
    assert waiting.value.suggested_filename == "frontier-train_gpu_hours.csv"
    assert len(pd.read_csv(waiting.value.path())) == len(walk(planned, "train_gpu_hours"))


def test_no_other_script_runs(browser, pages):
    context = browser.new_context()
    page = context.new_page()
    refused = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(pages["four"].as_uri())
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'top.x = 2'}))")
    assert page.evaluate("window.x") is None
    assert any("Content Security Policy" in one for one in refused)
    context.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_the_page_of_a_schedule_fits_and_is_legible(visit, width, dark):
    page = visit("schedule", width=width, dark=dark)
    assert page.locator("#stages-table tbody tr").count() == 2
    assert page.locator("#curves-table tbody tr").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = page.evaluate(CONTRASTS)
    assert contrasts[0][0] >= 4.5, contrasts[:3]
