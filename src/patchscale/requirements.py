"""What the torch half needs and a plain installation has not. No torch."""

from importlib.util import find_spec

from patchscale.errors import UserError


def require_training_half() -> None:
    """Raise `UserError` if torch, torchvision or timm is missing; none of them is imported."""

    def is_missing(name: str) -> bool:
        try:
            return find_spec(name) is None
        except ImportError:
            return True

    missing = [name for name in ("torch", "torchvision", "timm") if is_missing(name)]
    if missing:
        raise UserError(f"training needs {', '.join(missing)}: pip install 'patchscale[train]'")
