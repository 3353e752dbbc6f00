"""The text of the page: the answer, what went wrong, every run, nothing unescaped, nothing from outside."""

import base64
import io
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from patchscale.laws.fit import fit_curves
from patchscale.reports.answer import farthest_from_law, law_sentences, lede, next_size, verdict
from patchscale.reports.curves import collect_curves
from patchscale.reports.html import formula_html, render_report, runs_csv, write_report
from patchscale.reports.tables import runs_table


class Page(HTMLParser):
    """Elements with their attributes, and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(study):
    return Page(render_report(*study, title="A faulty study", provenance={"command": "patchscale report runs/faulty"}))


def test_the_answer_is_at_the_top(page):
    assert page.text.index("Finer patches helped at every step on 1 of 2 curves") < page.text.index("Read this first")
    assert "adventurer_nano, 48 px : at 2 px, outside the measured range, the law puts the test loss at" in page.text
    assert "This law is firm: no check warned." in page.text


def test_the_size_that_breaks_the_trend_is_named(page):
    assert "Patch sizes that break the trend" in page.text
    assert re.search(
        r"vit_nano, 48 px: test loss at 6 px is 0\.8\d+, at 8 px 0\.8\d+, a difference larger than", page.text
    )


def test_a_curve_off_its_law_is_named_with_the_size(page):
    assert re.search(r"farthest off is patch 6 px, \d\.\d % above it", page.text)


def test_runs_without_a_result_are_named_with_their_failure(page):
    assert "2 of 36 runs without a result: 1 interrupted and 1 failed" in page.text
    assert "adventurer_nano, 48 px, patch 4, seed 2: failed (out_of_memory): no room left" in page.text
    assert "vit_nano, 48 px, patch 4, seed 1: interrupted" in page.text


def test_finished_rows_left_out_are_told_with_the_reason(page):
    assert "vit_nano, 48 px: 1 row at patch 8 left out, no test_loss" in page.text


def test_every_run_is_in_the_table(study):
    text = render_report(*study, title="t")
    table = text[text.index('id="runs-table"') :]
    assert table[: table.index("</table>")].count("<tr>") == len(study[0]) + 1


def test_the_page_holds_its_csv(page, study):
    links = {link["download"]: link["href"] for link in page.all("a") if "download" in link}
    assert set(links) == {
        "runs.csv", "loss-by-patch-size-1.csv", "metric-by-patch-size-1.csv", "loss-by-price-1.csv",
    }  # fmt: skip
    text = base64.b64decode(links["runs.csv"].partition("base64,")[2]).decode()
    runs = pd.read_csv(io.StringIO(text))
    assert list(runs["test_loss"].dropna()) == pytest.approx(list(study[0]["test_loss"].dropna()))
    assert "path" not in runs
    assert "/home/someone" not in text


def test_nothing_of_this_machine_leaks(study):
    assert "/home/someone" not in render_report(*study, title="t")


def test_the_policy_forbids_network_and_script(page):
    (policy,) = [meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy["content"]
    assert "script" not in policy["content"]
    assert not page.all("script")
    assert not page.all("link")
    assert all(link["href"].startswith(("#", "data:", "https://arxiv.org/")) for link in page.all("a"))
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_ids_are_unique_and_labels_lead_to_them(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes} <= set(
        ids
    )


def test_parameters_checks_and_holdout_are_tables(page, study):
    captions = [box["aria-label"] for box in page.all("div") if box.get("role") == "region"]
    assert captions[0] == "What a finer patch buys, by curve"
    for caption in ("Parameters of the laws", "Leaving the finest patch out", "Named checks by curve", "All runs"):
        assert caption in captions
    for fit in study[1]:
        assert f"{fit.parameters['alpha'].value:.3g}" in page.text
    for code in ("weak-exponent", "lack-of-fit", "holdout"):
        assert code in page.text


def test_conventions_provenance_and_citation(page):
    for words in (
        "2 × multiply-accumulates",
        "plain cross-entropy on the test split",
        "without head and position table",
        "patchscale report runs/faulty",
        "torch 2.15.0",
        "2502.03738",
    ):
        assert words in page.text


HOSTILE = "<script>alert('x')</script>"


def test_everything_from_the_table_is_escaped(study):
    table = study[0].assign(model=HOSTILE + '"&', device=HOSTILE, study=HOSTILE, message=HOSTILE, recipe="{{ 7 * 6 }}")
    table = table.drop_duplicates(["patch_size", "seed"])
    text = render_report(table, fit_curves(table), title=HOSTILE, provenance={HOSTILE: HOSTILE})
    page = Page(text)
    assert "<script" not in text.lower()
    assert not page.all("script")
    assert page.text.count("alert('x')") > 10
    assert "{{ 7 * 6 }}" in page.text


def test_no_law_says_why():
    table = pd.DataFrame({"model": "vit_nano", "img_size": 48, "patch_size": [24, 12, 6], "test_loss": [1.2, 1.0, 0.9]})
    page = Page(render_report(table, fit_curves(table), title="Too few"))
    assert "Finer patches helped at every step: the test loss goes from 1.200 at 24 px to 0.9000 at 6 px." in page.text
    assert "No law could be fitted" in page.text
    assert "Curves without a law" in page.text
    assert "vit_nano, 48 px: 3 distinct patch_size (24, 12, 6); form 'patch' needs at least 4" in page.text
    assert len(page.all("svg")) == 1


def test_only_failures():
    table = pd.DataFrame(
        {"model": "vit_nano", "patch_size": [8, 4], "status": ["failed", "queued"], "test_loss": None, "metric": None}
    )
    page = Page(render_report(table, fit_curves(table), title="Nothing yet"))
    assert "No finished run has a test loss yet, so there is nothing to compare." in page.text
    assert "There is nothing to draw yet" in page.text
    assert "2 of 2 runs without a result: 1 failed and 1 queued" in page.text


def test_an_unreadable_run_is_named():
    table = pd.DataFrame(
        {
            "run_id": ["good", "broken"],
            "model": ["vit_nano", None],
            "patch_size": [8.0, None],
            "test_loss": [1.0, None],
            "status": ["done", "unreadable"],
            "message": [None, "result.json: not valid JSON"],
        }
    )
    page = Page(render_report(table, [], title="t"))
    assert "broken: unreadable: result.json: not valid JSON" in page.text


def test_one_model_one_seed_classification(founding):
    table, _ = founding
    table = table[table["panel"] == "c"]
    page = Page(render_report(table, fit_curves(table), title="One curve"))
    assert "Finer patches helped at every step: the test loss goes from 0.7184 at 16 px to 0.6355 at 1 px." in page.text
    assert "at 1 px, the finest patch there is, the law puts the test loss at 0.636" in page.text
    assert "Known limits of this table" in page.text
    assert "no row has training FLOPs or a wall time" in page.text


def test_several_tasks_and_sizes(founding):
    page = Page(render_report(*founding, title="Three curves"))
    assert "Finer patches helped at every step on all 3 curves" in page.text
    assert len(page.all("svg")) == 3


def test_errors_are_told_in_per_cent(imagenet):
    page = Page(render_report(*imagenet, title="Accuracies"))
    assert "error (1 − top1), measured" in page.text
    assert "31.80 % → 18.70 %" in page.text
    assert "DeiT-Base, 224 px: 2 distinct patch_size (16, 8)" in page.text


def test_a_law_that_failed_a_check_is_not_sold():
    table = pd.DataFrame({"patch_size": [16, 8, 4, 2, 1], "test_loss": [0.80, 0.82, 0.85, 0.91, 0.97]})
    fits = fit_curves(table)
    assert verdict(fits[0]) == "unusable"
    page = Page(render_report(table, fits, title="Upside down"))
    assert "They did not help: the test loss goes from 0.8000 at 16 px to 0.9700 at 1 px." in page.text
    assert "Laws that must not be used" in page.text


def test_many_laws_are_summed_up():
    rows = [
        {
            "model": f"model {model}",
            "patch_size": patch,
            "test_loss": 0.5 + 0.02 * (1 + model) * patch ** (0.8 + model / 9),
        }
        for model in range(4)
        for patch in (16, 8, 4, 2)
    ]
    curves = collect_curves(pd.DataFrame(rows), fit_curves(pd.DataFrame(rows)))
    told = " ".join(lede(curves, "loss"))
    assert "all 4 curves" in told
    assert re.search(r"predicted to take \d+\.\d to \d+\.\d % off the test loss", told)
    assert law_sentences(curves, "loss") == []


def test_the_next_patch_divides_the_image():
    def curve(sizes, img_size):
        table = pd.DataFrame({"patch_size": sizes, "test_loss": 1.0, "img_size": img_size})
        return collect_curves(table)[0]

    assert next_size(curve([8, 4], 48), "loss") == 2
    assert next_size(curve([14, 7], 28), "loss") == 4
    assert next_size(curve([2, 1], 28), "loss") is None
    assert next_size(curve([9, 3], None), "loss") is None
    assert next_size(curve([16, 8], "32x48"), "loss") == 4


def test_the_farthest_size_is_found(study):
    size, miss = farthest_from_law(study[1][0])
    assert size == 6
    assert 0.05 < miss < 0.12


def test_formula():
    assert formula_html("y = E + A * p^alpha") == "<i>y</i> = <i>E</i> + <i>A</i> · <i>p</i><sup>α</sup>"
    assert formula_html("a < b") == "<i>a</i> &lt; <i>b</i>"


def test_csv_keeps_nested_values_readable(study):
    assert '"{""patchscale"": ""0.1.0"", ""torch"": ""2.15.0""}"' in runs_csv(study[0])


def test_the_file_is_written_whole_or_not_at_all(study, tmp_path, monkeypatch):
    path = write_report(*study, tmp_path / "new" / "report.html", title="t")
    before = path.read_text(encoding="utf-8")
    assert before.endswith("</html>")

    class Broken(str):
        __slots__ = ()

        def __str__(self):
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        write_report(*study, path, title="t", provenance={"a": Broken()})
    assert path.read_text(encoding="utf-8") == before
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_runs_are_listed_curve_by_curve_from_coarse_to_fine(study):
    shuffled = study[0].sample(frac=1, random_state=0)
    table, same = runs_table(shuffled)
    names = [heading for heading, _ in table.headings]
    patches = [row[names.index("patch, px")].text for row in table.rows]
    assert patches[:18] == [str(size) for size in (24, 16, 12, 8, 6, 4) for _ in range(3)]
    assert len({row[0].text for row in table.rows[:18]}) == 1
    assert ("recipe", "scenes-segmentation") in same


def test_a_metric_that_disagrees_with_the_loss_is_named():
    runs = pd.DataFrame(
        {
            "model": "vit_nano",
            "patch_size": [16, 8, 4, 2],
            "test_loss": [1.0, 0.9, 0.8, 0.7],
            "metric": [0.5, 0.6, 0.55, 0.7],
            "metric_name": "top1",
        }
    )
    said = " ".join(lede(collect_curves(runs), "loss"))
    assert said.startswith("Finer patches helped at every step")
    assert "The error (1 − top1) got worse at a finer patch on" in said
    assert "at 4 px." in said


def test_a_gain_within_the_interval_is_not_promised():
    runs = pd.DataFrame(
        {"model": "vit_nano", "patch_size": [24, 16, 12, 8, 6], "test_loss": [0.913, 0.674, 0.618, 0.549, 0.530]}
    )
    ((_, sentence),) = law_sentences(collect_curves(runs, fit_curves(runs)), "loss")
    assert "against 0.5300 measured at 6 px" in sentence
    assert "a gain is likely but not certain" in sentence or "no further gain is predicted" in sentence
