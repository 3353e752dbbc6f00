"""Tables to report on, curves of the founding paper and a study in which things went wrong; a browser."""

import shutil

import numpy as np
import pandas as pd
import pytest

from patchscale.laws.fit import fit_curves, fit_law
from patchscale.planner.plan import plan
from patchscale.planner.prices import price
from patchscale.planner.space import Space
from patchscale.published_tables.tables import published

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
CONTRASTS = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const light = text => channels(text).slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (channels(color).length === 3) return color;
    }
    return 'rgb(255, 255, 255)';
  };
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest('title')) continue;
    const style = getComputedStyle(element);
    const color = element instanceof SVGElement ? style.fill : style.color;
    const [dark, bright] = [light(color), light(ground(element))].sort((a, b) => a - b);
    found.push([(bright + 0.05) / (dark + 0.05), element.tagName, element.textContent.trim().slice(0, 40), color]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}"""
"""For a page: every text with its contrast against what is behind it, lowest first."""

SIZES = (24, 16, 12, 8, 6, 4)
LAWS = {"vit_nano": (0.62, 0.030, 0.95), "adventurer_nano": (0.58, 0.022, 1.02)}


def study_table(*, seeds=3):
    """Two segmentation curves with known faults: patch 6 of vit_nano breaks the trend, two runs have no result, and one
    finished run has no loss.
    """
    rng = np.random.default_rng(3)
    rows = []
    for model, (floor, amplitude, exponent) in LAWS.items():
        for patch_size in SIZES:
            for seed in range(seeds):
                tokens = (48 // patch_size) ** 2
                loss = floor + amplitude * patch_size**exponent + rng.normal(0, 0.006)
                loss += 0.10 if (model, patch_size) == ("vit_nano", 6) else 0
                row = {
                    "run_id": f"{model}-p{patch_size}-r48-s{seed}-0123456789",
                    "study": "faulty",
                    "status": "done",
                    "failure_kind": None,
                    "message": None,
                    "task": "segmentation",
                    "dataset": "scenes",
                    "model": model,
                    "architecture": model.partition("_")[0],
                    "img_size": 48,
                    "patch_size": patch_size,
                    "tokens": tokens,
                    "seed": seed,
                    "params_backbone": 440_000,
                    "flops_forward_per_image": 900_000 * tokens,
                    "flops_train_total": 3 * 900_000 * tokens * 16_000,
                    "train_loss": loss - 0.05,
                    "test_loss": loss,
                    "metric_name": "mIoU",
                    "metric": 0.55 - 0.4 * (loss - 0.6),
                    "wall_time_s": 10 + 0.2 * tokens,
                    "device": "cpu",
                    "recipe": "scenes-segmentation",
                    "eval_protocol": "whole scene",
                    "versions": {"torch": "2.15.0", "patchscale": "0.1.0"},
                    "path": "/home/someone/secret/runs/faulty",
                }
                nothing = dict.fromkeys(
                    ("train_loss", "test_loss", "metric", "metric_name", "wall_time_s", "eval_protocol", "versions")
                )
                if (model, patch_size, seed) == ("adventurer_nano", 4, 2):
                    row |= nothing | {"status": "failed", "failure_kind": "out_of_memory", "message": "no room left"}
                if (model, patch_size, seed) == ("vit_nano", 4, 1):
                    row |= nothing | {"status": "interrupted"}
                if (model, patch_size, seed) == ("vit_nano", 8, 2):
                    row |= {"test_loss": None}
                rows.append(row)
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def study():
    table = study_table()
    return table, fit_curves(table)


@pytest.fixture(scope="session")
def founding():
    """Panels a, c and d of Figure 1: two classification curves and one of another task."""
    table = published("patchification/test-loss")
    table = table[table["panel"].isin(["a", "c", "d"])]
    return table, fit_curves(table)


@pytest.fixture(scope="session")
def imagenet():
    """Accuracies: curves with a law, and one that has too few patch sizes."""
    table = published("patchification/imagenet")
    table = table[table["model"].isin(["DeiT-Base"])]
    return table, fit_curves(table, target="error")


@pytest.fixture(scope="session")
def adventurer_fit():
    """The joint law of the founding paper's Adventurer results."""
    table = published("patchification/imagenet").query("architecture == 'adventurer'")
    return fit_law(table, form="relative-patch", target="error", draws=200)


@pytest.fixture(scope="session")
def priced():
    """Adventurers on images of five sizes, priced."""
    space = Space(models=["adventurer_*"], img_sizes=[64, 128, 160, 224, 256], images_seen=[3e8])
    return price(space, device="a100")


BUDGETS = {"train_gpu_hours": 300, "latency_s": 0.005, "infer_flops": 2e11, "peak_memory_bytes": 30 * 2**30}


@pytest.fixture(scope="session")
def planned(adventurer_fit, priced):
    """A plan within four budgets of different units."""
    return plan(adventurer_fit, priced, budgets=BUDGETS)


def plain_plan():
    """Own columns, a plain function as the law, prices from 0, and names that are markup."""
    table = pd.DataFrame(
        {
            "model": ["a", "</script><script>document.title = 'taken'</script>", "<img src=x onerror=alert(1)>", "d"],
            "hours": [0.0, 2.0, 3.0, 5.0],
        }
    )
    return plan(lambda rows: 9 - rows["hours"], table, budgets={"hours": 4}, axes=["model"])


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; Debian package chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; pip install playwright"
    )
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield running
        running.close()


@pytest.fixture
def visit(browser, pages):
    """Open one of the module's `pages`, by name; afterwards insist that nothing was asked for, logged or thrown."""
    contexts, requests, said = [], [], []

    def open_page(name, *, width=1200, dark=False, script=True):
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            offline=True,
            java_script_enabled=script,
        )
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
        page.goto(pages[name].as_uri())
        return page

    yield open_page
    assert said == []
    assert set(requests) <= {path.as_uri() for path in pages.values()}
    for context in contexts:
        context.close()
