"""lrft: low-rank fine-tuning of language models, driven by recipes.

The public names below are imported when they are asked for, so that importing lrft costs nothing.
"""

from os import environ as _environ

__version__ = "0.1.0"
__all__ = ["Adapter", "Recipe", "__version__", "evaluate", "load_recipe", "merge", "train"]

# Name -> the module that holds it.
_PUBLIC = {
    "Adapter": "lrft.core.adapter",
    "Recipe": "lrft.recipe.schema",
    "evaluate": "lrft.api.asking.evaluate",
    "load_recipe": "lrft.recipe.load",
    "merge": "lrft.api.merging.merge",
    "train": "lrft.api.training.train",
}

TYPE_CHECKING = False  # what type checkers take for true, without importing typing
if TYPE_CHECKING:
    from lrft.api.asking.evaluate import evaluate
    from lrft.api.merging.merge import merge
    from lrft.api.training.train import train
    from lrft.core.adapter import Adapter
    from lrft.recipe.load import load_recipe
    from lrft.recipe.schema import Recipe


# Before any library that counts its users is imported; who wants to be counted sets them to 0.
for _name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    _environ.setdefault(_name, "1")


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
