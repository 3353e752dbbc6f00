"""The planner finds the optima that are known in closed form, by looking at a grid that holds them to half a step."""

import numpy as np
import pandas as pd
import pytest

from patchscale.planner.plan import plan

STEP = 1.01
"""Ratio of neighbours on the grids; the optimum of a smooth law along a diagonal is then right to one step."""


def geometric(around, count=301):
    return around * STEP ** np.arange(-(count // 2), count // 2 + 1)


def grid(**axes):
    values = np.meshgrid(*axes.values(), indexing="ij")
    return pd.DataFrame({name: column.ravel() for name, column in zip(axes, values, strict=True)})


@pytest.mark.parametrize("flops", [1e19, 5.76e23])
def test_chinchilla(flops):
    """Hoffmann et al. 2022: N* = G (C/6)^(b/(a+b)), D* = (C/6)^(a/(a+b)) / G, unrounded parameters."""
    A, B, E, a, b = np.exp(6.0073404), np.exp(6.0179186), np.exp(0.5267228), 0.33917084, 0.2849083
    G = (a * A / (b * B)) ** (1 / (a + b))
    params, tokens = G * (flops / 6) ** (b / (a + b)), (flops / 6) ** (a / (a + b)) / G
    # off the optimum by a fraction of a step, so that the grid does not simply hold it
    table = grid(params=geometric(params * 1.003), train_tokens=geometric(tokens / 1.003))
    table["train_flops"] = 6 * table["params"] * table["train_tokens"]
    made = plan(
        lambda t: E + A / t["params"] ** a + B / t["train_tokens"] ** b,
        table,
        budgets={"train_flops": flops * 1.0001},
        axes=("params", "train_tokens"),
    )
    assert made.best["params"] == pytest.approx(params, rel=STEP - 1)
    assert made.best["train_tokens"] == pytest.approx(tokens, rel=STEP - 1)
    assert made.best["train_flops"] == pytest.approx(flops, rel=1e-3)  # on the constraint
    assert made.binds == ("train_flops",)


@pytest.mark.parametrize("gflops", [10.0, 1000.0])
def test_sovit(gflops):
    """arXiv 2305.13035: x* = (alpha a t^c / (beta b))^(1/(a+b)) minimises alpha x^-a + (beta x^b + xi) t^-c + eps."""
    alpha, a, beta, b, xi, c, eps = 3.0, 0.7, 0.02, 0.75, 1.5, 0.65, 0.1
    best = (alpha * a * gflops**c / (beta * b)) ** (1 / (a + b))
    table = grid(width=geometric(best * 1.002), gflops=[gflops / 4, gflops / 2, gflops, 2 * gflops])
    made = plan(
        lambda t: alpha * t["width"] ** -a + (beta * t["width"] ** b + xi) * t["gflops"] ** -c + eps,
        table,
        budgets={"gflops": gflops},
        axes=("width", "gflops"),
    )
    assert made.best["gflops"] == gflops
    assert made.best["width"] == pytest.approx(best, rel=STEP - 1)


@pytest.mark.parametrize(("alpha", "beta"), [(0.077, 0.015), (0.077, 0.06)])
@pytest.mark.parametrize("text_tokens", [50, 200])
def test_visual_tokens(alpha, beta, text_tokens):
    """arXiv 2411.03312: at a fixed cost N (Q + V), V* = Q beta / (alpha - beta) minimises N^-alpha V^-beta."""
    tokens = text_tokens * beta / (alpha - beta)
    flops = 2 * 7e9 * (text_tokens + tokens)
    visual = geometric(tokens * 1.002, 601)
    # one language model for each number of tokens, of the size that uses the budget up
    table = pd.DataFrame({"visual_tokens": visual, "llm_params": flops / (2 * (text_tokens + visual))})
    table = pd.concat([table, table.assign(llm_params=table["llm_params"] / 1.5)], ignore_index=True)
    table["infer_flops"] = 2 * table["llm_params"] * (text_tokens + table["visual_tokens"])
    made = plan(
        lambda t: 0.6 * (t["llm_params"] / 1e9) ** -alpha * t["visual_tokens"] ** -beta,
        table,
        budgets={"infer_flops": flops * (1 + 1e-12)},
        axes=("llm_params", "visual_tokens"),
    )
    assert made.best["visual_tokens"] == pytest.approx(tokens, rel=STEP - 1)


def test_visual_tokens_without_text_are_as_few_as_possible_and_as_many_where_they_matter_more():
    visual = np.array([1.0, 4, 16, 36, 64, 144, 576])
    for alpha, beta, expected in ((0.077, 0.015, 1), (0.027, 0.039, 576)):
        table = pd.DataFrame({"visual_tokens": visual, "llm_params": 1e12 / visual})
        table["infer_flops"] = 2 * table["llm_params"] * table["visual_tokens"]
        made = plan(
            lambda t, alpha=alpha, beta=beta: (t["llm_params"] / 1e9) ** -alpha * t["visual_tokens"] ** -beta,
            table,
            budgets={"infer_flops": 2e12},
            axes=("visual_tokens",),
        )
        assert made.best["visual_tokens"] == expected
