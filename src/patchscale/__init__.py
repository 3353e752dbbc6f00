"""How finely should the image be cut? Train, measure, fit and plan vision models at any patch size.

Names are resolved on first use, so importing the package is fast and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module that defines it; the torch half is only imported when one of its names is used
_EXPORTS = {
    "create_model": "patchscale.models.registry",
    "list_models": "patchscale.models.registry",
    "load_checkpoint": "patchscale.models.checkpoints",
    "load_model": "patchscale.models.checkpoints",
    "save_model": "patchscale.models.checkpoints",
    "convert": "patchscale.models.convert",
    "ConversionReport": "patchscale.models.convert",
    "estimate_cost": "patchscale.costs.estimate",
    "estimate_vision_language_cost": "patchscale.costs.vision_language",
    "count_visual_tokens": "patchscale.costs.vision_language",
    "largest_image": "patchscale.costs.vision_language",
    "load_runs": "patchscale.runs.store",
    "published": "patchscale.published_tables.tables",
    "fit_law": "patchscale.laws.fit",
    "fit_curves": "patchscale.laws.fit",
    "compare_laws": "patchscale.laws.compare",
    "propose_runs": "patchscale.laws.next_runs",
    "plan": "patchscale.planner.plan",
    "Space": "patchscale.planner.space",
    "VisionLanguageSpace": "patchscale.planner.vision_language",
    "write_report": "patchscale.reports.html",
    "RunConfig": "patchscale.config",
    "UserError": "patchscale.errors",
}

if TYPE_CHECKING:
    from patchscale.config import RunConfig as RunConfig
    from patchscale.costs.estimate import estimate_cost as estimate_cost
    from patchscale.costs.vision_language import count_visual_tokens as count_visual_tokens
    from patchscale.costs.vision_language import estimate_vision_language_cost as estimate_vision_language_cost
    from patchscale.costs.vision_language import largest_image as largest_image
    from patchscale.errors import UserError as UserError
    from patchscale.laws.compare import compare_laws as compare_laws
    from patchscale.laws.fit import fit_curves as fit_curves
    from patchscale.laws.fit import fit_law as fit_law
    from patchscale.laws.next_runs import propose_runs as propose_runs
    from patchscale.models.checkpoints import load_checkpoint as load_checkpoint
    from patchscale.models.checkpoints import load_model as load_model
    from patchscale.models.checkpoints import save_model as save_model
    from patchscale.models.convert import ConversionReport as ConversionReport
    from patchscale.models.convert import convert as convert
    from patchscale.models.registry import create_model as create_model
    from patchscale.models.registry import list_models as list_models
    from patchscale.planner.plan import plan as plan
    from patchscale.planner.space import Space as Space
    from patchscale.planner.vision_language import VisionLanguageSpace as VisionLanguageSpace
    from patchscale.published_tables.tables import published as published
    from patchscale.reports.html import write_report as write_report
    from patchscale.runs.store import load_runs as load_runs

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'patchscale' has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
