"""Where the files of a model or a tokenizer are."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypedDict

from lrft.data.hub import offline_if_unreachable
from lrft.files.model_folder import check_model_folder
from lrft.model import gguf
from lrft.registry.errors import DamagedFile, RecipeError


class Where(TypedDict, total=False):
    """How transformers is told which files of a hub model are meant."""

    revision: str


def resolve(name: str, revision: str | None, dtype: str | None = None) -> tuple[str, Where]:
    """What transformers is given to find a model: a folder, or a hub id with its revision.

    Args:
        dtype: what the weights will be loaded in; None where none will, but the configuration or the tokenizer.
    """
    path = gguf.locate(name)
    if path is not None:
        return str(gguf.described(path) if dtype is None else gguf.converted(path, dtype)), {}
    if Path(name).is_dir():
        _check(Path(name))
    else:
        offline_if_unreachable()
    return name, {"revision": revision} if revision else {}


def _check(folder: Path) -> None:
    """Refuse a folder with a file that no library should open.

    Raises:
        RecipeError: names it.
    """
    try:
        check_model_folder(folder)
    except DamagedFile as error:
        raise RecipeError(str(error), "model.name") from error


def quiet() -> None:
    """Keep transformers' own bars and advice out of our output."""
    from transformers.utils import logging as hf_logging

    if hf_logging.get_verbosity() != logging.ERROR:  # setting it anew empties what all loggers remember
        hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
