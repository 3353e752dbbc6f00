"""Which law? Several forms fitted to the same rows, ranked by AICc and by predicting what they have not seen.

Two rankings, because they ask different things: AICc how well a form describes all rows for its number of parameters,
leave-one-level-out how well it predicts a whole level of one axis (every run at p = 4, say) from the others. Random
folds would leave neighbours of a row in the fit and say little about either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from patchscale.errors import UserError
from patchscale.laws.design import with_tokens
from patchscale.laws.forms import Array, Law, law_named
from patchscale.laws.joint import FitOptions, fewest_draws, fit_joint
from patchscale.laws.left_out import CARRIED, hold_out_levels
from patchscale.laws.protocols import UnlikeProtocols
from patchscale.laws.result import Fit
from patchscale.laws.table import listed, require_columns, split_usable, target_named

SHORT_LIST = (
    "relative-patch",
    "relative-patch:h=0",
    "relative-patch:C=0",
    "additive",
    "product",
    "tokens",
    "vlm",
    "vlm-additive",
    "vlm:encoder",
    "vlm-additive:encoder",
)
"""Compared when no forms are named, as far as the table has their columns."""
AICC_LEVEL = 2.0
"""Forms within so many units of the best are not told apart by AICc (Burnham & Anderson 2002, section 2.6)."""
HELD_OUT_LEVEL = 0.05
"""Forms within this share of the best hold-out are named with it."""


@dataclass(frozen=True)
class FormScore:
    """How well one form describes the rows it was fitted to."""

    form: str
    formula: str
    parameters: int
    """Amplitudes and exponents; AICc counts the variance of the noise beside them."""
    aicc: float
    rmse: float
    """Root mean square of the residuals, in points (loss: as recorded)."""


@dataclass(frozen=True)
class RefusedForm:
    """A form that the rows cannot support, and why."""

    form: str
    reason: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """Forms compared on the same rows. `str(comparison)` says which lead, and whether the rankings disagree.

    Errors are in points of the metric (100 x fraction); for the target "loss" as recorded.
    """

    scores: tuple[FormScore, ...]
    """Best AICc first."""
    holdouts: pd.DataFrame
    """One row per form and level left out: form, column, value, side, rows, rmse, bias.

    `side` is inside; end, to which one extrapolates (smallest patch, largest image and model); or start, the other end,
    which is in no ranking because nobody plans there. The form "last value carried forward" is the prediction without a
    law. A level is missing where the rest could not support the form or leaves its prediction open.
    """
    inside: dict[str, float]
    """For each form the RMSE over the inside levels of all axes, in rows that every form could predict; NaN if none."""
    refused: tuple[RefusedForm, ...]
    target: str
    points: int
    """Rows that every form was fitted to."""
    left_out: int
    """Rows that some form could not use."""
    unit: str

    def frame(self) -> pd.DataFrame:
        """One row per form, best AICc first, and one for the last value carried forward.

        `behind` is the AICc above the best, `rmse` that of the residuals, `inside` that of inside levels left out, in
        rows that every form could predict; then for each axis `COLUMN` over its inside levels and `COLUMN_end` for the
        end one extrapolates to. NaN: the rest could not support the form, or there is no value to carry.
        """
        rows = []
        best = self.scores[0].aicc
        for score in self.scores:
            row: dict[str, Any] = {
                "form": score.form,
                "parameters": score.parameters,
                "aicc": score.aicc,
                "behind": score.aicc - best if np.isfinite(best) else np.nan,
                "rmse": score.rmse,
                "inside": self.inside[score.form],
            }
            rows.append(row | self._by_axis(score.form))
        rows.append({"form": CARRIED, "parameters": 0} | self._by_axis(CARRIED))
        return pd.DataFrame(rows)

    def end(self, column: str) -> dict[str, float]:
        """For each form its RMSE at the end of an axis; best first, the last value carried forward included."""
        part = self._end_of(column)
        found = {str(form): float(rmse) for form, rmse in zip(part["form"], part["rmse"], strict=True)}
        return dict(sorted(found.items(), key=lambda pair: pair[1]))

    @property
    def columns(self) -> list[str]:
        """Axes along which levels were held out."""
        return list(dict.fromkeys(self.holdouts["column"]))

    @property
    def disagree(self) -> bool:
        """Whether no form leads by AICc, on inside levels and at every end at once."""
        rankings = [set(self._leading_by_aicc()), set(self._leading_inside())]
        ends = [self._laws_at_end(column) for column in self.columns]
        # where one form only can say anything there is no contest
        rankings += [set(self._leading(end)) for end in ends if len(end) > 1]
        return not set.intersection(*(leaders for leaders in rankings if leaders))

    def _end_of(self, column: str) -> pd.DataFrame:
        return self.holdouts[(self.holdouts["column"] == column) & (self.holdouts["side"] == "end")]

    def _by_axis(self, form: str) -> dict[str, float]:
        part = self.holdouts[self.holdouts["form"] == form]
        found = {}
        for column in self.columns:
            levels = part[part["column"] == column]
            inside, end = (levels[levels["side"] == side] for side in ("inside", "end"))
            weighted = np.average(inside["rmse"] ** 2, weights=inside["rows"]) if len(inside) else np.nan
            found[column] = float(np.sqrt(weighted))
            found[f"{column}_end"] = float(end["rmse"].iloc[0]) if len(end) else np.nan
        return found

    def _laws_at_end(self, column: str) -> dict[str, float]:
        return {form: rmse for form, rmse in self.end(column).items() if form != CARRIED}

    def _leading_by_aicc(self) -> list[str]:
        return [s.form for s in self.scores if s.aicc <= self.scores[0].aicc + AICC_LEVEL]

    def _leading_inside(self) -> list[str]:
        return self._leading({form: rmse for form, rmse in self.inside.items() if np.isfinite(rmse)})

    @staticmethod
    def _leading(rmses: dict[str, float]) -> list[str]:
        if not rmses:
            return []
        best = min(rmses.values())
        return sorted((f for f, r in rmses.items() if r <= best * (1 + HELD_OUT_LEVEL)), key=lambda f: rmses[f])

    def __str__(self) -> str:
        text = f"{len(self.scores)} forms on {self.points} runs: {self._say_aicc()}{self._say_inside()}."
        for column in self.columns:
            text += self._say_end(column)
        if len(self.scores) > 1 and self.columns:
            if self.disagree:
                text += " The rankings disagree: choose by what is to be predicted, or report both."
            else:
                text += " The rankings agree."
        if self.refused:
            text += f" Not supported by these rows: {listed([one.form for one in self.refused])}."
        return text

    def _say_aicc(self) -> str:
        leaders = self._leading_by_aicc()
        if not np.isfinite(self.scores[0].aicc):
            return "too few runs for AICc"
        behind = [s for s in self.scores if s.form not in leaders]
        after = f", {behind[0].aicc - self.scores[0].aicc:.1f} ahead of {behind[0].form}" if behind else ""
        return f"by AICc {_lead(leaders)}{after}"

    def _say_inside(self) -> str:
        leaders = self._leading_inside()
        if not leaders:
            return ""
        return f"; on inside levels left out {_lead(leaders)} ({self.inside[leaders[0]]:.3g}{self.unit} RMSE)"

    def _say_end(self, column: str) -> str:
        laws = self._laws_at_end(column)
        if not laws:
            return ""
        part = self._end_of(column)
        leaders = self._leading(laws)
        carried = part[part["form"] == CARRIED]
        against = ""
        if len(carried):
            rows, of = int(carried["rows"].iloc[0]), int(part["rows"].max())
            missed = float(carried["rmse"].iloc[0])
            more = f" on {rows} of {of} rows" if rows < of else ""
            more += ", which is closer" if rows == of and missed < laws[leaders[0]] else ""
            against = f"; carrying the last value forward {missed:.3g}{more}"
        value = float(part["value"].iloc[0])
        if len(laws) == 1 and len(self.scores) > 1:
            missed = laws[leaders[0]]
            return f" At {column} {value:.4g} only {leaders[0]} can be held out ({missed:.3g}{self.unit}{against})."
        return (
            f" At {column} {value:.4g}, predicted from the rest, {_lead(leaders)} "
            f"({laws[leaders[0]]:.3g}{self.unit}{against})."
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            "sentence": str(self),
            "forms": self.frame().to_dict("records"),
            "formulas": {score.form: score.formula for score in self.scores},
            "holdouts": self.holdouts.to_dict("records"),
            "refused": [vars(one) for one in self.refused],
            "disagree": self.disagree,
            "target": self.target,
            "unit": self.unit.strip() or "loss",
            "rows": self.points,
            "rows_left_out": self.left_out,
        }


def compare_laws(
    table: pd.DataFrame,
    *,
    forms: Sequence[str] = (),
    target: str = "loss",
    groups: Sequence[str] = (),
    factors: Sequence[str] = (),
    noise: str | None = None,
    seed: int = 0,
    allow_mixed: bool = False,
    mix_protocols: bool = False,
) -> Comparison:
    """Fit several forms to the same rows and compare them by AICc and by leaving out levels of the axes in turn.

    `forms` are names of laws; by default those of a short list whose columns the table has. Rows that one of them
    cannot use are left out for all. Residuals are differences of logarithms (or of logits) for every form; `groups`,
    `factors` and `noise` are as in `fit_law`. Forms that the rows cannot support are listed with the reason. Raises
    `UserError` if that is all of them, `UnlikeProtocols` if that is why.
    """
    for name, given in (("forms", forms), ("groups", groups), ("factors", factors)):
        if isinstance(given, str):
            raise UserError(f"{name}={given!r} is one text; give a list, such as [{given!r}]")
    goal = target_named(target)
    table = table.reset_index(drop=True)
    laws = [law_named(name) for name in dict.fromkeys(forms)] if forms else _short_list(table)
    options = {"target": goal, "groups": groups, "factors": factors, "noise": noise}
    options |= {"seed": seed, "allow_mixed": allow_mixed, "mix_protocols": mix_protocols}
    usable: dict[str, pd.Index] = {}
    refused: list[RefusedForm] = []
    for law in laws:
        try:
            require_columns(with_tokens(table, law), law, goal)
            rows, _ = split_usable(with_tokens(table, law), law, goal)
        except UserError as error:
            refused.append(RefusedForm(law.name, str(error)))
            continue
        usable[law.name] = rows.index
    common = table.index
    for index in usable.values():
        common = common.intersection(index) if len(index) else common
    fits: list[Fit] = []
    unlike: UnlikeProtocols | None = None
    for law in laws:
        if law.name not in usable:
            continue
        try:
            joint = FitOptions(law=law, draws=fewest_draws(0.95), **options)  # type: ignore[arg-type]
            fits.append(fit_joint(table.loc[common], joint))
        except UnlikeProtocols as error:
            unlike = error
            refused.append(RefusedForm(law.name, error.found))
        except UserError as error:
            refused.append(RefusedForm(law.name, str(error)))
    if not fits and unlike is not None:
        raise unlike
    if not fits:
        reasons = " | ".join(one.reason for one in refused[:3])
        raise UserError(f"no form can be fitted to these rows: {reasons}")
    percent = 100.0 if goal.is_error else 1.0
    scores = [
        FormScore(
            fit.form,
            fit.formula,
            fit.problem.num_parameters,
            fit.aicc,
            float(np.sqrt(np.mean(fit.points()["residual"] ** 2))) * percent,
        )
        for fit in fits
    ]
    holdouts, errors = hold_out_levels(table.loc[common], fits, [*groups, *(f.removeprefix("+") for f in factors)])
    holdouts[["rmse", "bias"]] *= percent
    return Comparison(
        scores=tuple(sorted(scores, key=lambda score: score.aicc)),
        holdouts=holdouts,
        inside=_over_common(fits, errors, percent),
        refused=tuple(refused),
        target=target,
        points=len(common),
        left_out=len(table) - len(common),
        unit=" points" if goal.is_error else "",
    )


def _short_list(table: pd.DataFrame) -> list[Law]:
    """Forms of the short list whose axes the table has; the laws of a single curve if it has none."""
    present = set(table.columns) | ({"tokens"} if {"patch_size", "img_size"} <= set(table.columns) else set())
    found = [law for law in map(law_named, SHORT_LIST) if {axis.column for axis in law.axes} <= present]
    return found or [law_named("patch"), law_named("shifted")]


def _over_common(fits: Sequence[Fit], errors: dict[str, dict[str, Array]], percent: float) -> dict[str, float]:
    """RMSE of each form over the rows and axes that every form could predict."""
    stacked = {
        fit.form: np.concatenate([*errors[fit.form].values()]) if errors[fit.form] else np.array([]) for fit in fits
    }
    shared = np.all([np.isfinite(one) for one in stacked.values()], axis=0)
    return {
        form: float(np.sqrt(np.mean(one[shared] ** 2))) * percent if shared.any() else np.nan
        for form, one in stacked.items()
    }


def _lead(forms: Sequence[str]) -> str:
    return f"{listed(forms)} {'leads' if len(forms) == 1 else 'lead'}"
