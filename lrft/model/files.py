"""Where the files of a model or a tokenizer are, and what to say when they cannot be loaded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypedDict

from lrft.data.hub import offline_if_unreachable
from lrft.model import gguf
from lrft.registry.errors import RecipeError
from lrft.registry.foreign_folder import check_folder
from lrft.registry.secrets import masked


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
        check_folder(Path(name), "model.name")
    else:
        offline_if_unreachable()
    return name, {"revision": revision} if revision else {}


def unloadable(name: str, error: Exception, key: str = "model.name") -> RecipeError:
    """The error of a model or a tokenizer that is not there, or not readable."""
    if "trust_remote_code" in str(error):
        return RecipeError(
            f"{name!r} comes with code of its own, which runs only where the command line says --trust-remote-code; "
            "read that code first",
            key,
        )
    reason = masked(str(error)).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    kinds = "safetensors, or" if key == "model.name" else "a tokenizer, or"
    return RecipeError(
        f"{name!r} could not be loaded ({reason}); give a hub id, a local folder with {kinds} a .gguf file",
        key,
    )


def quiet() -> None:
    """Keep transformers' own bars and advice out of our output."""
    from transformers.utils import logging as hf_logging

    if hf_logging.get_verbosity() != logging.ERROR:  # setting it anew empties what all loggers remember
        hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
