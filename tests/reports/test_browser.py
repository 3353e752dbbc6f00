"""The page in a real browser, offline: drawn, within the window, legible in both themes, asking for nothing."""

import re

import pandas as pd
import pytest
from tests.reports.conftest import CONTRASTS

from patchscale.laws.fit import fit_curves
from patchscale.reports.html import write_report


@pytest.fixture(scope="module")
def pages(tmp_path_factory, study, founding):
    """Pages of both tables, of a hostile one, and of one with nothing in it."""
    folder = tmp_path_factory.mktemp("reports")
    hostile = study[0].assign(model="<script>document.title = 'taken'</script>", message="<img src=x onerror=alert(1)>")
    hostile = hostile.drop_duplicates(["patch_size", "seed"])
    empty = pd.DataFrame({"model": ["vit_nano"], "patch_size": [8], "status": ["failed"], "test_loss": [None]})
    told = {
        "study": (*study, "How finely should the image be cut?"),
        "founding": (*founding, "Curves of the founding study"),
        "hostile": (hostile, fit_curves(hostile), "<b>Hostile</b>"),
        "empty": (empty, [], "Nothing yet"),
    }
    return {
        name: write_report(table, fits, folder / f"{name}.html", title=title)
        for name, (table, fits, title) in told.items()
    }


def count(page, selector):
    return page.locator(selector).count()


def test_charts_are_drawn(visit, study):
    page = visit("study")
    assert count(page, "figure svg") == 3
    for box in page.locator("figure svg").all():
        assert box.bounding_box()["width"] > 200
        assert box.bounding_box()["height"] > 120
    runs = study[0]
    assert count(page, "#figure-1 [id*='-point-']") == runs["test_loss"].notna().sum()
    assert count(page, "#figure-2 [id*='-point-']") == runs["metric"].notna().sum()
    assert count(page, "#figure-1 [id*='-band-'] path") == 2
    assert count(page, "#figure-1 [id*='-law-'] path") == 2
    assert count(page, "#figure-2 [id*='-band-']") == 0
    assert count(page, "#figure-1 [id*='-ring-']") == 3
    for gid in ("f1-band-0", "f1-law-1", "f3-mean-0"):
        assert page.locator(f"#{gid}").bounding_box()["width"] > 100


def test_markers_stand_where_their_values_are(visit, study):
    """Finer patches to the right, larger losses higher, as the browser lays them out."""
    page = visit("study")
    runs = study[0][(study[0]["model"] == "vit_nano") & study[0]["test_loss"].notna()]
    runs = runs.sort_values("patch_size", ascending=False, kind="stable")
    boxes = [page.locator(f"#f1-point-0-{place}").bounding_box() for place in range(len(runs))]
    left = pd.Series([box["x"] + box["width"] / 2 for box in boxes])
    top = pd.Series([box["y"] + box["height"] / 2 for box in boxes])
    assert left.corr(-runs["patch_size"].reset_index(drop=True), method="spearman") == pytest.approx(1)
    assert top.corr(-runs["test_loss"].reset_index(drop=True)) == pytest.approx(1, abs=1e-4)


def test_points_tell_their_values(visit):
    page = visit("study")
    title = page.locator("#f1-point-0-0 > title").text_content()
    assert re.fullmatch(r"vit_nano: test loss 1\.2\d+, patch 24 px \(4 tokens\), seed 0, .*", title)
    assert page.locator("figure svg").first.get_attribute("aria-label").startswith("Test loss against patch size.")


def test_headings(visit):
    page = visit("study")
    assert page.locator("h1").inner_text() == "How finely should the image be cut?"
    assert page.locator("h2").all_inner_texts() == [
        "Read this first", "What a finer patch buys", "Figures", "The law", "Runs", "Conventions", "Provenance",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["study", "founding", "hostile", "empty"])
@pytest.mark.parametrize("width", [400, 768, 1200])
def test_the_page_does_not_overflow(visit, name, width):
    page = visit(name, width=width)
    wide, window = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window
    # wide tables scroll inside their own box, which does not leave the page
    for box in page.locator(".scroll:visible").all():
        area = box.bounding_box()
        assert area["x"] >= 0
        assert area["x"] + area["width"] <= width + 0.5


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["study", "founding"])
def test_all_text_is_legible(visit, name, dark):
    page = visit(name, dark=dark)
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert background == ("rgb(20, 22, 26)" if dark else "rgb(255, 255, 255)")
    found = page.evaluate(CONTRASTS)
    assert len(found) > 100
    assert found[0][0] >= 4.5, found[:3]


def test_charts_follow_the_theme(visit):
    colors = [
        visit("study", dark=dark).evaluate("getComputedStyle(document.querySelector('[id$=\"law-0\"] path')).stroke")
        for dark in (False, True)
    ]
    assert colors == ["rgb(53, 61, 187)", "rgb(133, 127, 255)"]


def test_numbers_are_behind_each_figure_and_can_be_downloaded(visit, study):
    page = visit("study")
    page.locator("#figure-1 summary").click()
    assert count(page, "#figure-1 tbody tr") == study[0]["test_loss"].notna().sum()
    with page.expect_download() as waiting:
        page.locator("#figure-1 a.download").click()
    assert waiting.value.suggested_filename == "loss-by-patch-size-1.csv"
    table = pd.read_csv(waiting.value.path())
    assert set(table["kind"]) == {"run", "law"}


def test_text_of_the_table_is_no_markup(visit):
    page = visit("hostile")
    assert page.title() == "<b>Hostile</b>"
    assert count(page, "script") == 0
    assert count(page, "img") == 0
    assert "<script>document.title" in page.locator("h3").first.inner_text() + page.locator("main").inner_text()


def test_the_policy_stops_what_a_page_could_ask_for(browser, pages):
    """Even markup that got into the page could load nothing and run nothing."""
    context = browser.new_context()
    page = context.new_page()
    refused, asked = [], []
    page.on("console", lambda message: refused.append(message.text))
    page.on("requestfinished", lambda request: asked.append(request.url))
    page.goto(pages["study"].as_uri())
    page.evaluate(
        """() => {
          const image = '<img src="https://localhost/x.png" onerror="document.title = 1">';
          document.body.insertAdjacentHTML('beforeend', image);
          document.body.append(Object.assign(document.createElement('script'), {textContent: 'document.title = 2'}));
        }"""
    )
    page.wait_for_timeout(200)
    assert page.title() == "How finely should the image be cut?"
    assert any("Content Security Policy" in text for text in refused)
    assert asked == [pages["study"].as_uri()]
    context.close()


def test_print(visit, tmp_path):
    page = visit("study", dark=True)
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").stat().st_size > 20_000
