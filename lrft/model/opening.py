"""What a stranger's model or tokenizer makes go wrong while it is opened, as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrft.files.failure import ABOUT_ROOM, number_of
from lrft.model.promised import NotStreamed
from lrft.registry.errors import LrftError, RecipeError
from lrft.registry.secrets import masked

HERE = Path(__file__).parents[1]


@contextmanager
def opening(name: str, key: str = "model.name") -> Iterator[None]:
    """Whatever a library makes of files that say what no file says, told of the model; what lrft says itself passes.

    Raises:
        RecipeError: instead of the error. What is no fault of the files passes: too little memory, a full disk.
    """
    try:
        yield
    except (LrftError, NotStreamed, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, AssertionError) and _is_ours(error):
            raise
        if "can't allocate memory" in str(error) or "out of memory" in str(error).lower():
            raise
        if number_of(error) in ABOUT_ROOM:
            raise
        raise unloadable(name, error, key) from error


def _is_ours(error: AssertionError) -> bool:
    """Whether lrft itself found its own mistake; what a library asserts is of the files."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and Path(at.tb_frame.f_code.co_filename).is_relative_to(HERE)


def unloadable(name: str, error: Exception, key: str = "model.name") -> RecipeError:
    """The error of a model or a tokenizer that is not there, or not readable."""
    if "trust_remote_code" in str(error):
        return RecipeError(
            f"{name!r} comes with code of its own, which runs only where the command line says --trust-remote-code; "
            "read that code first",
            key,
        )
    said = next((line for line in masked(str(error)).splitlines() if line.strip()), "").strip()[:300]
    kind = type(error).__name__
    reason = said if isinstance(error, OSError | ValueError) and said else f"{kind}: {said}" if said else kind
    kinds = "safetensors, or" if key == "model.name" else "a tokenizer, or"
    return RecipeError(
        f"{name!r} could not be loaded ({reason}); give a hub id, a local folder with {kinds} a .gguf file",
        key,
    )
